package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// limits is the size of a world: how often what the tasks do not ask for may happen.
type limits struct {
	tasks, crashes, expiries, cancels, repeats, ticks int
	// ordered: what is under way comes in one order, frames first and the ends of attempts last, but for so
	// many delays: what is delayed comes when nothing else is left. Otherwise it comes in any order.
	ordered bool
	delays  int
}

// world is a small cluster: real engines, the real moves of tasks, and what is under way
// between them. Every change is an action of [world.actions]; nothing happens by itself.
type world struct {
	now     time.Time
	left    limits
	store   store.Store
	memory  *memory
	engines []*wEngine
	workers []*wWorker
	links   []*wLink
	ids     int
	// late are the actions that were delayed, by what they are about.
	late []string
	// seen is what the world outside knows of each task.
	seen []*wSeen
	bad  string // the invariant that does not hold
}

// wEngine is a dispatcher: an engine, and its calls to the store with their answers. Each
// kind of call has a queue, as in the loop.
type wEngine struct {
	*Engine
	n, life int
	minted  int
	calls   [4][]any
	answers [4][]event
	rung    []store.Signal
}

// wLink is a session's link: frames in flight in both directions; nil is its end.
type wLink struct {
	session  task.ID
	engine   *wEngine
	worker   *wWorker
	life     int // the worker's
	up, down []link.Frame
	upEnd    bool // the worker sends nothing more
}

type wWorker struct {
	n, life int
	at      *wLink
	ready   bool
	claims  []*wClaim
}

type wClaim struct {
	token   task.Token
	running bool
	report  *link.Report
}

// wSeen is what was seen of a task.
type wSeen struct {
	last      wFacts
	claim     task.Token   // the newest one
	claims    int          // how many there were
	losses    int          // attempts that were ended as lost
	finished  []task.Token // attempts that a worker ran to their end
	acked     []task.Token // successes that a worker was told to be recorded
	cancelled bool         // a client was told so
}

// wFacts is what never changes once a task has ended.
type wFacts struct {
	status    task.Status
	finished  time.Time
	epoch     uint64
	attempts  int
	lastClaim task.ID
}

// wRetries is how many lost workers each task survives.
const wRetries = 1

const (
	callClaim = iota
	callSettle
	callRenew
	callResume
)

var callNames = [...]string{"claim", "settle", "renew", "resume"}

func wID(kind byte, a, b int) task.ID {
	return task.ID{kind, byte(a >> 8), byte(a), byte(b >> 8), byte(b)}
}

// newWorld has both workers attached, each to its dispatcher, and all tasks in the store.
func newWorld(l limits, wrap func(store.Store) store.Store) *world {
	w := &world{now: time.Unix(1_700_000_000, 0), left: l, memory: &memory{}}
	w.store = wrap(w.memory)
	for i := range 2 {
		w.engines = append(w.engines, w.newEngine(i, 0))
		w.workers = append(w.workers, &wWorker{n: i})
	}
	for i, x := range w.workers {
		w.dial(x, w.engines[i])
	}
	w.flush()
	for i := range l.tasks {
		t := &task.Task{
			ID: wID('t', i, 0), FunctionName: "f", Queue: task.DefaultQueue, Runtime: task.RuntimePython, Form: task.FormSource,
			Spec: task.Spec{Priority: 5, MaxRetries: wRetries}, Args: task.EncodingJSON, Returns: task.EncodingJSON,
		}
		w.seen = append(w.seen, &wSeen{})
		_, err := w.store.Submit(context.Background(), w.now, []store.Submission{{Task: t}})
		w.must(err)
	}
	w.hear()
	w.observe()
	return w
}

func (w *world) must(err error) {
	if err != nil {
		w.fail("the store: %v", err)
	}
}

func (w *world) fail(format string, args ...any) {
	if w.bad == "" {
		w.bad = fmt.Sprintf(format, args...)
	}
}

func (w *world) newEngine(n, life int) *wEngine {
	x := &wEngine{n: n, life: life}
	mint := func() task.ID {
		x.minted++
		return wID('c', n*16+life, x.minted)
	}
	cfg, err := Config{ID: wID('d', n, life), NewID: mint, Registrar: noHandlers{}, Jitter: func() float64 { return 0 }, StreamAge: -1}.withDefaults()
	w.must(err)
	x.Engine = newEngine(cfg)
	return x
}

// flush carries everything out that is under way, in one order.
func (w *world) flush() {
	for range 1000 {
		as := w.actions()
		i := slices.IndexFunc(as, func(a action) bool { return !a.fault })
		if i < 0 {
			return
		}
		as[i].do()
	}
}

// action is one thing that may happen next. A fault is what only so many of may happen.
type action struct {
	name  string
	fault bool
	do    func()
}

// actions lists what may happen now, in an order that hangs on the state alone.
func (w *world) actions() []action {
	all := w.possible()
	if !w.left.ordered {
		return all
	}
	var as, open, faults []action
	for _, a := range all {
		switch {
		case a.fault:
			faults = append(faults, a)
		case !slices.Contains(w.late, a.name):
			open = append(open, a)
		default:
			as = append(as, a)
		}
	}
	if len(open) == 0 {
		open = as
	}
	if len(open) == 0 {
		return faults
	}
	as = append([]action{open[0]}, faults...)
	if len(open) > 1 && w.left.delays > 0 {
		as = append(as, action{"not yet: " + open[0].name, true, func() {
			w.left.delays--
			w.late = append(w.late, open[0].name)
		}})
	}
	return as
}

// possible lists everything that may happen.
func (w *world) possible() (as []action) {
	add := func(fault bool, do func(), format string, args ...any) {
		as = append(as, action{fmt.Sprintf(format, args...), fault, do})
	}
	for _, l := range w.links {
		if len(l.up) > 0 {
			add(false, func() { w.up(l) }, "dispatcher %d receives %s of worker %d", l.engine.n, frameText(l.up[0]), l.worker.n)
		}
		if len(l.down) > 0 {
			add(false, func() { w.down(l) }, "worker %d receives %s", l.worker.n, frameText(l.down[0]))
		}
	}
	for _, e := range w.engines {
		for kind := range e.calls {
			if len(e.calls[kind]) > 0 {
				add(false, func() { w.call(e, kind, true) }, "the store carries out a %s of dispatcher %d", callNames[kind], e.n)
				if w.left.repeats > 0 && kind <= callSettle {
					add(true, func() { w.left.repeats--; w.call(e, kind, false) }, "the store carries out a %s of dispatcher %d, and the answer is lost", callNames[kind], e.n)
				}
			}
			if len(e.answers[kind]) > 0 {
				add(false, func() { w.answer(e, kind) }, "dispatcher %d hears the answer to a %s", e.n, callNames[kind])
			}
		}
		if len(e.rung) > 0 {
			add(false, func() { w.bell(e) }, "the bell rings at dispatcher %d", e.n)
		}
	}
	for _, x := range w.workers {
		for _, c := range x.claims {
			if c.running {
				add(false, func() { w.finish(x, c, w.success(c)) }, "worker %d finishes task %d", x.n, c.token.Task[2])
			}
		}
		if x.at == nil {
			for _, e := range w.engines {
				add(false, func() { w.dial(x, e) }, "worker %d dials dispatcher %d", x.n, e.n)
			}
		}
	}
	w.faults(add)
	return as
}

// faults adds what only so many of may happen.
func (w *world) faults(add func(fault bool, do func(), format string, args ...any)) {
	for i, t := range w.memory.tasks {
		if w.left.expiries > 0 && t.Lease != nil {
			add(true, func() { w.left.expiries--; w.expire(t) }, "the lease of task %d runs out", i)
		}
		if w.left.cancels > 0 && !t.Status.Terminal() {
			add(true, func() { w.left.cancels--; w.cancel(i) }, "a client cancels task %d", i)
		}
	}
	if w.left.ticks > 0 {
		add(true, func() { w.left.ticks--; w.tick() }, "time passes until the next deadline of a dispatcher")
	}
	if w.left.crashes == 0 {
		return
	}
	for _, e := range w.engines {
		add(true, func() { w.left.crashes--; w.crashEngine(e) }, "dispatcher %d crashes", e.n)
	}
	for _, x := range w.workers {
		add(true, func() { w.left.crashes--; w.crashWorker(x) }, "worker %d crashes", x.n)
		if x.at != nil {
			add(true, func() { w.left.crashes--; w.cut(x.at) }, "the link of worker %d breaks", x.n)
		}
	}
}

func frameText(f link.Frame) string {
	if f == nil {
		return "the end of the link"
	}
	return fmt.Sprintf("%T", f)[len("*link."):]
}

// step gives an event to an engine and queues what it wants.
func (w *world) step(e *wEngine, ev event) {
	e.step(w.now, ev)
	w.take(e)
}

func (w *world) take(e *wEngine) {
	r := e.take(w.now)
	for _, x := range r.claims {
		s := e.sessions[x.Session]
		if has := len(s.held) + x.Max; has > s.slots+window.Max || !s.window.Open() && has > s.slots {
			w.fail("I16: %d claims for a worker with %d slots", has, s.slots)
		}
		e.calls[callClaim] = append(e.calls[callClaim], x)
	}
	for _, x := range r.settles {
		e.calls[callSettle] = append(e.calls[callSettle], x)
	}
	for _, x := range r.renews {
		e.calls[callRenew] = append(e.calls[callRenew], x)
	}
	for _, x := range r.resumes {
		e.calls[callResume] = append(e.calls[callResume], x)
	}
	for _, x := range r.sends {
		if l := w.linkOf(x.session); l != nil {
			l.down = append(l.down, x.frame)
		}
	}
	for _, x := range r.hangups {
		if l := w.linkOf(x.session); l != nil {
			l.down = append(l.down, nil)
			l.up, l.upEnd = append(l.up, nil), true
		}
	}
}

func (w *world) linkOf(session task.ID) *wLink {
	for _, l := range w.links {
		if l.session == session {
			return l
		}
	}
	return nil
}

func (w *world) dial(x *wWorker, e *wEngine) {
	w.ids++
	l := &wLink{session: wID('s', w.ids, 0), engine: e, worker: x, life: x.life}
	w.links = append(w.links, l)
	x.at, x.ready = l, false
	w.step(e, opened{session: l.session, mode: link.Push})
	h := &link.Hello{Version: link.Version, Worker: fmt.Sprint("w", x.n, x.life), Slots: 1, Queues: []string{task.DefaultQueue}, Runtimes: []string{task.RuntimePython}}
	for _, c := range x.claims {
		held := link.Holding{Token: c.token}
		if c.running {
			held.StartedAt = w.now
		}
		h.Held = append(h.Held, held)
	}
	w.send(x, h)
}

func (w *world) send(x *wWorker, f link.Frame) {
	if x.at != nil && !x.at.upEnd {
		x.at.up = append(x.at.up, f)
	}
}

// up delivers a frame to the dispatcher.
func (w *world) up(l *wLink) {
	f := l.up[0]
	l.up = l.up[1:]
	if f != nil {
		w.step(l.engine, received{session: l.session, frame: f})
		return
	}
	w.step(l.engine, closed{session: l.session, reason: link.ErrClosed})
	l.up = nil
	w.tidy()
}

// down delivers a frame to the worker.
func (w *world) down(l *wLink) {
	f := l.down[0]
	l.down = l.down[1:]
	x := l.worker
	if x.at != l || x.life != l.life {
		w.tidy()
		return
	}
	switch f := f.(type) {
	case nil:
		w.leave(l)
	case *link.Welcome:
		w.welcome(x, f)
	case *link.Offers:
		for _, o := range f.Items {
			c := &wClaim{token: o.Token, running: true}
			x.claims = append(x.claims, c)
			w.send(x, &link.Accepts{Items: []link.Accept{{Token: o.Token}}})
		}
	case *link.Acks:
		for _, a := range f.Items {
			w.acked(x, a)
		}
	case *link.BeatAck:
		w.stop(x, f.Stale)
	case *link.Revoke:
		w.stop(x, f.Tokens)
	case *link.Bye:
		w.leave(l)
	}
}

func (w *world) welcome(x *wWorker, f *link.Welcome) {
	x.ready = true
	for _, c := range slices.Clone(x.claims) {
		if c.report != nil {
			w.send(x, &link.Outcomes{Items: []link.Report{*c.report}})
		} else {
			w.send(x, &link.Accepts{Items: []link.Accept{{Token: c.token}}})
		}
	}
	w.stop(x, f.Stale)
}

func (w *world) acked(x *wWorker, a link.Ack) {
	i := slices.IndexFunc(x.claims, func(c *wClaim) bool { return c.token == a.Token && c.report != nil })
	if i < 0 {
		return
	}
	if a.Verdict == task.VerdictRecorded && x.claims[i].report.Outcome.End == task.EndSucceeded {
		m := w.seen[a.Token.Task[2]]
		m.acked = append(m.acked, a.Token)
	}
	x.claims = slices.Delete(x.claims, i, i+1)
}

func (w *world) stop(x *wWorker, tokens []task.Token) {
	for _, c := range x.claims {
		if c.running && slices.Contains(tokens, c.token) {
			w.finish(x, c, task.Fail(task.EndCancelled, "stopped"))
		}
	}
}

func (w *world) success(c *wClaim) task.Outcome {
	return task.Outcome{End: task.EndSucceeded, Result: fmt.Append(nil, c.token.Epoch), Encoding: task.EncodingJSON, RunTime: 10 * time.Millisecond}
}

func (w *world) finish(x *wWorker, c *wClaim, out task.Outcome) {
	c.running, c.report = false, &link.Report{Token: c.token, Outcome: out}
	if out.End == task.EndSucceeded {
		m := w.seen[c.token.Task[2]]
		m.finished = append(m.finished, c.token)
	}
	if x.ready {
		w.send(x, &link.Outcomes{Items: []link.Report{*c.report}})
	}
}

// leave is the end of a link as the worker sees it.
func (w *world) leave(l *wLink) {
	if l.worker.at == l {
		l.worker.at, l.worker.ready = nil, false
	}
	l.down = nil
	if !l.upEnd {
		l.up, l.upEnd = append(l.up, nil), true
	}
	w.tidy()
}

// tidy forgets links with nothing left on them.
func (w *world) tidy() {
	w.links = slices.DeleteFunc(w.links, func(l *wLink) bool {
		return l.worker.at != l && len(l.up) == 0 && len(l.down) == 0 && l.upEnd
	})
}

// cut breaks a link: what is in flight is lost.
func (w *world) cut(l *wLink) {
	l.up = nil
	l.upEnd = false
	w.leave(l)
}

// crashWorker loses what it holds. What it sent arrives.
func (w *world) crashWorker(x *wWorker) {
	l := x.at
	x.life++
	x.claims = nil
	if l != nil {
		w.leave(l)
	}
}

// crashEngine loses an engine with its calls and answers that were not made or heard. A new
// one takes its place; what was sent arrives.
func (w *world) crashEngine(e *wEngine) {
	w.engines[e.n] = w.newEngine(e.n, e.life+1)
	for _, l := range w.links {
		if l.engine == e {
			l.up, l.upEnd = nil, true
			if l.worker.at == l {
				l.down = append(l.down, nil)
			}
		}
	}
	w.tidy()
}

// tick moves the clock to the next deadline of an engine, and has it do what is due.
func (w *world) tick() {
	var first time.Time
	for _, e := range w.engines {
		if at := e.next(); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.After(w.now) {
		w.now = first
	}
	for _, e := range w.engines {
		w.take(e)
	}
	w.beat()
}

// hear passes the store's signals on. A ring may be missed and may be doubled: what rings
// already is not rung twice.
func (w *world) hear() {
	for _, sig := range w.memory.rung {
		for _, e := range w.engines {
			if !slices.Contains(e.rung, sig) {
				e.rung = append(e.rung, sig)
			}
		}
	}
	w.memory.rung = nil
}

func (w *world) bell(e *wEngine) {
	sig := e.rung[0]
	e.rung = e.rung[1:]
	w.step(e, rung{signals: []store.Signal{sig}})
}

func (w *world) answer(e *wEngine, kind int) {
	ev := e.answers[kind][0]
	e.answers[kind] = e.answers[kind][1:]
	w.step(e, ev)
}
