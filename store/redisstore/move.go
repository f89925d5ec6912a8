package redisstore

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// move is one change of a task by a method of package task.
type move struct {
	id task.ID
	// from is what the move is computed from; nil until it was read.
	from *record
	// apply makes the move on a private copy and says whether it changed anything. It may
	// be called several times, each time with a newer record.
	apply func(rec *record, t *task.Task, at time.Time) bool
	// overdue: only if the lease has run out.
	overdue bool
	// session: only while that one holds the claim; zero for any.
	session task.ID
	// forced: the holder did not ask for it and is told.
	forced bool
	result []byte
	log    []byte

	// missing: there is no such task. changed: the move was made, and after is the task
	// as it left it; else after is the task as it is.
	missing, changed bool
	// answered: the server decided it, changed or not.
	answered bool
	after    *task.Task
}

// Answers of move.lua.
const (
	moveMissing = iota
	moveConflict
	moveDone
	moveNotDue
	moveIncomplete
)

// maxBytes bounds what the items of one script carry.
const maxBytes = 1 << 20

// perform carries moves out, those of one task in order, and rings the bell for them.
func (s *Store) perform(ctx context.Context, op string, now time.Time, moves []*move) error {
	operation := newOperation()
	var signals []store.Signal
	var lanes []string
	defer func() { s.bell.ring(append(signals, readySignals(lanes)...)) }()
	for todo := moves; len(todo) > 0; {
		round, later := firstOfEach(todo)
		if err := s.load(ctx, op, round); err != nil {
			return err
		}
		again, err := s.write(ctx, op, operation, now, round)
		if err != nil {
			return err
		}
		idle, err := s.lookAgain(ctx, op, now, round, again)
		if err != nil {
			return err
		}
		again = append(again, idle...)
		for _, m := range round {
			if !m.changed || m.after == nil {
				continue
			}
			if m.forced && m.from.Lease != nil {
				signals = append(signals, store.Signal{Kind: store.Revoked, Task: m.id, Claim: m.from.Lease.Claim})
			}
			if !m.after.Status.Terminal() && s.bell.local.Watched(m.id) {
				signals = append(signals, store.Signal{Kind: store.Changed, Task: m.id})
			}
			switch {
			case m.after.Status.Terminal():
				signals = append(signals, store.Signal{Kind: store.Done, Task: m.id})
			case !m.after.NotBefore.After(s.clock.now(now)):
				lanes = append(lanes, laneOf(m.after.Queue, m.after.Runtime))
			}
		}
		if len(later) > 0 {
			operation = newOperation()
		}
		todo = slices.Concat(again, later)
	}
	return nil
}

// lookAgain has a replica confirm the records of which moves were found to change nothing
// without asking the server: callers are told of them as of a change. It returns the moves
// that change something after all.
func (s *Store) lookAgain(ctx context.Context, op string, now time.Time, moves, again []*move) (stale []*move, err error) {
	if !s.cfg.replicated {
		return nil, nil
	}
	var ids []task.ID
	var of []*move
	for _, m := range moves {
		// Nobody waits for what becomes of a lease that is not overdue.
		if !m.answered && !m.overdue && !slices.Contains(again, m) {
			ids = append(ids, m.id)
			of = append(of, m)
		}
	}
	records, err := s.records(ctx, op, ids, s.sure)
	if err != nil {
		return nil, err
	}
	at := s.clock.now(now)
	for i, m := range of {
		m.from, m.missing, m.after = records[i], records[i] == nil, nil
		switch {
		case m.missing:
		case m.apply(m.from, m.from.Clone(), at):
			stale = append(stale, m)
		default:
			m.after = m.from.Task
		}
	}
	return stale, nil
}

// firstOfEach splits off the moves that must wait for one of the same task.
func firstOfEach(moves []*move) (first, later []*move) {
	seen := make(map[task.ID]struct{}, len(moves))
	for _, m := range moves {
		if _, ok := seen[m.id]; ok {
			later = append(later, m)
			continue
		}
		seen[m.id] = struct{}{}
		first = append(first, m)
	}
	return first, later
}

// load reads the records that are not known.
func (s *Store) load(ctx context.Context, op string, moves []*move) error {
	var ids []task.ID
	var of []*move
	for _, m := range moves {
		if m.from == nil {
			ids = append(ids, m.id)
			of = append(of, m)
		}
	}
	records, err := s.records(ctx, op, ids, s.read)
	if err != nil {
		return err
	}
	for i, m := range of {
		m.from, m.missing = records[i], records[i] == nil
	}
	return nil
}

// write computes the moves and writes those that change something; it returns those
// whose task was changed by somebody else meanwhile, with the newer record.
func (s *Store) write(ctx context.Context, op string, operation []byte, now time.Time, moves []*move) (again []*move, err error) {
	at := s.clock.now(now)
	type batch struct {
		moves []*move
		args  []any
		bytes int
		call  *call
	}
	open := make(map[int]*batch)
	var batches []*batch
	var calls []*call
	for _, m := range moves {
		if m.missing {
			continue
		}
		t := m.from.Clone()
		if !m.apply(m.from, t, at) {
			m.after = m.from.Task
			continue
		}
		m.after = t
		shard := s.shardOf(m.id)
		b := open[shard]
		if b == nil || len(b.moves) == maxItems || b.bytes > maxBytes {
			b = &batch{args: []any{
				operation, at.UnixMicro(), task.MaxLog, s.backstop().Milliseconds(), task.MaxAttemptsKept,
			}}
			b.call = &call{shard: shard, script: scriptMove}
			open[shard] = b
			batches = append(batches, b)
		}
		args, size, chunks := s.moveArguments(shard, m, at)
		b.args = append(b.args, args...)
		b.bytes += size
		b.moves = append(b.moves, m)
		calls = append(calls, chunks...)
	}
	for _, b := range batches {
		b.call = s.scriptCall(b.call.shard, scriptMove, now, b.args...)
		calls = append(calls, b.call)
	}
	if err := s.change(ctx, op, calls...); err != nil {
		return nil, err
	}
	for _, b := range batches {
		values, err := b.call.values()
		if err != nil {
			return nil, s.failure(op, err)
		}
		if len(values) == 0 {
			// The server's clock went back; the estimate follows it now.
			again = append(again, b.moves...)
			continue
		}
		for i, m := range b.moves {
			conflict, err := m.answer(values[i])
			if err != nil {
				return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
			}
			if conflict {
				again = append(again, m)
			}
		}
	}
	return again, nil
}

// backstop is when a finished task vanishes should nobody remove it at its time.
func (s *Store) backstop() time.Duration { return 2*s.opts.Retention + time.Hour }

// moveArguments is what move.lua needs of one task, its size, and the commands that store
// a large result before it.
func (s *Store) moveArguments(shard int, m *move, at time.Time) (args []any, size int, chunks []*call) {
	t, from := m.after, m.from
	var holder []byte
	attempt := ""
	if from.Lease != nil {
		holder = holderOf(from.Lease.Worker)
		if t.AttemptCount > int(from.head.attempts) {
			attempt = strconv.Itoa(t.AttemptCount)
		}
	}
	guard, deadline := "", ""
	switch {
	case m.overdue:
		guard = "l"
	case !m.session.IsZero():
		guard = "s" + string(m.session[:])
	}
	if !t.Deadline.IsZero() {
		deadline = "1"
	}
	to, when := "r", int64(0)
	switch {
	case t.Status.Terminal():
		to, when = "f", micros(t.FinishedAt)
	case t.NotBefore.After(at):
		to, when = "d", micros(t.NotBefore)
	}
	var inline []byte
	var place string
	if t.Status == task.Completed {
		if inline = m.result; len(inline) > maxInline {
			l := newLarge(keyResult, m.id, from.Lease.Claim[:], len(m.result))
			inline, place, chunks = nil, l.place, l.writes(s, shard, m.result)
		}
	}
	state := encodeState(t)
	args = []any{
		m.id[:], from.head.epoch, from.head.claim[:], from.head.startedAt, guard, holder, t.Epoch, state, t.AttemptCount, to, when, deadline,
		m.log, attempt, inline, place, "",
	}
	if t.Status.Terminal() {
		args[len(args)-1] = tallyOf(t)
	}
	return args, len(state) + len(m.log) + len(inline), chunks
}

// answer takes what the script says of one move; conflict means to compute it again.
func (m *move) answer(v any) (conflict bool, err error) {
	list, _ := v.([]any)
	if len(list) == 0 {
		return false, errDamaged
	}
	code, _ := list[0].(int64)
	m.answered = code != moveConflict
	switch code {
	case moveMissing:
		m.missing, m.after = true, nil
	case moveConflict:
		if m.from, err = decodeRecord(m.id, list[1:]); err == nil && m.from == nil {
			err = errDamaged
		}
		return true, err
	case moveDone:
		m.changed = true
	case moveNotDue:
		m.after = m.from.Task
	case moveIncomplete:
		return false, task.Errorf(task.CodeUnavailable, "settle", "the result of task %s did not arrive", m.id)
	default:
		return false, task.Errorf(task.CodeUnavailable, "settle", "unknown answer %d", code)
	}
	return false, nil
}

// Settle implements [store.Queue].
func (s *Store) Settle(ctx context.Context, now time.Time, items []store.Settlement) ([]task.Verdict, error) {
	const op = "settle"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([]task.Verdict, len(items))
	moves := make([]*move, len(items))
	for i := range items {
		it := &items[i]
		moves[i] = &move{
			id: it.Token.Task, from: s.cache.take(it.Token), result: it.Outcome.Result, log: tail(it.Log), session: it.Session,
			apply: func(_ *record, t *task.Task, at time.Time) bool {
				out[i] = t.Settle(at, it.Token, it.Outcome, it.Jitter)
				return out[i] == task.VerdictRecorded
			},
		}
	}
	if err := s.perform(ctx, op, now, moves); err != nil {
		return nil, err
	}
	for i, m := range moves {
		if m.missing || out[i] == task.VerdictRecorded && !m.changed {
			out[i] = task.VerdictStale
		}
	}
	return out, nil
}

// tail is the part of some output that is kept.
func tail(log []byte) []byte { return log[max(0, len(log)-task.MaxLog):] }

// Cancel implements [store.Tasks].
func (s *Store) Cancel(ctx context.Context, now time.Time, ids []task.ID, onlyQueued bool) ([]*task.Task, error) {
	const op = "cancel"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	moves := make([]*move, len(ids))
	for i, id := range ids {
		moves[i] = &move{id: id, forced: true, apply: func(_ *record, t *task.Task, at time.Time) bool {
			return !(onlyQueued && t.Status == task.Running) && t.Cancel(at)
		}}
	}
	if err := s.perform(ctx, op, now, moves); err != nil {
		return nil, err
	}
	out := make([]*task.Task, len(ids))
	for i, m := range moves {
		if !m.missing {
			out[i] = m.after
		}
	}
	return out, nil
}
