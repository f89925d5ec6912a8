package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asStuck makes a process of this test binary whose part ignores that it shall stop.
const asStuck = "TREADLE_TEST_STUCK"

// stuckPart does not end with its context.
func stuckPart(context.Context) error {
	select {}
}

// runStuck is that process.
func runStuck() int {
	ctx, stop := withSignals(context.Background())
	defer stop()
	n := &node{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	stages, end := n.stages(ctx, 100*time.Millisecond)
	defer end()
	stages.run("obedient", func(ctx context.Context) error { <-ctx.Done(); return nil })
	stages.run("engine", stuckPart)
	stages.run("late", func(ctx context.Context) error { <-ctx.Done(); return nil })
	n.Log.Info(strings.TrimSpace(listening))
	if err := stages.wait(ctx); err != nil {
		return exitFailed
	}
	return exitOK
}

// TestStuckPart: SIGTERM ends a process whose part is stuck, with a code of its own and
// the part's name.
func TestStuckPart(t *testing.T) {
	cmd := process(t)
	cmd.Env = append(cmd.Env, asStuck+"=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for !strings.Contains(text.String(), strings.TrimSpace(listening)) {
		b := make([]byte, 1024)
		n, err := stderr.Read(b)
		if err != nil {
			t.Fatalf("%v: %s", err, text.String())
		}
		text.Write(b[:n])
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(&text, stderr); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitStuck {
		t.Errorf("%v, want exit code %d: %s", err, exitStuck, text.String())
	}
	for _, part := range []string{"level=ERROR", "parts=obedient,engine ", "after=100ms", "1 in cmd/treadle.stuckPart"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("the log lacks %q: %s", part, text.String())
		}
	}
}

// blocked is a log that nobody reads.
type blocked struct{ release chan struct{} }

func (b blocked) Write(p []byte) (int, error) { <-b.release; return len(p), nil }

// TestWatchdog: in time nothing happens; too late the process ends even if its log is stuck.
func TestWatchdog(t *testing.T) {
	exits := make(chan int, 1)
	quick := newWatchdog(time.Hour, slog.New(slog.DiscardHandler), func(code int) { exits <- code })
	quick.begin(func() []string { return nil })
	quick.end()
	quick.begin(func() []string { return nil }) // a signal at the very end
	if len(exits) != 0 {
		t.Error("a process that ended in time is ended again")
	}
	b := blocked{make(chan struct{})}
	defer close(b.release)
	late := newWatchdog(time.Millisecond, slog.New(slog.NewTextHandler(b, nil)), func(code int) { exits <- code })
	late.begin(func() []string { return []string{"x"} })
	if code := <-exits; code != exitStuck {
		t.Errorf("exit code %d", code)
	}
	late.end()
}

// TestOwnGoroutines: the summary names ours, and stays short.
func TestOwnGoroutines(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	started := make(chan struct{})
	for range 3 {
		go func() { started <- struct{}{}; <-stop }()
		<-started
	}
	got := ownGoroutines()
	if len(got) > stackFamilies || !strings.Contains(strings.Join(got, ";"), "3 in cmd/treadle.TestOwnGoroutines.func") {
		t.Errorf("%q", got)
	}
}
