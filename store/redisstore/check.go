package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/treadle-dev/treadle/task"
)

// CheckInvariants compares indexes and counters with a full scan of the records. It is for
// tests and expects that nobody changes the store meanwhile.
func (s *Store) CheckInvariants(ctx context.Context) error {
	if err := s.enter(ctx, "check"); err != nil {
		return err
	}
	defer s.leave()
	var errs []error
	for shard := range s.tags {
		c := &checker{s: s, shard: shard, sets: make(map[string]map[string]bool), want: make(map[string]int)}
		if err := c.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("shard %d: %w", shard, err))
		}
	}
	return errors.Join(errs...)
}

// checker checks one shard.
type checker struct {
	s     *Store
	shard int
	// sets are the members of the sorted sets by name, less those that a record explains.
	sets map[string]map[string]bool
	// want is what the counters should say.
	want map[string]int
	errs []error
}

func (c *checker) failf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// members reads a sorted set once.
func (c *checker) members(ctx context.Context, name string) (map[string]bool, error) {
	if set, ok := c.sets[name]; ok {
		return set, nil
	}
	list, err := c.s.reads.ZRange(ctx, c.s.keys(c.shard).named(name), 0, -1).Result()
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(list))
	for _, m := range list {
		set[m] = true
	}
	c.sets[name] = set
	return set, nil
}

// expect takes one member out of a set where it must be.
func (c *checker) expect(ctx context.Context, name, member string, id task.ID) error {
	set, err := c.members(ctx, name)
	if err != nil {
		return err
	}
	if !set[member] {
		c.failf("task %s is missing in %q", id, name)
	}
	delete(set, member)
	return nil
}

func (c *checker) run(ctx context.Context) error {
	for _, name := range []string{keyDelayed, keyDeadlines, keyLeases, keyDone, keyHeld} {
		if _, err := c.members(ctx, name); err != nil {
			return err
		}
	}
	all, err := c.members(ctx, keyIDs)
	if err != nil {
		return err
	}
	var ids []task.ID
	for m := range all {
		id, err := task.IDFromBytes([]byte(m))
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	delete(c.sets, keyIDs)
	records, err := c.s.records(ctx, "check", ids, c.s.read)
	if err != nil {
		return err
	}
	for i, rec := range records {
		if rec == nil {
			c.failf("task %s is listed and has no record", ids[i])
			continue
		}
		if err := c.record(ctx, rec); err != nil {
			return err
		}
	}
	for name, set := range c.sets {
		for m := range set {
			c.failf("%q has %x, which no record explains", name, m)
		}
	}
	return errors.Join(append(c.errs, c.counters(ctx))...)
}

// record checks where one task stands.
func (c *checker) record(ctx context.Context, rec *record) error {
	id := string(rec.ID[:])
	lane := laneOf(rec.Queue, rec.Runtime)
	var in []string
	switch {
	case rec.Status.Terminal():
		in = append(in, keyDone)
	case rec.Lease != nil:
		in = append(in, keyLeases)
		if err := c.expect(ctx, keyHeld, string(holderOf(rec.Lease.Worker))+string(rec.head.claim[:])+id, rec.ID); err != nil {
			return err
		}
	default:
		ready, err := c.members(ctx, keyReady+lane)
		if err != nil {
			return err
		}
		if ready[id] {
			delete(ready, id)
		} else {
			in = append(in, keyDelayed)
		}
	}
	switch rec.Status {
	case task.Queued:
		c.want[lane+"\x00q"]++
	case task.Running:
		c.want[lane+"\x00r"]++
	}
	if !rec.Deadline.IsZero() && !rec.Status.Terminal() {
		in = append(in, keyDeadlines)
	}
	for _, name := range in {
		if err := c.expect(ctx, name, id, rec.ID); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) counters(ctx context.Context) error {
	have, err := c.s.reads.HGetAll(ctx, c.s.keys(c.shard).named(keyStats)).Result()
	if err != nil {
		return err
	}
	for field, n := range c.want {
		if have[field] != fmt.Sprint(n) {
			c.failf("the counter %q says %q, want %d", strings.ReplaceAll(field, "\x00", "/"), have[field], n)
		}
		delete(have, field)
	}
	for field, n := range have {
		c.failf("the counter %q says %s, want none", strings.ReplaceAll(field, "\x00", "/"), n)
	}
	return nil
}
