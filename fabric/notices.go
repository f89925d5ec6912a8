package fabric

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Bounds of one look for tasks that wait for each other.
const (
	// stuckAfter is how long a task has waited for its children before it is looked at: slots
	// of a pool that grows open within a second.
	stuckAfter = 5 * time.Second
	// stuckOver is how long a worker was not found stuck before it is told of again: a wait that
	// is asked for anew, as after the longest time that one call may wait, is no end of it.
	stuckOver = 30 * time.Second
	// maxNoticed bounds the waits of one look, as many as a worker may have slots, and the
	// children that are looked at in all.
	maxNoticed = 4096
)

// notices tells the log of tasks that wait for each other for ever: all slots of a worker
// run tasks that wait for their own children, these are queued for that worker, and no other
// one that could take them has a free slot. A task that waits keeps its slot, so nothing will
// change by itself.
//
// It sees the waits of its own process: those of the workers that are attached here.
type notices struct {
	store store.Store
	log   *slog.Logger
	now   func() time.Time
	after time.Duration

	mu   sync.Mutex
	open map[*nestedWait]struct{}
	// told has when the workers that were told of were last found stuck.
	told map[string]time.Time
}

// nestedWait is one waiting call of a running task.
type nestedWait struct {
	parent   task.ID
	children []task.ID
	since    time.Time
}

func newNotices(cfg *Config) *notices {
	return &notices{
		store: cfg.Store, log: cfg.Logger, now: cfg.Now, after: stuckAfter,
		open: make(map[*nestedWait]struct{}), told: make(map[string]time.Time),
	}
}

// waits notes that a call waits for tasks, if a running task makes it, until done is called.
func (n *notices) waits(c Caller, children ...task.ID) (done func()) {
	if c.Task.IsZero() {
		return func() {}
	}
	w := &nestedWait{parent: c.Task, children: children, since: n.now()}
	n.mu.Lock()
	n.open[w] = struct{}{}
	n.mu.Unlock()
	return func() {
		n.mu.Lock()
		delete(n.open, w)
		n.mu.Unlock()
	}
}

// look writes a line for each worker that is stuck, once for as long as it stays so.
func (n *notices) look(ctx context.Context) {
	waits := n.longWaits()
	if len(waits) == 0 {
		return
	}
	// The store's trouble is told elsewhere.
	workers, err := n.store.Workers(ctx, n.now())
	if err != nil {
		return
	}
	parents, err := n.parents(ctx, waits)
	if err != nil {
		return
	}
	full := slices.DeleteFunc(slices.Clone(workers), func(w store.Presence) bool { return w.Slots == 0 || parents[w.Worker] < w.Slots })
	if len(full) == 0 {
		return
	}
	queued, err := n.queued(ctx, waits)
	if err != nil {
		return
	}
	for _, worker := range full {
		child := starved(worker, workers, queued)
		if child == nil || !n.due(worker.Worker) {
			continue
		}
		n.log.WarnContext(ctx, "deadlock: every slot of this worker runs a task that waits for its own child tasks, and no worker has a free slot for the children; "+
			"let the worker grow (--slots MIN-MAX, for example --slots 4-16), start another worker, "+
			"or put the children in a queue that other workers serve; see docs/nested.md",
			"worker", worker.Worker, "name", worker.Name, "slots", worker.Slots, "queue", child.Queue, "task", child.Parent, "waits_for", child.ID)
	}
}

// longWaits are those that have lasted for a while.
func (n *notices) longWaits() (waits []*nestedWait) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	for w := range n.open {
		if now.Sub(w.since) >= n.after && len(waits) < maxNoticed {
			waits = append(waits, w)
		}
	}
	return waits
}

// due notes that a worker is stuck, and reports whether it was not until now.
func (n *notices) due(worker string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	for w, at := range n.told {
		if now.Sub(at) >= stuckOver {
			delete(n.told, w)
		}
	}
	_, was := n.told[worker]
	n.told[worker] = now
	return !was
}

// parents counts the tasks that wait, by their workers.
func (n *notices) parents(ctx context.Context, waits []*nestedWait) (map[string]int, error) {
	var ids []task.ID
	seen := make(map[task.ID]bool, len(waits))
	for _, w := range waits {
		if !seen[w.parent] {
			seen[w.parent] = true
			ids = append(ids, w.parent)
		}
	}
	found, err := n.store.Tasks(ctx, ids)
	if err != nil {
		return nil, err
	}
	count := make(map[string]int)
	for _, t := range found {
		if t != nil && t.Status == task.Running && t.Lease != nil {
			count[t.Lease.Worker]++
		}
	}
	return count, nil
}

// queued returns children that are ready to run.
func (n *notices) queued(ctx context.Context, waits []*nestedWait) (ready []*task.Task, err error) {
	var ids []task.ID
	each := max(1, maxNoticed/len(waits))
	for _, w := range waits {
		ids = append(ids, w.children[:min(len(w.children), each)]...)
	}
	found, err := n.store.Tasks(ctx, ids)
	for _, t := range found {
		if t != nil && t.ReadyAt(n.now()) {
			ready = append(ready, t)
		}
	}
	return ready, err
}

// starved returns a task that could run at a worker and at no other one that has a free slot;
// nil when there is none.
func starved(w store.Presence, all []store.Presence, ready []*task.Task) *task.Task {
	serves := func(w store.Presence, t *task.Task) bool {
		return slices.Contains(w.Queues, t.Queue) && slices.Contains(w.Runtimes, t.Runtime)
	}
	for _, t := range ready {
		free := slices.ContainsFunc(all, func(w store.Presence) bool { return w.Running < w.Slots && serves(w, t) })
		if serves(w, t) && !free {
			return t
		}
	}
	return nil
}
