//go:build unix

package pyproc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// retryClient is a folder with what of the client package needs no gRPC, which the interpreter may lack.
func retryClient(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../clients/python/src/treadle/_retry.py")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "treadle"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"__init__.py": "from ._retry import NoRetry, RetryAfter\nclient = True\n", "_retry.py": string(text)} {
		if err := os.WriteFile(filepath.Join(dir, "treadle", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFunctionsDecideOnTheirNextAttempt: by the module that comes with the runner and by an
// installed client alike. What is reported is the exception that was given.
func TestFunctionsDecideOnTheirNextAttempt(t *testing.T) {
	const after, day = 1500 * time.Millisecond, 24 * time.Hour
	cases := []struct {
		name, body, typ, message string
		never                    bool
		after                    time.Duration
	}{
		{"no word", `raise ValueError("x")`, "ValueError", "x", false, 0},
		{"a text", `raise NoRetry("gone")`, "treadle.NoRetry", "gone", true, 0},
		{"the class alone", `raise NoRetry`, "treadle.NoRetry", "", true, 0},
		{"an exception", `raise NoRetry(ValueError("bad"))`, "ValueError", "bad", true, 0},
		{"a text, from another", `raise NoRetry("gone") from KeyError("k")`, "treadle.NoRetry", "gone", true, 0},
		{"an exception, from another", `raise NoRetry(ValueError("bad")) from KeyError("k")`, "ValueError", "bad", true, 0},
		{"what was caught", "try: {}['k']\n    except KeyError as e: raise NoRetry(e) from e", "KeyError", "'k'", true, 0},
		{"later", `raise RetryAfter(1.5, OSError("busy"))`, "OSError", "busy", false, after},
		{"later, a text", `raise RetryAfter(1.5, "busy")`, "treadle.RetryAfter", "busy", false, after},
		{"later, nothing", `raise RetryAfter(1.5)`, "treadle.RetryAfter", "", false, after},
		{"at once", `raise RetryAfter(-1, "busy")`, "treadle.RetryAfter", "busy", false, time.Millisecond},
		{"a day", `raise RetryAfter(86400, "busy")`, "treadle.RetryAfter", "busy", false, day},
		{"cut to a day", `raise RetryAfter(86400.001, "busy")`, "treadle.RetryAfter", "busy", false, day},
		{"endless", `raise RetryAfter(float("inf"), "busy")`, "treadle.RetryAfter", "busy", false, day},
		{"a huge integer", `raise RetryAfter(10**400, "busy")`, "treadle.RetryAfter", "busy", false, day},
		{"not a number", `raise RetryAfter(float("nan"), "busy")`, "ValueError", "seconds is NaN", false, 0},
		{"a text for a number", `raise RetryAfter("1", "busy")`, "TypeError", "seconds is '1': want a number", false, 0},
		{"written over", "e = RetryAfter(1, 'busy'); e.seconds = None; raise e", "treadle.RetryAfter", "busy", false, time.Millisecond},
		{"the outermost word", `raise NoRetry(RetryAfter(5, ValueError("bad")))`, "ValueError", "bad", true, 0},
		{"the outermost word, later", `raise RetryAfter(1.5, NoRetry("bad"))`, "treadle.NoRetry", "bad", false, after},
		{"a ring", "e = NoRetry(); e.error = e; raise e", "treadle.NoRetry", "", true, 0},
		{"a subclass", `raise Gone("gone")`, "Gone", "gone", true, 0},
		{"a subclass with its own start", `raise Limited(1.5)`, "Limited", "limited", false, after},
		{"a subclass without start", `raise Bare()`, "Bare", "", false, time.Millisecond},
		{"only the cause", `raise ValueError("x") from NoRetry("gone")`, "ValueError", "x", false, 0},
		{"a class that runs code", `raise Odd()`, "Odd", "", false, 0},
	}
	src := `from treadle import NoRetry, RetryAfter
import treadle
class Gone(NoRetry): pass
class Limited(RetryAfter):
    def __init__(self, seconds): super().__init__(seconds, "limited")
class Bare(RetryAfter):
    def __init__(self): self.error = ""
class Meta(type):
    def __getattr__(cls, name): raise RuntimeError(name)
class Odd(Exception, metaclass=Meta): pass
`
	for _, by := range []struct{ name, path string }{{"the runner's module", t.TempDir()}, {"an installed client", retryClient(t)}} {
		t.Run(by.name, func(t *testing.T) {
			e := start(t, 1, func(cfg *Config) { cfg.Paths = []string{by.path} })
			want(t, runJSON(t, e, src+"def f(): return hasattr(treadle, 'client')", ""), map[bool]string{true: "true", false: "false"}[by.name == "an installed client"])
			for _, c := range cases {
				for _, def := range []string{"def f():\n    ", "async def f():\n    "} {
					out := runJSON(t, e, src+def+c.body, "")
					wantEnd(t, out, task.EndRaised, c.message)
					if out.NoRetry != c.never || out.RetryAfter != c.after || out.Failure.Type != c.typ || len(out.Result) > 0 {
						t.Errorf("%s, %q: %s, no retry %t, after %s", c.name, def, describe(out), out.NoRetry, out.RetryAfter)
					}
					if !strings.Contains(out.Failure.Traceback, ", in f\n") {
						t.Errorf("%s, %q: the traceback does not lead to the function:\n%s", c.name, def, out.Failure.Traceback)
					}
				}
			}
			out := runJSON(t, e, src+`def f(): raise NoRetry(ValueError("bad")) from KeyError("k")`, "")
			if !strings.Contains(out.Failure.Traceback, "KeyError: 'k'\n\nThe above exception was the direct cause") {
				t.Errorf("the cause is not told:\n%s", out.Failure.Traceback)
			}
			if got := unpickleFailure(t, e, out.Failure.Pickle); got.Class != "builtins.ValueError" || got.Text != "bad" {
				t.Errorf("the caller loads %+v", got)
			}
			// A text comes back as the class itself where treadle is installed.
			out = runJSON(t, e, src+`def f(): raise RetryAfter(2, "busy")`, "")
			const program = `
e = __import__("pickle").loads(sys.stdin.buffer.read())
print(type(e).__module__, type(e).__qualname__, e, e.seconds)`
			if got := python(t, e, "sys.path.insert(0, "+pyString(retryClient(t))+")"+program, out.Failure.ForeignPickle); got != "treadle RetryAfter busy 2.0" {
				t.Errorf("the caller loads %s", got)
			}
		})
	}
}

// TestNextAttemptOfAFunctionWithoutFiles: a runner out of descriptors is replaced, also when the
// function wraps what it ran into.
func TestNextAttemptOfAFunctionWithoutFiles(t *testing.T) {
	e := start(t, 1)
	const pid = "import os\ndef f(): return os.getpid()"
	before := runJSON(t, e, pid, "")
	out := runJSON(t, e, "import errno, treadle\ndef f(): raise treadle.RetryAfter(1, OSError(errno.EMFILE, 'too many'))", "")
	wantEnd(t, out, task.EndRaised, "too many")
	if after := runJSON(t, e, pid, ""); string(after.Result) == string(before.Result) {
		t.Errorf("runner %s is kept", after.Result)
	}
}
