package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startUp starts `treadle up` without a pool and returns when it is ready.
func startUp(t *testing.T, change func(*exec.Cmd), args ...string) (*exec.Cmd, *syncBuffer) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	cmd := process(t, append([]string{"up", "--json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--store", "memory:",
		"--slots", "0", "--data-dir", t.TempDir()}, args...)...)
	log := &syncBuffer{}
	cmd.Stderr = log
	if change != nil {
		change(cmd)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "grpc_addr") {
		t.Fatalf("ready line %q, %v; stderr:\n%s", line, err, log)
	}
	return cmd, log
}

// syncBuffer may be read while a process writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await returns when a process has ended, and its code.
func await(t *testing.T, cmd *exec.Cmd, log fmt.Stringer) int {
	t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { t.Error("it does not end"); _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait() // the code tells
	if cmd.ProcessState.ExitCode() < 0 {
		t.Errorf("ended by %v; stderr:\n%s", cmd.ProcessState, log)
	}
	return cmd.ProcessState.ExitCode()
}

// TestHangupAtATerminal closes the terminal of a server: it stops in order, with and without
// files that it could read again.
func TestHangupAtATerminal(t *testing.T) {
	tokens := t.TempDir() + "/tokens.json"
	cli(t, "", "token", "create", "--role", "client", "--file", tokens).wantOK(t)
	for _, args := range [][]string{nil, {"--token-file", tokens}} {
		master, slave := pty(t)
		cmd, log := startUp(t, func(c *exec.Cmd) {
			c.Stdin = slave
			c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		}, args...)
		_ = slave.Close()
		_ = master.Close() // the kernel sends SIGHUP
		if code := await(t, cmd, log); code != exitOK || !strings.Contains(log.String(), "the terminal was closed") {
			t.Errorf("%v: exit code %d; stderr:\n%s", args, code, log)
		}
	}
}

func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// TestHangupWithoutATerminal: it is no reason to end, with and without files.
func TestHangupWithoutATerminal(t *testing.T) {
	tokens := t.TempDir() + "/tokens.json"
	cli(t, "", "token", "create", "--role", "client", "--file", tokens).wantOK(t)
	for said, args := range map[string][]string{"no token or certificate files to reload": nil, "tokens and certificates reloaded": {"--token-file", tokens}} {
		cmd, log := startUp(t, nil, args...)
		_ = cmd.Process.Signal(syscall.SIGHUP)
		waitFor(t, func() bool { return strings.Contains(log.String(), said) })
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if code := await(t, cmd, log); code != exitOK {
			t.Errorf("exit code %d; stderr:\n%s", code, log)
		}
	}
}

// TestLogThatNobodyReads: a server outlives the reader of its log, and still ends in order.
func TestLogThatNobodyReads(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd, log := startUp(t, func(c *exec.Cmd) { c.Stderr = writer }, "--log-level", "debug")
	_ = writer.Close()
	_ = reader.Close()
	_ = cmd.Process.Signal(syscall.SIGHUP) // makes it write
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if code := await(t, cmd, log); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestOrphansAreCollected: what others left behind does not stay a zombie, and children that
// somebody waits for keep their exit codes.
func TestOrphansAreCollected(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip("orphans come to PID 1 alone here:", err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { collectOrphans(ctx, os.Getpid(), 300*time.Millisecond); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	out, err := exec.Command("sh", "-c", "(sleep 0.1; exit 3) >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	orphan := strings.TrimSpace(string(out))
	if _, err := os.Stat("/proc/" + orphan); err != nil {
		t.Fatal("the orphan is not there:", err)
	}
	for range 20 {
		if err := exec.Command("sh", "-c", "exit 7").Run(); err == nil || err.Error() != "exit status 7" {
			t.Fatalf("a child of ours: %v", err)
		}
	}
	waitFor(t, func() bool { _, err := os.Stat("/proc/" + orphan); return err != nil })
}
