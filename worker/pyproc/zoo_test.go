//go:build unix

package pyproc

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// animal is a function that does something that functions should not do.
type animal struct {
	name string
	src  string
	// end is what the attempt ends in, and text part of its message (or of its result).
	end  task.End
	text string
	// timeout is the attempt's, where it would not end by itself.
	timeout time.Duration
	memory  int64
	// cPython lists what is undefined behaviour elsewhere and may end in either way.
	orEnd task.End
}

const second = time.Second

// zoo is run by TestZoo: one after the other in one slot, and all at once in several.
var zoo = []animal{
	{name: "sys.exit", src: "import sys\ndef f(): sys.exit(0)", end: task.EndRaised, text: "0"},
	{name: "os._exit 0", src: "import os\ndef f(): os._exit(0)", end: task.EndLost, text: "exit code 0"},
	{name: "os._exit 7", src: "import os\ndef f(): os._exit(7)", end: task.EndLost, text: "exit code 7"},
	{name: "abort", src: "import os\ndef f(): os.abort()", end: task.EndLost, text: "SIGABRT"},
	{name: "segfault", src: "import ctypes\ndef f(): ctypes.string_at(0)", end: task.EndLost, text: "SIGSEGV"},
	{name: "kills itself", src: "import os\ndef f(): os.kill(os.getpid(), 9)", end: task.EndLost, text: "SIGKILL"},
	{name: "kills its group", src: "import os\ndef f(): os.killpg(0, 9)", end: task.EndLost, text: "SIGKILL"},
	{name: "terminates itself", src: "import os, time\ndef f():\n    os.kill(os.getpid(), 15)\n    time.sleep(60)", end: task.EndLost, text: "SIGTERM"},
	{name: "recursion", src: "def f(): return f()", end: task.EndRaised, text: "maximum recursion depth"},
	{name: "recursion in C", src: "import sys\ndef f():\n    sys.setrecursionlimit(10**9)\n    x = None\n    for _ in range(10**6): x = [x]\n    return repr(x)",
		end: task.EndLost, text: "SIGSEGV", orEnd: task.EndRaised},
	{name: "tiny recursion limit", src: "import sys\ndef f():\n    sys.setrecursionlimit(40)\n    def g(n): return g(n + 1)\n    g(0)", end: task.EndRaised, text: "maximum recursion depth"},
	{name: "endless loop", src: "def f():\n    while True: pass", end: task.EndTimedOut, text: "timeout of 300ms", timeout: 300 * time.Millisecond},
	{name: "endless output", src: "import os\ndef f():\n    while True: os.write(1, b'x' * 65536)", end: task.EndTimedOut, timeout: 300 * time.Millisecond},
	{name: "endless output of a child", src: "import subprocess\ndef f():\n    subprocess.Popen(['yes'])\n    return 'left'", end: task.EndSucceeded, text: "left"},
	{name: "ignores signals", src: "import signal, time\ndef f():\n    for n in range(1, 32):\n        if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n    time.sleep(60)",
		end: task.EndTimedOut, timeout: 300 * time.Millisecond},
	{name: "blocks signals in C", src: "import signal, time\ndef f():\n    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\n    time.sleep(60)",
		end: task.EndTimedOut, timeout: 300 * time.Millisecond},
	{name: "setsid and setpgid", src: "import os\ndef f():\n    for g in (os.setsid, lambda: os.setpgid(0, 0)):\n        try: g()\n        except OSError: pass\n    return 'tried'", end: task.EndSucceeded, text: "tried"},
	{name: "closes low descriptors", src: "import os\ndef f():\n    os.closerange(0, 256)\n    return 'closed'", end: task.EndSucceeded, text: "closed"},
	{name: "closes all descriptors", src: "import os\ndef f():\n    os.closerange(0, 1 << 16)\n    return 'closed'", end: task.EndLost, text: "descriptors"},
	{name: "closes all and stays", src: "import os, time\ndef f():\n    os.closerange(0, 1 << 16)\n    time.sleep(60)", end: task.EndLost, text: "closed the descriptors"},
	{name: "writes junk to descriptors", src: "import os\ndef f():\n    for fd in range(3, 300):\n        try: os.write(fd, b'junk' * 100)\n        except OSError: pass\n    return 'wrote'", end: task.EndSucceeded, text: "wrote"},
	{name: "writes junk to every descriptor", src: "import os\ndef f():\n    for fd in map(int, os.listdir('/proc/self/fd')):\n        try: os.write(fd, b'junk' * 100)\n        except OSError: pass\n    return 'wrote'",
		end: task.EndLost, text: "not its own"},
	{name: "redirects stdout", src: "import os, sys\ndef f():\n    n = os.open('/dev/null', os.O_WRONLY)\n    os.dup2(n, 1); os.dup2(n, 2); os.close(n)\n    sys.stdout = sys.stderr = None\n    return 'silent'", end: task.EndSucceeded, text: "silent"},
	{name: "closes stdout", src: "import sys\ndef f():\n    print('x', end=''); sys.stdout.close(); sys.stderr.detach(); sys.stdin = 3\n    return 'closed'", end: task.EndSucceeded, text: "closed"},
	{name: "forks and returns", src: "import os\ndef f():\n    return 'twice' if os.fork() else 'child'", end: task.EndSucceeded, text: "twice"},
	{name: "forks and raises", src: "import os\ndef f():\n    if os.fork() == 0: raise ValueError('child')\n    os.wait()\n    return 'parent'", end: task.EndSucceeded, text: "parent"},
	{name: "forks and stays", src: "import os, time\ndef f():\n    if os.fork() == 0: time.sleep(600)\n    return 'left a child'", end: task.EndSucceeded, text: "left a child"},
	{name: "daemonizes", src: `import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 1 << 16)
            os.execve("/bin/sleep", ["sleep", "600"], {})
        os._exit(0)
    os.wait()
    return "daemon"`, end: task.EndSucceeded, text: "daemon"},
	{name: "daemonizes and dies", src: `import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve("/bin/sleep", ["sleep", "600"], {})
        os._exit(0)
    os.wait()
    os._exit(5)`, end: task.EndLost, text: "exit code 5"},
	{name: "daemonizes and hangs", src: `import os, subprocess, time
def f():
    subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
    time.sleep(600)`, end: task.EndTimedOut, timeout: 300 * time.Millisecond},
	{name: "child holds the pipes", src: "import os, subprocess\ndef f():\n    subprocess.Popen(['sleep', '600'], close_fds=False)\n    os._exit(9)", end: task.EndLost, text: "exit code 9"},
	{name: "fork bomb", src: "import os, time\ndef f():\n    for _ in range(6): os.fork()\n    time.sleep(600)", end: task.EndTimedOut, timeout: 500 * time.Millisecond},
	{name: "leaves a thread", src: "import threading, time\ndef f():\n    threading.Thread(target=time.sleep, args=(600,)).start()\n    return 'thread'", end: task.EndSucceeded, text: "thread"},
	{name: "leaves a daemon thread", src: "import threading, time\ndef f():\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n    return 'thread'", end: task.EndSucceeded, text: "thread"},
	{name: "leaves a raw thread", src: "import _thread, time\ndef f():\n    _thread.start_new_thread(time.sleep, (600,))\n    return 'thread'", end: task.EndSucceeded, text: "thread"},
	{name: "leaves 200 threads", src: "import threading, time\ndef f():\n    for _ in range(200): threading.Thread(target=time.sleep, args=(600,)).start()\n    return 'threads'", end: task.EndSucceeded, text: "threads"},
	{name: "leaves a pool", src: "from multiprocessing import get_context\ndef f():\n    global p\n    p = get_context('fork').Pool(2)\n    return p.apply(len, ([1],))", end: task.EndSucceeded, text: "1"},
	{name: "changes the process", src: `import os, sys, signal
def f():
    os.chdir("/"); os.environ["ZOO"] = "1"; os.environ.pop("PATH", None); os.umask(0); sys.path[:] = []
    sys.setrecursionlimit(50000); signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.alarm(1)
    sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)
    return "changed"`, end: task.EndSucceeded, text: "changed"},
	{name: "lowers limits", src: "import resource as r\ndef f():\n    r.setrlimit(r.RLIMIT_NOFILE, (40, 40)); r.setrlimit(r.RLIMIT_CPU, (1, 1)); r.setrlimit(r.RLIMIT_FSIZE, (0, 0))\n    return 'low'", end: task.EndSucceeded, text: "low"},
	{name: "is nice", src: "import os\ndef f():\n    os.nice(5)\n    return 'nice'", end: task.EndSucceeded, text: "nice"},
	{name: "patches pickle and json", src: `import pickle, json, os, io, struct
def f():
    for m in (pickle, json, struct):
        for n in dir(m):
            if not n.startswith("__"): setattr(m, n, None)
    os.read = os.write = os.getpid = io.BytesIO = None
    return "patched"`, end: task.EndSucceeded, text: "patched", orEnd: task.EndLost},
	{name: "breaks builtins", src: "import builtins\ndef f():\n    for n in ('len', 'type', 'isinstance', 'dict', 'print'): setattr(builtins, n, None)\n    return 'broken'",
		end: task.EndSucceeded, text: "", orEnd: task.EndLost},
	{name: "clears the modules", src: "import sys\ndef f():\n    sys.modules.clear()\n    return 'cleared'", end: task.EndSucceeded, text: "", orEnd: task.EndLost},
	{name: "exits at exit", src: "import atexit, os\ndef f():\n    atexit.register(os._exit, 3)\n    return 'later'", end: task.EndSucceeded, text: "later"},
	{name: "removes its folder", src: "import os, tempfile\ndef f():\n    d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)\n    return 'gone'", end: task.EndSucceeded, text: "gone"},
	{name: "stops itself", src: "import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSTOP)", end: task.EndTimedOut, timeout: 300 * time.Millisecond},
	{name: "starts the interpreter's exit", src: "import sys, threading\ndef f():\n    raise SystemExit(threading.current_thread())", end: task.EndRaised},
	{name: "memory", src: "def f():\n    x = bytearray(1 << 30)\n    for i in range(0, len(x), 4096): x[i] = 1\n    return len(x)", end: task.EndExhausted, text: "limit of 268435456 bytes", memory: 256 << 20},
}

// check runs an animal and says what is wrong with its end.
func (a animal) check(ctx context.Context, e *Executor, slot int) error {
	at := fromSource(a.src, "")
	at.Timeout, at.MemoryLimit = a.timeout, a.memory
	var out log
	at.Output = out.write
	begun := time.Now()
	got := e.Run(ctx, slot, at)
	if ctx.Err() != nil {
		return fmt.Errorf("did not end within %s", time.Since(begun))
	}
	if got.End == a.orEnd && a.orEnd != task.EndNone {
		return nil
	}
	text := string(got.Result)
	if got.Failure != nil {
		text = got.Failure.Message
	}
	if got.End != a.end || !strings.Contains(text, a.text) {
		return fmt.Errorf("got %s, want %s with %q; output: %.300s", describe(got), a.end, a.text, out.String())
	}
	if a.timeout > 0 && got.RunTime > a.timeout+5*second {
		return fmt.Errorf("took %s with a timeout of %s", got.RunTime, a.timeout)
	}
	return nil
}

// healthy runs a function that looks at everything an attempt may rely on.
func healthy(ctx context.Context, e *Executor, slot int) error {
	at := fromSource(`import os, sys, signal, json, threading
def f(cwd):
    print("to stdout"); print("to stderr", file=sys.stderr); os.system("echo from a child")
    assert os.getcwd() == cwd, os.getcwd()
    assert "ZOO" not in os.environ and os.environ.get("PATH")
    assert sys.stdin.read() == "" and os.read(0, 1) == b""
    assert sys.getrecursionlimit() < 10000 and sys.path and len("ab") == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sys.gettrace() is None and sys.getprofile() is None
    assert os.getpriority(os.PRIO_PROCESS, 0) == os.getpriority(os.PRIO_PROCESS, os.getppid()) and threading.active_count() == 1
    import resource
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 40 and resource.getrlimit(resource.RLIMIT_CPU)[0] == -1
    assert os.umask(0o22) != 0 and os.getpgrp() == os.getpid()
    return json.loads("[1]")
`, "")
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	at.Args = fmt.Appendf(nil, `{"args":[%q]}`, cwd)
	var out log
	at.Output = out.write
	got := e.Run(ctx, slot, at)
	if got.End != task.EndSucceeded || string(got.Result) != "[1]" {
		return fmt.Errorf("the slot is not as it was: %s", describe(got))
	}
	if out.String() != "to stdout\nto stderr\nfrom a child\n" {
		return fmt.Errorf("the slot's output is %q", out.String())
	}
	return nil
}

func TestZoo(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if len(zoo) < 25 {
		t.Fatalf("%d animals", len(zoo))
	}
	t.Run("one after the other", func(t *testing.T) {
		e := start(t, 1)
		for _, a := range zoo {
			t.Run(a.name, func(t *testing.T) {
				if err := a.check(ctx, e, 0); err != nil {
					t.Fatal(err)
				}
				noStrays(t, e, 1)
				if err := healthy(ctx, e, 0); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	t.Run("all at once", func(t *testing.T) {
		const slots = 4
		e := start(t, slots)
		next := make(chan animal)
		var slotsDone sync.WaitGroup
		for slot := range slots {
			slotsDone.Go(func() {
				for a := range next {
					if err := a.check(ctx, e, slot); err != nil {
						t.Errorf("%s: %v", a.name, err)
					}
				}
				if err := healthy(ctx, e, slot); err != nil {
					t.Errorf("slot %d: %v", slot, err)
				}
			})
		}
		for _, a := range zoo {
			next <- a
		}
		close(next)
		slotsDone.Wait()
		noStrays(t, e, slots)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		noStrays(t, e, 0)
	})
}
