//go:build unix

package pyproc

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// TestInterpretersThatAreNone are refused in one line, and what they started ends with them.
func TestInterpretersThatAreNone(t *testing.T) {
	before := inspectTimeout
	inspectTimeout = 500 * time.Millisecond
	defer func() { inspectTimeout = before }()
	folder := t.TempDir()
	pid := filepath.Join(folder, "pid")
	for name, c := range map[string]struct{ script, want string }{
		"hangs":      {"sleep 600 & echo $! > " + pid + "; wait", "did not answer within 500ms"},
		"not Python": {"printf 'one\\ntwo\\n\\nSyntaxError: no\\n' >&2; exit 1", "exit status 1: SyntaxError: no;"},
	} {
		path := filepath.Join(folder, "python")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+c.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Probe(t.Context(), Config{Python: path})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "--python PATH") {
			t.Errorf("%s: %v", name, err)
		}
	}
	child, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	// The killed child may be a zombie that nobody collects here.
	state, _ := exec.Command("ps", "-o", "stat=", "-p", strings.TrimSpace(string(child))).Output()
	if s := strings.TrimSpace(string(state)); s != "" && !strings.HasPrefix(s, "Z") {
		t.Errorf("its child is left behind: %s", s)
	}
}

// TestWorkingDirectoryIsRemoved: new runners start all the same.
func TestWorkingDirectoryIsRemoved(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(gone)
	e := start(t, 1)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	r := e.slots[0].cur
	if err := r.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.gone
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := e.Prepare(ctx, 0, false); err != nil {
		t.Fatal(err)
	}
	want(t, runJSON(t, e, "def f(): return 1", ""), "1")
}

// TestModulesOfTheFolderAreNotTheRunners: files of the working directory that are named like
// modules which the runner needs are the functions' own and nobody else's.
func TestModulesOfTheFolderAreNotTheRunners(t *testing.T) {
	folder := t.TempDir()
	// Made before the folder holds anything that would break them.
	made := start(t, 1)
	p := pickled(t, made, "import cloudpickle\nshow(cloudpickle.dumps(lambda: (lambda: 4), protocol=4))\nshow(cloudpickle.dumps(((lambda: 4,), {}), protocol=4))")
	for _, name := range []string{"uuid", "asyncio", "cloudpickle", "logging", "dataclasses", "platform", "typing"} {
		if err := os.WriteFile(filepath.Join(folder, name+".py"), []byte("mine = True\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(folder)
	e := start(t, 1)
	want(t, runJSON(t, e, "async def f(): return 3", ""), "3")
	for _, a := range []func() task.Outcome{
		func() task.Outcome {
			at := fromPickle(p[0], nil)
			at.Returns = task.EncodingPickle
			return run(t, e, 0, at)
		},
		func() task.Outcome {
			at := fromSource("def f(g): return g()", "")
			at.ArgsEncoding, at.Args = task.EncodingPickle, p[1]
			return run(t, e, 0, at)
		},
	} {
		if out := a(); out.End != task.EndSucceeded {
			t.Error(describe(out))
		}
	}
}

// TestFoldersOfAgents: a clean stop removes its own, a start those whose process is gone, and
// nobody those of the living or what is no agent's.
func TestFoldersOfAgents(t *testing.T) {
	parent := t.TempDir()
	for _, name := range []string{"dead", "unknown"} {
		if err := os.MkdirAll(filepath.Join(parent, name, "runner-1"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(parent, "dead", folderLock), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in := func(name string) func(*Config) { return func(c *Config) { c.Dir = filepath.Join(parent, name) } }
	first := start(t, 1, in("first"))
	second := start(t, 1, in("second"))
	list := func() string {
		entries, err := os.ReadDir(parent)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return strings.Join(names, " ")
	}
	if got := list(); got != "first second unknown" {
		t.Fatalf("while two agents live: %s", got)
	}
	want(t, run(t, first, 0, fromSource("def f(): return 1", "")), "1")
	for _, e := range []*Executor{first, second} {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := list(); got != "unknown" {
		t.Fatalf("after both have stopped: %s", got)
	}
}
