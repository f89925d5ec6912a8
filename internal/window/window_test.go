package window

import (
	"testing"
	"time"
)

// slots are so many that the run times of these tests bound no window.
const slots = 1000

// observe notes the ends of n tasks, one each period.
func observe(w *Window, now *time.Time, n int, period, run time.Duration) {
	for range n {
		*now = now.Add(period)
		w.Observe(*now, run)
	}
}

func TestWindow(t *testing.T) {
	var w Window
	now := time.Unix(1000, 0)
	want := func(size int, when string) {
		t.Helper()
		if w.Size(slots) != size || w.Open() != (size > 0) {
			t.Fatalf("%s: window %d, open %t, want %d", when, w.Size(slots), w.Open(), size)
		}
	}
	want(0, "nothing was measured")
	for _, size := range []int{1, 2, 4, 8, 16, 32, 64, 64, 64} {
		observe(&w, &now, 1, time.Microsecond, time.Microsecond)
		want(size, "a short task")
	}
	observe(&w, &now, 1, time.Microsecond, Short)
	want(0, "a task that is not short")
	observe(&w, &now, 1, time.Microsecond, Short-1)
	want(1, "a task just below it")
	w.Close()
	want(0, "closed")
}

// TestRate: more than Least tasks wait only at a worker that works through them within Depth.
func TestRate(t *testing.T) {
	for _, c := range []struct {
		period time.Duration
		least  int
		most   int
	}{
		{5 * time.Microsecond, Max, Max},        // 2,000 in Depth
		{39 * time.Microsecond, Max - 2, Max},   // 256
		{50 * time.Microsecond, 196, 201},       // 200
		{100 * time.Microsecond, 97, 101},       // 100
		{156 * time.Microsecond, Least, Least},  // 64
		{time.Millisecond, Least, Least},        // 10
		{50 * time.Millisecond, Least, Least},   // less than one
		{100 * time.Millisecond, Least, Least},  // a worker that is hardly used
		{1000 * time.Millisecond, Least, Least}, //
	} {
		var w Window
		now := time.Unix(1000, 0)
		observe(&w, &now, 5000, c.period, 0)
		if got := w.Size(slots); got < c.least || got > c.most {
			t.Errorf("a task each %s: window %d, want %d to %d", c.period, got, c.least, c.most)
		}
	}
}

// TestRateFollows: a worker that slows down gets less within a few times Depth; one that had
// nothing to do keeps what it has shown.
func TestRateFollows(t *testing.T) {
	var w Window
	now := time.Unix(1000, 0)
	observe(&w, &now, 5000, 40*time.Microsecond, 0)
	if got := w.Size(slots); got < 240 {
		t.Fatalf("window %d, want 240 or more", got)
	}
	now = now.Add(time.Minute)
	observe(&w, &now, 1, 0, 0)
	if got := w.Size(slots); got < 240 {
		t.Errorf("after a pause: window %d, want 240 or more", got)
	}
	observe(&w, &now, 400, 150*time.Microsecond, 0)
	if got := w.Size(slots); got > 80 {
		t.Errorf("60 ms after it slowed down: window %d, want 80 at most", got)
	}
}

// TestRunTimes: what waits in a window is never more than the slots are expected to do in Depth.
func TestRunTimes(t *testing.T) {
	for _, c := range []struct {
		run         time.Duration
		slots, want int
	}{
		{time.Microsecond, 1, Max},
		{time.Millisecond, 1, 10}, {time.Millisecond, 4, 40}, {time.Millisecond, 26, Max},
		{Short - 1, 1, 2}, {Short - 1, 4, 8},
	} {
		var w Window
		now := time.Unix(1000, 0)
		observe(&w, &now, 5000, 10*time.Microsecond, c.run)
		if got := w.Size(c.slots); got != c.want {
			t.Errorf("%d slots, tasks of %s: window %d, want %d", c.slots, c.run, got, c.want)
		}
	}
}
