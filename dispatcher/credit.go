package dispatcher

import "github.com/treadle-dev/treadle/link"

// flow is where a session stands between its worker and the store; see docs/credit.md.
type flow string

const (
	// gated: it gets nothing now, whatever room it has: not active, paused, unfit, or behind with reading.
	gated flow = "gated"
	// claiming: a claim is under way. There is one at a time, so that what it brings can be counted
	// before the next one is made.
	claiming flow = "claiming"
	// full: there is no room at the worker.
	full flow = "full"
	// standing: the store had nothing, and holds a request for one slot that it serves by itself.
	standing flow = "standing"
	// idle: the store had nothing; the bell, the poll, or a claim that came back wakes it.
	idle flow = "idle"
	// hungry: it has room and the store may have work. The next batch of effects makes a claim, so no
	// session is hungry between two of them, but for those that wait until others have filled their slots.
	hungry flow = "hungry"
)

// flow tells the state of a session's credit.
func (s *session) flow() flow {
	c := s.credit()
	switch {
	case s.gated():
		return gated
	case s.claiming:
		return claiming
	case !s.standing.IsZero():
		return standing
	case c.free+c.grow+c.ahead == 0:
		return full
	case s.idle:
		return idle
	}
	return hungry
}

// credit is how many tasks may be claimed for a session now.
type credit struct {
	// free slots are filled first everywhere, then come tasks for slots that a worker opens
	// when something waits there, and at last what is claimed ahead.
	free, grow, ahead int
}

// room is how many tasks may be at the worker that are not ahead: one for each slot, and
// as many again while it may open more. A worker that is growing gets no more before it
// has said so.
func (s *session) room() int {
	if s.hello.MaxSlots == 0 {
		return s.slots // what is less than Hello said is out of order
	}
	return min(s.maxSlots, 2*s.slots)
}

// credit returns what may be claimed for the session. The window is refilled by halves:
// one claim for many tasks costs the store what one task costs.
func (s *session) credit() (c credit) {
	if s.gated() || s.claiming {
		return c
	}
	taken, room := len(s.held), s.room()
	asked := s.asked
	if !s.standing.IsZero() {
		taken++
		asked--
	}
	c.free = max(s.slots-taken, 0)
	c.grow = max(room-max(taken, s.slots), 0)
	size := s.window.Size(s.slots)
	if s.mode == link.Pull {
		c.free = min(c.free, max(asked, 0))
		c.grow = min(c.grow, max(asked-c.free, 0))
		if size > 0 {
			// What was asked for while tasks were short is not used after they were found not to be.
			c.ahead = asked - c.free - c.grow
			if s.maxSlots > s.hello.Slots {
				// Nor what was asked for while there were more slots.
				c.ahead = min(c.ahead, max(room+size-taken, 0))
			}
		}
		return c
	}
	if size > 0 {
		c.ahead = min(size, room+size-taken)
		if 2*c.ahead < size {
			c.ahead = 0
		}
	}
	return c
}

// gated reports whether the session gets nothing now, whatever room it has.
func (s *session) gated() bool {
	return s.state != active || s.paused || s.unfit || s.behind
}

// asks notes that a claim is made for the session.
func (e *Engine) asks(s *session) {
	s.claiming, s.again, s.askedAt = true, false, s.crew.rings()
	e.claimers[s] = struct{}{}
}

// answered notes that the claim is at its end.
func (e *Engine) answered(s *session) {
	s.claiming = false
	delete(e.claimers, s)
}
