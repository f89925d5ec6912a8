package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/load"
	treadle "github.com/treadle-dev/treadle/clients/go"
)

// animal is a function that does what functions should not do, and how it must end.
type animal struct {
	name, source string
	// status and class are the task's, text is part of its message or result; attempts is
	// how often it may start, 0 is not looked at.
	status, class, text string
	attempts            int
	timeout             time.Duration
	memory              int64
	// orCompleted admits that the interpreter survives.
	orCompleted bool
	args        []any
}

const (
	fine        = "COMPLETED"
	broken      = "FAILED"
	workerLost  = "WorkerFailureError"
	raised      = "FunctionExecutionFailure"
	timedOut    = "DeadlineExceededError"
	exhausted   = "ResourceLimitExceeded"
	unpicklable = "SerializationError"
)

// deaths are row 24: executors that end.
var deaths = []animal{
	{name: "sys.exit", source: "import sys\ndef f(): sys.exit(0)", status: broken, class: raised, attempts: 1},
	{name: "os._exit", source: "import os\ndef f(): os._exit(0)", status: broken, class: workerLost, text: "exit code 0", attempts: 2},
	{name: "abort", source: "import os\ndef f(): os.abort()", status: broken, class: workerLost, text: "SIGABRT", attempts: 2},
	{name: "segfault", source: "import ctypes\ndef f(): ctypes.string_at(0)", status: broken, class: workerLost, text: "SIGSEGV", attempts: 2},
	{name: "killed", source: "import os\ndef f(): os.kill(os.getpid(), 9)", status: broken, class: workerLost, text: "SIGKILL", attempts: 2},
	{name: "killed with its group", source: "import os\ndef f(): os.killpg(0, 9)", status: broken, class: workerLost, attempts: 2},
	{name: "out of memory", source: "def f():\n    x = bytearray(1 << 30)\n    for i in range(0, len(x), 4096): x[i] = 1\n    return len(x)",
		status: broken, class: exhausted, attempts: 1, memory: 256 << 20},
	{name: "endless recursion", source: "def f(): return f()", status: broken, class: raised, attempts: 1},
	{name: "recursion in C", source: "import sys\ndef f():\n    sys.setrecursionlimit(10**9)\n    x = None\n    for _ in range(10**6): x = [x]\n    return repr(x)",
		status: broken, class: workerLost, orCompleted: true},
	{name: "KeyboardInterrupt", source: "def f(): raise KeyboardInterrupt", status: broken, class: raised, attempts: 1},
	{name: "closes all descriptors", source: "import os\ndef f():\n    os.closerange(0, 1 << 16)\n    return 1", status: broken, class: workerLost, attempts: 2},
}

// stubborn are row 25: executors that do not go.
var stubborn = []animal{
	{name: "ignores signals", source: "import signal, time\ndef f():\n    for n in range(1, 32):\n        if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n    time.sleep(600)",
		status: broken, class: timedOut, timeout: time.Second, attempts: 1},
	{name: "endless loop", source: "def f():\n    while True: pass", status: broken, class: timedOut, timeout: time.Second, attempts: 1},
	{name: "forks and stays", source: "import os, time\ndef f():\n    if os.fork() == 0: time.sleep(600)\n    return 'left'", status: fine, text: "left"},
	{name: "forks and waits", source: "import os, time\ndef f():\n    os.fork(); os.fork()\n    time.sleep(600)", status: broken, class: timedOut, timeout: time.Second, attempts: 1},
	{name: "daemonizes", source: "import os\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            os.closerange(0, 1 << 16)\n" +
		"            os.execve('/bin/sleep', ['sleep', '600'], {})\n        os._exit(0)\n    os.wait()\n    return 'daemon'", status: fine, text: "daemon"},
	{name: "setsid", source: "import subprocess, time\ndef f():\n    subprocess.Popen(['sleep', '600'], start_new_session=True, env={})\n    time.sleep(600)",
		status: broken, class: timedOut, timeout: time.Second, attempts: 1},
	{name: "leaves threads", source: "import threading, time\ndef f():\n    for _ in range(50): threading.Thread(target=time.sleep, args=(600,)).start()\n    return 'threads'",
		status: fine, text: "threads"},
	{name: "stops itself", source: "import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSTOP)", status: broken, class: timedOut, timeout: time.Second, attempts: 1},
	{name: "child holds the pipes", source: "import os, subprocess\ndef f():\n    subprocess.Popen(['sleep', '600'], close_fds=False)\n    os._exit(9)",
		status: broken, class: workerLost, text: "exit code 9", attempts: 2},
}

// noise are row 27: what goes to standard output and other descriptors.
var noise = []animal{
	{name: "much output", source: "def f():\n    for _ in range(1000): print('x' * 10000)\n    return 'said'", status: fine, text: "said"},
	{name: "endless output", source: "import os\ndef f():\n    while True: os.write(1, b'x' * 65536)", status: broken, class: timedOut, timeout: time.Second, attempts: 1},
	{name: "endless output of a child", source: "import subprocess\ndef f():\n    subprocess.Popen(['yes'])\n    return 'left'", status: fine, text: "left"},
	{name: "closes stdout", source: "import sys\ndef f():\n    sys.stdout.close(); sys.stderr.detach()\n    return 'closed'", status: fine, text: "closed"},
	{name: "closes low descriptors", source: "import os\ndef f():\n    os.closerange(0, 256)\n    return 'closed'", status: fine, text: "closed"},
	{name: "junk in frames", source: "import os\ndef f():\n    os.write(1, bytes(range(256)) * 256)\n    return 'junk'", status: fine, text: "junk"},
	{name: "writes to every descriptor", source: "import os\ndef f():\n    for fd in range(3, 300):\n        try: os.write(fd, b'junk' * 100)\n        except OSError: pass\n    return 'wrote'",
		status: fine, text: "wrote"},
}

// resultLimit is the payload limit of the row's cluster: small, so that both sides of it
// are cheap to reach.
const resultLimit = 1 << 20

// results are row 28: results that cannot be kept. A JSON string has two quotes.
var results = []animal{
	{name: "at the limit", source: fmt.Sprintf("def f(): return 'x' * (%d - 2)", resultLimit), status: fine, text: "xxx"},
	{name: "one byte over", source: fmt.Sprintf("def f(): return 'x' * (%d - 1)", resultLimit), status: broken, class: exhausted, attempts: 1},
	{name: "far over", source: "def f(): return 'x' * (64 << 20)", status: broken, class: exhausted, attempts: 1},
	{name: "a lock", source: "import threading\ndef f(): return threading.Lock()", status: broken, class: unpicklable, attempts: 1},
	{name: "a generator", source: "def f(): return (x for x in ())", status: broken, class: unpicklable, attempts: 1},
	{name: "a socket", source: "import socket\ndef f(): return socket.socket()", status: broken, class: unpicklable, attempts: 1},
	{name: "refuses to be pickled", source: "class X:\n    def __reduce__(self): raise RuntimeError('no')\ndef f(): return X()",
		status: broken, class: unpicklable, attempts: 1},
}

// keep runs all animals at once, a few times, between the clients' own tasks.
func keep(animals []animal) func(context.Context, *Env) error {
	return func(ctx context.Context, e *Env) error {
		if err := e.Mark(fmt.Sprintf("%d kinds of functions", len(animals))); err != nil {
			return err
		}
		const rounds = 2
		var wg sync.WaitGroup
		errs := make(chan error, rounds*len(animals))
		for _, a := range animals {
			fn, err := e.API().RegisterSource(ctx, a.name, a.source+"\n")
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			for range rounds {
				wg.Go(func() {
					if err := a.check(ctx, e, fn.ID); err != nil {
						errs <- fmt.Errorf("%s: %w", a.name, err)
					}
				})
			}
		}
		wg.Wait()
		close(errs)
		var all []error
		for err := range errs {
			all = append(all, err)
		}
		if n := e.exits(cluster.RoleWorker); n > 0 {
			all = append(all, fmt.Errorf("%d agents died of a function", n))
		}
		e.Note("%d kinds, each %d times", len(animals), rounds)
		return errors.Join(all...)
	}
}

func (a *animal) check(ctx context.Context, e *Env, function string) error {
	r := treadle.Request{Function: function, Args: a.args, Options: treadle.Options{
		Timeout: a.timeout, MemoryLimit: a.memory, MaxRetries: new(1),
	}}
	id, err := e.API().Execute(ctx, r)
	if err != nil {
		return err
	}
	res, err := e.API().Result(ctx, id, 40*time.Second)
	if err != nil {
		return err
	}
	t, err := e.API().Task(ctx, id)
	if err != nil {
		return err
	}
	got := string(res.JSON)
	class := ""
	if res.Error != nil {
		got, class = res.Error.Message, res.Error.Type
	}
	if a.orCompleted && string(res.Status) == fine {
		return nil
	}
	if string(res.Status) != a.status || class != a.class || !strings.Contains(got, a.text) || a.attempts > 0 && t.AttemptCount != a.attempts {
		return fmt.Errorf("it is %s %s after %d attempts with %.200q, want %s %s after %d with %q",
			res.Status, class, t.AttemptCount, got, a.status, a.class, a.attempts, a.text)
	}
	return nil
}

// noChildren checks that what the functions left behind is gone: a worker has its runners
// below it and nothing else.
func noChildren(ctx context.Context, _ *Env) error {
	return cluster.Await(ctx, "I20: what functions started is gone", 5*time.Second, func(context.Context) (bool, error) {
		var left []string
		for _, p := range cluster.Strays() {
			if strings.Contains(p, "sleep") || strings.Contains(p, "yes") {
				left = append(left, p)
			}
		}
		if len(left) > 0 {
			return false, errors.New(strings.Join(left, "; "))
		}
		return true, nil
	})
}

// poison is a task that kills its worker, each time.
func poison(ctx context.Context, e *Env) error {
	fn, err := e.API().RegisterSource(ctx, "poison", "import os, time\ndef poison():\n    os.kill(os.getppid(), 9)\n    time.sleep(60)\n")
	if err != nil {
		return err
	}
	if err := e.Mark("a task that kills its worker"); err != nil {
		return err
	}
	id, err := e.API().Execute(ctx, requestOf(fn.ID))
	if err != nil {
		return err
	}
	res, err := e.API().Result(ctx, id, 40*time.Second)
	if err != nil {
		return err
	}
	t, err := e.API().Task(ctx, id)
	if err != nil {
		return err
	}
	if res.Status != treadle.Failed || res.Error == nil || res.Error.Type != workerLost || t.AttemptCount != 4 || t.LostWorkers != 4 {
		var failure error = res.Error
		return fmt.Errorf("I7: the task is %s after %d attempts and %d lost workers, want FAILED %s after 4 and 4: %w",
			res.Status, t.AttemptCount, t.LostWorkers, workerLost, failure)
	}
	if n := e.exits(cluster.RoleWorker); n != 4 {
		return fmt.Errorf("%d workers died, want 4", n)
	}
	return nil
}

// zooScenarios are rows 2, 24, 25, 27 and 28.
func zooScenarios() []Scenario {
	// The clients' tasks beside them must all succeed.
	quiet := func(_ *Env, s *load.Shape) { s.Rate, s.Deadline = 10, 0 }
	some := []Condition{Struck}
	return []Scenario{
		{
			Row: 2, Name: "poison-task", Fault: "a task that SIGKILLs its worker four times",
			Expect: "FAILED WorkerFailureError after exactly 4 attempts; other tasks unharmed", Stores: all, Shape: quiet,
			Inject: poison, Sometimes: some,
		},
		{
			Row: 24, Name: "executor-deaths", Fault: "executors segfault, run out of memory, exit and are killed",
			Expect: "typed failures, the agent lives, the attempts are counted", Stores: all, Shape: quiet, Inject: keep(deaths), Sometimes: some,
			After: noLosses,
		},
		{
			Row: 25, Name: "stubborn-executors", Fault: "executors ignore signals, fork, leave their session and leave threads",
			Expect: "killed at the deadline, nothing survives", Stores: all, Shape: quiet, Inject: keep(stubborn), After: noChildren, Sometimes: some,
		},
		{
			Row: 27, Name: "noisy-executors", Fault: "huge and endless output, closed descriptors, junk",
			Expect: "capped, the result intact", Stores: all, Shape: quiet, Inject: keep(noise), After: noChildren, Sometimes: some,
		},
		{
			Row: 28, Name: "result-limits", Fault: "results over the limit, to the byte, and results that cannot be pickled",
			Expect: "FAILED once, typed, no retry", Stores: all, Shape: quiet, Inject: keep(results), Sometimes: some, After: noLosses,
			Spec: func(_ *Env, s *cluster.Spec) {
				for _, role := range []string{cluster.RoleUp, cluster.RoleServer, cluster.RoleDispatcher, cluster.RoleWorker} {
					s.Args[role] = append(s.Args[role], "--max-payload", fmt.Sprint(resultLimit))
				}
			},
		},
	}
}
