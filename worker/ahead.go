package worker

import (
	"time"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// runAhead lets a slot's executor go from c to the claims that wait behind it by
// itself. It returns false when c is to be run alone: the executor cannot, or what runs
// here is not short, and whoever waits is better off in the queue.
func (a *Agent) runAhead(slot int, c *claim) bool {
	p, ok := a.executors[c.offer.Runtime].(Pipeliner)
	if !ok {
		return false
	}
	a.mu.Lock()
	open := a.window.Open() && c.stopped == notStopped
	var first *Attempt
	if open {
		first = a.attemptLocked(c)
	}
	a.mu.Unlock()
	return open && p.RunAhead(slot, first, &feed{agent: a, runtime: c.offer.Runtime})
}

// feed is the [Feed] of one RunAhead.
type feed struct {
	agent   *Agent
	runtime string
	wake    func()
}

func (f *feed) Bind(wake func()) { f.wake = wake }

// Next keeps the order of the queue: the first claim that does not fit ends it. It
// gives nothing while a slot is idle, which would start the claim at once, nothing when
// somebody else has a slot for what waits here, and no more than this slot's share.
func (f *feed) Next(n int, fits func(*Attempt) bool) []*Attempt {
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.idle) > 0 || a.expectedLocked() || !a.window.Open() || a.draining || a.ending {
		return nil
	}
	n = min(n, (len(a.queue)+a.pool.slots-1)/a.pool.slots)
	var out []*Attempt
	for range n {
		c := a.queue[0]
		if c.offer.Runtime != f.runtime {
			break
		}
		attempt := a.attemptLocked(c)
		if !fits(attempt) {
			break
		}
		a.takeLocked()
		c.stop = f.wake
		out = append(out, attempt)
	}
	return out
}

func (f *feed) Started(at *Attempt) {
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.claims[at.Token]
	c.phase, c.startedAt, c.stop = running, time.Now(), f.wake
	if c.stopped != notStopped {
		f.wake() // it was stopped too late to be taken back
	}
}

// Slow announces the start: that of a short attempt is told by its report alone.
func (f *feed) Slow(at *Attempt) {
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	a.accepts = append(a.accepts, link.Accept{Token: at.Token})
	a.nudge()
}

func (f *feed) Stopped(at *Attempt) bool {
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.claims[at.Token].stopped != notStopped
}

func (f *feed) Ended(done []Done) {
	failpoint.Hit(failpoint.AfterRun)
	a := f.agent
	var tell []*failed
	a.mu.Lock()
	for _, d := range done {
		if f := a.finishLocked(a.claims[d.Attempt.Token], d.Outcome); f != nil {
			tell = append(tell, f)
		}
	}
	a.nudge()
	a.mu.Unlock()
	for _, f := range tell {
		a.tell(f)
	}
}

// Back puts claims where they came from: to the head of the queue. Those that a recall
// waits for leave.
func (f *feed) Back(attempts []*Attempt) {
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	var back []*claim
	now := time.Now()
	for _, at := range attempts {
		c := a.claims[at.Token]
		c.stop = nil
		switch {
		case c.stopped != notStopped:
			a.reportLocked(c, c.stopped.end())
		case a.draining || a.ending:
			a.reportLocked(c, task.Fail(task.EndReturned, "the worker accepts no more work"))
		default:
			c.phase, c.queuedAt = waiting, now
			back = append(back, c)
		}
	}
	a.queue = append(back, a.queue...)
	if a.owed > 0 && now.Before(a.owedUntil) {
		a.owed = a.giveBackLocked(a.owed, reasonRecalled)
	}
	for range min(len(back), len(a.queue)) {
		a.wakeSlot()
	}
	a.crowdLocked()
	a.nudge()
}
