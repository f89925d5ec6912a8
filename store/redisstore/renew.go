package redisstore

import (
	"context"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/moves"
	"github.com/treadle-dev/treadle/task"
)

// Renew implements [store.Queue].
func (s *Store) Renew(ctx context.Context, now time.Time, items []store.Renewal) ([]task.Verdict, error) {
	const op = "renew"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.renew(ctx, op, now, items, nil)
}

// renew extends leases; back says that a worker returned with them in a new session.
// Several words on one lease count in order.
func (s *Store) renew(ctx context.Context, op string, now time.Time, items []store.Renewal, back *store.Resumption) ([]task.Verdict, error) {
	out := make([]task.Verdict, len(items))
	type batch struct {
		shard, bytes int
		of           []int
		args         []any
		call         *call
	}
	open := make(map[int]*batch)
	var batches []*batch
	limits, err := s.timeLimits(ctx, op, items)
	if err != nil {
		return nil, err
	}
	for i := range items {
		shard := s.shardOf(items[i].Token.Task)
		b := open[shard]
		if b == nil || len(b.of) == maxItems || b.bytes > maxBytes {
			b = &batch{shard: shard, args: []any{newOperation(), task.MaxLog, task.StartMargin.Microseconds()}}
			open[shard] = b
			batches = append(batches, b)
		}
		b.of = append(b.of, i)
		b.bytes += len(items[i].Log)
		b.args = append(b.args, renewArguments(now, &items[i], limits[i], back)...)
	}
	var calls []*call
	for _, b := range batches {
		b.call = s.scriptCall(b.shard, scriptRenew, now, b.args...)
		calls = append(calls, b.call)
	}
	if err := s.change(ctx, op, calls...); err != nil {
		return nil, err
	}
	var changed []store.Signal
	defer func() { s.bell.ring(changed) }()
	for _, b := range batches {
		values, err := b.call.values()
		if err != nil {
			return nil, s.failure(op, err)
		}
		if len(values) != 2*len(b.of) {
			return nil, task.Errorf(task.CodeUnavailable, op, "%d answers to %d renewals", len(values)/2, len(b.of))
		}
		for j, i := range b.of {
			out[i] = task.VerdictStale
			if code, _ := values[2*j].(int64); code == 1 {
				out[i] = task.VerdictRecorded
				if since, _ := values[2*j+1].(int64); since != 0 {
					s.cache.started(items[i].Token, since)
					if id := items[i].Token.Task; !items[i].StartedAt.IsZero() && s.bell.local.Watched(id) {
						changed = append(changed, store.Signal{Kind: store.Changed, Task: id})
					}
				}
			}
		}
	}
	return out, nil
}

// timeLimits says how long after its start each lease may last, 0 for as long as it is
// renewed. That never changes and is known of every task that was claimed here; of others,
// which a worker brought along, it is read once.
func (s *Store) timeLimits(ctx context.Context, op string, items []store.Renewal) ([]time.Duration, error) {
	out := make([]time.Duration, len(items))
	unknown := s.cache.limits(items, out)
	if len(unknown) == 0 {
		return out, nil
	}
	ids := make([]task.ID, len(unknown))
	for n, i := range unknown {
		ids[n] = items[i].Token.Task
	}
	records, err := s.records(ctx, op, ids, s.read)
	if err != nil {
		return nil, err
	}
	for n, i := range unknown {
		if rec := records[n]; rec != nil {
			out[i] = timeLimit(rec.Task)
			s.cache.limit(rec.ID, out[i])
		}
	}
	return out, nil
}

// timeLimit is how long a lease of t may last after its start.
func timeLimit(t *task.Task) time.Duration {
	if t.Timeout <= 0 {
		return 0
	}
	return t.Timeout + task.TimeoutMargin(t.Timeout)
}

// renewArguments is what renew.lua needs of one lease.
func renewArguments(now time.Time, r *store.Renewal, limit time.Duration, back *store.Resumption) []any {
	until := r.Until
	var worker string
	var session []byte
	if back != nil {
		worker, session = back.Worker, back.Session[:]
		if until.Before(back.Until) {
			until = back.Until
		}
	}
	var ago any = ""
	if !r.StartedAt.IsZero() {
		ago = now.Sub(r.StartedAt).Microseconds()
	}
	return []any{
		r.Token.Task[:], r.Token.Epoch, r.Token.Claim[:], until.Sub(now).Microseconds(), ago, tail(r.Log), worker, session,
		limit.Microseconds(),
	}
}

// Resume implements [store.Queue]. What the worker held in earlier sessions and does not
// list goes back by itself; what this session was offered since stays.
func (s *Store) Resume(ctx context.Context, now time.Time, r store.Resumption) ([]task.Verdict, error) {
	const op = "resume"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	out, err := s.renew(ctx, op, now, r.Held, &r)
	if err != nil {
		return nil, err
	}
	kept := make(map[task.ID]bool, len(out))
	for i, v := range out {
		if v == task.VerdictRecorded {
			kept[r.Held[i].Token.Task] = true
		}
	}
	var moves []*move
	for shard := range s.tags {
		ids, err := s.heldBy(ctx, op, shard, r.Worker)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if !kept[id] {
				moves = append(moves, &move{id: id, forced: true, apply: disowned(&r)})
			}
		}
	}
	if err := s.perform(ctx, op, now, moves); err != nil {
		return nil, err
	}
	return out, nil
}

// disowned gives back what a returning worker does not hold.
func disowned(r *store.Resumption) func(*record, *task.Task, time.Time) bool {
	return func(_ *record, t *task.Task, at time.Time) bool {
		tok, held := t.Token()
		if !held || t.Lease.Worker != r.Worker || t.Lease.Session == r.Session {
			return false
		}
		return t.Settle(at, tok, moves.Missing(), moves.Jitter(t)) == task.VerdictRecorded
	}
}

// heldBy lists the tasks that a worker holds in a shard.
func (s *Store) heldBy(ctx context.Context, op string, shard int, worker string) (ids []task.ID, err error) {
	const page = 1000
	holder := string(holderOf(worker))
	from := "[" + holder
	for {
		c := &call{shard: shard, args: []any{
			"ZRANGEBYLEX", s.keys(shard).named(keyHeld), from, "(" + upperBound(holder), "LIMIT", 0, page,
		}}
		if err := s.read(ctx, op, c); err != nil {
			return nil, err
		}
		members := textsOf(c.cmd.Val())
		for _, m := range members {
			id, err := task.IDFromBytes([]byte(m[len(m)-min(len(m), 16):]))
			if err != nil {
				return nil, task.Errorf(task.CodeUnavailable, op, "a member of %s is damaged", keyHeld)
			}
			ids = append(ids, id)
		}
		if len(members) < page {
			return ids, nil
		}
		from = "(" + members[len(members)-1]
	}
}

// upperBound is above every member that begins with a holder: ids are 16 bytes.
func upperBound(holder string) string {
	b := []byte(holder)
	for range 33 {
		b = append(b, 0xff)
	}
	return string(b)
}
