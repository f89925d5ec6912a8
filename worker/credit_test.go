package worker

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
)

// TestCredit: what is asked for fills the slots first, then those that may be opened, then the window by
// halves, and never more than all of it.
func TestCredit(t *testing.T) {
	t.Parallel()
	open := func(a *Agent) { // to its least size
		for range 10 {
			a.window.Observe(time.Now(), time.Microsecond)
		}
	}
	for _, c := range []struct {
		name                               string
		slots, most, broken, active, asked int
		window                             bool
		want                               credit
	}{
		{name: "idle", slots: 4, most: 4, want: credit{free: 4}},
		{name: "some taken, some asked for", slots: 4, most: 4, active: 1, asked: 2, want: credit{free: 1}},
		{name: "full", slots: 4, most: 4, active: 4},
		{name: "more than room", slots: 4, most: 4, active: 9},
		{name: "may grow", slots: 2, most: 8, active: 1, want: credit{free: 1, grow: 2}},
		{name: "may grow a little", slots: 3, most: 4, active: 3, want: credit{grow: 1}},
		{name: "out of order", slots: 4, most: 4, broken: 1, want: credit{free: 3}},
		{name: "all out of order", slots: 2, most: 4, broken: 2},
		{name: "short tasks", slots: 2, most: 2, window: true, want: credit{free: 2, ahead: 64}},
		{name: "a little room in the window", slots: 2, most: 2, active: 40, window: true},
		{name: "half of the window", slots: 2, most: 2, active: 2 + 32, window: true, want: credit{ahead: 32}},
	} {
		a := &Agent{pool: newPool(c.slots, c.most), active: c.active}
		a.pool.broken, a.asked, a.cfg.Mode = c.broken, c.asked, link.Pull
		if c.window {
			open(a)
			if size := a.window.Size(c.slots); size != 64 {
				t.Fatalf("the window is %d, want 64", size)
			}
		}
		if got := a.creditLocked(); got != c.want {
			t.Errorf("%s: credit %+v, want %+v", c.name, got, c.want)
		}
	}
	// In all it is the room for what is neither here nor asked for.
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		least := 1 + rng.IntN(8)
		a := &Agent{pool: newPool(least, least+rng.IntN(8)), active: rng.IntN(100)}
		a.pool.broken, a.asked, a.cfg.Mode = rng.IntN(least+1), rng.IntN(40), link.Pull
		if rng.IntN(2) == 0 {
			open(a)
		}
		size, room, taken := a.window.Size(least), a.pool.roomLocked(), a.active+a.asked
		want := max(room+size-taken, 0)
		if taken >= room && 2*want < size {
			want = 0
		}
		if got := a.wantLocked(); got != want {
			t.Fatalf("%+v: asks for %d, want %d", a.pool, got, want)
		}
	}
}
