package check

import (
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/store/storetap"
)

// clock numbers the events of a made-up history.
type tape struct {
	now int64
	e   Evidence
}

func (t *tape) op(op, key, task, kind string, ret history.Event) {
	t.now += 10
	ret.Type, ret.At, ret.Task = kind, t.now+5, task
	t.e.Operations = append(t.e.Operations, history.Operation{
		Invoke: history.Event{At: t.now, Process: "c", Op: op, Key: key, Task: task}, Return: ret,
	})
}

func (t *tape) run(key, run string, what ...string) {
	for _, w := range what {
		t.now += 10
		t.e.Runs = append(t.e.Runs, history.Run{At: t.now, Key: key, Run: run, What: w})
	}
}

func (t *tape) store(op string, items ...storetap.Item) {
	t.now += 10
	t.e.Store = append(t.e.Store, storetap.Entry{Op: op, Start: t.now, End: t.now + 5, Items: items})
}

// good is a task that was submitted, ran and was read.
func good() *tape {
	t := &tape{}
	t.op(history.Submit, "k", "t", history.OK, history.Event{})
	t.store("claim", storetap.Item{Task: "t", Epoch: 1, Claim: "a", Status: "QUEUED", Retries: 3})
	t.op(history.Get, "k", "t", history.OK, history.Event{Status: "QUEUED"})
	t.run("k", "r", history.Started, history.Ended)
	t.store("settle", storetap.Item{Task: "t", Epoch: 1, Claim: "a", Outcome: "succeeded", Verdict: "recorded"})
	t.op(history.Result, "k", "t", history.OK, history.Event{Status: completed, Run: "r"})
	t.e.Final = []Record{{ID: "t", Key: "k", Status: completed, Run: "r", MaxRetries: 3}}
	return t
}

// TestFinds makes histories with one thing wrong each: the check must name it, and must
// find nothing wrong with the history that they are made of.
func TestFinds(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(*tape)
	}{
		{name: "nothing", want: ""},
		{name: "lost", want: "I1", spoil: func(t *tape) { t.e.Final = nil }},
		{name: "not finished", want: "I1", spoil: func(t *tape) { t.e.Final[0].Status = "RUNNING" }},
		{name: "invented run", want: "I3", spoil: func(t *tape) { t.run("x", "q", history.Started) }},
		{name: "invented task", want: "I3", spoil: func(t *tape) {
			t.run("x", "q", history.Started, history.Ended)
			t.e.Final = append(t.e.Final, Record{ID: "t2", Key: "x", Status: completed, Run: "q"})
		}},
		{name: "a result that nobody computed", want: "I10", spoil: func(t *tape) { t.e.Runs = nil }},
		{name: "two results", want: "I11", spoil: func(t *tape) {
			t.run("k", "r2", history.Started, history.Ended)
			t.op(history.Result, "k", "t", history.OK, history.Event{Status: completed, Run: "r2"})
		}},
		{name: "two tasks", want: "I12", spoil: func(t *tape) {
			t.op(history.Submit, "k", "t2", history.OK, history.Event{})
			t.e.Final = append(t.e.Final, Record{ID: "t2", Key: "k", Status: cancelled})
		}},
		{name: "ran after a cancel", want: "I13", spoil: func(t *tape) {
			t.op(history.Cancel, "k", "t", history.OK, history.Event{Status: cancelled})
		}},
		{name: "back to life", want: "I2", spoil: func(t *tape) {
			t.op(history.Get, "k", "t", history.OK, history.Event{Status: "RUNNING"})
		}},
		{name: "not found after the answer", want: "I15", spoil: func(t *tape) {
			t.op(history.Get, "k", "t", history.Fail, history.Event{Class: "NOT_FOUND"})
		}},
		{name: "too many losses", want: "I7", spoil: func(t *tape) { t.e.Final[0].Lost = 5 }},
		{name: "an epoch twice", want: "I5", spoil: func(t *tape) {
			t.e.Store = t.e.Store[:1]
			t.store("claim", storetap.Item{Task: "t", Epoch: 1, Claim: "b", Status: "QUEUED", Retries: 3})
		}},
		{name: "an old outcome", want: "I8", spoil: func(t *tape) {
			t.e.Store = t.e.Store[:1]
			t.store("claim", storetap.Item{Task: "t", Epoch: 3, Claim: "b", Status: "QUEUED", Retries: 3})
			t.store("settle", storetap.Item{Task: "t", Epoch: 1, Claim: "a", Outcome: "succeeded", Verdict: "recorded"})
		}},
		{name: "an old lease", want: "I9", spoil: func(t *tape) {
			t.e.Store = t.e.Store[:1]
			t.store("claim", storetap.Item{Task: "t", Epoch: 3, Claim: "b", Status: "QUEUED", Retries: 3})
			t.store("renew", storetap.Item{Task: "t", Epoch: 1, Claim: "a", Verdict: "recorded"})
		}},
		{name: "claimed after its end", want: "I4", spoil: func(t *tape) {
			t.store("claim", storetap.Item{Task: "t", Epoch: 5, Claim: "c", Status: "QUEUED", Retries: 3})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := good()
			if tt.spoil != nil {
				tt.spoil(h)
			}
			f := Run(&h.e)
			got := strings.Join(f.Violations, "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("want %q, found:\n%s", tt.want, got)
			}
		})
	}
}

// TestUnknown checks that an operation without an answer is allowed either outcome.
func TestUnknown(t *testing.T) {
	for _, ended := range []bool{false, true} {
		h := &tape{}
		h.op(history.Submit, "k", "", history.Info, history.Event{})
		if ended {
			h.run("k", "r", history.Started, history.Ended)
			h.e.Final = []Record{{ID: "t", Key: "k", Status: completed, Run: "r", MaxRetries: 3}}
		}
		f := Run(&h.e)
		if len(f.Violations) > 0 {
			t.Errorf("ended %v: %v", ended, f.Violations)
		}
		if want := map[bool]int{true: 1}[ended]; f.Recovered != want {
			t.Errorf("ended %v: recovered %d, want %d", ended, f.Recovered, want)
		}
	}
}
