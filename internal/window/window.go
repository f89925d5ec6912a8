// Package window decides how many short tasks may be on their way to a worker
// beyond its slots, so that the pipe between dispatcher and worker never runs dry.
package window

import "time"

// Limits of the window.
const (
	// Short is the run time below which a task is worth queueing ahead: delivering
	// one takes about as long as running it.
	Short = 5 * time.Millisecond
	// Depth is how long a worker is expected to take for all that waits in its window, by the
	// rate at which it has worked and by the run times of its tasks. It is what an urgent task
	// waits for where every slot is busy.
	Depth = 10 * time.Millisecond
	// Least is a window that needs no proof by a rate: with fewer tasks the pipe runs dry.
	Least = 64
	// Max is the largest window, in tasks. Larger batches cost less a task, as a commit, a frame
	// and a wake-up are paid for once for each: with 64, 256 and 1,024 a no-op task took 72, 51
	// and 37 us of CPU time in Go, 97, 70 and 52 in Python. But 1,024 are 50 ms of work.
	Max = 256
)

// Window follows the measured run times of one worker. The zero value is closed.
// It is not safe for concurrent use.
type Window struct {
	mean time.Duration
	size int
	seen bool
	// done tasks were observed since the time since; rate is how many ended in Depth of late.
	since time.Time
	done  int
	rate  int
}

// Observe takes one measured run time, of a task whose end is noted now: the window doubles
// while the moving average stays below [Short] and closes at once when it does not.
func (w *Window) Observe(now time.Time, d time.Duration) {
	w.count(now)
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

// count measures the rate. A pause says nothing about how fast the worker is.
func (w *Window) count(now time.Time) {
	w.done++
	switch took := now.Sub(w.since); {
	case took > 4*Depth:
	case took < Depth:
		return
	default:
		w.rate = (w.rate + int(int64(w.done)*int64(Depth)/int64(took)) + 1) / 2
	}
	w.since, w.done = now, 0
}

// Size is how many tasks may wait at a worker of so many slots beyond them.
func (w *Window) Size(slots int) int {
	size := min(w.size, max(Least, w.rate))
	if w.mean > 0 {
		size = min(size, max(1, int(time.Duration(slots)*Depth/w.mean)))
	}
	return size
}

// Open reports whether any task may wait there.
func (w *Window) Open() bool { return w.size > 0 }

// Close shuts the window until short run times are observed again: somebody else
// has an idle slot for what waits here.
func (w *Window) Close() { w.size = 0 }
