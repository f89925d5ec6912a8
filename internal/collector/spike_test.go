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
	debug.SetMemoryLimit(own)
	defer debug.SetMemoryLimit(math.MaxInt64)
	Passing(Large)
	if got := current(); got != own {
		t.Errorf("the limit is %d, the user said %d", got, int64(own))
	}
}

func TestPassingLeavesLargeHeapsAlone(t *testing.T) {
	t.Cleanup(runtime.GC) // the next test starts without it
	ballast := make([]byte, maxLive+1<<20)
	runtime.GC()
	Passing(Large)
	if got := current(); got != math.MaxInt64 {
		t.Errorf("the limit is %d", got)
	}
	runtime.KeepAlive(ballast)
}
