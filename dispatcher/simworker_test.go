package dispatcher

import (
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// simWorker is a worker on simulated time: the agent's behaviour without its
// goroutines. It keeps every report until it is acknowledged.
type simWorker struct {
	s    *sim
	n    int
	mode link.Mode

	id string
	// slots follow the work between least and most, as the agent's do; growing is set while
	// more are opened.
	slots, least, most int
	growing            bool
	idleSince          time.Time
	// life changes with every crash: what was planned before is forgotten.
	life    int
	engine  *simEngine
	session task.ID
	ready   bool // Welcome has arrived
	// frozenUntil holds everything back: frames in both directions and timers.
	frozenUntil time.Time

	claims map[task.Token]*simClaim
	queue  []task.Token
	busy   int
	window window.Window
	asked  int
	seq    uint64
}

type simClaim struct {
	startedAt time.Time
	leaseFrom time.Time
	stopped   bool
	report    *link.Report
}

func (s *sim) newWorker(n int) *simWorker {
	w := &simWorker{s: s, n: n, mode: simMode(n)}
	w.born()
	return w
}

// born starts the worker's process anew.
func (w *simWorker) born() {
	w.life++
	w.id = fmt.Sprintf("w%d-%d", w.n, w.life)
	w.least = 1 + w.s.rng.IntN(4)
	w.slots, w.most, w.growing = w.least, w.least+w.s.rng.IntN(6), false
	w.claims, w.queue, w.busy, w.asked = map[task.Token]*simClaim{}, nil, 0, 0
	w.window = window.Window{}
	w.engine, w.session, w.ready = nil, task.ID{}, false
	w.frozenUntil = time.Time{}
	life := w.life
	w.every(life, time.Second, w.beat)
	w.every(life, 250*time.Millisecond, w.guard)
	w.every(life, 500*time.Millisecond, w.shrink)
}

// later plans something for this life of the worker; a freeze delays it.
func (w *simWorker) later(d time.Duration, do func()) {
	life := w.life
	var run func()
	run = func() {
		switch {
		case w.life != life:
		case w.s.now.Before(w.frozenUntil):
			w.s.after(w.frozenUntil.Sub(w.s.now), run)
		default:
			do()
		}
	}
	w.s.after(d, run)
}

func (w *simWorker) every(life int, period time.Duration, do func()) {
	w.later(period, func() {
		if w.life == life {
			do()
			w.every(life, period, do)
		}
	})
}

// dial opens a session with an engine at random.
func (w *simWorker) dial() {
	if w.engine == nil {
		w.attach(w.s.engines[w.s.rng.IntN(len(w.s.engines))])
	}
}

// move leaves an engine for another one, or for a new session with it, and takes along
// what it holds.
func (w *simWorker) move(elsewhere bool) {
	old, session := w.engine, w.session
	engines := w.s.engines
	if elsewhere {
		engines = slices.DeleteFunc(slices.Clone(engines), func(e *simEngine) bool { return e == old })
	}
	w.send(&link.Bye{Retry: true})
	w.s.after(2*time.Millisecond, func() { w.s.step(old, closed{session: session, reason: link.ErrClosed}) })
	w.s.stats.Moved++
	w.attach(engines[w.s.rng.IntN(len(engines))])
}

// attach opens a session and says Hello.
func (w *simWorker) attach(e *simEngine) {
	w.engine, w.session, w.ready, w.asked = e, w.s.id(), false, 0
	if w.s.chance(10) {
		// It comes back without what it had.
		w.claims, w.queue, w.busy = map[task.Token]*simClaim{}, nil, 0
	}
	session := w.session
	w.s.step(e, opened{session: session, mode: w.mode})
	h := &link.Hello{
		Version: link.Version, Worker: w.id, Slots: w.slots, Queues: []string{task.DefaultQueue}, Runtimes: []string{task.RuntimePython},
		Moves: true,
	}
	if w.most > w.least {
		h.MaxSlots = w.most
	}
	for _, tok := range w.tokens() {
		h.Held = append(h.Held, link.Holding{Token: tok, StartedAt: w.claims[tok].startedAt})
	}
	w.send(h)
}

func (w *simWorker) tokens() []task.Token {
	out := make([]task.Token, 0, len(w.claims))
	for tok := range w.claims {
		out = append(out, tok)
	}
	slices.SortFunc(out, compareTokens)
	return out
}

// send gives a frame to the engine after a transit time; order is kept because the
// delay is the same for all.
func (w *simWorker) send(f link.Frame) {
	e, session := w.engine, w.session
	if e == nil {
		return
	}
	w.s.after(time.Millisecond, func() { w.s.step(e, received{session: session, frame: f}) })
}

// deliver takes a frame of the engine after a transit time.
func (w *simWorker) deliver(session task.ID, f link.Frame) {
	w.later(time.Millisecond, func() {
		if w.session == session && w.engine != nil {
			w.frame(f)
		}
	})
}

// cut is the engine's end of the link closing.
func (w *simWorker) cut(session task.ID) {
	if w.session == session {
		w.drop()
	}
}

// drop ends the link; the engine sees it a moment later, the worker dials again.
func (w *simWorker) drop() {
	if w.engine == nil {
		return
	}
	e, session := w.engine, w.session
	w.s.after(w.s.upTo(20*time.Millisecond), func() { w.s.step(e, closed{session: session, reason: link.ErrClosed}) })
	w.unlink()
}

func (w *simWorker) unlink() {
	w.engine, w.session, w.ready = nil, task.ID{}, false
	w.later(w.s.upTo(3*time.Second), w.dial)
}

// crash kills the process with everything it holds; another one starts later.
func (w *simWorker) crash() {
	if e := w.engine; e != nil {
		session := w.session
		w.s.after(w.s.upTo(20*time.Millisecond), func() { w.s.step(e, closed{session: session, reason: link.ErrClosed}) })
	}
	w.born()
	w.later(w.s.upTo(3*time.Second), w.dial)
}

func (w *simWorker) freeze(d time.Duration) { w.frozenUntil = w.s.now.Add(d) }

func (w *simWorker) frame(f link.Frame) {
	switch f := f.(type) {
	case *link.Welcome:
		w.welcome(f)
	case *link.Offers:
		w.offers(f)
	case *link.Acks:
		for _, a := range f.Items {
			if c := w.claims[a.Token]; c != nil && c.report != nil {
				delete(w.claims, a.Token)
			}
		}
	case *link.BeatAck:
		w.stop(f.Stale)
	case *link.Revoke:
		w.stop(f.Tokens)
	case *link.Recall:
		for n := f.N; n > 0 && len(w.queue) > 0; n-- {
			tok := w.queue[len(w.queue)-1]
			w.queue = w.queue[:len(w.queue)-1]
			w.report(tok, task.Fail(task.EndReturned, "recalled"))
		}
		w.window.Close()
	case *link.Move:
		w.move(f.Elsewhere)
		return
	case *link.Bye:
		w.drop()
	default:
		w.s.t.Errorf("a worker received %T", f)
	}
	w.want()
}

func (w *simWorker) welcome(f *link.Welcome) {
	w.ready = true
	for _, tok := range w.tokens() {
		c := w.claims[tok]
		c.leaseFrom = w.s.now
		if c.report != nil {
			w.send(&link.Outcomes{Items: []link.Report{*c.report}})
		} else if !c.startedAt.IsZero() {
			w.send(&link.Accepts{Items: []link.Accept{{Token: tok, Ago: w.s.now.Sub(c.startedAt)}}})
		}
	}
	w.stop(f.Stale)
}

func (w *simWorker) offers(f *link.Offers) {
	w.asked = max(w.asked-len(f.Items), 0)
	for _, o := range f.Items {
		if w.claims[o.Token] != nil {
			w.s.t.Errorf("claim %+v was offered twice to one worker", o.Token)
		}
		w.claims[o.Token] = &simClaim{leaseFrom: w.s.now}
		w.queue = append(w.queue, o.Token)
	}
	open := w.busy + len(w.queue)
	// An offer may pass the word of slots that were shut.
	if open > w.most+window.Max {
		w.s.t.Errorf("I16: worker %s has %d claims for at most %d slots", w.id, open, w.most)
	}
	w.fill()
	w.grow()
}

// grow opens slots for what waits, a moment later and at most as many as there are.
func (w *simWorker) grow() {
	if w.growing || len(w.queue) == 0 || w.slots == w.most {
		return
	}
	w.growing = true
	w.later(w.s.upTo(200*time.Millisecond), func() {
		w.growing = false
		if n := min(len(w.queue), w.slots, w.most-w.slots); n > 0 {
			w.slots += n
			w.s.stats.Grown += n
			w.resized()
			w.fill()
			w.grow()
		}
	})
}

// shrink shuts a slot that had nothing to do for a while.
func (w *simWorker) shrink() {
	switch {
	case w.busy+len(w.queue) >= w.slots:
		w.idleSince = w.s.now
	case w.slots > w.least && w.s.now.Sub(w.idleSince) > time.Second:
		w.slots--
		w.s.stats.Shrunk++
		w.resized()
	}
}

func (w *simWorker) resized() {
	w.beat()
	w.want()
}

// fill starts waiting claims in free slots.
func (w *simWorker) fill() {
	for w.busy < w.slots && len(w.queue) > 0 {
		tok := w.queue[0]
		w.queue = w.queue[1:]
		w.busy++
		w.claims[tok].startedAt = w.s.now
		w.s.tasks[tok.Task].starts++
		w.send(&link.Accepts{Items: []link.Accept{{Token: tok}}})
		run := w.s.upTo(4 * time.Millisecond)
		if w.s.chance(20) {
			run = w.s.upTo(8 * time.Second)
		}
		if w.s.tasks[tok.Task].timeout > 0 && w.s.chance(20) {
			// It does not keep the timeout.
			run = 2 * time.Minute
		}
		w.later(run, func() { w.finish(tok, run) })
	}
}

func (w *simWorker) finish(tok task.Token, run time.Duration) {
	c := w.claims[tok]
	if c == nil || c.report != nil {
		return
	}
	w.busy--
	out := task.Outcome{End: task.EndSucceeded, Result: []byte("1"), Encoding: task.EncodingJSON, RunTime: run}
	switch {
	case c.stopped:
		out = task.Fail(task.EndCancelled, "stopped")
	case w.s.chance(5):
		out = task.Fail(task.EndRaised, "ValueError")
	case w.s.chance(3):
		out = task.Fail(task.EndReturned, "not today")
	case w.s.chance(2):
		out = task.Fail(task.EndLost, "the runner died")
	default:
		w.s.tasks[tok.Task].finished[tok] = true
	}
	out.RunTime = run
	w.window.Observe(w.s.now, run)
	w.report(tok, out)
	w.fill()
	w.want()
}

func (w *simWorker) report(tok task.Token, out task.Outcome) {
	c := w.claims[tok]
	c.report = &link.Report{Token: tok, Outcome: out}
	if w.ready {
		w.send(&link.Outcomes{Items: []link.Report{*c.report}})
	}
}

// stop ends claims that are no longer in force: waiting ones at once, running ones a
// moment later.
func (w *simWorker) stop(tokens []task.Token) {
	for _, tok := range tokens {
		c := w.claims[tok]
		switch {
		case c == nil || c.report != nil || c.stopped:
		case c.startedAt.IsZero():
			w.queue = slices.DeleteFunc(w.queue, func(q task.Token) bool { return q == tok })
			w.report(tok, task.Fail(task.EndCancelled, "revoked"))
		default:
			c.stopped = true
			w.later(w.s.upTo(5*time.Millisecond), func() { w.finish(tok, time.Second) })
		}
	}
}

func (w *simWorker) want() {
	if w.mode != link.Pull || !w.ready {
		return
	}
	if n := min(w.most, 2*w.slots) + w.window.Size(w.slots) - w.busy - len(w.queue) - w.asked; n > 0 {
		w.asked += n
		w.send(&link.Want{N: n})
	}
}

func (w *simWorker) beat() {
	if !w.ready {
		return
	}
	w.seq++
	b := &link.Beat{Seq: w.seq, Slots: w.slots}
	for _, tok := range w.tokens() {
		b.Held = append(b.Held, link.Holding{Token: tok, StartedAt: w.claims[tok].startedAt})
		// The acknowledgement is taken for granted here; guard is about lost links.
		w.claims[tok].leaseFrom = w.s.now
	}
	w.send(b)
}

// guard stops attempts before their lease ends, when nothing renews it.
func (w *simWorker) guard() {
	for _, tok := range w.tokens() {
		if c := w.claims[tok]; c.report == nil && w.s.now.Sub(c.leaseFrom) > 8*time.Second {
			w.stop([]task.Token{tok})
		}
	}
}
