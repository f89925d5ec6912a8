// Package localbell is the bell of stores whose users all live in one process.
package localbell

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Bell calls its listeners directly, on the goroutine that rings: a ring costs no
// hand-over, and a listener that blocks holds up whoever rings. The zero value is ready.
// All methods may be called concurrently; one listener never runs twice at a time.
type Bell struct {
	mu        sync.RWMutex
	listeners map[*listener]struct{}

	watch watch
}

// watch holds the tasks that somebody watches, and until when.
type watch struct {
	// size is the number of entries: most of the time there are none, and whoever asks
	// then takes no lock.
	size  atomic.Int32
	mu    sync.Mutex
	until map[task.ID]time.Time
	// prune is the size at which entries that are over are looked for.
	prune int
}

const minPrune = 64

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

// Watch implements [store.Bell].
func (b *Bell) Watch(id task.ID, lasts time.Duration) {
	now := time.Now()
	w := &b.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.until == nil {
		w.until, w.prune = make(map[task.ID]time.Time), minPrune
	}
	if until := now.Add(lasts); until.After(w.until[id]) {
		w.until[id] = until
	}
	if len(w.until) >= w.prune {
		for id, until := range w.until {
			if until.Before(now) {
				delete(w.until, id)
			}
		}
		w.prune = max(2*len(w.until), minPrune)
	}
	w.size.Store(int32(len(w.until)))
}

// Watched reports whether [store.Changed] should ring for a task. It costs next to
// nothing while nobody watches anything.
func (b *Bell) Watched(id task.ID) bool {
	w := &b.watch
	if w.size.Load() == 0 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	until, ok := w.until[id]
	if ok && until.Before(time.Now()) {
		delete(w.until, id)
		w.size.Store(int32(len(w.until)))
		return false
	}
	return ok
}

func (l *listener) call(signals []store.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.fn(signals)
	}
}
