package server

import (
	"context"
	"encoding/binary"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// someIDs makes n ids, spread as those of tasks are.
func someIDs(n int) []task.ID {
	ids := make([]task.ID, n)
	for i := range ids {
		ids[i] = task.ID(uuid.New())
	}
	return ids
}

// mustAdd registers a waiter of nobody in particular.
func mustAdd(t testing.TB, ws *waiters, ids ...task.ID) *waiter {
	t.Helper()
	w, err := ws.add(context.Background(), ids...)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWaitersRing: rings of waiters hold together whoever leaves first, and ends wake
// exactly those who wait.
func TestWaitersRing(t *testing.T) {
	ids := someIDs(600) // several in each shard
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {0, 2, 1}} {
		ws := newWaiters(0, math.MaxInt)
		var all [3]*waiter
		for i := range all {
			all[i] = mustAdd(t, ws, ids...)
		}
		for left, i := range order {
			end := ids[left]
			ws.listen([]store.Signal{{Kind: store.Done, Task: end}, {Kind: store.Done, Task: end}})
			for j, w := range all {
				woken := w.take()
				if gone := w.held == 0; gone && len(woken) > 0 || !gone && (len(woken) != 1 || woken[0].id != end) {
					t.Errorf("order %v, after %d left: waiter %d is told of %d ends", order, left, j, len(woken))
				}
			}
			ws.remove(all[i])
			ws.remove(all[i])
			if _, _, n := ws.count(); n != (2-left)*(len(ids)-left-1) {
				t.Errorf("order %v: %d nodes are linked after %d left", order, n, left+1)
			}
		}
		if tasks, watched, _ := ws.count(); tasks+watched+ws.waiting+len(ws.byToken) != 0 {
			t.Errorf("something stays behind: %d tasks, %d waited for", tasks, ws.waiting)
		}
	}
}

// TestRejoin: a false ring costs nothing and loses nothing.
func TestRejoin(t *testing.T) {
	ws := newWaiters(0, math.MaxInt)
	id := someIDs(1)[0]
	w := mustAdd(t, ws, id)
	for range 3 {
		ws.end(id)
		ws.join(w.take()[0])
		ws.join(&w.nodes[0]) // it waits already
		if _, _, n := ws.count(); n != 1 || ws.waiting != 1 {
			t.Fatalf("%d nodes, %d waited for", n, ws.waiting)
		}
	}
	ws.remove(w)
}

// TestWaitQuota: the limits of one token and of all hold at their edges, and what ends
// gives room again.
func TestWaitQuota(t *testing.T) {
	ws := newWaiters(10, 25)
	as := func(id string) context.Context {
		return auth.WithPrincipal(t.Context(), auth.Principal{ID: id, Role: auth.Client})
	}
	refused := func(err error, parts ...string) {
		t.Helper()
		if task.CodeOf(err) != task.CodeExhausted {
			t.Fatalf("%v is no refusal", err)
		}
		for _, p := range append(parts, "quota waited") {
			if !strings.Contains(err.Error(), p) {
				t.Errorf("%q lacks %q", err, p)
			}
		}
	}
	a, err := ws.add(as("a"), someIDs(9)...)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := ws.watch(as("a"), someIDs(1)[0]) // watchers count
	if err != nil {
		t.Fatal(err)
	}
	_, err = ws.add(as("a"), someIDs(1)...)
	refused(err, "token a", "10", "--quota-waited")
	if _, err = ws.add(as("b"), someIDs(10)...); err != nil {
		t.Fatal(err)
	}
	_, err = ws.add(auth.WithPrincipal(t.Context(), auth.Local), someIDs(6)...) // nobody's quota, but the server's limit
	refused(err, "this server", "25")
	if _, err = ws.add(auth.WithPrincipal(t.Context(), auth.Local), someIDs(5)...); err != nil {
		t.Fatal(err)
	}
	ws.remove(watch)
	ws.remove(a)
	if _, err = ws.add(as("a"), someIDs(10)...); err != nil {
		t.Errorf("no room after the first waits ended: %v", err)
	}
}

// TestWaitQuotaInTheAPI: each kind of wait is refused with words, and a refused call
// records nothing.
func TestWaitQuotaInTheAPI(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), func(c *Config) { c.QuotaWaited = 2 })
	ctx := ring.as(t.Context(), auth.Client)
	if _, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Source: "def f(): pass"}); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for range 3 {
		made, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, made.GetTaskId())
	}
	held, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := e.fabric.AwaitResults(held, &treadlev1.AwaitResultsRequest{TaskIds: ids[:2]}); err != nil {
		t.Fatal(err)
	}
	e.waiting(2)
	calls := map[string]func(context.Context) error{
		"AwaitResults": func(ctx context.Context) error {
			stream, err := e.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: ids[2:]})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"WatchTask": func(ctx context.Context) error {
			stream, err := e.fabric.WatchTask(ctx, &treadlev1.WatchTaskRequest{TaskId: ids[2]})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"GetResult": func(ctx context.Context) error {
			_, err := e.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: ids[2], Wait: durationpb.New(time.Millisecond)})
			return err
		},
		"Call": func(ctx context.Context) error {
			_, err := e.fabric.Call(ctx, &treadlev1.CallRequest{Function: "f", Timeout: durationpb.New(time.Millisecond)})
			return err
		},
	}
	for name, call := range calls {
		if err := call(ctx); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "quota waited") {
			t.Errorf("%s over the quota: %v", name, err)
		}
	}
	page, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{})
	if err != nil || len(page.GetTasks()) != 3 {
		t.Errorf("a refused call left %d tasks, %v", len(page.GetTasks()), err)
	}
	cancel()
	e.waiting(0)
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		if err := call(ctx); status.Code(err) == codes.ResourceExhausted {
			t.Errorf("%s after the waits ended: %v", name, err)
		}
		cancel()
	}
}

// countingTasks says that nothing has ended, and counts what it is asked.
type countingTasks struct {
	store.Store
	asked map[task.ID]int
	total int
}

func (c *countingTasks) Tasks(_ context.Context, ids []task.ID) ([]*task.Task, error) {
	found := make([]*task.Task, len(ids))
	for i, id := range ids {
		c.asked[id]++
		c.total++
		found[i] = &task.Task{ID: id, Status: task.Queued}
	}
	return found, nil
}

// TestSweepIsBounded: a pass looks up no more than its share, leaves out who has just come,
// and the passes together reach everybody.
func TestSweepIsBounded(t *testing.T) {
	ws := newWaiters(0, math.MaxInt)
	ids := someIDs(3*maxSwept - 1)
	w := mustAdd(t, ws, ids...)
	c := &countingTasks{asked: make(map[task.ID]int)}
	pass := func() int {
		before := c.total
		if err := ws.sweep(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		return c.total - before
	}
	if n := pass(); n != 0 {
		t.Errorf("%d ids are looked up that were joined a moment ago", n)
	}
	for range 4 { // one more than three: a pass may stop within a shard
		if n := pass(); n > maxSwept {
			t.Errorf("one pass looks up %d ids", n)
		}
	}
	if len(c.asked) != len(ids) {
		t.Errorf("%d of %d ids were looked up", len(c.asked), len(ids))
	}
	ws.remove(w)
	if n := pass(); n != 0 {
		t.Errorf("%d ids are looked up for nobody", n)
	}
}

// TestMassCancel: 1,000 waits for the same 1,000 tasks end at once, and a call that comes
// between is served at once. Each removal used to copy the list of all others.
func TestMassCancel(t *testing.T) {
	const streams, each = 1000, 1000
	ws := newWaiters(0, math.MaxInt)
	ids := someIDs(each)
	all := make([]*waiter, streams)
	for i := range all {
		all[i] = mustAdd(t, ws, ids...)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var group sync.WaitGroup
		for _, w := range all {
			group.Go(func() { ws.remove(w) })
		}
		group.Wait()
	}()
	var longest time.Duration
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		start := time.Now()
		w := mustAdd(t, ws, ids[0])
		ws.listen([]store.Signal{{Kind: store.Done, Task: ids[0]}})
		ws.remove(w)
		longest = max(longest, time.Since(start))
	}
	if longest > 2*time.Second { // a loaded machine adds to it; the old cost was a minute
		t.Errorf("a call took %s while waits were cancelled", longest)
	}
	if _, _, n := ws.count(); n != 0 || ws.waiting != 0 {
		t.Errorf("%d nodes, %d ids stay behind", n, ws.waiting)
	}
}

// TestRemovalDoesNotDependOnOthers bounds what an id costs among 1,000 other waiters
// against what it costs alone. The least of several runs is what the machine's load leaves.
func TestRemovalDoesNotDependOnOthers(t *testing.T) {
	ids := someIDs(500)
	least := func(others int) time.Duration {
		ws := newWaiters(0, math.MaxInt)
		for range others {
			mustAdd(t, ws, ids...)
		}
		best := time.Duration(math.MaxInt64)
		for range 20 {
			w := mustAdd(t, ws, ids...)
			start := time.Now()
			ws.remove(w)
			best = min(best, time.Since(start))
		}
		return best
	}
	alone, among := least(1), least(1000)
	if ratio := float64(among) / float64(alone); ratio > 10 {
		t.Errorf("removing %d ids takes %s beside one waiter, %s beside 1,000: %.0f times as long", len(ids), alone, among, ratio)
	}
}

func BenchmarkWaiters(b *testing.B) {
	for name, n := range map[string]int{"one id": 1, "1,000 ids": 1000} {
		b.Run(name, func(b *testing.B) {
			ws := newWaiters(DefaultQuotaWaited, DefaultMaxWaited)
			ids := someIDs(n)
			for range 100 {
				mustAdd(b, ws, ids...)
			}
			ctx := auth.WithPrincipal(context.Background(), auth.Principal{ID: "a", Role: auth.Client})
			b.ReportAllocs()
			for b.Loop() {
				w, err := ws.add(ctx, ids...)
				if err != nil {
					b.Fatal(err)
				}
				ws.remove(w)
			}
		})
	}
}

// TestWaitersAtOnce lets everything happen at once; the race detector watches.
func TestWaitersAtOnce(t *testing.T) {
	ws := newWaiters(0, math.MaxInt)
	ids := someIDs(64)
	c := &countingTasks{asked: make(map[task.ID]int)}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			var b [8]byte
			for round := range 200 {
				binary.LittleEndian.PutUint64(b[:], uint64(round*8+i))
				w := mustAdd(t, ws, ids[int(b[0])%32:]...)
				ws.listen([]store.Signal{{Kind: store.Done, Task: ids[int(b[0])%64]}, {Kind: store.Changed, Task: ids[1]}})
				for _, n := range w.take() {
					ws.join(n)
				}
				ws.remove(w)
			}
		})
	}
	group.Go(func() {
		for range 50 {
			if err := ws.sweep(t.Context(), c); err != nil {
				t.Error(err)
			}
		}
	})
	group.Wait()
	if tasks, watched, n := ws.count(); tasks+watched+n+ws.waiting != 0 {
		t.Errorf("%d tasks, %d nodes stay behind", tasks, n)
	}
}
