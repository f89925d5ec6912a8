package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/moves"
	"github.com/treadle-dev/treadle/task"
)

// Reap implements [store.Queue]. The loss of a lease that was found at open and not
// renewed since counts ([task.EndLost]): whether its attempt was started is not written.
func (s *Store) Reap(ctx context.Context, now time.Time, limit int) (time.Time, error) {
	const op = "reap"
	if err := s.enter(op); err != nil {
		return time.Time{}, err
	}
	defer s.leave()
	if limit < 1 {
		return time.Time{}, task.Errorf(task.CodeInvalid, op, "limit %d: want 1 or more", limit)
	}
	at, overdue, garbage, moved, signals := s.dueNow(now)
	if err := s.offerPromoted(ctx, op, signals); err != nil {
		return time.Time{}, err
	}
	s.fleet.prune(now)
	if moved {
		if err := s.commit(ctx, op, 512, (*txn).resave); err != nil {
			return time.Time{}, err
		}
	}
	if overdue || seededbug.On(seededbug.GCLive) {
		done := 0
		failpoint.Hit(failpoint.MidReap)
		err := s.commit(ctx, op, 512*min(limit, 1024), func(x *txn) { done = x.reap(at, limit) })
		if err != nil {
			return time.Time{}, err
		}
		limit -= done
	}
	n, err := s.collectFunctions(ctx, at, limit)
	if err != nil {
		return time.Time{}, err
	}
	limit -= n
	if garbage && limit > 0 {
		if err := s.collect(ctx, at, limit); err != nil {
			return time.Time{}, err
		}
	}
	return s.nextReap(at)
}

// dueNow makes delayed tasks ready, which needs no write, and says what else is due.
func (s *Store) dueNow(now time.Time) (at time.Time, overdue, garbage, moved bool, signals []store.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at = s.storeTime(now).at
	s.ix.sweepLanes()
	woken := make(map[*lane]struct{})
	s.ix.promote(at, func(l *lane) {
		if _, ok := woken[l]; !ok {
			woken[l] = struct{}{}
			if s.waiting.count > 0 {
				s.waiting.woken = append(s.waiting.woken, l)
			}
			signals = append(signals, readySignal(l))
		}
	})
	_, lease := s.ix.overdueLease(at)
	_, deadline := s.ix.overdueDeadline(at)
	moved, s.clock.delaysMoved = s.clock.delaysMoved, false
	return at, lease || deadline, !s.nextGC.IsZero() && !s.nextGC.After(at.Add(-s.held(at))), moved, signals
}

// offerPromoted gives tasks whose delay is over to those who stand for them, and rings
// for the rest.
func (s *Store) offerPromoted(ctx context.Context, op string, signals []store.Signal) error {
	s.mu.Lock()
	look := len(s.waiting.woken) > 0
	s.mu.Unlock()
	if look {
		if err := s.commit(ctx, op, 512, func(*txn) {}); err != nil {
			return err
		}
	}
	s.bell.Ring(ctx, signals)
	return nil
}

// overdueLease returns an entry whose lease has run out. Renewals leave the heap as
// it is, so entries that were renewed are put in order here.
func (ix *index) overdueLease(now time.Time) (*entry, bool) {
	for h := &ix.leases; len(h.items) > 0; {
		it := h.items[0]
		until := nanos(it.e.t.Lease.Until)
		if until > it.at {
			h.rekey(until)
			continue
		}
		return it.e, it.at <= nanos(now)
	}
	return nil, false
}

func (ix *index) overdueDeadline(now time.Time) (*entry, bool) {
	if len(ix.deadlines.items) == 0 {
		return nil, false
	}
	it := ix.deadlines.items[0]
	return it.e, it.at <= nanos(now)
}

// reap ends overdue leases and deadlines, at most limit, and returns how many.
func (x *txn) reap(now time.Time, limit int) (n int) {
	ix := &x.s.ix
	if seededbug.On(seededbug.GCLive) {
		x.forgetOld(now)
	}
	// The deadline goes first: it decides, whatever becomes of the lease.
	n = x.expire(now, limit)
	for ; n < limit; n++ {
		e, due := ix.overdueLease(now)
		if !due {
			break
		}
		x.lapse(e, now)
	}
	return n
}

// forgetOld removes tasks that wait longer than the retention: the mistake
// [seededbug.GCLive], which no build that users get can make.
func (x *txn) forgetOld(now time.Time) {
	for id, e := range x.s.ix.entries {
		if e.where == whereReady && x.s.load(e) && now.Sub(e.t.CreatedAt) > x.s.opts.Retention {
			x.s.ix.unplace(e)
			x.s.ix.finished(e.t)
			e.where = whereEnded
			x.touch(e)
			x.del(idKey(spaceLive, id))
		}
	}
}

// expire ends tasks whose deadline has passed, at most limit, and returns how many.
func (x *txn) expire(now time.Time, limit int) (n int) {
	for ; n < limit; n++ {
		e, due := x.s.ix.overdueDeadline(now)
		if !due {
			break
		}
		if !x.s.load(e) || !x.force(e, now, func(t *task.Task) bool { return t.Expire(now) }) {
			// The heap and the record disagree, or the disk failed.
			x.s.fail(errors.New("the deadline of task " + e.id.String() + " cannot be applied"))
			break
		}
	}
	return n
}

// lapse ends a claim whose lease ran out.
func (x *txn) lapse(e *entry, now time.Time) {
	out := x.s.fleet.of(e.t.Lease.Worker).Named(e.t.Overdue(e.startUnknown))
	tok, _ := e.t.Token()
	x.signals = append(x.signals, store.Signal{Kind: store.Revoked, Task: e.id, Claim: tok.Claim})
	x.settle(e, now, tok, out, moves.Jitter(e.t))
}

// nextReap returns when something will be due.
func (s *Store) nextReap(now time.Time) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.broken.Load(); err != nil {
		return time.Time{}, err
	}
	next := int64(math.MaxInt64)
	if e, _ := s.ix.overdueLease(now); e != nil {
		next = min(next, s.ix.leases.items[0].at)
	}
	if d := s.ix.deadlines.items; len(d) > 0 {
		next = min(next, d[0].at)
	}
	if d := s.ix.delayed.items; len(d) > 0 {
		next = min(next, d[0].at)
	}
	if len(s.ix.functions.used) > 0 {
		next = min(next, nanos(s.ix.functions.look))
	}
	if !s.nextGC.IsZero() {
		next = min(next, nanos(s.dueAt(s.nextGC, now)))
	}
	if next == math.MaxInt64 {
		return time.Time{}, nil
	}
	return time.Unix(0, next).UTC(), nil
}

// garbage is one row of the retention index with the tasks to remove and those that
// stay for the next call.
type garbage struct {
	key       []byte
	out, rest []retained
}

// collect removes finished tasks past their retention (T10): record, result, output
// and idempotency key. One removal runs at a time; a second one has nothing to do.
func (s *Store) collect(ctx context.Context, now time.Time, limit int) error {
	if !s.gc.TryLock() {
		return nil
	}
	defer s.gc.Unlock()
	// Tasks that finish from here on set nextGC anew.
	s.mu.Lock()
	s.nextGC = time.Time{}
	now = now.Add(-s.held(now))
	if s.clock.rewound {
		s.cursor, s.clock.rewound = nil, false
	}
	s.mu.Unlock()
	rows, next, err := s.expired(ctx, now, limit)
	failpoint.Seen(failpoint.MidGC, len(rows))
	if err != nil {
		err = task.Errorf(task.CodeUnavailable, "reap", "%w", err)
	} else if len(rows) > 0 {
		err = s.commit(ctx, "reap", 128*limit, func(x *txn) {
			for i := range rows {
				x.remove(&rows[i])
			}
		})
	}
	if err != nil {
		next = now
	} else if len(rows) > 0 {
		s.cursor = rows[len(rows)-1].key
	}
	s.mu.Lock()
	s.gcAt(next)
	s.mu.Unlock()
	return err
}

// gcAt notes that a finished task is due for removal at t.
func (s *Store) gcAt(t time.Time) {
	if !t.IsZero() && (s.nextGC.IsZero() || t.Before(s.nextGC)) {
		s.nextGC = t
	}
}

// expired lists up to limit finished tasks past their retention, and when the one
// after them is due. What was removed lately still slows an iterator down, so it
// starts where the last removal ended.
func (s *Store) expired(ctx context.Context, now time.Time, limit int) (out []garbage, next time.Time, err error) {
	lower, upper := bounds(spaceRetain)
	if len(s.cursor) > 0 {
		lower = s.cursor
	}
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, next, err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		finished, isRow := finishOf(it.Key())
		if !isRow {
			return nil, next, fmt.Errorf("the key %q is damaged", it.Key())
		}
		if due := finished.Add(s.opts.Retention); due.After(now) || limit == 0 {
			return out, due, nil
		}
		tasks, err := decodeRetained(it.Key(), it.Value())
		if err != nil {
			return nil, next, err
		}
		g := garbage{key: append([]byte(nil), it.Key()...)}
		n := min(limit, len(tasks))
		g.out, g.rest = tasks[:n], tasks[n:]
		limit -= n
		out = append(out, g)
		if len(g.rest) > 0 {
			return out, now, nil
		}
	}
	return out, next, nil
}

// remove deletes everything of the finished tasks of a row.
func (x *txn) remove(g *garbage) {
	for i := range g.out {
		x.removeTask(&g.out[i])
	}
	if len(g.rest) == 0 {
		x.del(g.key)
		return
	}
	x.buf = appendRetained(x.buf[:0], g.rest)
	x.set(g.key, x.buf)
}

func (x *txn) removeTask(t *retained) {
	var key [32]byte
	x.del(appendIDKey(key[:0], spaceFinished, t.id))
	if t.result {
		x.delValue(appendIDKey(key[:0], spaceResult, t.id), t.parts)
	}
	for _, attempt := range t.logs {
		x.del(appendOutputKey(key[:0], t.id, attempt))
	}
	if t.key != "" {
		x.del(textKey(spaceTaskKey, t.key))
		// A submission later in this group may use the key again.
		if x.dropped == nil {
			x.dropped = make(map[string]struct{})
		}
		x.dropped[t.key] = struct{}{}
	}
	if t.owner != "" {
		x.keep(t.owner, -t.size)
	}
	if x.gone == nil {
		x.gone = make(map[task.ID]struct{})
	}
	x.gone[t.id] = struct{}{}
}
