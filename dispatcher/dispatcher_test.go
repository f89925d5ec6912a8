package dispatcher_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/treadle-dev/treadle/dispatcher"
	core "github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newID() task.ID { return task.ID(uuid.New()) }

func newTimeID() task.ID { return task.ID(uuid.Must(uuid.NewV7())) }

// fabric is a store with dispatchers on it, in one process.
type fabric struct {
	t     testing.TB
	store checkedStore
	done  *sync.Map // task.ID -> chan struct{}
}

// checkedStore is a store that can look for mistakes in itself.
type checkedStore interface {
	store.Store
	CheckInvariants(ctx context.Context) error
}

func newFabric(t testing.TB) *fabric {
	t.Helper()
	s, err := pebblestore.Open(t.Context(), pebblestore.Options{FS: vfs.NewMem(), Durability: "memory", Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return newFabricOn(t, s)
}

func newFabricOn(t testing.TB, s checkedStore) *fabric {
	t.Helper()
	f := &fabric{t: t, store: s, done: &sync.Map{}}
	stop := s.Bell().Listen(func(signals []store.Signal) {
		for _, sig := range signals {
			if sig.Kind == store.Done {
				if ch, ok := f.done.LoadAndDelete(sig.Task); ok {
					close(ch.(chan struct{}))
				}
			}
		}
	})
	t.Cleanup(func() {
		stop()
		if err := s.CheckInvariants(context.Background()); err != nil {
			t.Errorf("the store's invariants: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return f
}

// dispatcher starts one and returns it with its stop.
func (f *fabric) dispatcher(change func(*dispatcher.Config)) (*dispatcher.Dispatcher, func()) {
	f.t.Helper()
	functions, err := core.New(core.Config{Store: f.store})
	if err != nil {
		f.t.Fatal(err)
	}
	cfg := dispatcher.Config{ID: newID(), NewID: newID, Registrar: functions, Jitter: rand.Float64, Logger: testLogger(f.t)}
	if change != nil {
		change(&cfg)
	}
	d, err := dispatcher.New(cfg, f.store)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			f.t.Errorf("dispatcher: %v", err)
		}
	})
	var once sync.Once
	stop := func() { once.Do(func() { cancel(); running.Wait() }) }
	f.t.Cleanup(stop)
	return d, stop
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// agent starts a worker with Go handlers on a pipe and returns its stop, which drains.
func (f *fabric) agent(d worker.Attacher, mode link.Mode, slots int, h *worker.Handlers) (stop func()) {
	f.t.Helper()
	dial := worker.DialLocal(d, func(err error) { f.t.Logf("dispatcher's end: %v", err) })
	if mode != link.Local {
		dial = dialAs(d, mode)
	}
	a, err := worker.New(worker.Config{
		ID: newID().String(), Mode: mode, Dial: dial, Slots: slots, Executors: []worker.Executor{h}, Logger: testLogger(f.t),
		DrainTimeout: 5 * time.Second,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.run(a)
}

// run runs an agent and returns its stop, which drains.
func (f *fabric) run(a *worker.Agent) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			f.t.Errorf("agent: %v", err)
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); running.Wait() }) }
	f.t.Cleanup(stop)
	return stop
}

// dialAs attaches by a pipe under the push or pull grant.
func dialAs(d worker.Attacher, mode link.Mode) func(context.Context) (link.Conn, error) {
	return func(ctx context.Context) (link.Conn, error) {
		there, here := link.Pipe()
		go func() { _ = d.Attach(context.WithoutCancel(ctx), there, mode) }()
		return here, nil
	}
}

// submit records tasks for a handler, arguments 0 to n-1, and returns them with the
// channels that close when they end.
func (f *fabric) submit(handler string, n int, change func(*task.Task)) ([]task.ID, []chan struct{}) {
	f.t.Helper()
	items := make([]store.Submission, n)
	ids := make([]task.ID, n)
	ends := make([]chan struct{}, n)
	for i := range items {
		ids[i] = newTimeID()
		tk := &task.Task{
			ID: ids[i], Function: task.ID{1}, FunctionName: handler, Queue: task.DefaultQueue, Runtime: task.GoRuntime(handler),
			Form: task.FormNone, Hash: sha256.Sum256(nil), Spec: task.Spec{Priority: task.DefaultPriority, MaxRetries: task.DefaultMaxRetries}, Args: task.EncodingJSON, Returns: task.EncodingJSON,
		}
		if change != nil {
			change(tk)
		}
		ends[i] = make(chan struct{})
		f.done.Store(ids[i], ends[i])
		args := fmt.Appendf(nil, `{"args":[%d],"kwargs":{}}`, i)
		tk.ArgsSize = len(args)
		items[i] = store.Submission{Task: tk, Args: args}
	}
	if _, err := f.store.Submit(f.t.Context(), time.Now(), items); err != nil {
		f.t.Fatal(err)
	}
	return ids, ends
}

func (f *fabric) wait(ends []chan struct{}, limit time.Duration) {
	f.t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for i, ch := range ends {
		select {
		case <-ch:
		case <-timer.C:
			stats, err := f.store.QueueStats(context.Background())
			f.t.Fatalf("task %d of %d did not end within %s; queues: %+v %v", i, len(ends), limit, stats, err)
		}
	}
}

// await polls for what no signal tells; it fails the test when it does not come true.
func (f *fabric) await(what string, limit time.Duration, holds func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(limit)
	for !holds() {
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (f *fabric) result(id task.ID) (*task.Task, string) {
	f.t.Helper()
	tk, b, err := f.store.Result(context.Background(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return tk, string(b)
}

// doubling counts its executions.
func doubling(runs *atomic.Int64) *worker.Handlers {
	h := &worker.Handlers{}
	worker.HandleIn(h, "double", func(_ context.Context, x int) (int, error) {
		runs.Add(1)
		return 2 * x, nil
	})
	return h
}

var modes = []link.Mode{link.Push, link.Pull, link.Local}

func TestEveryModeRunsEverythingOnce(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			f := newFabric(t)
			d, _ := f.dispatcher(nil)
			var runs atomic.Int64
			f.agent(d, mode, 4, doubling(&runs))
			const n = 2000
			ids, ends := f.submit("double", n, nil)
			f.wait(ends, 30*time.Second)
			for i, id := range ids {
				if tk, got := f.result(id); tk.Status != task.Completed || got != fmt.Sprint(2*i) {
					t.Fatalf("task %d is %s with result %q, want %d", i, tk.Status, got, 2*i)
				}
			}
			if runs.Load() != n {
				t.Errorf("%d executions of %d tasks", runs.Load(), n)
			}
		})
	}
}

// Two dispatchers share one store: each task runs once, and both take part.
func TestTwoDispatchersOnOneStore(t *testing.T) {
	f := newFabric(t)
	var first, second atomic.Int64
	d1, _ := f.dispatcher(nil)
	d2, _ := f.dispatcher(nil)
	f.agent(d1, link.Push, 4, doubling(&first))
	f.agent(d2, link.Pull, 4, doubling(&second))
	const n = 4000
	_, ends := f.submit("double", n, nil)
	f.wait(ends, 30*time.Second)
	if first.Load()+second.Load() != n {
		t.Errorf("%d + %d executions of %d tasks", first.Load(), second.Load(), n)
	}
	if first.Load() == 0 || second.Load() == 0 {
		t.Errorf("one dispatcher did everything: %d and %d", first.Load(), second.Load())
	}
}

// A dispatcher that stops re-runs nothing: its worker keeps the attempt, moves to
// the other dispatcher and delivers there.
func TestWorkerMovesToAnotherDispatcher(t *testing.T) {
	f := newFabric(t)
	d1, stop1 := f.dispatcher(nil)
	d2, _ := f.dispatcher(nil)
	var runs atomic.Int64
	started, release := make(chan struct{}), make(chan struct{})
	h := &worker.Handlers{}
	worker.HandleIn(h, "hold", func(context.Context, int) (string, error) {
		runs.Add(1)
		close(started)
		<-release
		return "kept", nil
	})
	var dials atomic.Int64
	move := movingAttacher{dials: &dials, to: []worker.Attacher{d1, d2}}
	f.agent(move, link.Push, 1, h)
	ids, ends := f.submit("hold", 1, nil)
	<-started
	stop1()
	close(release)
	f.wait(ends, 10*time.Second)
	if tk, got := f.result(ids[0]); got != `"kept"` || tk.AttemptCount != 1 || runs.Load() != 1 {
		t.Fatalf("result %q after %d attempts and %d runs, want one", got, tk.AttemptCount, runs.Load())
	}
}

// movingAttacher leads the first dial to the first dispatcher, later ones to the second.
type movingAttacher struct {
	dials *atomic.Int64
	to    []worker.Attacher
}

func (m movingAttacher) Attach(ctx context.Context, c link.Conn, mode link.Mode) error {
	i := min(int(m.dials.Add(1))-1, len(m.to)-1)
	return m.to[i].Attach(ctx, c, mode)
}

// A drained worker hands back what it did not start and finishes what it runs.
func TestDrain(t *testing.T) {
	f := newFabric(t)
	d, _ := f.dispatcher(nil)
	var runs atomic.Int64
	started, release := make(chan struct{}, 2), make(chan struct{})
	h := &worker.Handlers{}
	worker.HandleIn(h, "hold", func(context.Context, int) (string, error) {
		runs.Add(1)
		started <- struct{}{}
		<-release
		return "done", nil
	})
	stop := f.agent(d, link.Push, 1, h)
	ids, ends := f.submit("hold", 2, nil)
	<-started
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	f.await("the worker drains", 5*time.Second, func() bool {
		workers, err := f.store.Workers(t.Context(), time.Now())
		return err == nil && len(workers) == 1 && workers[0].State == "draining"
	})
	close(release)
	<-stopped
	f.wait(ends[:1], 5*time.Second)
	if tk, _ := f.result(ids[1]); tk.Status != task.Queued || tk.Losses != 0 {
		t.Fatalf("the task that was not started is %s with %d losses, want QUEUED and none", tk.Status, tk.Losses)
	}
	f.agent(d, link.Push, 1, h)
	f.wait(ends, 5*time.Second)
	if runs.Load() != 2 {
		t.Errorf("%d executions of 2 tasks", runs.Load())
	}
}

// A cancelled task stops at once and its slot is free again.
func TestCancelRunning(t *testing.T) {
	f := newFabric(t)
	d, _ := f.dispatcher(nil)
	started := make(chan struct{}, 1)
	h := &worker.Handlers{}
	worker.HandleIn(h, "hang", func(ctx context.Context, i int) (int, error) {
		if i == 0 {
			started <- struct{}{}
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return i, nil
	})
	f.agent(d, link.Push, 1, h)
	ids, ends := f.submit("hang", 2, nil)
	<-started
	if _, err := f.store.Cancel(t.Context(), time.Now(), ids[:1], false); err != nil {
		t.Fatal(err)
	}
	f.wait(ends, 5*time.Second)
	if tk, _ := f.result(ids[0]); tk.Status != task.Cancelled {
		t.Fatalf("the cancelled task is %s", tk.Status)
	}
	if tk, got := f.result(ids[1]); tk.Status != task.Completed || got != "1" {
		t.Fatalf("the next task is %s with %q", tk.Status, got)
	}
}

// BenchmarkBatch measures the fabric without network and Python: batches of tasks
// through store, engine, pipe and Go handlers.
func BenchmarkBatch(b *testing.B) {
	for _, mode := range modes {
		b.Run(string(mode), func(b *testing.B) {
			f := newFabric(b)
			d, _ := f.dispatcher(nil)
			var runs atomic.Int64
			f.agent(d, mode, 4, doubling(&runs))
			const batch = 256
			b.ResetTimer()
			var pending [][]chan struct{}
			for done := 0; done < b.N; done += batch {
				_, ends := f.submit("double", min(batch, b.N-done), nil)
				pending = append(pending, ends)
				if len(pending) > 8 {
					f.wait(pending[0], time.Minute)
					pending = pending[1:]
				}
			}
			for _, ends := range pending {
				f.wait(ends, time.Minute)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
