package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

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
	if err := s.checkUsage(ctx); err != nil {
		errs = append(errs, err)
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

// checkUsage compares what owners are said to have with a full scan, and the tallies with
// the records.
func (s *Store) checkUsage(ctx context.Context) error {
	want := make(map[string]map[string]int) // by key and field
	add := func(shard int, owner, field string, n int) {
		key := s.keys(shard).named(keyUsage + owner)
		if want[key] == nil {
			want[key] = make(map[string]int)
		}
		if want[key][field] += n; want[key][field] == 0 {
			delete(want[key], field)
		}
	}
	var errs []error
	all := newIDs(s, "check", task.ID{})
	for {
		ids, err := all.next(ctx, 4*maxItems)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			break
		}
		for _, id := range ids {
			shard := s.shardOf(id)
			rec, err := s.record(ctx, "check", id)
			if err != nil {
				return err
			}
			if rec == nil {
				continue // said already
			}
			tally, err := s.reads.HGet(ctx, s.keys(shard).task(id), fieldTally).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
			if tally != "" {
				tally = strings.ToLower(tally[:1]) + tally[1:] // the case belongs to the count
			}
			if tally != tallyOf(rec.Task) {
				errs = append(errs, fmt.Errorf("task %s has the tally %q, want %q", id, tally, tallyOf(rec.Task)))
			}
			switch owner := rec.CreatedBy; {
			case owner == "":
			case rec.Status.Terminal():
				add(shard, owner, usageBytes, rec.ResultSize)
			default:
				add(shard, owner, usageBytes, rec.ArgsSize)
				add(shard, owner, usageTasks, 1)
				add(shard, owner, string(usageQueue)+rec.Queue, 1)
			}
		}
	}
	functions, err := s.reads.HGetAll(ctx, s.any.named(keyFunctions)).Result()
	if err != nil {
		return err
	}
	for id, text := range functions {
		f, _, err := decodeFunction(task.ID([]byte(id)), text)
		if err != nil {
			return err
		}
		if f.CreatedBy != "" {
			add(common, f.CreatedBy, usageFunctions, 1)
			add(common, f.CreatedBy, usageBytes, f.Size)
			add(common, f.CreatedBy, string(usageQueue)+f.Queue, 1)
		}
	}
	for key, fields := range want {
		have, err := s.reads.HGetAll(ctx, key).Result()
		if err != nil {
			return err
		}
		for field, n := range fields {
			if have[field] != fmt.Sprint(n) {
				errs = append(errs, fmt.Errorf("%q says %q of %q, want %d", key, have[field], field, n))
			}
			delete(have, field)
		}
		for field, n := range have {
			errs = append(errs, fmt.Errorf("%q says %s of %q, want none", key, n, field))
		}
	}
	return errors.Join(errs...)
}
