package collector

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		floor, live uint64
		want        int
	}{
		{128 * mib, 64 * mib, 100},
		{128 * mib, 32 * mib, 300},
		{128 * mib, 96 * mib, 100},
		{128 * mib, 128 * mib, 100},
		{128 * mib, 4096 * mib, 100},
		{128 * mib, 0, maxPercent},
		{128 * mib, 1, maxPercent},
		{0, 0, 100},
	} {
		if got := percent(c.floor, c.live); got != c.want {
			t.Errorf("floor %d, live %d: %d %%, want %d", c.floor, c.live, got, c.want)
		}
	}
}

// TestFloor: collections become rare while the heap is small, and the percentage follows
// what is live.
func TestFloor(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	const floor = 64 << 20
	KeepFloor(floor)
	held := make([]byte, 48<<20) // live enough for a percentage next to the default
	runtime.GC()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		got := debug.SetGCPercent(100)
		debug.SetGCPercent(got)
		if got == defaultPercent {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the percentage is %d with %d bytes live", got, live())
		}
	}
	runtime.KeepAlive(held)
}

// TestFloorLeavesGOGC: who set it knows better.
func TestFloorLeavesGOGC(t *testing.T) {
	t.Setenv("GOGC", "50")
	before := debug.SetGCPercent(50)
	defer debug.SetGCPercent(before)
	KeepFloor(math.MaxInt64)
	if got := debug.SetGCPercent(50); got != 50 {
		t.Errorf("the percentage is %d, want the user's 50", got)
	}
}
