//go:build unix

package pyproc

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

// seen is what a client reads from the pickle of a failure with a bare interpreter.
type seen struct {
	Class      string            `json:"class"`
	Text       string            `json:"text"`
	Attributes map[string]string `json:"attributes"`
}

// unpickleFailure loads a failure's pickle in an interpreter that has the standard library only.
func unpickleFailure(t *testing.T, e *Executor, pickle []byte) seen {
	t.Helper()
	const program = `
import json, pickle, sys
sys.path = [p for p in sys.path if "site-packages" not in p and "treadle" not in p]
e = pickle.loads(sys.stdin.buffer.read())
assert isinstance(e, BaseException), e
print(json.dumps({"class": type(e).__module__ + "." + type(e).__qualname__, "text": str(e),
    "attributes": {k: getattr(e, k, "-") for k in ("status", "error_type", "message", "traceback", "task_id")}}))`
	var s seen
	if err := json.Unmarshal([]byte(python(t, e, program, pickle)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRaisedExceptions(t *testing.T) {
	e := start(t, 1)
	for _, c := range []struct {
		name, body, typ, message string
		// class and text are those of the pickled object.
		class, text string
	}{
		{"builtin", `raise ValueError("wrong ü")`, "ValueError", "wrong ü", "builtins.ValueError", "wrong ü"},
		{"no text", `raise KeyError`, "KeyError", "", "builtins.KeyError", ""},
		{"key", `{}["k"]`, "KeyError", "'k'", "builtins.KeyError", "'k'"},
		{"operating system", `open("/no/such/file")`, "FileNotFoundError", "[Errno 2] No such file or directory: '/no/such/file'",
			"builtins.FileNotFoundError", "[Errno 2] No such file or directory: '/no/such/file'"},
		{"standard library", `import json; json.loads("{")`, "json.decoder.JSONDecodeError", "Expecting property name",
			"json.decoder.JSONDecodeError", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"},
		{"unicode", `b"\xff".decode()`, "UnicodeDecodeError", "can't decode byte 0xff", "builtins.UnicodeDecodeError",
			"'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"},
		{"own class", `raise Own("mine", 7)`, "Own", "('mine', 7)", "builtins.RuntimeError", "Own: ('mine', 7)"},
		{"own argument", `raise ValueError(Own("x"))`, "ValueError", "x", "builtins.RuntimeError", "ValueError: x"},
		{"lock in it", `import threading; raise ValueError(threading.Lock())`, "ValueError", "lock", "builtins.RuntimeError", ""},
		{"does not reload", `raise Fussy(1, 2)`, "Fussy", "", "builtins.RuntimeError", ""},
		{"reduces to a call", `raise Calls()`, "Calls", "", "builtins.RuntimeError", "Calls: "},
		{"broken __str__", `raise Mute("quiet")`, "Mute", "quiet", "builtins.RuntimeError", ""},
		{"no attributes kept", `raise Slots("s")`, "Slots", "s", "builtins.RuntimeError", "Slots: s"},
		{"exit", `import sys; sys.exit("bye")`, "SystemExit", "bye", "builtins.RuntimeError", "SystemExit: bye"},
		{"exit 0", `import sys; sys.exit(0)`, "SystemExit", "0", "builtins.RuntimeError", "SystemExit: 0"},
		{"quit", `raise SystemExit`, "SystemExit", "", "builtins.RuntimeError", "SystemExit: "},
		{"interrupt", `raise KeyboardInterrupt("c")`, "KeyboardInterrupt", "c", "builtins.RuntimeError", "KeyboardInterrupt: c"},
		{"interrupt signal", `import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)`,
			"KeyboardInterrupt", "", "builtins.RuntimeError", "KeyboardInterrupt: "},
		{"generator exit", `raise GeneratorExit`, "GeneratorExit", "", "builtins.RuntimeError", "GeneratorExit: "},
		{"base exception", `raise BaseException("b")`, "BaseException", "b", "builtins.BaseException", "b"},
		{"cancelled", `import asyncio; raise asyncio.CancelledError()`, "asyncio.exceptions.CancelledError", "",
			"asyncio.exceptions.CancelledError", ""},
		{"recursion", `f()`, "RecursionError", "maximum recursion depth exceeded", "builtins.RecursionError", "maximum recursion depth exceeded"},
		{"raised MemoryError", `raise MemoryError("full")`, "MemoryError", "full", "builtins.MemoryError", "full"},
		{"stop", `raise StopIteration(3)`, "StopIteration", "3", "builtins.StopIteration", "3"},
		{"group", `raise ValueError("x") from OSError("y")`, "ValueError", "x", "builtins.ValueError", "x"},
		{"surrogate", `raise ValueError("\ud800")`, "ValueError", `\ud800`, "builtins.ValueError", "\ufffd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := `
class Own(Exception): pass
class Fussy(Exception):
    def __init__(self, a, b): super().__init__(f"{a}{b}")
class Calls(Exception):
    def __reduce__(self):
        import os
        return os.getpid, ()
class Mute(Exception):
    def __str__(self): raise RuntimeError("no")
    __repr__ = __str__
class Slots(Exception):
    def __setattr__(self, name, value): raise AttributeError(name)
def f():
    ` + c.body
			out := runJSON(t, e, src, "")
			wantEnd(t, out, task.EndRaised, c.message)
			f := out.Failure
			if f.Type != c.typ {
				t.Errorf("type %q, want %q", f.Type, c.typ)
			}
			if !strings.Contains(f.Traceback, c.typ) {
				t.Errorf("traceback without the class: %s", f.Traceback)
			}
			if strings.Contains(f.Traceback, "treadle_runner") {
				t.Errorf("the runner's own frames are in the traceback: %s", f.Traceback)
			}
			if !strings.Contains(f.Traceback, `File "<function f `) {
				t.Errorf("no frame of the function: %s", f.Traceback)
			}
			if c.name == "surrogate" {
				return // the pickle keeps it; the JSON of this test cannot
			}
			s := unpickleFailure(t, e, f.Pickle)
			if s.Class != c.class || !strings.Contains(s.Text, c.text) {
				t.Errorf("pickled as %s %q, want %s %q", s.Class, s.Text, c.class, c.text)
			}
			if got := s.Attributes["status"] + " " + s.Attributes["error_type"] + " " + s.Attributes["task_id"]; got !=
				"FAILED FunctionExecutionFailure "+(task.ID{1, 2, 3}).String() {
				t.Errorf("attributes %q", got)
			}
			if m := s.Attributes["message"]; !strings.HasPrefix(m, c.typ+": ") || !strings.Contains(m, f.Traceback[:20]) {
				t.Errorf("message attribute %q", m)
			}
			if s.Attributes["traceback"] == "-" || !strings.HasSuffix(f.Traceback, s.Attributes["traceback"][max(0, len(s.Attributes["traceback"])-40):]) {
				t.Errorf("traceback attribute %q", s.Attributes["traceback"])
			}
		})
	}
}

// TestForeignExceptions: readers who have the class, or the libraries, get the original.
func TestForeignExceptions(t *testing.T) {
	e := start(t, 1)
	out := runJSON(t, e, "class Own(Exception):\n    def double(self): return self.args[0] * 2\ndef f(): raise Own(21)", "")
	wantEnd(t, out, task.EndRaised, "21")
	if len(out.Failure.ForeignPickle) == 0 {
		t.Fatal("no foreign pickle")
	}
	got := python(t, e, "import sys, dill\ne = dill.loads(sys.stdin.buffer.read())\nprint(type(e).__name__, e.double(), vars(e))", out.Failure.ForeignPickle)
	if got != "Own 42 {}" { // a faithful copy: nothing was set on it
		t.Fatalf("got %s", got)
	}
	p := pickled(t, e, "import dill\nclass Mine(ValueError): pass\ndef f(): raise Mine('x')\nshow(dill.dumps(f, recurse=True))")
	out = run(t, e, 0, fromPickle(p[0], nil))
	wantEnd(t, out, task.EndRaised, "x")
	if out.Failure.Type != "Mine" || len(out.Failure.ForeignPickle) == 0 {
		t.Fatalf("%s; foreign pickle of %d bytes", describe(out), len(out.Failure.ForeignPickle))
	}
	if out := runJSON(t, e, "def f(): raise ValueError(1)", ""); len(out.Failure.ForeignPickle) != 0 {
		t.Fatal("a foreign pickle of a builtin class")
	}
}

// TestLongFailures: texts end at their limit, the end of a traceback survives, and a
// pickle is never cut.
func TestLongFailures(t *testing.T) {
	e := start(t, 1)
	out := runJSON(t, e, "def f(): raise ValueError('ü' * 1000000)", "")
	f := out.Failure
	if out.End != task.EndRaised || len(f.Message) > task.MaxErrorText || len(f.Message) < task.MaxErrorText-1 || !strings.HasPrefix(f.Message, "üü") {
		t.Fatalf("%s message of %d bytes", out.End, len(f.Message))
	}
	if len(f.Traceback) > task.MaxErrorText || len(f.Traceback) < task.MaxErrorText-100 {
		t.Fatalf("traceback of %d bytes", len(f.Traceback))
	}
	if s := unpickleFailure(t, e, f.Pickle); s.Class != "builtins.RuntimeError" || !strings.HasPrefix(s.Text, "ValueError: üü") {
		t.Fatalf("%s %.30q", s.Class, s.Text)
	}
	deep := "def f():\n" + "    def g(n):\n        if n == 0: raise KeyError('deepest')\n        (h if n % 2 else k)(n - 1)\n" +
		"    def h(n): g(n)\n    def k(n): g(n)\n    g(400)"
	out = runJSON(t, e, deep, "")
	if !strings.Contains(out.Failure.Traceback, "deepest") || len(out.Failure.Pickle) == 0 {
		t.Fatal(describe(out))
	}
	if s := unpickleFailure(t, e, out.Failure.Pickle); s.Class != "builtins.KeyError" || !strings.Contains(s.Attributes["traceback"], "deepest") {
		t.Fatalf("%+v", s)
	}
}

// TestCallsThatDoNotFit: wrong arguments are the function's failure, as in Python.
func TestCallsThatDoNotFit(t *testing.T) {
	e := start(t, 1)
	out := runJSON(t, e, "def f(x): return x", `{"args":[1,2]}`)
	wantEnd(t, out, task.EndRaised, "f() takes 1 positional argument but 2 were given")
	if out.Failure.Type != "TypeError" || !strings.Contains(out.Failure.Traceback, "TypeError: f() takes") {
		t.Fatal(describe(out))
	}
}
