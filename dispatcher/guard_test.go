package dispatcher

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// rig is an engine with helpers for stories that are too long for a transcript.
type rig struct {
	t   *testing.T
	e   *Engine
	now time.Time
	ids int
	out ready
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, now: time.Unix(1_000_000, 0)}
	cfg, err := Config{ID: r.id(), NewID: r.id, Registrar: noHandlers{}, Jitter: func() float64 { return 0 }}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r.e = newEngine(cfg)
	return r
}

func (r *rig) id() task.ID {
	r.ids++
	return task.ID{0: 1, 13: byte(r.ids >> 16), 14: byte(r.ids >> 8), 15: byte(r.ids)}
}

// step takes an event and keeps its effects in out.
func (r *rig) step(ev event) ready {
	r.e.step(r.now, ev)
	r.out = r.e.take(r.now)
	return r.out
}

func (r *rig) pass(d time.Duration) ready {
	r.now = r.now.Add(d)
	return r.step(ticked{})
}

func (r *rig) frame(session task.ID, f link.Frame) ready {
	return r.step(received{session: session, frame: f})
}

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, i)
	}
	return out
}

func hello(worker string, queues, runtimes []string) *link.Hello {
	return &link.Hello{Version: link.Version, Worker: worker, Slots: 1, Queues: queues, Runtimes: runtimes}
}

// open says Hello by a new session.
func (r *rig) open(h *link.Hello) (session task.ID, out ready) {
	session = r.id()
	r.step(opened{session: session, mode: link.Push})
	return session, r.frame(session, h)
}

// attach opens a session and has the store welcome it.
func (r *rig) attach(h *link.Hello) task.ID {
	r.t.Helper()
	session, out := r.open(h)
	if len(out.resumes) != 1 {
		r.t.Fatalf("the worker was not admitted: %+v", out)
	}
	verdicts := make([]task.Verdict, len(h.Held))
	for i := range verdicts {
		verdicts[i] = task.VerdictRecorded
	}
	r.step(resumed{session: session, held: h.Held, verdicts: verdicts})
	return session
}

func (r *rig) offer(req store.ClaimRequest, n int) []task.Token {
	ev := claimed{request: req}
	var tokens []task.Token
	for range n {
		tok := task.Token{Task: r.id(), Epoch: 1, Claim: req.Claim, Attempt: 1}
		tokens = append(tokens, tok)
		ev.tasks = append(ev.tasks, store.Claimed{Token: tok, Task: &task.Task{ID: tok.Task}})
	}
	r.step(ev)
	return tokens
}

func report(end task.End, tokens ...task.Token) *link.Outcomes {
	f := &link.Outcomes{}
	for _, tok := range tokens {
		f.Items = append(f.Items, link.Report{Token: tok, Outcome: task.Outcome{End: end}})
	}
	return f
}

// bye returns the good-bye that was sent last, or nil.
func (r *rig) bye() *link.Bye {
	for _, s := range r.out.sends {
		if b, ok := s.frame.(*link.Bye); ok {
			return b
		}
	}
	return nil
}

func TestPairsOfQueuesAndRuntimes(t *testing.T) {
	for _, c := range []struct {
		queues, runtimes []string
		ok               bool
	}{
		{names("q", 1024), names("r", 4), true},
		{names("q", 4), names("r", 1024), true},
		{names("q", 1024), names("r", 5), false},
		{append(names("q", 500), names("q", 500)...), names("r", 8), true},
		{names("q", 1025), names("r", 1), false},
	} {
		r := newRig(t)
		session, out := r.open(hello("w", c.queues, c.runtimes))
		if got := len(out.resumes) == 1; got != c.ok {
			t.Errorf("%d queues and %d runtimes are admitted: %t, want %t", len(c.queues), len(c.runtimes), got, c.ok)
		}
		if b := r.bye(); !c.ok && (b == nil || b.Retry || !strings.Contains(b.Reason, fmt.Sprint(len(c.queues))) || !strings.Contains(b.Reason, "want at most")) {
			t.Errorf("refused by %+v", b)
		}
		if s := r.e.sessions[session]; c.ok && len(s.hello.Queues)*len(s.hello.Runtimes) > maxPairs {
			t.Errorf("%d pairs", len(s.hello.Queues)*len(s.hello.Runtimes))
		}
	}
}

// A session that serves 1,024 queues and 4 runtimes costs as much as one queue does, and
// tells the other dispatchers of its pairs a few at a time, each once.
func TestManyPairsCostLittle(t *testing.T) {
	r := newRig(t)
	const others = 100
	for i := range others {
		// Each has an offer that waits, and was asked for one just now.
		s := r.attach(hello(fmt.Sprint("busy", i), names("q", 1024), names("r", 4)))
		r.offer(r.e.request(r.e.sessions[s], 2), 2)
		r.e.sessions[s].recalledAt = r.now
	}
	before := r.e.wants.total
	idle := r.attach(hello("idle", names("q", 1024), names("r", 4)))
	r.step(claimed{request: r.e.request(r.e.sessions[idle], 1)})
	if got := len(r.e.wants.words); got != 1 {
		t.Fatalf("%d words are remembered for one session", got)
	}
	// Two looks at each of the others, one of them by remember, at the price of a comparison
	// of their queues and runtimes.
	if got, most := r.e.wants.total-before, 2*(others+1)*(1+1024+4); got > most {
		t.Errorf("%d units of work for one word, want at most %d", got, most)
	}
	rung := map[store.Signal]int{}
	for range 20 {
		if n := len(r.out.rings); n > maxRings {
			t.Fatalf("%d rings at once, want at most %d", n, maxRings)
		}
		for _, sig := range r.out.rings {
			rung[sig]++
		}
		r.pass(wantEvery)
	}
	if len(rung) != 1024*4 {
		t.Fatalf("%d pairs were rung, want %d", len(rung), 1024*4)
	}
	for sig, n := range rung {
		if n != 1 {
			t.Fatalf("%+v was rung %d times", sig, n)
		}
	}
}

// However many pairs another dispatcher wants, a batch of effects is never far away.
func TestForeignWantsAreBounded(t *testing.T) {
	r := newRig(t)
	for i := range 200 {
		s := r.attach(hello(fmt.Sprint("busy", i), names("q", 8), names("r", 8)))
		r.offer(r.e.request(r.e.sessions[s], 2), 2)
		r.e.sessions[s].recalledAt = r.now
	}
	from := r.id()
	for range 20 {
		var signals []store.Signal
		for _, q := range names("q", 100) {
			for _, rt := range names("r", 100) {
				signals = append(signals, store.Signal{Kind: store.Wanted, Queue: q, Runtime: rt, From: from, Count: 1})
			}
		}
		before := r.e.wants.total
		r.step(rung{signals: signals})
		if work := r.e.wants.total - before; work > maxLooks+2*(1024+4) {
			t.Fatalf("%d units of work for one event, want at most %d", work, maxLooks)
		}
		if n := len(r.e.wants.words); n > maxWanted || len(r.e.wants.queue) != n {
			t.Fatalf("%d words and %d places in the queue, want at most %d", n, len(r.e.wants.queue), maxWanted)
		}
		if at := r.e.next(); at.IsZero() || at.After(r.now.Add(lookAgain)) {
			t.Fatalf("the rest is looked at at %s, now it is %s", at, r.now)
		}
		r.now = r.now.Add(time.Millisecond)
	}
	// They are old soon, and all that was remembered goes.
	r.now = r.now.Add(2 * wantLasts)
	for range 2 * maxWanted / 1000 {
		r.pass(lookAgain)
	}
	if n := len(r.e.wants.words); n != 0 {
		t.Fatalf("%d words are left", n)
	}
}

func TestReportsThatNobodyAskedFor(t *testing.T) {
	r := newRig(t)
	h := hello("w", []string{"q"}, []string{"r"})
	session := r.attach(h)
	forged := make([]task.Token, 100_000)
	for i := range forged {
		forged[i] = task.Token{Task: r.id(), Epoch: 1, Claim: r.id(), Attempt: 1}
	}
	out := r.frame(session, report(task.EndSucceeded, forged...))
	if n := len(out.settles); n == 0 || n > spareBase+2 {
		t.Errorf("%d of %d reports go to the store, want at most %d", n, len(forged), spareBase+2)
	}
	if len(out.notes) != 1 {
		t.Errorf("%d lines in the log, want 1", len(out.notes))
	}
	if b := r.bye(); b == nil || !b.Retry || !strings.Contains(b.Reason, "does not hold") {
		t.Fatalf("the session ends by %+v", b)
	}
	// It has to wait, longer each time.
	last := time.Duration(0)
	for range 10 {
		if _, out := r.open(h); len(out.resumes) != 0 {
			t.Fatal("the worker was admitted at once")
		}
		d := r.e.doors.byWorker["w"]
		if d.pause < last || d.pause > r.e.doorLast() {
			t.Fatalf("pause %s after %s", d.pause, last)
		}
		last = d.pause
		r.pass(d.until.Sub(r.now))
		session := r.attach(h)
		r.frame(session, report(task.EndSucceeded, forged...))
	}
	if last != r.e.doorLast() {
		t.Errorf("the last pause is %s, want %s", last, r.e.doorLast())
	}
	// Other workers are not concerned.
	r.attach(hello("other", []string{"q"}, []string{"r"}))
}

// After a reconnect a worker reports what it held, whatever became of it.
func TestReportsAfterAReconnect(t *testing.T) {
	r := newRig(t)
	h := hello("w", []string{"q"}, []string{"r"})
	for range 5000 {
		h.Held = append(h.Held, link.Holding{Token: task.Token{Task: r.id(), Epoch: 1, Claim: r.id(), Attempt: 1}, StartedAt: r.now})
	}
	session, _ := r.open(h)
	stale := make([]task.Verdict, len(h.Held))
	for i := range stale {
		stale[i] = task.VerdictStale
	}
	r.step(resumed{session: session, held: h.Held, verdicts: stale})
	f := &link.Accepts{}
	var tokens []task.Token
	for _, held := range h.Held {
		f.Items = append(f.Items, link.Accept{Token: held.Token})
		tokens = append(tokens, held.Token)
	}
	r.frame(session, f)
	if out := r.frame(session, report(task.EndCancelled, tokens...)); len(out.settles) != len(tokens) || r.bye() != nil {
		t.Fatalf("%d of %d reports were taken, bye %+v", len(out.settles), len(tokens), r.bye())
	}
}

// 300 Hellos of one worker id in 6 seconds reach the store a few times.
func TestHellosOfOneWorkerAreBounded(t *testing.T) {
	r := newRig(t)
	admitted, notes := 0, 0
	for range 300 {
		_, out := r.open(hello("w", []string{"q"}, []string{"r"}))
		admitted += len(out.resumes)
		notes += len(out.notes)
		if b := r.bye(); len(out.resumes) == 0 && (b == nil || !b.Retry) {
			t.Fatalf("refused by %+v", b)
		}
		r.pass(20 * time.Millisecond)
	}
	if most := helloBurst + 6*helloRate; admitted < helloBurst || admitted > most || notes > 10 {
		t.Errorf("%d were admitted, want %d to %d; %d lines in the log", admitted, helloBurst, most, notes)
	}
	if n := len(r.e.sessions); n > 1 {
		t.Errorf("%d sessions of one worker", n)
	}
	// One that dials once a second is always let in, also while the store is away.
	for range 100 {
		r.pass(time.Second)
		session, out := r.open(hello("patient", []string{"q"}, []string{"r"}))
		if len(out.resumes) != 1 {
			t.Fatal("a worker that dials once a second was refused")
		}
		r.step(resumed{session: session, err: task.Errorf(task.CodeUnavailable, "resume", "away")})
	}
	for i := range 3 * maxDoors {
		r.e.doors.of(fmt.Sprint("many", i), r.now)
	}
	if n := len(r.e.doors.byWorker); n > maxDoors || len(r.e.doors.order) != n {
		t.Errorf("%d workers are remembered, %d in order; want at most %d", n, len(r.e.doors.order), maxDoors)
	}
}

// serve answers claims of a session for a time, and returns how often it was given something.
func (r *rig) serve(session task.ID, lasts time.Duration, answer func(tokens []task.Token)) (claims int) {
	end := r.now.Add(lasts)
	for r.now.Before(end) {
		got := r.out.claims
		r.out.claims = nil
		for _, req := range got {
			if req.Session == session {
				claims++
				answer(r.offer(req, req.Max))
			}
		}
		if len(r.out.claims) > 0 {
			continue
		}
		r.e.sessions[session].lastHeard = r.now
		r.pass(min(max(time.Millisecond, r.e.next().Sub(r.now)), time.Second))
	}
	return claims
}

// A worker that returns all that it is offered gets less and less.
func TestReturnedOffersPauseTheSession(t *testing.T) {
	r := newRig(t)
	session := r.attach(hello("w", []string{"q"}, []string{"r"}))
	r.step(claimed{request: r.e.request(r.e.sessions[session], 1)})
	r.step(rung{signals: []store.Signal{{Kind: store.Ready, Queue: "q", Runtime: "r"}}})
	unasked := 0
	claims := r.serve(session, time.Minute, func(tokens []task.Token) {
		out := r.frame(session, report(task.EndReturned, tokens...))
		for _, s := range out.settles {
			if s.settlement.Outcome.Unasked {
				unasked++
			}
		}
	})
	// 50 ms doubled each time are 5 s after seven pauses.
	if claims < 10 || claims > 25 || unasked != claims {
		t.Errorf("%d claims in a minute, %d of them returned unasked", claims, unasked)
	}
	if s := r.e.sessions[session]; s.pause != pauseLast {
		t.Errorf("the pause is %s, want %s", s.pause, pauseLast)
	}
}

// What was asked back, and what waits behind long attempts, costs a worker nothing.
func TestReturnsOnRequestDoNotPause(t *testing.T) {
	r := newRig(t)
	session := r.attach(hello("w", []string{"q"}, []string{"r"}))
	s := r.e.sessions[session]
	tokens := r.offer(r.e.request(s, 1), 5)
	idle := r.attach(hello("idle", []string{"q"}, []string{"r"}))
	r.step(claimed{request: r.e.request(r.e.sessions[idle], 1)})
	recalled := 0
	for _, x := range r.out.sends {
		if f, ok := x.frame.(*link.Recall); ok && x.session == session {
			recalled += f.N
		}
	}
	if recalled == 0 {
		t.Fatal("nothing was recalled")
	}
	out := r.frame(session, report(task.EndReturned, tokens[5-recalled:]...))
	if s.paused || out.settles[0].settlement.Outcome.Unasked {
		t.Fatal("a recall pauses the session")
	}
	// One runs, the others come back by themselves.
	out = r.frame(session, report(task.EndReturned, tokens[1:5-recalled]...))
	if s.paused || out.settles[0].settlement.Outcome.Unasked {
		t.Fatal("what waits behind a long attempt pauses the session when it comes back")
	}
	r.frame(session, report(task.EndReturned, tokens[0]))
	if !s.paused {
		t.Fatal("the last one came back unasked, and the session is not paused")
	}
	// A drain is a reason too.
	other := r.attach(hello("other", []string{"q"}, []string{"r"}))
	tokens = r.offer(r.e.request(r.e.sessions[other], 1), 1)
	r.frame(other, &link.Drain{Reason: "asked to"})
	if out := r.frame(other, report(task.EndReturned, tokens...)); r.e.sessions[other].paused || out.settles[0].settlement.Outcome.Unasked {
		t.Fatal("a drain pauses the session")
	}
}

func TestWhatNoWorkerMayReport(t *testing.T) {
	for _, out := range []task.Outcome{
		{End: "done"}, {End: task.EndLapsed}, {End: task.EndSucceeded, Result: []byte("1"), Encoding: "marshal"},
	} {
		r := newRig(t)
		session := r.attach(hello("w", []string{"q"}, []string{"r"}))
		tokens := r.offer(r.e.request(r.e.sessions[session], 1), 1)
		got := r.frame(session, &link.Outcomes{Items: []link.Report{{Token: tokens[0], Outcome: out}}})
		if b := r.bye(); len(got.settles) != 0 || b == nil || b.Retry {
			t.Errorf("%+v was taken: %+v, %+v", out, got.settles, b)
		}
	}
}

func TestResultOverTheLimit(t *testing.T) {
	r := newRig(t)
	r.e.cfg.MaxPayload = 10
	session := r.attach(hello("w", []string{"q"}, []string{"r"}))
	for size, want := range map[int]task.End{10: task.EndSucceeded, 11: task.EndExhausted} {
		tokens := r.offer(r.e.request(r.e.sessions[session], 1), 1)
		got := r.frame(session, &link.Outcomes{Items: []link.Report{{Token: tokens[0], Outcome: task.Outcome{
			End: task.EndSucceeded, Encoding: task.EncodingJSON, Result: make([]byte, size),
		}}}})
		o := got.settles[0].settlement.Outcome
		if o.End != want || want == task.EndExhausted && (o.Result != nil || !strings.Contains(o.Failure.Message, "11 bytes, the limit is 10")) {
			t.Errorf("a result of %d bytes ends as %+v", size, o)
		}
	}
}

// A worker that cannot be resumed is told why, and blames the store only where it is to blame.
func TestWhatAFailedResumeSays(t *testing.T) {
	for _, c := range []struct {
		err   error
		says  string
		retry bool
	}{
		{task.Errorf(task.CodeUnavailable, "resume", "no route"), "the store does not answer: resume: no route", true},
		{task.Errorf(task.CodeExhausted, "put function", "the disk is full"), "put function: the disk is full", true},
		{fmt.Errorf("handler %q: %w", "resize", task.Errorf(task.CodeConflict, "put function", "used")), `handler "resize": put function: used`, false},
		{task.Errorf(task.CodeInvalid, "put function", "too long"), "put function: too long", false},
	} {
		r := newRig(t)
		session, _ := r.open(hello("w", []string{"q"}, []string{"r"}))
		r.step(resumed{session: session, err: c.err})
		if b := r.bye(); b == nil || b.Reason != c.says || b.Retry != c.retry {
			t.Errorf("%v: told %+v, want %q, retry %t", c.err, b, c.says, c.retry)
		}
	}
}
