package storetest

import (
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var bellTests = []test{
	{"ReadyOnSubmit", testBellReady},
	{"ReadyOnRequeue", testBellRequeue},
	{"ReadyWhenDue", testBellDue},
	{"DoneOnEveryEnd", testBellDone},
	{"Revoked", testBellRevoked},
	{"Wanted", testBellWanted},
	{"ChangedWhileWatched", testBellChanged},
	{"AfterDurability", testBellAfter},
	{"StopEndsIt", testBellStop},
}

// listener gathers signals and wakes whoever waits for one.
type listener struct {
	mu   sync.Mutex
	got  []store.Signal
	news chan struct{}
}

func (e *env) listen() *listener {
	l := &listener{news: make(chan struct{}, 1)}
	stop := e.Store.Bell().Listen(func(batch []store.Signal) {
		l.mu.Lock()
		l.got = append(l.got, batch...)
		l.mu.Unlock()
		select {
		case l.news <- struct{}{}:
		default:
		}
	})
	e.Cleanup(stop)
	return l
}

// wait returns once a signal was heard that agrees with want in every field set there.
func (l *listener) wait(e *env, want store.Signal) {
	e.Helper()
	timeout := time.After(10 * time.Second)
	for !l.heard(want) {
		select {
		case <-l.news:
		case <-timeout:
			l.mu.Lock()
			defer l.mu.Unlock()
			e.Fatalf("not heard: %+v; heard: %+v", want, l.got)
		}
	}
}

func (l *listener) heard(want store.Signal) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.got {
		if s.Kind == want.Kind && (want.Queue == "" || s.Queue == want.Queue) && (want.Runtime == "" || s.Runtime == want.Runtime) &&
			(want.Task.IsZero() || s.Task == want.Task) && (want.Claim.IsZero() || s.Claim == want.Claim) &&
			(want.From.IsZero() || s.From == want.From) && (want.Count == 0 || s.Count == want.Count) {
			return true
		}
	}
	return false
}

func (l *listener) reset() {
	l.mu.Lock()
	l.got = nil
	l.mu.Unlock()
}

var readyDefault = store.Signal{Kind: store.Ready, Queue: task.DefaultQueue, Runtime: task.RuntimePython}

func testBellReady(e *env) {
	l := e.listen()
	e.submitAll(item(newTask(), ""), item(newTask(), ""), item(newTask(func(t *task.Task) { t.Queue = "other" }), ""))
	l.wait(e, readyDefault)
	l.wait(e, store.Signal{Kind: store.Ready, Queue: "other", Runtime: task.RuntimePython})
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.got) != 2 {
		e.Fatalf("heard %+v, want one ring for each queue", l.got)
	}
	for _, s := range l.got {
		if least := map[string]int{task.DefaultQueue: 2}[s.Queue]; s.Count != 0 && s.Count < least {
			e.Errorf("heard %+v, want a count of at least %d, or none", s, least)
		}
	}
}

func testBellRequeue(e *env) {
	e.submit()
	c := e.claimOne()
	l := e.listen()
	e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	l.wait(e, readyDefault)
	c = e.claimOne()
	l.reset()
	e.Advance(e.Lease + time.Millisecond)
	e.reap()
	l.wait(e, readyDefault)
	l.wait(e, store.Signal{Kind: store.Revoked, Task: c.Token.Task, Claim: c.Token.Claim})
}

func testBellChanged(e *env) {
	l := e.listen()
	changed := func(id task.ID) store.Signal { return store.Signal{Kind: store.Changed, Task: id} }
	start := func(c store.Claimed) {
		e.Helper()
		now := e.Now()
		v, err := e.Store.Renew(e.Context(), now, []store.Renewal{{Token: c.Token, Until: now.Add(e.Lease), StartedAt: now}})
		if e.must(err); v[0] != task.VerdictRecorded {
			e.Fatalf("the start is %s", v[0])
		}
	}
	e.submit()
	unwatched := e.claimOne()
	start(unwatched)
	watched := e.submit()
	e.Store.Bell().Watch(watched, time.Minute)
	c := e.claimOne()
	l.reset()
	start(c)
	l.wait(e, changed(watched))
	e.wantStatus(watched, task.Running)
	l.reset()
	e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	l.wait(e, changed(watched))
	e.wantStatus(watched, task.Queued)
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	e.settle(unwatched.Token, success("1"), task.VerdictRecorded)
	l.wait(e, store.Signal{Kind: store.Done, Task: unwatched.Token.Task})
	if l.heard(changed(unwatched.Token.Task)) {
		e.Fatal("heard of a task that nobody watches")
	}
}

func testBellDue(e *env) {
	e.submit(func(t *task.Task) { t.FunctionRetries = 1 })
	c := e.claimOne()
	l := e.listen()
	e.settleItem(store.Settlement{Token: c.Token, Outcome: task.Fail(task.EndRaised, "no"), Jitter: 0.5}, task.VerdictRecorded)
	e.Advance(task.RetryDelay(1, 0.5) + time.Millisecond)
	e.reap()
	l.wait(e, readyDefault)
}

func testBellDone(e *env) {
	l := e.listen()
	done := e.submit()
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	l.wait(e, store.Signal{Kind: store.Done, Task: done})
	failed := e.submit()
	e.settle(e.claimOne().Token, task.Fail(task.EndRaised, "no"), task.VerdictRecorded)
	l.wait(e, store.Signal{Kind: store.Done, Task: failed})
	cancelled := e.submit()
	e.cancel(cancelled)
	l.wait(e, store.Signal{Kind: store.Done, Task: cancelled})
	expired := e.submit(func(t *task.Task) { t.Deadline = e.Now().Add(time.Millisecond) })
	e.Advance(2 * time.Millisecond)
	e.reap()
	l.wait(e, store.Signal{Kind: store.Done, Task: expired})
}

func testBellRevoked(e *env) {
	l := e.listen()
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	e.cancel(id)
	l.wait(e, store.Signal{Kind: store.Revoked, Task: id, Claim: c.Token.Claim})

	id = e.submit(func(t *task.Task) { t.Deadline = e.Now().Add(time.Millisecond) })
	c = e.claimOne()
	e.Advance(2 * time.Millisecond)
	e.reap()
	l.wait(e, store.Signal{Kind: store.Revoked, Task: id, Claim: c.Token.Claim})
	l.reset()

	// Nobody is told to stop what nobody holds, or what its holder ended.
	e.cancel(e.submit())
	e.submit()
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	l.wait(e, store.Signal{Kind: store.Done})
	if l.heard(store.Signal{Kind: store.Revoked}) {
		e.Fatal("a claim was revoked that was not in force")
	}
}

func testBellWanted(e *env) {
	a, b := e.listen(), e.listen()
	s := store.Signal{Kind: store.Wanted, Queue: "q", Runtime: "r", From: randomID(), Count: 3}
	e.Store.Bell().Ring(e.Context(), []store.Signal{s})
	a.wait(e, s)
	b.wait(e, s)
	s = store.Signal{Kind: store.Attending, Runtime: "push", From: randomID(), Count: -1}
	e.Store.Bell().Ring(e.Context(), []store.Signal{s})
	a.wait(e, s)
}

// testBellAfter checks that whoever hears the bell finds what it rang for.
func testBellAfter(e *env) {
	type found struct {
		status task.Status
		err    error
	}
	heard := make(chan task.ID, 100)
	stop := e.Store.Bell().Listen(func(batch []store.Signal) {
		for _, s := range batch {
			if s.Kind == store.Done {
				heard <- s.Task
			}
		}
	})
	defer stop()
	results := make(chan found, 100)
	go func() {
		for id := range heard {
			t, err := e.Store.Task(e.Context(), id)
			if err != nil {
				results <- found{err: err}
				continue
			}
			results <- found{status: t.Status}
		}
		close(results)
	}()
	for range 20 {
		e.submit()
		e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
		select {
		case r := <-results:
			if r.err != nil || r.status != task.Completed {
				e.Fatalf("after Done the task reads %q, %v", r.status, r.err)
			}
		case <-time.After(10 * time.Second):
			e.Fatal("Done was not heard")
		}
	}
	stop()
	close(heard)
	for range results {
	}
}

func testBellStop(e *env) {
	var mu sync.Mutex
	calls := 0
	stop := e.Store.Bell().Listen(func([]store.Signal) {
		mu.Lock()
		calls++
		mu.Unlock()
	})
	other := e.listen()
	e.submit()
	other.wait(e, readyDefault)
	stop()
	stop()
	mu.Lock()
	before := calls
	mu.Unlock()
	other.reset()
	e.submit()
	other.wait(e, readyDefault)
	mu.Lock()
	defer mu.Unlock()
	if calls != before {
		e.Fatal("a listener was called after stop")
	}
}
