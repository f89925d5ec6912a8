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
	filling := e.filling()
	for _, id := range e.order {
		s := e.sessions[id]
		if s.idle {
			continue
		}
		c := s.credit()
		if c.grow > 0 && slices.ContainsFunc(filling, func(o *session) bool { return o != s && o.shares(s) }) {
			c.grow = 0 // first see what is left when the free slots are filled
		}
		for class, n := range []int{free: c.free, grow: c.grow, ahead: c.ahead} {
			if n > 0 {
				wants = append(wants, want{s, n, class, float64(len(s.held)) / float64(s.slots)})
				break
			}
		}
	}
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
		w.s.claiming, w.s.again = true, false
		reqs[i] = e.request(w.s, w.n)
	}
	return reqs
}

// filling lists the sessions whose free slots are about to be claimed for.
func (e *Engine) filling() (out []*session) {
	for _, id := range e.order {
		s := e.sessions[id]
		if !s.idle && (s.credit().free > 0 || s.claiming && s.state == active && len(s.held) < s.slots) {
			out = append(out, s)
		}
	}
	return out
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
	for _, id := range e.order {
		s := e.sessions[id]
		switch {
		case !s.standing.IsZero() && (s.state != active || s.paused || s.behind):
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
