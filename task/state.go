package task

import (
	"fmt"
	"time"
)

// Status is the public state of a task.
type Status string

// Statuses. The last three are terminal: they never change again.
const (
	Queued    Status = "QUEUED"
	Running   Status = "RUNNING"
	Completed Status = "COMPLETED"
	Failed    Status = "FAILED"
	Cancelled Status = "CANCELLED"
)

// Terminal reports whether the status is final.
func (s Status) Terminal() bool { return s == Completed || s == Failed || s == Cancelled }

// Known reports whether s is one of the statuses.
func (s Status) Known() bool { return s == Queued || s == Running || s.Terminal() }

// Move is a transition of the state machine. There are no others.
type Move string

// Moves T1 to T9; T10, forgetting a finished task after its retention, leaves no record.
const (
	MoveSubmit   Move = "submit"   // T1
	MoveClaim    Move = "claim"    // T2
	MoveStart    Move = "start"    // T3, renewals included
	MoveComplete Move = "complete" // T4
	MoveFail     Move = "fail"     // T5
	MoveRequeue  Move = "requeue"  // T6
	MoveGiveUp   Move = "give up"  // T7
	MoveExpire   Move = "expire"   // T8
	MoveCancel   Move = "cancel"   // T9
)

// phase refines the status: QUEUED is ready (or delayed) while nobody holds the
// task and offered while a session does and has not said that it started.
type phase string

const (
	phaseNone    phase = "none"
	phaseReady   phase = "ready"
	phaseOffered phase = "offered"
	phaseRunning phase = "running"
	phaseEnded   phase = "ended"
)

// legal is the table of legal moves: from each phase, where each move leads. A
// report may settle an offered claim, as the word that it started may be lost.
var legal = map[phase]map[Move]phase{
	phaseNone:  {MoveSubmit: phaseReady},
	phaseReady: {MoveClaim: phaseOffered, MoveExpire: phaseEnded, MoveCancel: phaseEnded},
	phaseOffered: {
		MoveStart: phaseRunning, MoveComplete: phaseEnded, MoveFail: phaseEnded, MoveRequeue: phaseReady,
		MoveGiveUp: phaseEnded, MoveExpire: phaseEnded, MoveCancel: phaseEnded,
	},
	phaseRunning: {
		MoveStart: phaseRunning, MoveComplete: phaseEnded, MoveFail: phaseEnded, MoveRequeue: phaseReady,
		MoveGiveUp: phaseEnded, MoveExpire: phaseEnded, MoveCancel: phaseEnded,
	},
	phaseEnded: {},
}

func (t *Task) phase() phase {
	switch {
	case t.Status == "":
		return phaseNone
	case t.Status.Terminal():
		return phaseEnded
	case t.Lease == nil:
		return phaseReady
	case t.Lease.StartedAt.IsZero():
		return phaseOffered
	default:
		return phaseRunning
	}
}

// check is the one place that asks the table.
func (t *Task) check(m Move) error {
	if _, ok := legal[t.phase()][m]; !ok {
		return Errorf(CodeState, string(m), "task %s is %s: the move is not legal from there", t.ID, t.describe())
	}
	return nil
}

func (t *Task) describe() string {
	if t.Status == Queued {
		return fmt.Sprintf("%s (%s)", t.Status, t.phase())
	}
	return string(t.Status)
}

// Verdict answers a report or a renewal.
type Verdict string

// Verdicts.
const (
	// VerdictRecorded: the report counts and is durable.
	VerdictRecorded Verdict = "recorded"
	// VerdictDuplicate: this very claim was settled before; nothing changed.
	VerdictDuplicate Verdict = "duplicate"
	// VerdictStale: the token is not that of the claim in force; nothing changed
	// and the worker stops the attempt.
	VerdictStale Verdict = "stale"
)

// Submit makes a new record QUEUED (T1).
func (t *Task) Submit(now time.Time, seq uint64) error {
	if err := t.check(MoveSubmit); err != nil {
		return err
	}
	t.Status, t.CreatedAt, t.Seq = Queued, now, seq
	return nil
}

// Claim offers a ready task to a session (T2): the epoch rises and the lease is in
// force until lease.Until. The task still reads QUEUED.
func (t *Task) Claim(now time.Time, lease Lease) (Token, error) {
	if err := t.check(MoveClaim); err != nil {
		return Token{}, err
	}
	if t.NotBefore.After(now) {
		return Token{}, Errorf(CodeState, string(MoveClaim), "task %s is delayed until %s", t.ID, t.NotBefore)
	}
	t.Epoch++
	lease.ClaimedAt, lease.StartedAt = now, time.Time{}
	t.Lease = &lease
	tok, _ := t.Token()
	return tok, nil
}

// holds is the fence: epoch and claim id both equal those of the claim in force.
func (t *Task) holds(tok Token) bool {
	return t.Lease != nil && t.ID == tok.Task && t.Epoch == tok.Epoch && t.Lease.Claim == tok.Claim
}

// Renew extends the lease of the claim in force (T3). A startedAt that is not
// zero says that the attempt runs: the first such word makes the task RUNNING and
// counts the attempt, later ones change nothing. now is the store's time: a start
// before the claim or after now is not believed.
//
// No word of a worker extends a lease beyond the time limit of the task and
// [TimeoutMargin], see [Task.Overdue]. A lease never gets shorter.
func (t *Task) Renew(now time.Time, tok Token, until, startedAt time.Time) Verdict {
	if !t.holds(tok) {
		return VerdictStale
	}
	if !startedAt.IsZero() {
		t.start(now, startedAt)
	}
	if end := t.overrun(); !end.IsZero() && until.After(end) {
		until = end
	}
	t.Grant(until)
	return VerdictRecorded
}

// Grant extends the lease of the claim in force, whatever the time limit of the task: while
// nobody could renew nobody could report either.
func (t *Task) Grant(until time.Time) {
	if t.Lease != nil && until.After(t.Lease.Until) {
		t.Lease.Until = until
	}
}

// TimeoutMargin is how much longer than its timeout a worker may hold an attempt that was
// started. It stops the attempt itself; the margin covers the way of its report.
func TimeoutMargin(timeout time.Duration) time.Duration {
	return 5*time.Second + min(max(timeout, 0)/10, 5*time.Minute)
}

// StartMargin is how much longer an offer of a task with a timeout may wait for its start:
// a worker may take that long to have a runner for it.
const StartMargin = 30 * time.Second

// overrun is the end of the last lease that the claim in force can get, counted from its
// start, or from the claim while it is only offered; zero without a timeout.
func (t *Task) overrun() time.Time {
	if t.Lease == nil || t.Timeout <= 0 {
		return time.Time{}
	}
	from := t.Lease.StartedAt
	if from.IsZero() {
		from = t.Lease.ClaimedAt.Add(StartMargin)
	}
	return from.Add(t.Timeout).Add(TimeoutMargin(t.Timeout))
}

// Overdue is the outcome of the claim in force when its lease has run out. An attempt
// whose worker went on renewing it beyond timeout and margin has timed out; any other
// lost its worker. unheard says that nobody has renewed it since all leases were granted
// anew: then it lasted by that grant alone, and the word of its start may have been lost
// with the process that had it.
func (t *Task) Overdue(unheard bool) Outcome {
	if t.Lease == nil {
		return Outcome{}
	}
	end := t.overrun()
	switch {
	case !unheard && !t.Lease.StartedAt.IsZero() && !end.IsZero() && !t.Lease.Until.Before(end):
		return Fail(EndTimedOut, fmt.Sprintf("the attempt ran longer than its timeout of %s, and its worker did not stop it within %s more",
			t.Timeout, TimeoutMargin(t.Timeout)))
	case !t.Lease.StartedAt.IsZero():
		return Fail(EndLost, "the lease expired without a report from the worker")
	case unheard:
		return Fail(EndLost, "the worker did not reconnect after a restart")
	default:
		return Fail(EndLapsed, "the worker never reported that it started")
	}
}

// start counts the attempt once. The worker's word on when counts as far as it can be true.
func (t *Task) start(now, at time.Time) {
	if !t.Lease.StartedAt.IsZero() {
		return
	}
	if at.After(now) {
		at = now
	}
	if at.Before(t.Lease.ClaimedAt) {
		at = t.Lease.ClaimedAt
	}
	t.Lease.StartedAt = at
	t.Status = Running
	t.AttemptCount++
	t.Lapses = 0
	t.Attempts = append(t.Attempts, Attempt{Number: t.AttemptCount, Worker: t.Lease.Worker, StartedAt: at})
	if drop := len(t.Attempts) - MaxAttemptsKept; drop > 0 {
		t.Attempts = append([]Attempt(nil), t.Attempts[drop:]...)
	}
}

// Settle ends the claim in force with an outcome and decides what becomes of the
// task (T4 to T7). jitter in [0,1) spreads a retry's delay, see [RetryDelay]. An
// old token changes nothing.
func (t *Task) Settle(now time.Time, tok Token, out Outcome, jitter float64) Verdict {
	if !t.holds(tok) {
		if t.LastClaim == tok.Claim && !tok.Claim.IsZero() && t.ID == tok.Task {
			return VerdictDuplicate
		}
		return VerdictStale
	}
	if ran(out.End) {
		// The report proves the start, even where the word of it was lost.
		t.start(now, now.Add(-max(out.RunTime, 0)))
	}
	worker := t.Lease.Worker
	started := !t.Lease.StartedAt.IsZero()
	failure := boundFailure(out, worker)
	t.endAttempt(now, out.End, failure)
	t.LastClaim = tok.Claim
	switch out.End {
	case EndSucceeded:
		t.ResultSize, t.ResultEncoding, t.ResultRepr = len(out.Result), out.Encoding, plainText(out.Repr, MaxRepr)
		t.finish(now, Completed, nil)
	case EndRaised:
		t.Failures++
		if out.NoRetry || t.Failures > t.FunctionRetries {
			t.finish(now, Failed, failure)
			break
		}
		delay := min(out.RetryAfter, MaxRetryAfter)
		if delay <= 0 {
			delay = RetryDelay(t.Failures, jitter)
		}
		t.requeue(now.Add(delay))
	case EndLost:
		t.lose(now, failure, jitter)
	case EndLapsed:
		t.Lapses++
		if started || t.Lapses > MaxLapses {
			t.Lapses = 0
			t.lose(now, failure, jitter)
			break
		}
		t.requeue(now)
	case EndTimedOut, EndExhausted, EndUnreadable:
		t.finish(now, Failed, failure)
	default: // EndReturned, and EndCancelled of a task that nobody cancelled.
		t.giveBack(now, started, out.Unasked, failure, jitter)
	}
	return VerdictRecorded
}

// giveBack requeues what a worker handed back. A started attempt is uncounted while few
// were handed back: what it did until then is done again. An offer that came back unasked
// waits longer each time, as whoever is offered it next may do the same.
func (t *Task) giveBack(now time.Time, started, unasked bool, failure *Failure, jitter float64) {
	switch {
	case started:
		n := 0
		for i := range t.Attempts {
			if e := t.Attempts[i].End; e == EndReturned || e == EndCancelled {
				n++
			}
		}
		if n > MaxReturns {
			failure.Class = ClassWorker
			failure.Message = fmt.Sprintf("the task was handed back after it had started, for the %dth time, and more than %d count as losses: %s",
				n, MaxReturns, failure.Message)
			failure.Bound()
			t.lose(now, failure, jitter)
			return
		}
		t.requeue(now)
	case unasked:
		t.Lapses = min(t.Lapses+1, MaxLapses)
		t.requeue(now.Add(ReturnDelay(t.Lapses)))
	default:
		t.requeue(now)
	}
}

// ReturnDelay is how long an offer waits that came back unasked n times in a row.
func ReturnDelay(n int) time.Duration {
	switch {
	case n < 3:
		return 0
	case n == 3:
		return 500 * time.Millisecond
	case n == 4:
		return 2 * time.Second
	default:
		return 5 * time.Second
	}
}

// lose spends one of max_retries; the loss after the last of them fails the task.
// The first loss is requeued at once, later ones back off.
func (t *Task) lose(now time.Time, failure *Failure, jitter float64) {
	t.Losses++
	if t.Losses <= t.MaxRetries {
		var delay time.Duration
		if t.Losses > 1 {
			delay = RetryDelay(t.Losses-1, jitter)
		}
		t.requeue(now.Add(delay))
		return
	}
	failure.Message = fmt.Sprintf("the task lost its worker %d times (max_retries is %d); the last time: %s",
		t.Losses, t.MaxRetries, failure.Message)
	failure.Bound()
	t.finish(now, Failed, failure)
}

// Expire fails a task whose deadline has passed (T8) and reports whether it did.
func (t *Task) Expire(now time.Time) bool {
	if t.Deadline.IsZero() || now.Before(t.Deadline) || t.check(MoveExpire) != nil {
		return false
	}
	f := &Failure{
		Class:   ClassDeadline,
		Message: fmt.Sprintf("the deadline %s passed while the task was %s", t.Deadline.UTC().Format(time.RFC3339Nano), t.Status),
	}
	t.force(now, Failed, EndTimedOut, f)
	return true
}

// Cancel ends an unfinished task at a client's wish (T9) and reports whether it
// did; a finished task stays as it is.
func (t *Task) Cancel(now time.Time) bool {
	if t.check(MoveCancel) != nil {
		return false
	}
	t.force(now, Cancelled, EndCancelled, &Failure{Class: ClassCancelled, Message: "the task was cancelled by a client"})
	return true
}

// force ends the task without its holder's word: the epoch rises, so whatever the
// holder still reports is stale.
func (t *Task) force(now time.Time, s Status, e End, f *Failure) {
	if t.Lease != nil {
		f.Worker = t.Lease.Worker
	}
	t.endAttempt(now, e, f)
	t.Epoch++
	t.finish(now, s, f)
}

// Shift moves what is under way by d: the lease in force and the delay of a requeued
// task. It is for stores whose clock was set: what is left of both stays what it was.
// Deadlines are absolute and stay, as the history does.
func (t *Task) Shift(d time.Duration) {
	if !t.NotBefore.IsZero() {
		t.NotBefore = t.NotBefore.Add(d)
	}
	if l := t.Lease; l != nil {
		l.Until, l.ClaimedAt = l.Until.Add(d), l.ClaimedAt.Add(d)
		if !l.StartedAt.IsZero() {
			l.StartedAt = l.StartedAt.Add(d)
		}
	}
}

func (t *Task) requeue(notBefore time.Time) {
	t.Epoch++
	t.Status, t.Lease, t.NotBefore = Queued, nil, notBefore
}

func (t *Task) finish(now time.Time, s Status, f *Failure) {
	t.Status, t.Lease, t.FinishedAt, t.Failure = s, nil, now, f
	t.NotBefore = time.Time{}
}

// endAttempt closes the history entry of an attempt that was started.
func (t *Task) endAttempt(now time.Time, e End, f *Failure) {
	if t.phase() != phaseRunning || len(t.Attempts) == 0 {
		return
	}
	a := &t.Attempts[len(t.Attempts)-1]
	a.FinishedAt, a.End = now, e
	if f != nil {
		a.Reason = ClipText(firstLine(f), 256)
	}
}

func firstLine(f *Failure) string {
	s := f.Message
	if f.Type != "" {
		s = f.Type + ": " + s
	}
	for i := range len(s) {
		if s[i] == '\n' {
			return s[:i]
		}
	}
	return s
}

// ran reports whether an end can only come from an attempt that was started.
func ran(e End) bool {
	switch e {
	case EndSucceeded, EndRaised, EndLost, EndTimedOut, EndExhausted, EndUnreadable:
		return true
	default:
		return false
	}
}

// boundFailure returns a private, bounded copy of an outcome's failure with its
// class and worker filled in; nil for a success.
func boundFailure(out Outcome, worker string) *Failure {
	if out.End == EndSucceeded {
		return nil
	}
	var f Failure
	if out.Failure != nil {
		f = *out.Failure
	}
	if c := ClassOf(out.End); c != "" {
		f.Class = c
	}
	switch {
	case f.Message != "":
	case out.End == EndRaised:
		f.Message = "raised without a message"
	default:
		f.Message = "the attempt ended as " + string(out.End)
	}
	f.Worker = worker
	f.Bound()
	return &f
}

// Backoff of retries: half a second doubled each time, capped, with full jitter
// (Brooker, "Exponential Backoff And Jitter").
const (
	retryBase = 500 * time.Millisecond
	retryCap  = 30 * time.Second
)

// RetryDelay returns the delay before retry n (from 1); jitter is in [0,1).
func RetryDelay(n int, jitter float64) time.Duration {
	limit := retryCap
	if shift := n - 1; shift < 6 {
		limit = min(retryBase<<shift, retryCap)
	}
	return time.Duration(jitter * float64(limit))
}
