package check

import (
	"slices"
	"strings"
	"testing"
	"time"

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

// endsEarly has the task claimed again right after its lease was renewed.
func (t *tape) endsEarly() {
	t.e.Store, t.e.Lease = t.e.Store[:1], time.Second
	t.store("renew", storetap.Item{Task: "t", Epoch: 1, Claim: "a", Outcome: "started", Verdict: "recorded"})
	t.now += 10
	t.store("claim", storetap.Item{Task: "t", Epoch: 3, Claim: "b", Status: "QUEUED", Retries: 3})
	t.store("settle", storetap.Item{Task: "t", Epoch: 3, Claim: "b", Outcome: "succeeded", Verdict: "recorded"})
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
		{name: "an epoch that the claim did not raise", want: "I5", spoil: func(t *tape) { t.e.Store[0].Items[0].Epoch = 0 }},
		{name: "an epoch that the end did not raise", want: "I5", spoil: func(t *tape) {
			t.e.Store = t.e.Store[:1]
			t.store("claim", storetap.Item{Task: "t", Epoch: 2, Claim: "b", Status: "QUEUED", Retries: 3})
		}},
		{name: "a claim that is given more", want: "I5", spoil: func(t *tape) {
			t.e.Store = t.e.Store[:1]
			t.store("claim", storetap.Item{Task: "u", Epoch: 1, Claim: "a", Status: "QUEUED", Retries: 3})
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
		{name: "a lease that ends early", want: "I9", spoil: func(t *tape) {
			t.endsEarly()
		}},
		{name: "a success called SerializationError", want: "I10", spoil: fails("SerializationError")},
		{name: "a success called FunctionExecutionFailure", want: "I10", spoil: fails(classFunction)},
		{name: "a success called ResourceLimitExceeded", want: "I10", spoil: fails(classResource)},
		{name: "a success called DeadlineExceededError", want: "I14", spoil: fails(classDeadline)},
		{name: "a success called WorkerFailureError", want: "I7", spoil: fails(classWorker)},
		{name: "an unknown class", want: "I10", spoil: fails("Other")},
		{name: "a cancel that nobody asked for", want: "I13", spoil: func(t *tape) { t.e.Final[0].Status, t.e.Final[0].Run = cancelled, "" }},
		{name: "an attempt that nobody cancelled", want: "I10", spoil: func(t *tape) { t.e.Final[0].Ends = []string{"cancelled", "succeeded"} }},
		{name: "an attempt that did not raise", want: "I10", spoil: func(t *tape) { t.e.Final[0].Ends = []string{"raised", "succeeded"} }},
		{name: "a lost worker without a fault", want: "I7", spoil: func(t *tape) { t.e.Final[0].Lost = 1 }},
		{name: "a function that raises and returned", want: "I10", spoil: func(t *tape) { t.e.Operations[0].Invoke.Plan = history.Raises }},
		{name: "an exception that nobody raised", want: "I10", spoil: func(t *tape) {
			fails(classFunction)(t)
			t.e.Operations[0].Invoke.Plan, t.e.Final[0].Run = history.Raises, "r"
		}},
		{name: "an extra run without a fault", want: "I11", spoil: func(t *tape) { t.run("k", "r0", history.Started) }},
		{name: "two extra runs and one worker struck", want: "I11", spoil: func(t *tape) {
			t.e.Faults = []Fault{{At: 1, Agents: []int{0}}}
			t.run("k", "r0", history.Started)
			t.run("k", "r1", history.Started)
		}},
		{name: "more extra runs than a fault explains", want: "I11", spoil: func(t *tape) {
			t.e.Faults, t.e.Capacity = []Fault{{At: 1}}, 1
			for _, key := range []string{"k", "l"} {
				t.op(history.Submit, "l", "l", history.OK, history.Event{})
				t.run(key, key+"0", history.Started)
				t.run(key, key+"1", history.Started)
			}
		}},
		{name: "an extra run before an outcome was lost", want: "I11", spoil: func(t *tape) {
			t.e.MayLose = true
			t.e.Runs = append(t.e.Runs, history.Run{At: 1, Key: "k", Run: "r0", What: history.Started})
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

// fails has the task of a good history end FAILED with a class, and nobody see its result.
func fails(class string) func(*tape) {
	return func(t *tape) {
		t.e.Operations = t.e.Operations[:2]
		t.e.Store = t.e.Store[:1]
		r := &t.e.Final[0]
		r.Status, r.Class, r.Run = failed, class, ""
		if class == classWorker {
			r.Lost = r.MaxRetries + 1
		}
	}
}

// TestReasons checks that a task may end in each way for which there is a reason.
func TestReasons(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*tape)
	}{
		{"it raises", func(t *tape) {
			fails(classFunction)(t)
			t.e.Operations[0].Invoke.Plan = history.Raises
			t.run("k", "r", history.Raised)
			t.e.Final[0].Run, t.e.Final[0].Ends = "r", []string{"raised"}
		}},
		{"it overruns its timeout", func(t *tape) {
			fails(classDeadline)(t)
			t.e.Operations[0].Invoke.Plan = history.Overruns
			t.e.Final[0].Ends = []string{"timed_out"}
		}},
		{"its claim is repeated when it was cancelled", func(t *tape) {
			t.e.Store = t.e.Store[:1]
			t.op(history.Cancel, "k", "t", history.Info, history.Event{})
			t.store("claim", storetap.Item{Task: "u", Epoch: 1, Claim: "a", Status: "QUEUED", Retries: 3})
		}},
		{"its claim is repeated when it has ended", func(t *tape) {
			t.store("claim", storetap.Item{Task: "u", Epoch: 1, Claim: "a", Status: "QUEUED", Retries: 3})
		}},
		{"its claim gives two tasks at once", func(t *tape) {
			t.e.Store[0].Items = append(t.e.Store[0].Items, storetap.Item{Task: "u", Epoch: 1, Claim: "a", Status: "QUEUED", Retries: 3})
		}},
		{"its lease ran out", func(t *tape) {
			t.endsEarly()
			t.e.Lease = 1
		}},
		{"its worker handed it back", func(t *tape) {
			t.endsEarly()
			t.e.Store = slices.Insert(t.e.Store, 2, storetap.Entry{Op: "settle", Start: t.e.Store[1].End + 1, End: t.e.Store[1].End + 2, Items: []storetap.Item{
				{Task: "t", Epoch: 1, Claim: "a", Outcome: "returned", Verdict: "recorded"},
			}})
		}},
		{"its worker may have handed it back", func(t *tape) {
			t.endsEarly()
			t.e.Store = append(t.e.Store, storetap.Entry{Op: "settle", Start: t.e.Store[1].End + 1, End: t.now, Err: "UNAVAILABLE"})
		}},
		{"its deadline passed", func(t *tape) {
			fails(classDeadline)(t)
			t.e.Operations[0].Invoke.Deadline = true
		}},
		{"it takes too much memory", func(t *tape) {
			fails(classResource)(t)
			t.e.Operations[0].Invoke.Plan = history.Exhausts
		}},
		{"its workers were struck", func(t *tape) {
			fails(classWorker)(t)
			for range 4 {
				t.e.Faults = append(t.e.Faults, Fault{At: 1, Agents: []int{0}})
			}
		}},
		{"a client cancelled it", func(t *tape) {
			fails("Cancelled")(t)
			t.e.Final[0].Status, t.e.Final[0].Ends = cancelled, []string{"cancelled"}
			t.op(history.Cancel, "k", "t", history.Info, history.Event{})
		}},
		{"its worker was struck and it ran again", func(t *tape) {
			t.e.Faults = []Fault{{At: 1, Agents: []int{0}}}
			t.run("k", "r0", history.Started)
		}},
		{"its cancel was lost", func(t *tape) {
			t.e.MayLose = true
			t.op(history.Cancel, "k", "t", history.OK, history.Event{Status: cancelled})
		}},
		{"a worker that was frozen began it late", func(t *tape) {
			t.e.Faults = []Fault{{At: 1, Agents: []int{7}}}
			t.e.Runs = append(t.e.Runs, history.Run{At: t.now + 10, Key: "k", Run: "r0", What: history.Started, Agent: 7})
		}},
		{"its outcome was lost and it ran again", func(t *tape) {
			t.e.MayLose, t.e.Faults = true, []Fault{{At: 1}}
			t.run("k", "r0", history.Started)
		}},
		{"a dispatcher was struck and it ran again", func(t *tape) {
			t.e.Faults, t.e.Capacity = []Fault{{At: 1}}, 1
			t.run("k", "r0", history.Started)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := good()
			tt.spoil(h)
			if f := Run(&h.e); len(f.Violations) > 0 {
				t.Errorf("found:\n%s", strings.Join(f.Violations, "\n"))
			}
		})
	}
}

// TestOverlaps checks that a refusal counts as contested while a newer attempt is under way,
// and not when that one has ended.
func TestOverlaps(t *testing.T) {
	for _, ended := range []bool{false, true} {
		h := &tape{}
		claim := func(epoch uint64, claim string) {
			h.store("claim", storetap.Item{Task: "t", Epoch: epoch, Claim: claim, Status: "QUEUED", Retries: 3})
		}
		settle := func(epoch uint64, claim, verdict string) {
			h.store("settle", storetap.Item{Task: "t", Epoch: epoch, Claim: claim, Outcome: "succeeded", Verdict: verdict})
		}
		claim(1, "a")
		claim(3, "b")
		if ended {
			settle(3, "b", "recorded")
		}
		settle(1, "a", "stale")
		if !ended {
			settle(3, "b", "recorded")
		}
		f := Run(&h.e)
		if want := map[bool]int{false: 1}[ended]; f.Overlaps != want || f.Stale != 1 {
			t.Errorf("ended %v: %d overlaps of %d refusals, want %d of 1", ended, f.Overlaps, f.Stale, want)
		}
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
