// Package dispatcher hands tasks to workers.
//
// [Engine] decides: time and events go in, effects come out. It reads no clock,
// starts no goroutine, takes no lock, writes no log and depends on no map order, so
// it runs in a simulation as fast as memory allows. [Dispatcher] is the one
// goroutine around it, with the store's workers and the links.
//
// The engine holds sessions, credit and timers only. Which task is next is the
// store's answer, so any number of dispatchers may share one store.
package dispatcher

import (
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

const (
	// maxPairs bounds the pairs of a queue and a runtime of a Hello: a claim looks at each.
	maxPairs = 4096
	// maxAsked bounds the credit that a pull worker may pile up.
	maxAsked = 2 * task.MaxSlots
)

// Engine is the deciding part of a dispatcher. It is not safe for concurrent use.
type Engine struct {
	cfg Config
	now time.Time

	sessions map[task.ID]*session
	// all are the sessions in the order in which they opened: nothing depends on map order. opened counts
	// those that ever opened.
	all    chain[*session]
	opened uint64
	// byWorker finds the sessions that a worker has said Hello in.
	byWorker map[string][]*session
	// attached counts the sessions of a mode that are here to stay: active or silent. movable are those
	// of them that understand a request to move.
	attached map[link.Mode]int
	movable  map[link.Mode]*chain[*session]
	// holders finds a claim when the bell revokes it.
	holders map[claimKey]holder

	// looked counts the sessions and crews that were looked at beside those: tests hold it to a bound.
	looked int

	// touched are the sessions that something has happened to since the last batch of effects. The
	// work of a batch is for them, and for those whose deadline has come; no pass goes over all sessions.
	touched []*session
	due     deadlines
	// shown are the sessions that people know of, those first that they were told of longest ago.
	shown chain[*session]
	crews crews
	// claimers are the sessions with a claim under way, blocked those that may open slots as soon as
	// others have filled theirs.
	claimers map[*session]struct{}
	blocked  []*session

	// standing says that the store holds requests until there is work.
	standing bool

	wants wants
	doors doors

	balance balance

	pollAt   time.Time
	stopping bool
	out      ready
}

// claimKey names a claim of one task: what a Revoked signal carries.
type claimKey struct{ task, claim task.ID }

// holder is who has a claim, and under which token.
type holder struct {
	session task.ID
	token   task.Token
}

// newEngine returns an engine without sessions; cfg has its defaults filled in.
func newEngine(cfg Config) *Engine {
	return &Engine{
		cfg: cfg, sessions: map[task.ID]*session{}, byWorker: map[string][]*session{}, attached: map[link.Mode]int{}, movable: map[link.Mode]*chain[*session]{},
		holders: map[claimKey]holder{}, crews: newCrews(), claimers: map[*session]struct{}{}, balance: newBalance(),
	}
}

// step takes one event. The effects gather until take.
func (e *Engine) step(now time.Time, ev event) {
	e.now = now
	switch ev := ev.(type) {
	case opened:
		e.open(ev)
	case received:
		if s := e.at(ev.session); s != nil && s.state != lost && s.state != leaving {
			e.frame(s, ev.frame)
		}
	case closed:
		if s := e.at(ev.session); s != nil {
			e.linkEnded(s, ev.reason)
		}
	case resumed:
		e.resumed(ev)
	case claimed:
		e.claimed(ev)
	case renewed:
		e.renewed(ev)
	case settled:
		e.ack(ev.session, link.Ack{Token: ev.token, Verdict: ev.verdict})
	case loaded:
		e.loaded(ev)
	case overdone:
		if s := e.at(ev.session); s != nil && s.state != lost && s.state != leaving {
			e.note(s, "session refused", ev.reason, len(s.held))
			e.dismiss(s, ev.reason.Error())
		}
	case reads:
		if s := e.at(ev.session); s != nil {
			s.behind = ev.behind
			s.idle = s.idle && ev.behind // look at once whether there is work
		}
	case rung:
		for _, sig := range ev.signals {
			e.signal(sig)
		}
	case stopping:
		e.stop(ev.reason)
	case ticked:
	}
}

// at returns a session that an event is about, and has the next batch of effects look at it.
func (e *Engine) at(id task.ID) *session {
	s := e.sessions[id]
	if s != nil {
		e.touch(s)
	}
	return s
}

func (e *Engine) open(ev opened) {
	e.opened++
	s := &session{
		id: ev.session, seq: e.opened, mode: ev.mode, openedAt: e.now, state: opening, lastHeard: e.now, held: map[task.Token]bool{},
	}
	if e.cfg.StreamAge > 0 && ev.mode != link.Local {
		s.endsAt = e.now.Add(time.Duration(float64(e.cfg.StreamAge) * (0.9 + e.cfg.Jitter()/5)))
	}
	s.opened.of, s.idling.of, s.movable.of, s.shown.of = s, s, s, s
	e.sessions[ev.session] = s
	e.all.add(&s.opened)
	e.touch(s)
}

// become gives a session its next state.
func (e *Engine) become(s *session, next state) {
	stayed := s.stays()
	if s.state = next; next == leaving {
		s.shown.leave()
	}
	switch {
	case stayed && !s.stays():
		e.attached[s.mode]--
		s.movable.leave()
	case !stayed && s.stays():
		e.attached[s.mode]++
		e.mayMove(s)
	}
	e.touch(s)
}

// take runs what is due, plans the next claims and returns all effects since the
// last call.
func (e *Engine) take(now time.Time) ready {
	e.now = now
	e.timers()
	e.remember()
	e.settleDown()
	out := e.out
	e.out = ready{}
	e.wants.spent = 0
	return out
}

// settleDown finds what the sessions that were touched may be given, and what of them is due next.
func (e *Engine) settleDown() {
	e.touched = slices.DeleteFunc(e.touched, func(s *session) bool { return s.gone })
	bySeq(e.touched)
	for _, s := range e.touched {
		s.heed()
	}
	if !e.stopping {
		e.out.claims = append(e.out.claims, e.plan()...)
	}
	if e.standing {
		e.stand()
	}
	for _, s := range e.touched {
		s.touched = false
		e.wants.unsay(s)
		s.relist()
		if at := e.dueAt(s); s.place == 0 || at.IsZero() || at.Before(s.dueAt) {
			e.due.set(s, at)
		}
	}
	clear(e.touched)
	e.touched = e.touched[:0]
	for _, s := range e.blocked {
		e.touch(s)
	}
}

// next returns when take must be called at the latest though nothing happens; zero
// when nothing is pending.
func (e *Engine) next() time.Time {
	first := e.due.first()
	at := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if len(e.cfg.Modes) > 0 && !e.stopping {
		at(e.balance.at)
	}
	if e.crews.all.n > 0 {
		at(e.pollAt)
	}
	if e.crews.polling != nil {
		at(e.now)
	}
	at(e.wants.next)
	if p := e.shown.first; p != nil {
		at(p.of.showAt)
	}
	return first
}

// dueAt is when something has to be done about a session though nothing happens to it; zero for never.
func (e *Engine) dueAt(s *session) (first time.Time) {
	at := func(t time.Time) {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	e.looked++
	switch s.state {
	case leaving:
	case lost:
		at(s.lostAt.Add(e.cfg.Grace))
	case active:
		at(s.lastHeard.Add(e.silence()))
		if !s.endsAt.IsZero() {
			at(s.endsAt)
		}
		if s.wanting {
			at(s.wantedAt.Add(wantEvery))
		}
		if s.paused {
			at(s.pausedUntil)
		}
	case opening, silent, draining:
		at(s.lastHeard.Add(e.giveUp()))
	}
	return first
}

// silence is how long a session may be unheard before it gets no more work, giveUp
// how long before its link is ended: its leases have run out by then.
func (e *Engine) silence() time.Duration { return time.Duration(e.cfg.MissedBeats) * e.cfg.Heartbeat }

func (e *Engine) giveUp() time.Duration { return 2 * e.cfg.Lease }

func (e *Engine) timers() {
	e.poll()
	if len(e.cfg.Modes) > 0 && !e.stopping && !e.balance.at.After(e.now) {
		e.level()
	}
	e.showAgain()
	for _, s := range e.due.past(e.now, e.dueAt) {
		e.touch(s)
		e.timer(s)
	}
}

// timer does what is due at a session.
func (e *Engine) timer(s *session) {
	if s.paused && !s.pausedUntil.After(e.now) {
		s.paused, s.idle = false, false
	}
	if s.wanting {
		e.want(s)
	}
	unheard := e.now.Sub(s.lastHeard)
	switch s.state {
	case leaving:
	case lost:
		if e.now.Sub(s.lostAt) >= e.cfg.Grace {
			e.abandon(s)
		}
	case active:
		switch {
		case unheard >= e.silence():
			e.become(s, silent)
			e.show(s, false)
			e.note(s, "worker is silent: it gets no new work until it reports again; its leases keep running", nil, len(s.held))
		case !s.endsAt.IsZero() && !s.endsAt.After(e.now):
			e.age(s)
		}
	case opening, silent, draining:
		if unheard >= e.giveUp() {
			e.hangup(s, fmt.Sprintf("nothing was heard for %s", unheard))
		}
	}
}

// claimed delivers what a claim brought, or gives it back when the session cannot
// have it any more.
func (e *Engine) claimed(ev claimed) {
	s := e.at(ev.request.Session)
	stands := s != nil && ev.stood && s.standing == ev.request.Claim
	switch {
	case stands:
		s.standing = task.ID{}
	case s != nil && !ev.stood:
		e.answered(s)
	}
	if s == nil || (s.state != active && s.state != silent) || ev.stood && !stands {
		for _, c := range ev.tasks {
			e.settle(task.ID{}, c.Token, task.Fail(task.EndReturned, "the session ended while the task was being claimed"), nil)
		}
		return
	}
	switch {
	case !ev.stood:
		if current := !s.again && s.askedAt == s.crew.rings(); len(ev.tasks) < ev.request.Max && current {
			s.doze()
		} else {
			s.idle = false
		}
		e.goOn(s, len(ev.tasks), ev.request.Max)
	case len(ev.tasks) == 0:
		s.idle, s.again = false, true
	}
	if len(ev.tasks) > 0 {
		offers := &link.Offers{Items: make([]link.Offer, len(ev.tasks))}
		for i, c := range ev.tasks {
			e.hold(s, c.Token, false)
			offers.Items[i] = link.Offer{
				Token: c.Token, Function: c.Task.Function, FunctionName: c.Task.FunctionName, Runtime: c.Task.Runtime,
				Form: c.Task.Form, Hash: c.Task.Hash, ArgsEncoding: c.Task.Args, Returns: c.Task.Returns, Args: c.Args,
				Spec: c.Task.Spec.ForWorker(), Python: c.Task.Python, RetriesLeft: c.Task.RetriesLeft(), Parent: c.Task.Parent,
			}
		}
		if s.mode == link.Pull {
			s.asked -= min(len(ev.tasks), s.asked)
		}
		e.send(s, offers)
	}
	if s.idle && !ev.stood {
		e.want(s)
	}
}

func (e *Engine) signal(sig store.Signal) {
	switch sig.Kind {
	case store.Ready:
		e.ready(sig)
	case store.Wanted:
		if sig.From != e.cfg.ID {
			e.recall(wantKey{from: sig.From, queue: sig.Queue, runtime: sig.Runtime}, sig.Count)
		}
	case store.Revoked:
		h := e.holders[claimKey{sig.Task, sig.Claim}]
		if s := e.sessions[h.session]; s != nil {
			// Credit returns when the worker has let go, not now.
			s.owe(1)
			e.send(s, &link.Revoke{Tokens: []task.Token{h.token}})
		}
	case store.Attending:
		e.attending(sig)
	case store.Done:
	}
}

func (e *Engine) hold(s *session, tok task.Token, started bool) {
	s.hold(tok, started)
	e.wants.follow(s)
	e.holders[claimKey{tok.Task, tok.Claim}] = holder{s.id, tok}
}

func (e *Engine) release(s *session, tok task.Token) bool {
	if !s.release(tok) {
		return false
	}
	delete(e.holders, claimKey{tok.Task, tok.Claim})
	e.wants.follow(s)
	return true
}

func (e *Engine) send(s *session, f link.Frame) {
	e.out.sends = append(e.out.sends, send{session: s.id, frame: f})
}

func (e *Engine) note(s *session, text string, err error, count int) {
	n := note{at: e.now, session: s.id, text: text, err: err, count: count}
	if s.hello != nil {
		n.worker, n.name, n.host = s.hello.Worker, s.hello.Name, s.hello.Host
	}
	e.out.notes = append(e.out.notes, n)
}

// warn is a note about something that was lost.
func (e *Engine) warn(s *session, text string, err error, count int) {
	e.note(s, text, err, count)
	e.out.notes[len(e.out.notes)-1].warn = true
}

// showAgain tells people of sessions that they were not told of for announceEvery.
func (e *Engine) showAgain() {
	for n := 0; n < duesAtMost && e.shown.first != nil; n++ {
		s := e.shown.first.of
		if s.showAt.After(e.now) {
			return
		}
		e.looked++
		e.show(s, false)
	}
}

// show tells people of a session's new state.
func (e *Engine) show(s *session, gone bool) {
	if s.hello == nil || s.moved {
		return
	}
	s.showAt = e.now.Add(announceEvery)
	s.shown.leave()
	e.shown.add(&s.shown)
	p := s.presence()
	p.Gone = gone
	e.out.presence = append(e.out.presence, p)
}
