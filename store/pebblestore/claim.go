package pebblestore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Claim implements [store.Queue].
func (s *Store) Claim(ctx context.Context, now time.Time, reqs []store.ClaimRequest) ([][]store.Claimed, error) {
	const op = "claim"
	if err := s.enter(op); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([][]store.Claimed, len(reqs))
	for i := range reqs {
		if r := &reqs[i]; r.Claim.IsZero() {
			return nil, task.Errorf(task.CodeInvalid, op, "a claim request has no claim id")
		}
	}
	if s.nothingFor(now, reqs) {
		return out, nil
	}
	err := s.commit(ctx, op, 512*len(reqs), func(x *txn) {
		at := s.storeTime(now)
		x.promote(at.at)
		for i := range reqs {
			out[i] = x.claim(at, &reqs[i])
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i], err = s.fillArgs(out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// promote makes delayed tasks that are due ready.
func (x *txn) promote(now time.Time) { x.s.ix.promote(now, x.wake) }

// nothingFor answers the common empty claim without the committer.
func (s *Store) nothingFor(now time.Time, reqs []store.ClaimRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken.Load() != nil {
		return false
	}
	at := s.storeTime(now).at
	if d := s.ix.delayed.items; len(d) > 0 && d[0].at <= nanos(at) {
		return false
	}
	for i := range reqs {
		r := &reqs[i]
		if s.ix.claims[r.Claim] != nil {
			return false
		}
		for _, q := range r.Queues {
			for _, rt := range r.Runtimes {
				if l := s.ix.lanes[laneKey{q, rt}]; l != nil && l.ready > 0 {
					return false
				}
			}
		}
	}
	return true
}

// claim serves one request.
func (x *txn) claim(m moment, r *store.ClaimRequest) []store.Claimed {
	s := x.s
	if g := s.ix.claims[r.Claim]; g != nil && !seededbug.On(seededbug.ClaimTwice) {
		return g.again(r.Claim)
	}
	lanes := make([]*lane, 0, 8)
	for _, q := range r.Queues {
		for _, rt := range r.Runtimes {
			if l := s.ix.lanes[laneKey{q, rt}]; l != nil && l.ready > 0 {
				lanes = append(lanes, l)
			}
		}
	}
	return x.claimFrom(lanes, m, r)
}

// claimFrom takes what a request asks for from lanes.
func (x *txn) claimFrom(lanes []*lane, m moment, r *store.ClaimRequest) []store.Claimed {
	s, now := x.s, m.at
	lease := task.Lease{Claim: r.Claim, Session: r.Session, Worker: r.Worker, Local: r.Local, Until: m.of(r.Until)}
	var out []store.Claimed
	size := 0
	for len(out) < r.Max {
		e, l := first(lanes)
		if e == nil || !s.load(e) {
			break
		}
		if d := e.t.Deadline; !d.IsZero() && !now.Before(d) {
			// Its turn came too late: the deadline ends it, not the next reap.
			if !x.force(e, now, func(t *task.Task) bool { return t.Expire(now) }) {
				s.fail(errors.New("the deadline of task " + e.id.String() + " cannot be applied"))
				break
			}
			continue
		}
		size += e.t.ArgsSize
		if r.MaxBytes > 0 && size > r.MaxBytes && len(out) > 0 {
			break
		}
		l.pop()
		l.count(e.t.Status, -1)
		e.where = whereNone
		tok, err := e.t.Claim(now, lease)
		if seededbug.On(seededbug.ReusedEpoch) {
			e.t.Epoch--
			tok.Epoch--
		}
		s.ix.place(e, now)
		if err != nil {
			// The index and the record disagree.
			s.fail(err)
			break
		}
		x.saveClaim(e)
		out = append(out, e.claimed(tok))
	}
	return out
}

// first returns the next entry over several lanes: the highest priority, then the
// smallest sequence.
func first(lanes []*lane) (best *entry, from *lane) {
	for _, l := range lanes {
		e := l.head()
		if e == nil {
			continue
		}
		if best == nil || e.priority > best.priority || e.priority == best.priority && e.seq < best.seq {
			best, from = e, l
		}
	}
	return best, from
}

// again returns what a claim id still holds.
func (g *claimGroup) again(claim task.ID) []store.Claimed {
	var out []store.Claimed
	for _, e := range g.entries {
		if e.group != g {
			continue
		}
		if tok, ok := e.t.Token(); ok && tok.Claim == claim {
			out = append(out, e.claimed(tok))
		}
	}
	// After a restart the group was found in another order.
	slices.SortFunc(out, func(a, b store.Claimed) int {
		return cmp.Or(cmp.Compare(b.Task.Priority, a.Task.Priority), cmp.Compare(a.Task.Seq, b.Task.Seq))
	})
	return out
}

// claimed is the answer for an entry. Args is filled in where they are in memory.
func (e *entry) claimed(tok task.Token) store.Claimed {
	c := store.Claimed{Token: tok, Task: e.t.Clone()}
	if e.argsKept {
		c.Args = bytes.Clone(e.args)
	}
	return c
}

// fillArgs reads the arguments that were not in memory. A task that ended meanwhile
// has none any more and is left out: its token is stale already.
func (s *Store) fillArgs(claims []store.Claimed) ([]store.Claimed, error) {
	keep := claims[:0]
	for _, c := range claims {
		if c.Args == nil && c.Task.ArgsSize > 0 {
			v, err := s.readValue(idKey(spaceArgs, c.Token.Task), c.Task.ArgsSize)
			if err != nil {
				return nil, task.Errorf(task.CodeUnavailable, "claim", "%w", err)
			}
			if v == nil {
				if s.holds(c.Token) {
					return nil, task.Errorf(task.CodeUnavailable, "claim", "the arguments of task %s are missing", c.Token.Task)
				}
				continue
			}
			c.Args = v
		}
		keep = append(keep, c)
	}
	return keep, nil
}

// holds says whether a token is that of the claim in force.
func (s *Store) holds(tok task.Token) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.ix.entries[tok.Task]
	return e != nil && e.holds(tok)
}

// holds says whether tok is that of the entry's claim in force.
func (e *entry) holds(tok task.Token) bool {
	if e.where != whereLeased {
		return false
	}
	have, ok := e.t.Token()
	return ok && have.Task == tok.Task && have.Epoch == tok.Epoch && have.Claim == tok.Claim
}
