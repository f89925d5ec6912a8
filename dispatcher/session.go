package dispatcher

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// state of a session, see the table in docs/architecture.md.
type state string

const (
	// opening: the link is there, Hello or the store's word on it is not.
	opening state = "opening"
	// active: gets work while it has credit.
	active state = "active"
	// silent: the link stands but heartbeats are missing; its leases run on.
	silent state = "silent"
	// draining: finishes what it holds.
	draining state = "draining"
	// leaving: the link is being ended; nothing is listened to any more.
	leaving state = "leaving"
	// lost: the link ended; the grace runs.
	lost state = "lost"
)

// session is one worker's attachment. Push and pull differ in refill alone.
type session struct {
	// Fixed when the link opens; sessions that opened later have a larger seq.
	id       task.ID
	seq      uint64
	mode     link.Mode
	openedAt time.Time

	// Fixed by Hello.
	hello    *link.Hello
	queues   map[string]bool
	runtimes map[string]bool
	// slots is how many the worker has now, maxSlots how many it may come to have.
	slots, maxSlots int
	// unfit: the worker said that none of its slots can run anything at present.
	unfit bool

	state     state
	lastHeard time.Time
	lostAt    time.Time
	// endsAt is when the stream is too old; aged, that its worker was told. moved: the worker
	// has said that it goes on in another session.
	endsAt      time.Time
	aged, moved bool

	// held is every claim that the worker has or is about to get, until it reports
	// it, and whether it was started. Credit is what is left of slots and window.
	held    map[task.Token]bool
	started int
	window  window.Window

	// asked is the credit that a pull worker has asked for and not got.
	asked int

	// claiming is set while a claim is under way; again says that the bell rang
	// meanwhile, idle that the last claim found less than it asked for.
	claiming bool
	again    bool
	idle     bool
	// standing is the claim id of the request that the store holds for one free slot.
	standing task.ID
	// wantedAt is when the session last said that it has an idle slot; wanting, that
	// it has more to say as soon as it may.
	wantedAt time.Time
	wanting  bool
	// rung is how far it is with telling the other dispatchers what it has a slot for.
	rung int
	// recalledAt is when offers were last asked back from it; owed is how many claims it was
	// asked to give back, at most, or told to stop, that have not come; crowded is set while it has more claims than slots.
	recalledAt time.Time
	owed       int
	crowded    bool

	// behind: so many bytes wait for it to be read that it gets no more work before. A worker on
	// a slow line is given what it can take in this way, and loses nothing.
	behind bool

	// spare is what it may still say about claims that it does not hold.
	spare bucket
	// paused: it gets no work until pausedUntil, as offers came back unasked; pause is how
	// long, returned how many since noted, when that was logged last.
	paused      bool
	pausedUntil time.Time
	pause       time.Duration
	returned    int
	notedAt     time.Time
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
	if s.state != active || s.claiming || s.paused || s.unfit || s.behind {
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
	size := s.window.Size()
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

// serves reports whether the session takes tasks of that queue and runtime.
func (s *session) serves(queue, runtime string) bool {
	return s.queues[queue] && s.runtimes[runtime]
}

// shares reports whether there may be tasks that both could take.
func (s *session) shares(o *session) bool {
	if len(s.hello.Queues)+len(s.hello.Runtimes) > len(o.hello.Queues)+len(o.hello.Runtimes) {
		s, o = o, s
	}
	return slices.ContainsFunc(s.hello.Queues, func(q string) bool { return o.queues[q] }) &&
		slices.ContainsFunc(s.hello.Runtimes, func(r string) bool { return o.runtimes[r] })
}

func (s *session) waiting() int { return len(s.held) - s.started }

func (s *session) hold(tok task.Token, started bool) {
	s.held[tok] = started
	if started {
		s.started++
	}
}

// start notes that a claim was started and reports whether the session has it.
func (s *session) start(tok task.Token) bool {
	started, ok := s.held[tok]
	if ok && !started {
		s.held[tok] = true
		s.started++
	}
	return ok
}

// owe notes that up to n claims were asked back, or stopped.
func (s *session) owe(n int) { s.owed = min(s.owed+n, maxHeld) }

// release forgets a claim and reports whether the session had it.
func (s *session) release(tok task.Token) bool {
	started, ok := s.held[tok]
	if !ok {
		return false
	}
	delete(s.held, tok)
	if started {
		s.started--
	}
	return true
}

func (s *session) presence() store.Presence {
	slots := s.slots
	if s.unfit {
		slots = 0
	}
	return store.Presence{
		Worker: s.hello.Worker, Name: s.hello.Name, Host: s.hello.Host, PID: s.hello.PID, Mode: string(s.mode),
		State: string(s.state), Queues: s.hello.Queues, Runtimes: s.hello.Runtimes, Version: s.hello.Software,
		Slots: slots, Running: s.started, Offered: s.waiting(), ConnectedAt: s.openedAt, LastSeen: s.lastHeard,
	}
}

// called is a worker in a text for people, who know machines and not ids.
func (s *session) called() string {
	switch name, host := s.hello.Name, s.hello.Host; {
	case name != "" && host != "" && name != host:
		return fmt.Sprintf("worker %s (%s on %s)", s.hello.Worker, name, host)
	case name != "" || host != "":
		return fmt.Sprintf("worker %s (%s)", s.hello.Worker, cmp.Or(name, host))
	default:
		return "worker " + s.hello.Worker
	}
}
