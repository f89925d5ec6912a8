package worker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// elasticGate is a gate that notes which slots are open, and may refuse to open more.
type elasticGate struct {
	*gate
	mu     sync.Mutex
	open   map[int]bool
	opened chan int
	shut   chan int
	refuse bool
}

func newElasticGate() *elasticGate {
	return &elasticGate{gate: newGate(), open: map[int]bool{}, opened: make(chan int, 16), shut: make(chan int, 16)}
}

func (g *elasticGate) Open(_ context.Context, slot int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse {
		g.opened <- -1
		return errors.New("no more")
	}
	if g.open[slot] {
		return errors.New("the slot is open")
	}
	g.open[slot] = true
	g.opened <- slot
	return nil
}

func (g *elasticGate) Shut(slot int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, slot)
	g.shut <- slot
}

// awaitSlots waits for a beat that tells so many slots.
func (e *end) awaitSlots(n int) {
	e.t.Helper()
	for range 500 {
		if expect[*link.Beat](e).Slots == n {
			return
		}
	}
	e.t.Fatalf("500 beats and none tells %d slots", n)
}

// fillPool offers as a dispatcher does: up to twice the slots that it was told of, and under
// pull what was asked for; what comes back it offers anew. It returns when the most slots
// are told and taken.
func (e *end) fillPool(most int) {
	e.t.Helper()
	slots, asked, given := e.hello.Slots, 0, byte(0)
	held := map[task.Token]bool{}
	timer := time.NewTimer(patience) // beats come all the time: they are no progress
	defer timer.Stop()
	for slots < most || len(held) < most {
		for len(held) < min(most, 2*slots) && (!e.pull || asked > 0) {
			given++
			asked--
			held[token(given)] = true
			e.send(offers(given))
		}
		select {
		case f, ok := <-e.frames:
			if !ok {
				e.t.Fatal("the link ended while the pool grew")
			}
			switch f := f.(type) {
			case *link.Beat:
				slots = f.Slots
			case *link.Want:
				asked += f.N
			case *link.Outcomes:
				for _, r := range f.Items {
					if r.Outcome.End != task.EndReturned {
						e.t.Fatalf("claim %v ended %s while the pool grew", r.Token, r.Outcome.End)
					}
					delete(held, r.Token)
					e.ack(r.Token)
				}
			}
		case <-timer.C:
			e.t.Fatalf("the pool stays at %d slots with %d claims and %d asked for", slots, len(held), asked)
		}
		if slots > most {
			e.t.Fatalf("%d slots are told of at most %d", slots, most)
		}
	}
}

// Offers that wait open slots, by doubling and up to the most; slots that are idle for long
// shut down to the least. Pull differs in nothing but that the room is asked for.
func TestElasticPool(t *testing.T) {
	t.Parallel()
	for _, mode := range []link.Mode{link.Push, link.Pull} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			g := newElasticGate()
			e := newElasticBench(t, mode, 1, 5, 100*time.Millisecond, g).attach()
			if e.hello.Slots != 1 || e.hello.MaxSlots != 5 {
				t.Fatalf("Hello tells %d to %d slots", e.hello.Slots, e.hello.MaxSlots)
			}
			e.fillPool(5)
			held := map[byte]bool{}
			for range 5 {
				held[g.awaitStart(t).Token.Task[0]] = true
			}
			// A sixth waits: five is the most. It goes back when no slot takes it.
			e.send(offers(101))
			if r := e.report(token(101)); r.Outcome.End != task.EndReturned {
				t.Fatalf("an offer beyond the most ended %s", r.Outcome.End)
			}
			e.ack(token(101))
			for range held {
				g.release <- success
			}
			for n := range held {
				e.report(token(n))
				e.ack(token(n))
			}
			e.awaitSlots(1)
			for range 4 {
				<-g.shut
			}
			// And again.
			e.send(offers(102, 103))
			e.awaitSlots(2)
			g.awaitStart(t)
			g.awaitStart(t)
			g.release <- success
			g.release <- success
			e.report(token(102))
			e.report(token(103))
			e.ack(token(102))
			e.ack(token(103))
			e.awaitHeld(0)
		})
	}
}

// What is over before a slot could be opened opens none.
func TestShortTasksOpenNoSlot(t *testing.T) {
	t.Parallel()
	g := newElasticGate()
	e := newElasticBench(t, link.Push, 1, 4, time.Hour, g).attach()
	for n := byte(1); n <= 100; n += 2 {
		e.send(offers(n, n+1))
		for i := range byte(2) {
			g.awaitStart(t)
			g.release <- success
			e.report(token(n + i))
			e.ack(token(n + i))
		}
	}
	select {
	case slot := <-g.opened:
		// A loaded machine may hold one back for so long; not more.
		t.Logf("slot %d was opened", slot)
		if len(g.opened) > 0 {
			t.Errorf("short tasks opened %d slots", 1+len(g.opened))
		}
	default:
	}
}

// A slot that cannot be opened costs nothing but the slot: work goes on in those there are.
func TestSlotThatDoesNotOpen(t *testing.T) {
	t.Parallel()
	g := newElasticGate()
	g.refuse = true
	e := newElasticBench(t, link.Push, 1, 2, time.Hour, g).attach()
	e.send(offers(1, 2))
	g.awaitStart(t)
	if slot := <-g.opened; slot != -1 {
		t.Fatalf("slot %d was opened", slot)
	}
	if r := e.report(token(2)); r.Outcome.End != task.EndReturned {
		t.Fatalf("an offer that no slot could be opened for ended %s", r.Outcome.End)
	}
	e.ack(token(2))
	g.release <- success
	e.report(token(1))
	e.ack(token(1))
	e.awaitHeld(0)
}

// A pool that ends while it grows leaves no slot open.
func TestElasticPoolEnds(t *testing.T) {
	t.Parallel()
	g := newElasticGate()
	b := newElasticBench(t, link.Push, 1, 3, time.Hour, g)
	e := b.attach()
	e.send(offers(1, 2))
	g.awaitStart(t)
	<-g.opened
	b.stop()
	expect[*link.Drain](e)
	go func() {
		for range 2 {
			select {
			case g.release <- success:
			case <-e.t.Context().Done():
			}
		}
	}()
	for n := byte(1); n <= 2; n++ {
		e.report(token(n))
		e.ack(token(n))
	}
	if err := <-b.ended; err != nil {
		t.Fatal(err)
	}
	b.ended <- nil
}

func TestElasticConfig(t *testing.T) {
	t.Parallel()
	cfg := worker.Config{ID: "w", Slots: 4, MaxSlots: 3, Dial: func(context.Context) (link.Conn, error) { return nil, errors.New("no") },
		Executors: slices.Clone([]worker.Executor{newGate()})}
	if _, err := worker.New(cfg); err == nil {
		t.Error("a pool of at least 4 and at most 3 slots is accepted")
	}
}
