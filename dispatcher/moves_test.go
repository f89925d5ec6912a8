package dispatcher_test

import (
	"context"
	"errors"
	"math/rand/v2"
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
	worker.HandleIn(h, "hold", func(ctx context.Context, _ int) (string, error) {
		runs.Add(1)
		started <- struct{}{}
		select {
		case <-release:
			return "kept", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	return h
}

// A worker whose link broke may come back to any dispatcher: the one that lost it must
// not end, when its grace is over, what the other one has taken over.
func TestBrokenLinkComesBackElsewhere(t *testing.T) {
	onEachStore(t, func(t *testing.T, f *fabric) {
		quick := func(c *dispatcher.Config) { c.Grace = time.Second }
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

// town is where agents find dispatchers: each dial goes to the one that was tried longest
// ago, as a worker's own list does.
type town struct {
	mu  sync.Mutex
	all []*dispatcher.Dispatcher
}

func (w *town) set(all ...*dispatcher.Dispatcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = all
}

// mover is one worker's way to the dispatchers of a town.
type mover struct {
	town *town
	mode link.Mode
	at   *dispatcher.Dispatcher
	// tried is when each was dialled last.
	tried map[*dispatcher.Dispatcher]int
	tries int
}

func (m *mover) dial(ctx context.Context) (link.Conn, error) { return m.move(ctx, false) }

func (m *mover) move(_ context.Context, elsewhere bool) (link.Conn, error) {
	m.town.mu.Lock()
	defer m.town.mu.Unlock()
	var to *dispatcher.Dispatcher
	for _, i := range rand.Perm(len(m.town.all)) {
		if d := m.town.all[i]; (d != m.at || !elsewhere) && (to == nil || m.tried[d] < m.tried[to]) {
			to = d
		}
	}
	if to == nil {
		return nil, errors.New("nobody else is there")
	}
	m.tries++
	m.at, m.tried[to] = to, m.tries
	there, here := link.Pipe()
	go func() { _ = to.Attach(context.Background(), there, m.mode) }()
	return here, nil
}

// Workers move when dispatchers come and go, and keep what they run.
func TestWorkersFollowTheDispatchers(t *testing.T) {
	onEachStore(t, func(t *testing.T, f *fabric) {
		shares := func(c *dispatcher.Config) {
			c.Modes = []link.Mode{link.Push, link.Pull}
			c.MoveEvery = 30 * time.Millisecond
		}
		var w town
		d1, _ := f.dispatcher(shares)
		w.set(d1)
		const workers = 8
		var runs atomic.Int64
		started, release := make(chan struct{}, 2*workers), make(chan struct{})
		handlers := holding(&runs, started, release)
		for i := range workers {
			mode := modes[i%2] // push and pull
			m := &mover{town: &w, mode: mode, tried: map[*dispatcher.Dispatcher]int{}}
			a, err := worker.New(worker.Config{
				ID: newID().String(), Mode: mode, Dial: m.dial, Move: m.move, Slots: 1, Executors: []worker.Executor{handlers},
				Logger: testLogger(t), DrainTimeout: time.Second,
			})
			if err != nil {
				t.Fatal(err)
			}
			f.run(a)
		}
		ids, ends := f.submit("hold", workers, nil)
		for range workers {
			<-started
		}
		// One that joins gets its share of both kinds, while all of them run something.
		d2, stop2 := f.dispatcher(shares)
		w.set(d1, d2)
		spread := func() bool { return d1.Sessions() == workers/2 && d2.Sessions() == workers/2 }
		f.await("half of the workers are at the dispatcher that joined", 20*time.Second, spread)
		d3, _ := f.dispatcher(shares)
		w.set(d1, d2, d3)
		f.await("the third has some", 20*time.Second, func() bool {
			return d3.Sessions() >= 2 && d1.Sessions()+d2.Sessions()+d3.Sessions() == workers
		})
		w.set(d1, d3)
		stop2()
		f.await("nobody is at the one that left", 20*time.Second, func() bool { return d1.Sessions()+d3.Sessions() == workers })
		close(release)
		f.wait(ends, 10*time.Second)
		for _, id := range ids {
			if tk, got := f.result(id); got != `"kept"` || tk.AttemptCount != 1 || tk.Losses != 0 || tk.Lapses != 0 {
				t.Errorf("result %q after %d attempts, %d losses and %d lapses, want one attempt", got, tk.AttemptCount, tk.Losses, tk.Lapses)
			}
		}
		if runs.Load() != workers {
			t.Errorf("%d executions of %d tasks", runs.Load(), workers)
		}
	})
}

// Streams end when they are old; work goes on meanwhile and nothing runs twice.
func TestOldStreams(t *testing.T) {
	for _, mode := range []link.Mode{link.Push, link.Pull} {
		t.Run(string(mode), func(t *testing.T) {
			f := newFabric(t)
			d, _ := f.dispatcher(func(c *dispatcher.Config) { c.StreamAge = 20 * time.Millisecond })
			var w town
			w.set(d)
			m := &mover{town: &w, mode: mode, tried: map[*dispatcher.Dispatcher]int{}}
			var dials, runs atomic.Int64
			a, err := worker.New(worker.Config{
				ID: newID().String(), Mode: mode, Dial: m.dial, Slots: 2, Executors: []worker.Executor{doubling(&runs)}, Logger: testLogger(t),
				Move: func(ctx context.Context, elsewhere bool) (link.Conn, error) {
					dials.Add(1)
					return m.move(ctx, elsewhere)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			f.run(a)
			tasks := 0
			for deadline := time.Now().Add(60 * time.Second); dials.Load() < 10; {
				if time.Now().After(deadline) {
					t.Fatalf("%d streams within 60 s, want 10: old streams do not end", dials.Load())
				}
				_, ends := f.submit("double", 50, nil)
				f.wait(ends, 20*time.Second)
				tasks += len(ends)
			}
			if got := int(runs.Load()); got != tasks {
				t.Errorf("%d executions of %d tasks in %d streams", got, tasks, dials.Load())
			}
		})
	}
}
