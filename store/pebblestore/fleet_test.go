package pebblestore

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
)

// TestFleetIsPruned: who is not announced again is forgotten, a while after its name is of no use, also
// where the clock was set back.
func TestFleetIsPruned(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	ctx, now := context.Background(), f.clock.Now()
	reap := func(at time.Duration, want int) {
		t.Helper()
		if _, err := f.s.Reap(ctx, now.Add(at), 10); err != nil {
			t.Fatal(err)
		}
		f.s.fleet.mu.Lock()
		defer f.s.fleet.mu.Unlock()
		if n := len(f.s.fleet.entries); n != want {
			t.Fatalf("%d workers are kept at %s, want %d", n, at, want)
		}
	}
	reap(0, 0)
	for worker, until := range map[string]time.Duration{"a": 6 * time.Second, "b": time.Hour} {
		if err := f.s.Announce(ctx, now.Add(until), []store.Presence{{Worker: worker}}); err != nil {
			t.Fatal(err)
		}
	}
	reap(pruneEvery, 2)
	reap(6*time.Second+namesKept-1, 2)
	reap(6*time.Second+namesKept+pruneEvery, 1)
	reap(-time.Hour, 1)
	reap(time.Hour+namesKept+pruneEvery, 0)
}
