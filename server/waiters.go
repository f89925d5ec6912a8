package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// waiters wakes the calls that wait for the end of tasks. The store's bell rings
// for each task that ends; as a ring may be missed, a slow sweep asks the store
// about every task that is waited for.
//
// A caller registers first and looks at the store second: then an end is either
// seen by the look or rung after it.
type waiters struct {
	mu     sync.Mutex
	byTask map[task.ID][]*waiter
	// watchers want to know of every change of a task, its end included. They look by
	// themselves now and then, so the sweep passes them by.
	watchers map[task.ID][]*waiter
}

func newWaiters() *waiters {
	return &waiters{byTask: make(map[task.ID][]*waiter), watchers: make(map[task.ID][]*waiter)}
}

// waiter is one waiting call.
type waiter struct {
	// ring holds one token while done is not empty.
	ring chan struct{}

	mu   sync.Mutex
	done []task.ID
}

// add registers a new waiter for the ends of tasks. It must be removed with the
// same ids.
func (ws *waiters) add(ids ...task.ID) *waiter {
	w := &waiter{ring: make(chan struct{}, 1)}
	ws.join(w, ids...)
	return w
}

// join lets a waiter wait for more tasks.
func (ws *waiters) join(w *waiter, ids ...task.ID) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, id := range ids {
		ws.byTask[id] = append(ws.byTask[id], w)
	}
}

// remove forgets a waiter.
func (ws *waiters) remove(w *waiter, ids ...task.ID) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, id := range ids {
		drop(ws.byTask, id, w)
	}
}

// watch registers a new waiter for every change of a task. It must be removed by unwatch.
func (ws *waiters) watch(id task.ID) *waiter {
	w := &waiter{ring: make(chan struct{}, 1)}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.watchers[id] = append(ws.watchers[id], w)
	return w
}

func (ws *waiters) unwatch(w *waiter, id task.ID) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	drop(ws.watchers, id, w)
}

// drop takes a waiter out of a task's list.
func drop(from map[task.ID][]*waiter, id task.ID, w *waiter) {
	list := from[id]
	if i := slices.Index(list, w); i >= 0 {
		list = append(list[:i:i], list[i+1:]...)
	}
	if len(list) == 0 {
		delete(from, id)
	} else {
		from[id] = list
	}
}

// listen is the bell's callback; it does not block.
func (ws *waiters) listen(signals []store.Signal) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.byTask) == 0 && len(ws.watchers) == 0 {
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

// changed tells everyone who watches the task; ws.mu is held.
func (ws *waiters) changed(id task.ID) {
	for _, w := range ws.watchers[id] {
		w.wake()
	}
}

func (w *waiter) wake() {
	select {
	case w.ring <- struct{}{}:
	default:
	}
}

// end tells everyone who waits for the task; ws.mu is held.
func (ws *waiters) end(id task.ID) {
	for _, w := range ws.byTask[id] {
		w.mu.Lock()
		w.done = append(w.done, id)
		w.mu.Unlock()
		w.wake()
	}
	delete(ws.byTask, id)
}

// take returns the tasks that ended since the last call.
func (w *waiter) take() []task.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := w.done
	w.done = nil
	return ids
}

// sweep asks the store about everything that is waited for.
func (ws *waiters) sweep(ctx context.Context, tasks store.Tasks) error {
	ws.mu.Lock()
	ids := make([]task.ID, 0, len(ws.byTask))
	for id := range ws.byTask {
		ids = append(ids, id)
	}
	ws.mu.Unlock()
	for len(ids) > 0 {
		chunk := ids[:min(len(ids), 1000)]
		ids = ids[len(chunk):]
		found, err := tasks.Tasks(ctx, chunk)
		if err != nil {
			return err
		}
		ws.mu.Lock()
		for i, t := range found {
			// A task that is gone will never ring: its waiters find that out themselves.
			if t == nil || t.Status.Terminal() {
				ws.end(chunk[i])
			}
		}
		ws.mu.Unlock()
	}
	return nil
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
