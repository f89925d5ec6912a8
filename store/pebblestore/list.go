package pebblestore

import (
	"bytes"
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// maxExamined bounds the rows that one call of ListTasks looks at.
const maxExamined = 5000

// ListTasks implements [store.Tasks]. Each record of a page is durable; tasks that
// change while the page is put together may appear as before or after.
func (s *Store) ListTasks(ctx context.Context, q store.ListQuery) (page []*task.Task, next task.ID, err error) {
	const op = "list tasks"
	if err := s.enter(op); err != nil {
		return nil, next, err
	}
	defer s.leave()
	if q.Limit < 1 || q.Limit > 1000 {
		return nil, next, task.Errorf(task.CodeInvalid, op, "limit %d: want 1 to 1000", q.Limit)
	}
	snap := s.db.NewSnapshot()
	defer func() { err = errors.Join(err, snap.Close()) }()
	m, err := newMerge(ctx, snap, &q)
	if err != nil {
		return nil, next, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	defer func() { err = errors.Join(err, m.close()) }()
	var last task.ID
	for examined := 0; m.valid(); m.advance() {
		// The row after a full page says that there is a next one.
		if len(page) == q.Limit || examined == maxExamined {
			return page, last, nil
		}
		examined++
		id, t, err := s.row(ctx, m)
		if err != nil {
			return nil, next, err
		}
		last = id
		if t != nil && q.Matches(t) {
			page = append(page, t)
		}
	}
	if err := m.err(); err != nil {
		return nil, next, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	return page, next, nil
}

// row returns the record that the merge stands at. The index knows better than the
// snapshot what became of an unfinished task, and what of it is durable.
func (s *Store) row(ctx context.Context, m *merge) (task.ID, *task.Task, error) {
	id, ok := idOfKey(m.cur.Key())
	if !ok {
		return id, nil, task.Errorf(task.CodeUnavailable, "list tasks", "the key %q is damaged", m.cur.Key())
	}
	if m.cur == m.finished && s.settled(id) {
		rec, err := decodeRecord(spaceFinished, id, m.cur.Value())
		if err != nil {
			return id, nil, task.Errorf(task.CodeUnavailable, "list tasks", "%w", err)
		}
		return id, rec.task, nil
	}
	v, err := s.lookup(ctx, id)
	return id, v.task, err
}

// settled says that a finished task on disk is durable.
func (s *Store) settled(id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ix.entries[id] == nil && s.broken.Load() == nil
}

// merge walks unfinished and finished tasks together, newest first.
type merge struct {
	live, finished, cur *pebble.Iterator
}

func newMerge(ctx context.Context, snap *pebble.Snapshot, q *store.ListQuery) (*merge, error) {
	open := func(space byte) (*pebble.Iterator, error) {
		lower, upper := bounds(space)
		if !q.Before.IsZero() {
			upper = idKey(space, q.Before)
		}
		return snap.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	}
	live, err := open(spaceLive)
	if err != nil {
		return nil, err
	}
	finished, err := open(spaceFinished)
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	m := &merge{live: live, finished: finished}
	live.Last()
	finished.Last()
	m.choose()
	return m, nil
}

// choose stands on the larger id.
func (m *merge) choose() {
	switch {
	case !m.live.Valid():
		m.cur = m.finished
	case !m.finished.Valid():
		m.cur = m.live
	case bytes.Compare(m.live.Key()[1:], m.finished.Key()[1:]) >= 0:
		m.cur = m.live
	default:
		m.cur = m.finished
	}
}

func (m *merge) valid() bool { return m.cur.Valid() }

func (m *merge) advance() {
	m.cur.Prev()
	m.choose()
}

func (m *merge) err() error   { return errors.Join(m.live.Error(), m.finished.Error()) }
func (m *merge) close() error { return errors.Join(m.live.Close(), m.finished.Close()) }
