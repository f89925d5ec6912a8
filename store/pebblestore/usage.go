package pebblestore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// owners is what everybody has who has something. Unfinished tasks and functions are
// counted from their records at open, which reads them anyhow; results are not, as there
// may be millions, so their sum is written with each commit that changes it.
type owners map[string]*owned

// owned is what one owner has.
type owned struct {
	tasks, functions int
	// bytes is the size of arguments and functions, kept that of results.
	bytes, kept int64
	// queues counts the tasks and functions of each queue.
	queues map[string]int
}

func (o owners) of(owner string) *owned {
	u := o[owner]
	if u == nil {
		u = &owned{queues: make(map[string]int)}
		o[owner] = u
	}
	return u
}

// add counts n more of a task or a function of a queue; its numbers are negative for less.
// Without an owner there is nothing to count.
func (o owners) add(owner, queue string, n owned) {
	if owner == "" {
		return
	}
	u := o.of(owner)
	u.tasks += n.tasks
	u.functions += n.functions
	u.bytes += n.bytes
	if u.queues[queue] += n.tasks + n.functions; u.queues[queue] == 0 {
		delete(u.queues, queue)
	}
	o.tidy(owner, u)
}

// finished takes an unfinished task out of what is counted.
func (ix *index) finished(t *task.Task) {
	ix.functions.finished(t.Function)
	ix.owners.add(t.CreatedBy, t.Queue, owned{tasks: -1, bytes: -int64(t.ArgsSize)})
}

// keep counts that many more bytes of results.
func (o owners) keep(owner string, size int64) {
	u := o.of(owner)
	u.kept += size
	o.tidy(owner, u)
}

// tidy forgets an owner that has nothing left, as tokens come and go.
func (o owners) tidy(owner string, u *owned) {
	if u.tasks == 0 && u.functions == 0 && u.bytes == 0 && u.kept == 0 {
		delete(o, owner)
	}
}

// keep notes that an owner has that many more bytes of results.
func (x *txn) keep(owner string, size int) {
	if size == 0 {
		return
	}
	x.s.ix.owners.keep(owner, int64(size))
	if x.owners == nil {
		x.owners = make(map[string]struct{})
	}
	x.owners[owner] = struct{}{}
}

// saveOwners writes what changed of owners' results, behind the clock row in x.buf.
func (x *txn) saveOwners() {
	s := x.s
	if s.counted = s.counted || len(s.ix.owners) > 0; !s.counted {
		return
	}
	x.set(keyCounted, x.buf)
	for owner := range x.owners {
		key := textKey(spaceOwner, owner)
		if u := s.ix.owners[owner]; u != nil && u.kept != 0 {
			x.set(key, binary.BigEndian.AppendUint64(nil, uint64(u.kept)))
		} else {
			x.del(key)
		}
	}
}

func decodeOwnerRow(b []byte) (int64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("the row has %d bytes, want 8", len(b))
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// recoverOwners counts what functions and results belong to owners; unfinished tasks were
// counted when they were read.
func (s *Store) recoverOwners(ctx context.Context, x *txn) error {
	const op = "open store"
	err := s.eachRow(ctx, spaceFunction, func(key, value []byte) error {
		id, ok := idOfKey(key)
		if !ok {
			return errKey
		}
		f, err := decodeFunction(id, value)
		if err == nil {
			s.ix.owners.add(f.CreatedBy, f.Queue, owned{functions: 1, bytes: int64(f.Size)})
			s.ix.functions.add(&f)
		}
		return err
	})
	if err != nil {
		return task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	counted, err := s.read(keyCounted)
	if err != nil {
		return task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	clock, err := s.read(keyClock)
	if err != nil {
		return task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	if s.counted = counted != nil; !s.counted {
		return nil // no owner ever had anything
	}
	if bytes.Equal(counted, clock) {
		err = s.eachRow(ctx, spaceOwner, func(key, value []byte) error {
			n, err := decodeOwnerRow(value)
			if err == nil {
				s.ix.owners.keep(string(key[1:]), n)
			}
			return err
		})
	} else {
		err = s.recountResults(ctx, x)
	}
	if err != nil {
		return task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	return nil
}

// recountResults reads every finished task, after a build that does not count them has
// worked on the store.
func (s *Store) recountResults(ctx context.Context, x *txn) error {
	s.log.Info("another build wrote to the store: recounting the usage of each owner")
	if x.owners == nil {
		x.owners = make(map[string]struct{})
	}
	err := s.eachRow(ctx, spaceOwner, func(key, _ []byte) error {
		x.owners[string(key[1:])] = struct{}{} // written again, or removed
		return nil
	})
	if err != nil {
		return err
	}
	err = s.eachRow(ctx, spaceFinished, func(key, value []byte) error {
		id, ok := idOfKey(key)
		if !ok {
			return errKey
		}
		rec, err := decodeRecord(spaceFinished, id, value)
		if err == nil && rec.task.CreatedBy != "" {
			x.keep(rec.task.CreatedBy, rec.task.ResultSize)
		}
		return err
	})
	if err == nil {
		// Something must be in the batch, or it is not written.
		x.set(keyFormat, []byte{formatVersion})
	}
	return err
}

// eachRow walks a keyspace; row must not keep its arguments.
func (s *Store) eachRow(ctx context.Context, space byte, row func(key, value []byte) error) (err error) {
	lower, upper := bounds(space)
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := row(it.Key(), it.Value()); err != nil {
			return fmt.Errorf("key %q: %w", it.Key(), err)
		}
	}
	return nil
}

// Usage implements [store.Owners].
func (s *Store) Usage(_ context.Context, owner string) (store.Usage, error) {
	if err := s.enter("usage"); err != nil {
		return store.Usage{}, err
	}
	defer s.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.ix.owners[owner]
	if u == nil {
		return store.Usage{}, nil
	}
	out := store.Usage{Tasks: u.tasks, Functions: u.functions, Bytes: u.bytes + u.kept, Queues: make(map[string]struct{}, len(u.queues))}
	for queue := range u.queues {
		out.Queues[queue] = struct{}{}
	}
	return out, nil
}

func (c *checker) functionRow(key, value []byte) error {
	id, ok := idOfKey(key)
	if !ok {
		return errKey
	}
	f, err := decodeFunction(id, value)
	if err == nil {
		c.owners.add(f.CreatedBy, f.Queue, owned{functions: 1, bytes: int64(f.Size)})
		c.functions.add(&f)
	}
	return err
}

// registrations compares what deletion knows of functions with their rows.
func (c *checker) registrations() {
	have, want := &c.s.ix.functions, &c.functions
	for _, rec := range c.live {
		want.tasks[rec.task.Function]++
	}
	sameNames := maps.EqualFunc(have.names, want.names, func(a, b []task.ID) bool { return len(a) == len(b) })
	if !sameNames || !maps.Equal(have.blobs, want.blobs) || !maps.Equal(have.tasks, want.tasks) || !maps.Equal(have.twins, want.twins) {
		c.fail("functions are %+v, want %+v", have, want)
	}
	if !maps.EqualFunc(have.used, want.used, time.Time.Equal) {
		c.fail("transient functions were used %v, want %v", have.used, want.used)
	}
}

func (c *checker) ownerRow(key, value []byte) error {
	n, err := decodeOwnerRow(value)
	if err != nil {
		return err
	}
	if u := c.owners[string(key[1:])]; u == nil || u.kept != n {
		return fmt.Errorf("%d bytes of results are written, there are %+v", n, u)
	}
	return nil
}

// usage compares what owners are said to have with what they have.
func (c *checker) usage() {
	for owner, want := range c.owners {
		have := c.s.ix.owners[owner]
		if have == nil || have.tasks != want.tasks || have.functions != want.functions || have.bytes != want.bytes ||
			have.kept != want.kept || !maps.Equal(have.queues, want.queues) {
			c.fail("owner %q is said to have %+v, has %+v", owner, have, want)
		}
	}
	for owner, have := range c.s.ix.owners {
		if c.owners[owner] == nil {
			c.fail("owner %q is said to have %+v, has nothing", owner, have)
		}
	}
}
