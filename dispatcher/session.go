package dispatcher

import (
	"cmp"
	"fmt"
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

	// opened is its place among all sessions.
	opened place[*session]
	// movable is its place among those that may be asked to move.
	movable place[*session]

	// Fixed by Hello; crew is the sessions that serve the same.
	hello *link.Hello
	crew  *crew
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
	// saidBye: the worker ended the session by itself.
	saidBye bool

	// held is every claim that the worker has or is about to get, until it reports
	// it, and whether it was started. Credit is what is left of slots and window.
	held    map[task.Token]bool
	started int
	window  window.Window

	// asked is the credit that a pull worker has asked for and not got.
	asked int

	// claiming is set while a claim is under way, made when the bell had rung askedAt times; again says
	// that a standing request was answered with nothing meanwhile.
	claiming bool
	askedAt  uint64
	again    bool
	// idle: the last claim found less than it asked for, when the crew had been called dozedAt
	// times. idling is its place among the idle ones of its crew.
	idle    bool
	dozedAt uint64
	idling  place[*session]
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

	// showAt is when people are told of it again though nothing changed, shown its place among the sessions
	// that they know of.
	showAt time.Time
	shown  place[*session]
	// touched: the next batch of effects looks at it; gone: it was forgotten.
	touched, gone bool
	// dueAt is not later than its next deadline, place where it is in the heap of them, from 1 on.
	dueAt time.Time
	place int
}

// stays reports whether the session is here to stay.
func (s *session) stays() bool { return s.state == active || s.state == silent }

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
func (s *session) owe(n int) { s.owed = min(s.owed+n, task.MaxHeld) }

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
