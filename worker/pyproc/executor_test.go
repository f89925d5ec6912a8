//go:build unix

package pyproc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// sharedCache is where the tests of one run install what the interpreter lacks, once.
var sharedCache string

func TestMain(m *testing.M) {
	if dir := os.Getenv("PYPROC_TEST_AGENT"); dir != "" {
		beAgent(dir)
	}
	var err error
	if sharedCache, err = os.MkdirTemp("", "treadle-pyproc-cache-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(sharedCache)
	os.Exit(code)
}

// start returns a started executor that the test's end closes.
func start(t testing.TB, slots int, change ...func(*Config)) *Executor {
	t.Helper()
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	cfg := Config{
		CacheDir: sharedCache, Dir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	}
	for _, c := range change {
		c(&cfg)
	}
	return startConfig(t, slots, cfg, func(*Executor) {})
}

// startConfig lets a test change an executor before it starts.
func startConfig(t testing.TB, slots int, cfg Config, change func(*Executor)) *Executor {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	change(e)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := e.Start(ctx, slots); err != nil {
		t.Fatal(err)
	}
	return e
}

// log collects an attempt's output.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() < 1<<20 {
		l.b.Write(b)
	}
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fromSource is an attempt of the one function in a piece of source text, called with JSON.
func fromSource(src, args string) *worker.Attempt {
	a := &worker.Attempt{
		FunctionName: "f", Runtime: task.RuntimePython, Form: task.FormSource,
		Code:         func(context.Context) ([]byte, error) { return []byte(src), nil },
		Hash:         sha256.Sum256([]byte(src)),
		ArgsEncoding: task.EncodingJSON, Returns: task.EncodingJSON,
		MaxResult: task.DefaultMaxPayload,
		Output:    func([]byte) {},
	}
	if args != "" {
		a.Args = []byte(args)
	}
	a.Token.Task = task.ID{1, 2, 3}
	return a
}

// run runs an attempt with a bound that no correct one needs.
func run(t testing.TB, e *Executor, slot int, a *worker.Attempt) task.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out := e.Run(ctx, slot, a)
	if ctx.Err() != nil {
		t.Fatalf("the attempt did not end in time: %+v", out)
	}
	return out
}

func runJSON(t testing.TB, e *Executor, src, args string) task.Outcome {
	t.Helper()
	return run(t, e, 0, fromSource(src, args))
}

// want fails the test unless the attempt completed with that JSON.
func want(t testing.TB, out task.Outcome, json string) {
	t.Helper()
	if out.End != task.EndSucceeded || string(out.Result) != json || out.Encoding != task.EncodingJSON {
		t.Fatalf("got %s, want %s", describe(out), json)
	}
}

// wantEnd fails the test unless the attempt ended that way with a message that contains text.
func wantEnd(t testing.TB, out task.Outcome, end task.End, text string) {
	t.Helper()
	if out.End != end || out.Failure == nil || !strings.Contains(out.Failure.Message, text) {
		t.Fatalf("got %s, want %s with %q", describe(out), end, text)
	}
	if out.Failure.Class != task.ClassOf(end) {
		t.Fatalf("class %q of end %q", out.Failure.Class, end)
	}
}

func describe(out task.Outcome) string {
	if out.Failure != nil {
		return fmt.Sprintf("%s %s: %s\n%s", out.End, out.Failure.Type, out.Failure.Message, out.Failure.Traceback)
	}
	return fmt.Sprintf("%s %s %.200q", out.End, out.Encoding, out.Result)
}

// python runs a program in the test's interpreter, with the packages that were installed
// for it, and returns what it prints.
func python(t testing.TB, e *Executor, program string, stdin []byte) string {
	t.Helper()
	// At the end of the path, as in a runner: the interpreter's own packages come first.
	where := "len(sys.path)"
	if e.libsFirst {
		where = "0"
	}
	cmd := exec.Command(e.python, "-c", "import sys\nsys.path.insert("+where+", "+pyString(e.libs)+")\n"+program)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("python: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestSourceFunctionWithJSON(t *testing.T) {
	e := start(t, 1)
	want(t, runJSON(t, e, "def f(x, y=1):\n    return [x * 2, y]", `{"args":[21],"kwargs":{"y":"ü"}}`), `[42,"ü"]`)
	want(t, runJSON(t, e, "def f():\n    return None", ""), `null`)
	if got := filepath.Base(e.python); !strings.HasPrefix(got, "python") {
		t.Fatalf("interpreter %s", e.python)
	}
}
