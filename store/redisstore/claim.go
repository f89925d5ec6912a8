package redisstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Claim implements [store.Queue]. A claim that is repeated asks the shards in the same
// order as before, and each answers with what it gave then.
func (s *Store) Claim(ctx context.Context, now time.Time, reqs []store.ClaimRequest) ([][]store.Claimed, error) {
	const op = "claim"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	x := &claiming{s: s, now: now, reqs: reqs, out: make([][]store.Claimed, len(reqs)), shard: make([]int, len(reqs)), given: make([]int, len(reqs))}
	var todo []int
	for i := range reqs {
		switch {
		case reqs[i].Claim.IsZero():
			return nil, task.Errorf(task.CodeInvalid, op, "a claim request has no claim id")
		case len(reqs[i].Worker) > maxText:
			return nil, task.Errorf(task.CodeInvalid, op, "the name of a worker has more than %d bytes", maxText)
		}
		if reqs[i].Max > 0 && len(reqs[i].Queues) > 0 && len(reqs[i].Runtimes) > 0 {
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		var err error
		if todo, err = x.round(ctx, todo); err != nil {
			return nil, err
		}
		if err := s.perform(ctx, op, now, x.late); err != nil {
			return nil, err
		}
		x.late = nil
	}
	s.bell.ring(readySignals(x.lanes))
	for i := range x.out {
		if err := x.fill(ctx, i); err != nil {
			return nil, err
		}
	}
	return x.out, nil
}

// claiming is one call of Claim.
type claiming struct {
	s    *Store
	now  time.Time
	reqs []store.ClaimRequest
	out  [][]store.Claimed
	// shard counts the shards that a request is done with; given is what the one that it
	// is at gave before.
	shard, given []int
	// apart is where large arguments are.
	apart map[task.ID]string
	// lanes became ready as their delay was over.
	lanes []string
	// late are tasks that were past their deadline when their turn came.
	late []*move
}

// Answers of claim.lua.
const (
	claimKnown = 1
	claimLate  = 2
)

// at is the shard that a request asks next.
func (x *claiming) at(i int) int {
	return (x.s.shardOfBytes(x.reqs[i].Claim[:]) + x.shard[i]) % len(x.s.tags)
}

// round asks the shards once and returns the requests that are not done. A request that
// wants more than one script may give asks the same shard again.
func (x *claiming) round(ctx context.Context, todo []int) (again []int, err error) {
	type batch struct {
		shard, want int
		reqs        []int
	}
	var batches []*batch
	open := make(map[int]*batch)
	for _, i := range todo {
		shard, want := x.at(i), x.want(i)
		b := open[shard]
		if b == nil || b.want+want > maxItems {
			b = &batch{shard: shard}
			open[shard] = b
			batches = append(batches, b)
		}
		b.want += want
		b.reqs = append(b.reqs, i)
	}
	calls := make([]*call, len(batches))
	for n, b := range batches {
		calls[n] = x.call(b.shard, b.reqs)
	}
	if err := x.s.change(ctx, "claim", calls...); err != nil {
		return nil, err
	}
	for n, b := range batches {
		values, err := calls[n].values()
		if err != nil {
			return nil, x.s.failure("claim", err)
		}
		if len(values) != 1+len(b.reqs) {
			return nil, task.Errorf(task.CodeUnavailable, "claim", "%d answers to %d requests", len(values)-1, len(b.reqs))
		}
		x.lanes = append(x.lanes, textsOf(values[0])...)
		for j, i := range b.reqs {
			more, err := x.answer(i, values[1+j])
			if err != nil {
				return nil, task.Errorf(task.CodeUnavailable, "claim", "%w", err)
			}
			if more {
				again = append(again, i)
			}
		}
	}
	return again, nil
}

// want is how many tasks a request asks one script for.
func (x *claiming) want(i int) int { return min(x.reqs[i].Max-len(x.out[i]), maxItems) }

func (x *claiming) call(shard int, reqs []int) *call {
	s := x.s
	var lanes []string
	number := make(map[string]int)
	var tail []any
	for _, i := range reqs {
		r := &x.reqs[i]
		lease := r.Until.Sub(x.now)
		if s.opts.OfferLease > 0 {
			lease = min(lease, s.opts.OfferLease)
		}
		local := 0
		if r.Local {
			local = 1
		}
		bytes := 0
		if r.MaxBytes > 0 {
			bytes = max(1, r.MaxBytes-sizeOf(x.out[i]))
		}
		holder := holderOf(r.Worker)
		tail = append(tail, r.Claim[:], holder, r.Worker, r.Session[:], local, lease.Microseconds(), x.want(i), bytes,
			x.given[i], len(r.Queues)*len(r.Runtimes))
		for _, q := range r.Queues {
			for _, rt := range r.Runtimes {
				lane := laneOf(q, rt)
				if number[lane] == 0 {
					lanes = append(lanes, lane)
					number[lane] = len(lanes)
				}
				tail = append(tail, number[lane])
			}
		}
	}
	args := []any{len(lanes)}
	for _, lane := range lanes {
		args = append(args, lane)
	}
	return s.scriptCall(shard, scriptClaim, x.now, append(args, tail...)...)
}

// holderOf is a worker's name at a fixed length, so that ids can follow it.
func holderOf(worker string) []byte {
	sum := sha256.Sum256([]byte(worker))
	return sum[:16]
}

func sizeOf(claims []store.Claimed) (n int) {
	for i := range claims {
		n += claims[i].Task.ArgsSize
	}
	return n
}

// answer takes what a script gave to one request and says whether the request goes on.
func (x *claiming) answer(i int, v any) (more bool, err error) {
	list, _ := v.([]any)
	if len(list) < 2 {
		return false, errDamaged
	}
	code, _ := list[0].(int64)
	known := code == claimKnown
	for _, text := range textsOf(list[1]) {
		id, err := task.IDFromBytes([]byte(text))
		if err != nil {
			return false, err
		}
		x.late = append(x.late, &move{id: id, forced: true, apply: expire})
	}
	if known {
		// What this shard gave before comes again as a whole.
		x.out[i] = x.out[i][:len(x.out[i])-min(x.given[i], len(x.out[i]))]
	}
	var got []store.Claimed
	for _, t := range list[2:] {
		c, err := x.claimed(t)
		if err != nil {
			return false, err
		}
		got = append(got, c)
	}
	if known {
		slices.SortFunc(got, func(a, b store.Claimed) int {
			return cmp.Or(cmp.Compare(b.Task.Priority, a.Task.Priority), cmp.Compare(a.Task.Seq, b.Task.Seq))
		})
	}
	x.out[i] = append(x.out[i], got...)
	r := &x.reqs[i]
	switch {
	case len(x.out[i]) >= r.Max:
		return false, nil
	case !known && len(got) == maxItems, code == claimLate:
		x.given[i] += len(got)
		return true, nil
	case r.MaxBytes > 0 && len(x.out[i]) > 0:
		return false, nil
	}
	x.given[i] = 0
	x.shard[i]++
	return x.shard[i] < len(x.s.tags), nil
}

// claimed reads one task offered: its id, the fields of its record and small arguments.
func (x *claiming) claimed(v any) (c store.Claimed, err error) {
	list, _ := v.([]any)
	if len(list) != 2+len(recordFields) {
		return c, errDamaged
	}
	id, err := idOf(list[0])
	if err != nil {
		return c, err
	}
	rec, err := decodeRecord(id, list[1:])
	if err == nil && rec == nil {
		err = errDamaged
	}
	if err != nil {
		return c, err
	}
	tok, ok := rec.Token()
	if !ok {
		return c, errDamaged
	}
	c = store.Claimed{Token: tok, Task: rec.Task}
	if inline, ok := list[1+len(recordFields)].(string); ok {
		c.Args = []byte(inline)
	}
	if rec.head.argsIn != "" {
		if x.apart == nil {
			x.apart = make(map[task.ID]string)
		}
		x.apart[id] = rec.head.argsIn
	}
	x.s.cache.add(rec)
	return c, nil
}

// fill reads large arguments. A task that ended meanwhile has none any more and is left
// out: its token is stale already.
func (x *claiming) fill(ctx context.Context, i int) error {
	keep := x.out[i][:0]
	for _, c := range x.out[i] {
		id := c.Token.Task
		if place, ok := x.apart[id]; ok {
			args, err := x.s.fetch(ctx, "claim", keyArgs, id, place, c.Task.ArgsSize)
			if err != nil {
				return err
			}
			if args == nil {
				now, err := x.s.record(ctx, "claim", id)
				if err != nil {
					return err
				}
				if now != nil && now.holds(c.Token) {
					return task.Errorf(task.CodeUnavailable, "claim", "the arguments of task %s are missing", id)
				}
				continue
			}
			c.Args = args
		}
		keep = append(keep, c)
	}
	x.out[i] = keep
	return nil
}

// holds says whether tok is that of the claim in force.
func (r *record) holds(tok task.Token) bool {
	have, ok := r.Token()
	return ok && have.Task == tok.Task && have.Epoch == tok.Epoch && have.Claim == tok.Claim
}

func idOf(v any) (task.ID, error) {
	text, _ := v.(string)
	return task.IDFromBytes([]byte(text))
}

func textsOf(v any) []string {
	list, _ := v.([]any)
	out := make([]string, 0, len(list))
	for _, one := range list {
		if text, ok := one.(string); ok {
			out = append(out, text)
		}
	}
	return out
}
