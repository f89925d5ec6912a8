package redisstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// maxText bounds the names that stand in a record's head, in bytes.
const maxText = 4 << 10

// Submit implements [store.Tasks].
func (s *Store) Submit(ctx context.Context, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	const op = "submit"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.leave()
	if full := s.crowded.Load(); full != nil {
		return nil, full
	}
	for i := range items {
		if err := checkSubmission(&items[i]); err != nil {
			return nil, err
		}
	}
	sub := &submitting{s: s, now: now, operation: newOperation(), items: items, out: make([]store.Submitted, len(items))}
	if err := sub.run(ctx); err != nil {
		return nil, err
	}
	s.bell.ring(sub.ready())
	return sub.out, nil
}

// checkSubmission adds to what every store refuses what the head of a record has no room for.
func checkSubmission(it *store.Submission) error {
	if err := it.Check(); err != nil {
		return err
	}
	if t := it.Task; len(t.Queue) > maxText || len(t.Runtime) > maxText {
		return task.Errorf(task.CodeInvalid, "submit", "queue or runtime key of task %s has more than %d bytes", t.ID, maxText)
	}
	return nil
}

// submitting is one call of Submit.
type submitting struct {
	s         *Store
	now       time.Time
	operation []byte
	items     []store.Submission
	out       []store.Submitted
	// ids are those that the tasks get: the caller's, or the one that a request id was
	// reserved for. reserved marks items whose request id is kept by itself.
	ids      []task.ID
	reserved []bool
	// fresh marks what this call recorded.
	fresh []bool
}

// Answers of submit.lua and request.lua.
const (
	submitRecorded = iota
	submitKnown
	submitConflict
	submitInUse
	submitIncomplete
	submitRefused
)

// requestUnknown is an answer of request.lua alone.
const requestUnknown = 3

func (x *submitting) run(ctx context.Context) error {
	n := len(x.items)
	x.ids, x.reserved, x.fresh = make([]task.ID, n), make([]bool, n), make([]bool, n)
	todo := make([]int, 0, n)
	for i := range x.items {
		x.ids[i] = x.items[i].Task.ID
		todo = append(todo, i)
	}
	if len(x.s.tags) > 1 {
		var err error
		if todo, err = x.reserve(ctx); err != nil {
			return err
		}
	}
	if err := x.s.noteUses(ctx, x.now, x.items); err != nil {
		return err
	}
	for len(todo) > 0 {
		var err error
		if todo, err = x.record(ctx, todo); err != nil {
			return err
		}
	}
	return x.keep(ctx)
}

// record sends the items todo and returns those to send again.
func (x *submitting) record(ctx context.Context, todo []int) (again []int, err error) {
	s := x.s
	byShard := make(map[int][]int)
	for _, i := range todo {
		shard := s.shardOf(x.ids[i])
		byShard[shard] = append(byShard[shard], i)
	}
	at := s.clock.now(x.now)
	var calls []*call
	scripts := make(map[*call][]int)
	for shard, list := range byShard {
		for part := range slices.Chunk(list, maxItems) {
			args := []any{x.operation, at.UnixMicro(), frontOfHead(x.operation)}
			for _, i := range part {
				var chunks []*call
				args, chunks = x.arguments(args, shard, i, at)
				calls = append(calls, chunks...)
			}
			c := s.scriptCall(shard, scriptSubmit, x.now, args...)
			scripts[c] = part
			calls = append(calls, c)
		}
	}
	if err := s.change(ctx, "submit", calls...); err != nil {
		return nil, err
	}
	for c, part := range scripts {
		values, err := c.values()
		if err != nil {
			return nil, s.failure("submit", err)
		}
		if len(values) == 0 {
			// The server's clock went back; the estimate follows it now.
			again = append(again, part...)
			continue
		}
		for j, i := range part {
			if err := x.answer(i, values[2*j:]); err != nil {
				return nil, err
			}
		}
	}
	return again, nil
}

// arguments adds what submit.lua needs of one item, and the commands that store large
// arguments before it.
func (x *submitting) arguments(args []any, shard, i int, at time.Time) ([]any, []*call) {
	it, id := &x.items[i], x.ids[i]
	t := it.Task.Clone()
	t.Deadline, t.NotBefore = t.Deadline.Round(0), t.NotBefore.Round(0)
	t.Status, t.CreatedAt = task.Queued, at
	mode := ""
	switch {
	case x.reserved[i]:
		mode = "r"
	case it.Key.ID != "" || it.Key.Refused != nil:
		mode = "k"
	}
	if it.Key.Refused != nil {
		mode += "-"
	}
	var inline []byte
	var place string
	var chunks []*call
	switch {
	case it.Key.Refused != nil:
	case len(it.Args) <= maxInline:
		inline = it.Args
	default:
		l := newLarge(keyArgs, id, x.operation, len(it.Args))
		place, chunks = l.place, l.writes(x.s, shard, it.Args)
	}
	return append(args,
		id[:], mode, it.Key.ID, it.Key.Digest[:], backOfHead(t, it.Key.ID, place), encodeSpec(t), encodeState(t),
		laneOf(t.Queue, t.Runtime), task.MaxPriority-t.Priority, inline, place,
		microsOrNone(t.Deadline), microsOrNone(t.NotBefore), tallyOf(t)), chunks
}

// microsOrNone is a time as a script's argument.
func microsOrNone(t time.Time) any {
	if t.IsZero() {
		return ""
	}
	return micros(t)
}

func (x *submitting) answer(i int, v []any) error {
	if len(v) < 2 {
		return task.Errorf(task.CodeUnavailable, "submit", "the answer is too short")
	}
	code, _ := v[0].(int64)
	text, _ := v[1].(string)
	id, err := task.IDFromBytes([]byte(text))
	if err != nil {
		return task.Errorf(task.CodeUnavailable, "submit", "the answer is damaged: %w", err)
	}
	switch code {
	case submitRecorded:
		x.out[i] = store.Submitted{ID: id, Duplicate: id != x.items[i].Task.ID}
		x.fresh[i] = true
	case submitKnown:
		x.out[i] = store.Submitted{ID: id, Duplicate: true}
	case submitConflict:
		x.out[i] = conflict(x.items[i].Key.ID, id)
	case submitInUse:
		x.out[i].Err = task.Errorf(task.CodeConflict, "submit", "the task id %s is in use", id)
	case submitRefused:
		x.out[i].Err = x.items[i].Key.Refused
	case submitIncomplete:
		return task.Errorf(task.CodeUnavailable, "submit", "the arguments of task %s did not arrive", id)
	default:
		return task.Errorf(task.CodeUnavailable, "submit", "unknown answer %d", code)
	}
	return nil
}

func conflict(key string, id task.ID) store.Submitted {
	return store.Submitted{Err: task.Errorf(task.CodeConflict, "submit",
		"the request id %q was used for another request (task %s)", key, id)}
}

// reserve ties request ids to task ids, as the two may live in different shards. When the
// process ends before the task is recorded, the same request later records it under the
// id that was reserved. It returns the items that go on.
func (x *submitting) reserve(ctx context.Context) (todo []int, err error) {
	s := x.s
	var calls []*call
	var of []int
	for i := range x.items {
		if x.items[i].Key.ID == "" {
			todo = append(todo, i)
			continue
		}
		what := "reserve"
		if x.items[i].Key.Refused != nil {
			what = "look"
		}
		calls = append(calls, x.request(what, i))
		of = append(of, i)
	}
	if err := s.change(ctx, "submit", calls...); err != nil {
		return nil, err
	}
	for n, c := range calls {
		i := of[n]
		values, err := c.values()
		if err == nil && len(values) < 2 {
			err = fmt.Errorf("an answer of %d values", len(values))
		}
		if err != nil {
			return nil, s.failure("submit", err)
		}
		code, _ := values[0].(int64)
		text, _ := values[1].(string)
		id, err := task.IDFromBytes([]byte(text))
		switch {
		case err != nil:
			return nil, s.failure("submit", err)
		case code == submitConflict:
			x.out[i] = conflict(x.items[i].Key.ID, id)
		case code == requestUnknown:
			x.out[i].Err = x.items[i].Key.Refused
		default:
			x.ids[i], x.reserved[i] = id, true
			todo = append(todo, i)
		}
	}
	return todo, nil
}

// keep makes reservations last as long as their tasks.
func (x *submitting) keep(ctx context.Context) error {
	var calls []*call
	for i := range x.items {
		if x.reserved[i] && x.fresh[i] {
			calls = append(calls, x.request("keep", i))
		}
	}
	return x.s.change(ctx, "submit", calls...)
}

func (x *submitting) request(what string, i int) *call {
	key := x.items[i].Key
	return x.s.requestCall(what, key.ID, key.Digest[:], x.ids[i])
}

func (s *Store) requestCall(what, key string, digest []byte, id task.ID) *call {
	return s.scriptCall(s.shardOfBytes([]byte(key)), scriptRequest, time.Now(), what, key, digest, id[:])
}

// ready lists one signal for each lane that got a task.
func (x *submitting) ready() []store.Signal {
	var lanes []string
	for i := range x.items {
		if t := x.items[i].Task; x.fresh[i] && !t.NotBefore.After(x.s.clock.now(x.now)) {
			lanes = append(lanes, laneOf(t.Queue, t.Runtime))
		}
	}
	out := readySignals(lanes) // and lanes are in order
	for i, at := 0, 0; i < len(out); i++ {
		first := at
		for at < len(lanes) && lanes[at] == lanes[first] {
			at++
		}
		out[i].Count = at - first
	}
	return out
}

// readySignals lists one signal for each different lane, and puts lanes in order.
func readySignals(lanes []string) []store.Signal {
	slices.Sort(lanes)
	var out []store.Signal
	for i, lane := range lanes {
		if i > 0 && lane == lanes[i-1] {
			continue
		}
		queue, runtime := splitLane(lane)
		out = append(out, store.Signal{Kind: store.Ready, Queue: queue, Runtime: runtime})
	}
	return out
}
