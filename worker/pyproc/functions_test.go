//go:build unix

package pyproc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// pickled runs a Python program that prints pickles as base64, one on a line.
func pickled(t testing.TB, e *Executor, program string) [][]byte {
	t.Helper()
	prelude := "import base64\ndef show(b): print(base64.b64encode(b).decode())\n"
	var all [][]byte
	for line := range strings.SplitSeq(python(t, e, prelude+program, nil), "\n") {
		b, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, b)
	}
	return all
}

// fromPickle is an attempt of a pickled function with pickled arguments that answers in JSON.
func fromPickle(fn, args []byte) *worker.Attempt {
	a := fromSource("", "")
	a.Form, a.ArgsEncoding, a.Args = task.FormPickle, task.EncodingPickle, args
	a.Hash = sha256.Sum256(fn)
	a.Code = func(context.Context) ([]byte, error) { return fn, nil }
	return a
}

func TestPickledFunctions(t *testing.T) {
	folder := t.TempDir()
	module := "import os\ndef triple(x): return 3 * x\nclass Point:\n    def __init__(self, x): self.x = x\n"
	if err := os.WriteFile(filepath.Join(folder, "treadle_test_module.py"), []byte(module), 0o600); err != nil {
		t.Fatal(err)
	}
	e := start(t, 1, func(c *Config) { c.Paths = []string{folder} })
	p := pickled(t, e, `
import sys, dill, cloudpickle, pickle
sys.path.insert(0, `+pyString(folder)+`)
import treadle_test_module as m
factor = 7
def double(x, plus=0): return 2 * x + plus
def scaled(x): return factor * x
async def waits(x):
    import asyncio
    await asyncio.sleep(0)
    return x + 1
class Adder:
    def __init__(self, n): self.n = n
    def __call__(self, x): return self.n + x
def counts():
    global count
    count = globals().get("count", 0) + 1
    return count
show(dill.dumps(((21,), {"plus": 1})))
show(dill.dumps(double)); show(cloudpickle.dumps(double))
show(dill.dumps(scaled, recurse=True)); show(cloudpickle.dumps(scaled))
show(dill.dumps(lambda x, plus=0: x + plus))
show(dill.dumps(waits)); show(dill.dumps(Adder(5)))
show(pickle.dumps(m.triple)); show(dill.dumps(m.triple))
show(pickle.dumps(len)); show(dill.dumps(counts))
show(dill.dumps(41)); show(pickle.dumps(((21,), {})))
show(pickle.dumps((([1, 2],), {})))
`)
	args, one, list := p[0], p[13], p[14]
	for _, c := range []struct {
		name     string
		fn, args []byte
		want     string
	}{
		{"dill", p[1], args, "43"},
		{"cloudpickle", p[2], args, "43"},
		{"dill with a global", p[3], one, "147"},
		{"cloudpickle with a global", p[4], one, "147"},
		{"lambda", p[5], args, "22"},
		{"coroutine", p[6], one, "22"},
		{"callable object", p[7], one, "26"},
		{"by reference, pickle", p[8], one, "63"},
		{"by reference, dill", p[9], one, "63"},
		{"builtin", p[10], list, "2"},
		{"globals of __main__", p[11], nil, "1"},
		{"globals of __main__ again", p[11], nil, "2"},
	} {
		t.Run(c.name, func(t *testing.T) { want(t, run(t, e, 0, fromPickle(c.fn, c.args)), c.want) })
	}
	wantEnd(t, run(t, e, 0, fromPickle(p[12], one)), task.EndUnreadable, "type 'int', which is not callable")
	wantEnd(t, run(t, e, 0, fromPickle([]byte("payload"), one)), task.EndUnreadable, "pickle cannot be loaded")
	wantEnd(t, run(t, e, 0, fromPickle(p[1][:40], one)), task.EndUnreadable, "pickle cannot be loaded")
	wantEnd(t, run(t, e, 0, fromPickle(p[1], []byte("\x80\x04junk"))), task.EndUnreadable, "arguments cannot be unpickled")
	want(t, run(t, e, 0, fromPickle(p[1], args)), "43")
}

func pyString(s string) string { return "'" + strings.ReplaceAll(s, "'", `\'`) + "'" }

func TestMissingModuleIsNamed(t *testing.T) {
	e := start(t, 1)
	fn := []byte("cno_such_package.part\nf\n.")
	out := run(t, e, 0, fromPickle(fn, nil))
	wantEnd(t, out, task.EndUnreadable, "needs the Python package 'no_such_package'")
	// What holds for a module of the user's own comes first: pip would fetch a stranger's of that name.
	at := 0
	for _, way := range []string{e.python, "a module of your own", "cloudpickle.register_pickle_by_value(no_such_package)", "--python-path DIR",
		"a published package", "-m pip install no_such_package", "--python PATH"} {
		next := strings.Index(out.Failure.Message[at:], way)
		if next < 0 {
			t.Fatalf("the message does not name %q in its place: %s", way, out.Failure.Message)
		}
		at += next
	}
	out = runJSON(t, e, "import no_such_package", "")
	wantEnd(t, out, task.EndUnreadable, "If it is a module of your own: start the worker with --python-path DIR")
	if strings.Contains(out.Failure.Message, "register_pickle_by_value") {
		t.Errorf("source text has no pickle: %s", out.Failure.Message)
	}
	args := []byte("cno_such_package.part\nX\n.")
	wantEnd(t, run(t, e, 0, fromPickle([]byte("cbuiltins\nlen\n."), args)), task.EndUnreadable, "an argument needs the Python package 'no_such_package'")
}

func TestFunctionFromAModuleThatAppearsLater(t *testing.T) {
	folder := t.TempDir()
	e := start(t, 1, func(c *Config) { c.Paths = []string{folder} })
	fn := []byte("ctreadle_late_module\nf\n.")
	wantEnd(t, run(t, e, 0, fromPickle(fn, nil)), task.EndUnreadable, "treadle_late_module")
	if err := os.WriteFile(filepath.Join(folder, "treadle_late_module.py"), []byte("def f(): return 'late'"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, run(t, e, 0, fromPickle(fn, nil)), `"late"`)
}

func TestSourceFunctions(t *testing.T) {
	e := start(t, 1)
	for _, c := range []struct{ name, src, want string }{
		{"named among others", "def g(): return 1\ndef f(): return 2\n", "2"},
		{"the only one", "import math\nfrom os.path import join\nX = 3\ndef other(): return X\n", "3"},
		{"a lambda", "f = lambda: 4", "4"},
		{"a class as the callable", "class f(dict):\n    def __init__(self): self['a'] = 5\n", `{"a":5}`},
		{"a coroutine", "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 6\n", "6"},
		{"a byte order mark", "\ufeffdef f(): return 'ä'", `"ä"`},
		{"not run as main", "def f(): return __name__ == '__main__'", "false"},
		{"module globals last", "n = 0\ndef f():\n    global n\n    n += 1\n    return n\n", "1"},
	} {
		t.Run(c.name, func(t *testing.T) { want(t, runJSON(t, e, c.src, ""), c.want) })
	}
	for _, c := range []struct{ name, src, text string }{
		{"several, none of the name", "def g(): pass\ndef h(): pass", "more than one function (g, h)"},
		{"none", "x = 1", "defines no function"},
		{"not callable", "f = 3", "type 'int', which is not callable"},
		{"syntax error", "def f(:\n", "cannot be compiled: SyntaxError"},
		{"null byte", "def f(): pass\x00", "cannot be compiled"},
		{"not UTF-8", "def f(): return '\xff'", "cannot be compiled: UnicodeDecodeError"},
		{"raises when it runs", "1 / 0\ndef f(): pass", "does not run: ZeroDivisionError"},
		{"exits when it runs", "import sys\nsys.exit(0)", "does not run: SystemExit"},
		{"missing import", "import no_such_package", "needs the Python package 'no_such_package'"},
	} {
		t.Run(c.name, func(t *testing.T) { wantEnd(t, runJSON(t, e, c.src, ""), task.EndUnreadable, c.text) })
	}
}

// TestFunctionBytesAreSentOnce counts how often the bytes are asked for, over the life of
// a runner and after its replacement.
func TestFunctionBytesAreSentOnce(t *testing.T) {
	e := start(t, 1)
	asked := 0
	a := fromSource("import os, sys\ndef f(x):\n    if x: os._exit(3)\n    return 'ok'", `{"args":[0]}`)
	code := a.Code
	a.Code = func(ctx context.Context) ([]byte, error) { asked++; return code(ctx) }
	for range 3 {
		want(t, run(t, e, 0, a), `"ok"`)
	}
	if asked != 1 {
		t.Fatalf("asked %d times for the bytes", asked)
	}
	a.Args = []byte(`{"args":[1]}`)
	wantEnd(t, run(t, e, 0, a), task.EndLost, "exit code 3")
	a.Args = []byte(`{"args":[0]}`)
	want(t, run(t, e, 0, a), `"ok"`)
	if asked != 2 {
		t.Fatalf("asked %d times for the bytes after the runner was replaced", asked)
	}
}

// TestFunctionsBeyondTheCache runs more functions than a runner keeps; the agent's note of
// what it has is wrong then, and has to mend itself.
func TestFunctionsBeyondTheCache(t *testing.T) {
	e := start(t, 1)
	attempts := make([]*worker.Attempt, 300)
	for i := range attempts {
		attempts[i] = fromSource("def f(): return "+strings.Repeat("1", 1+i%17)+"\n#"+strings.Repeat("x", i), "")
		want(t, run(t, e, 0, attempts[i]), strings.Repeat("1", 1+i%17))
	}
	for i, a := range attempts {
		want(t, run(t, e, 0, a), strings.Repeat("1", 1+i%17))
	}
}

// TestBytecodeOfAnotherPython: what another version pickled by value is refused before
// anything of it runs, and so is what cannot be loaded, with the likely reason.
func TestBytecodeOfAnotherPython(t *testing.T) {
	e := start(t, 1)
	p := pickled(t, e, `
import sys, dill, cloudpickle, pickle
show(("%d.%d" % sys.version_info[:2]).encode())
show(cloudpickle.dumps(lambda x: 2 * x, protocol=4)); show(dill.dumps(lambda x: 2 * x, protocol=4))
show(pickle.dumps(((21,), {})))
`)
	ours, args := string(p[0]), p[3]
	for i, by := range []string{"cloudpickle", "dill"} {
		fn := p[1+i]
		for _, c := range []struct{ python, want string }{
			{"", "42"}, {ours, "42"}, {"3.2", ""}, {"30.1", ""},
		} {
			a := fromPickle(fn, args)
			// Another hash each time: a runner keeps what it has loaded.
			a.Hash = sha256.Sum256([]byte(by + c.python))
			if c.python != "" {
				marked := append([]byte("#python="+c.python+"\n"), fn...)
				a.Code = func(context.Context) ([]byte, error) { return marked, nil }
			}
			out := e.Run(t.Context(), 0, a)
			if c.want != "" {
				if out.End != task.EndSucceeded || string(out.Result) != c.want {
					t.Errorf("%s for %q: %+v", by, c.python, out)
				}
				continue
			}
			if out.End != task.EndUnreadable || out.Failure == nil {
				t.Errorf("%s for %q: %+v", by, c.python, out)
				continue
			}
			for _, word := range []string{"Python " + c.python, "Python " + ours, "--python PATH", "source"} {
				if !strings.Contains(out.Failure.Message, word) {
					t.Errorf("%s for %q: %q does not name %q", by, c.python, out.Failure.Message, word)
				}
			}
		}
	}
	// What makes a code object and fails while it does.
	fails := []byte("\x80\x04\x8c\x05types\x8c\x08CodeType\x93)R.")
	out := e.Run(t.Context(), 0, fromPickle(fails, args))
	if out.End != task.EndUnreadable || !strings.Contains(out.Failure.Message, "it holds bytecode") {
		t.Errorf("a code object that cannot be made: %+v", out)
	}
}

// TestTracebacksShowTheirOwnText: two texts of one name do not mix.
func TestTracebacksShowTheirOwnText(t *testing.T) {
	e := start(t, 1)
	first := "def f():\n    a = 1\n    raise ValueError('v1')  # line of version one\n"
	second := "def f():\n    a = 1\n    b = 2  # line of version two\n"
	wantEnd(t, runJSON(t, e, first, ""), task.EndRaised, "v1")
	want(t, runJSON(t, e, second, ""), "null")
	out := runJSON(t, e, first, "")
	if trace := out.Failure.Traceback; !strings.Contains(trace, "line of version one") || strings.Contains(trace, "version two") {
		t.Fatalf("traceback of the first text: %s", trace)
	}
}
