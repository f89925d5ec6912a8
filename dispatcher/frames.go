package dispatcher

import (
	"fmt"
	"slices"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// What workers say, and what the store answers to it.

// frame takes one frame of a session's worker. Any frame counts as a beat.
func (e *Engine) frame(s *session, f link.Frame) {
	s.lastHeard = e.now
	if s.state == silent {
		e.become(s, active)
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
		if len(f.Held) > task.MaxHeld {
			e.refuse(s, fmt.Sprintf("a heartbeat lists %d claims: want at most %d", len(f.Held), task.MaxHeld))
			return
		}
		e.beat(s, f)
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
			e.become(s, draining)
			e.show(s, false)
			e.note(s, "worker is draining: "+f.Reason, nil, len(s.held))
		}
	case *link.Bye:
		s.saidBye = true
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

// beat renews what a session holds. Where that is nothing there is nothing for the store to record, and
// the answer leaves at once: most beats of a large fleet are such.
func (e *Engine) beat(s *session, f *link.Beat) {
	switch {
	case len(f.Held) > 0 || len(s.held) > 0:
		e.out.renews = append(e.out.renews, renew{session: s.id, seq: f.Seq, items: e.renewals(s, f.Held)})
	case f.Seq != 0:
		e.send(s, &link.BeatAck{Seq: f.Seq})
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
				s.window.Observe(e.now, max(r.Outcome.RunTime, 0))
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

func (e *Engine) settle(session task.ID, tok task.Token, out task.Outcome, log []byte) {
	e.out.settles = append(e.out.settles, settle{session: session, settlement: store.Settlement{
		Token: tok, Outcome: out, Log: log, Jitter: e.cfg.Jitter(),
	}})
}
