package redisstore

import (
	"context"
	"strconv"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// What owners have is counted by the scripts that change it, in a hash for each owner under
// each tag, and summed by readers. Beside the record of a task stands its tally: how it is
// counted now. A script that ends or removes a task takes exactly that away, so builds that
// do not know of owners may work on the same store: what they end is counted as unfinished
// until it is removed. What such a build removes, or the server itself should nobody have
// removed it for long, stays counted until [Store.recount] comes by.

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
