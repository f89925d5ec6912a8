//go:build unix

package pyproc

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

// leftovers are functions that change the process, and what another function sees of it.
var leftovers = []struct {
	name, culprit string
	// module is run when the culprit is loaded; changes of that are its own, too.
	module string
	// victim is an expression whose value must be what it was before.
	victim string
	// kept says that the runner goes on: it is put back and not replaced.
	kept bool
}{
	{name: "event loop after asyncio.run", culprit: "import asyncio\n    async def g(): return 1\n    asyncio.run(g())",
		victim: `(lambda a, w: (w.simplefilter("ignore"), a.get_event_loop().run_until_complete(a.sleep(0, 7)))[1])(__import__("asyncio"), __import__("warnings"))`, kept: true},
	{name: "event loop that is set and closed", culprit: "import asyncio\n    l = asyncio.new_event_loop(); asyncio.set_event_loop(l); l.close()",
		victim: `(lambda a, w: (w.simplefilter("ignore"), a.get_event_loop().is_closed())[1])(__import__("asyncio"), __import__("warnings"))`, kept: true},
	{name: "event loop policy", culprit: "import asyncio, warnings\n    warnings.simplefilter('ignore')\n    class P(asyncio.DefaultEventLoopPolicy): pass\n    asyncio.set_event_loop_policy(P())",
		victim: `repr(__import__("asyncio").events._event_loop_policy)`, kept: true},
	{name: "warnings are errors", culprit: "import warnings; warnings.simplefilter('error')",
		module: "import warnings; warnings.simplefilter('error')",
		victim: `__import__("warnings").warn("careful")`, kept: true},
	{name: "warnings' list replaced", culprit: "import warnings; warnings.filters = []", victim: `len(__import__("warnings").filters)`, kept: true},
	{name: "logging is captured", culprit: "import logging; logging.captureWarnings(True)", victim: `__import__("warnings").showwarning.__module__`, kept: true},
	{name: "logging.disable", culprit: "import logging; logging.disable(logging.CRITICAL)", module: "import logging; logging.disable(50)",
		victim: `__import__("logging").getLogger("x").isEnabledFor(40)`, kept: true},
	{name: "root logger", culprit: "import logging; logging.basicConfig(level=1); logging.getLogger().addHandler(logging.StreamHandler())",
		module: "import logging; logging.getLogger().addHandler(logging.StreamHandler())",
		victim: `(lambda r: [r.level, len(r.handlers), r.isEnabledFor(10)])(__import__("logging").getLogger())`, kept: true},
	{name: "socket timeout", culprit: "import socket; socket.setdefaulttimeout(0.001)", module: "import socket; socket.setdefaulttimeout(0.001)",
		victim: `__import__("socket").getdefaulttimeout()`, kept: true},
	{name: "decimal", culprit: "import decimal; decimal.getcontext().prec = 3", module: "import decimal; decimal.getcontext().prec = 3",
		victim: `str(__import__("decimal").Decimal(1) / 3)`, kept: true},
	{name: "locale", culprit: "import locale; locale.setlocale(locale.LC_ALL, 'C')", victim: `__import__("locale").setlocale(6)`, kept: true},
	{name: "tempfile.tempdir", culprit: "import tempfile; tempfile.tempdir = '/nowhere'", module: "import tempfile; tempfile.tempdir = '/nowhere'",
		victim: `__import__("tempfile").gettempdir()`, kept: true},
	{name: "signals", culprit: "import signal\n    for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGPROF): signal.signal(n, signal.SIG_IGN)",
		victim: `[str(__import__("signal").getsignal(n)) for n in (1, 10, 12, 27)]`, kept: true},
	{name: "any other signal", culprit: "import signal; signal.signal(signal.SIGRTMIN + 3, signal.SIG_IGN)",
		victim: `[str(__import__("signal").getsignal(n)) for n in range(34, 64)]`},
	{name: "signal mask", culprit: "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [10])", victim: `len(__import__("signal").pthread_sigmask(0, []))`},
	{name: "interval timer", culprit: "import signal; signal.setitimer(signal.ITIMER_PROF, 1000)", victim: `__import__("signal").getitimer(2)[0] > 0`},
	{name: "hooks", culprit: "import sys; sys.excepthook = sys.displayhook = sys.unraisablehook = sys.breakpointhook = print",
		victim: `(lambda s: [s.excepthook is s.__excepthook__, s.displayhook is s.__displayhook__, s.unraisablehook is s.__unraisablehook__])(__import__("sys"))`, kept: true},
	{name: "garbage collector", culprit: "import gc; gc.disable()", victim: `__import__("gc").isenabled()`, kept: true},
	{name: "switch interval", culprit: "import sys; sys.setswitchinterval(1.5)", victim: `__import__("sys").getswitchinterval()`, kept: true},
	{name: "digits of integers", culprit: "import sys; getattr(sys, 'set_int_max_str_digits', print)(700)",
		victim: `getattr(__import__("sys"), "get_int_max_str_digits", int)()`, kept: true},
	{name: "stack size", culprit: "import threading; threading.stack_size(1 << 20)", victim: `__import__("threading").stack_size()`, kept: true},
	{name: "context variable", module: "import contextvars; v = contextvars.ContextVar('v'); v.set(1)", culprit: "v.set(2)",
		victim: `len(__import__("contextvars").copy_context())`, kept: true},
	{name: "time zone", culprit: "import os, time; os.environ['TZ'] = 'Asia/Kathmandu'; time.tzset()", victim: `__import__("time").strftime("%z", __import__("time").localtime(0))`, kept: true},
	{name: "affinity", culprit: "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])", victim: `len(__import__("os").sched_getaffinity(0))`},
	{name: "descriptor that signals write to", culprit: "import os, signal\n    _, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)",
		victim: `__import__("signal").set_wakeup_fd(-1)`},
	{name: "traceback limit", culprit: "import sys; sys.tracebacklimit = 0", victim: `hasattr(__import__("sys"), "tracebacklimit")`, kept: true},
	{name: "start method", culprit: "import multiprocessing as m; m.set_start_method('spawn')", module: "import multiprocessing.context",
		victim: `__import__("multiprocessing").get_start_method()`, kept: true},
	{name: "opener of URLs", culprit: "import urllib.request as r; r.install_opener(r.OpenerDirector())", module: "import urllib.request",
		victim: `__import__("urllib.request").request._opener is None`, kept: true},
	{name: "finders of modules", culprit: "import sys; sys.meta_path.clear()", victim: `len(__import__("sys").meta_path) > 2`},
	{name: "hooks of paths", culprit: "import sys; sys.path_hooks.clear()", victim: `len(__import__("sys").path_hooks) > 1`},
	{name: "audit hook", culprit: "import sys; sys.addaudithook(lambda event, args: 1 / (event != 'open'))",
		victim: `open("/dev/null").close()`},
	{name: "generators' hooks", culprit: "import sys; sys.set_asyncgen_hooks(print, print)", victim: `__import__("sys").get_asyncgen_hooks()[0] is None`},
	{name: "garbage that is kept", culprit: "import gc; gc.set_debug(gc.DEBUG_SAVEALL)", victim: `__import__("gc").get_debug()`},
	{name: "traced memory", culprit: "import tracemalloc; tracemalloc.start()", victim: `__import__("tracemalloc").is_tracing()`},
	{name: "patched socket", culprit: "import socket; socket.getaddrinfo = None", module: "import socket", victim: `__import__("socket").getaddrinfo is None`},
	{name: "patched warnings", culprit: "import warnings; warnings.warn = None", victim: `__import__("warnings").warn is None`},
	{name: "patched builtins", culprit: "import builtins; builtins.len = lambda x: 99", victim: `len([1])`},
	{name: "builtins that are gone", culprit: "import builtins; builtins.isinstance = builtins.getattr = builtins.bytes = builtins.OSError = None", victim: `isinstance(b"", bytes)`},
	{name: "hook of threads", culprit: "import threading; threading.excepthook = None", victim: `__import__("threading").excepthook is None`},
	{name: "decimal's default", culprit: "import decimal; decimal.DefaultContext.prec = 3", victim: `__import__("decimal").DefaultContext.prec`},
	{name: "effective user", culprit: "import os\n    if os.geteuid() == 0: os.seteuid(65534)", victim: `__import__("os").geteuid()`},
	{name: "a dump that ends the process later", culprit: "import faulthandler; faulthandler.dump_traceback_later(0.1, exit=True)", victim: `__import__("time").sleep(0.3)`, kept: true},
	{name: "the runner's own modules", culprit: `import sys
    for name in ("main", "values", "pickling", "functions", "failures", "wire", "state", "settings"):
        try: module = __import__("treadle_runner." + name, fromlist=["x"])
        except ImportError: continue
        for n in dir(module):
            if not n.startswith("__"): setattr(module, n, None)`,
		victim: `[n for n in __import__("sys").modules if n.startswith("treadle_runner")]`, kept: true},
}

// TestAttemptsLeaveNothing: another function finds the process as it was, by being put back or
// by another process; what a function's module sets is its own.
func TestAttemptsLeaveNothing(t *testing.T) {
	e := start(t, 1)
	eval := func(expression string) string {
		out := runJSON(t, e, "import os\ndef f(): return [os.getpid(), "+expression+"]\n# "+t.Name(), "")
		if out.End != task.EndSucceeded {
			t.Fatal(describe(out))
		}
		pid, value, _ := strings.Cut(string(out.Result), ",")
		t.Logf("pid %s: %s", pid, value)
		return pid + " " + value
	}
	for _, c := range leftovers {
		t.Run(c.name, func(t *testing.T) {
			pid, want, _ := strings.Cut(eval(c.victim), " ")
			for round := range 5 { // the first ones are looked at more closely than the later
				source := c.module + "\ndef f():\n    " + c.culprit + "\n"
				if out := runJSON(t, e, source, ""); out.End != task.EndSucceeded {
					t.Fatal(describe(out))
				}
				now, got, _ := strings.Cut(eval(c.victim), " ")
				if got != want {
					t.Fatalf("round %d: another function sees %s, want %s", round, got, want)
				}
				if c.kept && now != pid {
					t.Fatalf("round %d: the runner was replaced", round)
				}
			}
			if c.module == "" {
				return
			}
			// As the load left it, in each of the function's attempts.
			source := c.module + "\ndef f(): return " + c.victim + "\n"
			first := run(t, e, 0, fromSource(source, ""))
			eval("0")
			if second := run(t, e, 0, fromSource(source, "")); describe(second) != describe(first) && c.name != "patched socket" {
				t.Fatalf("the function's own settings: first %s, then %s", describe(first), describe(second))
			}
		})
	}
}

// TestDescriptorsDoNotRunOut: a function that leaks some does not make others fail, with holes
// between them or without, however few there may be.
func TestDescriptorsDoNotRunOut(t *testing.T) {
	const inARow = "kept = []\ndef f():\n    kept.extend(open('/dev/null') for _ in range(10))"
	for _, c := range []struct {
		name, src string
		limit     uint64
		calls     int
	}{
		{"in a row", inARow, 1024, 110},
		{"in a row, with few", inARow, 128, 20},
		{"above a hole", "kept = []\ndef f():\n    with open('/dev/null'):\n        kept.extend(open('/dev/null') for _ in range(10))", 256, 30},
		{"in cycles", "def f():\n    for _ in range(10):\n        x = [open('/dev/null')]; x.append(x)", 256, 30},
		{"all, and it does not tell", "kept = []\ndef f():\n    try:\n        while True: kept.append(open('/dev/null'))\n    except OSError: return 'full'", 1024, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			lowerFiles(t, c.limit)
			e := start(t, 1)
			for i := range c.calls {
				if out := runJSON(t, e, c.src, ""); out.End != task.EndSucceeded {
					t.Fatalf("call %d of the leaking function: %s", i, describe(out))
				}
				if i%10 == 9 || i == 2 {
					want(t, runJSON(t, e, "import subprocess\ndef f(): return subprocess.run(['true']).returncode", ""), "0")
				}
			}
		})
	}
}

// TestRunnerIsReplacedAfterTooManyFiles: the exception tells of it where it comes out, as itself
// or as the cause of another one.
func TestRunnerIsReplacedAfterTooManyFiles(t *testing.T) {
	e := start(t, 1)
	for _, raise := range []string{"raise e", "raise ValueError() from e", "raise ValueError()"} {
		pid := runJSON(t, e, "import os\ndef f(): return os.getpid()", "").Result
		src := "import errno\ndef f():\n    try: raise OSError(errno.EMFILE, 'Too many open files')\n    except OSError as e: " + raise
		if out := runJSON(t, e, src, ""); out.End != task.EndRaised {
			t.Fatal(describe(out))
		}
		if now := runJSON(t, e, "import os\ndef f(): return os.getpid()", "").Result; string(now) == string(pid) {
			t.Errorf("%s: the runner was kept", raise)
		}
	}
}

// TestMaxAttemptsPerRunner: a runner is replaced after so many attempts, failed ones included,
// also where calls are sent ahead.
func TestMaxAttemptsPerRunner(t *testing.T) {
	for _, most := range []int{0, 1, 3} {
		e := start(t, 1, func(c *Config) { c.MaxAttemptsPerRunner = most })
		counts := map[string]int{}
		for i := range 9 {
			a := fromSource("import os\ndef f(divisor):\n    print(os.getpid())\n    return 1 / divisor", fmt.Sprintf(`{"args":[%d]}`, i%2))
			var out log
			a.Output = out.write
			if got := run(t, e, 0, a); (got.End == task.EndRaised) != (i%2 == 0) {
				t.Fatal(describe(got))
			}
			counts[out.String()]++
		}
		for pid, n := range counts {
			if most == 0 && n != 9 || most > 0 && n != most {
				t.Errorf("at most %d attempts: runner %s had %d, all: %v", most, pid, n, counts)
			}
		}
	}
}

// lowerFiles lowers the limit on open files, which runners inherit, until the test ends.
func lowerFiles(t *testing.T, limit uint64) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
}
