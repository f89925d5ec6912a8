// Package window decides how many short tasks may be on their way to a worker
// beyond its slots, so that the pipe between dispatcher and worker never runs dry.
package window

import "time"

// Limits of the window.
const (
	// Short is the run time below which a task is worth queueing ahead: delivering
	// one takes about as long as running it.
	Short = 5 * time.Millisecond
	// Max is the largest window, in tasks.
	Max = 64
)

// Window follows the measured run times of one worker. The zero value is closed.
// It is not safe for concurrent use.
type Window struct {
	mean time.Duration
	size int
	seen bool
}

// Observe takes one measured run time: the window doubles while the moving average
// stays below [Short] and closes at once when it does not.
func (w *Window) Observe(d time.Duration) {
	if !w.seen {
		w.mean, w.seen = d, true
	} else {
		w.mean += (d - w.mean) / 8
	}
	if w.mean >= Short || d >= Short {
		w.size = 0
		return
	}
	w.size = min(Max, max(1, 2*w.size))
}

// Size is how many tasks may wait at the worker beyond its slots.
func (w *Window) Size() int { return w.size }

// Close shuts the window until short run times are observed again: somebody else
// has an idle slot for what waits here.
func (w *Window) Close() { w.size = 0 }
