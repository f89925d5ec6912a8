package pebblestore

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Submit implements [store.Tasks].
func (s *Store) Submit(ctx context.Context, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	const op = "submit"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	if len(items) == 0 {
		return nil, nil
	}
	bytes := 0
	for i := range items {
		if err := items[i].Check(); err != nil {
			return nil, err
		}
		bytes += 512 + len(items[i].Args)
	}
	written, err := s.space.admit(s, op, bytes)
	if err != nil {
		return nil, err
	}
	defer written()
	out := make([]store.Submitted, len(items))
	err = s.commit(ctx, op, bytes, func(x *txn) {
		at := s.storeTime(now).at
		for i := range items {
			out[i] = x.submit(at, &items[i])
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// submit records one task.
func (x *txn) submit(now time.Time, it *store.Submission) store.Submitted {
	s := x.s
	if it.Key.ID != "" {
		used, err := x.taskKey(it.Key.ID)
		switch {
		case err != nil:
			return store.Submitted{Err: s.fail(err)}
		case used != nil && used.digest != it.Key.Digest:
			return store.Submitted{Err: task.Errorf(task.CodeConflict, "submit",
				"the request id %q was used for another request (task %s)", it.Key.ID, used.id)}
		case used != nil:
			return store.Submitted{ID: used.id, Duplicate: true}
		}
	}
	if it.Key.Refused != nil {
		return store.Submitted{Err: it.Key.Refused}
	}
	if s.ix.functions.gone.has(it.Task.Function) {
		return store.Submitted{Err: task.Errorf(task.CodeNotFound, "submit", "the function %s was deleted", it.Task.Function)}
	}
	x.use(it.Task.Function, now)
	if err := x.fresh(it.Task.ID); err != nil {
		return store.Submitted{Err: err}
	}
	t := it.Task.Clone()
	t.Deadline, t.NotBefore = plain(t.Deadline), plain(t.NotBefore)
	if err := t.Submit(now, s.seq+1); err != nil {
		return store.Submitted{Err: err}
	}
	s.seq++
	// Strings that came with a request would keep the whole request in memory.
	e := s.ix.add(record{task: t, key: strings.Clone(it.Key.ID)})
	t.Queue, t.Runtime = e.lane.key.queue, e.lane.key.runtime
	s.ix.keepArgs(e, it.Args)
	s.ix.place(e, now)
	x.save(e, nil)
	if len(it.Args) > maxInlineArgs {
		var key [32]byte
		x.setValue(appendIDKey(key[:0], spaceArgs, e.id), it.Args)
	}
	if e.key != "" {
		row := keyRow{id: e.id, digest: it.Key.Digest}
		x.set(textKey(spaceTaskKey, e.key), row.encode())
		if x.keys == nil {
			x.keys = make(map[string]keyRow)
		}
		x.keys[e.key] = row
		s.requestIDs.add(e.key)
	}
	if e.where == whereReady {
		x.wake(e.lane)
	}
	return store.Submitted{ID: e.id}
}

// taskKey looks an idempotency key up, in this group and on disk.
func (x *txn) taskKey(key string) (*keyRow, error) {
	if row, ok := x.keys[key]; ok {
		return &row, nil
	}
	if _, ok := x.dropped[key]; ok {
		return nil, nil
	}
	if !x.s.requestIDs.maybe(key) {
		return nil, nil
	}
	return x.s.readKeyRow(spaceTaskKey, key)
}

func (s *Store) readKeyRow(space byte, key string) (*keyRow, error) {
	v, err := s.read(textKey(space, key))
	if err != nil || v == nil {
		return nil, err
	}
	row, err := decodeKeyRow(key, v)
	if err != nil {
		return nil, err
	}
	return &row, nil
}

// fresh refuses an id that is in use. Most need no look at the disk for that.
func (x *txn) fresh(id task.ID) error {
	s := x.s
	if !s.taskIDs.maybe(id) {
		s.taskIDs.add(id)
		return nil
	}
	used := s.ix.entries[id] != nil
	if !used {
		rec, err := s.readRecord(spaceFinished, id)
		if err != nil {
			return s.fail(err)
		}
		used = rec.task != nil
	}
	if used {
		return task.Errorf(task.CodeConflict, "submit", "the task id %s is in use", id)
	}
	return nil
}

// view is what a reader sees of a task: a private copy of the record, nil when there
// is none, with its result when that is small, and with the output of an attempt in force.
type view struct {
	task   *task.Task
	out    []byte
	result []byte
}

// lookup returns what is durable of a task.
func (s *Store) lookup(ctx context.Context, id task.ID) (view, error) {
	for {
		s.mu.Lock()
		if err := s.broken.Load(); err != nil {
			s.mu.Unlock()
			return view{}, err
		}
		e := s.ix.entries[id]
		if f := s.flight; f != nil && f.touches(e, id) {
			s.mu.Unlock()
			if err := await(ctx, f.done); err != nil {
				return view{}, err
			}
			continue
		}
		space := byte(spaceFinished)
		if e != nil {
			if e.t != nil {
				v := view{task: e.t.Clone(), out: slices.Clone(e.out.bytes())}
				s.mu.Unlock()
				return v, nil
			}
			space = spaceLive
		} else if v, ok := s.recent.find(id); ok {
			s.mu.Unlock()
			return v, nil
		}
		s.mu.Unlock()
		rec, err := s.readRecord(space, id)
		if err != nil {
			return view{}, task.Errorf(task.CodeUnavailable, "read task", "%w", err)
		}
		if s.unchanged(e, id) {
			return view{task: rec.task, result: rec.result}, nil
		}
	}
}

// touches says whether the commit under way changes a task.
func (x *txn) touches(e *entry, id task.ID) bool {
	if e != nil {
		return e.flight == x
	}
	_, gone := x.gone[id]
	return gone
}

// unchanged says whether what was read from disk for a task after e was looked up is
// durable and still what stands there.
func (s *Store) unchanged(e *entry, id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken.Load() != nil || s.ix.entries[id] != e || e != nil && e.t != nil {
		return false
	}
	return s.flight == nil || !s.flight.touches(e, id)
}

// await waits for a commit under way.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return task.Errorf(task.CodeUnavailable, "read", "given up while waiting for a commit: %w", ctx.Err())
	}
}

func notFound(op string, id task.ID) error {
	return task.Errorf(task.CodeNotFound, op, "there is no task %s", id)
}

// Task implements [store.Tasks].
func (s *Store) Task(ctx context.Context, id task.ID) (*task.Task, error) {
	const op = "get task"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	v, err := s.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	if v.task == nil {
		return nil, notFound(op, id)
	}
	return v.task, nil
}

// Tasks implements [store.Tasks].
func (s *Store) Tasks(ctx context.Context, ids []task.ID) ([]*task.Task, error) {
	if err := s.enter("get tasks"); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.lookupAll(ctx, ids)
}

func (s *Store) lookupAll(ctx context.Context, ids []task.ID) ([]*task.Task, error) {
	out := make([]*task.Task, len(ids))
	for i, id := range ids {
		v, err := s.lookup(ctx, id)
		if err != nil {
			return nil, err
		}
		out[i] = v.task
	}
	return out, nil
}

// Result implements [store.Tasks].
func (s *Store) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	const op = "get result"
	if err := s.enter(op); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	v, err := s.lookup(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	switch t := v.task; {
	case t == nil:
		return nil, nil, notFound(op, id)
	case t.Status != task.Completed:
		return t, nil, nil
	case t.ResultSize == 0:
		return t, []byte{}, nil
	case t.ResultSize == len(v.result):
		return t, v.result, nil
	}
	result, err := s.readValue(idKey(spaceResult, id), v.task.ResultSize)
	if err != nil {
		return nil, nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	if result == nil {
		// Removed by retention between the two reads.
		return nil, nil, notFound(op, id)
	}
	return v.task, result, nil
}

// Cancel implements [store.Tasks].
func (s *Store) Cancel(ctx context.Context, now time.Time, ids []task.ID, onlyQueued bool) ([]*task.Task, error) {
	const op = "cancel"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([]*task.Task, len(ids))
	err := s.commit(ctx, op, 512*len(ids), func(x *txn) {
		at := s.storeTime(now).at
		for i, id := range ids {
			e := s.ix.entries[id]
			if e == nil || !s.load(e) {
				continue
			}
			if onlyQueued && e.t.Status == task.Running {
				out[i] = e.t.Clone()
				continue
			}
			if e.where != whereEnded {
				x.force(e, at, func(t *task.Task) bool { return t.Cancel(at) })
			}
			out[i] = e.t.Clone()
		}
	})
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		if out[i] != nil {
			continue
		}
		v, err := s.lookup(ctx, id)
		if err != nil {
			return nil, err
		}
		out[i] = v.task
	}
	return out, nil
}

// Log implements [store.Tasks].
func (s *Store) Log(ctx context.Context, id task.ID, attempt int) ([]byte, error) {
	const op = "get log"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	v, err := s.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	t := v.task
	if t == nil {
		return nil, notFound(op, id)
	}
	if attempt < 0 {
		return nil, task.Errorf(task.CodeInvalid, op, "attempt %d: want 1 or more, or 0 for the latest", attempt)
	}
	if attempt == 0 {
		attempt = t.AttemptCount
	}
	if t.Status == task.Running && attempt == t.AttemptCount {
		return v.out, nil
	}
	out, err := s.read(appendOutputKey(nil, id, attempt))
	if err != nil {
		return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	return out, nil
}

// QueueStats implements [store.Tasks].
func (s *Store) QueueStats(context.Context) ([]store.QueueStat, error) {
	if err := s.enter("queue stats"); err != nil {
		return nil, err
	}
	defer s.leave()
	s.mu.Lock()
	out := s.ix.stats()
	err := s.broken.Load()
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (ix *index) stats() []store.QueueStat {
	var out []store.QueueStat
	for k, l := range ix.lanes {
		if l.queued != 0 || l.running != 0 {
			out = append(out, store.QueueStat{Queue: k.queue, Runtime: k.runtime, Queued: l.queued, Running: l.running})
		}
	}
	slices.SortFunc(out, func(a, b store.QueueStat) int {
		return cmp.Or(strings.Compare(a.Queue, b.Queue), strings.Compare(a.Runtime, b.Runtime))
	})
	return out
}
