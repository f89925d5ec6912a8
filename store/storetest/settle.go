package storetest

import (
	"bytes"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var settleTests = []test{
	{"Success", testSettleSuccess},
	{"EmptyResult", testSettleEmpty},
	{"WithoutAStart", testSettleUnstarted},
	{"SameReportAgain", testSettleDuplicate},
	{"FirstReportWins", testSettleFirstWins},
	{"StaleTokens", testSettleStale},
	{"TerminalEnds", testSettleTerminalEnds},
	{"FunctionRetries", testSettleFunctionRetries},
	{"NoRetry", testSettleNoRetry},
	{"RetryAfter", testSettleRetryAfter},
	{"FourthLossFails", testSettleLosses},
	{"LossBackoff", testSettleLossBackoff},
	{"LapsesAreUncountedUpToFive", testSettleLapses},
	{"ReturnedIsUncounted", testSettleReturned},
	{"OnlyForItsSession", testSettleSession},
	{"BatchInOrder", testSettleBatch},
	{"FailureIsKept", testSettleFailure},
	{"Logs", testSettleLogs},
}

// testSettleSession: a session that lost its worker cannot end what the worker took to
// another one, started or not.
func testSettleSession(e *env) {
	moved, offered := e.submit(), e.submit()
	claims := e.claim(2)
	e.start(claims[0].Token)
	before := claims[0].Task.Lease.Session
	lost := task.Fail(task.EndLost, "gone")
	after := randomID()
	until := e.Now().Add(e.Lease)
	held := []store.Renewal{{Token: claims[0].Token, Until: until, StartedAt: e.Now()}, {Token: claims[1].Token, Until: until}}
	if got, err := e.Store.Resume(e.Context(), e.Now(), store.Resumption{Worker: "w", Session: after, Until: until, Held: held}); err != nil ||
		got[0] != task.VerdictRecorded || got[1] != task.VerdictRecorded {
		e.Fatalf("resume answered %v, %v", got, err)
	}
	e.settleItem(store.Settlement{Token: claims[0].Token, Outcome: lost, Session: before, Log: []byte("x")}, task.VerdictStale)
	e.settleItem(store.Settlement{Token: claims[1].Token, Outcome: task.Fail(task.EndLapsed, "gone"), Session: before}, task.VerdictStale)
	if t := e.wantStatus(moved, task.Running); t.Losses != 0 || t.Lease == nil || t.Lease.Session != after {
		e.Fatalf("a former session changed the record: %+v", t)
	}
	if t := e.wantStatus(offered, task.Queued); t.Lapses != 0 || t.Lease == nil {
		e.Fatalf("a former session changed the record: %+v", t)
	}
	e.settleItem(store.Settlement{Token: claims[1].Token, Outcome: lost, Session: after}, task.VerdictRecorded)
	e.settle(claims[0].Token, success("1"), task.VerdictRecorded)
	e.wantStatus(moved, task.Completed)
}

func testSettleSuccess(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	e.settle(c.Token, task.Outcome{End: task.EndSucceeded, Result: []byte("[42]"), Encoding: task.EncodingJSON, Repr: "r"},
		task.VerdictRecorded)
	got, result, err := e.Store.Result(e.Context(), id)
	e.must(err)
	if got.Status != task.Completed || string(result) != "[42]" || got.ResultSize != 4 || got.ResultEncoding != task.EncodingJSON ||
		got.ResultRepr != "r" || got.Lease != nil || got.FinishedAt.IsZero() || got.Failure != nil || got.LastClaim != c.Token.Claim {
		e.Fatalf("recorded %+v with %q", got, result)
	}
	if len(got.Attempts) != 1 || got.Attempts[0].End != task.EndSucceeded || got.Attempts[0].FinishedAt.IsZero() {
		e.Fatalf("attempts %+v", got.Attempts)
	}
	if more := e.claim(1); len(more) != 0 {
		e.Fatal("a finished task was claimed")
	}
}

func testSettleEmpty(e *env) {
	id := e.submit()
	e.settle(e.claimOne().Token, task.Outcome{End: task.EndSucceeded}, task.VerdictRecorded)
	got, result, err := e.Store.Result(e.Context(), id)
	e.must(err)
	if got.Status != task.Completed || len(result) != 0 || result == nil {
		e.Fatalf("%s with result %#v, want an empty one", got.Status, result)
	}
}

func testSettleUnstarted(e *env) {
	id := e.submit()
	c := e.claimOne()
	out := success("1")
	out.RunTime = 50 * time.Millisecond
	e.Advance(60 * time.Millisecond)
	e.settle(c.Token, out, task.VerdictRecorded)
	t := e.wantStatus(id, task.Completed)
	if t.AttemptCount != 1 || len(t.Attempts) != 1 {
		e.Fatalf("a report proves its start; attempts %+v", t.Attempts)
	}
	if ran := t.Attempts[0].FinishedAt.Sub(t.Attempts[0].StartedAt); ran != out.RunTime {
		e.Fatalf("run time %s, want %s", ran, out.RunTime)
	}
}

func testSettleDuplicate(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.settle(c.Token, success("1"), task.VerdictRecorded)
	first := e.task(id)
	e.Advance(10 * time.Millisecond)
	e.settle(c.Token, success("1"), task.VerdictDuplicate)
	if again := e.task(id); !again.FinishedAt.Equal(first.FinishedAt) || again.Epoch != first.Epoch {
		e.Fatal("a repeated report changed the record")
	}
	// The same holds for a report that sent the task back.
	e.submit()
	c = e.claimOne()
	e.settle(c.Token, task.Fail(task.EndLost, "gone"), task.VerdictRecorded)
	e.settle(c.Token, task.Fail(task.EndLost, "gone"), task.VerdictDuplicate)
	if t := e.task(c.Token.Task); t.Losses != 1 {
		e.Fatalf("%d losses after one loss reported twice", t.Losses)
	}
}

func testSettleFirstWins(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.settle(c.Token, success("first"), task.VerdictRecorded)
	e.settle(c.Token, success("second"), task.VerdictDuplicate)
	e.settle(c.Token, task.Fail(task.EndRaised, "third"), task.VerdictDuplicate)
	if t, result, err := e.Store.Result(e.Context(), id); err != nil || t.Status != task.Completed || string(result) != "first" {
		e.Fatalf("%v, %q, %v", t, result, err)
	}
}

func testSettleStale(e *env) {
	unknown := task.Token{Task: newID(), Epoch: 1, Claim: randomID(), Attempt: 1}
	e.settle(unknown, success("1"), task.VerdictStale)
	e.renew(store.Renewal{Token: unknown, Until: e.Now().Add(time.Hour)}, task.VerdictStale)

	id := e.submit()
	old := e.claimOne().Token
	e.settle(old, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	now := e.claimOne().Token
	stale := []task.Token{
		{Task: id, Epoch: now.Epoch, Claim: old.Claim, Attempt: 1},
		{Task: id, Epoch: old.Epoch, Claim: now.Claim, Attempt: 1},
		{Task: id, Epoch: now.Epoch + 1, Claim: now.Claim, Attempt: 1},
		{Task: id, Epoch: now.Epoch, Claim: randomID(), Attempt: 1},
		{Task: id, Epoch: now.Epoch, Attempt: 1},
	}
	for _, tok := range append(stale, old) {
		e.renew(store.Renewal{Token: tok, Until: e.Now().Add(time.Hour), StartedAt: e.Now(), Log: []byte("x")}, task.VerdictStale)
	}
	for _, tok := range stale[1:] {
		e.settle(tok, success("stale"), task.VerdictStale)
	}
	if t := e.wantStatus(id, task.Queued); t.Epoch != now.Epoch || t.AttemptCount != 0 || t.Lease == nil {
		e.Fatalf("old tokens changed the record: %+v", t)
	}
	e.settle(now, success("1"), task.VerdictRecorded)
	for _, tok := range stale[3:] {
		e.settle(tok, success("late"), task.VerdictStale)
		e.renew(store.Renewal{Token: tok, Until: e.Now().Add(time.Hour)}, task.VerdictStale)
	}
	if _, result, err := e.Store.Result(e.Context(), id); err != nil || string(result) != "1" {
		e.Fatalf("result %q, %v", result, err)
	}
}

func testSettleTerminalEnds(e *env) {
	for end, class := range map[task.End]task.Class{
		task.EndRaised: task.ClassFunction, task.EndTimedOut: task.ClassDeadline, task.EndExhausted: task.ClassResource,
		task.EndUnreadable: task.ClassSerialization,
	} {
		id := e.submit()
		c := e.claimOne()
		e.start(c.Token)
		e.settle(c.Token, task.Fail(end, "because"), task.VerdictRecorded)
		t := e.wantFailure(id, class)
		if t.Failure.Message != "because" || t.Failure.Worker != "w" || t.Attempts[0].End != end || t.Attempts[0].Reason != "because" {
			e.Errorf("%s: failure %+v, attempts %+v", end, t.Failure, t.Attempts)
		}
		_, result, err := e.Store.Result(e.Context(), id)
		if e.must(err); result != nil {
			e.Errorf("%s: a failed task has the result %q", end, result)
		}
	}
}

func testSettleFunctionRetries(e *env) {
	id := e.submit(func(t *task.Task) { t.FunctionRetries = 2 })
	for i := range 3 {
		c := e.claimOne()
		e.start(c.Token)
		e.settle(c.Token, task.Fail(task.EndRaised, "no"), task.VerdictRecorded)
		if i < 2 {
			e.wantStatus(id, task.Queued)
		}
	}
	if t := e.wantFailure(id, task.ClassFunction); t.Failures != 3 || t.AttemptCount != 3 || t.Losses != 0 {
		e.Fatalf("failures %d, attempts %d, losses %d; want 3, 3, 0", t.Failures, t.AttemptCount, t.Losses)
	}
}

func testSettleNoRetry(e *env) {
	id := e.submit(func(t *task.Task) { t.FunctionRetries = 5 })
	c := e.claimOne()
	e.start(c.Token)
	out := task.Fail(task.EndRaised, "never again")
	out.NoRetry = true
	e.settle(c.Token, out, task.VerdictRecorded)
	if t := e.wantFailure(id, task.ClassFunction); t.Failures != 1 || t.AttemptCount != 1 || t.Failure.Message != "never again" {
		e.Fatalf("failures %d, attempts %d, %+v; want 1, 1", t.Failures, t.AttemptCount, t.Failure)
	}
	e.settle(c.Token, out, task.VerdictDuplicate)
}

func testSettleRetryAfter(e *env) {
	const day = 24 * time.Hour
	id := e.submit(func(t *task.Task) { t.FunctionRetries = 2 })
	for _, after := range []time.Duration{5 * time.Minute, day} {
		c := e.claimOne()
		e.start(c.Token)
		out := task.Fail(task.EndRaised, "busy")
		out.RetryAfter = after
		e.settleItem(store.Settlement{Token: c.Token, Outcome: out, Jitter: 0.5}, task.VerdictRecorded)
		e.wantStatus(id, task.Queued)
		e.Advance(after - time.Second)
		if got := e.claim(1); len(got) != 0 {
			e.Fatalf("claimed before %s were over", after)
		}
		e.Advance(time.Second + time.Millisecond)
	}
	c := e.claimOne()
	if c.Token.Task != id || c.Token.Attempt != 3 || c.Task.RetriesLeft() != 0 {
		e.Fatalf("claimed %+v with %d retries left", c.Token, c.Task.RetriesLeft())
	}
}

func testSettleLosses(e *env) {
	id := e.submit()
	for i := range 4 {
		c := e.claimOne()
		e.start(c.Token)
		e.settle(c.Token, task.Fail(task.EndLost, "segfault"), task.VerdictRecorded)
		if i < 3 {
			e.wantStatus(id, task.Queued)
		}
	}
	t := e.wantFailure(id, task.ClassWorker)
	if t.Losses != 4 || t.AttemptCount != 4 || len(t.Attempts) != 4 || !strings.Contains(t.Failure.Message, "segfault") {
		e.Fatalf("losses %d, attempts %d, message %q", t.Losses, t.AttemptCount, t.Failure.Message)
	}
}

func testSettleLossBackoff(e *env) {
	id := e.submit()
	lose := func() {
		c := e.claimOne()
		e.settleItem(store.Settlement{Token: c.Token, Outcome: task.Fail(task.EndLost, "gone"), Jitter: 0.5}, task.VerdictRecorded)
	}
	lose()
	// The first loss is requeued at once, the second backs off.
	lose()
	if got := e.claim(1); len(got) != 0 {
		e.Fatal("a second loss does not back off")
	}
	e.Advance(task.RetryDelay(1, 0.5) + time.Millisecond)
	if c := e.claimOne(); c.Token.Task != id {
		e.Fatal("claimed another task")
	}
}

func testSettleLapses(e *env) {
	id := e.submit()
	for range task.MaxLapses {
		e.settle(e.claimOne().Token, task.Outcome{End: task.EndLapsed}, task.VerdictRecorded)
	}
	if t := e.wantStatus(id, task.Queued); t.Losses != 0 || t.Lapses != task.MaxLapses || t.AttemptCount != 0 {
		e.Fatalf("losses %d, lapses %d, attempts %d", t.Losses, t.Lapses, t.AttemptCount)
	}
	e.settle(e.claimOne().Token, task.Outcome{End: task.EndLapsed}, task.VerdictRecorded)
	if t := e.wantStatus(id, task.Queued); t.Losses != 1 || t.Lapses != 0 {
		e.Fatalf("losses %d, lapses %d after one lapse too many", t.Losses, t.Lapses)
	}
	e.settle(e.claimOne().Token, task.Outcome{End: task.EndLapsed}, task.VerdictRecorded)
	e.start(e.claimOne().Token)
	if t := e.wantStatus(id, task.Running); t.Lapses != 0 {
		e.Fatalf("%d lapses after a start: only those in a row count", t.Lapses)
	}
}

func testSettleReturned(e *env) {
	id := e.submit()
	for range task.MaxReturns {
		c := e.claimOne()
		e.start(c.Token)
		e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	}
	if t := e.wantStatus(id, task.Queued); t.Losses != 0 || t.Failures != 0 || t.AttemptCount != task.MaxReturns {
		e.Fatalf("losses %d, failures %d, attempts %d", t.Losses, t.Failures, t.AttemptCount)
	}
}

func testSettleBatch(e *env) {
	a, b := e.submit(), e.submit()
	claims := e.claim(2)
	unknown := task.Token{Task: newID(), Epoch: 1, Claim: randomID()}
	got, err := e.Store.Settle(e.Context(), e.Now(), []store.Settlement{
		{Token: claims[0].Token, Outcome: success("a")},
		{Token: unknown, Outcome: success("x")},
		{Token: claims[0].Token, Outcome: success("again")},
		{Token: claims[1].Token, Outcome: task.Fail(task.EndRaised, "b")},
	})
	e.must(err)
	want := []task.Verdict{task.VerdictRecorded, task.VerdictStale, task.VerdictDuplicate, task.VerdictRecorded}
	for i := range want {
		if got[i] != want[i] {
			e.Fatalf("answered %v, want %v", got, want)
		}
	}
	e.wantStatus(a, task.Completed)
	e.wantStatus(b, task.Failed)
}

func testSettleFailure(e *env) {
	id := e.submit()
	c := e.claimOne()
	e.start(c.Token)
	in := &task.Failure{
		Class: task.ClassFunction, Type: "ValueError", Message: "bad value: ü", Traceback: "Traceback ...\nValueError",
		Pickle: []byte{0x80, 4}, ForeignPickle: []byte{0x80, 5},
	}
	e.settle(c.Token, task.Outcome{End: task.EndRaised, Failure: in}, task.VerdictRecorded)
	e.reopenIfAble()
	f := e.wantFailure(id, task.ClassFunction).Failure
	if f.Type != in.Type || f.Message != in.Message || f.Traceback != in.Traceback || !bytes.Equal(f.Pickle, in.Pickle) ||
		!bytes.Equal(f.ForeignPickle, in.ForeignPickle) || f.Worker != "w" {
		e.Fatalf("kept %+v, want %+v", f, in)
	}
}

// reopenIfAble reopens the store where the harness can.
func (e *env) reopenIfAble() {
	e.Helper()
	if e.Reopen != nil {
		e.reopen()
	}
}

func testSettleLogs(e *env) {
	id := e.submit()
	log := func(attempt int) string {
		e.Helper()
		b, err := e.Store.Log(e.Context(), id, attempt)
		e.must(err)
		return string(b)
	}
	if got := log(0); got != "" {
		e.Fatalf("a task without attempts has the output %q", got)
	}
	c := e.claimOne()
	e.start(c.Token)
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease), Log: []byte("one ")}, task.VerdictRecorded)
	e.renew(store.Renewal{Token: c.Token, Until: e.Now().Add(e.Lease), Log: []byte("two ")}, task.VerdictRecorded)
	if got := log(0); got != "one two " || log(1) != got {
		e.Fatalf("output %q while it runs", got)
	}
	e.settleItem(store.Settlement{Token: c.Token, Outcome: task.Fail(task.EndLost, "x"), Log: []byte("three")}, task.VerdictRecorded)
	if got := log(1); got != "one two three" {
		e.Fatalf("output %q of the attempt that ended", got)
	}
	c = e.claimOne()
	e.start(c.Token)
	big := bytes.Repeat([]byte("0123456789"), task.MaxLog/10+10)
	e.settleItem(store.Settlement{Token: c.Token, Outcome: success("1"), Log: append(big, "end"...)}, task.VerdictRecorded)
	e.reopenIfAble()
	got := log(0)
	if len(got) != task.MaxLog || !strings.HasSuffix(got, "789end") {
		e.Fatalf("%d bytes kept, ending in %q; want the last %d", len(got), got[max(0, len(got)-8):], task.MaxLog)
	}
	if log(2) != got || log(1) != "one two three" || log(3) != "" {
		e.Fatal("attempts are mixed up")
	}
	_, err := e.Store.Log(e.Context(), newID(), 0)
	e.wantCode(err, task.CodeNotFound)
}
