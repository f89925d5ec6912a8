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
	"errors"
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
	// maxHeld bounds what a worker may say that it holds: slots and window, and reports that
	// a slow store has not acknowledged for many seconds.
	maxHeld = 1 << 16
	// maxAsked bounds the credit that a pull worker may pile up.
	maxAsked = 2 * task.MaxSlots
)

// Engine is the deciding part of a dispatcher. It is not safe for concurrent use.
type Engine struct {
	cfg Config
	now time.Time

	sessions map[task.ID]*session
	// order lists the sessions as they opened, so that nothing depends on map order.
	order []task.ID
	// opened counts the sessions that ever opened.
	opened uint64
	// holders finds the session of a claim when the bell revokes it.
	holders map[claimKey]task.ID

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

// newEngine returns an engine without sessions; cfg has its defaults filled in.
func newEngine(cfg Config) *Engine {
	return &Engine{cfg: cfg, sessions: map[task.ID]*session{}, holders: map[claimKey]task.ID{}, balance: newBalance()}
}

// step takes one event. The effects gather until take.
func (e *Engine) step(now time.Time, ev event) {
	e.now = now
	switch ev := ev.(type) {
	case opened:
		e.opened++
		s := &session{
			id: ev.session, seq: e.opened, mode: ev.mode, openedAt: now, state: opening, lastHeard: now, held: map[task.Token]bool{},
		}
		if e.cfg.StreamAge > 0 && ev.mode != link.Local {
			s.endsAt = now.Add(time.Duration(float64(e.cfg.StreamAge) * (0.9 + e.cfg.Jitter()/5)))
		}
		e.sessions[ev.session] = s
		e.order = append(e.order, ev.session)
	case received:
		if s := e.sessions[ev.session]; s != nil && s.state != lost && s.state != leaving {
			e.frame(s, ev.frame)
		}
	case closed:
		if s := e.sessions[ev.session]; s != nil {
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
		if s := e.sessions[ev.session]; s != nil && s.state != lost && s.state != leaving {
			e.note(s, "session refused", ev.reason, len(s.held))
			e.dismiss(s, ev.reason.Error())
		}
	case reads:
		if s := e.sessions[ev.session]; s != nil {
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

// take runs what is due, plans the next claims and returns all effects since the
// last call.
func (e *Engine) take(now time.Time) ready {
	e.now = now
	e.timers()
	e.remember()
	if !e.stopping {
		e.out.claims = append(e.out.claims, e.plan()...)
	}
	if e.standing {
		e.stand()
	}
	out := e.out
	e.out = ready{}
	e.wants.spent = 0
	return out
}

// next returns when take must be called at the latest though nothing happens; zero
// when nothing is pending.
func (e *Engine) next() time.Time {
	var first time.Time
	at := func(t time.Time) {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	if len(e.cfg.Modes) > 0 && !e.stopping {
		at(e.balance.at)
	}
	for _, id := range e.order {
		switch s := e.sessions[id]; s.state {
		case leaving:
		case lost:
			at(s.lostAt.Add(e.cfg.Grace))
		case active:
			at(s.lastHeard.Add(e.silence()))
			if !s.endsAt.IsZero() {
				at(s.endsAt)
			}
			if s.idle {
				at(e.pollAt)
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
	}
	if !e.wants.next.IsZero() {
		at(e.wants.next)
	}
	return first
}

// silence is how long a session may be unheard before it gets no more work, giveUp
// how long before its link is ended: its leases have run out by then.
func (e *Engine) silence() time.Duration { return time.Duration(e.cfg.MissedBeats) * e.cfg.Heartbeat }
func (e *Engine) giveUp() time.Duration  { return 2 * e.cfg.Lease }

func (e *Engine) timers() {
	poll := !e.pollAt.After(e.now)
	if poll {
		e.pollAt = e.now.Add(e.cfg.PollEvery)
	}
	if len(e.cfg.Modes) > 0 && !e.stopping && !e.balance.at.After(e.now) {
		e.level()
	}
	for _, id := range slices.Clone(e.order) {
		s := e.sessions[id]
		if poll {
			s.idle = false
		}
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
				s.state = silent
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
}

// frame takes one frame of a session's worker. Any frame counts as a beat.
func (e *Engine) frame(s *session, f link.Frame) {
	s.lastHeard = e.now
	if s.state == silent {
		s.state = active
		e.show(s, false)
		e.note(s, "worker reports again", nil, len(s.held))
	}
	if hello, ok := f.(*link.Hello); ok {
		e.hello(s, hello)
		return
	}
	if s.hello == nil {
		e.refuse(s, fmt.Sprintf("the first frame is %T, want Hello", f))
		return
	}
	switch f := f.(type) {
	case *link.Accepts:
		items := make([]store.Renewal, len(f.Items))
		for i, a := range f.Items {
			if !s.start(a.Token) && !e.unasked(s) {
				return
			}
			items[i] = store.Renewal{Token: a.Token, Until: e.now.Add(e.cfg.Lease), StartedAt: e.now.Add(-max(a.Ago, 0))}
		}
		e.out.renews = append(e.out.renews, renew{session: s.id, items: items})
	case *link.Outcomes:
		e.outcomes(s, f.Items)
	case *link.Beat:
		if f.Slots != 0 && !e.resize(s, f.Slots) {
			return
		}
		if f.Unfit != s.unfit {
			s.unfit, s.idle = f.Unfit, false
			e.show(s, false)
		}
		if len(f.Held) > maxHeld {
			e.refuse(s, fmt.Sprintf("a heartbeat lists %d claims: want at most %d", len(f.Held), maxHeld))
			return
		}
		e.out.renews = append(e.out.renews, renew{session: s.id, seq: f.Seq, items: e.renewals(s, f.Held)})
	case *link.Want:
		if s.mode != link.Pull || f.N < 1 {
			e.refuse(s, fmt.Sprintf("Want of %d in %s mode: only pull workers request work, for at least one task", f.N, s.mode))
			return
		}
		s.asked = min(s.asked+f.N, maxAsked)
		s.idle = false
	case *link.NeedFunction:
		e.out.loads = append(e.out.loads, load{session: s.id, hash: f.Hash})
	case *link.Output:
		if _, holds := s.held[f.Token]; !holds && !e.unasked(s) {
			return
		}
		e.out.renews = append(e.out.renews, renew{session: s.id, items: []store.Renewal{
			{Token: f.Token, Until: e.now.Add(e.cfg.Lease), Log: f.Bytes},
		}})
	case *link.Drain:
		if s.state == active {
			s.state = draining
			e.show(s, false)
			e.note(s, "worker is draining: "+f.Reason, nil, len(s.held))
		}
	case *link.Bye:
		if f.Retry {
			// Its next session speaks for it now, wherever that is.
			e.show(s, true)
			s.moved = true
		}
		e.hangup(s, "the worker closed its session: "+f.Reason)
	default:
		e.refuse(s, fmt.Sprintf("a frame of type %T, which a worker does not send", f))
	}
}

// resize takes the number of slots that the worker has now; credit follows it.
func (e *Engine) resize(s *session, slots int) bool {
	if slots < 1 || slots > s.maxSlots {
		e.refuse(s, fmt.Sprintf("%d slots: want 1 to %d, as Hello said", slots, s.maxSlots))
		return false
	}
	if slots != s.slots {
		s.slots = slots
		e.wants.follow(s)
		e.show(s, false)
	}
	return true
}

// renewals lists everything that the session holds: what the worker names, and
// offers that are still on their way to it.
func (e *Engine) renewals(s *session, held []link.Holding) []store.Renewal {
	until := e.now.Add(e.cfg.Lease)
	items := make([]store.Renewal, 0, max(len(held), len(s.held)))
	named := make(map[task.Token]bool, len(held))
	for _, h := range held {
		named[h.Token] = true
		if !h.StartedAt.IsZero() {
			s.start(h.Token)
		}
		items = append(items, store.Renewal{Token: h.Token, Until: until, StartedAt: h.StartedAt})
	}
	rest := make([]task.Token, 0, len(s.held))
	for tok := range s.held {
		if !named[tok] {
			rest = append(rest, tok)
		}
	}
	slices.SortFunc(rest, compareTokens)
	for _, tok := range rest {
		items = append(items, store.Renewal{Token: tok, Until: until})
	}
	return items
}

func compareTokens(a, b task.Token) int {
	return slices.Compare(a.Task[:], b.Task[:])
}

func (e *Engine) hello(s *session, h *link.Hello) {
	switch {
	case s.hello != nil:
		e.refuse(s, "a second Hello")
		return
	case h.Version != link.Version:
		e.refuse(s, fmt.Sprintf("the worker speaks version %d of the protocol, this dispatcher version %d: install the same release on both",
			h.Version, link.Version))
		return
	case h.Worker == "" || len(h.Worker) > task.MaxWorkerID:
		e.refuse(s, fmt.Sprintf("a worker id of %d bytes: want 1 to %d", len(h.Worker), task.MaxWorkerID))
		return
	case h.Slots < 1 || h.Slots > task.MaxSlots:
		e.refuse(s, fmt.Sprintf("%d slots: want 1 to %d", h.Slots, task.MaxSlots))
		return
	case h.MaxSlots != 0 && (h.MaxSlots < h.Slots || h.MaxSlots > task.MaxSlots):
		e.refuse(s, fmt.Sprintf("at most %d slots: want %d, the current slots, to %d", h.MaxSlots, h.Slots, task.MaxSlots))
		return
	case len(h.Queues) > task.MaxListed || len(h.Runtimes) > task.MaxListed || len(h.Handlers) > task.MaxListed:
		e.refuse(s, fmt.Sprintf("%d queues, %d runtimes and %d handlers: want at most %d of each",
			len(h.Queues), len(h.Runtimes), len(h.Handlers), task.MaxListed))
		return
	case len(h.Held) > maxHeld:
		e.refuse(s, fmt.Sprintf("the worker reports %d claims: want at most %d", len(h.Held), maxHeld))
		return
	}
	// The frame is the worker's: what is changed is a copy.
	own := *h
	h = &own
	h.Queues, h.Runtimes, h.Handlers = distinct(h.Queues), distinct(h.Runtimes), distinct(h.Handlers)
	if n := len(h.Queues) * len(h.Runtimes); n > maxPairs {
		e.refuse(s, fmt.Sprintf("%d queues and %d runtimes make %d pairs: want at most %d; serve fewer, or split them over several workers",
			len(h.Queues), len(h.Runtimes), n, maxPairs))
		return
	}
	if !e.admit(s, h.Worker) {
		return
	}
	s.hello = h
	s.slots, s.maxSlots = h.Slots, max(h.MaxSlots, h.Slots)
	s.queues, s.runtimes = set(h.Queues), set(h.Runtimes)
	s.spare.fill(e.now, s.spareRoom()+3*float64(len(h.Held)))
	for _, id := range slices.Clone(e.order) {
		if old := e.sessions[id]; old != s && old.hello != nil && old.hello.Worker == h.Worker {
			// The same worker came back before its old link was seen to end. What it
			// holds is what it says now.
			e.forget(old)
			e.out.hangups = append(e.out.hangups, hangup{session: old.id, reason: "the worker opened a newer session"})
		}
	}
	until := e.now.Add(e.cfg.Lease)
	r := store.Resumption{Worker: h.Worker, Session: s.id, Until: until}
	for _, held := range h.Held {
		r.Held = append(r.Held, store.Renewal{Token: held.Token, Until: until, StartedAt: held.StartedAt})
	}
	e.out.resumes = append(e.out.resumes, resume{session: s.id, hello: h, handlers: h.Handlers, request: r})
}

// distinct returns items without repetitions, in their order.
func distinct(items []string) []string {
	seen := make(map[string]bool, len(items))
	out := make([]string, 0, len(items))
	for _, it := range items {
		if !seen[it] {
			seen[it] = true
			out = append(out, it)
		}
	}
	return out
}

func set(items []string) map[string]bool {
	m := make(map[string]bool, len(items))
	for _, it := range items {
		m[it] = true
	}
	return m
}

func (e *Engine) resumed(ev resumed) {
	s := e.sessions[ev.session]
	if s == nil || s.state != opening {
		return
	}
	if ev.err != nil {
		e.notResumed(s, ev.err)
		return
	}
	s.state = active
	welcome := &link.Welcome{
		Session: s.id, Lease: e.cfg.Lease, Heartbeat: e.cfg.Heartbeat, Margin: e.cfg.Margin, MaxPayload: e.cfg.MaxPayload,
	}
	if s.hello.TaskTokens && e.cfg.TaskKey != nil {
		welcome.TaskKey = e.cfg.TaskKey(s.id)
	}
	for i, h := range ev.held {
		if ev.verdicts[i] != task.VerdictRecorded {
			welcome.Stale = append(welcome.Stale, h.Token)
			continue
		}
		e.hold(s, h.Token, !h.StartedAt.IsZero())
	}
	e.send(s, welcome)
	e.show(s, false)
	if e.stopping {
		e.dismiss(s, "this dispatcher stops")
		return
	}
	e.note(s, "worker attached", nil, len(s.held))
}

// notResumed ends a session that the store did not let begin, and says why. Only what the
// worker asked for itself ends it for good.
func (e *Engine) notResumed(s *session, err error) {
	reason := err.Error()
	switch task.CodeOf(err) {
	case task.CodeInvalid, task.CodeInvalidPayload, task.CodeConflict, task.CodeTooLarge, task.CodeDenied:
		e.refuse(s, reason)
		return
	case task.CodeUnavailable, task.CodeUnknown:
		reason = "the store does not answer: " + reason
	}
	e.readmit(s.hello.Worker) // it is not the worker's fault
	e.send(s, &link.Bye{Retry: true, Reason: reason})
	e.hangup(s, "resume: "+err.Error())
}

func (e *Engine) outcomes(s *session, items []link.Report) {
	before, busy, looked := len(s.held), false, false
	for i, r := range items {
		switch err := r.Outcome.Check(e.cfg.MaxPayload); task.CodeOf(err) {
		case task.CodeTooLarge:
			// The limit that the worker was told, or should have been, is kept here.
			r.Outcome = task.Outcome{End: task.EndExhausted, RunTime: r.Outcome.RunTime, Failure: &task.Failure{
				Class: task.ClassResource, Message: fmt.Sprintf("the result has %d bytes, the limit is %d (--max-payload)",
					len(r.Outcome.Result), e.cfg.MaxPayload),
			}}
		case task.CodeInvalid:
			e.refuse(s, err.Error())
			return
		}
		r.Outcome.Unasked = false
		if cameBack(r.Outcome.End) && !looked {
			busy, looked = before-s.returning(items[i:]) >= s.slots, true
		}
		if e.release(s, r.Token) {
			switch r.Outcome.End {
			case task.EndSucceeded, task.EndRaised:
				s.window.Observe(max(r.Outcome.RunTime, 0))
				s.relax()
			case task.EndReturned:
				s.window.Close()
				r.Outcome.Unasked = e.returned(s, busy)
			case task.EndCancelled:
				r.Outcome.Unasked = e.returned(s, busy)
			case task.EndTimedOut:
				s.window.Close()
			}
			// A claim that came back may be had again, and there is room now.
			s.idle = s.idle && r.Outcome.End != task.EndReturned
		} else if !e.unasked(s) {
			return
		}
		e.settle(s.id, r.Token, r.Outcome, r.Log)
	}
}

func (e *Engine) settle(session task.ID, tok task.Token, out task.Outcome, log []byte) {
	e.out.settles = append(e.out.settles, settle{session: session, settlement: store.Settlement{
		Token: tok, Outcome: out, Log: log, Jitter: e.cfg.Jitter(),
	}})
}

// claimed delivers what a claim brought, or gives it back when the session cannot
// have it any more.
func (e *Engine) claimed(ev claimed) {
	s := e.sessions[ev.request.Session]
	stands := s != nil && ev.stood && s.standing == ev.request.Claim
	switch {
	case stands:
		s.standing = task.ID{}
	case s != nil && !ev.stood:
		s.claiming = false
	}
	if s == nil || (s.state != active && s.state != silent) || ev.stood && !stands {
		for _, c := range ev.tasks {
			e.settle(task.ID{}, c.Token, task.Fail(task.EndReturned, "the session ended while the task was being claimed"), nil)
		}
		return
	}
	switch {
	case !ev.stood:
		s.idle = len(ev.tasks) < ev.request.Max && !s.again
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
				Timeout: c.Task.Timeout, MemoryLimit: c.Task.MemoryLimit, Python: c.Task.Python,
				Deadline: c.Task.Deadline, MaxRetries: c.Task.MaxRetries, RetriesLeft: c.Task.RetriesLeft(), Parent: c.Task.Parent,
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
		for _, id := range e.order {
			if s := e.sessions[id]; s.hello != nil && s.serves(sig.Queue, sig.Runtime) {
				s.idle, s.again = false, true
			}
		}
	case store.Wanted:
		if sig.From != e.cfg.ID {
			e.recall(wantKey{from: sig.From, queue: sig.Queue, runtime: sig.Runtime}, sig.Count)
		}
	case store.Revoked:
		s := e.sessions[e.holders[claimKey{sig.Task, sig.Claim}]]
		if s == nil {
			return
		}
		for tok := range s.held {
			if tok.Task == sig.Task && tok.Claim == sig.Claim {
				// Credit returns when the worker has let go, not now.
				s.owe(1)
				e.send(s, &link.Revoke{Tokens: []task.Token{tok}})
				return
			}
		}
	case store.Attending:
		e.attending(sig)
	case store.Done:
	}
}

func (e *Engine) renewed(ev renewed) {
	s := e.sessions[ev.session]
	if s == nil || s.state == lost || ev.err != nil {
		return // an unrecorded renewal is not acknowledged: the worker counts on
	}
	var stale []task.Token
	for i, v := range ev.verdicts {
		// A report that is under way may have settled the claim meanwhile; only what
		// the session still holds can be stopped.
		if _, holds := s.held[ev.items[i].Token]; v == task.VerdictStale && holds {
			stale = append(stale, ev.items[i].Token)
		}
	}
	s.owe(len(stale))
	switch {
	case ev.seq != 0:
		e.send(s, &link.BeatAck{Seq: ev.seq, Stale: stale})
	case len(stale) > 0:
		e.send(s, &link.Revoke{Tokens: stale})
	}
}

func (e *Engine) ack(session task.ID, a link.Ack) {
	s := e.sessions[session]
	if s == nil || s.state == lost {
		return // the worker reports again after its next Hello
	}
	if n := len(e.out.sends); n > 0 && e.out.sends[n-1].session == session {
		if acks, ok := e.out.sends[n-1].frame.(*link.Acks); ok {
			acks.Items = append(acks.Items, a)
			return
		}
	}
	e.send(s, &link.Acks{Items: []link.Ack{a}})
}

func (e *Engine) loaded(ev loaded) {
	s := e.sessions[ev.session]
	if s == nil || s.state == lost {
		return
	}
	if ev.err != nil && task.CodeOf(ev.err) != task.CodeNotFound {
		e.note(s, "could not load a function; the worker will ask again", ev.err, 0)
		return
	}
	e.send(s, &link.FunctionBytes{Hash: ev.hash, Bytes: ev.bytes, Missing: ev.err != nil})
}

// linkEnded starts the grace of a session that holds something.
func (e *Engine) linkEnded(s *session, reason error) {
	switch {
	case s.state == lost:
	case s.hello == nil || len(s.held) == 0 && !s.claiming:
		if s.hello != nil {
			e.note(s, "worker detached", reason, 0)
		}
		e.forget(s)
	case s.moved:
		s.state, s.lostAt = lost, e.now
		e.note(s, "worker continues in another session", nil, len(s.held))
	default:
		s.state, s.lostAt = lost, e.now
		e.show(s, false)
		e.warn(s, "worker lost: its tasks are requeued unless it reconnects within --reconnect-grace", reason, len(s.held))
	}
}

// abandon ends the grace: what the worker had goes to others.
func (e *Engine) abandon(s *session) {
	tokens := make([]task.Token, 0, len(s.held))
	for tok := range s.held {
		tokens = append(tokens, tok)
	}
	slices.SortFunc(tokens, compareTokens)
	for _, tok := range tokens {
		end, text := task.EndLapsed, "the worker was lost before it started the task"
		if s.held[tok] {
			end, text = task.EndLost, fmt.Sprintf("%s was lost while it ran the task (its stream closed and it did not reconnect within %s)",
				s.called(), e.cfg.Grace)
		}
		// Should the worker have gone to another dispatcher with it, nothing is lost.
		e.out.settles = append(e.out.settles, settle{settlement: store.Settlement{
			Token: tok, Outcome: task.Fail(end, text), Session: s.id, Jitter: e.cfg.Jitter(),
		}})
	}
	if !s.moved {
		e.warn(s, "worker did not reconnect: its tasks are requeued, except those that it took to another dispatcher", nil, len(tokens))
	}
	e.forget(s)
}

func (e *Engine) stop(reason string) {
	e.stopping = true
	for _, mode := range e.cfg.Modes {
		e.out.rings = append(e.out.rings, e.attendingHere(mode, -1))
	}
	for _, id := range slices.Clone(e.order) {
		if s := e.sessions[id]; s.state != lost {
			e.dismiss(s, reason)
		}
	}
}

// dismiss ends a session whose worker keeps what it holds and comes back.
func (e *Engine) dismiss(s *session, reason string) {
	e.send(s, &link.Bye{Retry: true, Reason: reason})
	e.out.hangups = append(e.out.hangups, hangup{session: s.id, reason: reason})
	e.forget(s)
}

// refuse ends a session for good: its worker broke the protocol.
func (e *Engine) refuse(s *session, reason string) {
	e.note(s, "session refused", errors.New(reason), 0)
	e.send(s, &link.Bye{Reason: reason})
	e.hangup(s, reason)
}

// hangup ends the link; the end comes back as an event.
func (e *Engine) hangup(s *session, reason string) {
	s.state = leaving
	e.out.hangups = append(e.out.hangups, hangup{session: s.id, reason: reason})
}

func (e *Engine) forget(s *session) {
	for tok := range s.held {
		delete(e.holders, claimKey{tok.Task, tok.Claim})
	}
	if !s.standing.IsZero() {
		e.out.withdraws = append(e.out.withdraws, s.standing)
	}
	e.show(s, true)
	delete(e.sessions, s.id)
	e.wants.drop(s)
	e.order = slices.DeleteFunc(e.order, func(id task.ID) bool { return id == s.id })
}

func (e *Engine) hold(s *session, tok task.Token, started bool) {
	s.hold(tok, started)
	e.wants.follow(s)
	e.holders[claimKey{tok.Task, tok.Claim}] = s.id
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

// show tells people of a session's new state.
func (e *Engine) show(s *session, gone bool) {
	if s.hello == nil || s.moved {
		return
	}
	p := s.presence()
	p.Gone = gone
	e.out.presence = append(e.out.presence, p)
}

// presence lists the sessions that said Hello.
func (e *Engine) presence() []store.Presence {
	out := make([]store.Presence, 0, len(e.order))
	for _, id := range e.order {
		if s := e.sessions[id]; s.hello != nil && !s.moved {
			out = append(out, s.presence())
		}
	}
	return out
}
