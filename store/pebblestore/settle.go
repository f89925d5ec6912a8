package pebblestore

import (
	"context"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/moves"
	"github.com/treadle-dev/treadle/task"
)

// Renew implements [store.Queue]. Nothing of it is written, so it does not wait for
// the committer; only a task that a commit under way is changing is waited for.
func (s *Store) Renew(ctx context.Context, now time.Time, items []store.Renewal) ([]task.Verdict, error) {
	const op = "renew"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([]task.Verdict, len(items))
	var changed []store.Signal
	defer func() { s.bell.Ring(ctx, changed) }()
	todo := make([]int, len(items))
	for i := range todo {
		todo[i] = i
	}
	for {
		s.mu.Lock()
		if err := s.broken.Load(); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		at := s.storeTime(now)
		rest := todo[:0]
		for _, i := range todo {
			e := s.ix.entries[items[i].Token.Task]
			if e != nil && e.flight != nil {
				rest = append(rest, i)
				continue
			}
			was := e.status()
			out[i] = s.ix.renew(e, &items[i], at)
			if e.status() != was && s.bell.Watched(e.id) {
				changed = append(changed, store.Signal{Kind: store.Changed, Task: e.id})
			}
		}
		var done chan struct{}
		if todo = rest; len(todo) > 0 {
			done = s.flight.done
		}
		s.mu.Unlock()
		if done == nil {
			return out, nil
		}
		if err := await(ctx, done); err != nil {
			return nil, err
		}
	}
}

// renew extends one lease; m brings the times of r into store time.
func (ix *index) renew(e *entry, r *store.Renewal, m moment) task.Verdict {
	if e == nil || !e.holds(r.Token) {
		return task.VerdictStale
	}
	t, was := e.t, e.t.Status
	v := t.Renew(m.at, r.Token, m.of(r.Until), m.of(r.StartedAt))
	// The heap keeps the old end; Reap looks again when that comes.
	e.startUnknown = false
	if t.Status != was {
		e.lane.count(was, -1)
		e.lane.count(t.Status, 1)
		// The attempt has its arguments now.
		if t.ArgsSize > maxInlineArgs {
			ix.dropArgs(e)
		}
	}
	e.write(r.Log)
	return v
}

// status is that of the record in memory, empty without one.
func (e *entry) status() task.Status {
	if e == nil || e.t == nil {
		return ""
	}
	return e.t.Status
}

// write adds to the output of the claim in force.
func (e *entry) write(p []byte) {
	if len(p) == 0 {
		return
	}
	if e.out == nil {
		e.out = new(tail)
	}
	e.out.write(p)
}

// Resume implements [store.Queue].
func (s *Store) Resume(ctx context.Context, now time.Time, r store.Resumption) ([]task.Verdict, error) {
	const op = "resume"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([]task.Verdict, len(r.Held))
	err := s.commit(ctx, op, 512*len(r.Held), func(x *txn) {
		x.resume(s.storeTime(now), &r, out)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (x *txn) resume(m moment, r *store.Resumption, out []task.Verdict) {
	s := x.s
	held := make(map[*entry]struct{}, len(r.Held))
	for i := range r.Held {
		h := r.Held[i]
		if h.Until.Before(r.Until) {
			h.Until = r.Until
		}
		e := s.ix.entries[h.Token.Task]
		if e == nil || !e.holds(h.Token) || e.t.Lease.Worker != r.Worker {
			out[i] = task.VerdictStale
			continue
		}
		out[i] = s.ix.renew(e, &h, m)
		e.t.Lease.Session = r.Session
		held[e] = struct{}{}
	}
	// Leases are few next to tasks and workers return rarely: a look at all of them is
	// cheaper than an index by worker that every claim would have to keep.
	var denied []*entry
	for _, it := range s.ix.leases.items {
		if _, ok := held[it.e]; !ok && it.e.t.Lease.Worker == r.Worker {
			denied = append(denied, it.e)
		}
	}
	for _, e := range denied {
		tok, _ := e.t.Token()
		x.signals = append(x.signals, store.Signal{Kind: store.Revoked, Task: e.id, Claim: tok.Claim})
		x.settle(e, m.at, tok, moves.Missing(), moves.Jitter(e.t))
	}
}

// Settle implements [store.Queue].
func (s *Store) Settle(ctx context.Context, now time.Time, items []store.Settlement) ([]task.Verdict, error) {
	const op = "settle"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	if len(items) == 0 {
		return nil, nil
	}
	bytes := 0
	for i := range items {
		bytes += 512 + len(items[i].Outcome.Result) + len(items[i].Log)
	}
	out := make([]task.Verdict, len(items))
	err := s.commit(ctx, op, bytes, func(x *txn) {
		at := s.storeTime(now).at
		for i := range items {
			it := &items[i]
			e := s.ix.entries[it.Token.Task]
			if e == nil || !s.load(e) {
				continue
			}
			if e.holds(it.Token) {
				if !it.Session.IsZero() && e.t.Lease.Session != it.Session {
					out[i] = task.VerdictStale
					continue
				}
				e.write(it.Log)
			}
			out[i] = x.settle(e, at, it.Token, it.Outcome, it.Jitter)
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range items {
		if out[i] == "" {
			if out[i], err = s.settleEnded(ctx, now, &items[i]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// settleEnded answers a report about a task that is not in the index: it ended
// before, or was never there.
func (s *Store) settleEnded(ctx context.Context, now time.Time, it *store.Settlement) (task.Verdict, error) {
	v, err := s.lookup(ctx, it.Token.Task)
	if err != nil {
		return "", err
	}
	if v.task == nil || !v.task.Status.Terminal() {
		return task.VerdictStale, nil
	}
	return v.task.Settle(now, it.Token, it.Outcome, it.Jitter), nil
}
