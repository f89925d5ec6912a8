package worker_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// frailGate is a gate whose slots can be out of order.
type frailGate struct {
	*gate
	mu     sync.Mutex
	broken map[int]bool
	// slow: what is broken is about to be in order, as far as anybody can tell.
	slow    bool
	changed chan struct{}
}

func newFrailGate() *frailGate {
	return &frailGate{gate: newGate(), broken: map[int]bool{}, changed: make(chan struct{})}
}

func (g *frailGate) set(broken bool, slots ...int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, slot := range slots {
		g.broken[slot] = broken
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *frailGate) Prepared(slot int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.broken[slot]
}

func (g *frailGate) Prepare(ctx context.Context, slot int, patient bool) error {
	for {
		g.mu.Lock()
		broken, changed := g.broken[slot], g.changed
		g.mu.Unlock()
		switch {
		case !broken:
			return nil
		case !patient && !g.slow:
			return errors.New("the interpreter is gone")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitFit waits for a beat that says whether a slot is in order.
func (e *end) awaitFit(fit bool) {
	e.t.Helper()
	for range 500 {
		if expect[*link.Beat](e).Unfit != fit {
			return
		}
	}
	e.t.Fatalf("500 beats and none tells that a slot is in order: %t", fit)
}

// TestSlotsOutOfOrder: what is offered to slots whose executor cannot run is handed back at
// once without having started, the slots leave the credit, and come back when they are mended.
func TestSlotsOutOfOrder(t *testing.T) {
	t.Parallel()
	for _, mode := range []link.Mode{link.Push, link.Pull} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			g := newFrailGate()
			e := newBench(t, mode, 2, g).attach()
			g.set(true, 0, 1) // both slots are idle and find out when they are wanted
			for n := byte(1); n <= 2; n++ {
				e.send(offers(n))
				r := e.report(token(n))
				if r.Outcome.End != task.EndReturned || r.Outcome.Failure == nil {
					t.Fatalf("offer %d: %+v, want it returned", n, r.Outcome)
				}
				e.ack(token(n))
				if n == 1 {
					continue // the first slot gave it to the second, or nobody knows of that one yet
				}
			}
			e.awaitFit(false)
			e.send(offers(3))
			if r := e.report(token(3)); r.Outcome.End != task.EndReturned || !strings.Contains(r.Outcome.Failure.Message, "the interpreter is gone") {
				t.Fatalf("offer 3: %+v", r.Outcome)
			}
			e.ack(token(3))
			select {
			case a := <-g.started:
				t.Fatalf("an attempt of %s started", a.Token.Task)
			default:
			}
			// A new session is told of it, too.
			e.conn.Close(errors.New("cut"))
			e = e.attach()
			e.awaitFit(false)

			g.set(false, 0)
			e.awaitFit(true)
			e.send(offers(4, 5))
			g.awaitStart(t)
			select {
			case <-g.started:
				t.Fatal("two attempts run, and one slot is in order")
			default:
			}
			g.set(false, 1)
			g.awaitStart(t)
			for range 2 {
				g.release <- success
			}
			for n := byte(4); n <= 5; n++ {
				r := e.report(token(n))
				if r.Outcome.End == task.EndReturned { // it waited for longer than it may
					continue
				}
				if r.Outcome.End != task.EndSucceeded {
					t.Fatalf("offer %d: %+v", n, r.Outcome)
				}
			}
		})
	}
}

// TestBrokenSlotsLeaveTheCredit by the number of slots that beats tell.
func TestBrokenSlotsLeaveTheCredit(t *testing.T) {
	t.Parallel()
	g := newFrailGate()
	e := newBench(t, link.Push, 3, g).attach()
	e.send(offers(1))
	g.awaitStart(t)
	// The slot that runs notices when it is done; the others when they are wanted.
	g.set(true, 0, 1, 2)
	g.release <- success
	e.report(token(1))
	e.awaitSlots(2)
	g.set(false, 0, 1, 2)
	e.awaitSlots(3)
}

// TestOffersWaitForARunnerThatStarts, as after a cancel: they would come back from the queue in
// another order, and their session would be paused.
func TestOffersWaitForARunnerThatStarts(t *testing.T) {
	t.Parallel()
	g := newFrailGate()
	g.slow = true
	e := newBench(t, link.Push, 1, g).attach()
	e.send(offers(1))
	g.awaitStart(t)
	g.set(true, 0)
	g.release <- success
	e.report(token(1))
	e.ack(token(1))
	e.send(offers(2))
	for over := time.After(500 * time.Millisecond); over != nil; {
		select {
		case f := <-e.frames:
			if r, ok := f.(*link.Outcomes); ok {
				t.Fatalf("reported while its runner starts: %+v", r)
			}
		case <-over:
			over = nil
		}
	}
	g.set(false, 0)
	g.awaitStart(t)
	g.release <- success
	if r := e.report(token(2)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("%+v", r.Outcome)
	}
}

// TestRunnersThatDoNotStart: their slots leave the credit after a while, and come back.
func TestRunnersThatDoNotStart(t *testing.T) {
	t.Parallel()
	g := newFrailGate()
	g.slow = true
	e := newPatientBench(t, link.Push, 1, 0, 0, 50*time.Millisecond, g).attach()
	e.send(offers(1))
	g.awaitStart(t)
	g.set(true, 0)
	g.release <- success
	e.report(token(1))
	e.ack(token(1))
	e.send(offers(2))
	r := e.report(token(2))
	if r.Outcome.End != task.EndReturned || !strings.Contains(r.Outcome.Failure.Message, "its runner has not started for 50ms") {
		t.Fatalf("%+v", r.Outcome)
	}
	e.ack(token(2))
	e.awaitFit(false)
	g.set(false, 0)
	e.awaitFit(true)
	e.send(offers(3))
	g.awaitStart(t)
	g.release <- success
	if r := e.report(token(3)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("%+v", r.Outcome)
	}
}
