//go:build unix

package pyproc

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

func TestArgumentForms(t *testing.T) {
	e := start(t, 1)
	p := pickled(t, e, `
import dill
def f(*args, **kwargs):
    return [repr(args), repr(sorted(kwargs.items()))]
show(dill.dumps(f))
for value in [((1, 2), {"a": 3}), ([1, 2], {"a": 3}), (1, 2), [1, 2, 3], [[1], {"a": 1}], {"a": 1}, 5, None, "ab", (), ((), {}),
              ((1,), {}, 2), ((1,), [2])]:
    show(dill.dumps(value))
show(dill.dumps(((lambda: 4,), {})))
`)
	for i, want1 := range []string{
		`["(1, 2)","[('a', 3)]"]`, `["(1, 2)","[('a', 3)]"]`, `["(1, 2)","[]"]`, `["(1, 2, 3)","[]"]`,
		`["([1], {'a': 1})","[]"]`, `["()","[('a', 1)]"]`, `["(5,)","[]"]`, `["(None,)","[]"]`, `["('ab',)","[]"]`,
		`["()","[]"]`, `["()","[]"]`, `["((1,), {}, 2)","[]"]`, `["((1,), [2])","[]"]`,
	} {
		want(t, run(t, e, 0, fromPickle(p[0], p[1+i])), want1)
	}
	want(t, run(t, e, 0, fromPickle(p[0], nil)), `["()","[]"]`)
	call := fromSource("def f(g): return g()", "")
	call.ArgsEncoding, call.Args = task.EncodingPickle, p[14]
	want(t, run(t, e, 0, call), "4")
}

func TestJSONArguments(t *testing.T) {
	e := start(t, 1)
	src := "def f(*a, **k): return [list(a), k]"
	digits := strings.Repeat("9", 6000)
	for _, c := range [][2]string{
		{`{"args":[1,"x",null,true,1.5],"kwargs":{"b":{"c":[]}}}`, `[[1,"x",null,true,1.5],{"b":{"c":[]}}]`},
		{`{"args":[` + digits + `]}`, `[[` + digits + `],{}]`},
		{`{"kwargs":{"ключ":"😀"}}`, `[[],{"ключ":"😀"}]`},
		{`{"args":null,"kwargs":null}`, `[[],{}]`},
		{`{}`, `[[],{}]`},
	} {
		want(t, runJSON(t, e, src, c[0]), c[1])
	}
	for _, bad := range []string{`[1]`, `3`, `{"args":3}`, `{"kwargs":[]}`, `{"arg":[]}`, `{`, "\xff"} {
		if out := runJSON(t, e, src, bad); out.End != task.EndUnreadable {
			t.Errorf("%s: %s", bad, describe(out))
		}
	}
}

// TestJSONResults: JSON where it is exact; otherwise a pickle and a readable text.
func TestJSONResults(t *testing.T) {
	e := start(t, 1)
	for _, c := range [][2]string{
		{`(1, [2, (3,)])`, `[1,[2,[3]]]`},
		{`10 ** 5000`, "1" + strings.Repeat("0", 5000)},
		{`-2 ** 70`, "-1180591620717411303424"},
		{`{"a": {"ü": None}}`, `{"a":{"ü":null}}`},
		{`0.1`, `0.1`}, {`1e300`, `1e+300`}, {`"\u2028</script>"`, "\"\u2028</script>\""}, {`""`, `""`}, {`[]`, `[]`},
		{`[[[]] * 2] * 2`, `[[[],[]],[[],[]]]`},
	} {
		want(t, runJSON(t, e, "def f(): return "+c[0], ""), c[1])
	}
	for _, c := range [][2]string{
		{`{1: 2}`, `{1: 2}`}, {`{None: 2}`, `{None: 2}`}, {`[{"a": [{(1, 2): 3}]}]`, `[{'a': [{(1, 2): 3}]}]`},
		{`float("nan")`, `nan`}, {`[float("inf")]`, `[inf]`}, {`b"x"`, `b'x'`}, {`{1}`, `{1}`}, {`1j`, `1j`},
		{`"\ud800"`, `'\ud800'`}, {`__import__("datetime").date(2024, 1, 2)`, `datetime.date(2024, 1, 2)`},
		{`(lambda l: l.append(l) or l)([1])`, `[1, [...]]`},
	} {
		out := runJSON(t, e, "def f(): return "+c[0], "")
		if out.End != task.EndSucceeded || out.Encoding != task.EncodingPickle || out.Repr != c[1] {
			t.Fatalf("%s: %s with repr %q", c[0], describe(out), out.Repr)
		}
		if got := python(t, e, "import sys, pickle; print(ascii(pickle.loads(sys.stdin.buffer.read())))", out.Result); got != c[1] {
			t.Fatalf("%s came back as %s", c[0], got)
		}
	}
	out := runJSON(t, e, "def f(): return {1: 'ü' * 100000}", "")
	if len(out.Repr) > 4096 || len(out.Repr) < 4090 || !strings.HasPrefix(out.Repr, "{1: 'üü") {
		t.Fatalf("repr of %d bytes: %.20q", len(out.Repr), out.Repr)
	}
	out = runJSON(t, e, "class C:\n    def __repr__(self): raise ValueError\n    def __reduce__(self): return (int, (3,))\ndef f(): return C()", "")
	if out.Repr != "<C object>" || string(out.Result) == "" {
		t.Fatalf("%s with repr %q", describe(out), out.Repr)
	}
}

// TestDeepResults: what servers do not read as JSON is a pickle, where Python can pickle it.
func TestDeepResults(t *testing.T) {
	e := start(t, 1)
	const nest = "def f():\n x = 1\n for _ in range(%d): x = [x]\n return %s"
	const ladder = "def f():\n steps = [[1]]\n for _ in range(%d): steps.append([steps[-1]])\n return steps"
	for source, ends := range map[string][]task.Encoding{
		fmt.Sprintf(nest, 512, "x"):        {task.EncodingJSON},
		fmt.Sprintf(nest, 513, "x"):        {task.EncodingPickle, ""},
		fmt.Sprintf(nest, 511, `{"a": x}`): {task.EncodingJSON},
		fmt.Sprintf(nest, 512, `{"a": x}`): {task.EncodingPickle, ""},
		// Each step is held by the list, too, one level down.
		fmt.Sprintf(ladder, 510): {task.EncodingJSON},
		fmt.Sprintf(ladder, 511): {task.EncodingPickle},
	} {
		out := runJSON(t, e, source, "")
		got := out.Encoding
		if out.End == task.EndUnreadable && strings.Contains(out.Failure.Message, "cannot be pickled") {
			got = "" // older interpreters stop at about 500 levels
		}
		if !slices.Contains(ends, got) || (out.Repr != "") != (got == task.EncodingPickle) {
			t.Errorf("%s: %.200s, want it as one of %q", source, describe(out), ends)
		}
	}
}

func TestPickledResults(t *testing.T) {
	e := start(t, 1)
	show := "import sys, dill; print(eval(sys.argv[1])(dill.loads(sys.stdin.buffer.read())))"
	for _, c := range []struct{ name, src, eval, want string }{
		{"plain", "def f(): return {1: (2, b'3')}", "repr", "{1: (2, b'3')}"},
		{"lambda", "def f(): return lambda x: x + 1", "lambda g: g(1)", "2"},
		{"closure", "def f():\n    n = 5\n    def g(): return n\n    return g", "lambda g: g()", "5"},
		{"instance of a class in the source", "class P:\n    x = 4\ndef f(): return P()", "lambda p: p.x", "4"},
		{"class in the source", "class P:\n    x = 4\ndef f(): return P", "lambda p: p().x", "4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := fromSource(c.src, "")
			a.Returns = task.EncodingPickle
			out := run(t, e, 0, a)
			if out.End != task.EndSucceeded || out.Encoding != task.EncodingPickle || out.Repr != "" {
				t.Fatal(describe(out))
			}
			got := python(t, e, strings.Replace(show, "eval(sys.argv[1])", "("+c.eval+")", 1), out.Result)
			if got != c.want {
				t.Fatalf("got %s", got)
			}
		})
	}
	p := pickled(t, e, `
import dill
class Here:
    def __init__(self): self.v = 9
def f(): return Here()
show(dill.dumps(f, recurse=True))
`)
	a := fromPickle(p[0], nil)
	a.Returns = task.EncodingPickle
	out := run(t, e, 0, a)
	if got := python(t, e, "import sys, dill; print(dill.loads(sys.stdin.buffer.read()).v)", out.Result); got != "9" {
		t.Fatalf("%s: got %s", describe(out), got)
	}
}

func TestUnpicklableResults(t *testing.T) {
	e := start(t, 1)
	for _, c := range [][2]string{
		{"(x for x in [1])", "generator"},
		{"__import__('threading').Lock()", "lock"},
		{"__import__('threading').RLock()", "RLock"},
		{"{'a': [__import__('threading').Lock()]}", "lock"},
		{"__import__('socket').socket()", "socket"},
		{"open('/dev/null', 'rb')", "BufferedReader"},
		{"__import__('sys')._getframe()", "frame"},
		{"(lambda l: [l := [l] for _ in range(100000)] and l)([])", "RecursionError"},
		{"type('C', (), {'__reduce__': lambda self: 1/0})()", "ZeroDivisionError"},
		{"type('C', (), {'__reduce__': lambda self: __import__('sys').exit()})()", "SystemExit"},
	} {
		for _, returns := range []task.Encoding{task.EncodingPickle, task.EncodingJSON} {
			a := fromSource("def f(): return "+c[0], "")
			a.Returns = returns
			out := run(t, e, 0, a)
			wantEnd(t, out, task.EndUnreadable, "cannot be pickled")
			if !strings.Contains(out.Failure.Message, c[1]) {
				t.Errorf("%s: %s", c[0], out.Failure.Message)
			}
		}
	}
	want(t, runJSON(t, e, "def f(): return 1", ""), "1")
}

// TestResultLimit tries the edge: as large as allowed, and one byte more.
func TestResultLimit(t *testing.T) {
	e := start(t, 1)
	for _, returns := range []task.Encoding{task.EncodingPickle, task.EncodingJSON} {
		a := fromSource("def f(n): return 'x' * n", `{"args":[100000]}`)
		a.Returns = returns
		size := len(run(t, e, 0, a).Result)
		a.MaxResult = size
		if out := run(t, e, 0, a); out.End != task.EndSucceeded || len(out.Result) != size {
			t.Fatal(describe(out))
		}
		a.Args = []byte(`{"args":[100001]}`)
		wantEnd(t, run(t, e, 0, a), task.EndExhausted, fmt.Sprintf("the result has %d bytes; the limit is %d bytes", size+1, size))
		a.MaxResult = size + 1
		if out := run(t, e, 0, a); out.End != task.EndSucceeded {
			t.Fatal(describe(out))
		}
	}
}

func TestValuesOf64MiB(t *testing.T) {
	e := start(t, 1)
	const n = 64 << 20
	args := append([]byte(`{"args":["`), bytes.Repeat([]byte("a"), n-32)...)
	a := fromSource("import sys\ndef f(s):\n    sys.stdout.write('o' * 300000)\n    return s + s[:n]\nn = 10", string(args)+`"]}`)
	a.MaxResult = n
	var out log
	a.Output = out.write
	got := run(t, e, 0, a)
	if got.End != task.EndSucceeded || len(got.Result) != n-32+10+2 || got.Result[n/2] != 'a' {
		t.Fatalf("%s with %d bytes", got.End, len(got.Result))
	}
	if len(out.String()) != 300000 {
		t.Fatalf("%d bytes of output", len(out.String()))
	}
	// A function of that size too.
	big := fromSource("x = '"+string(bytes.Repeat([]byte("b"), n))+"'\ndef f(): return len(x)", "")
	want(t, run(t, e, 0, big), fmt.Sprint(n))
}
