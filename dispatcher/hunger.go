package dispatcher

import "github.com/treadle-dev/treadle/store"

// Who is woken when there is work. The cost of a signal is bounded by wakeAtMost, not by how many
// sessions are idle: a few ask, and while they get something, a few more are woken. With 10,000 idle
// workers a task cost as many claim requests as there were workers.
const (
	// wakeAtMost is how many sessions a signal wakes at once, at most: no more than there are tasks, where it
	// says that. A burst for thousands of idle workers
	// reaches all of them in a few rounds, as each claim that brings something wakes as many again.
	wakeAtMost = 16
	// pollAtMost bounds the sessions that are woken by the poll between two batches of effects.
	pollAtMost = 1024
)

// ready takes the bell's word that there is work in a lane.
func (e *Engine) ready(sig store.Signal) {
	most := wakeAtMost
	if sig.Count > 0 {
		// One more than there are tasks: it may turn out that one of those that are woken takes none.
		most = min(sig.Count+1, wakeAtMost)
	}
	if b := e.crews.byLane[laneKey{sig.Queue, sig.Runtime}]; b != nil {
		e.ring(b, most)
	}
	for p := e.crews.wide.first; p != nil; p = p.next {
		e.looked++
		if c := p.of; c.serves(sig.Queue, sig.Runtime) {
			e.ring(c.bells[0], most)
		}
	}
}

func (e *Engine) ring(b *laneBell, most int) {
	b.rings++
	e.wakeAt(b, most)
}

// wakeAt wakes up to so many sessions of the crews that hear a bell, those with an empty slot first. It
// returns how many.
func (e *Engine) wakeAt(b *laneBell, most int) (n int) {
	for class := range b.idle {
		for n < most && b.idle[class].first != nil {
			e.looked++
			n += e.wake(b.idle[class].first.of, class, most-n)
		}
	}
	b.more = b.idle[freeSlots].n+b.idle[windowRoom].n > 0
	return n
}

// wake has up to so many idle sessions of a class of a crew ask the store. It returns how many.
func (e *Engine) wake(c *crew, class, most int) (n int) {
	for ; n < most && c.idle[class].first != nil; n++ {
		e.rouse(c.idle[class].first.of)
	}
	return n
}

// goOn wakes more where a signal woke only a part, after a claim for s. One that brought all that it
// asked for wakes as many again. One that brought less found the end, or a task that was too large to go
// along: one more session finds out which. One that brought nothing ends it.
func (e *Engine) goOn(s *session, got, most int) {
	left := 0
	switch {
	case got >= most:
		left = wakeAtMost
	case got > 0:
		left = 1
	}
	for _, b := range s.crew.bells {
		switch {
		case !b.more:
		case got == 0:
			b.more = !s.idle
		case left > 0:
			left -= e.wakeAt(b, left)
		}
	}
}

// poll wakes sessions of every crew though nobody rang: the net under the bell.
func (e *Engine) poll() {
	cs := &e.crews
	if !e.pollAt.After(e.now) {
		e.pollAt = e.now.Add(e.cfg.PollEvery)
		cs.polling = cs.all.first
	}
	for n := 0; cs.polling != nil && n < pollAtMost; {
		c := cs.polling.of
		cs.polling = cs.polling.next
		e.looked++
		c.polls++
		woken := e.wake(c, freeSlots, wakeAtMost)
		woken += e.wake(c, windowRoom, wakeAtMost-woken)
		n += 1 + woken
		if c.idle[freeSlots].n+c.idle[windowRoom].n > 0 {
			for _, b := range c.bells {
				b.more = true
			}
		}
	}
}

// rouse has an idle session ask the store again.
func (e *Engine) rouse(s *session) {
	s.unlist()
	s.idle = false
	e.touch(s)
}

// doze notes that the store has nothing for a session, by an answer to what was asked before
// the present state of the bell.
func (s *session) doze() {
	s.idle, s.dozedAt = true, s.crew.calls()
}

// touch has the next batch of effects look at a session. Nothing else looks at sessions:
// what an event does not touch cannot have changed.
func (e *Engine) touch(s *session) {
	if !s.touched {
		s.touched = true
		e.touched = append(e.touched, s)
	}
}

// heed wakes a touched session that the bell passed over while it could not be given
// anything: it was full or gated, and stood in no list.
func (s *session) heed() {
	if s.idle && s.idling.in == nil && s.dozedAt != s.crew.calls() {
		s.idle = false
	}
}

// relist puts a touched session into the list of idle ones in which it belongs.
func (s *session) relist() {
	want, class := (*chain[*session])(nil), freeSlots
	if s.idle {
		switch c := s.credit(); {
		case c.free > 0 || c.grow > 0:
			want = &s.crew.idle[class]
		case c.ahead > 0:
			class = windowRoom
			want = &s.crew.idle[class]
		}
	}
	if want == s.idling.in {
		return
	}
	s.unlist()
	if want != nil {
		s.crew.list(s, class)
	}
}
