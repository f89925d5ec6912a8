package dispatcher_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store/redisstore"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/worker"
)

// onEachStore runs a test on the embedded store and on Redis.
func onEachStore(t *testing.T, test func(t *testing.T, f *fabric)) {
	t.Run("embedded", func(t *testing.T) { test(t, newFabric(t)) })
	t.Run("redis", func(t *testing.T) {
		server := redistest.Start(t)
		s, err := redisstore.Open(t.Context(), redisstore.Options{URL: server.URL(""), Logger: testLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		test(t, newFabricOn(t, s))
	})
}

// cutter keeps the links that it led to dispatchers, so that a test can cut them.
type cutter struct {
	movingAttacher
	mu    sync.Mutex
	links []link.Conn
}

func (c *cutter) Attach(ctx context.Context, conn link.Conn, mode link.Mode) error {
	c.mu.Lock()
	c.links = append(c.links, conn)
	c.mu.Unlock()
	return c.movingAttacher.Attach(ctx, conn, mode)
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links[len(c.links)-1].Close(errors.New("cut by the test"))
}

// holding are handlers that run until they are released, once.
func holding(runs *atomic.Int64, started chan<- struct{}, release <-chan struct{}) *worker.Handlers {
	h := &worker.Handlers{}
	worker.HandleIn(h, "hold", func(context.Context, int) (string, error) {
		runs.Add(1)
		started <- struct{}{}
		<-release
		return "kept", nil
	})
	return h
}

// A worker whose link broke may come back to any dispatcher: the one that lost it must
// not end, when its grace is over, what the other one has taken over.
func TestBrokenLinkComesBackElsewhere(t *testing.T) {
	onEachStore(t, func(t *testing.T, f *fabric) {
		quick := func(c *dispatcher.Config) { c.Grace = 50 * time.Millisecond }
		d1, _ := f.dispatcher(quick)
		d2, _ := f.dispatcher(quick)
		var runs, dials atomic.Int64
		started, release := make(chan struct{}, 8), make(chan struct{})
		way := &cutter{movingAttacher: movingAttacher{dials: &dials, to: []worker.Attacher{d1, d2}}}
		f.agent(way, link.Push, 1, holding(&runs, started, release))
		ids, ends := f.submit("hold", 1, nil)
		<-started
		way.cut()
		f.await("the worker is at the second dispatcher, and the first has given it up", 10*time.Second, func() bool {
			return d2.Sessions() == 1 && d1.Sessions() == 0
		})
		close(release)
		f.wait(ends, 10*time.Second)
		if tk, got := f.result(ids[0]); got != `"kept"` || tk.AttemptCount != 1 || tk.Losses != 0 || runs.Load() != 1 {
			t.Fatalf("result %q after %d attempts, %d losses and %d runs, want one attempt", got, tk.AttemptCount, tk.Losses, runs.Load())
		}
	})
}
