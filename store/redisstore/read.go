package redisstore

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// recordCall reads the record of a task, and more fields after it.
func (s *Store) recordCall(id task.ID, more ...string) *call {
	shard := s.shardOf(id)
	args := make([]any, 0, 2+len(recordFields)+len(more))
	args = append(args, "HMGET", s.keys(shard).task(id))
	for _, f := range recordFields {
		args = append(args, f)
	}
	for _, f := range more {
		args = append(args, f)
	}
	return &call{shard: shard, args: args}
}

// records reads many records; an unknown id gives a nil entry. What they say is known to
// last only if read is [Store.sure].
func (s *Store) records(ctx context.Context, op string, ids []task.ID, read lookup) ([]*record, error) {
	out := make([]*record, 0, len(ids))
	for part := range slices.Chunk(ids, 4*maxItems) {
		calls := make([]*call, len(part))
		for i, id := range part {
			calls[i] = s.recordCall(id)
		}
		if err := read(ctx, op, calls...); err != nil {
			return nil, err
		}
		for i, c := range calls {
			rec, err := c.record(part[i])
			if err != nil {
				return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
			}
			out = append(out, rec)
		}
	}
	return out, nil
}

// lookup is [Store.read] or [Store.sure].
type lookup func(ctx context.Context, op string, calls ...*call) error

func (c *call) record(id task.ID) (*record, error) {
	v, err := c.cmd.Slice()
	if err != nil {
		return nil, err
	}
	return decodeRecord(id, v)
}

// record reads one record; nil when there is none.
func (s *Store) record(ctx context.Context, op string, id task.ID) (*record, error) {
	all, err := s.records(ctx, op, []task.ID{id}, s.read)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

func tasksOf(records []*record) []*task.Task {
	out := make([]*task.Task, len(records))
	for i, rec := range records {
		if rec != nil {
			out[i] = rec.Task
		}
	}
	return out
}

func notFound(op string, id task.ID) error {
	return task.Errorf(task.CodeNotFound, op, "there is no task %s", id)
}

// Task implements [store.Tasks].
func (s *Store) Task(ctx context.Context, id task.ID) (*task.Task, error) {
	const op = "get task"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	all, err := s.records(ctx, op, []task.ID{id}, s.sure)
	if err != nil {
		return nil, err
	}
	if all[0] == nil {
		return nil, notFound(op, id)
	}
	return all[0].Task, nil
}

// Tasks implements [store.Tasks].
func (s *Store) Tasks(ctx context.Context, ids []task.ID) ([]*task.Task, error) {
	const op = "get tasks"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	records, err := s.records(ctx, op, ids, s.sure)
	return tasksOf(records), err
}

// Result implements [store.Tasks].
func (s *Store) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	const op = "get result"
	if err := s.enter(ctx, op); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	c := s.recordCall(id, fieldResult)
	if err := s.sure(ctx, op, c); err != nil {
		return nil, nil, err
	}
	rec, err := c.record(id)
	switch {
	case err != nil:
		return nil, nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
	case rec == nil:
		return nil, nil, notFound(op, id)
	}
	if result, ok := c.inline(rec); ok {
		return rec.Task, result, nil
	}
	result, err := s.fetch(ctx, op, keyResult, id, rec.head.resultIn, rec.ResultSize)
	if err != nil {
		return nil, nil, err
	}
	if result == nil {
		// Removed by retention between the two reads.
		return nil, nil, notFound(op, id)
	}
	return rec.Task, result, nil
}

// inline is the result that was read with a record; false when it stands apart.
func (c *call) inline(rec *record) ([]byte, bool) {
	switch {
	case rec.Status != task.Completed:
		return nil, true
	case rec.ResultSize == 0:
		return []byte{}, true
	}
	text, ok := c.cmd.Val().([]any)[len(recordFields)].(string)
	if !ok || len(text) != rec.ResultSize {
		return nil, false
	}
	return []byte(text), true
}

// Results implements [store.Results].
func (s *Store) Results(ctx context.Context, ids []task.ID) ([]store.Read, error) {
	const op = "get results"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([]store.Read, 0, len(ids))
	for part := range slices.Chunk(ids, maxItems) {
		calls := make([]*call, len(part))
		for i, id := range part {
			calls[i] = s.recordCall(id, fieldResult)
		}
		if err := s.sure(ctx, op, calls...); err != nil {
			return nil, err
		}
		for i, c := range calls {
			rec, err := c.record(part[i])
			if err != nil {
				return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
			}
			var r store.Read
			if rec != nil {
				if result, ok := c.inline(rec); ok {
					r = store.Read{Task: rec.Task, Result: result}
				}
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// Log implements [store.Tasks].
func (s *Store) Log(ctx context.Context, id task.ID, attempt int) ([]byte, error) {
	const op = "get log"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	rec, err := s.record(ctx, op, id)
	if err != nil {
		return nil, err
	}
	switch {
	case rec == nil:
		return nil, notFound(op, id)
	case attempt < 0:
		return nil, task.Errorf(task.CodeInvalid, op, "attempt %d: want 1 or more, or 0 for the latest", attempt)
	case attempt == 0:
		attempt = rec.AttemptCount
	}
	if attempt < 1 || attempt > rec.AttemptCount {
		return nil, nil
	}
	shard := s.shardOf(id)
	c := &call{shard: shard, args: []any{"HGET", s.keys(shard).log(id), strconv.Itoa(attempt)}}
	if err := s.read(ctx, op, c); err != nil {
		return nil, err
	}
	text, _ := c.cmd.Val().(string)
	return []byte(text), nil
}

// QueueStats implements [store.Tasks].
func (s *Store) QueueStats(ctx context.Context) ([]store.QueueStat, error) {
	const op = "queue stats"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	calls := make([]*call, len(s.tags))
	for shard := range s.tags {
		calls[shard] = &call{shard: shard, args: []any{"HGETALL", s.keys(shard).named(keyStats)}}
	}
	if err := s.read(ctx, op, calls...); err != nil {
		return nil, err
	}
	sum := make(map[string]*store.QueueStat)
	for _, c := range calls {
		counts, err := pairsOf(c.cmd.Val())
		if err != nil {
			return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		for field, n := range counts {
			i := strings.LastIndexByte(field, 0)
			if i < 0 {
				continue
			}
			queue, runtime := splitLane(field[:i])
			st := sum[field[:i]]
			if st == nil {
				st = &store.QueueStat{Queue: queue, Runtime: runtime}
				sum[field[:i]] = st
			}
			if field[i+1:] == "r" {
				st.Running += n
			} else {
				st.Queued += n
			}
		}
	}
	var out []store.QueueStat
	for _, st := range sum {
		if st.Queued != 0 || st.Running != 0 {
			out = append(out, *st)
		}
	}
	slices.SortFunc(out, func(a, b store.QueueStat) int {
		return cmp.Or(strings.Compare(a.Queue, b.Queue), strings.Compare(a.Runtime, b.Runtime))
	})
	return out, nil
}

// pairsOf reads a hash of numbers.
func pairsOf(v any) (map[string]int, error) {
	out := make(map[string]int)
	m, ok := v.(map[any]any)
	if !ok {
		if list, isList := v.([]any); isList && len(list) == 0 || v == nil {
			return out, nil
		}
		return nil, errDamaged
	}
	for k, v := range m {
		name, _ := k.(string)
		text, _ := v.(string)
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		out[name] = n
	}
	return out, nil
}
