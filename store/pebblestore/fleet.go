package pebblestore

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
)

// fleet is the presence of workers: memory of the one owner.
type fleet struct {
	mu      sync.Mutex
	entries map[string]present
	// prunedAt is when all of them were looked at last.
	prunedAt time.Time
}

type present struct {
	store.Presence
	until time.Time
}

// Announce implements [store.Fleet].
func (s *Store) Announce(_ context.Context, until time.Time, workers []store.Presence) error {
	if err := s.enter("announce"); err != nil {
		return err
	}
	defer s.leave()
	f := &s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.entries == nil {
		f.entries = make(map[string]present)
	}
	for _, p := range workers {
		if p.Gone {
			delete(f.entries, p.Worker)
			continue
		}
		p.Queues, p.Runtimes = slices.Clone(p.Queues), slices.Clone(p.Runtimes)
		f.entries[p.Worker] = present{p, until}
	}
	return nil
}

// Workers implements [store.Fleet].
func (s *Store) Workers(_ context.Context, now time.Time) ([]store.Presence, error) {
	if err := s.enter("workers"); err != nil {
		return nil, err
	}
	defer s.leave()
	f := &s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []store.Presence
	for _, p := range f.entries {
		if p.until.After(now) {
			p.Queues, p.Runtimes = slices.Clone(p.Queues), slices.Clone(p.Runtimes)
			out = append(out, p.Presence)
		}
	}
	slices.SortFunc(out, func(a, b store.Presence) int { return strings.Compare(a.Worker, b.Worker) })
	return out, nil
}

// of is what is known of a worker that was announced.
func (f *fleet) of(worker string) *store.Presence {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.entries[worker]
	return &p.Presence
}

// namesKept is how long a worker that is not announced any more still has a name: its lease may
// run out after that.
const namesKept = time.Minute

// pruneEvery is how often all workers are looked at: not at each reap, which comes four times a second.
const pruneEvery = namesKept / 4

// prune forgets workers that have not been announced for long.
func (f *fleet) prune(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := now.Sub(f.prunedAt); d >= 0 && d < pruneEvery {
		return
	}
	f.prunedAt = now
	for id, p := range f.entries {
		if !p.until.Add(namesKept).After(now) {
			delete(f.entries, id)
		}
	}
}
