//go:build chaos

package dispatcher_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// overlaps notices attempts of one task that run at the same time.
type overlaps struct {
	mu      sync.Mutex
	running map[int]int
	seen    atomic.Int64
	stopped atomic.Int64
}

// handlers has "double", which is short, and "hold", which takes a while and stops when it
// is told to.
func (o *overlaps) handlers(lasts time.Duration) *worker.Handlers {
	h := doubling(new(atomic.Int64))
	worker.HandleIn(h, "hold", func(ctx context.Context, n int) (int, error) {
		o.enter(n, 1)
		defer o.enter(n, -1)
		timer := time.NewTimer(lasts)
		defer timer.Stop()
		select {
		case <-timer.C:
			return 2 * n, nil
		case <-ctx.Done():
			o.stopped.Add(1)
			return 0, ctx.Err()
		}
	})
	return h
}

func (o *overlaps) enter(n, by int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running[n] += by; o.running[n] > 1 {
		o.seen.Add(1)
	}
}

// lagging starts a dispatcher with leases of 3 s, which a worker takes for 2.4 s, and two workers.
func lagging(t *testing.T, o *overlaps, lasts time.Duration) *fabric {
	t.Helper()
	f := newFabric(t)
	d, _ := f.dispatcher(func(c *dispatcher.Config) { c.Lease, c.Heartbeat = 3*time.Second, 400*time.Millisecond })
	for range 2 {
		t.Cleanup(f.agent(d, link.Push, 8, o.handlers(lasts)))
	}
	return f
}

// TestLagStarvesNoLease: each batch of the loop takes 300 ms more while thousands of short
// tasks pass it, and whoever runs something long keeps it.
func TestLagStarvesNoLease(t *testing.T) {
	o := &overlaps{running: map[int]int{}}
	f := lagging(t, o, 8*time.Second)
	failpoint.SetLag(300 * time.Millisecond)
	defer failpoint.SetLag(0)
	long, longEnds := f.submit("hold", 6, nil)
	_, shortEnds := f.submit("double", 2000, nil)
	f.wait(longEnds, time.Minute)
	failpoint.SetLag(0)
	f.wait(shortEnds, time.Minute)
	for _, id := range long {
		if got, _ := f.result(id); got.Status != task.Completed || got.AttemptCount != 1 || got.Losses != 0 {
			t.Errorf("task %s is %s after %d attempts and %d losses: %+v", id, got.Status, got.AttemptCount, got.Losses, got.Attempts)
		}
	}
	if n := o.seen.Load(); n != 0 {
		t.Errorf("%d attempts ran while another one of their task did", n)
	}
}

// TestLagBeyondTheLease: acknowledgements are later than leases last. Workers stop what
// they run before it can run elsewhere, and nothing is lost.
func TestLagBeyondTheLease(t *testing.T) {
	o := &overlaps{running: map[int]int{}}
	f := lagging(t, o, 4*time.Second)
	long, ends := f.submit("hold", 6, func(tk *task.Task) { tk.MaxRetries = 50 })
	f.await("the tasks run", 10*time.Second, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.running) == len(long)
	})
	failpoint.SetLag(2 * time.Second)
	defer failpoint.SetLag(0)
	f.await("workers stop what they run", 20*time.Second, func() bool { return o.stopped.Load() > 0 })
	failpoint.SetLag(0)
	f.wait(ends, time.Minute)
	for _, id := range long {
		if got, _ := f.result(id); got.Status != task.Completed {
			t.Errorf("task %s is %s: %+v", id, got.Status, got.Failure)
		}
	}
	if n := o.seen.Load(); n != 0 {
		t.Errorf("%d attempts ran while another one of their task did", n)
	}
}
