//go:build linux

package pyproc

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// beAgent is the body of another process that the tests kill: an executor with attempts
// that leave all sorts of processes around. It tells its mark and then waits for its end.
func beAgent(cache string) {
	e, err := New(Config{CacheDir: cache})
	if err == nil {
		err = e.Start(context.Background(), 4)
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	sources := []string{
		"import time\ndef f():\n    print('up')\n    time.sleep(600)",
		"def f():\n    print('up')\n    while True: pass",
		"import subprocess, time\ndef f():\n    subprocess.Popen(['sleep', '600'])\n    subprocess.Popen(['sleep', '600'], start_new_session=True, env={})\n    print('up')\n    time.sleep(600)",
	}
	var up sync.WaitGroup
	up.Add(len(sources))
	for slot, src := range sources {
		a := fromSource(src, "")
		var once sync.Once
		a.Output = func([]byte) { once.Do(up.Done) }
		go func() {
			out := e.Run(context.Background(), slot, a)
			fmt.Println("ended:", describe(out))
		}()
	}
	up.Wait()
	fmt.Println("mark", uint64(e.mark))
	select {}
}

// startAgent runs beAgent in a process group of its own and returns it with its mark.
func startAgent(t *testing.T) (*exec.Cmd, mark, *bufio.Scanner) {
	t.Helper()
	start(t, 1) // has installed what the interpreter lacks
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PYPROC_TEST_AGENT="+sharedCache, "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatal("the agent said nothing")
	}
	number, ok := strings.CutPrefix(lines.Text(), "mark ")
	value, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil {
		t.Fatalf("the agent said %q", lines.Text())
	}
	return cmd, mark(value), lines
}

// awaitGone waits for the end of processes.
func awaitGone(t *testing.T, pids []int, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone already
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline)/time.Millisecond)))
		unix.Close(fd)
		if state, _ := statOf(pid); n == 0 && err == nil && state != 'Z' && state != 0 {
			command, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			t.Errorf("process %d %q is alive %s after its agent's end", pid, command, within)
		}
	}
}

// TestKilledAgentLeavesNothing: SIGKILL of the agent ends runners, their children and
// those that left their session and dropped their environment.
func TestKilledAgentLeavesNothing(t *testing.T) {
	cmd, m, _ := startAgent(t)
	pids := marked(m)
	if len(pids) != 4+2 {
		t.Fatalf("%d processes, want four runners and two children", len(pids))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	awaitGone(t, pids, 5*time.Second)
}

// TestInterruptStaysWithTheAgent: a Ctrl-C, which reaches the agent's whole group, does
// not reach what runs. (This agent dies of it; its attempts must not have noticed.)
func TestInterruptStaysWithTheAgent(t *testing.T) {
	cmd, m, lines := startAgent(t)
	for _, pid := range marked(m) {
		group, err := unix.Getpgid(pid)
		if err != nil || group == cmd.Process.Pid {
			t.Fatalf("process %d is in the agent's group (%v)", pid, err)
		}
		session, err := unix.Getsid(pid)
		if own, _ := unix.Getsid(0); err != nil || session == own {
			t.Fatalf("process %d is in the session of the terminal (%v)", pid, err)
		}
	}
	pids := marked(m)
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		t.Errorf("an attempt noticed: %s", lines.Text())
	}
	awaitGone(t, pids, 5*time.Second)
}

// TestKernelAloneEndsRunners kills the guard first: the kernel alone ends the runners, a
// busy loop included.
func TestKernelAloneEndsRunners(t *testing.T) {
	cmd, m, _ := startAgent(t)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var guards, runners, others []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || parentOf(pid) != cmd.Process.Pid {
			continue
		}
		if markOf(pid) == 0 {
			guards = append(guards, pid)
		} else {
			runners = append(runners, pid)
		}
	}
	if len(guards) != 1 || len(runners) != 4 {
		t.Fatalf("%d guards and %d runners", len(guards), len(runners))
	}
	for _, pid := range marked(m) {
		if !slices.Contains(runners, pid) {
			others = append(others, pid)
		}
	}
	if err := unix.Kill(guards[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	awaitGone(t, runners, 5*time.Second)
	for _, pid := range others {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// TestGuardIsReplaced: an executor is not without a guard for long.
func TestGuardIsReplaced(t *testing.T) {
	e := start(t, 1)
	e.guard.mu.Lock()
	first := e.guard.pid
	e.guard.mu.Unlock()
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		e.guard.mu.Lock()
		pid := e.guard.pid
		e.guard.mu.Unlock()
		if pid != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no new guard")
		}
	}
}

// TestSpawningThreadLives: runners are children of a thread that stays, so that they are
// not killed when Go ends one.
func TestSpawningThreadLives(t *testing.T) {
	e := start(t, 1)
	a := fromSource("import os\ndef f(): return os.getpid()", "")
	first := run(t, e, 0, a)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			done := make(chan struct{})
			go func() {
				defer close(done)
				lockAndEnd()
			}()
			<-done
		})
	}
	wg.Wait()
	if out := run(t, e, 0, a); string(out.Result) != string(first.Result) {
		t.Fatalf("the runner was replaced: %s", describe(out))
	}
}

// lockAndEnd ends with its goroutine locked to a thread, which ends with it.
func lockAndEnd() {
	runtime.LockOSThread()
}
