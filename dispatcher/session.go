package dispatcher

import (
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
	// Fixed when the link opens.
	id       task.ID
	mode     link.Mode
	openedAt time.Time

	// Fixed by Hello.
	hello    *link.Hello
	queues   map[string]bool
	runtimes map[string]bool

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
	// recalledAt is when offers were last asked back from it.
	recalledAt time.Time
}

// credit returns how many tasks may be claimed for the session now: for free slots,
// which are filled first everywhere, and ahead of them. The window is refilled by
// halves: one claim for many tasks costs the store what one task costs.
func (s *session) credit() (slots, ahead int) {
	if s.state != active || s.claiming {
		return 0, 0
	}
	taken := len(s.held)
	asked := s.asked
	if !s.standing.IsZero() {
		taken++
		asked--
	}
	slots = max(s.hello.Slots-taken, 0)
	if s.mode == link.Pull {
		slots = min(slots, asked)
		if s.window.Size() > 0 {
			// What was asked for while tasks were short is not used after they were found not to be.
			ahead = asked - slots
		}
		return slots, ahead
	}
	if size := s.window.Size(); size > 0 {
		ahead = min(size, s.hello.Slots+size-taken)
		if 2*ahead < size {
			ahead = 0
		}
	}
	return slots, ahead
}

// serves reports whether the session takes tasks of that queue and runtime.
func (s *session) serves(queue, runtime string) bool {
	return s.queues[queue] && s.runtimes[runtime]
}

func (s *session) waiting() int { return len(s.held) - s.started }

func (s *session) hold(tok task.Token, started bool) {
	s.held[tok] = started
	if started {
		s.started++
	}
}

func (s *session) start(tok task.Token) {
	if started, ok := s.held[tok]; ok && !started {
		s.held[tok] = true
		s.started++
	}
}

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
	return store.Presence{
		Worker: s.hello.Worker, Name: s.hello.Name, Host: s.hello.Host, PID: s.hello.PID, Mode: string(s.mode),
		State: string(s.state), Queues: s.hello.Queues, Runtimes: s.hello.Runtimes, Version: s.hello.Software,
		Slots: s.hello.Slots, Running: s.started, Offered: s.waiting(), ConnectedAt: s.openedAt, LastSeen: s.lastHeard,
	}
}
