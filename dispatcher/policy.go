package dispatcher

import (
	"sort"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// plan turns the credit of all sessions into claim requests. The order is the
// policy: requests for free slots come before any that fill a window, and among
// equals the emptiest worker comes first, so that work spreads. Which task is next
// is the store's answer alone.
func (e *Engine) plan() []store.ClaimRequest {
	type want struct {
		s     *session
		n     int
		ahead bool
		load  float64
	}
	var wants []want
	for _, id := range e.order {
		s := e.sessions[id]
		if s.idle {
			continue
		}
		slots, ahead := s.credit()
		switch {
		case slots > 0:
			wants = append(wants, want{s, slots, false, float64(len(s.held)) / float64(s.hello.Slots)})
		case ahead > 0:
			wants = append(wants, want{s, ahead, true, float64(len(s.held)) / float64(s.hello.Slots)})
		}
	}
	sort.SliceStable(wants, func(i, j int) bool {
		if wants[i].ahead != wants[j].ahead {
			return wants[j].ahead
		}
		return wants[i].load < wants[j].load
	})
	several := len(wants) > 1 && !wants[1].ahead
	reqs := make([]store.ClaimRequest, len(wants))
	for i, w := range wants {
		if several && !w.ahead {
			// Half of its room at a time: the first of several idle workers must not take
			// everything. Who got all that it asked for claims again at once.
			w.n = (w.n + 1) / 2
		}
		w.s.claiming, w.s.again = true, false
		reqs[i] = e.request(w.s, w.n)
	}
	return reqs
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
		case !s.standing.IsZero() && s.state != active:
			e.out.withdraws = append(e.out.withdraws, s.standing)
			s.standing = task.ID{}
		case s.standing.IsZero() && s.idle && !e.stopping:
			if slots, _ := s.credit(); slots > 0 {
				r := e.request(s, 1)
				s.standing = r.Claim
				e.out.stands = append(e.out.stands, r)
			}
		}
	}
}
