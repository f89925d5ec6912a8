package storetest

import (
	"strings"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var leaseTests = []test{
	{"RenewNeverShortens", testRenewNeverShortens},
	{"StartCountsOnce", testStartCountsOnce},
	{"ExpiredAndStartedIsLost", testReapLost},
	{"LostWorkerIsNamed", testLostWorkerIsNamed},
	{"ExpiredAndUnstartedLapses", testReapLapsed},
	{"RenewedIsNotReaped", testReapRenewed},
	{"ReapHonoursLimit", testReapLimit},
	{"FourSilentWorkersFailTheTask", testReapFourLosses},
	{"DeadlineNeverEarly", testDeadline},
	{"DeadlineOfRunning", testDeadlineRunning},
	{"DeadlineBeforeClaim", testDeadlineBeforeClaim},
	{"NextReap", testNextReap},
	{"ResumeKeepsAndReturns", testResume},
	{"ResumeOfAnotherWorker", testResumeOther},
	{"ReopenGrantsAFreshLease", testReopenLease},
	{"ReopenKeepsTimeLimits", testReopenTimeout},
	{"ReopenRequeuesLocal", testReopenLocal},
	{"ReopenKeepsEverything", testReopenKeeps},
	{"CrashKeepsWhatWasAcknowledged", testCrash},
}

func testRenewNeverShortens(e *env) {
	id := e.submit()
	c := e.claimOne()
	until := c.Task.Lease.Until
	e.renew(store.Renewal{Token: c.Token, Until: until.Add(-time.Hour)}, task.VerdictRecorded)
	if got := e.task(id).Lease.Until; got.Before(until) {
		e.Fatalf("renewed to %s, which is before %s", got, until)
	}
	e.renew(store.Renewal{Token: c.Token, Until: until.Add(time.Hour)}, task.VerdictRecorded)
	if got := e.task(id).Lease.Until; !got.Equal(until.Add(time.Hour)) {
		e.Fatalf("renewed to %s, want %s", got, until.Add(time.Hour))
	}
}

func testStartCountsOnce(e *env) {
	id := e.submit()
	c := e.claimOne()
	at := e.Now()
	for range 3 {
		e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease), StartedAt: at}, task.VerdictRecorded)
		at = at.Add(time.Second)
	}
	t := e.wantStatus(id, task.Running)
	if t.AttemptCount != 1 || len(t.Attempts) != 1 || !t.Attempts[0].StartedAt.Equal(at.Add(-3*time.Second)) {
		e.Fatalf("attempts %+v", t.Attempts)
	}
}

func testReapLost(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	e.reap()
	e.wantStatus(id, task.Running)
	e.Advance(e.Lease + time.Millisecond)
	e.reap()
	t := e.wantStatus(id, task.Queued)
	if t.Losses != 1 || t.Lease != nil || t.Attempts[0].End != task.EndLost || t.Epoch == c.Token.Epoch {
		e.Fatalf("losses %d, lease %v, attempts %+v", t.Losses, t.Lease, t.Attempts)
	}
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease)}, task.VerdictStale)
	next := e.claimOne()
	if next.Token.Attempt != 2 {
		e.Fatalf("the next attempt has the number %d", next.Token.Attempt)
	}
	// The late report of the old attempt counts for nothing.
	if got, err := e.Store.Settle(e.Context(), e.Now(), []store.Settlement{{Token: c.Token, Outcome: success("late")}}); err != nil ||
		got[0] == task.VerdictRecorded {
		e.Fatalf("a late report was answered %v, %v", got, err)
	}
	e.settle(next.Token, success("1"), task.VerdictRecorded)
	if _, result, err := e.Store.Result(e.Context(), id); err != nil || string(result) != "1" {
		e.Fatalf("result %q, %v", result, err)
	}
}

// The record of an attempt whose worker fell silent says which machine that was: the fleet
// forgets it.
func testLostWorkerIsNamed(e *env) {
	id := e.submit()
	for i, tt := range []struct{ name, host, want string }{
		{"gpu-7", "rack4", " (gpu-7 on rack4)"}, {"rack4", "rack4", " (rack4)"}, {"", "rack4", " (rack4)"}, {},
	} {
		c := e.claimOne()
		e.start(c.Token)
		worker := c.Task.Lease.Worker
		e.must(e.Store.Announce(e.Context(), e.Now().Add(5*time.Second), []store.Presence{{Worker: worker, Name: tt.name, Host: tt.host}}))
		e.Advance(e.Lease + time.Millisecond)
		e.reap()
		want := "without a report from the worker"
		if tt.want != "" {
			want += tt.want
		}
		if a := e.task(id).Attempts[i]; a.End != task.EndLost || !strings.HasSuffix(a.Reason, want) {
			e.Fatalf("attempt %d ended as %s: %q, want %q at its end", i+1, a.End, a.Reason, want)
		}
		e.Advance(2 * time.Minute) // the delay of the retry, and the fleet forgets
	}
}

func testReapLapsed(e *env) {
	id := e.submit()
	e.claimOne()
	e.Advance(e.Lease + time.Millisecond)
	e.reap()
	if t := e.wantStatus(id, task.Queued); t.Losses != 0 || t.Lapses != 1 || t.AttemptCount != 0 {
		e.Fatalf("losses %d, lapses %d, attempts %d; want 0, 1, 0", t.Losses, t.Lapses, t.AttemptCount)
	}
	e.claimOne()
}

func testReapRenewed(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	for range 3 {
		e.Advance(e.Lease * 2 / 3)
		e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease)}, task.VerdictRecorded)
		if next := e.reap(); next.IsZero() || next.After(e.Now().Add(e.Lease+time.Second)) {
			e.Fatalf("reap wants to be called at %s", next)
		}
		e.wantStatus(id, task.Running)
	}
	e.settle(c.Token, success("1"), task.VerdictRecorded)
}

func testReapLimit(e *env) {
	for range 10 {
		e.submit()
	}
	if got := len(e.claim(10)); got != 10 {
		e.Fatalf("claimed %d", got)
	}
	e.Advance(e.Lease + time.Millisecond)
	for want := 4; want <= 12; want += 4 {
		_, err := e.Store.Reap(e.Context(), e.Now(), 4)
		e.must(err)
		ready := 0
		page, _, err := e.Store.ListTasks(e.Context(), store.ListQuery{Limit: 100})
		e.must(err)
		for _, t := range page {
			if t.Lease == nil {
				ready++
			}
		}
		if ready != min(want, 10) {
			e.Fatalf("%d tasks were requeued, want %d", ready, min(want, 10))
		}
	}
}

func testReapFourLosses(e *env) {
	id := e.submit()
	for i := range 4 {
		var c store.Claimed
		e.eventually("the task is ready again", func() bool {
			if got := e.claim(1); len(got) == 1 {
				c = got[0]
				return true
			}
			return false
		})
		e.start(c.Token)
		e.Advance(e.Lease + time.Millisecond)
		e.reap()
		if i < 3 {
			e.wantStatus(id, task.Queued)
		}
	}
	if t := e.wantFailure(id, task.ClassWorker); t.Losses != 4 || t.AttemptCount != 4 {
		e.Fatalf("losses %d, attempts %d", t.Losses, t.AttemptCount)
	}
}

func testDeadline(e *env) {
	deadline := e.Now().Add(2 * time.Second)
	id := e.submit(func(t *task.Task) { t.Deadline = deadline })
	other := e.submit()
	e.reap()
	e.wantStatus(id, task.Queued)
	e.Advance(deadline.Sub(e.Now()) - 200*time.Millisecond)
	if next := e.reap(); next.IsZero() || next.After(deadline.Add(time.Second)) {
		e.Fatalf("reap wants to be called at %s, the deadline is %s", next, deadline)
	}
	e.wantStatus(id, task.Queued)
	e.Advance(deadline.Sub(e.Now()))
	e.reap()
	t := e.wantFailure(id, task.ClassDeadline)
	if t.AttemptCount != 0 || t.FinishedAt.Before(deadline) {
		e.Fatalf("attempts %d, finished at %s with the deadline %s", t.AttemptCount, t.FinishedAt, deadline)
	}
	if got := e.claim(10); len(got) != 1 || got[0].Token.Task != other {
		e.Fatal("a task past its deadline was claimed")
	}
}

// A claim comes before the next reap: what is past its deadline is not offered.
func testDeadlineBeforeClaim(e *env) {
	id := e.submit(func(t *task.Task) { t.Deadline = e.Now().Add(time.Second) })
	later := e.submit()
	e.Advance(time.Second)
	if got := e.claim(2); len(got) != 1 || got[0].Token.Task != later {
		e.Fatalf("claimed %+v, want only the task without a deadline", got)
	}
	if t := e.wantFailure(id, task.ClassDeadline); t.AttemptCount != 0 {
		e.Fatalf("%d attempts", t.AttemptCount)
	}
}

func testDeadlineRunning(e *env) {
	deadline := e.Now().Add(time.Second)
	id := e.submit(func(t *task.Task) { t.Deadline = deadline })
	c := e.claimOne()
	e.start(c.Token)
	e.Advance(deadline.Sub(e.Now()))
	e.reap()
	t := e.wantFailure(id, task.ClassDeadline)
	if t.Attempts[0].End != task.EndTimedOut || t.Failure.Worker != "w" || t.Epoch <= c.Token.Epoch {
		e.Fatalf("attempts %+v, failure %+v", t.Attempts, t.Failure)
	}
	e.settle(c.Token, success("late"), task.VerdictStale)
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease)}, task.VerdictStale)
	e.wantFailure(id, task.ClassDeadline)
}

func testNextReap(e *env) {
	e.submit()
	c := e.claimOne()
	until := c.Task.Lease.Until
	if next := e.reap(); next.IsZero() || next.After(until.Add(time.Second)) {
		e.Fatalf("reap wants to be called at %s, a lease ends at %s", next, until)
	}
}

func testResume(e *env) {
	running, offered, finished, denied := e.submit(), e.submit(), e.submit(), e.submit()
	claims := e.claim(4)
	e.start(claims[0].Token)
	e.settle(claims[2].Token, success("1"), task.VerdictRecorded)
	session := randomID()
	until := e.Now().Add(e.Lease + time.Minute)
	got, err := e.Store.Resume(e.Context(), e.Now(), store.Resumption{
		Worker: "w", Session: session, Until: until,
		Held: []store.Renewal{
			{Token: claims[0].Token, Until: until, StartedAt: e.Now()},
			{Token: claims[1].Token, Until: until},
			{Token: claims[2].Token, Until: until, StartedAt: e.Now()},
		},
	})
	e.must(err)
	if len(got) != 3 || got[0] != task.VerdictRecorded || got[1] != task.VerdictRecorded || got[2] != task.VerdictStale {
		e.Fatalf("answered %v", got)
	}
	for _, id := range []task.ID{running, offered} {
		if l := e.task(id).Lease; l == nil || l.Session != session || !l.Until.Equal(until) {
			e.Fatalf("lease %+v, want it renewed and moved to the session %s", l, session)
		}
	}
	if t := e.wantStatus(running, task.Running); t.AttemptCount != 1 {
		e.Fatalf("%d attempts", t.AttemptCount)
	}
	e.wantStatus(finished, task.Completed)
	if t := e.wantStatus(denied, task.Queued); t.Lease != nil || t.Losses != 0 || t.Lapses != 0 || t.AttemptCount != 0 {
		e.Fatalf("what the worker denies must be requeued uncounted: %+v", t)
	}
	if c := e.claimOne(); c.Token.Task != denied {
		e.Fatal("claimed another task")
	}
	e.settle(claims[3].Token, success("late"), task.VerdictDuplicate)
	e.settle(claims[0].Token, success("1"), task.VerdictRecorded)
}

func testResumeOther(e *env) {
	e.submit()
	c := e.claimOne()
	until := e.Now().Add(e.Lease)
	got, err := e.Store.Resume(e.Context(), e.Now(), store.Resumption{
		Worker: "other", Session: randomID(), Until: until, Held: []store.Renewal{{Token: c.Token, Until: until}},
	})
	e.must(err)
	if got[0] != task.VerdictStale {
		e.Fatalf("a worker resumed what another one holds: %v", got)
	}
	if l := e.task(c.Token.Task).Lease; l == nil || l.Worker != "w" || l.Session != (task.ID{7}) {
		e.Fatalf("lease %+v", l)
	}
	e.settle(c.Token, success("1"), task.VerdictRecorded)
}

func testReopenLease(e *env) {
	kept, lost := e.submit(), e.submit()
	claims := e.claim(2)
	started := e.Now()
	e.start(claims[0].Token)
	e.start(claims[1].Token)
	// Down for longer than the leases.
	e.Advance(2 * e.Lease)
	e.reopen()
	e.reap()
	opened := e.Now()
	for _, id := range []task.ID{kept, lost} {
		if t := e.task(id); t.Lease == nil || t.Losses != 0 {
			e.Fatalf("a lease found at open was reaped: %+v", t)
		}
	}
	// One worker comes back in time with what it holds.
	until := e.Now().Add(2 * e.Lease)
	got, err := e.Store.Resume(e.Context(), e.Now(), store.Resumption{
		Worker: "w", Session: randomID(), Until: until, Held: []store.Renewal{
			{Token: claims[0].Token, Until: until, StartedAt: started}, {Token: claims[1].Token, Until: e.Now()},
		},
	})
	e.must(err)
	if got[0] != task.VerdictRecorded || got[1] != task.VerdictRecorded {
		e.Fatalf("answered %v", got)
	}
	if t := e.wantStatus(kept, task.Running); t.AttemptCount != 1 || !t.Attempts[0].StartedAt.Equal(started) {
		e.Fatalf("attempts %+v, want the start restored", t.Attempts)
	}
	e.settle(claims[0].Token, success("kept"), task.VerdictRecorded)
	e.Advance(opened.Add(3 * e.Lease).Sub(e.Now()))
	e.reap()
	if t := e.wantStatus(lost, task.Queued); t.Lease != nil {
		e.Fatalf("lease %+v outlived its end", t.Lease)
	}
}

// testReopenTimeout: what was claimed since the store is open again has no grant to keep: its time limit holds.
func testReopenTimeout(e *env) {
	e.reopen()
	id := e.submit(func(t *task.Task) { t.Timeout = time.Second })
	r := e.request(1)
	r.Until = e.Now().Add(e.Lease / 5)
	c := e.claimReq(r)
	started := e.Now()
	most := started.Add(time.Second).Add(task.TimeoutMargin(time.Second))
	if !most.Before(started.Add(e.Lease)) {
		e.Fatalf("a lease of %s is too short to tell", e.Lease)
	}
	e.renew(store.Renewal{Token: c[0].Token, Until: started.Add(e.Lease), StartedAt: started}, task.VerdictRecorded)
	if l := e.task(id).Lease; l == nil || l.Until.After(most) {
		e.Fatalf("lease %+v, want it to end by %s", l, most)
	}
}

func testReopenLocal(e *env) {
	local, remote, ready := e.submit(), e.submit(), e.submit()
	r := e.request(1)
	r.Local = true
	c := e.claimReq(r)
	other := e.claim(1)
	e.reopen()
	if t := e.wantStatus(local, task.Queued); t.Lease != nil || t.Losses != 1 {
		e.Fatalf("a local claim found at open must be requeued as one loss: %+v", t)
	}
	if t := e.task(remote); t.Lease == nil || t.Losses != 0 {
		e.Fatalf("a remote claim found at open must be kept: %+v", t)
	}
	e.renew(store.Renewal{Token: c[0].Token, Until: e.Now().Add(e.Lease)}, task.VerdictStale)
	e.renew(store.Renewal{Token: other[0].Token, Until: e.Now().Add(e.Lease)}, task.VerdictRecorded)
	if got := e.claim(10); len(got) != 2 || got[0].Token.Task != local || got[1].Token.Task != ready ||
		got[0].Token.Epoch <= c[0].Token.Epoch {
		e.Fatalf("claimed %v, want the requeued one first", ids(got))
	}
}

func testReopenKeeps(e *env) {
	f := newFunction("kept", "code")
	_, err := e.Store.PutFunction(e.Context(), f, []byte("code"), store.Key{ID: "f", Digest: [32]byte{1}})
	e.must(err)
	keyed := item(newTask(), "keyed")
	keyed.Key = store.Key{ID: "k", Digest: [32]byte{1}}
	queued := e.submitItem(keyed)
	high := e.submit(func(t *task.Task) { t.Priority = 9 })
	done := e.claimOne()
	e.settleItem(store.Settlement{Token: done.Token, Outcome: success("1"), Log: []byte("out")}, task.VerdictRecorded)
	before := e.task(high)
	e.reopen()
	after, result, err := e.Store.Result(e.Context(), high)
	e.must(err)
	if string(result) != "1" || after.Status != task.Completed || !after.FinishedAt.Equal(before.FinishedAt) ||
		after.Epoch != before.Epoch || after.LastClaim != before.LastClaim {
		e.Fatalf("finished task %+v with %q, want %+v", after, result, before)
	}
	if log, err := e.Store.Log(e.Context(), high, 0); err != nil || string(log) != "out" {
		e.Fatalf("output %q, %v", log, err)
	}
	e.settle(done.Token, success("1"), task.VerdictDuplicate)
	again := item(newTask(), "keyed")
	again.Key = keyed.Key
	if got := e.submitAll(again)[0]; !got.Duplicate || got.ID != queued {
		e.Fatalf("the idempotency key was forgotten: %+v", got)
	}
	if got, err := e.Store.FunctionNamed(e.Context(), "kept"); err != nil || got.ID != f.ID {
		e.Fatalf("function %+v, %v", got, err)
	}
	newer := e.submit()
	if got := e.claim(10); len(got) != 2 || got[0].Token.Task != queued || got[1].Token.Task != newer ||
		string(got[0].Args) != "keyed" {
		e.Fatalf("claimed %v, want the older task first", ids(got))
	}
}

func testCrash(e *env) {
	if e.Crash == nil {
		e.Skip("the store cannot be crashed")
	}
	queued, claimed, done := e.submit(func(t *task.Task) { t.Priority = 1 }), e.submit(), e.submit()
	claims := e.claim(2)
	e.settle(claims[1].Token, success("1"), task.VerdictRecorded)
	e.Store = e.Crash(e.T)
	e.wantStatus(queued, task.Queued)
	if t := e.wantStatus(claimed, task.Queued); t.Lease == nil || t.Lease.Claim != claims[0].Token.Claim {
		e.Fatalf("the claim was lost: %+v", t)
	}
	if t, result, err := e.Store.Result(e.Context(), done); err != nil || t.Status != task.Completed || string(result) != "1" {
		e.Fatalf("%+v, %q, %v", t, result, err)
	}
	e.settle(claims[0].Token, success("2"), task.VerdictRecorded)
}
