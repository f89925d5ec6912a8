package redisstore

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Answers of unregister.lua.
const (
	unregisterUnknown = iota
	unregisterDone
	unregisterNoIndex
	unregisterUsed
)

// lateBytes is how long the bytes of a deleted function stay: other servers may know the
// function for a moment, and what they submit then is still run.
const lateBytes = time.Hour

// twinOf is what makes a transient function one with others; nil for the rest.
func twinOf(f *task.Function) []byte {
	if !f.Transient {
		return nil
	}
	twin := store.Twin(f)
	return twin[:]
}

// DeleteFunction implements [store.Functions].
func (s *Store) DeleteFunction(ctx context.Context, id task.ID) error {
	const op = "delete function"
	if err := s.enter(ctx, op); err != nil {
		return err
	}
	defer s.leave()
	f, err := s.function(ctx, op, id)
	if err != nil {
		return err
	}
	counts, err := s.refers(ctx, op, []task.Function{f})
	if err != nil {
		return err
	}
	if counts[0] > 0 {
		return &store.InUse{Function: id, Tasks: counts[0]}
	}
	code, err := s.unregister(ctx, op, id, "")
	if err == nil && code == unregisterUnknown {
		err = task.Errorf(task.CodeNotFound, op, "there is no function %s", id)
	}
	return err
}

// unregister deletes one function that has no unfinished tasks. unused is until when it must
// have been used last, in microseconds; empty for any time.
func (s *Store) unregister(ctx context.Context, op string, id task.ID, unused string) (code int64, err error) {
	for range 3 {
		read := &call{shard: common, args: []any{"HGET", s.any.named(keyFunctions), id[:]}}
		if err := s.read(ctx, op, read); err != nil {
			return 0, err
		}
		text, ok := read.cmd.Val().(string)
		if !ok {
			return unregisterUnknown, nil
		}
		f, key, err := decodeFunction(id, text)
		if err != nil {
			return 0, task.Errorf(task.CodeUnavailable, op, "%w", err)
		}
		c := s.scriptCall(common, scriptUnregister, time.Now(), id[:], text, f.Name, f.Hash[:], s.blobOf(f.Hash, f.Size).chunks,
			lateBytes.Milliseconds(), key, twinOf(&f), f.CreatedBy, f.Size, f.Queue, unused)
		if err := s.change(ctx, op, c); err != nil {
			return 0, err
		}
		values, err := c.values()
		if err != nil || len(values) != 1 {
			return 0, s.failure(op, err)
		}
		if code, _ = values[0].(int64); code != unregisterNoIndex {
			return code, nil
		}
		if err := s.indexFunctions(ctx, op); err != nil {
			return 0, err
		}
	}
	return 0, task.Errorf(task.CodeUnavailable, op, "functions are being registered by a build that does not index them: upgrade it, or try again")
}

// indexFunctions completes the index of functions, which builds before it did not write.
func (s *Store) indexFunctions(ctx context.Context, op string) error {
	var before task.ID
	for {
		page, err := s.functionPage(ctx, op, before, maxItems)
		if err != nil || len(page) == 0 {
			return err
		}
		args := make([]any, 0, 3*len(page))
		for i := range page {
			args = append(args, page[i].ID[:], page[i].Name, page[i].Hash[:])
		}
		if err := s.change(ctx, op, s.scriptCall(common, scriptIndex, time.Now(), args...)); err != nil {
			return err
		}
		before = page[len(page)-1].ID
	}
}

// refers counts the unfinished tasks of some functions. Where there are many tasks they are
// not all looked at in one moment, and a task that changes its place again and again
// meanwhile may be missed.
func (s *Store) refers(ctx context.Context, op string, functions []task.Function) ([]int, error) {
	counts := make([]int, len(functions))
	head := []any{len(functions)}
	var lanes []string
	for i := range functions {
		head = append(head, functions[i].ID[:])
		lanes = append(lanes, laneOf(functions[i].Queue, functions[i].Runtime))
	}
	slices.Sort(lanes)
	lanes = slices.Compact(lanes)
	for shard := range s.tags {
		args := append(slices.Clone(head), "")
		for _, lane := range lanes {
			args = append(args, lane)
		}
		all, err := s.refersOf(ctx, op, shard, args, counts)
		if err != nil {
			return nil, err
		}
		if all {
			continue
		}
		// From where tasks come to where they go, so that what moves on is met again.
		var names []string
		for _, lane := range lanes {
			names = append(names, keyReady+lane)
		}
		names = append(names, keyDelayed, keyLeases, keyDelayed)
		for _, name := range names {
			if err := s.refersIn(ctx, op, shard, name, head, counts); err != nil {
				return nil, err
			}
		}
	}
	return counts, nil
}

// refersIn looks at the members of one sorted set. Redis answers each one that is there from
// the beginning to the end.
func (s *Store) refersIn(ctx context.Context, op string, shard int, name string, head []any, counts []int) error {
	cursor := uint64(0)
	for {
		// A bigger step would hold others up for longer.
		c := &call{shard: shard, args: []any{"ZSCAN", s.keys(shard).named(name), cursor, "COUNT", 500}}
		if err := s.read(ctx, op, c); err != nil {
			return err
		}
		next, members, err := scanned(c.cmd)
		if err != nil {
			return s.failure(op, err)
		}
		for part := range slices.Chunk(members, 4*maxItems) {
			args := slices.Clone(head)
			for _, id := range part {
				args = append(args, id)
			}
			if _, err := s.refersOf(ctx, op, shard, args, counts); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// scanned takes the answer of ZSCAN apart, without the scores.
func scanned(cmd *redis.Cmd) (cursor uint64, members []string, err error) {
	list, err := cmd.Slice()
	if err != nil || len(list) != 2 {
		return 0, nil, errDamaged
	}
	text, _ := list[0].(string)
	if cursor, err = strconv.ParseUint(text, 10, 64); err != nil {
		return 0, nil, err
	}
	pairs, _ := list[1].([]any)
	for i := 0; i+1 < len(pairs); i += 2 {
		if id, ok := pairs[i].(string); ok {
			members = append(members, id)
		}
	}
	return cursor, members, nil
}

// refersOf adds up one answer of refers.lua; all is false when there were too many tasks.
func (s *Store) refersOf(ctx context.Context, op string, shard int, args []any, counts []int) (all bool, err error) {
	c := s.scriptCall(shard, scriptRefers, time.Now(), args...)
	if err := s.change(ctx, op, c); err != nil {
		return false, err
	}
	values, err := c.values()
	if err != nil {
		return false, s.failure(op, err)
	}
	for i := range values {
		n, _ := values[i].(int64)
		counts[i] += int(n)
	}
	return len(values) == len(counts), nil
}

// functionUses remembers when this process noted the last use of transient functions.
type functionUses struct {
	mu    sync.Mutex
	noted map[task.ID]time.Time
}

// maxUses bounds what is remembered: beyond it uses are noted once more than needed.
const maxUses = 10_000

// due lists those of some functions whose use is to be noted.
func (u *functionUses) due(items []store.Submission, now time.Time, every time.Duration) (ids []task.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range items {
		if !items[i].Transient {
			continue
		}
		id := items[i].Task.Function
		if at, ok := u.noted[id]; ok && now.Sub(at) < every && !now.Before(at) {
			continue
		}
		if u.noted == nil || len(u.noted) >= maxUses {
			u.noted = make(map[task.ID]time.Time)
		}
		u.noted[id] = now
		ids = append(ids, id)
	}
	return ids
}

func (u *functionUses) forget(ids []task.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		delete(u.noted, id)
	}
}

// noteUses notes that transient functions are used, before tasks of theirs are recorded.
func (s *Store) noteUses(ctx context.Context, now time.Time, items []store.Submission) error {
	at := s.clock.now(now)
	ids := s.uses.due(items, at, store.UseGranularity(s.opts.Retention))
	if len(ids) == 0 {
		return nil
	}
	err := s.change(ctx, "submit", s.useCall(at, ids))
	if err != nil {
		s.uses.forget(ids)
	}
	return err
}

// useCall notes that functions are used. One that is gone does not come back.
func (s *Store) useCall(at time.Time, ids []task.ID) *call {
	c := &call{shard: common, args: []any{"ZADD", s.any.named(keyTransients), "XX"}}
	for _, id := range ids {
		c.args = append(c.args, at.UnixMicro(), id[:])
	}
	return c
}

// sweepFunctions deletes transient functions that nothing used for a retention, at most
// limit. Each dispatcher looks a few times in each retention.
func (s *Store) sweepFunctions(ctx context.Context, now time.Time, limit int) error {
	const op = "reap"
	at := s.clock.now(now)
	if limit < 1 || at.UnixNano() < s.nextSweep.Load() {
		return nil
	}
	every := max(time.Second, min(time.Hour, s.opts.Retention/8))
	s.nextSweep.Store(at.Add(every).UnixNano())
	due := at.Add(-s.opts.Retention - store.UseGranularity(s.opts.Retention)).UnixMicro()
	c := &call{shard: common, args: []any{"ZRANGEBYSCORE", s.any.named(keyTransients), "-inf", due, "LIMIT", 0, min(limit, maxItems)}}
	if err := s.read(ctx, op, c); err != nil {
		return err
	}
	var ids []task.ID
	for _, text := range textsOf(c.cmd.Val()) {
		id, err := task.IDFromBytes([]byte(text))
		if err != nil {
			return task.Errorf(task.CodeUnavailable, op, "a member of %s is damaged: %w", keyTransients, err)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	if len(ids) == min(limit, maxItems) {
		s.nextSweep.Store(0) // there may be more
	}
	functions, err := s.functions(ctx, op, ids)
	if err != nil {
		return err
	}
	counts, err := s.refers(ctx, op, functions)
	if err != nil {
		return err
	}
	var busy []task.ID
	for i := range functions {
		if counts[i] > 0 {
			busy = append(busy, functions[i].ID)
			continue
		}
		if _, err := s.unregister(ctx, op, functions[i].ID, strconv.FormatInt(due, 10)); err != nil {
			return err
		}
	}
	if len(busy) == 0 {
		return nil
	}
	// They are looked at again when their retention, counted from now, is over.
	return s.change(ctx, op, s.useCall(at, busy))
}
