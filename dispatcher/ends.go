package dispatcher

import (
	"errors"
	"fmt"
	"slices"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// How a session ends.

// linkEnded starts the grace of a session that holds something.
func (e *Engine) linkEnded(s *session, reason error) {
	switch {
	case s.state == lost:
	case s.hello == nil || len(s.held) == 0 && (!s.claiming || s.saidBye && !s.moved): // what a claim brings then goes back
		if s.hello != nil {
			e.note(s, "worker detached", reason, 0)
		}
		e.forget(s)
	case s.moved:
		e.become(s, lost)
		s.lostAt = e.now
		e.note(s, "worker continues in another session", nil, len(s.held))
	default:
		e.become(s, lost)
		s.lostAt = e.now
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
	for p := e.all.first; p != nil; {
		s, next := p.of, p.next // who is dismissed is in no list
		if s.state != lost {
			e.dismiss(s, reason)
		}
		p = next
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
	e.become(s, leaving)
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
	e.become(s, leaving)
	e.wants.drop(s)
	e.due.drop(s)
	delete(e.claimers, s)
	if s.unlist(); s.crew != nil {
		e.crews.leave(s.crew)
		if rest := slices.DeleteFunc(e.byWorker[s.hello.Worker], func(o *session) bool { return o == s }); len(rest) > 0 {
			e.byWorker[s.hello.Worker] = rest
		} else {
			delete(e.byWorker, s.hello.Worker)
		}
	}
	s.opened.leave()
	delete(e.sessions, s.id)
	s.gone = true
}
