package pebblestore

import (
	"context"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var _ store.Standing = (*Store)(nil)

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
	if s.stand(now, &r, lease, deliver) {
		return nil // from here on every change looks after it
	}
	return s.commit(ctx, op, 512, func(x *txn) { x.promote(s.storeTime(now).at) })
}

// stand lets a request stand and says whether there is nothing for it yet. Otherwise the
// next commit looks at it.
func (s *Store) stand(now time.Time, r *store.ClaimRequest, lease time.Duration, deliver func([]store.Claimed)) (nothing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.waiting
	g := w.add(r, lease, deliver)
	if s.broken.Load() != nil {
		return false
	}
	at := s.storeTime(now).at
	d := s.ix.delayed.items
	due := len(d) > 0 && d[0].at <= nanos(at)
	// Who stood there before knows that nothing is ready.
	alone := g.first == g.last || len(w.woken) > 0
	if g.fresh || due || s.ix.claims[r.Claim] != nil || alone && s.ix.readyFor(g) {
		if !g.fresh {
			g.fresh = true
			w.fresh = append(w.fresh, g)
		}
		return false
	}
	return true
}

// Withdraw implements [store.Standing].
func (s *Store) Withdraw(claim task.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.withdraw(claim)
}

// turn is a group that may take from a lane of the round, or a lane where more of them
// may be found: with who waits there longest of those that have no turn.
type turn struct {
	group *standGroup
	lane  *lane
	post  *post
}

// groupTurn and laneTurn order turns by the age of who waits: at the same age the group
// comes first, so that a lane that the group empties has no turn in vain.
func groupTurn(age uint64) uint64 { return 2 * age }
func laneTurn(age uint64) uint64  { return 2*age + 1 }

// serveStanding gives what is ready to those who wait for it, who waits longest first. It
// looks at lanes that became ready since the last round, and at requests that are new.
func (x *txn) serveStanding() {
	w := &x.s.waiting
	if w.count == 0 {
		w.nobody()
		return
	}
	if len(x.ready) == 0 && len(w.woken) == 0 && len(w.fresh) == 0 {
		return
	}
	w.begin(&x.s.ix, x.ready)
	for len(w.turns) > 0 {
		t := w.turns[0]
		g := t.of.group
		switch {
		case g == nil && t.of.lane.ready > 0 && t.of.lane.told < w.maxTold:
			w.find(t.of.post, t.age)
		case g == nil || g.first == nil:
			w.turns.pop()
		case groupTurn(g.first.age) > t.age:
			w.turns.raise(groupTurn(g.first.age))
		case !x.serve(g.first, w.openTo(&x.s.ix, g)):
			w.turns.pop()
		}
	}
	w.end()
}

// serve answers a request from lanes, and says whether there was anything.
func (x *txn) serve(st *standing, lanes []*lane) bool {
	s := x.s
	e, l := first(lanes)
	for e != nil && !e.atHand(s.now) && l.told >= s.waiting.maxTold {
		// Enough are sent to claim it; what is behind it waits for that.
		lanes = slices.DeleteFunc(slices.Clone(lanes), func(o *lane) bool { return o == l })
		e, l = first(lanes)
	}
	if e == nil {
		return false
	}
	var got []store.Claimed
	if !e.atHand(s.now) {
		l.told++
	} else {
		if g := s.ix.claims[st.claim]; g != nil && !seededbug.On(seededbug.ClaimTwice) {
			got = g.again(st.claim)
		} else {
			got = x.claimFrom(lanes, moment{s.now, s.now}, &store.ClaimRequest{
				Claim: st.claim, Session: st.session, Worker: st.worker, Local: st.local, Max: 1, Until: s.now.Add(st.lease),
			})
		}
		if len(got) == 0 {
			return false // the store has just broken
		}
	}
	s.waiting.remove(st)
	x.served = append(x.served, served{st.deliver, got})
	return true
}

// atHand says whether an entry can be handed out as it is: a claim that has to read
// from the disk is not for the committer, and one past its deadline would bring
// whatever is behind it.
func (e *entry) atHand(now time.Time) bool {
	return e.t != nil && (e.argsKept || e.t.ArgsSize == 0) && (e.t.Deadline.IsZero() || now.Before(e.t.Deadline))
}

// begin collects the lanes of a round and whose turn is when.
func (w *waiting) begin(ix *index, ready []*lane) {
	w.round++
	for _, l := range ready {
		w.look(l)
	}
	for _, l := range w.woken {
		w.look(l)
	}
	for _, g := range w.fresh {
		if g.fresh = false; g.first != nil {
			ix.eachReady(g, func(l *lane) bool {
				w.look(l)
				return true
			})
		}
	}
	w.woken, w.fresh = emptied(w.woken), emptied(w.fresh)
	for _, l := range w.lanes {
		if p := w.posts[l.key]; p != nil && len(p.groups) > 0 {
			w.turns.push(laneTurn(p.groups[0].age), turn{lane: l, post: p})
		}
	}
	if len(w.lanes) > 0 {
		for _, g := range w.wide {
			w.steps++
			w.turns.push(groupTurn(g.first.age), turn{group: g})
		}
	}
}

// look adds a lane to the round.
func (w *waiting) look(l *lane) {
	if l.ready > 0 && l.round != w.round {
		l.round, l.told = w.round, 0
		w.lanes = append(w.lanes, l)
		w.steps++
	}
}

// find gives a turn to the group of who waits longest at a post, when it is the one of
// that age; else the lane waits for its turn. Groups that have one are set aside.
func (w *waiting) find(p *post, age uint64) {
	for len(p.groups) > 0 {
		w.steps++
		top := p.groups[0]
		g := top.of
		switch {
		case g.dropped:
			p.groups.pop()
			p.dead--
		case g.first == nil:
			// It stands here again with its next request.
			p.groups.pop()
			g.away = append(g.away, p)
		case g.turn == w.round:
			p.groups.pop()
			w.aside = append(w.aside, stood{p, g})
		case g.first.age > top.age:
			p.groups.raise(g.first.age)
		case laneTurn(g.first.age) > age:
			w.turns.raise(laneTurn(g.first.age))
			return
		default:
			g.turn = w.round
			w.turns.push(groupTurn(g.first.age), turn{group: g})
			return
		}
	}
	w.turns.pop()
}

// end puts back what was set aside and lets go of what the round held.
func (w *waiting) end() {
	for _, a := range w.aside {
		if a.group.first == nil {
			a.group.away = append(a.group.away, a.post)
		} else {
			a.post.groups.push(a.group.first.age, a.group)
		}
	}
	for _, l := range w.lanes {
		if l.told >= w.maxTold && l.ready > 0 {
			w.woken = append(w.woken, l) // the claim that makes room goes on with the others
		}
	}
	w.lanes, w.open, w.turns, w.aside = emptied(w.lanes), emptied(w.open), emptied(w.turns), emptied(w.aside)
	w.trim()
}

// nobody lets go of what was to be looked at for requests that were withdrawn.
func (w *waiting) nobody() {
	for _, g := range w.fresh {
		g.fresh = false
	}
	w.woken, w.fresh = emptied(w.woken), emptied(w.fresh)
}

// maxScratch bounds the room that is kept for the next round.
const maxScratch = 8192

// emptied returns a slice for the next use, without what it refers to.
func emptied[S ~[]E, E any](s S) S {
	if cap(s) > maxScratch {
		return nil
	}
	clear(s)
	return s[:0]
}

// openTo returns the lanes of the round that a group may take from.
func (w *waiting) openTo(ix *index, g *standGroup) []*lane {
	if len(w.lanes) == 1 && g.posts != nil {
		return w.lanes // else it would have no turn
	}
	if g.opened == w.round {
		return w.open[g.from:g.to]
	}
	g.opened, g.from = w.round, len(w.open)
	if g.pairs() < len(w.lanes) {
		w.steps += uint64(g.pairs())
		ix.eachLane(g, func(l *lane) bool {
			if l.round == w.round {
				w.open = append(w.open, l)
			}
			return true
		})
	} else {
		w.steps += uint64(len(w.lanes))
		for _, l := range w.lanes {
			if g.takes(l.key) {
				w.open = append(w.open, l)
			}
		}
	}
	g.to = len(w.open)
	return w.open[g.from:g.to]
}

// fill notes that a lane has something ready. Lanes that are empty again leave the list
// when it is read.
func (ix *index) fill(l *lane) {
	if !l.filled {
		l.filled = true
		ix.filled = append(ix.filled, l)
	}
}

// pruneFilled takes lanes out of the list that have nothing ready.
func (ix *index) pruneFilled() {
	keep := ix.filled[:0]
	for _, l := range ix.filled {
		if l.filled = l.ready > 0; l.filled {
			keep = append(keep, l)
		}
	}
	clear(ix.filled[len(keep):])
	ix.filled = keep
}

// readyFor says whether anything is ready in the lanes of a group.
func (ix *index) readyFor(g *standGroup) (found bool) {
	ix.eachReady(g, func(*lane) bool {
		found = true
		return false
	})
	return found
}

// eachReady calls fn with each lane of a group that has something ready, until fn returns
// false. It costs the number of pairs or that of lanes with something ready, whichever is less.
func (ix *index) eachReady(g *standGroup, fn func(*lane) bool) {
	if len(ix.filled) > g.pairs() {
		ix.eachLane(g, func(l *lane) bool { return l.ready == 0 || fn(l) })
		return
	}
	ix.pruneFilled()
	for _, l := range ix.filled {
		if g.takes(l.key) && !fn(l) {
			return
		}
	}
}

// eachLane calls fn with each lane of a group that exists, until fn returns false.
func (ix *index) eachLane(g *standGroup, fn func(*lane) bool) {
	for _, q := range g.sortedQueues {
		for _, rt := range g.sortedRuntimes {
			if l := ix.lanes[laneKey{q, rt}]; l != nil && !fn(l) {
				return
			}
		}
	}
}

// pairs is the number of lanes that a group takes from.
func (g *standGroup) pairs() int { return len(g.sortedQueues) * len(g.sortedRuntimes) }
