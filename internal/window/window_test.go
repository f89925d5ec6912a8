package window

import (
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	var w Window
	if w.Size() != 0 {
		t.Fatalf("an unmeasured worker has a window of %d, want 0", w.Size())
	}
	for _, want := range []int{1, 2, 4, 8, 16, 32, 64, 64} {
		w.Observe(time.Millisecond)
		if w.Size() != want {
			t.Fatalf("window %d, want %d", w.Size(), want)
		}
	}
	w.Observe(Short)
	if w.Size() != 0 {
		t.Fatalf("window %d after a task of %s, want 0", w.Size(), Short)
	}
	w.Observe(Short - 1)
	if w.Size() != 1 {
		t.Fatalf("window %d after a task just below %s, want 1", w.Size(), Short)
	}
	w.Close()
	if w.Size() != 0 {
		t.Fatalf("window %d after Close, want 0", w.Size())
	}
}
