package worker

import (
	"time"

	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// How many claims may be here, and which of them go back: the worker's side of docs/credit.md, in
// the words of dispatcher/credit.go. Under push the dispatcher counts all of it by itself; under pull it
// gives what [Agent.wantLocked] asks for.

// flow is what an agent keeps for its credit. Guarded by the agent's mutex.
type flow struct {
	// window follows the run times of what ended here, as the dispatcher's follows its reports. Written by
	// the slots as attempts end; closed by recalls, by the guard and by slots that break down. Read by
	// the session under pull, and by the slots before they run ahead.
	window window.Window
	// takenAt is when a slot last took a claim from the queue. Written by the slots, read by the guard.
	takenAt time.Time
	// asked is the credit that was asked for and not used, under pull. Of the session alone.
	asked int
	// owed is how many offers were recalled while executors had what could have been given back; what they
	// return until owedUntil is given back then. Written by the session, read and spent by the slots.
	owed      int
	owedUntil time.Time
}

// credit is how many claims the agent has room for beyond those that are here or asked for.
type credit struct {
	// free slots come first, then slots that are still to be opened, at last what may wait in the window.
	free, grow, ahead int
}

// creditLocked returns the agent's credit. The window is refilled by halves, as the dispatcher claims.
func (a *Agent) creditLocked() (c credit) {
	taken, room, slots := a.active+a.asked, a.pool.roomLocked(), a.pool.slots-a.pool.broken
	size := a.window.Size(a.pool.slots)
	c.free = max(slots-taken, 0)
	c.grow = max(room-max(taken, slots), 0)
	c.ahead = max(min(size, room+size-taken), 0)
	if taken >= room && 2*c.ahead < size {
		c.ahead = 0
	}
	return c
}

// wantLocked is the credit to ask for under pull.
func (a *Agent) wantLocked() int {
	if a.cfg.Mode != link.Pull || a.draining {
		return 0
	}
	c := a.creditLocked()
	return c.free + c.grow + c.ahead
}

// roomLocked is how many claims that are not ahead may be here, as the dispatcher counts.
func (p *pool) roomLocked() int {
	working := p.slots - p.broken
	if p.most == p.least {
		return working
	}
	return min(p.most, 2*working)
}

// lackLocked is how many slots should be opened.
func (a *Agent) lackLocked() int {
	p := &a.pool
	if a.draining || a.ending || len(a.idle) > 0 {
		return 0
	}
	return max(0, min(len(a.queue)-p.woken-p.growing, p.roomLocked()-p.slots-p.growing))
}

// comingLocked is how many slots will be there soon for claims that wait.
func (a *Agent) comingLocked() int {
	n := a.pool.woken + a.pool.preparing
	if a.pool.paused {
		return n
	}
	return n + a.pool.growing + a.lackLocked()
}

// expectedLocked says whether slots on their way will take what waits. Were the first claim given
// away, they would start those behind it, long before it when the attempt in front of it turns
// out to be a long one. A runner takes its time to start, so what is more than a claim for each
// slot does not wait for it.
func (a *Agent) expectedLocked() bool {
	return a.pool.woken > 0 || a.pool.preparing > 0 && len(a.queue) <= a.pool.slots
}

// recallLasts is how long a recall waits for what executors have.
const recallLasts = 100 * time.Millisecond

// recalled gives up to n offers back that wait for a slot, the latest first.
func (a *Agent) recalled(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.window.Close()
	a.owed = a.giveBackLocked(n, reasonRecalled)
	if a.owed > 0 {
		a.owedUntil = time.Now().Add(recallLasts)
		a.takeBackLocked()
	}
}

// reasonRecalled is what a report says of an offer that was recalled.
const reasonRecalled = "recalled for a worker with an idle slot"

// giveBackLocked returns up to n waiting claims to the dispatcher, the latest of them, and
// how many more there would have been to return. They are reported in the order of the queue:
// a session that waits for one task gets the first that the store has back.
func (a *Agent) giveBackLocked(n int, reason string) int {
	keep := max(len(a.queue)-n, 0)
	n -= len(a.queue) - keep
	for i, c := range a.queue[keep:] {
		a.queue[keep+i] = nil
		a.reportLocked(c, task.Fail(task.EndReturned, reason))
		a.nudge()
	}
	a.queue = a.queue[:keep]
	return n
}

// stuck is how long claims may wait while no slot takes one.
const stuck = 100 * time.Millisecond

// unstickLocked returns what waits behind attempts that are not as short as those before
// them. It was claimed ahead: in the store it would make way for what is more urgent, and
// any worker could have it.
func (a *Agent) unstickLocked(now time.Time) {
	n := len(a.queue) - a.comingLocked() // the others get slots that are opened for them
	if n <= 0 || now.Sub(a.takenAt) < stuck || now.Sub(a.queue[0].queuedAt) < stuck {
		return
	}
	a.window.Close()
	a.giveBackLocked(n, "returned by a worker whose slots stayed busy longer than expected")
}
