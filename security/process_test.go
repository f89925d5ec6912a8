//go:build linux

package security

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is one that this package started, in a process group of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	// lines are those of standard output.
	lines chan string
	// ended is closed when it has; state is set before.
	ended chan struct{}
	err   error
}

// spawn starts processes from one thread that never ends: the system kills them when that
// thread does, so none outlives a test binary that panics.
var spawn = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// start starts a program. Its standard error goes to a file in dir.
func start(dir, name string, env []string, path string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), lines: make(chan string, 4096), ended: make(chan struct{})}
	logFile, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = logFile
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// Honest processes end when their input does.
	if _, err := p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	started := make(chan error)
	spawn() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			p.lines <- lines.Text()
		}
		close(p.lines)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// ready waits for the one line that a process prints when it is up.
func (p *process) ready(into any) error {
	select {
	case line, ok := <-p.lines:
		if !ok {
			return fmt.Errorf("%s ended before it was ready:\n%s", p.name, p.tail())
		}
		if err := json.Unmarshal([]byte(line), into); err != nil {
			return fmt.Errorf("%s printed %q: %w", p.name, line, err)
		}
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s was not ready within 30 s:\n%s", p.name, p.tail())
	}
}

// signal tells the process something, by its id.
func (p *process) signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// wait waits for the end.
func (p *process) wait(limit time.Duration) bool {
	select {
	case <-p.ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// kill ends it with its group and waits.
func (p *process) kill() {
	select {
	case <-p.ended:
		return
	default:
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	// Whoever reads the lines may have gone: what is left must not hold the reader up.
	go func() {
		for range p.lines { // until it is closed
		}
	}()
	<-p.ended
}

// alive reports whether it runs.
func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// tail returns the end of the log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// logSize is how long the log is, in bytes.
func (p *process) logSize() int64 {
	info, err := os.Stat(p.log)
	if err != nil {
		return 0
	}
	return info.Size()
}

// memory returns the resident memory of the process now and at its highest since
// resetPeak, in MiB.
func (p *process) memory() (now, peak int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	now, err = statusMiB(b, "VmRSS:")
	if err != nil {
		return 0, 0, err
	}
	peak, err = statusMiB(b, "VmHWM:")
	return now, peak, err
}

// resetPeak begins the measurement of the peak anew.
func (p *process) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// statusMiB reads one line of /proc/PID/status.
func statusMiB(status []byte, key string) (int, error) {
	for line := range bytes.Lines(status) {
		if rest, ok := strings.CutPrefix(string(line), key); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return kib >> 10, err
		}
	}
	return 0, fmt.Errorf("no %s in the status of the process", key)
}

func TestStatusMiB(t *testing.T) {
	status := []byte("Name:\tx\nVmHWM:\t  204800 kB\nVmRSS:\t   10240 kB\n")
	if n, err := statusMiB(status, "VmHWM:"); n != 200 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := statusMiB(status, "VmRSS:"); n != 10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := statusMiB(status, "VmSwap:"); err == nil {
		t.Error("a missing line is no error")
	}
}

// freePort picks a port for a program that cannot pick one itself.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// until waits for a condition, with a verdict.
func until(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(limit); ; {
		if last = check(); last == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, last)
		}
		pause(50 * time.Millisecond)
	}
}

// pause lets time pass: between two looks, or for as long as an attack lasts.
func pause(d time.Duration) { <-time.After(d) }
