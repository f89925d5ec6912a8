package storetest

import (
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var cancelTests = []test{
	{"Queued", testCancelQueued},
	{"Offered", testCancelOffered},
	{"Running", testCancelRunning},
	{"Delayed", testCancelDelayed},
	{"FinishedStays", testCancelFinished},
	{"OnlyQueued", testCancelOnlyQueued},
	{"UnknownIsNil", testCancelUnknown},
}

func (e *env) cancel(ids ...task.ID) []*task.Task {
	e.Helper()
	got, err := e.Store.Cancel(e.Context(), e.Now(), ids, false)
	e.must(err)
	if len(got) != len(ids) {
		e.Fatalf("%d answers to %d ids", len(got), len(ids))
	}
	return got
}

func testCancelQueued(e *env) {
	id, other := e.submit(), e.submit()
	got := e.cancel(id)[0]
	if got == nil || got.Status != task.Cancelled || got.Failure == nil || got.Failure.Class != task.ClassCancelled || got.FinishedAt.IsZero() {
		e.Fatalf("answered %+v", got)
	}
	e.wantStatus(id, task.Cancelled)
	if c := e.claim(10); len(c) != 1 || c[0].Token.Task != other {
		e.Fatalf("claimed %v, want only the other task", ids(c))
	}
}

func testCancelOffered(e *env) {
	id := e.submit()
	r := e.request(1)
	c := e.claimReq(r)[0]
	e.cancel(id)
	e.settle(c.Token, success("1"), task.VerdictStale)
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease), StartedAt: e.Now()}, task.VerdictStale)
	if t := e.wantStatus(id, task.Cancelled); t.AttemptCount != 0 || t.Lease != nil || t.Epoch <= c.Token.Epoch {
		e.Fatalf("%+v", t)
	}
	if again := e.claimReq(r); len(again) != 0 {
		e.Fatal("a cancelled claim was given again")
	}
}

func testCancelRunning(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease), Log: []byte("so far")}, task.VerdictRecorded)
	e.cancel(id)
	t := e.wantStatus(id, task.Cancelled)
	if t.Attempts[0].End != task.EndCancelled || t.Failure.Worker != "w" {
		e.Fatalf("attempts %+v, failure %+v", t.Attempts, t.Failure)
	}
	if log, err := e.Store.Log(e.Context(), id, 0); err != nil || string(log) != "so far" {
		e.Fatalf("output %q, %v", log, err)
	}
	// The cancelled task's result never appears.
	e.settle(c.Token, success("late"), task.VerdictStale)
	if got, result, err := e.Store.Result(e.Context(), id); err != nil || result != nil || got.Status != task.Cancelled {
		e.Fatalf("%s, %q, %v", got.Status, result, err)
	}
	e.Advance(2 * e.Lease)
	e.reap()
	e.wantStatus(id, task.Cancelled)
}

func testCancelDelayed(e *env) {
	id := e.submit(func(t *task.Task) { t.FunctionRetries = 3 })
	c := e.claimOne()
	e.settleItem(store.Settlement{Token: c.Token, Outcome: task.Fail(task.EndRaised, "no"), Jitter: 0.99}, task.VerdictRecorded)
	e.cancel(id)
	e.Advance(task.RetryDelay(1, 0.99) + 1)
	e.reap()
	if got := e.claim(1); len(got) != 0 {
		e.Fatal("a cancelled task was claimed")
	}
}

func testCancelFinished(e *env) {
	id := e.submit()
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	before := e.task(id)
	if got := e.cancel(id)[0]; got == nil || got.Status != task.Completed {
		e.Fatalf("answered %+v, want the finished record", got)
	}
	after, result, err := e.Store.Result(e.Context(), id)
	e.must(err)
	if after.Status != task.Completed || !after.FinishedAt.Equal(before.FinishedAt) || string(result) != "1" {
		e.Fatalf("%+v with %q", after, result)
	}
	other := e.submit()
	first := e.cancel(other)[0]
	if second := e.cancel(other)[0]; second.Status != task.Cancelled || !second.FinishedAt.Equal(first.FinishedAt) {
		e.Fatal("a second cancel changed the record")
	}
}

func testCancelUnknown(e *env) {
	id := e.submit()
	got := e.cancel(newID(), id, newID(), id)
	if got[0] != nil || got[2] != nil || got[1] == nil || got[3] == nil || got[1].Status != task.Cancelled {
		e.Fatalf("answered %v", got)
	}
}

func testCancelOnlyQueued(e *env) {
	running := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	offered := e.submit()
	o := e.claimOne()
	queued, ended := e.submit(), e.submit()
	e.cancel(ended)
	got, err := e.Store.Cancel(e.Context(), e.Now(), []task.ID{running, offered, queued, ended, newID()}, true)
	e.must(err)
	for i, want := range []task.Status{task.Running, task.Cancelled, task.Cancelled, task.Cancelled} {
		if got[i] == nil || got[i].Status != want {
			e.Errorf("answer %d is %+v, want %s", i, got[i], want)
		}
	}
	if got[4] != nil {
		e.Errorf("an unknown id is %+v", got[4])
	}
	e.settle(o.Token, success("1"), task.VerdictStale)
	// The one that ran goes on, and its result counts.
	e.wantStatus(running, task.Running)
	e.settle(c.Token, success("1"), task.VerdictRecorded)
	e.wantStatus(running, task.Completed)
}
