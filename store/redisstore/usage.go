package redisstore

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// What owners have is counted by the scripts that change it, in a hash for each owner under
// each tag, and summed by readers. Beside the record of a task stands its tally: how it is
// counted now. A script that ends or removes a task takes exactly that away, so builds that
// do not know of owners may work on the same store: what they end is counted as unfinished
// until it is removed. What such a build removes, or the server itself should nobody have
// removed it for long, stays counted until everything is counted anew: once a day, a few steps
// with each call of Reap, while everything goes on.

// tallyOf says how a task is counted: 'u' while it is unfinished and 'f' afterwards, the
// bytes that it holds, its owner. It is empty without an owner.
func tallyOf(t *task.Task) string {
	switch {
	case t.CreatedBy == "":
		return ""
	case t.Status.Terminal():
		return "f" + strconv.Itoa(t.ResultSize) + ":" + t.CreatedBy
	default:
		return "u" + strconv.Itoa(t.ArgsSize) + ":" + t.CreatedBy
	}
}

// Fields of keyUsage.
const (
	usageTasks     = "t"
	usageFunctions = "f"
	usageBytes     = "b"
	usageQueue     = 'q'
)

// Usage implements [store.Owners].
func (s *Store) Usage(ctx context.Context, owner string) (u store.Usage, err error) {
	const op = "usage"
	if err := s.enter(ctx, op); err != nil {
		return u, err
	}
	defer s.leave()
	if owner == "" {
		return u, nil
	}
	calls := []*call{{shard: common, args: []any{"HGETALL", s.any.named(keyUsage + owner)}}}
	for shard, k := range s.tags {
		calls = append(calls, &call{shard: shard, args: []any{"HGETALL", k.named(keyUsage + owner)}})
	}
	if err := s.read(ctx, op, calls...); err != nil {
		return u, err
	}
	for _, c := range calls {
		fields, err := pairsOf(c.cmd.Val())
		if err != nil {
			return u, task.Errorf(task.CodeUnavailable, op, "the counters of owner %q are damaged: %w", owner, err)
		}
		for field, n := range fields {
			switch {
			case field == usageTasks:
				u.Tasks += n
			case field == usageFunctions:
				u.Functions += n
			case field == usageBytes:
				u.Bytes += int64(n)
			case field != "" && field[0] == usageQueue:
				if u.Queues == nil {
					u.Queues = make(map[string]struct{})
				}
				u.Queues[field[1:]] = struct{}{}
			}
		}
	}
	return u, nil
}

// recounting is how far a process has come with counting anew what owners have.
type recounting struct {
	mu sync.Mutex
	// next is when it begins again, by the process's own clock.
	next time.Time
	// shard is being counted as that number, after the task below; 0 before it has begun.
	shard  int
	number int64
	after  string
}

const (
	// recountEvery is how often usage is counted anew.
	recountEvery = 24 * time.Hour
	// recountSteps of maxItems tasks each are looked at in one call of Reap: some ten
	// milliseconds of the server's time.
	recountSteps = 16
)

// recountUsage goes on with counting anew what owners have.
func (s *Store) recountUsage(ctx context.Context, now time.Time) error {
	r := &s.recount
	if !r.mu.TryLock() {
		return nil // somebody else is at it
	}
	defer r.mu.Unlock()
	if time.Now().Before(r.next) {
		return nil
	}
	over, err := s.recountSome(ctx, now, recountEvery, recountSteps)
	if over {
		r.next = time.Now().Add(recountEvery)
	}
	return err
}

// recountSome takes some steps; over says that all shards are done. Recounting.mu is held.
func (s *Store) recountSome(ctx context.Context, now time.Time, every time.Duration, steps int) (over bool, err error) {
	const op = "reap"
	r := &s.recount
	do := func(args ...any) (int64, error) {
		c := s.scriptCall(r.shard, scriptRecount, now, args...)
		if err := s.change(ctx, op, c); err != nil {
			return 0, err
		}
		values, err := c.values()
		if err != nil || len(values) != 1 {
			return 0, s.failure(op, errDamaged)
		}
		n, _ := values[0].(int64)
		return n, nil
	}
	for ; r.shard < len(s.tags); r.shard, r.number = r.shard+1, 0 {
		if r.number == 0 {
			r.after = "-"
			if r.number, err = do("begin", every.Microseconds()); err != nil {
				return false, err
			}
		}
		for r.number != 0 {
			if steps--; steps < 0 {
				return false, nil
			}
			list := &call{shard: r.shard, args: []any{"ZRANGEBYLEX", s.keys(r.shard).named(keyIDs), r.after, "+", "LIMIT", 0, maxItems}}
			if err := s.read(ctx, op, list); err != nil {
				return false, err
			}
			ids := textsOf(list.cmd.Val())
			what := []any{"step", r.number}
			for _, id := range ids {
				what = append(what, id)
			}
			n, err := do(what...)
			// What is recorded from here on is in the new count anyhow: who waited for an empty
			// page would follow new tasks without end.
			if err == nil && n != 0 && len(ids) < maxItems {
				_, err = do("end", r.number)
				n = 0
			}
			if err != nil {
				return false, err
			}
			if n == 0 {
				break // it is over, or another process has come to the end
			}
			r.after = "(" + ids[len(ids)-1]
		}
	}
	r.shard = 0
	return true, nil
}
