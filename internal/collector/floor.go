package collector

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
)

const (
	// defaultPercent is Go's own, and what heaps above the floor get.
	defaultPercent = 100
	// maxPercent bounds what a heap that is next to empty gets.
	maxPercent = 10000
)

// KeepFloor lets the heap grow to about floor bytes before it is collected; above that the
// collector runs as it always does: whenever the heap has doubled, which would cost a
// process with a few megabytes a tenth of its time. It holds for the rest of the process, and
// is to be called once. While little is live, a memory limit bounds garbage too, and what a
// burst leaves is collected some seconds later. A GOGC that the user set stays in force and
// turns all this off; a GOMEMLIMIT does so for the limit.
func KeepFloor(floor uint64) {
	if chosen() {
		return
	}
	state.mu.Lock()
	state.floor = true
	state.mu.Unlock()
	tune(floor)
	afterCollection(floor)
}

// chosen says that the user has set how often the collector runs.
func chosen() bool { return os.Getenv("GOGC") != "" }

// afterCollection tunes anew whenever the collector has run: it has then found a value that
// nobody holds.
func afterCollection(floor uint64) {
	// Not a tiny object: those are freed by the block.
	sentinel := new([16]*byte)
	runtime.AddCleanup(sentinel, func(floor uint64) {
		tune(floor)
		afterCollection(floor)
	}, floor)
}

func tune(floor uint64) {
	found := live()
	debug.SetGCPercent(percent(floor, found))
	state.mu.Lock()
	defer state.mu.Unlock()
	aim(found)
	lookAgain(found)
}

// percent is how much the heap may grow over what is live, so that it reaches the floor.
func percent(floor, live uint64) int {
	if live == 0 {
		live = 1 << 20 // before the first collection
	}
	if live >= floor {
		return defaultPercent
	}
	return int(math.Min(math.Max(float64(floor-live)/float64(live)*100, defaultPercent), maxPercent))
}
