package pebblestore

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/storetap"
	"github.com/treadle-dev/treadle/store/storetest"
)

// fakeClock is a clock that moves when it is told to.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var quiet = slog.New(slog.DiscardHandler)

// fixture is one folder with a store open on it.
type fixture struct {
	opts  Options
	clock *fakeClock
	s     *Store
}

func (f *fixture) open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(context.Background(), f.opts)
	if err != nil {
		t.Fatal(err)
	}
	f.s = s
	return s
}

// newFixture opens a store in its own folder and closes whichever is open at the end.
func newFixture(t *testing.T, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{clock: newClock()}
	f.opts = Options{Dir: "store", Retention: time.Minute, Lease: 10 * time.Second, Now: f.clock.Now, Logger: quiet}
	change(&f.opts)
	f.open(t)
	t.Cleanup(func() {
		// A test may have closed the store itself.
		if err := f.s.Close(); err != nil && !f.s.closed {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) reopen(t *testing.T) *Store {
	t.Helper()
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	return f.open(t)
}

// crash goes on with what a power cut would leave: what was synced and a random part
// of the rest.
func (f *fixture) crash(t *testing.T, rng *rand.Rand, percent int) *Store {
	t.Helper()
	clone := f.opts.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	f.opts.FS = clone
	return f.open(t)
}

func (f *fixture) harness() storetest.Harness {
	return storetest.Harness{
		Store: storetap.Wrap(f.s), Now: f.clock.Now, Advance: f.clock.Advance, Retention: f.opts.Retention, Lease: f.opts.Lease,
		Reopen:      func(t *testing.T) store.Store { return storetap.Wrap(f.reopen(t)) },
		OwnerMemory: true,
		Check:       func() error { return f.s.CheckInvariants(context.Background()) },
		Keys:        func() (int, error) { return f.s.CountKeys() },
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("CrashableMemory", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			f := newFixture(t, func(o *Options) { o.FS = vfs.NewCrashableMem() })
			h := f.harness()
			h.Crash = func(t *testing.T) store.Store { return storetap.Wrap(f.crash(t, nil, 0)) }
			return h
		})
	})
	t.Run("Disk", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			return newFixture(t, func(o *Options) { o.Dir = t.TempDir() }).harness()
		})
	})
	t.Run("Memory", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.Durability = Memory }).harness()
			h.Reopen = nil
			return h
		})
	})
	// Nearly every record is read back from disk.
	t.Run("LittleMemory", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			return newFixture(t, func(o *Options) { o.FS = vfs.NewMem(); o.maxResident = 1 }).harness()
		})
	})
}
