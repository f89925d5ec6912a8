// Package collector fits Go's garbage collector to a process that passes on what it gets:
// it runs less often than by default while the heap is small, and more often while a few
// large values pass.
package collector

import (
	"math"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// The collector lets the heap grow to twice what was live when it last ran. That is
// right for many small objects and wrong for six copies of one large value, most of
// them garbage. A memory limit makes it run earlier; as a limit that is near to what is
// live makes it run all the time, it is in force only while large values pass, and only
// where the heap is otherwise small.
const (
	// Large is the size from which a value is worth a word to [Passing], in bytes.
	Large = 8 << 20

	// limit is the memory that the runtime aims at while large values pass.
	limit = 576 << 20
	// maxLive is the live heap from which the limit would cost more than it saves.
	maxLive = 448 << 20
	// lasts is how long a large value is taken to be under way.
	lasts = 15 * time.Second
)

var state struct {
	mu    sync.Mutex
	timer *time.Timer
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
	if state.timer != nil && state.timer.Stop() {
		if live() <= maxLive {
			state.timer.Reset(lasts)
		} else {
			restore()
		}
		return
	}
	if debug.SetMemoryLimit(-1) != math.MaxInt64 || live() > maxLive {
		return
	}
	debug.SetMemoryLimit(limit)
	var timer *time.Timer
	timer = time.AfterFunc(lasts, func() {
		state.mu.Lock()
		defer state.mu.Unlock()
		if state.timer == timer {
			restore()
		}
	})
	state.timer = timer
}

func restore() {
	debug.SetMemoryLimit(math.MaxInt64)
	state.timer = nil
}

// live returns what the last collection found live, in bytes.
func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
