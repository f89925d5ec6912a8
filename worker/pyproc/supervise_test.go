//go:build unix

package pyproc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// TestOutputIsWhole: whatever is written before the function returns, by whom and how
// ever, is delivered when Run returns, in order and to its own attempt.
func TestOutputIsWhole(t *testing.T) {
	e := start(t, 1)
	src := `
import sys, os, subprocess, ctypes
def f(n):
    print("print", n, end=" ")
    sys.stderr.write("stderr ")
    os.write(1, b"os ")
    subprocess.run(["/bin/echo", "-n", "child "])
    ctypes.CDLL(None).printf(b"printf ")
    sys.stdout.write("\ud800 ü")
    return n
`
	for i := range 50 {
		a := fromSource(src, `{"args":[7]}`)
		var out log
		a.Output = out.write
		want(t, run(t, e, 0, a), "7")
		// Each writer has a buffer of its own, so that only the parts are in order.
		got := out.String()
		for _, part := range []string{"print 7 \\ud800 ü", "stderr ", "os child ", "printf "} {
			if !strings.Contains(got, part) || len(got) != len("print 7 \\ud800 üstderr os child printf ") {
				t.Fatalf("attempt %d: %q", i, got)
			}
		}
	}
	a := fromSource("def f():\n    for i in range(20000): print(i)", "")
	var bytes, lines atomic.Int64
	a.Output = func(b []byte) {
		bytes.Add(int64(len(b)))
		lines.Add(int64(strings.Count(string(b), "\n")))
	}
	want(t, run(t, e, 0, a), "null")
	if bytes.Load() != 108890 || lines.Load() != 20000 {
		t.Fatalf("%d bytes, %d lines", bytes.Load(), lines.Load())
	}
	a = fromSource("import os\ndef f():\n    print('last words', end='', flush=True)\n    os._exit(1)", "")
	var out log
	a.Output = out.write
	wantEnd(t, run(t, e, 0, a), task.EndLost, "exit code 1")
	if out.String() != "last words" {
		t.Fatalf("output %q", out.String())
	}
}

// TestOutputIsLive: a line is there while the function still runs.
func TestOutputIsLive(t *testing.T) {
	e := start(t, 1)
	a := fromSource("import time\ndef f():\n    print('started')\n    time.sleep(600)", "")
	ctx, cancel := context.WithCancel(context.Background())
	a.Output = func(b []byte) {
		if strings.Contains(string(b), "started\n") {
			cancel()
		}
	}
	wantEnd(t, e.Run(ctx, 0, a), task.EndCancelled, "stopped")
}

func TestTimeoutAndCancel(t *testing.T) {
	e := start(t, 1)
	a := fromSource("import time\ndef f(n):\n    time.sleep(n)\n    return n", `{"args":[600]}`)
	a.Timeout = 100 * time.Millisecond
	out := run(t, e, 0, a)
	wantEnd(t, out, task.EndTimedOut, "timeout of 100ms")
	wantEnd(t, out, task.EndTimedOut, "load the function first")
	if out.RunTime < a.Timeout || out.RunTime > 5*time.Second {
		t.Fatalf("run time %s", out.RunTime)
	}
	a.Timeout = 30 * time.Second
	a.Args = []byte(`{"args":[0]}`)
	want(t, run(t, e, 0, a), "0")

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantEnd(t, e.Run(ctx, 0, a), task.EndCancelled, "stopped")
	want(t, run(t, e, 0, a), "0")
}

// TestIdleDeathIsInvisible kills runners between attempts: the next attempt gets another.
func TestIdleDeathIsInvisible(t *testing.T) {
	e := start(t, 1)
	a := fromSource("import os\ndef f(): return os.getpid()", "")
	for range 5 {
		out := run(t, e, 0, a)
		if out.End != task.EndSucceeded {
			t.Fatal(describe(out))
		}
		r := e.slots[0].cur
		if err := r.proc.Kill(); err != nil {
			t.Fatal(err)
		}
		<-r.exited
	}
	// A fork that outlives the answer keeps nothing of the runner's: it was killed with it.
	noStrays(t, e, 1)
}

// TestSlotsOpenAndShut: a slot that is shut takes its runner along, and can be opened again;
// the others go on.
func TestSlotsOpenAndShut(t *testing.T) {
	e := start(t, 1)
	a := fromSource("import os\ndef f(): return os.getpid()", "")
	first := run(t, e, 0, a)
	seen := map[string]bool{string(first.Result): true}
	for range 2 {
		var opening sync.WaitGroup
		for slot := 1; slot <= 2; slot++ {
			opening.Go(func() {
				if err := e.Open(t.Context(), slot); err != nil {
					t.Error(err)
				}
			})
		}
		opening.Wait()
		for slot := 1; slot <= 2; slot++ {
			out := run(t, e, slot, a)
			if out.End != task.EndSucceeded || seen[string(out.Result)] {
				t.Fatalf("slot %d: %s; runners seen: %v", slot, describe(out), seen)
			}
			seen[string(out.Result)] = true
		}
		noStrays(t, e, 3)
		for slot := 1; slot <= 2; slot++ {
			r := e.slots[slot].cur
			e.Shut(slot)
			select {
			case <-r.gone:
			default:
				t.Errorf("slot %d was shut and its runner is there", slot)
			}
			if out := e.Run(t.Context(), slot, a); out.End != task.EndLost {
				t.Errorf("a slot that is shut ran an attempt: %s", describe(out))
			}
			e.Shut(slot) // nothing is left to be done
		}
		noStrays(t, e, 1)
	}
	if again := run(t, e, 0, a); string(again.Result) != string(first.Result) {
		t.Errorf("slot 0 has another runner: %s", describe(again))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Open(ended, 1); err == nil {
		t.Error("a slot was opened though nobody waits for it")
	}
	noStrays(t, e, 1)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Open(t.Context(), 1); err == nil {
		t.Error("a closed executor opened a slot")
	}
}

// TestInterruptBetweenAttempts: a stray SIGINT does not end an idle runner.
func TestInterruptBetweenAttempts(t *testing.T) {
	e := start(t, 1)
	a := fromSource("import os\ndef f(): return os.getpid()", "")
	first := run(t, e, 0, a)
	for range 20 {
		if err := e.slots[0].cur.proc.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if out := run(t, e, 0, a); string(out.Result) != string(first.Result) && out.End != task.EndRaised {
			t.Fatalf("another process answered: %s", describe(out))
		}
	}
}

// TestRecycleIsQuick: a function that always leaves a thread costs a runner each time and
// never the slot.
func TestRecycledRunnersAnswer(t *testing.T) {
	e := start(t, 2)
	src := "import threading, os, time\ndef f():\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n    return os.getpid()"
	var wg sync.WaitGroup
	for slot := range 2 {
		wg.Go(func() {
			seen := map[string]bool{}
			for range 5 {
				out := e.Run(context.Background(), slot, fromSource(src, ""))
				if out.End != task.EndSucceeded || seen[string(out.Result)] {
					t.Errorf("slot %d: %s, seen before: %v", slot, describe(out), seen[string(out.Result)])
				}
				seen[string(out.Result)] = true
			}
		})
	}
	wg.Wait()
	noStrays(t, e, 2)
}

// TestThreadsThatEndAreForgiven: work that is over, or about to be, costs no runner.
func TestThreadsThatEndAreForgiven(t *testing.T) {
	e := start(t, 1)
	src := `
import threading, os, concurrent.futures, subprocess, asyncio
def f():
    t = threading.Thread(target=print); t.start(); t.join()
    concurrent.futures.ThreadPoolExecutor(2).submit(len, "x").result()
    subprocess.run(["true"]); p = subprocess.Popen(["true"]); p.wait()
    asyncio.run(asyncio.to_thread(len, "y"))
    return os.getpid()
`
	first := runJSON(t, e, src, "")
	if first.End != task.EndSucceeded {
		t.Fatal(describe(first))
	}
	for range 3 {
		if out := runJSON(t, e, src, ""); string(out.Result) != string(first.Result) {
			t.Fatalf("another process answered: %s", describe(out))
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("TREADLE_TOKEN", "secret")
	t.Setenv("TREADLE_", "secret")
	t.Setenv("ZOO_KEPT", "kept")
	folder := t.TempDir()
	e := start(t, 1, func(c *Config) { c.Paths = []string{folder} })
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	want(t, runJSON(t, e, `
import os, sys
def f(cwd, folder):
    assert not [k for k in os.environ if k.startswith("TREADLE")], os.environ
    assert os.environ["ZOO_KEPT"] == "kept"
    assert sys.path[:2] == [cwd, folder], sys.path
    assert not any("treadle_runner" in p or "runner-" in p for p in sys.path), sys.path
    assert os.getppid() != 1 and os.getpid() != 1 and os.getsid(0) == os.getpid()
    assert sys.argv == [""] and not vars(sys.modules["__main__"]).get("run")
    return os.getcwd() == cwd
`, `{"args":["`+cwd+`","`+folder+`"]}`), "true")
}

func TestStartErrors(t *testing.T) {
	if _, err := New(Config{Python: "no-such-python"}); err == nil || !strings.Contains(err.Error(), "--python PATH") {
		t.Fatalf("error %v", err)
	}
	quiet := slog.New(slog.DiscardHandler)
	e, err := New(Config{Python: "/bin/true", Logger: quiet, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(context.Background(), 1); err == nil || !strings.Contains(err.Error(), "--python PATH") {
		t.Fatalf("error %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	// An interpreter that answers the first question and then fails.
	path := filepath.Join(t.TempDir(), "python")
	script := "#!/bin/sh\nif [ \"$#\" = 2 ]; then echo '{\"version\":\"3.12.0\",\"dill\":\"1\",\"cloudpickle\":\"1\"}'; else echo no luck >&2; exit 3; fi\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	e, err = New(Config{Python: path, Logger: quiet, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(context.Background(), 2); err == nil || !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(err.Error(), "no luck") {
		t.Fatalf("error %v", err)
	}
	if err := e.Start(context.Background(), 1); err == nil {
		t.Fatal("started twice")
	}
	if err := errors.Join(e.Close(), e.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestCloseLeavesNothing: attempts in flight end, and no goroutine, process or open file stays.
func TestCloseLeavesNothing(t *testing.T) {
	before, files := runtime.NumGoroutine(), openFiles(t)
	e := start(t, 3)
	var wg sync.WaitGroup
	var running sync.WaitGroup
	running.Add(3)
	for slot := range 3 {
		a := fromSource("import time\ndef f():\n    print('up')\n    time.sleep(600)", "")
		a.Output = sync.OnceValue(func() func([]byte) {
			var once sync.Once
			return func([]byte) { once.Do(running.Done) }
		})()
		wg.Go(func() {
			if out := e.Run(context.Background(), slot, a); out.End != task.EndCancelled {
				t.Errorf("slot %d: %s", slot, describe(out))
			}
		})
	}
	running.Wait()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	noStrays(t, e, 0)
	if out := e.Run(context.Background(), 0, fromSource("def f(): pass", "")); out.End != task.EndCancelled {
		t.Fatalf("after Close: %s", describe(out))
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before || openFiles(t) > files {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before; %d files, %d before\n%s", runtime.NumGoroutine(), before, openFiles(t), files, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestLateCancelHitsNobodyElse races cancels with answers: an attempt ends in one of the
// two, and the next one on the same runner never notices.
func TestLateCancelHitsNobodyElse(t *testing.T) {
	e := start(t, 1)
	a := fromSource("def f(): return 1", "")
	begun := time.Now()
	for range 20 {
		want(t, run(t, e, 0, a), "1")
	}
	typical := time.Since(begun) / 20
	ends := map[task.End]int{}
	for i := range 120 {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(typical*time.Duration(i%30)/10, cancel)
		out := e.Run(ctx, 0, a)
		if ends[out.End]++; out.End != task.EndSucceeded && out.End != task.EndCancelled {
			t.Fatalf("attempt %d: %s", i, describe(out))
		}
		cancel()
		want(t, e.Run(context.Background(), 0, a), "1")
	}
	if ends[task.EndSucceeded] == 0 || ends[task.EndCancelled] == 0 {
		t.Fatalf("no race: %v", ends)
	}
}

// TestWorkingDirectoryMayShadow: modules of the user that are named like those of the
// standard library are no harm to the runner itself.
func TestWorkingDirectoryMayShadow(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"json", "random", "types", "queue", "copy", "tokenize", "uuid"} {
		if err := os.WriteFile(filepath.Join(folder, name+".py"), []byte("mine = True\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, 1) // has installed what the interpreter lacks
	t.Chdir(folder)
	e := start(t, 1)
	if e.slots[0].cur.info.Dill == "" {
		t.Fatal("the runner has no dill")
	}
	want(t, runJSON(t, e, "def f():\n    import json, os\n    return [json.dumps([1]), os.getcwd()]", ""), `["[1]","`+folder+`"]`)
}

// TestRunnerRefusesJunk: what is no frame ends a runner; it never hangs or runs on.
func TestRunnerRefusesJunk(t *testing.T) {
	e := start(t, 1)
	huge := appendHead(nil, 1, kindCall, 1<<31)
	for _, junk := range [][]byte{
		[]byte("JUNKJUNKJUNKJUNK"),
		appendHead(nil, 1, kindHello, 0),
		append(appendHead(nil, 1, kindCall, 3), "abc"...),
		append(appendHead(nil, 1, kindCall, 0), "more than it said"...),
		append(appendHead(nil, 1, kindCall, callSize), make([]byte, callSize)...),
		huge[:headSize-1],
	} {
		r := e.slots[0].cur
		if _, err := r.to.Write(junk); err != nil {
			t.Fatal(err)
		}
		if len(junk) < headSize {
			r.to.Close() // half a header, and then the end
		}
		if bytes.HasSuffix(junk, make([]byte, callSize)) {
			// A call of an unknown function is a frame: it is answered.
			if p, err := readFrame(r.reader, kindReply, 1, 1<<10); err != nil || ending(p[0]) != endMissing {
				t.Fatalf("%v, %v", p, err)
			}
			continue
		}
		select {
		case <-r.gone:
		case <-time.After(30 * time.Second):
			t.Fatalf("%q did not end the runner", junk)
		}
		if code := r.state.ExitCode(); code != exitWire && code != exitBroken {
			t.Fatalf("%q: %s", junk, describeExit(r.state))
		}
		if err := healthy(t.Context(), e, 0); err != nil {
			t.Fatal(err)
		}
	}
}
