package worker

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// TestNothingAheadOfASlotOnItsWay: a slot that was woken takes the first claim that waits. One
// given ahead meanwhile, behind an attempt that may be long, would start after the claims
// behind it.
func TestNothingAheadOfASlotOnItsWay(t *testing.T) {
	t.Parallel()
	a := &Agent{
		log: slog.New(slog.DiscardHandler), kick: make(chan struct{}, 1), code: newCodeCache(1 << 10), claims: map[task.Token]*claim{}, pool: newPool(2, 2),
		executors: map[string]Executor{task.RuntimePython: struct{ Executor }{}},
	}
	a.window.Observe(time.Now(), time.Microsecond)
	onItsWay := make(chan struct{}, 1)
	a.idle = []chan struct{}{onItsWay}
	more := func(ids ...byte) (offers []link.Offer) {
		for _, id := range ids {
			offers = append(offers, link.Offer{Token: task.Token{Task: task.ID{id}}, Runtime: task.RuntimePython, Form: task.FormNone})
		}
		return offers
	}
	offers := more(1, 2, 3)
	a.offered(offers)
	f := &feed{agent: a, runtime: task.RuntimePython}
	all := func(*Attempt) bool { return true }
	if got := f.Next(3, all); len(got) != 0 {
		t.Fatalf("%d claims went ahead of the slot that was woken for them", len(got))
	}
	// It arrives, as it does where it waits (awaitLocked).
	<-onItsWay
	a.pool.woken--
	c, _ := a.next(onItsWay, false)
	if c.token != offers[0].Token {
		t.Fatalf("the woken slot took task %s, want the first one", c.token.Task)
	}
	var got []task.Token
	for _, at := range f.Next(3, all) {
		got = append(got, at.Token)
	}
	if want := []task.Token{offers[1].Token}; !slices.Equal(got, want) {
		t.Fatalf("ahead went %v, want %v", got, want)
	}

	// Slots whose runners start take what is one for each.
	a.pool.preparing = 1
	a.offered(more(4))
	if got := f.Next(3, all); len(got) != 0 {
		t.Fatalf("%d of %d claims went ahead of a slot that is there soon", len(got), len(a.queue))
	}
	a.offered(more(5, 6, 7))
	if got := f.Next(3, all); len(got) == 0 {
		t.Fatalf("none of %d claims went ahead while a runner started", len(a.queue))
	}
}
