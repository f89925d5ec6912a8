package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

func TestMapReadsItsInput(t *testing.T) {
	srv := fake(t)
	// What comes before a broken line is done; the line is named with its text.
	got := cli(t, "1\n[1,2\n3\n", "map", "double")
	got.want(t, exitMisuse, "line 2: '[1,2' is broken JSON: unexpected end of JSON input", "--text")
	if got.out != "2\n" {
		t.Errorf("stdout %q", got.out)
	}
	for in, word := range map[string]string{
		"{\"a\": 1\n": "line 1: '{\"a\": 1'", "\n\n\"x\n": "line 3: '\"x'", "[1] 2\n": "after top-level value", "caf\xe9\n": "not UTF-8",
		"\xff\xfe1\x00\n\x00": "UTF-16",
	} {
		cli(t, in, "map", "echo").want(t, exitMisuse, word)
	}
	// Words that are no JSON stay strings; so does everything with --text.
	if out := cli(t, "01\n-x\nnul\n", "map", "echo").wantOK(t); out != "[\"01\"]\n[\"-x\"]\n[\"nul\"]" {
		t.Errorf("words: %s", out)
	}
	if out := cli(t, "[1,2\n7\n[3]\n", "map", "echo", "--text").wantOK(t); out != "[\"[1,2\"]\n[\"7\"]\n[\"[3]\"]" {
		t.Errorf("--text: %s", out)
	}
	if out := cli(t, "", "map", "echo", "--text", "[1,2", "7").wantOK(t); out != "[\"[1,2\"]\n[\"7\"]" {
		t.Errorf("--text with arguments: %s", out)
	}
	if out := cli(t, "\ufeff1\n2\n", "map", "double").wantOK(t); out != "2\n4" {
		t.Errorf("with a byte order mark: %s", out)
	}
	// A file is checked before anything of it is sent, and its length is the bar's total.
	file := filepath.Join(t.TempDir(), "values")
	if err := os.WriteFile(file, []byte("1\n2\n{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := srv.Calls("ExecuteBatch")
	cli(t, "", "map", "double", "-f", file).want(t, exitMisuse, file, "line 3")
	if srv.Calls("ExecuteBatch") != before {
		t.Error("something of a broken file was sent")
	}
	if err := os.WriteFile(file, []byte("\ufeff1\n\n2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = cli(t, "", "map", "double", "-f", file, "--progress")
	if got.wantOK(t) != "2\n4" || !strings.Contains(got.errOut, "/2") {
		t.Errorf("stdout %q, stderr %q", got.out, got.errOut)
	}
	if !newBar(&bytes.Buffer{}, 1, "map").IsStarted() {
		t.Error("the clock of the rate starts with the first results, which come many at once")
	}
}

func TestMapIsInterrupted(t *testing.T) {
	srv := fake(t)
	started := hang(srv)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for range 3 {
			<-started
		}
		cancel(errInterrupted)
	}()
	got := cliContext(ctx, "", "map", "hang", "1", "2", "3")
	got.want(t, exitInterrupted, "cancelling 3 tasks", "Ctrl-C again", "cancelled 3 tasks", "interrupted")
	if n := strings.Count(cli(t, "", "tasks", "--status", "CANCELLED", "--json").wantOK(t), "task_id"); n < 3 {
		t.Errorf("%d tasks are cancelled", n)
	}
	if out := cli(t, "", "tasks", "--status", "RUNNING", "--json").wantOK(t); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

func TestWhyWaits(t *testing.T) {
	t.Parallel()
	now := time.Now()
	python := treadle.Worker{Queues: []string{"default"}, Runtimes: []string{"python"}, Slots: 2, State: "active"}
	busy, leaving := python, python
	busy.Running, leaving.State = 2, "draining"
	single := busy
	single.Slots, single.Running = 1, 1
	for want, test := range map[string]struct {
		task    treadle.Task
		workers []treadle.Worker
	}{
		"no worker is attached":                                {treadle.Task{Queue: "default", Runtime: "python"}, []treadle.Worker{leaving}},
		`no worker serves the queue "gpu"`:                     {treadle.Task{Queue: "gpu", Runtime: "python"}, []treadle.Worker{python}},
		`no worker that serves the queue "default" has the Go`: {treadle.Task{Queue: "default", Runtime: "go/add"}, []treadle.Worker{python}},
		"the only slot that could run it is busy":              {treadle.Task{Queue: "default", Runtime: "python"}, []treadle.Worker{single}},
		"all 4 slots that could run it are busy":               {treadle.Task{Queue: "default", Runtime: "python"}, []treadle.Worker{busy, busy}},
		"it may not start before":                              {treadle.Task{Queue: "default", Runtime: "python", NotBefore: now.Add(time.Minute)}, []treadle.Worker{python}},
		"":                                                     {treadle.Task{Queue: "default", Runtime: "python"}, []treadle.Worker{python}},
	} {
		got := whyWaits(&test.task, test.workers, now)
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestExitCodes asks the program itself, as scripts do.
func TestExitCodes(t *testing.T) {
	up(t, "--store", "memory:", "--slots", "1")
	file := filepath.Join(t.TempDir(), "broken.py")
	if err := os.WriteFile(file, []byte(stackFunctions["broken"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(t, "", "register", file+":broken").wantOK(t)
	cli(t, "", "register", file+":broken", "--name", "lonely", "--queue", "gpu").wantOK(t)
	id := cli(t, "", "run", "-d", "lonely", "1").wantOK(t)
	cli(t, "", "run", "broken", "1").want(t, exitFailed) // the pool is attached
	for args, want := range map[string]struct {
		code   int
		stderr string
	}{
		"functions":                         {exitOK, ""},
		"run broken 1":                      {exitFailed, "ValueError"},
		"result " + id:                      {exitUnfinished, `It waits: no worker serves the queue "gpu"`},
		"result --wait 10ms " + id:          {exitUnfinished, "is QUEUED"},
		"status " + strings.Repeat("0", 32): {exitUnknown, "treadle: no task has the id"},
		"run nobody":                        {exitUnknown, `treadle: no function is called "nobody"`},
		"tasks --filter x":                  {exitMisuse, ""},
		"tasks --bogus":                     {exitMisuse, ""},
		"help nosuch":                       {exitMisuse, `unknown command "nosuch"`},
		"tasks --address 127.0.0.1:1":       {exitNoServer, "no server answers at 127.0.0.1:1"},
	} {
		cmd := process(t, strings.Fields(args)...)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		_ = cmd.Run() // the code tells
		if cmd.ProcessState.ExitCode() != want.code || !strings.Contains(errOut.String(), want.stderr) {
			t.Errorf("treadle %s: exit code %d, want %d; stderr:\n%s", args, cmd.ProcessState.ExitCode(), want.code, errOut.String())
		}
	}
	if out := cli(t, "", "status", id).wantOK(t); !strings.Contains(out, "no worker serves the queue") {
		t.Errorf("status:\n%s", out)
	}
}

// TestRunSaysWhyItWaits needs the two seconds after which people are told.
func TestRunSaysWhyItWaits(t *testing.T) {
	up(t, "--store", "memory:", "--slots", "0")
	file := filepath.Join(t.TempDir(), "double.py")
	if err := os.WriteFile(file, []byte(stackFunctions["double"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(t, "", "register", file+":double").wantOK(t)
	cmd := process(t, "run", "double", "1")
	said := &signalled{mark: "is QUEUED: no worker is attached: start one with 'treadle worker'", seen: make(chan struct{})}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-said.seen:
	case <-time.After(20 * time.Second):
		t.Errorf("it waits in silence: %s", said.text.String())
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(said.text.String(), "treadle cancel ") {
		t.Errorf("exit code %d; stderr:\n%s", code, said.text.String())
	}
}

// signalled says when a text has been written to it.
type signalled struct {
	mark string
	seen chan struct{}
	text bytes.Buffer
	done bool
}

func (s *signalled) Write(p []byte) (int, error) {
	n, err := s.text.Write(p)
	if !s.done && strings.Contains(s.text.String(), s.mark) {
		s.done = true
		close(s.seen)
	}
	return n, err
}

func TestStatusNamesTheMachine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	task := &treadle.Task{ID: "t", Worker: "w1", Attempts: []treadle.Attempt{{Number: 1, Worker: "w0"}, {Number: 2, Worker: "w1"}}}
	if err := printTask(&out, task, "", []treadle.Worker{{ID: "w1", Name: "box2", Host: "rack-7"}}); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Count(got, "w1 (box2 on rack-7)") != 2 || !strings.Contains(got, "on w0,") {
		t.Errorf("%s", got)
	}
}
