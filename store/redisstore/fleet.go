package redisstore

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// present is a worker as it was announced.
type present struct {
	store.Presence
	until time.Time
}

// Announce implements [store.Fleet]. No replica is waited for. It is a script, as those look
// at the store's identity before they write: a Redis that was flushed gets no workers.
func (s *Store) Announce(ctx context.Context, until time.Time, workers []store.Presence) error {
	const op = "announce"
	if err := s.enter(ctx, op); err != nil {
		return err
	}
	defer s.leave()
	if !s.clock.trust {
		// In store time, as the readers' clocks may differ.
		until = s.clock.now(until).Add(time.Until(until))
	}
	for part := range slices.Chunk(workers, maxItems) {
		var shown, gone []any
		for i := range part {
			if p := &part[i]; p.Gone {
				gone = append(gone, p.Worker)
			} else {
				shown = append(shown, p.Worker, encodePresence(p, until))
			}
		}
		c := s.scriptCall(common, scriptAnnounce, until, slices.Concat([]any{len(shown) / 2}, shown, gone)...)
		if err := s.pipeline(ctx, op, s.reads, false, []*call{c}); err != nil {
			return err
		}
	}
	return nil
}

// Workers implements [store.Fleet].
func (s *Store) Workers(ctx context.Context, now time.Time) ([]store.Presence, error) {
	const op = "workers"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	all, err := s.fleet(ctx, op)
	if err != nil {
		return nil, err
	}
	at := s.clock.now(now)
	var out []store.Presence
	for _, p := range all {
		if p.until.After(at) {
			out = append(out, p.Presence)
		}
	}
	slices.SortFunc(out, func(a, b store.Presence) int { return strings.Compare(a.Worker, b.Worker) })
	return out, nil
}

func (s *Store) fleet(ctx context.Context, op string) ([]present, error) {
	c := &call{shard: common, args: []any{"HVALS", s.any.named(keyFleet)}}
	if err := s.read(ctx, op, c); err != nil {
		return nil, err
	}
	var out []present
	for _, text := range textsOf(c.cmd.Val()) {
		p, err := decodePresence(text)
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "the entry of a worker is damaged: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

// pruneFleet forgets workers that have not been announced for long.
func (s *Store) pruneFleet(ctx context.Context, now time.Time) error {
	all, err := s.fleet(ctx, "reap")
	if err != nil {
		return err
	}
	at := s.clock.now(now)
	gone := []any{"HDEL", s.any.named(keyFleet)}
	for _, p := range all {
		// A moment later, so that who announces it just now is not undone.
		if p.until.Add(time.Minute).Before(at) {
			gone = append(gone, p.Worker)
		}
	}
	if len(gone) == 2 {
		return nil
	}
	return s.read(ctx, "reap", &call{shard: common, args: gone})
}

func encodePresence(p *store.Presence, until time.Time) []byte {
	w := newWriter(192)
	for _, text := range []string{p.Worker, p.Name, p.Host, p.Mode, p.State, p.Version} {
		w.text(text)
	}
	for _, n := range []int{p.PID, p.Slots, p.Running, p.Offered} {
		w.int(int64(n))
	}
	w.time(p.ConnectedAt)
	w.time(p.LastSeen)
	w.time(until)
	for _, list := range [][]string{p.Queues, p.Runtimes} {
		w.uint(uint64(len(list)))
		for _, text := range list {
			w.text(text)
		}
	}
	return w.b
}

func decodePresence(b string) (present, error) {
	r := newReader(b)
	var p present
	for _, text := range []*string{&p.Worker, &p.Name, &p.Host, &p.Mode, &p.State, &p.Version} {
		*text = r.text()
	}
	for _, n := range []*int{&p.PID, &p.Slots, &p.Running, &p.Offered} {
		*n = int(r.int())
	}
	p.ConnectedAt = r.time()
	p.LastSeen = r.time()
	p.until = r.time()
	for _, list := range []*[]string{&p.Queues, &p.Runtimes} {
		for n := r.uint(); n > 0 && len(r.b) > 0; n-- {
			*list = append(*list, r.text())
		}
	}
	return p, r.err
}
