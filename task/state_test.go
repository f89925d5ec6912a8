package task

import (
	"strings"
	"testing"
	"time"
)

var t0 = time.Unix(1_000_000, 0).UTC()

func submitted(change func(*Task)) *Task {
	t := &Task{ID: ID{1}, Spec: Spec{MaxRetries: DefaultMaxRetries}}
	if change != nil {
		change(t)
	}
	if err := t.Submit(t0, 1); err != nil {
		panic(err)
	}
	return t
}

// claim offers the task under a claim id of its own.
func claim(t *testing.T, tk *Task, now time.Time) Token {
	t.Helper()
	tok, err := tk.Claim(now, Lease{Claim: ID{9, byte(tk.Epoch)}, Worker: "w", Until: now.Add(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func start(t *testing.T, tk *Task, tok Token, now time.Time) {
	t.Helper()
	if v := tk.Renew(now, tok, now.Add(10*time.Second), now); v != VerdictRecorded {
		t.Fatalf("start: %s", v)
	}
}

// Every move from every phase is either in the table and works, or changes nothing.
func TestMovesFollowTheTable(t *testing.T) {
	in := map[phase]func() (*Task, Token){
		phaseReady: func() (*Task, Token) { return submitted(nil), Token{Task: ID{1}, Epoch: 1, Claim: ID{9}} },
		phaseOffered: func() (*Task, Token) {
			tk := submitted(nil)
			return tk, claim(t, tk, t0)
		},
		phaseRunning: func() (*Task, Token) {
			tk := submitted(nil)
			tok := claim(t, tk, t0)
			start(t, tk, tok, t0)
			return tk, tok
		},
		phaseEnded: func() (*Task, Token) {
			tk := submitted(nil)
			tok := claim(t, tk, t0)
			tk.Settle(t0, tok, Outcome{End: EndSucceeded}, 0)
			return tk, Token{Task: ID{1}, Epoch: tok.Epoch, Claim: ID{8}}
		},
	}
	moves := map[Move]func(*Task, Token) bool{
		MoveSubmit: func(tk *Task, _ Token) bool { return tk.Submit(t0, 2) == nil },
		MoveClaim:  func(tk *Task, _ Token) bool { _, err := tk.Claim(t0, Lease{Claim: ID{7}}); return err == nil },
		MoveStart:  func(tk *Task, tok Token) bool { return tk.Renew(t0, tok, t0, t0) == VerdictRecorded },
		MoveComplete: func(tk *Task, tok Token) bool {
			return tk.Settle(t0, tok, Outcome{End: EndSucceeded}, 0) == VerdictRecorded
		},
		MoveFail: func(tk *Task, tok Token) bool {
			return tk.Settle(t0, tok, Outcome{End: EndRaised}, 0) == VerdictRecorded
		},
		MoveRequeue: func(tk *Task, tok Token) bool {
			return tk.Settle(t0, tok, Outcome{End: EndReturned}, 0) == VerdictRecorded
		},
		MoveGiveUp: func(tk *Task, tok Token) bool {
			tk.MaxRetries = 0
			return tk.Settle(t0, tok, Outcome{End: EndLost}, 0) == VerdictRecorded
		},
		MoveExpire: func(tk *Task, _ Token) bool { tk.Deadline = t0; return tk.Expire(t0) },
		MoveCancel: func(tk *Task, _ Token) bool { return tk.Cancel(t0) },
	}
	for from, build := range in {
		for move, do := range moves {
			tk, tok := build()
			if got := tk.phase(); got != from {
				t.Fatalf("the %s task is %s", from, got)
			}
			before := *tk.Clone()
			to, ok := legal[from][move]
			if did := do(tk, tok); did != ok {
				t.Errorf("%s from %s: done is %t, the table says %t", move, from, did, ok)
			}
			if ok && tk.phase() != to {
				t.Errorf("%s from %s leads to %s, the table says %s", move, from, tk.phase(), to)
			}
			if !ok && (tk.Status != before.Status || tk.Epoch != before.Epoch) {
				t.Errorf("%s from %s is not legal and changed %s/%d to %s/%d", move, from, before.Status, before.Epoch, tk.Status, tk.Epoch)
			}
		}
	}
}

func TestOfferedReadsQueuedUntilItStarts(t *testing.T) {
	tk := submitted(nil)
	tok := claim(t, tk, t0)
	if tk.Status != Queued || tk.AttemptCount != 0 {
		t.Fatalf("offered: %s with %d attempts", tk.Status, tk.AttemptCount)
	}
	start(t, tk, tok, t0.Add(time.Second))
	start(t, tk, tok, t0.Add(2*time.Second))
	if tk.Status != Running || tk.AttemptCount != 1 || !tk.Attempts[0].StartedAt.Equal(t0.Add(time.Second)) {
		t.Fatalf("started twice: %s, %+v", tk.Status, tk.Attempts)
	}
}

func TestRenewNeverShortens(t *testing.T) {
	tk := submitted(nil)
	tok := claim(t, tk, t0)
	tk.Renew(t0, tok, t0.Add(time.Minute), time.Time{})
	tk.Renew(t0, tok, t0.Add(time.Second), time.Time{})
	if want := t0.Add(time.Minute); !tk.Lease.Until.Equal(want) {
		t.Fatalf("the lease ends at %s, want %s", tk.Lease.Until, want)
	}
}

func TestTheFence(t *testing.T) {
	tk := submitted(nil)
	old := claim(t, tk, t0)
	tk.Settle(t0, old, Fail(EndReturned, ""), 0)
	newer := claim(t, tk, t0)
	if newer.Epoch <= old.Epoch {
		t.Fatalf("epoch %d after %d", newer.Epoch, old.Epoch)
	}
	if v := tk.Renew(t0, old, t0.Add(time.Hour), t0); v != VerdictStale || tk.Status != Queued {
		t.Errorf("an old token renews: %s, %s", v, tk.Status)
	}
	for name, tok := range map[string]Token{
		"old epoch":     old,
		"other claim":   {Task: newer.Task, Epoch: newer.Epoch, Claim: ID{5}},
		"other task":    {Task: ID{2}, Epoch: newer.Epoch, Claim: newer.Claim},
		"rolled back":   {Task: newer.Task, Epoch: newer.Epoch - 1, Claim: newer.Claim},
		"the zero one":  {},
		"without claim": {Task: newer.Task, Epoch: newer.Epoch},
	} {
		if v := tk.Settle(t0, tok, Outcome{End: EndSucceeded}, 0); v == VerdictRecorded || tk.Status.Terminal() {
			t.Errorf("%s: settled as %s, the task is %s", name, v, tk.Status)
		}
	}
	if v := tk.Settle(t0, newer, Outcome{End: EndSucceeded}, 0); v != VerdictRecorded {
		t.Fatalf("the claim in force: %s", v)
	}
	// The same report again is answered like the first time, and nothing changes.
	if v := tk.Settle(t0.Add(time.Hour), newer, Fail(EndRaised, "later"), 0); v != VerdictDuplicate || tk.Status != Completed || !tk.FinishedAt.Equal(t0) {
		t.Errorf("the report sent twice: %s, %s at %s", v, tk.Status, tk.FinishedAt)
	}
}

// The fourth loss fails the task; the first is requeued at once, later ones back off.
func TestLossesAreBudgeted(t *testing.T) {
	tk := submitted(nil)
	now := t0
	for loss := 1; loss <= 4; loss++ {
		tok := claim(t, tk, now)
		start(t, tk, tok, now)
		tk.Settle(now, tok, Fail(EndLost, "killed by signal 9"), 0.5)
		switch {
		case loss == 1 && (tk.Status != Queued || tk.NotBefore.After(now)):
			t.Fatalf("after the first loss: %s, not before %s", tk.Status, tk.NotBefore)
		case loss > 1 && loss < 4 && !tk.NotBefore.After(now):
			t.Fatalf("loss %d does not back off", loss)
		case loss < 4 && tk.Status != Queued:
			t.Fatalf("after loss %d: %s", loss, tk.Status)
		case loss < 4:
			now = now.Add(time.Minute)
		}
	}
	if tk.Status != Failed || tk.Failure.Class != ClassWorker || tk.AttemptCount != 4 {
		t.Fatalf("after four losses: %s, %+v, %d attempts", tk.Status, tk.Failure, tk.AttemptCount)
	}
	for _, want := range []string{"4 times", "max_retries is 3", "killed by signal 9"} {
		if !strings.Contains(tk.Failure.Message, want) {
			t.Errorf("the message %q does not say %q", tk.Failure.Message, want)
		}
	}
}

func TestRaisedSpendsItsOwnBudget(t *testing.T) {
	tk := submitted(func(t *Task) { t.FunctionRetries = 1 })
	tok := claim(t, tk, t0)
	tk.Settle(t0, tok, Fail(EndRaised, "boom"), 0)
	if tk.Status != Queued || tk.Failures != 1 || tk.Losses != 0 {
		t.Fatalf("after the first raise: %s, %d failures, %d losses", tk.Status, tk.Failures, tk.Losses)
	}
	tok = claim(t, tk, t0)
	tk.Settle(t0, tok, Outcome{End: EndRaised, Failure: &Failure{Type: "ValueError", Message: "boom"}}, 0)
	if tk.Status != Failed || tk.Failure.Class != ClassFunction || tk.Failure.Worker != "w" {
		t.Fatalf("after the second: %s, %+v", tk.Status, tk.Failure)
	}
	if a := tk.Attempts[1]; a.End != EndRaised || a.Reason != "ValueError: boom" {
		t.Fatalf("history: %+v", a)
	}
}

// The function's word on its next attempt goes before the delay that grows, and neither adds to
// function_retries nor leaves some unspent.
func TestRaisedWithAWordOnTheRetry(t *testing.T) {
	never := Fail(EndRaised, "it makes no sense")
	never.NoRetry, never.RetryAfter = true, time.Minute
	tk := submitted(func(t *Task) { t.FunctionRetries = 5 })
	tk.Settle(t0, claim(t, tk, t0), never, 0.5)
	if tk.Status != Failed || tk.Failure.Class != ClassFunction || tk.Failures != 1 || tk.RetriesLeft() != 4 {
		t.Fatalf("no_retry: %s after %d failures, %+v", tk.Status, tk.Failures, tk.Failure)
	}
	for after, want := range map[time.Duration]time.Duration{
		time.Millisecond: time.Millisecond, time.Hour: time.Hour, MaxRetryAfter: MaxRetryAfter, MaxRetryAfter + 1: MaxRetryAfter,
		0: RetryDelay(1, 0.5), -time.Hour: RetryDelay(1, 0.5),
	} {
		out := Fail(EndRaised, "busy")
		out.RetryAfter = after
		tk := submitted(func(t *Task) { t.FunctionRetries = 1 })
		tk.Settle(t0, claim(t, tk, t0), out, 0.5)
		if tk.Status != Queued || !tk.NotBefore.Equal(t0.Add(want)) || tk.RetriesLeft() != 0 {
			t.Errorf("retry_after %s: %s until %s, want %s", after, tk.Status, tk.NotBefore.Sub(t0), want)
		}
		tk.Settle(tk.NotBefore, claim(t, tk, tk.NotBefore), out, 0.5)
		if tk.Status != Failed || tk.RetriesLeft() != 0 {
			t.Errorf("retry_after %s with no retry left: %s", after, tk.Status)
		}
	}
	lost := Fail(EndLost, "gone")
	lost.NoRetry = true
	tk = submitted(func(t *Task) { t.MaxRetries = 1 })
	if tk.Settle(t0, claim(t, tk, t0), lost, 0); tk.Status != Queued {
		t.Errorf("a lost attempt with no_retry: %s", tk.Status)
	}
}

// Five offers in a row may lapse; the sixth counts as a loss.
func TestLapsesAreBounded(t *testing.T) {
	tk := submitted(nil)
	for range MaxLapses {
		tk.Settle(t0, claim(t, tk, t0), Fail(EndLapsed, ""), 0)
	}
	if tk.Losses != 0 || tk.Lapses != MaxLapses {
		t.Fatalf("%d losses, %d lapses after %d lapsed offers", tk.Losses, tk.Lapses, MaxLapses)
	}
	tk.Settle(t0, claim(t, tk, t0), Fail(EndLapsed, ""), 0)
	if tk.Losses != 1 || tk.Lapses != 0 {
		t.Fatalf("%d losses, %d lapses after one more", tk.Losses, tk.Lapses)
	}
	tok := claim(t, tk, t0)
	start(t, tk, tok, t0)
	if tk.Lapses != 0 {
		t.Fatal("a start does not end the row of lapses")
	}
}

func TestEndsThatAreNotRetried(t *testing.T) {
	for end, class := range map[End]Class{
		EndTimedOut: ClassDeadline, EndExhausted: ClassResource, EndUnreadable: ClassSerialization,
	} {
		tk := submitted(func(t *Task) { t.FunctionRetries = 5 })
		tk.Settle(t0, claim(t, tk, t0), Fail(end, "why"), 0)
		if tk.Status != Failed || tk.Failure.Class != class || tk.Failure.Message != "why" {
			t.Errorf("%s: %s, %+v", end, tk.Status, tk.Failure)
		}
	}
}

func TestDeadline(t *testing.T) {
	tk := submitted(func(t *Task) { t.Deadline = t0.Add(time.Second) })
	if tk.Expire(t0.Add(time.Second - 1)) {
		t.Fatal("the deadline fired early")
	}
	tok := claim(t, tk, t0)
	start(t, tk, tok, t0)
	if !tk.Expire(t0.Add(time.Second)) || tk.Status != Failed || tk.Failure.Class != ClassDeadline {
		t.Fatalf("at the deadline: %s, %+v", tk.Status, tk.Failure)
	}
	if v := tk.Settle(t0, tok, Outcome{End: EndSucceeded}, 0); v != VerdictStale {
		t.Fatalf("a result after the deadline: %s", v)
	}
	if none := submitted(nil); none.Expire(t0.Add(1000 * time.Hour)) {
		t.Fatal("a task without a deadline expired")
	}
}

func TestCancel(t *testing.T) {
	tk := submitted(nil)
	tok := claim(t, tk, t0)
	start(t, tk, tok, t0)
	if !tk.Cancel(t0) || tk.Status != Cancelled || tk.Failure.Class != ClassCancelled {
		t.Fatalf("cancel: %s, %+v", tk.Status, tk.Failure)
	}
	if v := tk.Settle(t0, tok, Outcome{End: EndSucceeded}, 0); v != VerdictStale || tk.Status != Cancelled {
		t.Fatalf("a result after the cancel: %s, %s", v, tk.Status)
	}
	if tk.Cancel(t0) {
		t.Fatal("a cancelled task was cancelled again")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	tk := submitted(func(t *Task) { t.FunctionRetries = 100 })
	for range 40 {
		tk.Settle(t0, claim(t, tk, t0), Fail(EndRaised, "x"), 0)
	}
	if len(tk.Attempts) != MaxAttemptsKept || tk.AttemptCount != 40 || tk.Attempts[MaxAttemptsKept-1].Number != 40 {
		t.Fatalf("%d kept of %d, the last is number %d", len(tk.Attempts), tk.AttemptCount, tk.Attempts[len(tk.Attempts)-1].Number)
	}
}

func TestRetryDelay(t *testing.T) {
	for n, limit := range map[int]time.Duration{
		1: 500 * time.Millisecond, 2: time.Second, 3: 2 * time.Second, 6: 16 * time.Second, 7: 30 * time.Second, 1000: 30 * time.Second,
	} {
		if got := RetryDelay(n, 0); got != 0 {
			t.Errorf("retry %d without jitter waits %s", n, got)
		}
		if got := RetryDelay(n, 0.999999); got > limit || got < limit*99/100 {
			t.Errorf("retry %d waits %s at most, want %s", n, got, limit)
		}
	}
}

func TestFailureIsBounded(t *testing.T) {
	f := &Failure{Message: strings.Repeat("ä", MaxErrorText), Traceback: "first\n" + strings.Repeat("ö", MaxErrorText) + "\nlast"}
	f.Bound()
	if len(f.Message) > MaxErrorText || len(f.Traceback) > MaxErrorText {
		t.Fatalf("message %d, traceback %d bytes", len(f.Message), len(f.Traceback))
	}
	if !strings.HasSuffix(f.Traceback, "last") || strings.ContainsRune(f.Traceback, '�') || strings.ContainsRune(f.Message, '�') {
		t.Fatal("a character was cut in two, or the end of the traceback was lost")
	}
}

func TestCloneIsDeep(t *testing.T) {
	tk := submitted(nil)
	start(t, tk, claim(t, tk, t0), t0)
	c := tk.Clone()
	c.Lease.Worker, c.Attempts[0].Worker = "other", "other"
	if tk.Lease.Worker != "w" || tk.Attempts[0].Worker != "w" {
		t.Fatal("a clone shares memory with its original")
	}
}

func TestParseID(t *testing.T) {
	const text = "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"
	id, err := ParseID(strings.ToUpper(text))
	if err != nil || id.String() != text {
		t.Fatalf("%s, %v", id, err)
	}
	for _, bad := range []string{"", "x", text[:35], text + "0", "{" + text[1:35] + "}", strings.ReplaceAll(text, "-", ""), "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c1g"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q is read as an id", bad)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err == nil && !strings.EqualFold(id.String(), s) {
			t.Fatalf("%q is read as %s", s, id)
		}
	})
}

func TestErrorCodes(t *testing.T) {
	cause := Errorf(CodeNotFound, "get task", "there is no task")
	wrapped := Errorf(CodeUnavailable, "submit", "the store failed: %w", cause)
	if CodeOf(wrapped) != CodeUnavailable || wrapped.Unwrap() == nil {
		t.Fatalf("%v has code %s", wrapped, CodeOf(wrapped))
	}
	if got, want := wrapped.Error(), "submit: the store failed: get task: there is no task"; got != want {
		t.Fatalf("text %q, want %q", got, want)
	}
}

// Many exceptions have no text. Theirs is not the name of an end, which means nothing to whoever reads it.
func TestRaisedWithoutAMessage(t *testing.T) {
	tk := submitted(func(*Task) {})
	tk.Settle(t0, claim(t, tk, t0), Outcome{End: EndRaised, Failure: &Failure{Type: "KeyboardInterrupt"}}, 0)
	if tk.Failure == nil || tk.Failure.Type != "KeyboardInterrupt" || tk.Failure.Message != "raised without a message" {
		t.Errorf("%+v", tk.Failure)
	}
}
