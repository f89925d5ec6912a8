package redisstore

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/moves"
	"github.com/treadle-dev/treadle/task"
)

// Reap implements [store.Queue]. Any number of processes may call it at a time: each
// overdue task is ended once.
//
// Calling it also watches the store: when nobody has called it for [Options.Absence], the
// workers could not renew either, so no lease is reaped until one lease length later. A
// process whose call failed reaps no lease for as long when it is answered again: the
// workers that it serves could not renew. Deadlines, delays and retentions do not wait.
func (s *Store) Reap(ctx context.Context, now time.Time, limit int) (time.Time, error) {
	const op = "reap"
	if limit < 1 {
		return time.Time{}, task.Errorf(task.CodeInvalid, op, "limit %d: want 1 or more", limit)
	}
	next, err := s.reap(ctx, op, now, limit)
	if err != nil {
		s.unheard.Store(true)
	}
	return next, err
}

func (s *Store) reap(ctx context.Context, op string, now time.Time, limit int) (time.Time, error) {
	if err := s.enter(ctx, op); err != nil {
		return time.Time{}, err
	}
	defer s.leave()
	for shard := range s.tags {
		for limit > 0 {
			ended, full, err := s.reapOnce(ctx, now, shard, min(limit, maxItems))
			if err != nil {
				return time.Time{}, err
			}
			limit -= ended
			if !full || ended == 0 {
				break
			}
		}
	}
	if err := s.sweepFunctions(ctx, now, limit); err != nil {
		return time.Time{}, err
	}
	if err := s.recountUsage(ctx, now); err != nil {
		return time.Time{}, err
	}
	if err := s.pruneFleet(ctx, now); err != nil {
		return time.Time{}, err
	}
	return s.nextReap(ctx, now)
}

// due is what due.lua found.
type due struct {
	deadlines, leases, finished []task.ID
}

// reapOnce ends what is overdue in one shard, at most limit. It says how many it ended
// and whether there may be more.
func (s *Store) reapOnce(ctx context.Context, now time.Time, shard, limit int) (ended int, full bool, err error) {
	const op = "reap"
	d, err := s.findDue(ctx, now, shard, limit)
	if err != nil {
		return 0, false, err
	}
	if s.unheard.CompareAndSwap(true, false) {
		s.patient.Store(s.clock.now(now).Add(s.opts.Lease).UnixMicro())
	}
	if s.clock.now(now).UnixMicro() < s.patient.Load() {
		d.leases = nil
	}
	full = len(d.deadlines) == limit || len(d.leases) == limit || len(d.finished) == limit
	// The deadline goes first: it decides, whatever becomes of the lease.
	var moves []*move
	names := make(fleetNames)
	for _, id := range d.deadlines {
		moves = append(moves, &move{id: id, forced: true, apply: expire})
	}
	for _, id := range d.leases {
		if !slices.Contains(d.deadlines, id) && len(moves) < limit {
			moves = append(moves, s.lapsing(id, names))
		}
	}
	// From here on only the guard of each move stands between it and a word from the worker.
	if err := s.load(ctx, op, moves); err != nil {
		return 0, false, err
	}
	if err := s.nameHolders(ctx, op, moves, names); err != nil {
		return 0, false, err
	}
	failpoint.Seen(failpoint.MidReap, len(moves))
	if err := s.perform(ctx, op, now, moves); err != nil {
		return 0, false, err
	}
	for _, m := range moves {
		if m.changed {
			ended++
		}
	}
	finished := d.finished[:min(len(d.finished), limit-len(moves))]
	failpoint.Seen(failpoint.MidGC, len(finished))
	n, err := s.forget(ctx, now, shard, finished)
	return ended + n, full || len(finished) < len(d.finished), err
}

// lapsing takes a task from a worker that was silent for too long, unless it has been
// heard of since somebody looked. names may be filled until it is performed.
func (s *Store) lapsing(id task.ID, names fleetNames) *move {
	return &move{id: id, forced: true, overdue: !seededbug.On(seededbug.DoubleReap), apply: func(rec *record, t *task.Task, at time.Time) bool {
		return s.lapse(rec, t, at, names)
	}}
}

// fleetNames is what is known of workers, by id.
type fleetNames map[string]*store.Presence

// nameHolders reads what is known of the workers whose leases have run out.
func (s *Store) nameHolders(ctx context.Context, op string, moves []*move, names fleetNames) error {
	args := []any{"HMGET", s.any.named(keyFleet)}
	for _, m := range moves {
		if m.overdue && m.from != nil && m.from.Lease != nil && names[m.from.Lease.Worker] == nil {
			names[m.from.Lease.Worker] = &store.Presence{}
			args = append(args, m.from.Lease.Worker)
		}
	}
	if len(args) == 2 {
		return nil
	}
	c := &call{shard: common, args: args}
	if err := s.read(ctx, op, c); err != nil {
		return err
	}
	for _, text := range textsOf(c.cmd.Val()) {
		if p, err := decodePresence(text); err == nil { // a name is a courtesy: the task goes on without
			names[p.Worker] = &p.Presence
		}
	}
	return nil
}

// expire ends a task past its deadline.
func expire(_ *record, t *task.Task, at time.Time) bool { return t.Expire(at) }

func (s *Store) findDue(ctx context.Context, now time.Time, shard, limit int) (d due, err error) {
	const op = "reap"
	c := s.scriptCall(shard, scriptDue, now,
		limit, s.opts.Lease.Microseconds(), s.opts.Absence.Microseconds(), s.opts.Retention.Microseconds())
	if err := s.change(ctx, op, c); err != nil {
		return d, err
	}
	values, err := c.values()
	if err == nil && len(values) != 6 {
		err = errDamaged
	}
	if err != nil {
		return d, s.failure(op, err)
	}
	if absent, _ := values[0].(int64); absent == 1 {
		s.log.Warn("no dispatcher was running for a while: every lease is extended by one lease length",
			"shard", shard, "lease", s.opts.Lease)
	}
	generation, _ := values[1].(int64)
	s.generation.Store(generation)
	s.bell.ring(readySignals(textsOf(values[2])))
	for i, list := range []*[]task.ID{&d.deadlines, &d.leases, &d.finished} {
		for _, text := range textsOf(values[3+i]) {
			id, err := task.IDFromBytes([]byte(text))
			if err != nil {
				return d, s.failure(op, err)
			}
			*list = append(*list, id)
		}
	}
	return d, nil
}

// lapse ends a claim whose lease has run out. An offer counts as lost when its worker was
// not heard of since all leases were granted anew: the word that it started may be lost.
func (s *Store) lapse(rec *record, t *task.Task, at time.Time, names fleetNames) bool {
	tok, held := t.Token()
	if !held || t.Lease.Until.After(at) {
		return false
	}
	out := t.Overdue(rec.head.heard < s.generation.Load())
	if p := names[t.Lease.Worker]; p != nil {
		out = p.Named(out)
	}
	return t.Settle(at, tok, out, moves.Jitter(t)) == task.VerdictRecorded
}

// forget removes finished tasks past their retention and returns how many.
func (s *Store) forget(ctx context.Context, now time.Time, shard int, ids []task.ID) (int, error) {
	const op = "reap"
	if len(ids) == 0 {
		return 0, nil
	}
	args := []any{s.opts.Retention.Microseconds()}
	for _, id := range ids {
		args = append(args, id[:])
	}
	c := s.scriptCall(shard, scriptForget, now, args...)
	if err := s.change(ctx, op, c); err != nil {
		return 0, err
	}
	values, err := c.values()
	if err != nil || len(values) == 0 {
		return 0, s.failure(op, err)
	}
	n, _ := values[0].(int64)
	return int(n), s.release(ctx, shard, values[1:])
}

// release gives request ids free that are kept in other shards than their tasks.
func (s *Store) release(ctx context.Context, shard int, pairs []any) error {
	var calls []*call
	for ; len(pairs) >= 2; pairs = pairs[2:] {
		id, err := idOf(pairs[0])
		key, _ := pairs[1].(string)
		if err == nil && s.shardOfBytes([]byte(key)) != shard {
			calls = append(calls, s.requestCall("release", key, nil, id))
		}
	}
	return s.change(ctx, "reap", calls...)
}

// nextReap is when something will be due: now where something is left. It is never
// further away than the watch of the store allows.
func (s *Store) nextReap(ctx context.Context, now time.Time) (time.Time, error) {
	const op = "reap"
	at := s.clock.now(now)
	heads := make([][]*call, len(s.tags))
	var calls []*call
	for shard, k := range s.tags {
		first := func(name string, from any) *call {
			return &call{shard: shard, args: []any{"ZRANGEBYSCORE", k.named(name), from, "+inf", "WITHSCORES", "LIMIT", 0, 1}}
		}
		heads[shard] = []*call{
			first(keyDeadlines, "-inf"), first(keyDelayed, "-inf"), first(keyDone, "-inf"), first(keyLeases, "-inf"),
			first(keyLeases, "("+strconv.FormatInt(at.UnixMicro(), 10)),
			{shard: shard, args: []any{"HGET", k.named(keyMeta), metaCalm}},
		}
		calls = append(calls, heads[shard]...)
	}
	if err := s.read(ctx, op, calls...); err != nil {
		return time.Time{}, err
	}
	next := at.Add(s.opts.Absence / 2)
	earlier := func(t time.Time, ok bool) {
		if ok && t.Before(next) {
			next = t
		}
	}
	for _, h := range heads {
		earlier(headOf(h[0].cmd))
		earlier(headOf(h[1].cmd))
		done, ok := headOf(h[2].cmd)
		earlier(done.Add(s.opts.Retention), ok)
		// Leases that have run out and were left are protected until calm.
		var p numbers
		text, _ := h[5].cmd.Val().(string)
		calm := p.time(text)
		if own := time.UnixMicro(s.patient.Load()).UTC(); own.After(calm) {
			calm = own
		}
		lease, ok := headOf(h[3].cmd)
		if ok && !lease.After(at) && calm.After(at) {
			lease = calm
		}
		earlier(lease, ok)
		earlier(headOf(h[4].cmd))
	}
	return next.Add(now.Sub(at)), nil
}

// headOf is the score of the first member of a sorted set.
func headOf(cmd *redis.Cmd) (time.Time, bool) {
	list, _ := cmd.Val().([]any)
	if len(list) == 0 {
		return time.Time{}, false
	}
	pair, ok := list[0].([]any)
	if !ok || len(pair) != 2 {
		return time.Time{}, false
	}
	switch score := pair[1].(type) {
	case float64:
		return time.UnixMicro(int64(score)).UTC(), true
	case string:
		f, err := strconv.ParseFloat(score, 64)
		return time.UnixMicro(int64(f)).UTC(), err == nil
	}
	return time.Time{}, false
}

// Attend says that a dispatcher is alive, and for how long it is taken to be. Each
// dispatcher calls it when it starts, before it claims or reaps, and then well within
// ttl again; [Store.Depart] ends it.
//
// The first one to find no other alive grants every lease found one fresh lease length,
// and requeues what local pools held, as they ended with their dispatchers; then it
// answers true. One that joins others prolongs nothing.
func (s *Store) Attend(ctx context.Context, now time.Time, dispatcher task.ID, ttl time.Duration) (first bool, err error) {
	const op = "attend"
	if err := s.enter(ctx, op); err != nil {
		return false, err
	}
	defer s.leave()
	if ttl <= 0 {
		return false, task.Errorf(task.CodeInvalid, op, "for %s: want more than nothing", ttl)
	}
	others, known, err := s.attend(ctx, now, dispatcher, 0)
	if err != nil {
		return false, err
	}
	if first = others == 0 && !known; first {
		if err := s.recover(ctx, now); err != nil {
			return false, err
		}
	}
	_, _, err = s.attend(ctx, now, dispatcher, ttl)
	return first, err
}

// Depart says that a dispatcher ends.
func (s *Store) Depart(ctx context.Context, now time.Time, dispatcher task.ID) error {
	if err := s.enter(ctx, "attend"); err != nil {
		return err
	}
	defer s.leave()
	_, _, err := s.attend(ctx, now, dispatcher, -1)
	return err
}

func (s *Store) attend(ctx context.Context, now time.Time, dispatcher task.ID, ttl time.Duration) (others int64, known bool, err error) {
	us := max(-1, ttl.Microseconds())
	if ttl < 0 {
		us = -1
	}
	c := s.scriptCall(common, scriptAttend, now, dispatcher[:], us)
	if err := s.change(ctx, "attend", c); err != nil {
		return 0, false, err
	}
	values, err := c.values()
	if err == nil && len(values) != 2 {
		err = errDamaged
	}
	if err != nil {
		return 0, false, s.failure("attend", err)
	}
	others, _ = values[0].(int64)
	n, _ := values[1].(int64)
	return others, n == 1, nil
}

// recover grants all leases anew and requeues what local pools held at that time.
func (s *Store) recover(ctx context.Context, now time.Time) error {
	const op = "attend"
	var calls []*call
	for shard := range s.tags {
		calls = append(calls, s.scriptCall(shard, scriptRecover, now, s.opts.Lease.Microseconds()))
	}
	if err := s.change(ctx, op, calls...); err != nil {
		return err
	}
	var moves []*move
	for shard, c := range calls {
		v, err := c.cmd.Slice()
		if err != nil || len(v) == 0 {
			return s.failure(op, err)
		}
		us, _ := v[0].(int64)
		local, err := s.localLeases(ctx, shard, time.UnixMicro(us))
		if err != nil {
			return err
		}
		moves = append(moves, local...)
	}
	return s.perform(ctx, op, now, moves)
}

// localLeases lists what local pools have held since before a time, as losses.
func (s *Store) localLeases(ctx context.Context, shard int, before time.Time) (moves []*move, err error) {
	const op = "attend"
	const page = 500
	for start := 0; ; start += page {
		c := &call{shard: shard, args: []any{"ZRANGE", s.keys(shard).named(keyLeases), start, start + page - 1}}
		if err := s.read(ctx, op, c); err != nil {
			return nil, err
		}
		var ids []task.ID
		for _, text := range textsOf(c.cmd.Val()) {
			id, err := task.IDFromBytes([]byte(text))
			if err != nil {
				return nil, s.failure(op, err)
			}
			ids = append(ids, id)
		}
		records, err := s.records(ctx, op, ids, s.read)
		if err != nil {
			return nil, err
		}
		for _, rec := range records {
			if rec != nil && rec.Lease != nil && rec.Lease.Local && !rec.Lease.ClaimedAt.After(before) {
				moves = append(moves, &move{id: rec.ID, from: rec, forced: true, apply: endLocal(rec.Lease.Claim)})
			}
		}
		if len(ids) < page {
			return moves, nil
		}
	}
}

// endLocal ends one claim of a local pool.
func endLocal(claim task.ID) func(*record, *task.Task, time.Time) bool {
	return func(_ *record, t *task.Task, at time.Time) bool {
		tok, held := t.Token()
		if !held || tok.Claim != claim {
			return false
		}
		out := task.Fail(task.EndLost, "the process of its local pool ended")
		return t.Settle(at, tok, out, moves.Jitter(t)) == task.VerdictRecorded
	}
}

var _ store.Queue = (*Store)(nil)
