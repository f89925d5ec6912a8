package pebblestore

import (
	"context"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var _ store.Standing = (*Store)(nil)

// standing is a claim request that waits for work.
type standing struct {
	request store.ClaimRequest
	lease   time.Duration
	deliver func([]store.Claimed)
}

// served is a standing request that is at an end, with what it brought.
type served struct {
	deliver func([]store.Claimed)
	claimed []store.Claimed
}

// Stand implements [store.Standing].
func (s *Store) Stand(ctx context.Context, now time.Time, r store.ClaimRequest, lease time.Duration, deliver func([]store.Claimed)) error {
	const op = "stand"
	if r.Claim.IsZero() {
		return task.Errorf(task.CodeInvalid, op, "a claim request has no claim id")
	}
	if err := s.enter(op); err != nil {
		return err
	}
	defer s.leave()
	r.Max, r.MaxBytes = 1, 0
	s.mu.Lock()
	s.standing = append(s.standing, &standing{request: r, lease: lease, deliver: deliver})
	s.mu.Unlock()
	if s.nothingFor(now, []store.ClaimRequest{r}) {
		return nil // from here on every change looks after it
	}
	return s.commit(ctx, op, 512, func(x *txn) {
		at := s.storeTime(now).at
		x.promote(at)
		x.look = true
	})
}

// Withdraw implements [store.Standing].
func (s *Store) Withdraw(claim task.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing = slices.DeleteFunc(s.standing, func(st *standing) bool { return st.request.Claim == claim })
}

// serveStanding gives what is ready to those who wait for it, who waits longest first.
func (x *txn) serveStanding() {
	s := x.s
	if len(s.standing) == 0 || len(x.ready) == 0 && !x.look {
		return
	}
	keep := s.standing[:0]
	for _, st := range s.standing {
		r := st.request
		e := x.next(&r)
		if e == nil {
			keep = append(keep, st)
			continue
		}
		if !e.atHand(s.now) {
			x.served = append(x.served, served{st.deliver, nil})
			continue
		}
		r.Until = s.now.Add(st.lease)
		got := x.claim(moment{s.now, s.now}, &r)
		if len(got) == 0 {
			keep = append(keep, st)
			continue
		}
		x.served = append(x.served, served{st.deliver, got})
	}
	clear(s.standing[len(keep):])
	s.standing = keep
}

// atHand says whether an entry can be handed out as it is: a claim that has to read
// from the disk is not for the committer, and one past its deadline would bring
// whatever is behind it.
func (e *entry) atHand(now time.Time) bool {
	return e.t != nil && (e.argsKept || e.t.ArgsSize == 0) && (e.t.Deadline.IsZero() || now.Before(e.t.Deadline))
}

// next returns the entry that a request would get, nil when there is none.
func (x *txn) next(r *store.ClaimRequest) *entry {
	var lanes []*lane
	for _, q := range r.Queues {
		for _, rt := range r.Runtimes {
			if l := x.s.ix.lanes[laneKey{q, rt}]; l != nil && l.ready > 0 {
				lanes = append(lanes, l)
			}
		}
	}
	e, _ := first(lanes)
	return e
}
