//go:build unix

package pyproc

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

// markFor is what a pickle that holds bytecode carries behind its PROTOCOL opcode.
func markFor(version string) []byte {
	text := "treadle/python=" + version
	return append(append([]byte{0x8c, byte(len(text))}, text...), '0')
}

func stamped(pickle []byte, version string) []byte {
	return append(append(append([]byte{}, pickle[:2]...), markFor(version)...), pickle[2:]...)
}

// minorOf is the version of a started executor's interpreter, as in "3.12".
func minorOf(t testing.TB, e *Executor) string {
	t.Helper()
	return python(t, e, `print("%d.%d" % sys.version_info[:2])`, nil)
}

// TestResultsNameTheirPython: what holds bytecode says whose it is, and nothing else does;
// every unpickler reads it as if the mark were not there.
func TestResultsNameTheirPython(t *testing.T) {
	e := start(t, 1)
	mark := markFor(minorOf(t, e))
	const class = "class Own(Exception):\n    def double(self): return 2 * self.args[0]\n"
	for _, c := range []struct {
		name, src string
		code      bool
	}{
		{"plain", "def f(): return [1, 'CodeType', b'_create_code']", false},
		{"closure", "def f():\n    n = 21\n    return lambda: 2 * n", true},
		{"object of the source's class", class + "def f(): return Own(21)", true},
		{"exception of the source's class", class + "def f(): raise Own(21)", true},
		{"builtin exception", "def f(): raise ValueError(21)", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := fromSource(c.src, "")
			a.Returns = task.EncodingPickle
			out := run(t, e, 0, a)
			data := out.Result
			if out.Failure != nil {
				if data = out.Failure.ForeignPickle; !c.code {
					data = out.Failure.Pickle
				}
			}
			if len(data) < 2 || bytes.HasPrefix(data[2:], mark) != c.code {
				t.Fatalf("%s: begins with %q, want the mark %q: %t", describe(out), data[:min(len(data), 40)], mark, c.code)
			}
			got := python(t, e, `
import io, pickle, pickletools
data = sys.stdin.buffer.read()
pickletools.dis(data, out=io.StringIO())
for loads in pickle.loads, pickle._loads:
    value = loads(data)
value = value() if callable(value) else value.double() if hasattr(value, "double") else value
print(value if isinstance(value, int) else "loaded")`, data)
			if want := map[bool]string{true: "42", false: "loaded"}[c.code]; got != want {
				t.Fatalf("read as %s, want %s", got, want)
			}
		})
	}
}

// TestBytecodeOfAnotherPythonIsRefused before any of it is loaded: in arguments as in
// functions, in words, and the runner lives on.
func TestBytecodeOfAnotherPythonIsRefused(t *testing.T) {
	e := start(t, 1)
	ours := minorOf(t, e)
	p := pickled(t, e, "import cloudpickle\nshow(cloudpickle.dumps(lambda g=None: g() if g else 3, protocol=4))\n"+
		"show(cloudpickle.dumps(((lambda: 4,), {}), protocol=4))")
	pid := runJSON(t, e, "import os\ndef f(): return os.getpid()", "").Result
	for _, theirs := range []string{"3.2", "3.99", ours} {
		fn, args := stamped(p[0], theirs), stamped(p[1], theirs)
		if theirs == ours {
			want(t, run(t, e, 0, fromPickle(fn, args)), "4")
			continue
		}
		for _, out := range []task.Outcome{run(t, e, 0, fromPickle(fn, nil)), run(t, e, 0, fromPickle(p[0], args))} {
			for _, words := range []string{"Python " + theirs, "Python " + ours, "--python PATH", "source"} {
				wantEnd(t, out, task.EndUnreadable, words)
			}
		}
	}
	want(t, runJSON(t, e, "import os\ndef f(): return os.getpid()", ""), string(pid))
}

// otherPythons finds interpreters beside the one on PATH, by their version.
func otherPythons(t *testing.T, than string) map[string]string {
	t.Helper()
	found := map[string]string{}
	home, _ := os.UserHomeDir()
	for _, minor := range []string{"3.9", "3.10", "3.11", "3.12", "3.13", "3.14"} {
		paths, _ := filepath.Glob(filepath.Join(home, ".pyenv", "versions", minor+".*", "bin", "python"+minor))
		for _, path := range append(paths, "python"+minor) {
			out, err := exec.Command(path, "-c", `import sys; print("%d.%d" % sys.version_info[:2])`).Output()
			if err == nil && strings.TrimSpace(string(out)) == minor && minor != than {
				found[minor] = path
				break
			}
		}
		if found[minor] == "" && minor != than {
			t.Logf("NOT TRIED: there is no Python %s here", minor)
		}
	}
	return found
}

// TestOtherPythons runs functions and arguments of this Python in runners of others.
func TestOtherPythons(t *testing.T) {
	here := start(t, 1)
	ours := minorOf(t, here)
	p := pickled(t, here, `import cloudpickle
class K:
    def twice(self): return [2 * i for i in range(3)]
show(cloudpickle.dumps(((K(),), {}), protocol=4))
show(cloudpickle.dumps((([3, 1, 2],), {"key": lambda x: -sum(i for i in range(x))}), protocol=4))`)
	others := otherPythons(t, ours)
	if len(others) == 0 {
		t.Skip("there is no other Python here")
	}
	for minor, path := range others {
		t.Run(minor, func(t *testing.T) {
			e := start(t, 1, func(c *Config) { c.Python = path })
			for _, args := range p {
				out := run(t, e, 0, fromPickle([]byte("cbuiltins\nsorted\n."), stamped(args, ours)))
				wantEnd(t, out, task.EndUnreadable, "Python "+ours)
				wantEnd(t, out, task.EndUnreadable, "Python "+minor)
			}
			a := fromSource("class K:\n    x = 4\n    def twice(self): return 8\ndef f(): return K()", "")
			a.Returns = task.EncodingPickle
			if out := run(t, e, 0, a); len(out.Result) < 2 || !bytes.HasPrefix(out.Result[2:], markFor(minor)) {
				t.Fatalf("%s: the result does not name Python %s", describe(out), minor)
			}
		})
	}
}

// TestWhatComesBackGoesTheWayItCame: by cloudpickle where function or arguments came by it,
// so that the caller needs nothing else and gets objects of its own class.
func TestWhatComesBackGoesTheWayItCame(t *testing.T) {
	e := start(t, 1)
	p := pickled(t, e, `
import cloudpickle, dill, copy, functools
class K:
    def __init__(self, n=0): self.n = n
class Mine(Exception): pass
def boom(k): raise Mine(k)
def chunk(fn, items): return [fn(i) for i in items]
def call(fn, *args): return fn(*args)
dump = lambda v: cloudpickle.dumps(v, protocol=4)
show(dump(copy.copy)); show(dump(((K(),), {})))
show(dump(functools.partial)); show(dump(((boom, 3), {})))
show(dill.dumps(copy.copy)); show(dill.dumps(((K(),), {})))
show(dump(((boom, Mine("x")), {})))
`)
	source := func(src string, args []byte) (b []byte, out task.Outcome) {
		a := fromSource(src, "")
		a.ArgsEncoding, a.Returns, a.Args = task.EncodingPickle, task.EncodingPickle, args
		out = run(t, e, 0, a)
		if out.Failure != nil {
			return out.Failure.ForeignPickle, out
		}
		return out.Result, out
	}
	pickledFn := func(fn, args []byte) ([]byte, task.Outcome) {
		a := fromPickle(fn, args)
		a.Returns = task.EncodingPickle
		out := run(t, e, 0, a)
		return out.Result, out
	}
	for _, c := range []struct {
		name string
		run  func() ([]byte, task.Outcome)
		want string
	}{
		{"reference, arguments by cloudpickle", func() ([]byte, task.Outcome) { return pickledFn(p[0], p[1]) }, "cloudpickle"},
		{"source, arguments by cloudpickle", func() ([]byte, task.Outcome) { return source("def f(x): return x", p[1]) }, "cloudpickle"},
		{"a partial of the caller's function", func() ([]byte, task.Outcome) { return pickledFn(p[2], p[3]) }, "cloudpickle"},
		{"source, exception of the arguments", func() ([]byte, task.Outcome) { return source("def f(fn, x): fn(x)", p[6]) }, "cloudpickle"},
		{"source, plain arguments", func() ([]byte, task.Outcome) { return source("class K: pass\ndef f(): return K()", nil) }, "cloudpickle"},
		{"reference by dill", func() ([]byte, task.Outcome) { return pickledFn(p[4], p[5]) }, "dill"},
		{"source, arguments by dill", func() ([]byte, task.Outcome) { return source("def f(x): return x", p[5]) }, "dill"},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, out := c.run()
			has := map[string]bool{
				"cloudpickle": bytes.Contains(data, []byte("cloudpickle.cloudpickle")),
				"dill":        bytes.Contains(data, []byte("dill._dill")),
			}
			other := map[string]string{"cloudpickle": "dill", "dill": "cloudpickle"}[c.want]
			if !has[c.want] || has[other] {
				t.Fatalf("%s came back by %v, want %s alone", describe(out), has, c.want)
			}
		})
	}
}

// TestArraysKeepTheirAttributes where the function came by dill, which is what the routes at
// the root promise. Plain pickle drops those of a subclass's instance.
func TestArraysKeepTheirAttributes(t *testing.T) {
	e := start(t, 1)
	if python(t, e, "import importlib.util as u; print(bool(u.find_spec('numpy')))", nil) != "True" {
		t.Skip("NOT TRIED: the interpreter on PATH has no numpy")
	}
	p := pickled(t, e, `
import dill, numpy
class A(numpy.ndarray): pass
def f():
    a = numpy.arange(3).view(A); a.note = "kept"
    return [a]
show(dill.dumps(f, recurse=True))`)
	a := fromPickle(p[0], nil)
	a.Returns = task.EncodingPickle
	out := run(t, e, 0, a)
	if got := python(t, e, "import dill; print(dill.loads(sys.stdin.buffer.read())[0].note)", out.Result); got != "kept" {
		t.Fatalf("%s: %s", describe(out), got)
	}
}
