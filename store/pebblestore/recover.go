package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/store/moves"
	"github.com/treadle-dev/treadle/task"
)

// recover rebuilds the index from the unfinished tasks on disk. Leases of remote
// workers are granted one fresh length; those of the local pool ended with the
// process that held them.
func (s *Store) recover(ctx context.Context) error {
	if err := s.checkFormat(); err != nil {
		return err
	}
	back, err := s.recoverClock()
	if err != nil {
		return err
	}
	x := s.newTxn(0)
	counts, err := s.recoverLive(ctx, x, back)
	if err != nil {
		return errors.Join(err, x.close())
	}
	if err := s.recoverFinished(); err != nil {
		return errors.Join(err, x.close())
	}
	if err := s.recoverOwners(ctx, x); err != nil {
		return errors.Join(err, x.close())
	}
	if err := s.broken.Load(); err != nil {
		return err
	}
	if !x.empty() {
		x.seal()
		if err := s.sealed(x.b); err != nil {
			return task.Errorf(task.CodeUnavailable, "open store", "recovery cannot be written: %w", err)
		}
	}
	s.finish(x)
	s.log.Info("store opened", "dir", s.opts.Dir, "durability", s.opts.Durability, "unfinished", counts.live,
		"leases", counts.leases, "requeued", counts.requeued)
	return x.close()
}

// checkFormat refuses a folder written by a newer build.
func (s *Store) checkFormat() error {
	const op = "open store"
	v, err := s.read(keyFormat)
	if err != nil {
		return task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	switch {
	case v == nil, len(v) == 1 && v[0] > 0 && v[0] < formatVersion:
		if err := s.db.Set(keyFormat, []byte{formatVersion}, s.sync); err != nil {
			return task.Errorf(task.CodeUnavailable, op, "the format version cannot be written: %w", err)
		}
		return nil
	case len(v) != 1 || v[0] == 0:
		return task.Errorf(task.CodeInvalid, op, "the format version of the store in %s is damaged: %x", s.opts.Dir, v)
	case v[0] > formatVersion:
		return task.Errorf(task.CodeInvalid, op,
			"the store in %s has format %d and this build reads up to %d: a newer treadle wrote it, use that one or another folder",
			s.opts.Dir, v[0], formatVersion)
	}
	return nil
}

type recovered struct{ live, leases, requeued int }

func (s *Store) recoverLive(ctx context.Context, x *txn, back time.Duration) (n recovered, err error) {
	lower, upper := bounds(spaceLive)
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	names := make(map[string]string)
	for ok := it.First(); ok; ok = it.Next() {
		id, isID := idOfKey(it.Key())
		if !isID {
			return n, fmt.Errorf("open store: the key %q is damaged", it.Key())
		}
		rec, err := decodeRecord(spaceLive, id, it.Value())
		if err != nil {
			return n, task.Errorf(task.CodeUnavailable, "open store", "%w", err)
		}
		shareNames(rec.task, names)
		if back > 0 {
			rec.task.Shift(-back)
		}
		n.live++
		s.recoverTask(x, rec, &n)
		if n.live%4096 == 0 && ctx.Err() != nil {
			return n, ctx.Err()
		}
	}
	return n, it.Error()
}

// shareNames makes equal names share their bytes.
func shareNames(t *task.Task, names map[string]string) {
	share := func(s string) string {
		if have, ok := names[s]; ok {
			return have
		}
		names[s] = s
		return s
	}
	t.FunctionName, t.Queue, t.Runtime = share(t.FunctionName), share(t.Queue), share(t.Runtime)
	t.CreatedBy = share(t.CreatedBy)
}

func (s *Store) recoverTask(x *txn, rec record, n *recovered) {
	t := rec.task
	s.seq = max(s.seq, t.Seq)
	e := s.ix.add(rec)
	tok, leased := t.Token()
	if !leased {
		s.ix.place(e, s.now)
		if s.ix.resident > s.opts.maxResident {
			s.ix.evict(e)
		}
		return
	}
	n.leases++
	if t.Lease.Local {
		n.requeued++
		t.Settle(s.now, tok, moves.LostWithOwner(), moves.Jitter(t))
		s.ix.place(e, s.now)
		x.save(e, nil)
		return
	}
	t.Grant(s.now.Add(s.opts.Lease))
	s.ix.place(e, s.now)
	e.startUnknown = t.Lease.StartedAt.IsZero()
}

// recoverFinished finds where retention starts and the largest ids in use.
func (s *Store) recoverFinished() error {
	lower, upper := bounds(spaceRetain)
	key, err := s.edgeKey(lower, upper, (*pebble.Iterator).First)
	if err != nil {
		return err
	}
	if finished, ok := finishOf(key); ok {
		s.nextGC = finished.Add(s.opts.Retention)
	}
	for _, space := range []byte{spaceLive, spaceFinished} {
		lower, upper := bounds(space)
		key, err := s.edgeKey(lower, upper, (*pebble.Iterator).Last)
		if err != nil {
			return err
		}
		if id, ok := idOfKey(key); ok {
			s.taskIDs.raise(id)
		}
	}
	return s.recoverRequestIDs()
}

// edgeKey returns the first or last key of a range, nil when it is empty.
func (s *Store) edgeKey(lower, upper []byte, edge func(*pebble.Iterator) bool) (key []byte, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	if edge(it) {
		key = append([]byte(nil), it.Key()...)
	}
	return key, nil
}
