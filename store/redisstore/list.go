package redisstore

import (
	"bytes"
	"context"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// maxExamined bounds the rows that one call of ListTasks looks at.
const maxExamined = 5000

// ListTasks implements [store.Tasks]. Tasks that change while the page is put together
// may appear as before or after.
func (s *Store) ListTasks(ctx context.Context, q store.ListQuery) (page []*task.Task, next task.ID, err error) {
	const op = "list tasks"
	if err := s.enter(ctx, op); err != nil {
		return nil, next, err
	}
	defer s.leave()
	if q.Limit < 1 || q.Limit > 1000 {
		return nil, next, task.Errorf(task.CodeInvalid, op, "limit %d: want 1 to 1000", q.Limit)
	}
	all := newIDs(s, op, q.Before)
	var found []*record
	var last task.ID
	examined := 0
	for {
		ids, err := all.next(ctx, min(4*maxItems, q.Limit+1))
		if err != nil {
			return nil, next, err
		}
		records, err := s.records(ctx, op, ids, s.sure)
		if err != nil {
			return nil, next, err
		}
		for i, rec := range records {
			// The row after a full page says that there is a next one.
			if len(found) == q.Limit || examined == maxExamined {
				return tasksOf(found), last, nil
			}
			examined++
			last = ids[i]
			if rec != nil && q.Matches(rec.Task) {
				found = append(found, rec)
			}
		}
		if len(ids) == 0 {
			return tasksOf(found), task.ID{}, nil
		}
	}
}

// ids walks the task ids of all shards together, newest first.
type ids struct {
	s     *Store
	op    string
	parts []idPart
}

// idPart is the walk through one shard: what was read ahead, and where to go on.
type idPart struct {
	buf   []task.ID
	below string
	ended bool
}

func newIDs(s *Store, op string, before task.ID) *ids {
	all := &ids{s: s, op: op, parts: make([]idPart, len(s.tags))}
	for i := range all.parts {
		all.parts[i].below = "+"
		if !before.IsZero() {
			all.parts[i].below = "(" + string(before[:])
		}
	}
	return all
}

// next returns up to n ids, none at the end.
func (a *ids) next(ctx context.Context, n int) (out []task.ID, err error) {
	for len(out) < n {
		if err := a.fill(ctx, n); err != nil {
			return nil, err
		}
		best := -1
		for i := range a.parts {
			if len(a.parts[i].buf) > 0 && (best < 0 || bytes.Compare(a.parts[i].buf[0][:], a.parts[best].buf[0][:]) > 0) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		out = append(out, a.parts[best].buf[0])
		a.parts[best].buf = a.parts[best].buf[1:]
	}
	return out, nil
}

// fill reads ahead where nothing is left.
func (a *ids) fill(ctx context.Context, n int) error {
	var calls []*call
	for i := range a.parts {
		if p := &a.parts[i]; len(p.buf) == 0 && !p.ended {
			calls = append(calls, &call{shard: i, args: []any{
				"ZREVRANGEBYLEX", a.s.keys(i).named(keyIDs), p.below, "-", "LIMIT", 0, n,
			}})
		}
	}
	if err := a.s.read(ctx, a.op, calls...); err != nil {
		return err
	}
	for _, c := range calls {
		p := &a.parts[c.shard]
		members := textsOf(c.cmd.Val())
		for _, text := range members {
			id, err := task.IDFromBytes([]byte(text))
			if err != nil {
				return task.Errorf(task.CodeUnavailable, a.op, "a member of %s is damaged: %w", keyIDs, err)
			}
			p.buf = append(p.buf, id)
		}
		if p.ended = len(members) < n; len(members) > 0 {
			p.below = "(" + members[len(members)-1]
		}
	}
	return nil
}
