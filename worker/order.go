package worker

import (
	"context"
	"fmt"

	"github.com/treadle-dev/treadle/task"
)

// A slot takes claims only while its executors can run one: a Python runner that does not
// start, for want of its interpreter, of processes or of descriptors, is no reason to lose an
// attempt. What waits goes to other slots, and to other workers when no slot is left.

// inOrder says whether the slot's executors would begin with an attempt at once.
func (a *Agent) inOrder(slot int) bool {
	for _, ex := range a.cfg.Executors {
		if p, ok := ex.(Preparer); ok && !p.Prepared(slot) {
			return false
		}
	}
	return true
}

// awaitOrder returns when the slot can take a claim, or when the agent ends. woken says whether
// the slot is counted as on its way to a claim, before and after: one whose runner starts is
// awaited. A slot that turns out to be out of order leaves the worker's credit until it is mended.
func (a *Agent) awaitOrder(slot int, woken bool) bool {
	if a.inOrder(slot) {
		return woken
	}
	a.mu.Lock()
	if woken {
		a.pool.woken--
	}
	a.pool.preparing++
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(a.repairing, a.cfg.StartPatience)
	err := a.prepare(ctx, slot, false)
	late := ctx.Err() != nil
	cancel()
	a.mu.Lock()
	a.pool.preparing--
	if err == nil {
		a.pool.woken++
	}
	a.mu.Unlock()
	if err == nil || a.repairing.Err() != nil {
		return err == nil
	}
	if late {
		err = fmt.Errorf("its runner has not started for %s", a.cfg.StartPatience)
	}
	a.breakDown(err)
	_ = a.prepare(a.repairing, slot, true) // an error is the agent's end
	a.mend()
	return false
}

func (a *Agent) prepare(ctx context.Context, slot int, patient bool) error {
	for _, ex := range a.cfg.Executors {
		if p, ok := ex.(Preparer); ok {
			if err := p.Prepare(ctx, slot, patient); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *Agent) breakDown(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool.broken++
	a.fault = task.ClipText("no runner starts: "+err.Error(), 1024)
	a.window.Close()
	left := a.pool.slots - a.pool.broken
	if a.pool.broken == 1 || left == 0 {
		a.log.Error("slots do not work and take no tasks", "broken", a.pool.broken, "slots", a.pool.slots, "error", err)
	}
	if left == 0 {
		a.giveBackLocked(len(a.queue), a.fault)
	}
	a.nudge() // tells the dispatcher
}

func (a *Agent) mend() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool.broken--
	if a.pool.broken == 0 {
		a.fault = ""
		if !a.ending {
			a.log.Info("all slots work again", "slots", a.pool.slots)
		}
	}
	a.nudge()
}

// putBack puts a claim that was taken and not started at the head of the queue, for a slot
// that is in order.
func (a *Agent) putBack(c *claim) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case c.stopped != notStopped:
		a.reportLocked(c, c.stopped.end())
	case a.draining || a.ending:
		a.reportLocked(c, task.Fail(task.EndReturned, "the worker accepts no more work"))
	case a.pool.broken == a.pool.slots:
		a.reportLocked(c, task.Fail(task.EndReturned, a.fault))
	default:
		c.stop, c.phase = nil, waiting
		a.queue = append([]*claim{c}, a.queue...)
		a.wakeSlot()
	}
	a.nudge()
}

// toldLocked is how many slots the dispatcher is to know of, and whether none is in order.
func (a *Agent) toldLocked() (slots int, unfit bool) {
	working := a.pool.slots - a.pool.broken
	return max(working, 1), working == 0
}
