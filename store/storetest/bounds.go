package storetest

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// boundTests hold a store against workers that break their word: what they say is
// believed as far as it can be true, and no task goes round for ever.
var boundTests = []test{
	{"HandedBackTooOften", testHandedBackTooOften},
	{"DeniedTooOften", testDeniedTooOften},
	{"StartedIsNoLapse", testStartedIsNoLapse},
	{"ReturnedUnaskedWaits", testReturnedUnasked},
	{"ReturnedOnRequestDoesNotWait", testReturnedOnRequest},
	{"TimeoutIsKept", testTimeoutIsKept},
	{"TimeoutOfAnOffer", testTimeoutOfAnOffer},
	{"SilenceIsNoTimeout", testSilenceIsNoTimeout},
	{"TimeoutLetsAReturningWorkerReport", testTimeoutAfterReopen},
	{"StartIsBounded", testStartIsBounded},
	{"FailureIsBounded", testFailureIsBounded},
}

// runs counts how often a task is started until it has ended, when every attempt ends by end.
func (e *env) runs(id task.ID, end func(store.Claimed)) (n int) {
	e.Helper()
	for ; ; n++ {
		var c store.Claimed
		var over bool
		e.eventually("the task is ready again, or has ended", func() bool {
			if over = e.task(id).Status.Terminal(); over {
				return true
			}
			got := e.claim(1)
			if len(got) == 1 {
				c = got[0]
			}
			return len(got) == 1
		})
		if over {
			return n
		}
		if n > 100 {
			e.Fatalf("the task was started %d times and has not ended", n)
		}
		e.start(c.Token)
		end(c)
	}
}

// wantBoundedRuns checks how a task ended that was only ever handed back.
func (e *env) wantBoundedRuns(id task.ID, runs int) {
	e.Helper()
	t := e.wantFailure(id, task.ClassWorker)
	if want := t.MaxRetries + 1 + task.MaxReturns; runs != want || t.AttemptCount != want {
		e.Fatalf("it ran %d times, the record says %d, want %d", runs, t.AttemptCount, want)
	}
	if !strings.Contains(t.Failure.Message, "handed back") || t.Losses != t.MaxRetries+1 {
		e.Fatalf("losses %d, message %q", t.Losses, t.Failure.Message)
	}
}

func testHandedBackTooOften(e *env) {
	id := e.submit(func(t *task.Task) { t.MaxRetries = 2 })
	ends := []task.End{task.EndReturned, task.EndCancelled}
	n := 0
	e.wantBoundedRuns(id, e.runs(id, func(c store.Claimed) {
		e.settle(c.Token, task.Fail(ends[n%2], "not today"), task.VerdictRecorded)
		n++
	}))
}

func testDeniedTooOften(e *env) {
	id := e.submit()
	e.wantBoundedRuns(id, e.runs(id, func(store.Claimed) {
		_, err := e.Store.Resume(e.Context(), e.Now(), store.Resumption{Worker: "w", Session: randomID(), Until: e.Now().Add(e.Lease)})
		e.must(err)
	}))
}

func testStartedIsNoLapse(e *env) {
	id := e.submit(func(t *task.Task) { t.MaxRetries = 0 })
	c := e.claimOne()
	e.start(c.Token)
	e.settle(c.Token, task.Fail(task.EndLapsed, "never started"), task.VerdictRecorded)
	e.wantFailure(id, task.ClassWorker)
}

func testReturnedUnasked(e *env) {
	id := e.submit()
	for i := 1; i <= 7; i++ {
		c := e.claimOne()
		e.settle(c.Token, task.Outcome{End: task.EndReturned, Unasked: true}, task.VerdictRecorded)
		want := task.ReturnDelay(i)
		if t := e.wantStatus(id, task.Queued); t.Losses != 0 || t.AttemptCount != 0 {
			e.Fatalf("losses %d, attempts %d: an offer that was not started costs nothing", t.Losses, t.AttemptCount)
		}
		if want == 0 {
			continue
		}
		e.Advance(want - 10*time.Millisecond)
		e.reap()
		if got := e.claim(1); len(got) != 0 {
			e.Fatalf("return %d: the task was to be had before %s were over", i, want)
		}
		e.Advance(10 * time.Millisecond)
		e.reap()
	}
	// A start ends the row.
	c := e.claimOne()
	e.start(c.Token)
	e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	e.settle(e.claimOne().Token, task.Outcome{End: task.EndReturned, Unasked: true}, task.VerdictRecorded)
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
}

func testReturnedOnRequest(e *env) {
	id := e.submit()
	for range 50 {
		e.settle(e.claimOne().Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	}
	if t := e.wantStatus(id, task.Queued); t.Losses != 0 || t.Lapses != 0 || t.NotBefore.After(e.Now()) {
		e.Fatalf("losses %d, lapses %d, not before %s", t.Losses, t.Lapses, t.NotBefore)
	}
}

// beatUntil renews a lease every second until a moment.
func (e *env) beatUntil(tok task.Token, until time.Time, started bool) {
	e.Helper()
	for e.Now().Before(until) {
		r := store.Renewal{Token: tok, Until: e.Now().Add(e.Lease)}
		if started {
			r.StartedAt = e.Now()
		}
		_, err := e.Store.Renew(e.Context(), e.Now(), []store.Renewal{r})
		e.must(err)
		e.reap()
		e.Advance(min(time.Second, until.Sub(e.Now())))
	}
}

func testTimeoutIsKept(e *env) {
	const timeout = 20 * time.Second
	id := e.submit(func(t *task.Task) { t.Timeout = timeout })
	c := e.claimOne()
	e.start(c.Token)
	end := e.Now().Add(timeout + task.TimeoutMargin(timeout))
	e.beatUntil(c.Token, end.Add(-time.Millisecond), true)
	e.reap()
	e.wantStatus(id, task.Running)
	e.Advance(2 * time.Millisecond)
	next := e.reap()
	t := e.wantFailure(id, task.ClassDeadline)
	if t.Attempts[0].End != task.EndTimedOut || !strings.Contains(t.Failure.Message, timeout.String()) || t.Failure.Worker != "w" {
		e.Fatalf("attempts %+v, failure %+v, next look %s", t.Attempts, t.Failure, next)
	}
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease)}, task.VerdictStale)
	if got, err := e.Store.Settle(e.Context(), e.Now(), []store.Settlement{{Token: c.Token, Outcome: success("late")}}); err != nil ||
		got[0] == task.VerdictRecorded {
		e.Fatalf("a late report was answered %v, %v", got, err)
	}
}

func testTimeoutOfAnOffer(e *env) {
	const timeout = time.Second
	id := e.submit(func(t *task.Task) { t.Timeout = timeout })
	c := e.claimOne()
	end := e.Now().Add(timeout + task.TimeoutMargin(timeout) + task.StartMargin)
	e.beatUntil(c.Token, end.Add(-time.Millisecond), false)
	e.reap()
	if t := e.wantStatus(id, task.Queued); t.Lease == nil {
		e.Fatalf("the offer lapsed before its time")
	}
	e.beatUntil(c.Token, end.Add(time.Millisecond), false)
	e.reap()
	if t := e.wantStatus(id, task.Queued); t.Lease != nil || t.Lapses != 1 || t.Losses != 0 {
		e.Fatalf("lease %+v, lapses %d, losses %d: want the offer to have lapsed", t.Lease, t.Lapses, t.Losses)
	}
}

// A worker that dies before the time is over is lost, and the task is tried again.
func testSilenceIsNoTimeout(e *env) {
	const timeout = 40 * time.Second
	id := e.submit(func(t *task.Task) { t.Timeout = timeout })
	c := e.claimOne()
	e.start(c.Token)
	e.beatUntil(c.Token, e.Now().Add(timeout-time.Second), true)
	e.Advance(e.Lease + 2*time.Second)
	e.reap()
	if t := e.wantStatus(id, task.Queued); t.Losses != 1 || t.Attempts[0].End != task.EndLost {
		e.Fatalf("losses %d, attempts %+v", t.Losses, t.Attempts)
	}
}

// What a worker finished while the store was away counts, though its time is over by now.
func testTimeoutAfterReopen(e *env) {
	const timeout = time.Second
	id := e.submit(func(t *task.Task) { t.Timeout = timeout })
	c := e.claimOne()
	started := e.Now()
	e.start(c.Token)
	e.Advance(2 * (timeout + task.TimeoutMargin(timeout)))
	e.reopen()
	e.reap()
	until := e.Now().Add(e.Lease)
	got, err := e.Store.Resume(e.Context(), e.Now(), store.Resumption{
		Worker: "w", Session: randomID(), Until: until, Held: []store.Renewal{{Token: c.Token, Until: until, StartedAt: started}},
	})
	e.must(err)
	e.reap()
	if got[0] != task.VerdictRecorded {
		e.Fatalf("answered %v", got)
	}
	e.settle(c.Token, success("1"), task.VerdictRecorded)
	e.wantStatus(id, task.Completed)
}

func testStartIsBounded(e *env) {
	early, late, long := e.submit(), e.submit(), e.submit()
	claims := e.claim(3)
	claimed := e.Now()
	e.Advance(time.Second)
	for i, at := range []time.Time{e.Now().Add(-time.Hour), e.Now().Add(time.Hour)} {
		e.renew(store.Renewal{Token: claims[i].Token, Until: e.Now().Add(e.Lease), StartedAt: at}, task.VerdictRecorded)
	}
	out := success("1")
	out.RunTime = time.Hour
	e.settle(claims[2].Token, out, task.VerdictRecorded)
	for id, want := range map[task.ID]time.Time{early: claimed, late: e.Now(), long: claimed} {
		if t := e.task(id); len(t.Attempts) != 1 || !t.Attempts[0].StartedAt.Equal(want) {
			e.Fatalf("attempts %+v, want a start at %s", t.Attempts, want)
		}
	}
}

func testFailureIsBounded(e *env) {
	long := strings.Repeat("x\xff", 1<<20)
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	e.settle(c.Token, task.Outcome{End: task.EndRaised, Failure: &task.Failure{
		Type: long, Message: long, Traceback: long, Pickle: []byte(long), ForeignPickle: []byte(long),
	}}, task.VerdictRecorded)
	e.reopenIfAble()
	f := e.wantFailure(id, task.ClassFunction).Failure
	for name, text := range map[string]struct {
		got   string
		limit int
	}{"type": {f.Type, task.MaxTypeText}, "message": {f.Message, task.MaxErrorText}, "traceback": {f.Traceback, task.MaxErrorText}} {
		if len(text.got) > text.limit || len(text.got) < text.limit/4 || !utf8.ValidString(text.got) {
			e.Fatalf("the %s has %d bytes, valid UTF-8 %t; want up to %d", name, len(text.got), utf8.ValidString(text.got), text.limit)
		}
	}
	if len(f.Pickle) != 0 || len(f.ForeignPickle) != 0 {
		e.Fatalf("pickles of %d and %d bytes were kept", len(f.Pickle), len(f.ForeignPickle))
	}
	id = e.submit()
	out := success("1")
	out.Repr = long
	e.settle(e.claimOne().Token, out, task.VerdictRecorded)
	if repr := e.wantStatus(id, task.Completed).ResultRepr; len(repr) > task.MaxRepr || !utf8.ValidString(repr) || repr == "" {
		e.Fatalf("a repr of %d bytes was kept, want up to %d", len(repr), task.MaxRepr)
	}
}
