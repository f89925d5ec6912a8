package worker

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// growAfter is how long a claim must wait for a slot before one is opened for it: a
	// Python runner costs a good part of that to start, and short tasks are over by then.
	growAfter = 40 * time.Millisecond
	// growPause is how long nothing is tried after a slot could not be opened.
	growPause = 5 * time.Second
)

// pool is the number of slots, which follows the work: a claim that waits opens slots, one
// after the other's start at most doubling them, and a slot that was idle for long shuts.
// The dispatcher offers more than there are slots only to agents that may open more, so
// push, pull and local grow by the same event. Guarded by the agent's mutex.
type pool struct {
	least, most int
	// slots are there, growing are being opened, broken are there and can run nothing at present.
	slots, growing, broken int
	// preparing are slots that would take a claim, were their runners there already.
	preparing int
	// woken are slots on their way to a claim, woken or new: what waits for them waits for no
	// other.
	woken int
	// paused: slots cannot be opened at present.
	paused bool
	// used tells the numbers of slots apart, which executors know them by.
	used []bool
	// crowded wakes the goroutine that opens slots.
	crowded chan struct{}
}

func newPool(least, most int) pool {
	p := pool{least: least, most: most, slots: least, used: make([]bool, most), crowded: make(chan struct{}, 1)}
	for i := range least {
		p.used[i] = true
	}
	return p
}

// crowdLocked wakes the grower when a claim waits and no slot will take it.
func (a *Agent) crowdLocked() {
	if a.lackLocked() == 0 {
		return
	}
	select {
	case a.pool.crowded <- struct{}{}:
	default:
	}
}

// grow opens slots while claims wait, until ctx ends. run starts the goroutine of a slot.
func (a *Agent) grow(ctx context.Context, run func(slot int)) {
	for {
		select {
		case <-a.pool.crowded:
		case <-ctx.Done():
			return
		}
		for a.lack() > 0 {
			if !sleep(ctx, growAfter) {
				return
			}
			if a.open(ctx, run) {
				continue
			}
			a.pause(true)
			over := sleep(ctx, growPause)
			a.pause(false)
			if !over {
				return
			}
		}
	}
}

func (a *Agent) pause(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool.paused = on
}

func (a *Agent) lack() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lackLocked()
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// open opens the slots that are lacking, side by side, and returns when they serve; false
// means that one could not be opened.
func (a *Agent) open(ctx context.Context, run func(slot int)) bool {
	a.mu.Lock()
	var numbers []int
	for range a.lackLocked() {
		n := slices.Index(a.pool.used, false)
		if n < 0 {
			break // one that shuts still has its number
		}
		a.pool.used[n] = true
		a.pool.growing++
		numbers = append(numbers, n)
	}
	a.mu.Unlock()
	var opening sync.WaitGroup
	var mu sync.Mutex
	ok := true
	for _, n := range numbers {
		opening.Go(func() {
			err := a.openExecutors(ctx, n)
			a.mu.Lock()
			defer a.mu.Unlock()
			a.pool.growing--
			if err != nil {
				a.pool.used[n] = false
				mu.Lock()
				ok = false
				mu.Unlock()
				if ctx.Err() != nil {
					return // the agent ends
				}
				a.log.Warn("a slot could not be opened", "slots", a.pool.slots, "error", err)
				return
			}
			a.pool.slots++
			a.pool.woken++
			a.log.Debug("a slot was opened", "slots", a.pool.slots)
			run(n)
			a.nudge() // tells the dispatcher
		})
	}
	opening.Wait()
	return ok
}

func (a *Agent) openExecutors(ctx context.Context, slot int) error {
	var opened []Elastic
	for _, ex := range a.cfg.Executors {
		el, ok := ex.(Elastic)
		if !ok {
			continue
		}
		if err := el.Open(ctx, slot); err != nil {
			for _, o := range opened {
				o.Shut(slot)
			}
			return err
		}
		opened = append(opened, el)
	}
	return nil
}

// retireLocked ends a slot that was idle for long; false means that it has to stay.
func (a *Agent) retireLocked() bool {
	if a.pool.slots <= a.pool.least || a.ending {
		return false
	}
	a.pool.slots--
	a.nudge() // tells the dispatcher
	a.log.Debug("an idle slot is shut", "slots", a.pool.slots)
	return true
}

// shut lets go of what executors keep for a slot that has ended.
func (a *Agent) shut(slot int) {
	for _, ex := range a.cfg.Executors {
		if el, ok := ex.(Elastic); ok {
			el.Shut(slot)
		}
	}
	a.mu.Lock()
	a.pool.used[slot] = false
	a.crowdLocked()
	a.mu.Unlock()
}

// awaitLocked waits with the mutex free until a claim may be there; false means that the
// slot is no longer needed.
func (a *Agent) awaitLocked(wake chan struct{}) bool {
	var over <-chan time.Time
	if a.pool.slots > a.pool.least {
		timer := time.NewTimer(a.cfg.IdleAfter)
		defer timer.Stop()
		over = timer.C
	}
	a.mu.Unlock()
	select {
	case <-wake:
		a.mu.Lock()
		a.pool.woken--
		return true
	case <-over:
	}
	a.mu.Lock()
	i := slices.Index(a.idle, wake)
	if i < 0 {
		// It was woken in the same moment.
		<-wake
		a.pool.woken--
		return true
	}
	a.idle = slices.Delete(a.idle, i, i+1)
	return !a.retireLocked()
}
