package pyproc

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// line plays an agent with one slot: attempts wait in it, what is given back waits again.
type line struct {
	t    *testing.T
	e    *Executor
	wake func()

	mu      sync.Mutex
	waiting []*worker.Attempt
	stopped map[*worker.Attempt]bool
	starts  map[*worker.Attempt]int
	slow    []*worker.Attempt
	backs   int
	ended   map[*worker.Attempt]task.Outcome
	onStart func(*worker.Attempt)
}

func newLine(t *testing.T, e *Executor, attempts ...*worker.Attempt) *line {
	return &line{
		t: t, e: e, waiting: attempts,
		stopped: map[*worker.Attempt]bool{}, starts: map[*worker.Attempt]int{}, ended: map[*worker.Attempt]task.Outcome{},
	}
}

func (l *line) Bind(wake func()) { l.wake = wake }

func (l *line) Next(n int, fits func(*worker.Attempt) bool) (out []*worker.Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > 0 && len(out) < n && fits(l.waiting[0]) {
		out = append(out, l.waiting[0])
		l.waiting = l.waiting[1:]
	}
	return out
}

func (l *line) Started(a *worker.Attempt) {
	l.mu.Lock()
	l.starts[a]++
	stopped := l.stopped[a]
	l.mu.Unlock()
	if stopped {
		l.wake()
	}
	if l.onStart != nil {
		l.onStart(a)
	}
}

func (l *line) Slow(a *worker.Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow = append(l.slow, a)
}

func (l *line) Stopped(a *worker.Attempt) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopped[a]
}

func (l *line) Ended(done []worker.Done) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range done {
		if out, twice := l.ended[d.Attempt]; twice {
			l.t.Errorf("ended twice: %s and %s", describe(out), describe(d.Outcome))
		}
		l.ended[d.Attempt] = d.Outcome
	}
}

func (l *line) Back(attempts []*worker.Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var again []*worker.Attempt
	for _, a := range attempts {
		if l.stopped[a] {
			l.ended[a] = cancelled()
			continue
		}
		again = append(again, a)
	}
	l.backs += len(attempts)
	l.waiting = append(again, l.waiting...)
}

// stop asks for the end of one attempt.
func (l *line) stop(a *worker.Attempt) {
	l.mu.Lock()
	l.stopped[a] = true
	l.mu.Unlock()
	l.wake()
}

// run goes on until all attempts have ended. It returns how many times RunAhead took some.
func (l *line) run() (stretches int) {
	l.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.mu.Unlock()
			return stretches
		}
		a := l.waiting[0]
		l.waiting = l.waiting[1:]
		l.mu.Unlock()
		if l.e.RunAhead(0, a, l) {
			stretches++
		} else {
			l.Ended([]worker.Done{{Attempt: a, Outcome: run(l.t, l.e, 0, a)}})
		}
		if time.Now().After(deadline) {
			l.t.Fatal("the line does not come to its end")
		}
	}
}

// calls makes attempts of one function, one for each argument.
func calls(src string, args ...string) []*worker.Attempt {
	out := make([]*worker.Attempt, len(args))
	for i, arg := range args {
		out[i] = fromSource(src, fmt.Sprintf(`{"args":[%s]}`, arg))
	}
	return out
}

func numbers(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(i)
	}
	return out
}

// warm loads a function, so that its calls can be sent ahead.
func warm(t *testing.T, e *Executor, a *worker.Attempt) {
	t.Helper()
	if out := run(t, e, 0, a); out.End != task.EndSucceeded {
		t.Fatal(describe(out))
	}
}

// TestAhead: every call gets its own result and its own output, whoever wrote it.
func TestAhead(t *testing.T) {
	e := start(t, 1)
	src := `
import os, subprocess
def f(n):
    if n % 3 == 0: print("printed", n)
    if n % 7 == 0: os.write(2, b"raw %d\n" % n)
    if n % 50 == 0: subprocess.run(["/bin/echo", "child", str(n)])
    return n * n
`
	warm(t, e, calls(src, "1")[0])
	all := calls(src, numbers(300)...)
	logs := make([]log, len(all))
	for i, a := range all {
		a.Output = logs[i].write
	}
	l := newLine(t, e, all...)
	if n := l.run(); n > len(all)/2 {
		t.Errorf("%d stretches for %d calls: they were not sent ahead", n, len(all))
	}
	for i, a := range all {
		want(t, l.ended[a], fmt.Sprint(i*i))
		var lines []string
		if i%3 == 0 {
			lines = append(lines, fmt.Sprintf("printed %d\n", i))
		}
		if i%7 == 0 {
			lines = append(lines, fmt.Sprintf("raw %d\n", i))
		}
		if i%50 == 0 {
			lines = append(lines, fmt.Sprintf("child %d\n", i))
		}
		got := strings.SplitAfter(logs[i].String(), "\n")
		got = got[:len(got)-1]
		slices.Sort(got)
		slices.Sort(lines)
		if !slices.Equal(got, lines) {
			t.Errorf("call %d: output %q, want %q", i, got, lines)
		}
	}
}

// TestAheadLongCall: a call that takes long does not hold those behind it, and can be
// watched while it runs.
func TestAheadLongCall(t *testing.T) {
	e := start(t, 1)
	src := `
import time
def f(n):
    if n == 3:
        print("long call")
        time.sleep(600)
    return n
`
	warm(t, e, calls(src, "0")[0])
	all := calls(src, numbers(12)...)
	l := newLine(t, e, all...)
	seen := make(chan struct{})
	var once sync.Once
	all[3].Output = func([]byte) { once.Do(func() { close(seen) }) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-seen:
		case <-time.After(20 * time.Second):
			t.Error("the output of a long call does not come while it runs")
		}
		l.mu.Lock()
		if len(l.waiting) != 8 || len(l.slow) == 0 || l.slow[len(l.slow)-1] != all[3] {
			t.Errorf("%d attempts were given back, want 8; slow: %d", len(l.waiting), len(l.slow))
		}
		l.mu.Unlock()
		l.stop(all[3])
	}()
	l.run()
	<-done
	for i, a := range all {
		if i == 3 {
			wantEnd(t, l.ended[a], task.EndCancelled, "stopped")
			continue
		}
		want(t, l.ended[a], fmt.Sprint(i))
	}
}

// TestAheadStop stops a call before its turn: it does not run.
func TestAheadStop(t *testing.T) {
	e := start(t, 1)
	file := filepath.Join(t.TempDir(), "ran")
	src := fmt.Sprintf(`
import time
def f(n):
    open(%q, "a").write(f"{n}\n")
    if n == 1: time.sleep(0.2)
    return n
`, file)
	warm(t, e, calls(src, "99")[0])
	all := calls(src, numbers(8)...)
	l := newLine(t, e, all...)
	l.onStart = func(a *worker.Attempt) {
		if a == all[1] {
			l.stop(all[5])
		}
	}
	l.run()
	for i, a := range all {
		if i == 5 {
			wantEnd(t, l.ended[a], task.EndCancelled, "stopped")
			continue
		}
		want(t, l.ended[a], fmt.Sprint(i))
	}
	ran, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A runner that reads while others are taken back changes their order, and nothing else.
	started := strings.Fields(string(ran))
	slices.Sort(started)
	if !slices.Equal(started, []string{"0", "1", "2", "3", "4", "6", "7", "99"}) {
		t.Fatalf("ran %q", ran)
	}
}

// TestAheadTimeout: the timeout of a call counts from its own start.
func TestAheadTimeout(t *testing.T) {
	e := start(t, 1)
	src := "import time\ndef f(n):\n    time.sleep(0.004 if n != 20 else 600)\n    return n"
	warm(t, e, calls(src, "0")[0])
	all := calls(src, numbers(40)...)
	for _, a := range all {
		a.Timeout = 60 * time.Millisecond * 5
	}
	l := newLine(t, e, all...)
	l.run()
	for i, a := range all {
		if i == 20 {
			wantEnd(t, l.ended[a], task.EndTimedOut, "timeout of 300ms")
			continue
		}
		want(t, l.ended[a], fmt.Sprint(i))
	}
}

// TestAheadLedger: whatever calls do to their runner, each is started once, those behind
// it included, and each ends as it deserves.
func TestAheadLedger(t *testing.T) {
	e := start(t, 1)
	file := filepath.Join(t.TempDir(), "ran")
	src := fmt.Sprintf(`
import os, signal, sys, threading, time
def f(n, what):
    fd = os.open(%q, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%%d\n" %% n)
    os.close(fd)
    if what == "exit": os._exit(7)
    if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise": raise ValueError(n)
    if what == "thread": threading.Thread(target=time.sleep, args=(600,)).start()
    if what == "sleep": time.sleep(0.03)
    if what == "print": print(n)
    if what == "flood": print("x" * 200000)
    if what == "large": return "x" * 300000
    if what == "term": sys.exit(3)
    return n
`, file)
	kinds := []string{"exit", "kill", "raise", "thread", "sleep", "print", "flood", "large", "term"}
	warm(t, e, fromSource(src, `{"args":[-1,""]}`))
	random := rand.New(rand.NewPCG(1, 2))
	var all []*worker.Attempt
	var what []string
	for i := range 250 {
		kind := ""
		if random.IntN(8) == 0 {
			kind = kinds[random.IntN(len(kinds))]
		}
		what = append(what, kind)
		all = append(all, fromSource(src, fmt.Sprintf(`{"args":[%d,%q]}`, i, kind)))
	}
	logs := make([]log, len(all))
	for i, a := range all {
		a.Output = logs[i].write
	}
	l := newLine(t, e, all...)
	l.run()
	if l.backs == 0 {
		t.Error("nothing was ever given back")
	}
	for i, a := range all {
		out := l.ended[a]
		switch what[i] {
		case "exit":
			wantEnd(t, out, task.EndLost, "exit code 7")
		case "kill":
			wantEnd(t, out, task.EndLost, "SIGKILL")
		case "raise":
			wantEnd(t, out, task.EndRaised, fmt.Sprint(i))
		case "term":
			wantEnd(t, out, task.EndRaised, "3")
		case "large":
			if out.End != task.EndSucceeded || len(out.Result) != 300002 {
				t.Errorf("%d: %s", i, describe(out))
			}
		default:
			want(t, out, fmt.Sprint(i))
		}
		printed := ""
		switch what[i] {
		case "print":
			printed = fmt.Sprintln(i)
		case "flood":
			printed = strings.Repeat("x", 200000) + "\n"
		}
		if logs[i].String() != printed {
			t.Errorf("call %d (%s): %d bytes of output, want %d", i, what[i], len(logs[i].String()), len(printed))
		}
	}
	ran, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(ran))
	wanted := append([]string{"-1"}, numbers(len(all))...)
	slices.Sort(lines)
	slices.Sort(wanted)
	if !slices.Equal(lines, wanted) {
		t.Fatalf("started: %v", lines)
	}
	noStrays(t, e, 1)
}

// TestTakeBackWhileTheRunnerReads: what the runner took between two calls that were taken back
// stays, and the others go back, none of them lost.
func TestTakeBackWhileTheRunnerReads(t *testing.T) {
	theirs, ours, err := callChannel()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(theirs, ours)
	r := &runner{to: ours, theirs: theirs}
	l := &line{t: t, stopped: map[*worker.Attempt]bool{}}
	p := &pipeline{r: r, feed: l}
	for seq := uint32(1); seq <= 6; seq++ {
		p.calls = append(p.calls, sent{attempt: &worker.Attempt{FunctionName: fmt.Sprint(seq)}, seq: seq})
		if seq != 1 && seq != 3 && !r.offer(appendHead(nil, seq, kindCall, 0)) { // the runner has read these two
			t.Fatal("the channel is full")
		}
	}
	p.takeBack()
	var back []string
	for _, a := range l.waiting {
		back = append(back, a.FunctionName)
	}
	if len(p.calls) != 2 || p.calls[0].seq != 1 || p.calls[1].seq != 3 || !slices.Equal(back, []string{"2", "4", "5", "6"}) {
		t.Fatalf("%d calls stay, %v went back", len(p.calls), back)
	}
}
