package collector

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func current() int64 { return debug.SetMemoryLimit(-1) }

// within waits for a limit that a timer sets.
func within(t *testing.T, want int64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); current() != want; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("the limit is %d, want %d", current(), want)
		}
	}
}

func TestPassing(t *testing.T) {
	alone(t)
	runtime.GC() // what counts as live is what the last collection found
	if current() != math.MaxInt64 {
		t.Fatalf("a limit of %d is set already", current())
	}
	Passing(Large - 1)
	if got := current(); got != math.MaxInt64 {
		t.Fatalf("a small value set the limit %d", got)
	}
	Passing(Large)
	if got := current(); got != limit {
		t.Fatalf("the limit is %d, want %d", got, limit)
	}
	passing(time.Millisecond) // shortens what is in force
	within(t, math.MaxInt64)
	passing(time.Millisecond)
	within(t, math.MaxInt64)
}

func TestPassingKeepsTheUsersLimit(t *testing.T) {
	const own = 1 << 30
	alone(t)
	debug.SetMemoryLimit(own)
	defer debug.SetMemoryLimit(math.MaxInt64)
	Passing(Large)
	if got := current(); got != own {
		t.Errorf("the limit is %d, the user said %d", got, int64(own))
	}
}

// TestPassingBesideMuch: the limit follows what is live, and goes where it would have the
// collector run all the time.
func TestPassingBesideMuch(t *testing.T) {
	alone(t)
	t.Cleanup(runtime.GC) // the next test starts without it
	for _, c := range []struct {
		live int
		want int64
	}{{maxLive + 1<<20, largeLimit}, {maxLarge + 1<<20, math.MaxInt64}} {
		ballast := make([]byte, c.live)
		runtime.GC()
		Passing(Large)
		if got := current(); got != c.want {
			t.Errorf("%d bytes live: the limit is %d, want %d", c.live, got, c.want)
		}
		runtime.KeepAlive(ballast)
	}
}

// alone leaves nothing of a test in force for the next one.
func alone(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		state.mu.Lock()
		defer state.mu.Unlock()
		if state.timer != nil {
			state.timer.Stop()
		}
		state.timer, state.floor = nil, false
		aim(0)
	})
}

// keepFloor has the process keep a floor for one test.
func keepFloor(t *testing.T, floor uint64) {
	t.Helper()
	alone(t)
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	KeepFloor(floor)
}

// TestFloorLimitsGarbage: the limit is there while little is live, gives way to that of large
// values, and goes when more is live than it would suit.
func TestFloorLimitsGarbage(t *testing.T) {
	runtime.GC()
	keepFloor(t, 64<<20)
	within(t, usual)
	Passing(Large)
	within(t, limit)
	passing(time.Millisecond)
	within(t, usual)
	ballast := make([]byte, maxLive+1<<20)
	runtime.GC()
	within(t, math.MaxInt64)
	runtime.KeepAlive(ballast)
	// One that follows another at once finds nobody to tell.
	for deadline := time.Now().Add(10 * time.Second); current() != usual; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("the limit is %d with %d bytes live, want %d", current(), live(), usual)
		}
	}
}

func TestFloorKeepsTheUsersLimit(t *testing.T) {
	const own = 1 << 30
	debug.SetMemoryLimit(own)
	defer debug.SetMemoryLimit(math.MaxInt64)
	keepFloor(t, 64<<20)
	runtime.GC()
	Passing(Large)
	if got := current(); got != own {
		t.Errorf("the limit is %d, the user said %d", got, int64(own))
	}
}
