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

// TestFunctionsKnowTheirTask: in the function, its threads and forked children, by the module
// that comes with the runner and by an installed client alike.
func TestFunctionsKnowTheirTask(t *testing.T) {
	installed, err := filepath.Abs("../../clients/python/src/treadle/_current.py")
	if err != nil {
		t.Fatal(err)
	}
	client := t.TempDir()
	// The client package less what needs gRPC, which the interpreter may lack.
	if err := os.Mkdir(filepath.Join(client, "treadle"), 0o700); err != nil {
		t.Fatal(err)
	}
	current, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"__init__.py": "from ._current import CurrentTask, current_task\nclient = True\n", "_current.py": string(current)} {
		if err := os.WriteFile(filepath.Join(client, "treadle", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A folder of that name without any Python in it is no client.
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "treadle"), 0o700); err != nil {
		t.Fatal(err)
	}
	src := `import treadle, threading, os
outside = treadle.current_task
def f():
    seen = []
    def look():
        t = treadle.current_task()
        seen.append([t.id, t.attempt, t.function_id, t.function_name, t.deadline and t.deadline.isoformat(), t.timeout, t.max_retries])
    look()
    thread = threading.Thread(target=look); thread.start(); thread.join()
    r, w = os.pipe()
    if os.fork() == 0:
        os.write(w, treadle.current_task().id.encode()); os._exit(0)
    os.wait()
    child = os.read(r, 100).decode()
    os.close(r); os.close(w)
    assert seen[0] == seen[1] and child == seen[0][0], (seen, child)
    return seen[0] + [hasattr(treadle, "client")]
`
	for _, c := range []struct {
		name, path, client string
	}{{"the runner's module", folder, "false"}, {"an installed client", client, "true"}} {
		t.Run(c.name, func(t *testing.T) {
			e := start(t, 1, func(cfg *Config) { cfg.Paths = []string{c.path} })
			a := fromSource(src, "")
			a.Token.Attempt, a.Function, a.MaxRetries = 3, task.ID{9}, 5
			id, function := a.Token.Task.String(), a.Function.String()
			want(t, run(t, e, 0, a), `["`+id+`",3,"`+function+`","f",null,null,5,`+c.client+`]`)
			a.Timeout, a.Deadline = 90*time.Second, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
			want(t, run(t, e, 0, a), `["`+id+`",3,"`+function+`","f","2030-01-02T03:04:05+00:00",90.0,5,`+c.client+`]`)
		})
	}
	e := start(t, 1, func(cfg *Config) { cfg.Paths = []string{client} })
	if got := python(t, e, "sys.path.insert(0, "+pyString(client)+"); import treadle; print(treadle.current_task())", nil); got != "None" {
		t.Fatalf("outside of a runner: %s", got)
	}
	// A module's own code runs for the task that loads it.
	want(t, runJSON(t, e, "import treadle\nloading = treadle.current_task().attempt\ndef f(): return loading", ""), "0")
	if out := runJSON(t, e, "import _treadle_task\nf = _treadle_task.current", ""); !strings.Contains(string(out.Result), `"max_retries"`) {
		t.Fatal(describe(out))
	}
}
