// Package localbell is the bell of stores whose users all live in one process.
package localbell

import (
	"context"
	"sync"

	"github.com/treadle-dev/treadle/store"
)

// Bell calls its listeners directly, on the goroutine that rings: a ring costs no
// hand-over, and a listener that blocks holds up whoever rings. The zero value is ready.
// All methods may be called concurrently; one listener never runs twice at a time.
type Bell struct {
	mu        sync.RWMutex
	listeners map[*listener]struct{}
}

type listener struct {
	mu      sync.Mutex
	fn      func([]store.Signal)
	stopped bool
}

var _ store.Bell = (*Bell)(nil)

// Listen implements [store.Bell]. The returned function may be called more than
// once, but not from within fn.
func (b *Bell) Listen(fn func([]store.Signal)) (stop func()) {
	l := &listener{fn: fn}
	b.mu.Lock()
	if b.listeners == nil {
		b.listeners = make(map[*listener]struct{})
	}
	b.listeners[l] = struct{}{}
	b.mu.Unlock()
	return func() {
		b.mu.Lock()
		delete(b.listeners, l)
		b.mu.Unlock()
		// A ring that began before may still hold l: its lock is free once fn returned.
		l.mu.Lock()
		l.stopped = true
		l.mu.Unlock()
	}
}

// Ring implements [store.Bell].
func (b *Bell) Ring(_ context.Context, signals []store.Signal) {
	if len(signals) == 0 {
		return
	}
	b.mu.RLock()
	targets := make([]*listener, 0, len(b.listeners))
	for l := range b.listeners {
		targets = append(targets, l)
	}
	b.mu.RUnlock()
	for _, l := range targets {
		l.call(signals)
	}
}

func (l *listener) call(signals []store.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.fn(signals)
	}
}
