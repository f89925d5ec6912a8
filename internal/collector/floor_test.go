package collector

import (
	"runtime"
	"runtime/metrics"
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
	keepFloor(t, 64<<20)
	held := make([]byte, 48<<20) // live enough for a percentage next to the default
	runtime.GC()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		// Setting it, to learn what it was, would undo what happens meanwhile.
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		got := sample[0].Value.Uint64()
		if got == defaultPercent {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the percentage is %d with %d bytes live", got, live())
		}
	}
	runtime.KeepAlive(held)
}

// TestBurst: what was live for a moment is collected soon, though nobody needs memory.
func TestBurst(t *testing.T) {
	runtime.GC()
	keepFloor(t, 64<<20)
	state.mu.Lock()
	state.settled = live()
	state.mu.Unlock()
	burst := make([]byte, rise+16<<20)
	runtime.GC()
	if live() < rise {
		t.Fatalf("%d bytes are live, want %d at least", live(), rise)
	}
	runtime.KeepAlive(burst)
	for deadline := time.Now().Add(20 * time.Second); live() >= rise; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what the burst held is still there")
		}
	}
}

// TestFloorLeavesGOGC: who set it knows better.
func TestFloorLeavesGOGC(t *testing.T) {
	t.Setenv("GOGC", "50")
	if !chosen() {
		t.Error("GOGC=50 is not seen")
	}
	t.Setenv("GOGC", "")
	if chosen() {
		t.Error("an empty GOGC is taken for a choice")
	}
}
