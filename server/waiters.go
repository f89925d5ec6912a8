package server

import (
	"context"
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
}

func newWaiters() *waiters { return &waiters{byTask: make(map[task.ID][]*waiter)} }

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
		list := ws.byTask[id]
		for i, x := range list {
			if x == w {
				list = append(list[:i:i], list[i+1:]...)
				break
			}
		}
		if len(list) == 0 {
			delete(ws.byTask, id)
		} else {
			ws.byTask[id] = list
		}
	}
}

// listen is the bell's callback; it does not block.
func (ws *waiters) listen(signals []store.Signal) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.byTask) == 0 {
		return
	}
	for i := range signals {
		if signals[i].Kind == store.Done {
			ws.end(signals[i].Task)
		}
	}
}

// end tells everyone who waits for the task; ws.mu is held.
func (ws *waiters) end(id task.ID) {
	for _, w := range ws.byTask[id] {
		w.mu.Lock()
		w.done = append(w.done, id)
		w.mu.Unlock()
		select {
		case w.ring <- struct{}{}:
		default:
		}
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
