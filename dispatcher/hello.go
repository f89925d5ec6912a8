package dispatcher

import (
	"fmt"
	"slices"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// How a session begins.

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
	case len(h.Held) > task.MaxHeld:
		e.refuse(s, fmt.Sprintf("the worker reports %d claims: want at most %d", len(h.Held), task.MaxHeld))
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
	s.crew = e.crews.join(h.Queues, h.Runtimes)
	s.spare.fill(e.now, s.spareRoom()+3*float64(len(h.Held)))
	for _, old := range slices.Clone(e.byWorker[h.Worker]) {
		// The same worker came back before its old link was seen to end. What it
		// holds is what it says now.
		e.forget(old)
		e.out.hangups = append(e.out.hangups, hangup{session: old.id, reason: "the worker opened a newer session"})
	}
	e.byWorker[h.Worker] = append(e.byWorker[h.Worker], s)
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
	s := e.at(ev.session)
	if s == nil || s.state != opening {
		return
	}
	if ev.err != nil {
		e.notResumed(s, ev.err)
		return
	}
	e.become(s, active)
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
