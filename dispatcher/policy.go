package dispatcher

import (
	"slices"
	"sort"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// plan turns the credit of all sessions into claim requests. The order is the
// policy: requests for free slots come before those for slots that are still to be opened,
// and these before any that fill a window; among equals the emptiest worker comes first, so
// that work spreads. Which task is next is the store's answer alone.
func (e *Engine) plan() []store.ClaimRequest {
	const (
		free = iota
		grow
		ahead
	)
	type want struct {
		s     *session
		n     int
		class int
		load  float64
	}
	var wants []want
	blocked := e.blocked[:0]
	filling := e.filling()
	for _, s := range e.touched {
		if s.idle {
			continue
		}
		c := s.credit()
		if c.grow > 0 && filling.beside(s) {
			c.grow = 0 // first see what is left when the free slots are filled
			blocked = append(blocked, s)
		}
		for class, n := range []int{free: c.free, grow: c.grow, ahead: c.ahead} {
			if n > 0 {
				wants = append(wants, want{s, n, class, float64(len(s.held)) / float64(s.slots)})
				break
			}
		}
	}
	e.blocked = blocked
	sort.SliceStable(wants, func(i, j int) bool {
		if wants[i].class != wants[j].class {
			return wants[i].class < wants[j].class
		}
		return wants[i].load < wants[j].load
	})
	several := len(wants) > 1 && wants[1].class != ahead
	reqs := make([]store.ClaimRequest, len(wants))
	for i, w := range wants {
		if several && w.class != ahead {
			// Half of its room at a time: the first of several idle workers must not take
			// everything. Who got all that it asked for claims again at once.
			w.n = (w.n + 1) / 2
		}
		e.asks(w.s)
		reqs[i] = e.request(w.s, w.n)
	}
	return reqs
}

// filling counts, by crew, the sessions whose free slots are about to be claimed for. It is nil
// when nobody asks: only workers that may open more slots do.
type filling map[*crew][]*session

func (e *Engine) filling() filling {
	if !slices.ContainsFunc(e.touched, func(s *session) bool { return !s.idle && s.credit().grow > 0 }) {
		return nil
	}
	f := filling{}
	add := func(s *session) {
		// Two are as good as many.
		if len(f[s.crew]) < 2 {
			f[s.crew] = append(f[s.crew], s)
		}
	}
	for _, s := range e.touched {
		if !s.idle && s.credit().free > 0 {
			add(s)
		}
	}
	for s := range e.claimers {
		e.looked++
		if !s.idle && s.state == active && len(s.held) < s.slots {
			add(s)
		}
	}
	return f
}

// beside reports whether another session than s fills slots with what s could take.
func (f filling) beside(s *session) bool {
	for c, sessions := range f {
		if c.shares(s.crew) && (len(sessions) > 1 || sessions[0] != s) {
			return true
		}
	}
	return false
}

func (e *Engine) request(s *session, n int) store.ClaimRequest {
	return store.ClaimRequest{
		Claim: e.cfg.NewID(), Session: s.id, Worker: s.hello.Worker, Local: s.mode == link.Local,
		Queues: s.hello.Queues, Runtimes: s.hello.Runtimes, Max: n, MaxBytes: e.cfg.OfferBytes,
		Until: e.now.Add(e.cfg.Lease),
	}
}

// stand has the store hold a request for one slot of each session that found nothing,
// and forget those of sessions that get no work any more. A standing request counts as
// credit in use: it is served as soon as there is anything to be had.
func (e *Engine) stand() {
	for _, s := range e.touched {
		switch {
		case !s.standing.IsZero() && s.gated():
			e.out.withdraws = append(e.out.withdraws, s.standing)
			s.standing = task.ID{}
		case s.standing.IsZero() && s.idle && !e.stopping:
			if s.credit().free > 0 {
				r := e.request(s, 1)
				s.standing = r.Claim
				e.out.stands = append(e.out.stands, r)
			}
		}
	}
}
