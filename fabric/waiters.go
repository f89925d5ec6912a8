package fabric

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Limits of waits. Whatever waits for a task counts with each id: AwaitResults, Call,
// GetResult with a wait, WatchTask.
const (
	// DefaultQuotaWaited is how many ids the calls of one owner wait for at most.
	DefaultQuotaWaited = 100_000
	// DefaultMaxWaited is how many ids all calls of a server wait for at most. An id takes
	// some 200 bytes with what its call keeps.
	DefaultMaxWaited = 1_000_000
)

const (
	// waitShards is how many locks there are. Calls for hundreds of tasks take each of them
	// once: with 256 of them that was a tenth of a microsecond more for each task.
	waitShards = 16
	// waitRun bounds how many ids are joined or removed while one of them is held: some 20 µs.
	waitRun = 256
	// maxSwept bounds the ids that one pass of the sweep looks up. More are waited for by a
	// busy server only; its passes take turns.
	maxSwept = 20_000
)

// waiters wakes the calls that wait for the end of tasks. The store's bell rings
// for each task that ends; as a ring may be missed, a slow sweep asks the store
// about every task that is waited for.
//
// A caller registers first and looks at the store second: then an end is either
// seen by the look or rung after it.
//
// Joining and leaving cost the same whoever else waits for the same task, and no lock is
// held for more than waitRun ids, so the end of many large waits stops nobody.
type waiters struct {
	// perOwner and inAll bound the ids that are waited for; perOwner holds where callers
	// have an owner.
	perOwner, inAll int
	// waiting counts ids in all, and those of each owner.
	mu      sync.Mutex
	waiting int
	byOwner map[string]int

	// linked is how many nodes stand in the shards: without any a signal means nothing here.
	// watching is how many of them want to know of every change.
	linked, watching atomic.Int64
	// pass counts the sweeps, from is the shard where the next one starts.
	pass atomic.Uint32
	from int

	shards [waitShards]waitShard
}

// waitShard holds a part of all ids: for each the first of its nodes, in the order in
// which they came.
type waitShard struct {
	mu     sync.Mutex
	byTask map[task.ID]*waitNode
	// watchers want to know of every change of a task, its end included. They look by
	// themselves now and then, so the sweep passes them by.
	watchers map[task.ID]*waitNode
}

// waitNode is one waiter in the ring of those who wait for the same task; the shard's lock
// guards it. It knows its neighbours, so that it leaves in one step.
type waitNode struct {
	id         task.ID
	w          *waiter
	prev, next *waitNode
	// joined is the pass of the sweep before which it joined.
	joined uint32
	// first is the one that the shard's map holds.
	first, linked bool
}

func newWaiters(perOwner, inAll int) *waiters {
	ws := &waiters{perOwner: perOwner, inAll: inAll, byOwner: make(map[string]int)}
	for i := range ws.shards {
		ws.shards[i].byTask, ws.shards[i].watchers = make(map[task.ID]*waitNode), make(map[task.ID]*waitNode)
	}
	return ws
}

// waiter is one waiting call.
type waiter struct {
	// ring holds one token while done is not empty.
	ring chan struct{}
	// nodes are sorted by their shards.
	nodes []waitNode
	one   [1]waitNode
	// owner is whom the ids count for, held how many do; watches tells the two maps apart.
	owner   string
	held    int
	watches bool

	mu   sync.Mutex
	done []*waitNode
}

// add registers a new waiter for the ends of tasks, whose ids must differ. It must be
// removed. An error of [task.CodeExhausted] says which limit stands against it.
func (ws *waiters) add(owner string, ids ...task.ID) (*waiter, error) {
	return ws.register(owner, false, ids)
}

// watch registers a new waiter for every change of a task. It must be removed.
func (ws *waiters) watch(owner string, id task.ID) (*waiter, error) {
	return ws.register(owner, true, []task.ID{id})
}

func (ws *waiters) register(owner string, watches bool, ids []task.ID) (*waiter, error) {
	w := &waiter{ring: make(chan struct{}, 1), held: len(ids), watches: watches, owner: owner}
	if err := ws.reserve(w); err != nil {
		return nil, err
	}
	pass := ws.pass.Load()
	if len(ids) == 1 {
		w.one[0] = waitNode{id: ids[0], w: w, joined: pass}
		w.nodes = w.one[:]
	} else {
		w.nodes = make([]waitNode, len(ids))
		var at [waitShards + 1]int
		for _, id := range ids {
			at[shardOf(id)+1]++
		}
		for i := range waitShards {
			at[i+1] += at[i]
		}
		for _, id := range ids {
			i := &at[shardOf(id)]
			w.nodes[*i] = waitNode{id: id, w: w, joined: pass}
			*i++
		}
	}
	ws.each(w.nodes, func(s *waitShard, n *waitNode) { ws.link(s, n) })
	return w, nil
}

// reserve counts the ids of a waiter, or says which limit they would pass.
func (ws *waiters) reserve(w *waiter) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if mine := ws.byOwner[w.owner]; w.owner != "" && ws.perOwner > 0 && mine+w.held > ws.perOwner {
		return &OverQuota{owner: w.owner, quota: "waited", used: int64(mine), wants: int64(w.held), limit: int64(ws.perOwner)}
	}
	if ws.waiting+w.held > ws.inAll {
		return task.Errorf(task.CodeExhausted, "",
			"quota waited: the calls of this server wait for %d tasks, and %d more would pass its limit of %d: wait for fewer at a time, or ask later",
			ws.waiting, w.held, ws.inAll)
	}
	ws.waiting += w.held
	if w.owner != "" {
		ws.byOwner[w.owner] += w.held
	}
	return nil
}

// release takes back what reserve counted, once.
func (ws *waiters) release(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.waiting -= w.held
	if w.owner != "" {
		if ws.byOwner[w.owner] -= w.held; ws.byOwner[w.owner] == 0 {
			delete(ws.byOwner, w.owner)
		}
	}
	w.held = 0
}

// join lets a waiter wait again for a task that has rung falsely.
func (ws *waiters) join(n *waitNode) {
	s := &ws.shards[shardOf(n.id)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if !n.linked {
		n.joined = ws.pass.Load()
		ws.link(s, n)
	}
}

// remove forgets a waiter. It may be called again.
func (ws *waiters) remove(w *waiter) {
	ws.each(w.nodes, func(s *waitShard, n *waitNode) {
		if n.linked {
			ws.unlink(s, n)
		}
	})
	ws.release(w)
}

// each calls do for nodes that are sorted by their shards, with the shard's lock held for
// at most waitRun of them.
func (ws *waiters) each(nodes []waitNode, do func(*waitShard, *waitNode)) {
	for len(nodes) > 0 {
		shard, n := shardOf(nodes[0].id), 1
		for n < len(nodes) && n < waitRun && shardOf(nodes[n].id) == shard {
			n++
		}
		s := &ws.shards[shard]
		s.mu.Lock()
		for i := range nodes[:n] {
			do(s, &nodes[i])
		}
		s.mu.Unlock()
		nodes = nodes[n:]
	}
}

// shardOf spreads ids: their last byte is random.
func shardOf(id task.ID) int { return int(id[len(id)-1]) % waitShards }

func (s *waitShard) list(n *waitNode) map[task.ID]*waitNode {
	if n.w.watches {
		return s.watchers
	}
	return s.byTask
}

// link puts a node at the end of its ring; the shard's lock is held.
func (ws *waiters) link(s *waitShard, n *waitNode) {
	list := s.list(n)
	n.linked = true
	if first := list[n.id]; first != nil {
		n.prev, n.next = first.prev, first
		n.prev.next, first.prev = n, n
	} else {
		n.prev, n.next, n.first = n, n, true
		list[n.id] = n
	}
	ws.linked.Add(1)
	if n.w.watches {
		ws.watching.Add(1)
	}
}

// unlink takes a node out of its ring; the shard's lock is held.
func (ws *waiters) unlink(s *waitShard, n *waitNode) {
	switch {
	case n.next == n:
		delete(s.list(n), n.id)
	default:
		n.prev.next, n.next.prev = n.next, n.prev
		if n.first {
			n.next.first = true
			s.list(n)[n.id] = n.next
		}
	}
	n.prev, n.next, n.first, n.linked = nil, nil, false, false
	ws.linked.Add(-1)
	if n.w.watches {
		ws.watching.Add(-1)
	}
}

// listen is the bell's callback; it does not block.
func (ws *waiters) listen(signals []store.Signal) {
	if ws.linked.Load() == 0 {
		return
	}
	for i := range signals {
		switch signals[i].Kind {
		case store.Done:
			ws.end(signals[i].Task)
			ws.changed(signals[i].Task)
		case store.Changed:
			ws.changed(signals[i].Task)
		}
	}
}

// changed tells everyone who watches the task.
func (ws *waiters) changed(id task.ID) {
	if ws.watching.Load() == 0 {
		return
	}
	s := &ws.shards[shardOf(id)]
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.watchers[id]
	for n := first; n != nil; {
		n.w.wake()
		if n = n.next; n == first {
			return
		}
	}
}

func (w *waiter) wake() {
	select {
	case w.ring <- struct{}{}:
	default:
	}
}

// end tells everyone who waits for the task, in the order in which they came.
func (ws *waiters) end(id task.ID) {
	s := &ws.shards[shardOf(id)]
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := s.byTask[id]; n != nil; {
		next := n.next
		if next == n {
			next = nil
		}
		ws.unlink(s, n)
		n.w.mu.Lock()
		n.w.done = append(n.w.done, n)
		n.w.mu.Unlock()
		n.w.wake()
		n = next
	}
}

// Waiting returns how many tasks are waited for, how many are watched, and how often in all: a
// task that two calls wait for counts twice.
func (f *Fabric) Waiting() (tasks, watched, waits int) { return f.waiters.count() }

func (ws *waiters) count() (tasks, watched, waits int) {
	for i := range ws.shards {
		s := &ws.shards[i]
		s.mu.Lock()
		tasks, watched = tasks+len(s.byTask), watched+len(s.watchers)
		s.mu.Unlock()
	}
	return tasks, watched, int(ws.linked.Load())
}

// take returns the tasks that ended since the last call.
func (w *waiter) take() []*waitNode {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := w.done
	w.done = nil
	return nodes
}

// sweep asks the store about what is waited for: at most maxSwept ids, where the last pass
// stopped. Who joined since then has looked at the store, or is about to.
func (ws *waiters) sweep(ctx context.Context, tasks store.Tasks) error {
	ids := ws.due()
	for len(ids) > 0 {
		chunk := ids[:min(len(ids), 1000)]
		ids = ids[len(chunk):]
		found, err := tasks.Tasks(ctx, chunk)
		if err != nil {
			return err
		}
		for i, t := range found {
			// A task that is gone will never ring: its waiters find that out themselves.
			if t == nil || t.Status.Terminal() {
				ws.end(chunk[i])
			}
		}
	}
	return nil
}

// due returns the ids that the next pass of the sweep looks at. Only the sweep calls it.
func (ws *waiters) due() []task.ID {
	var ids []task.ID
	last := ws.pass.Add(1) - 1
	for range waitShards {
		s := &ws.shards[ws.from]
		visits := maxSwept
		s.mu.Lock()
		for id, first := range s.byTask {
			if visits--; visits < 0 || len(ids) == maxSwept {
				break // one shard with so many ids is a caller's choice of them; maps start anywhere
			}
			if first.joined != last { // the first has waited for the longest time
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
		if len(ids) == maxSwept {
			break // the rest of this shard comes first in the next pass
		}
		ws.from = (ws.from + 1) % waitShards
	}
	return ids
}

// sleep waits for the ring, at most until the limit, the context's end or closing,
// and reports whether the ring came.
func (w *waiter) sleep(ctx context.Context, limit time.Duration, closing <-chan struct{}) (rung bool, err error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-w.ring:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-closing:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
