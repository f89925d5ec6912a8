package storetest

import (
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var retentionTests = []test{
	{"RemovesEverything", testRetention},
	{"KeepsTheUnfinished", testRetentionUnfinished},
	{"KeyIsFreeAgain", testRetentionKey},
	{"ReapIsBounded", testRetentionBounded},
	{"AfterReopen", testRetentionReopen},
}

// outlive waits until everything that finished so far is past its retention.
func (e *env) outlive() {
	e.Advance(e.Retention + time.Second)
}

func testRetention(e *env) {
	before := e.keyCount()
	var gone []task.ID
	for range 5 {
		it := item(newTask(func(t *task.Task) { t.FunctionRetries = 1 }), "arguments")
		it.Key = store.Key{ID: it.Task.ID.String(), Digest: [32]byte{1}}
		gone = append(gone, e.submitItem(it))
	}
	claims := e.claim(4)
	for _, c := range claims {
		e.start(c.Token)
	}
	e.settleItem(store.Settlement{Token: claims[0].Token, Outcome: success("1"), Log: []byte("out")}, task.VerdictRecorded)
	e.settleItem(store.Settlement{Token: claims[1].Token, Outcome: task.Fail(task.EndExhausted, "2"), Log: []byte("out")}, task.VerdictRecorded)
	e.cancel(claims[2].Token.Task, gone[4])
	// One that has output of two attempts.
	e.settleItem(store.Settlement{Token: claims[3].Token, Outcome: task.Fail(task.EndRaised, "3"), Log: []byte("first")}, task.VerdictRecorded)
	again := e.claimOne()
	e.settleItem(store.Settlement{Token: again.Token, Outcome: success("3"), Log: []byte("second")}, task.VerdictRecorded)
	next := e.reap()
	if next.IsZero() || next.After(e.Now().Add(e.Retention+time.Second)) {
		e.Fatalf("reap wants to be called at %s", next)
	}
	for _, id := range gone {
		if t := e.task(id); !t.Status.Terminal() {
			e.Fatalf("%s is %s", id, t.Status)
		}
	}
	e.outlive()
	e.eventually("everything is removed", func() bool {
		e.reap()
		got, err := e.Store.Tasks(e.Context(), gone)
		e.must(err)
		for _, t := range got {
			if t != nil {
				return false
			}
		}
		return true
	})
	_, _, err := e.Store.Result(e.Context(), gone[0])
	e.wantCode(err, task.CodeNotFound)
	_, err = e.Store.Log(e.Context(), gone[0], 1)
	e.wantCode(err, task.CodeNotFound)
	if got := e.list(store.ListQuery{Limit: 10}); len(got) != 0 {
		e.Fatalf("the list still has %v", got)
	}
	e.settle(claims[0].Token, success("1"), task.VerdictStale)
	if e.Keys == nil {
		return
	}
	// The store may keep a fixed number of keys for itself.
	if after := e.keyCount(); after > before+1 {
		e.Fatalf("%d keys, there were %d before the tasks", after, before)
	}
}

func testRetentionUnfinished(e *env) {
	queued, done := e.submit(), e.submit(func(t *task.Task) { t.Priority = 9 })
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	e.Advance(e.Retention / 2)
	e.reap()
	e.wantStatus(done, task.Completed)
	e.outlive()
	e.reap()
	e.wantStatus(queued, task.Queued)
	e.eventually("the finished one is removed", func() bool {
		_, err := e.Store.Task(e.Context(), done)
		return task.CodeOf(err) == task.CodeNotFound
	})
	if c := e.claimOne(); c.Token.Task != queued || string(c.Args) != "args" {
		e.Fatal("the queued task suffered")
	}
}

func testRetentionKey(e *env) {
	key := store.Key{ID: "k", Digest: [32]byte{1}}
	it := item(newTask(), "")
	it.Key = key
	first := e.submitItem(it)
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	e.outlive()
	e.reap()
	var second store.Submitted
	e.eventually("the key is free", func() bool {
		it := item(newTask(), "")
		it.Key = store.Key{ID: "k", Digest: [32]byte{2}}
		second = e.submitAll(it)[0]
		return second.Err == nil
	})
	if second.Duplicate || second.ID == first {
		e.Fatalf("answered %+v", second)
	}
}

func testRetentionBounded(e *env) {
	var all []task.ID
	for range 10 {
		all = append(all, e.submit())
	}
	for _, c := range e.claim(10) {
		e.settle(c.Token, success("1"), task.VerdictRecorded)
	}
	e.outlive()
	left := func() int {
		n := 0
		got, err := e.Store.Tasks(e.Context(), all)
		e.must(err)
		for _, t := range got {
			if t != nil {
				n++
			}
		}
		return n
	}
	for before := left(); before > 0; {
		next, err := e.Store.Reap(e.Context(), e.Now(), 3)
		e.must(err)
		now := left()
		if before-now > 3 {
			e.Fatalf("one reap of 3 removed %d", before-now)
		}
		if now > 0 && next.After(e.Now()) {
			e.Fatalf("%d tasks are overdue and reap wants to wait until %s", now, next)
		}
		if now == before {
			e.Fatal("reap removed nothing")
		}
		before = now
	}
}

func testRetentionReopen(e *env) {
	id := e.submit()
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	e.reopen()
	e.wantStatus(id, task.Completed)
	e.reap()
	e.wantStatus(id, task.Completed)
	e.outlive()
	e.eventually("the finished one is removed", func() bool {
		_, err := e.Store.Task(e.Context(), id)
		return task.CodeOf(err) == task.CodeNotFound
	})
}
