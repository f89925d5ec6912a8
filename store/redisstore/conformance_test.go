package redisstore

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/store/storetest"
	"github.com/treadle-dev/treadle/task"
)

// server is the one that most tests share, each in a namespace of its own.
var server *redistest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "redisstore")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if server, err = redistest.New(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer server.Kill()
		return m.Run()
	}())
}

// fakeClock is a clock that moves when it is told to, by whole microseconds.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add((d + time.Microsecond - 1).Truncate(time.Microsecond))
}

var quiet = slog.New(slog.DiscardHandler)

var namespaces atomic.Int64

func freshNamespace() string { return fmt.Sprintf("test-%d-%d", os.Getpid(), namespaces.Add(1)) }

// fixture is one namespace with a store open on it.
type fixture struct {
	opts  Options
	clock *fakeClock
	s     *Store
	me    task.ID
}

func (f *fixture) open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(context.Background(), f.opts)
	if err != nil {
		t.Fatal(err)
	}
	if first, err := s.Attend(context.Background(), f.clock.Now(), f.me, time.Hour); err != nil || !first {
		t.Fatalf("attend: first %v, %v", first, err)
	}
	f.s = s
	return s
}

// newFixture opens a store in a fresh namespace and closes whichever is open at the end.
func newFixture(t *testing.T, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{clock: newClock(), me: task.ID{1}}
	f.opts = Options{
		URL: server.URL(""), Namespace: freshNamespace(), Retention: time.Minute, Lease: 10 * time.Second, OfferLease: -1,
		Absence: time.Hour, TrustCallerTime: true, PoolSize: 8, Logger: quiet,
	}
	if change != nil {
		change(&f.opts)
	}
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
	if err := f.s.Depart(context.Background(), f.clock.Now(), f.me); err != nil {
		t.Fatal(err)
	}
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	return f.open(t)
}

func (f *fixture) harness() storetest.Harness {
	return storetest.Harness{
		Store: f.s, Now: f.clock.Now, Advance: f.clock.Advance, Retention: f.opts.Retention, Lease: f.opts.Lease,
		Reopen: func(t *testing.T) store.Store { return f.reopen(t) },
		Check:  func() error { return f.s.CheckInvariants(context.Background()) },
		Keys:   f.keys,
	}
}

// keys counts the keys of the namespace.
func (f *fixture) keys() (n int, err error) {
	c := server.Client()
	defer c.Close()
	for _, pattern := range []string{"{" + f.opts.Namespace + "}*", "{" + f.opts.Namespace + "/*"} {
		it := c.Scan(context.Background(), 0, pattern, 1000).Iterator()
		for it.Next(context.Background()) {
			n++
		}
		if err := it.Err(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// What owners have is spread over the shards.
func TestUsageOfShards(t *testing.T) {
	storetest.RunUsage(t, func(t *testing.T) storetest.Harness {
		return newFixture(t, func(o *Options) { o.Shards = 5 }).harness()
	})
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Harness { return newFixture(t, nil).harness() })
}
