package dispatcher

import (
	"context"
	"sync"
)

// lane does one kind of store work in order, off the loop: what is added while a
// batch is under way leaves together in the next one, so batches form under load
// and never by a timer.
type lane[T any] struct {
	do func(ctx context.Context, batch []T)

	mu      sync.Mutex
	pending []T
	wake    chan struct{}
	closed  chan struct{}
}

func newLane[T any](do func(context.Context, []T)) *lane[T] {
	return &lane[T]{do: do, wake: make(chan struct{}, 1), closed: make(chan struct{})}
}

// add never blocks.
func (l *lane[T]) add(items ...T) {
	if len(items) == 0 {
		return
	}
	l.mu.Lock()
	l.pending = append(l.pending, items...)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lane[T]) take() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.pending
	l.pending = nil
	return out
}

// close lets run return once nothing is pending. It may be called once.
func (l *lane[T]) close() { close(l.closed) }

// run works until close; ctx bounds the work itself.
func (l *lane[T]) run(ctx context.Context) {
	for {
		if batch := l.take(); len(batch) > 0 {
			l.do(ctx, batch)
			continue
		}
		select {
		case <-l.wake:
		case <-l.closed:
			if batch := l.take(); len(batch) > 0 {
				l.do(ctx, batch)
			}
			return
		}
	}
}
