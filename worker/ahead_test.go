package worker_test

import (
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// stepper is a Pipeliner whose attempts end one by one as the test says.
type stepper struct {
	*gate
	// taken tells how many attempts a RunAhead has in hand, after each change.
	taken chan int
	step  chan task.Outcome
}

func newStepper() *stepper {
	return &stepper{gate: newGate(), taken: make(chan int, 64), step: make(chan task.Outcome)}
}

func (s *stepper) RunAhead(_ int, first *worker.Attempt, feed worker.Feed) bool {
	wake := make(chan struct{}, 1)
	feed.Bind(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	hand := []*worker.Attempt{first}
	for len(hand) > 0 {
		feed.Started(hand[0])
		hand = append(hand, feed.Next(4-len(hand), func(*worker.Attempt) bool { return true })...)
		s.taken <- len(hand)
		for over := false; !over; {
			select {
			case out := <-s.step:
				feed.Ended([]worker.Done{{Attempt: hand[0], Outcome: out}})
				over = true
			case <-wake:
				feed.Back(hand[1:])
				hand = hand[:1]
				s.taken <- len(hand)
				if feed.Stopped(hand[0]) {
					feed.Ended([]worker.Done{{Attempt: hand[0], Outcome: task.Fail(task.EndCancelled, "stopped")}})
					over = true
				}
			}
		}
		hand = hand[1:]
	}
	return true
}

func (s *stepper) await(t *testing.T, want int) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case got := <-s.taken:
			if got == want {
				return
			}
		case <-timer.C:
			t.Fatalf("the executor never had %d attempts", want)
		}
	}
}

var short = task.Outcome{End: task.EndSucceeded, Result: []byte("r"), Encoding: task.EncodingJSON, RunTime: time.Microsecond}

// open brings an agent with one slot to the point where it hands attempts ahead: claims
// 10 and 11 end quickly, 1 to n are offered while 1 runs.
func open(t *testing.T, n byte) (*stepper, *end) {
	t.Helper()
	s := newStepper()
	e := newBench(t, link.Push, 1, s).attach()
	e.send(offers(10))
	s.awaitStart(t)
	s.release <- short
	e.report(token(10))
	// The window is open: what follows is handed over together.
	e.send(offers(11))
	s.await(t, 1)
	var rest []byte
	for i := range n {
		rest = append(rest, i+1)
	}
	e.send(offers(rest...))
	e.awaitHeld(2 + int(n)) // all are in the queue
	s.step <- short
	e.report(token(11))
	return s, e
}

func TestAheadIsNotStarted(t *testing.T) {
	t.Parallel()
	s, e := open(t, 3)
	s.await(t, 3)
	// Only the first one runs: the others are renewed, but not said to be started.
	b := expect[*link.Beat](e)
	started := map[task.Token]bool{}
	for _, h := range b.Held {
		started[h.Token] = !h.StartedAt.IsZero()
	}
	if !started[token(1)] || started[token(2)] || started[token(3)] {
		t.Fatalf("the beat lists %+v, want claim 1 alone as started", b.Held)
	}
	for i := range byte(3) {
		s.step <- short
		if r := e.report(token(i + 1)); r.Outcome.End != task.EndSucceeded {
			t.Fatalf("claim %d is reported as %q", i+1, r.Outcome.End)
		}
	}
}

func TestAheadIsRevoked(t *testing.T) {
	t.Parallel()
	s, e := open(t, 3)
	s.await(t, 3)
	e.send(&link.Revoke{Tokens: []task.Token{token(2)}})
	if r := e.report(token(2)); r.Outcome.End != task.EndCancelled {
		t.Fatalf("a revoked claim is reported as %q", r.Outcome.End)
	}
	// The others are untouched; the one that runs is stopped by its own revocation only.
	e.send(&link.Revoke{Tokens: []task.Token{token(1)}})
	if r := e.report(token(1)); r.Outcome.End != task.EndCancelled {
		t.Fatalf("the revoked running claim is reported as %q", r.Outcome.End)
	}
	// Claim 3 went back to the queue and is run: alone, as a cancel has shut the window.
	s.awaitStart(t)
	s.release <- success
	if r := e.report(token(3)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("claim 3 is reported as %q", r.Outcome.End)
	}
}

func TestAheadIsRecalled(t *testing.T) {
	t.Parallel()
	s, e := open(t, 3)
	s.await(t, 3)
	e.send(&link.Recall{N: 2}) // takes them out of the executor, and gives them back then
	s.await(t, 1)
	for _, n := range []byte{2, 3} {
		if r := e.report(token(n)); r.Outcome.End != task.EndReturned {
			t.Fatalf("a recalled offer is reported as %q", r.Outcome.End)
		}
	}
	s.step <- short
	e.report(token(1))
}

func TestAheadIsHandedBackByADrain(t *testing.T) {
	t.Parallel()
	s, e := open(t, 3)
	s.await(t, 3)
	e.stop()
	for _, n := range []byte{2, 3} {
		if r := e.report(token(n)); r.Outcome.End != task.EndReturned {
			t.Fatalf("claim %d is reported as %q", n, r.Outcome.End)
		}
	}
	s.step <- short
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("the running claim is reported as %q", r.Outcome.End)
	}
	for _, n := range []byte{1, 2, 3, 10, 11} {
		e.ack(token(n))
	}
}

var _ worker.Pipeliner = (*stepper)(nil)
