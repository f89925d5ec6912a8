package pebblestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/task"
)

// CheckInvariants compares the index, the counters and everything on disk with each
// other and returns what does not agree. It reads the whole store and holds
// everybody up meanwhile: it is for tests and for the doctor.
func (s *Store) CheckInvariants(ctx context.Context) error {
	const op = "check store"
	if err := s.enter(op); err != nil {
		return err
	}
	defer s.leave()
	c := &checker{s: s, live: map[task.ID]record{}, finished: map[task.ID]retained{}, results: map[task.ID]int{}, kept: map[task.ID]bool{}, keys: map[string]task.ID{}, owners: owners{}, functions: newRegistered()}
	// On the committer nothing is under way: disk and index must say the same.
	if err := s.commit(ctx, op, 0, func(*txn) { c.run() }); err != nil {
		return err
	}
	return errors.Join(c.errs...)
}

// CountKeys returns how many keys the store holds on disk, for tests of retention.
func (s *Store) CountKeys() (n int, err error) {
	if err := s.enter("count keys"); err != nil {
		return 0, err
	}
	defer s.leave()
	it, err := s.db.NewIter(nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	return n, nil
}

type checker struct {
	s    *Store
	errs []error
	live map[task.ID]record
	// finished holds what the record of each finished task says that retention must remove.
	finished map[task.ID]retained
	// results holds the sizes of results that have keys of their own.
	results map[task.ID]int
	// kept lists the tasks in the retention index.
	kept map[task.ID]bool
	keys map[string]task.ID
	// owners is what everybody has by a full scan.
	owners owners
	// functions is what deletion should know, by a full scan.
	functions registered
}

func (c *checker) fail(format string, args ...any) {
	if len(c.errs) < 20 {
		c.errs = append(c.errs, fmt.Errorf(format, args...))
	}
}

func (c *checker) run() {
	c.each(spaceLive, c.liveRow)
	c.each(spaceFinished, c.finishedRow)
	c.each(spaceArgs, c.argsRow)
	c.each(spaceResult, c.resultRow)
	c.each(spaceOutput, c.outputRow)
	c.each(spaceTaskKey, c.keyRow)
	c.each(spaceRetain, c.retainRow)
	if len(c.kept) != len(c.finished) {
		c.fail("%d finished tasks and %d in the retention index", len(c.finished), len(c.kept))
	}
	for key, id := range c.keys {
		c.fail("task %s names the idempotency key %q, which is not there", id, key)
	}
	c.each(spaceName, c.nameRow)
	c.each(spaceFunction, c.functionRow)
	c.each(spaceOwner, c.ownerRow)
	c.index()
	c.waiting()
	c.usage()
	c.registrations()
}

// each walks a keyspace; row must not keep its arguments.
func (c *checker) each(space byte, row func(key, value []byte) error) {
	lower, upper := bounds(space)
	it, err := c.s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		c.fail("%w", err)
		return
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := row(it.Key(), it.Value()); err != nil {
			c.fail("key %q: %w", it.Key(), err)
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		c.fail("keyspace %c: %w", space, err)
	}
}

var errKey = errors.New("the key is damaged")

func (c *checker) liveRow(key, value []byte) error {
	id, ok := idOfKey(key)
	if !ok {
		return errKey
	}
	rec, err := decodeRecord(spaceLive, id, value)
	if err != nil {
		return err
	}
	if n := rec.task.ArgsSize; n <= maxInlineArgs && len(rec.args) != n {
		return fmt.Errorf("%d bytes of arguments, the record says %d", len(rec.args), n)
	}
	c.live[id] = rec
	c.owners.add(rec.task.CreatedBy, rec.task.Queue, owned{tasks: 1, bytes: int64(rec.task.ArgsSize)})
	if rec.key != "" {
		c.keys[rec.key] = id
	}
	return nil
}

func (c *checker) finishedRow(key, value []byte) error {
	id, ok := idOfKey(key)
	if !ok {
		return errKey
	}
	rec, err := decodeRecord(spaceFinished, id, value)
	if err != nil {
		return err
	}
	if _, both := c.live[id]; both {
		return errors.New("the task is finished and unfinished at once")
	}
	t := rec.task
	if t.ResultSize <= maxInlineResult && len(rec.result) != t.ResultSize {
		return fmt.Errorf("a result of %d bytes, the record says %d", len(rec.result), t.ResultSize)
	}
	if t.ResultSize > maxInlineResult {
		c.results[id] = t.ResultSize
	}
	row := retained{id: id, key: rec.key, result: t.ResultSize > maxInlineResult, parts: partsApart(t.ResultSize), logs: rec.logs}
	if t.CreatedBy != "" {
		row.owner, row.size = t.CreatedBy, t.ResultSize
		c.owners.keep(t.CreatedBy, int64(t.ResultSize))
	}
	c.finished[id] = row
	if rec.key != "" {
		c.keys[rec.key] = id
	}
	return nil
}

func (c *checker) argsRow(key, value []byte) error {
	id, part, ok := idOfPart(key)
	if !ok {
		return errKey
	}
	rec, ok := c.live[id]
	if !ok {
		return errors.New("arguments without an unfinished task")
	}
	if err := c.wholeValue(key, part, value, rec.task.ArgsSize); err != nil {
		return err
	}
	if rec.task.ArgsSize <= maxInlineArgs {
		return fmt.Errorf("%d bytes of arguments, the record says %d", len(value), rec.task.ArgsSize)
	}
	return nil
}

func (c *checker) resultRow(key, value []byte) error {
	id, part, ok := idOfPart(key)
	if !ok {
		return errKey
	}
	if row, ok := c.finished[id]; !ok || !row.result {
		return errors.New("a result without a completed task")
	}
	return c.wholeValue(key, part, value, c.results[id])
}

// idOfPart reads the id of a value's key, and which of its parts it is.
func idOfPart(key []byte) (id task.ID, part int, ok bool) {
	const base = 1 + len(id)
	if id, ok = idOfKey(key); ok {
		return id, 0, true
	}
	if part, ok = partOfKey(key, base); ok {
		id, ok = idOfKey(key[:base])
	}
	return id, part, ok && part > 0
}

// wholeValue checks one part of a value; the first answers for the others.
func (c *checker) wholeValue(key []byte, part int, value []byte, size int) error {
	if part > 0 {
		if part > furtherParts(size) || len(value) != partLen(size, part) {
			return fmt.Errorf("part %d of %d bytes, the record says %d in all", part, len(value), size)
		}
		return nil
	}
	whole, err := c.s.readValue(key, size)
	if err == nil && len(whole) != size {
		err = fmt.Errorf("%d bytes are stored, the record says %d", len(whole), size)
	}
	return err
}

// partsApart counts the further parts of a result of that size.
func partsApart(size int) int {
	if size <= maxInlineResult {
		return 0
	}
	return furtherParts(size)
}

func (c *checker) outputRow(key, _ []byte) error {
	if len(key) != 1+16+4 {
		return errKey
	}
	id, _ := idOfKey(key[:17])
	attempt := int(key[17])<<24 | int(key[18])<<16 | int(key[19])<<8 | int(key[20])
	logs := c.finished[id].logs
	if rec, ok := c.live[id]; ok {
		logs = rec.logs
	}
	for _, n := range logs {
		if n == attempt {
			return nil
		}
	}
	return errors.New("output that no record names")
}

func (c *checker) keyRow(key, value []byte) error {
	name := string(key[1:])
	row, err := decodeKeyRow(name, value)
	if err != nil {
		return err
	}
	if c.keys[name] != row.id {
		return fmt.Errorf("the idempotency key is of task %s, which does not name it", row.id)
	}
	delete(c.keys, name)
	return nil
}

func (c *checker) retainRow(key, value []byte) error {
	if _, ok := finishOf(key); !ok {
		return errKey
	}
	row, err := decodeRetained(key, value)
	if err != nil {
		return err
	}
	for _, t := range row {
		want, ok := c.finished[t.id]
		if !ok || c.kept[t.id] {
			return fmt.Errorf("task %s is not finished, or kept twice", t.id)
		}
		c.kept[t.id] = true
		if fmt.Sprint(t) != fmt.Sprint(want) {
			return fmt.Errorf("the retention row says %+v, the record %+v", t, want)
		}
	}
	return nil
}

func (c *checker) nameRow(key, value []byte) error {
	id, err := task.IDFromBytes(value)
	if err != nil {
		return err
	}
	f, err := c.s.readFunction(id)
	if err != nil {
		return err
	}
	if f.Name != string(key[1:]) {
		return fmt.Errorf("the name leads to a function named %q", f.Name)
	}
	if f.Size > 0 {
		v, err := c.s.readValue(hashKey(f.Hash), f.Size)
		if err != nil {
			return err
		}
		if len(v) != f.Size {
			return fmt.Errorf("function %s has %d bytes, %d are stored", id, f.Size, len(v))
		}
	}
	return nil
}

// index compares the index with the unfinished tasks on disk.
func (c *checker) index() {
	ix := &c.s.ix
	type counts struct{ ready, queued, running int }
	want := map[*lane]*counts{}
	resident, argBytes, leased, delayed, deadlines := 0, 0, 0, 0, 0
	for id, e := range ix.entries {
		if e.where == whereEnded || e.where == whereNone {
			c.fail("task %s stands nowhere (%d)", id, e.where)
			continue
		}
		if e.t != nil {
			resident++
		}
		argBytes += len(e.args)
		t := c.entry(id, e)
		if t == nil {
			continue
		}
		n := want[e.lane]
		if n == nil {
			n = new(counts)
			want[e.lane] = n
		}
		if t.Status == task.Running {
			n.running++
		} else {
			n.queued++
		}
		switch e.where {
		case whereReady:
			n.ready++
		case whereDelayed:
			delayed++
		case whereLeased:
			leased++
		}
		if !t.Deadline.IsZero() {
			deadlines++
		}
	}
	if len(ix.entries) != len(c.live) {
		c.fail("%d unfinished tasks in the index, %d on disk", len(ix.entries), len(c.live))
	}
	if resident != ix.resident || argBytes != ix.argBytes {
		c.fail("%d records and %d bytes of arguments in memory, counted %d and %d", resident, argBytes, ix.resident, ix.argBytes)
	}
	filled := map[*lane]bool{}
	for _, l := range ix.filled {
		if filled[l] || !l.filled {
			c.fail("lane %v is twice among those with something ready, or does not know of it", l.key)
		}
		filled[l] = true
	}
	for k, l := range ix.lanes {
		if l.filled != filled[l] || l.ready > 0 && !l.filled {
			c.fail("lane %v has %d tasks ready; listed: %t, believed: %t", k, l.ready, filled[l], l.filled)
		}
		n := want[l]
		if n == nil {
			n = new(counts)
		}
		if got := (counts{l.ready, l.queued, l.running}); got != *n {
			c.fail("lane %v counts %+v, there are %+v", k, got, *n)
		}
		if got := l.standing(); got != n.ready {
			c.fail("%d tasks stand in lane %v, %d are ready", got, k, n.ready)
		}
	}
	c.heap("lease", &ix.leases, leased)
	c.heap("delay", &ix.delayed, delayed)
	c.heap("deadline", &ix.deadlines, deadlines)
}

// entry compares one entry with its record on disk and returns the record in force.
func (c *checker) entry(id task.ID, e *entry) *task.Task {
	rec, ok := c.live[id]
	if !ok {
		c.fail("task %s is in the index and not on disk", id)
		return nil
	}
	disk, t := rec.task, e.t
	if t == nil {
		t = disk
	}
	if t.Epoch != disk.Epoch || t.Seq != disk.Seq || e.seq != t.Seq || t.LastClaim != disk.LastClaim || t.Losses != disk.Losses ||
		t.Failures != disk.Failures || (t.Lease == nil) != (disk.Lease == nil) || e.key != rec.key {
		c.fail("task %s is %+v in memory and %+v on disk", id, t, disk)
	}
	if a, b := t.Lease, disk.Lease; a != nil && b != nil && (a.Claim != b.Claim || a.Worker != b.Worker || a.Local != b.Local) {
		c.fail("task %s has the lease %+v in memory and %+v on disk", id, a, b)
	}
	if e.t != nil && (t.Lease == nil || t.Lease.StartedAt.IsZero()) {
		// Only renewals and steps of the clock are memory's alone.
		have := *t
		have.Lease, have.NotBefore = disk.Lease, disk.NotBefore
		a := appendRecord(nil, &record{task: &have, key: e.key, logs: e.logs, args: e.inlineArgs()})
		if b := appendRecord(nil, &rec); !bytes.Equal(a, b) {
			c.fail("task %s is %+v in memory and %+v on disk", id, t, disk)
		}
	}
	if (t.Lease != nil) != (e.where == whereLeased) || int(e.priority) != t.Priority || e.lane.key != (laneKey{t.Queue, t.Runtime}) {
		c.fail("task %s stands in the wrong place: %+v", id, t)
	}
	return t
}

// heap checks the size and the order of a heap and that its entries know their places.
func (c *checker) heap(name string, h *timeHeap, want int) {
	if len(h.items) != want {
		c.fail("%d entries in the %s heap, want %d", len(h.items), name, want)
	}
	for i, it := range h.items {
		if int(it.e.pos[h.slot]) != i+1 {
			c.fail("an entry of the %s heap at %d believes to be at %d", name, i, it.e.pos[h.slot]-1)
		}
		if i > 0 && h.items[(i-1)/2].at > it.at {
			c.fail("the %s heap is out of order at %d", name, i)
		}
	}
}

// standing counts the ready entries of a lane by walking it.
func (l *lane) standing() (n int) {
	for p := range l.levels {
		lv := &l.levels[p]
		for _, e := range lv.line[lv.first:] {
			if e.where == whereReady {
				n++
			}
		}
		for _, e := range lv.back {
			if e.where == whereReady {
				n++
			}
		}
	}
	return n
}
