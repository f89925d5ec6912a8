package localbell

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/treadle-dev/treadle/task"
)

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bell
		one, two := task.ID{1}, task.ID{2}
		if b.Watched(one) {
			t.Error("watched before anybody asked")
		}
		b.Watch(one, time.Second)
		b.Watch(one, 10*time.Millisecond) // a shorter wish takes nothing back
		if !b.Watched(one) || b.Watched(two) {
			t.Error("the wrong task is watched")
		}
		time.Sleep(900 * time.Millisecond)
		if !b.Watched(one) {
			t.Error("forgotten too early")
		}
		b.Watch(one, time.Second)
		time.Sleep(900 * time.Millisecond)
		if !b.Watched(one) {
			t.Error("the second wish did not count")
		}
		time.Sleep(200 * time.Millisecond)
		if b.Watched(one) || b.watch.size.Load() != 0 {
			t.Error("still watched after its time")
		}
	})
}

// TestWatchForgets: entries whose tasks nobody asks about do not gather.
func TestWatchForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bell
		for i := range 10_000 {
			b.Watch(task.ID{byte(i), byte(i >> 8), 1}, time.Millisecond)
			time.Sleep(100 * time.Microsecond)
		}
		if n := b.watch.size.Load(); n > 2*minPrune {
			t.Errorf("%d entries are kept", n)
		}
	})
}

func TestWatchFromEverywhere(t *testing.T) {
	var b Bell
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for n := range 1000 {
				b.Watch(task.ID{byte(n), byte(i)}, time.Duration(n)*time.Microsecond)
				b.Watched(task.ID{byte(n)})
			}
		})
	}
	group.Wait()
}
