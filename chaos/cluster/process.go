package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/sandbox"
)

const (
	// readyWait bounds how long a process may take until it says that it is ready.
	readyWait = 20 * time.Second
	// reviveAfter is how soon a supervisor starts a process again that ended by itself.
	reviveAfter = 300 * time.Millisecond
)

// Process is one program of the cluster under a supervisor: when it ends by itself it is
// started again, as a service manager would.
type Process struct {
	Name string
	// Args follow the program's name; Env is added to the environment, Once for the
	// first start alone (a kill point).
	Args []string
	Env  []string
	Once []string
	// UID runs it as another user; 0 does not. FDs limits its open files; 0 does not.
	UID int
	FDs int
	// Held processes are not started again by the supervisor.
	Held bool

	program string
	dir     string
	spawner *spawner

	mu sync.Mutex
	// run is the present incarnation.
	run    *incarnation
	starts int
	// Exits counts the ends that nobody asked for.
	exits  int
	deaths []Death
	gone   bool
}

// Death is an end of a process that nobody asked for, on the clock of the histories.
type Death struct {
	At  int64
	PID int
}

// incarnation is one start of a process.
type incarnation struct {
	cmd   *exec.Cmd
	ready map[string]any
	done  chan struct{}
	err   error
	// meant: the end was asked for.
	meant bool
}

// spawner starts processes from one thread that lives as long as the program, as the
// signal that tells a child of its parent's death follows the thread.
type spawner struct{ requests chan func() }

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range s.requests {
			f()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A session of its own, as a service manager gives it. In the suite's process group the
	// kernel would wake a frozen process as soon as a shell forgot that group: the stopped
	// members of a group that becomes orphaned get SIGHUP and SIGCONT.
	cmd.SysProcAttr.Setsid = true
	if !sandbox.Inside() {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	answer := make(chan error, 1)
	s.requests <- func() { answer <- cmd.Start() }
	return <-answer
}

// Start starts the process and returns when it is ready.
func (p *Process) Start() error {
	p.mu.Lock()
	p.gone = false
	p.mu.Unlock()
	return p.start()
}

// start is Start unless the process was told to stay down.
func (p *Process) start() error {
	p.mu.Lock()
	first := p.starts == 0
	p.starts++
	gone := p.gone
	p.mu.Unlock()
	if gone {
		return nil
	}
	name, args := p.program, p.Args
	if p.FDs > 0 {
		// The shell sets the limit and becomes the program.
		name, args = "/bin/sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, p.FDs), p.program}, p.Args...)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), p.Env...)
	if first {
		cmd.Env = append(cmd.Env, p.Once...)
	}
	if p.UID != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.UID)}}
	}
	logFile, err := os.OpenFile(p.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout = in
	err = p.spawner.start(cmd)
	in.Close()
	if err != nil {
		out.Close()
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	run := &incarnation{cmd: cmd, done: make(chan struct{})}
	p.mu.Lock()
	p.run = run
	p.mu.Unlock()
	ready := make(chan map[string]any, 1)
	go func() {
		defer out.Close()
		r := bufio.NewReader(out)
		line, err := r.ReadBytes('\n')
		var v map[string]any
		if err == nil && json.Unmarshal(line, &v) == nil {
			ready <- v
		}
		_, _ = io.Copy(io.Discard, r) // until the process ends
	}()
	go p.watch(run)
	timer := time.NewTimer(readyWait)
	defer timer.Stop()
	select {
	case v := <-ready:
		p.mu.Lock()
		run.ready = v
		p.mu.Unlock()
		return nil
	case <-run.done:
		return fmt.Errorf("%s ended before it was ready: %w; see %s", p.Name, errors.Join(run.err), p.LogPath())
	case <-timer.C:
		return fmt.Errorf("%s was not ready within %s; see %s", p.Name, readyWait, p.LogPath())
	}
}

// LogPath is where its standard error goes.
func (p *Process) LogPath() string { return filepath.Join(p.dir, p.Name+".log") }

// watch waits for the end of an incarnation and revives the process.
func (p *Process) watch(run *incarnation) {
	run.err = run.cmd.Wait()
	close(run.done)
	p.mu.Lock()
	revive := !run.meant && !p.gone && p.run == run
	if revive {
		p.exits++
		p.deaths = append(p.deaths, Death{history.Now(), run.cmd.Process.Pid})
	}
	held := p.Held
	p.mu.Unlock()
	if !revive || held {
		return
	}
	time.Sleep(reviveAfter)
	if p.current() == run {
		_ = p.start() // a start that fails is watched by itself
	}
}

// current returns the incarnation; nil before the first start.
func (p *Process) current() *incarnation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// Deaths lists the ends that nobody asked for.
func (p *Process) Deaths() []Death {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.deaths)
}

// PID is that of the present incarnation, 0 without one.
func (p *Process) PID() int {
	if run := p.current(); run != nil {
		return run.cmd.Process.Pid
	}
	return 0
}

// Ready is a value of the line that the process printed when it was ready.
func (p *Process) Ready(field string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil {
		return ""
	}
	text, _ := p.run.ready[field].(string)
	return text
}

// Exits counts the ends that nobody asked for; kill points and crashes are among them.
func (p *Process) Exits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exits
}

// Signal sends a signal to the process, which the supervisor does not know of.
func (p *Process) Signal(s syscall.Signal) error {
	run := p.current()
	if run == nil {
		return fmt.Errorf("%s was not started", p.Name)
	}
	return run.cmd.Process.Signal(s)
}

// Frozen says whether the process stands still after SIGSTOP.
func (p *Process) Frozen() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "T")
}

// Kill ends the process with SIGKILL and waits for its end; it stays down until Start.
func (p *Process) Kill() { _ = p.end(syscall.SIGKILL, 0) } // it always succeeds

// Stop ends the process with SIGTERM and waits for its drain, at most for that long. It
// says whether it ended well in time.
func (p *Process) Stop(limit time.Duration) error { return p.end(syscall.SIGTERM, limit) }

func (p *Process) end(s syscall.Signal, limit time.Duration) error {
	p.mu.Lock()
	run := p.run
	p.gone = true
	if run != nil {
		run.meant = true
	}
	p.mu.Unlock()
	if run == nil {
		return nil
	}
	_ = run.cmd.Process.Signal(s) // it may have ended by itself
	if s == syscall.SIGKILL {
		<-run.done
		return nil
	}
	_ = run.cmd.Process.Signal(syscall.SIGCONT) // a frozen process does not hear
	select {
	case <-run.done:
		if run.err != nil {
			return fmt.Errorf("%s did not end well after SIGTERM: %w", p.Name, run.err)
		}
		return nil
	case <-time.After(limit):
		_ = run.cmd.Process.Signal(syscall.SIGKILL)
		<-run.done
		return fmt.Errorf("%s did not end within %s of SIGTERM", p.Name, limit)
	}
}

// Running says whether the process is there.
func (p *Process) Running() bool {
	run := p.current()
	if run == nil {
		return false
	}
	select {
	case <-run.done:
		return false
	default:
		return true
	}
}
