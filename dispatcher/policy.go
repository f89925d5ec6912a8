package dispatcher

import (
	"sort"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
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
		reqs[i] = store.ClaimRequest{
			Claim: e.cfg.NewID(), Session: w.s.id, Worker: w.s.hello.Worker, Local: w.s.mode == link.Local,
			Queues: w.s.hello.Queues, Runtimes: w.s.hello.Runtimes, Max: w.n, MaxBytes: e.cfg.OfferBytes,
			Until: e.now.Add(e.cfg.Lease),
		}
	}
	return reqs
}
