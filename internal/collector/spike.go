// Package collector fits Go's garbage collector to a process that passes on what it gets:
// it runs less often than by default while the heap is small, more often while a few
// large values pass, and once more when a burst is over.
package collector

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// The collector lets the heap grow to twice what was live when it last ran. That is
// right for many small objects and wrong for six copies of one large value, most of
// them garbage. A memory limit makes it run earlier; as a limit that is near to what is
// live makes it run all the time, it is in force only where the heap is otherwise small.
const (
	// Large is the size from which a value is worth a word to [Passing], in bytes.
	Large = 8 << 20

	// usual is the memory that the runtime aims at in a process that keeps a floor. Without it
	// the garbage of one burst stayed until the next one: a heap of which 400 MiB had been live
	// for a moment was collected at 800 MiB only, minutes later.
	usual = 768 << 20
	// limit is the same while large values pass.
	limit = 576 << 20
	// maxLive is the live heap from which the limits would cost more than they save.
	maxLive = 448 << 20
	// largeLimit is the limit while so many large values pass that more than maxLive is live,
	// and maxLarge where that ends: 24 calls at once with 40 MiB each had the heap at 1.1 GiB
	// without it.
	largeLimit, maxLarge = 832 << 20, 640 << 20
	// lasts is how long a large value is taken to be under way.
	lasts = 15 * time.Second
	none  = math.MaxInt64

	// rise is how much more must be live than before for the collector to run once more after
	// soon. What a burst held is garbage when the burst is over, and the collector would come
	// when the heap has doubled, or after two minutes: the next burst came on top of it. A heap
	// that grows in earnest pays one collection for each rise.
	rise = 128 << 20
	soon = 3 * time.Second
)

var state struct {
	mu sync.Mutex
	// timer ends the time in which large values pass; nil when none do.
	timer *time.Timer
	// floor says that the process keeps one; set is the limit that was set here, 0 for none yet.
	floor bool
	set   int64
	// settled is what was live when it was last looked at again; again does so, asked says that
	// it has.
	settled uint64
	again   *time.Timer
	asked   bool
}

// Passing says that a value of that many bytes is about to be held. It may be called at
// any time by any goroutine, and costs nothing for values below [Large]. A limit that
// the user set by GOMEMLIMIT stays what it is.
func Passing(bytes int) {
	if bytes >= Large {
		passing(lasts)
	}
}

func passing(lasts time.Duration) {
	state.mu.Lock()
	defer state.mu.Unlock()
	if state.timer != nil {
		state.timer.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(lasts, func() {
		state.mu.Lock()
		defer state.mu.Unlock()
		if state.timer == timer {
			state.timer = nil
			aim(live())
		}
	})
	state.timer = timer
	aim(live())
}

// aim sets the limit for a heap of which so many bytes are live. state.mu is held.
func aim(live uint64) {
	want := int64(none)
	switch {
	case live > maxLarge || live > maxLive && state.timer == nil:
	case live > maxLive:
		want = largeLimit
	case state.timer != nil:
		want = limit
	case state.floor:
		want = usual
	}
	now := debug.SetMemoryLimit(-1)
	if now == want || now != none && now != state.set {
		return // nothing to do, or the user's own
	}
	state.set = want
	debug.SetMemoryLimit(want)
}

// lookAgain has the collector run once more soon when much more is live than before. state.mu
// is held.
func lookAgain(found uint64) {
	switch {
	case state.asked || found < state.settled:
		state.asked, state.settled = false, found
	case found >= state.settled+rise && state.again == nil:
		state.again = time.AfterFunc(soon, func() {
			state.mu.Lock()
			state.again, state.asked = nil, true
			state.mu.Unlock()
			runtime.GC()
		})
	}
}

// live returns what the last collection found live, in bytes.
func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
