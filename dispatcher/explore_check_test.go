package dispatcher

import (
	"context"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// call carries out the first call of a kind. Where its answer is lost the dispatcher makes
// it again.
func (w *world) call(e *wEngine, kind int, heard bool) {
	ev := w.carryOut(e.calls[kind][0])
	w.hear()
	if !heard {
		return
	}
	e.calls[kind] = e.calls[kind][1:]
	if ev != nil {
		e.answers[kind] = append(e.answers[kind], ev)
	}
}

func (w *world) carryOut(call any) event {
	ctx := context.Background()
	switch x := call.(type) {
	case store.ClaimRequest:
		before := w.inForce(x.Claim)
		got, err := w.store.Claim(ctx, w.now, []store.ClaimRequest{x})
		w.must(err)
		for _, c := range got[0] {
			w.claimed(c.Token, before)
		}
		return claimed{request: x, tasks: got[0]}
	case settle:
		return w.settle(x)
	case renew:
		return renewed{session: x.session, seq: x.seq, items: x.items, verdicts: w.renew(x.items)}
	case resume:
		got, err := w.store.Resume(ctx, w.now, x.request)
		w.must(err)
		return resumed{session: x.session, held: x.hello.Held, verdicts: got}
	}
	panic("a call of no kind")
}

// inForce lists the claims of that id that are in force.
func (w *world) inForce(claim task.ID) (out []task.Token) {
	for _, t := range w.memory.tasks {
		if tok, ok := t.Token(); ok && tok.Claim == claim {
			out = append(out, tok)
		}
	}
	return out
}

func (w *world) claimed(tok task.Token, before []task.Token) {
	m := w.seen[tok.Task[2]]
	switch same := func(o task.Token) bool { return o.Task == tok.Task && o.Epoch == tok.Epoch }; {
	case slices.ContainsFunc(before, same):
	case len(before) > 0:
		w.fail("I5: a claim that was repeated was given task %d, too", tok.Task[2])
	case tok.Epoch <= m.claim.Epoch:
		w.fail("I5: task %d was claimed under epoch %d after epoch %d", tok.Task[2], tok.Epoch, m.claim.Epoch)
	default:
		m.claims++
	}
	m.claim = tok
}

func (w *world) settle(x settle) event {
	tok, out := x.settlement.Token, x.settlement.Outcome
	t, m := w.memory.find(tok.Task), w.seen[tok.Task[2]]
	had, held := t.Token()
	started, ended := held && !t.Lease.StartedAt.IsZero(), t.Status.Terminal()
	got, err := w.store.Settle(context.Background(), w.now, []store.Settlement{x.settlement})
	w.must(err)
	if got[0] == task.VerdictRecorded {
		switch {
		case ended:
			w.fail("I11: task %d had ended, and another result was recorded", tok.Task[2])
		case !held || had.Epoch != tok.Epoch || had.Claim != tok.Claim:
			w.fail("I6, I8: an outcome of epoch %d was recorded for task %d, whose claim in force is of epoch %d (%t)", tok.Epoch, tok.Task[2], had.Epoch, held)
		case out.End == task.EndLost || out.End == task.EndLapsed && started:
			m.losses++
		}
	}
	if x.session.IsZero() {
		return nil
	}
	return settled{session: x.session, token: tok, verdict: got[0]}
}

func (w *world) renew(items []store.Renewal) []task.Verdict {
	had := make([]task.Token, len(items))
	for i, it := range items {
		had[i], _ = w.memory.find(it.Token.Task).Token()
	}
	got, err := w.store.Renew(context.Background(), w.now, items)
	w.must(err)
	for i, v := range got {
		if tok := items[i].Token; v == task.VerdictRecorded && (tok.Epoch != had[i].Epoch || tok.Claim != had[i].Claim) {
			w.fail("I8: a renewal of epoch %d was recorded for task %d, whose claim in force is of epoch %d", tok.Epoch, tok.Task[2], had[i].Epoch)
		}
	}
	return got
}

func (w *world) expire(t *task.Task) {
	if !t.Lease.StartedAt.IsZero() {
		w.seen[t.ID[2]].losses++
	}
	w.memory.expire(w.now, t)
	w.hear()
}

func (w *world) cancel(i int) {
	got, err := w.store.Cancel(context.Background(), w.now, []task.ID{w.memory.tasks[i].ID}, false)
	w.must(err)
	w.seen[i].cancelled = got[0].Status == task.Cancelled
	w.hear()
}

// observe checks every record against what was seen of it, after every action.
func (w *world) observe() {
	if len(w.memory.tasks) != len(w.seen) {
		w.fail("I1: %d tasks of %d are there", len(w.memory.tasks), len(w.seen))
		return
	}
	for i, t := range w.memory.tasks {
		m := w.seen[i]
		last := m.last
		m.last = wFacts{t.Status, t.FinishedAt, t.Epoch, t.AttemptCount, t.LastClaim}
		switch {
		case last.status.Terminal() && last != m.last:
			w.fail("I2: task %d was %+v and is %+v", i, last, m.last)
		case t.Epoch < last.epoch:
			w.fail("I5: the epoch of task %d fell from %d to %d", i, last.epoch, t.Epoch)
		case t.Status.Terminal() && t.Lease != nil:
			w.fail("I9: task %d is %s and has a lease", i, t.Status)
		case t.AttemptCount < last.attempts || t.AttemptCount > last.attempts+1 || t.AttemptCount > m.claims:
			w.fail("I7: %d attempts of task %d after %d, with %d claims", t.AttemptCount, i, last.attempts, m.claims)
		case t.Losses != m.losses:
			w.fail("I7: task %d counts %d losses, want %d", i, t.Losses, m.losses)
		case m.losses > wRetries && !t.Status.Terminal():
			w.fail("I7: task %d lost %d workers, may lose %d and goes on", i, m.losses, wRetries)
		case t.Status == task.Failed && m.losses != wRetries+1:
			w.fail("I7: task %d failed after %d losses", i, m.losses)
		case m.cancelled && t.Status != task.Cancelled:
			w.fail("I13: task %d was cancelled and is %s", i, t.Status)
		}
		if t.Status == task.Completed {
			if !slices.ContainsFunc(m.finished, func(tok task.Token) bool { return tok.Claim == t.LastClaim && tok.Epoch == t.Epoch }) {
				w.fail("I10: task %d is completed, and no worker finished that attempt", i)
			}
		}
		for _, tok := range m.acked {
			if t.Status != task.Completed || t.LastClaim != tok.Claim || t.Epoch != tok.Epoch {
				w.fail("I1: a worker was told that its result of task %d is recorded, and the task is %s", i, t.Status)
			}
		}
	}
}

// drain lets everything end that can: no more faults, every worker beats, time passes when
// nothing else is left. A task that has not ended then can never end.
func (w *world) drain() {
	w.left, w.late = limits{}, nil
	limit := w.now.Add(5 * time.Minute)
	for turn := 0; w.bad == ""; turn++ {
		if as := w.actions(); len(as) > 0 {
			as[turn%len(as)].do()
			w.observe()
			continue
		}
		if w.over() {
			break
		}
		if w.now.After(limit) {
			w.fail("I1: tasks can never end: %v", w.memory.text())
		}
		w.tick()
		for _, t := range w.memory.tasks {
			if t.Lease != nil && !t.Lease.Until.After(w.now) {
				w.expire(t)
			}
		}
		w.observe()
	}
	for _, e := range w.engines {
		for p := e.all.first; p != nil && w.bad == ""; p = p.next {
			if p.of.state == active && len(p.of.held) > 0 {
				w.fail("I16: a session of dispatcher %d (worker %s) holds %v after everything has ended: %v", e.n, p.of.hello.Worker, p.of.held, w.memory.text())
			}
		}
	}
}

func (w *world) over() bool {
	for _, x := range w.workers {
		if len(x.claims) > 0 {
			return false
		}
	}
	return !slices.ContainsFunc(w.memory.tasks, func(t *task.Task) bool { return !t.Status.Terminal() })
}

// beat has every attached worker say what it holds.
func (w *world) beat() {
	for _, x := range w.workers {
		if !x.ready {
			continue
		}
		b := &link.Beat{Seq: 1, Slots: 1}
		for _, c := range x.claims {
			h := link.Holding{Token: c.token}
			if c.running {
				h.StartedAt = w.now
			}
			b.Held = append(b.Held, h)
		}
		w.send(x, b)
	}
}
