package fabric

import (
	"context"
	"encoding/binary"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

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
	w, err := ws.add("", ids...)
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
		if tasks, watched, _ := ws.count(); tasks+watched+ws.waiting+len(ws.byOwner) != 0 {
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

// TestWaitQuota: the limits of one owner and of all hold at their edges, and what ends
// gives room again.
func TestWaitQuota(t *testing.T) {
	ws := newWaiters(10, 25)
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
	a, err := ws.add("a", someIDs(9)...)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := ws.watch("a", someIDs(1)[0]) // watchers count
	if err != nil {
		t.Fatal(err)
	}
	_, err = ws.add("a", someIDs(1)...)
	refused(err, "token a", "10", "--quota-waited")
	if _, err = ws.add("b", someIDs(10)...); err != nil {
		t.Fatal(err)
	}
	_, err = ws.add("", someIDs(6)...) // nobody's quota, but the limit of all
	refused(err, "this server", "25")
	if _, err = ws.add("", someIDs(5)...); err != nil {
		t.Fatal(err)
	}
	ws.remove(watch)
	ws.remove(a)
	if _, err = ws.add("a", someIDs(10)...); err != nil {
		t.Errorf("no room after the first waits ended: %v", err)
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
			b.ReportAllocs()
			for b.Loop() {
				w, err := ws.add("a", ids...)
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
