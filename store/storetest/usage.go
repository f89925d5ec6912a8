package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var usageTests = []test{
	{"NobodyHasAnything", testUsageNobody},
	{"LifeOfATask", testUsageLife},
	{"EveryEnd", testUsageEnds},
	{"LargeValues", testUsageLarge},
	{"Functions", testUsageFunctions},
	{"RepeatsCountOnce", testUsageRepeats},
	{"OwnersApart", testUsageOwners},
	{"ManyTasks", testUsageMany},
	{"RefusedAnswersRepeatsAlone", testUsageRefused},
	{"RefusedFunction", testUsageRefusedFunction},
}

// usage is a [store.Usage] that can be compared.
type usage struct {
	tasks, functions int
	bytes            int64
	queues           string
}

func (e *env) usage(owner string) usage {
	e.Helper()
	u, err := e.Store.Usage(e.Context(), owner)
	e.must(err)
	var names []string
	for queue := range u.Queues {
		names = append(names, queue)
	}
	slices.Sort(names)
	return usage{u.Tasks, u.Functions, u.Bytes, strings.Join(names, " ")}
}

func (e *env) wantUsage(owner string, want usage) {
	e.Helper()
	if got := e.usage(owner); got != want {
		e.Fatalf("%q has %+v, want %+v", owner, got, want)
	}
}

const alice, bob = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"

// by makes a task somebody's.
func by(owner string) func(*task.Task) {
	return func(t *task.Task) { t.CreatedBy = owner }
}

func testUsageNobody(e *env) {
	e.submit()
	e.put(newFunction("f", "code"), "code")
	for _, owner := range []string{"", alice} {
		e.wantUsage(owner, usage{})
	}
	if got := e.task(e.submit()).CreatedBy; got != "" {
		e.Fatalf("a task of nobody was created by %q", got)
	}
}

func testUsageLife(e *env) {
	id := e.submit(by(alice), func(t *task.Task) { t.FunctionRetries = 1 })
	queued := usage{tasks: 1, bytes: 4, queues: "default"}
	e.wantUsage(alice, queued)
	e.reopenIfAble()
	e.wantUsage(alice, queued)
	if got := e.task(id).CreatedBy; got != alice {
		e.Fatalf("created by %q, want %q", got, alice)
	}
	c := e.claimOne()
	if c.Task.CreatedBy != alice {
		e.Fatalf("claimed as created by %q", c.Task.CreatedBy)
	}
	e.wantUsage(alice, queued)
	e.start(c.Token)
	e.wantUsage(alice, queued)
	e.settle(c.Token, task.Fail(task.EndRaised, "once more"), task.VerdictRecorded)
	e.wantUsage(alice, queued)
	var again []store.Claimed
	e.eventually("the retry", func() bool { again = e.claim(1); return len(again) == 1 })
	e.settle(again[0].Token, success(`"result"`), task.VerdictRecorded)
	finished := usage{bytes: 8}
	e.wantUsage(alice, finished)
	e.settle(again[0].Token, success(`"result"`), task.VerdictDuplicate)
	e.wantUsage(alice, finished)
	e.reopenIfAble()
	e.wantUsage(alice, finished)
	if got := e.wantStatus(id, task.Completed).CreatedBy; got != alice {
		e.Fatalf("finished as created by %q, want %q", got, alice)
	}
	e.outlive()
	e.eventually("the result is removed", func() bool { e.reap(); return e.usage(alice) == usage{} })
}

func testUsageEnds(e *env) {
	cancelled := e.submit(by(alice))
	running := e.submit(by(alice), func(t *task.Task) { t.Queue = "work" })
	expiring := e.submit(by(alice), func(t *task.Task) { t.Deadline = e.Now().Add(e.Lease / 2); t.Queue = "late" })
	lost := e.submit(by(alice), func(t *task.Task) { t.MaxRetries = 0; t.Queue = "work" })
	e.wantUsage(alice, usage{tasks: 4, bytes: 16, queues: "default late work"})
	r := e.request(2)
	r.Queues = []string{"work"}
	for _, c := range e.claimReq(r) {
		e.start(c.Token)
	}
	for range 2 { // the second time changes nothing
		e.cancel(cancelled, running)
		e.wantUsage(alice, usage{tasks: 2, bytes: 8, queues: "late work"})
	}
	e.Advance(e.Lease / 2)
	e.eventually("the deadline", func() bool { e.reap(); return e.task(expiring).Status == task.Failed })
	e.wantUsage(alice, usage{tasks: 1, bytes: 4, queues: "work"})
	e.Advance(e.Lease)
	e.eventually("the loss", func() bool { e.reap(); return e.task(lost).Status == task.Failed })
	e.wantUsage(alice, usage{})
}

func testUsageLarge(e *env) {
	const size = 3<<20 + 5
	e.submitItem(item(newTask(by(alice)), strings.Repeat("a", size)))
	e.wantUsage(alice, usage{tasks: 1, bytes: size, queues: "default"})
	e.settle(e.claimOne().Token, success(`"`+strings.Repeat("r", size)+`"`), task.VerdictRecorded)
	e.wantUsage(alice, usage{bytes: size + 2})
	e.outlive()
	e.eventually("the result is removed", func() bool { e.reap(); return e.usage(alice) == usage{} })
}

func testUsageFunctions(e *env) {
	for _, queue := range []string{"default", "gpu", "gpu"} {
		f := newFunction("f", "code")
		f.CreatedBy, f.Queue = alice, queue
		if got := e.put(f, "code"); got.CreatedBy != alice {
			e.Fatalf("recorded as created by %q", got.CreatedBy)
		}
	}
	e.submit(by(alice), func(t *task.Task) { t.Queue = "gpu" })
	want := usage{tasks: 1, functions: 3, bytes: 16, queues: "default gpu"}
	e.wantUsage(alice, want)
	e.reopenIfAble()
	e.wantUsage(alice, want)
	f, err := e.Store.FunctionNamed(e.Context(), "f")
	if e.must(err); f.CreatedBy != alice {
		e.Fatalf("read as created by %q, want %q", f.CreatedBy, alice)
	}
}

func testUsageRepeats(e *env) {
	key := store.Key{ID: "once", Digest: [32]byte{1}}
	keyed := func() store.Submission {
		it := item(newTask(by(alice)), "args")
		it.Key = key
		return it
	}
	e.submitItem(keyed())
	want := usage{tasks: 1, bytes: 4, queues: "default"}
	got := e.submitAll(keyed(), keyed())
	if !got[0].Duplicate || !got[1].Duplicate {
		e.Fatalf("answered %+v", got)
	}
	e.wantUsage(alice, want)
	other := keyed()
	other.Key.Digest = [32]byte{2}
	if e.submitAll(other)[0].Err == nil {
		e.Fatal("another request with the same id was recorded")
	}
	e.wantUsage(alice, want)
	for range 2 {
		f := newFunction("f", "code")
		f.CreatedBy = alice
		_, err := e.Store.PutFunction(e.Context(), f, []byte("code"), key)
		e.must(err)
	}
	want.functions, want.bytes = 1, 8
	e.wantUsage(alice, want)
}

func testUsageOwners(e *env) {
	for _, owner := range []string{alice, bob, bob, ""} {
		e.submit(by(owner))
	}
	e.wantUsage(alice, usage{tasks: 1, bytes: 4, queues: "default"})
	e.wantUsage(bob, usage{tasks: 2, bytes: 8, queues: "default"})
	for _, c := range e.claim(4) {
		e.settle(c.Token, success("1"), task.VerdictRecorded)
	}
	e.wantUsage(alice, usage{bytes: 1})
	e.wantUsage(bob, usage{bytes: 2})
}

func testUsageMany(e *env) {
	const n = 300
	items := make([]store.Submission, n)
	for i := range items {
		items[i] = item(newTask(by([]string{alice, bob}[i%2]), func(t *task.Task) { t.Queue = fmt.Sprint("q", i%3) }), "args")
	}
	e.submitAll(items...)
	e.wantUsage(alice, usage{tasks: n / 2, bytes: 2 * n, queues: "q0 q1 q2"})
	r := e.request(n)
	r.Queues = []string{"q0"}
	claims := e.claimReq(r)
	settle := make([]store.Settlement, len(claims))
	for i, c := range claims {
		settle[i] = store.Settlement{Token: c.Token, Outcome: success("12")}
	}
	_, err := e.Store.Settle(e.Context(), e.Now(), settle)
	e.must(err)
	want := usage{tasks: n / 3, bytes: 4*n/3 + 2*n/6, queues: "q1 q2"}
	e.wantUsage(alice, want)
	e.wantUsage(bob, want)
	e.reopenIfAble()
	e.wantUsage(alice, want)
}

func testUsageRefused(e *env) {
	full := errors.New("full")
	key := store.Key{ID: "once", Digest: [32]byte{1}}
	it := item(newTask(by(alice)), strings.Repeat("a", 2<<20))
	it.Key = key
	first := e.submitItem(it)
	want := usage{tasks: 1, bytes: 2 << 20, queues: "default"}
	before := e.keyCount()

	again := item(newTask(by(alice)), strings.Repeat("a", 2<<20))
	again.Key = key
	again.Key.Refused = full
	unknown := item(newTask(by(alice)), strings.Repeat("b", 2<<20))
	unknown.Key = store.Key{ID: "another", Digest: [32]byte{1}, Refused: full}
	keyless := item(newTask(by(alice)), "args")
	keyless.Key.Refused = full
	other := item(newTask(by(alice)), "args")
	other.Key = store.Key{ID: "once", Digest: [32]byte{2}, Refused: full}
	got := e.submitAll(again, unknown, keyless, other)
	if got[0].ID != first || !got[0].Duplicate || got[0].Err != nil {
		e.Errorf("the repeat was answered %+v, want the first task", got[0])
	}
	for _, i := range []int{1, 2} {
		if !errors.Is(got[i].Err, full) {
			e.Errorf("a new submission was answered %+v, want the refusal", got[i])
		}
	}
	if task.CodeOf(got[3].Err) != task.CodeConflict {
		e.Errorf("another request with a used id was answered %+v, want a conflict", got[3])
	}
	e.wantUsage(alice, want)
	if after := e.keyCount(); after != before {
		e.Errorf("%d keys after the refusals, %d before", after, before)
	}
	// What was refused has left no trace: it can be submitted now.
	unknown.Key.Refused, unknown.Key.Digest = nil, [32]byte{3}
	if again := e.submitAll(unknown); again[0].Err != nil || again[0].Duplicate {
		e.Errorf("what was refused before was answered %+v", again[0])
	}
}

func testUsageRefusedFunction(e *env) {
	full := errors.New("full")
	key := store.Key{ID: "once", Digest: [32]byte{1}}
	register := func(key store.Key) (task.Function, error) {
		f := newFunction("f", "code")
		f.CreatedBy, f.CreatedAt = alice, e.Now()
		return e.Store.PutFunction(e.Context(), f, []byte("code"), key)
	}
	first, err := register(key)
	e.must(err)
	before := e.keyCount()
	key.Refused = full
	if again, err := register(key); err != nil || again.ID != first.ID {
		e.Errorf("the repeat was answered %+v, %v, want the first function", again, err)
	}
	for _, key := range []store.Key{{Refused: full}, {ID: "another", Digest: [32]byte{1}, Refused: full}} {
		if f, err := register(key); !errors.Is(err, full) {
			e.Errorf("a new registration was answered %+v, %v, want the refusal", f, err)
		}
	}
	key.Digest = [32]byte{2}
	if _, err := register(key); task.CodeOf(err) != task.CodeConflict {
		e.Errorf("another request with a used id was answered %v, want a conflict", err)
	}
	e.wantUsage(alice, usage{functions: 1, bytes: 4, queues: "default"})
	if after := e.keyCount(); after != before {
		e.Errorf("%d keys after the refusals, %d before", after, before)
	}
}
