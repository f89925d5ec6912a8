package worker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// bench runs an agent against dispatcher's ends that the test plays by hand.
type bench struct {
	t     *testing.T
	links chan link.Conn
	pull  bool
	// nowhere fails the agent's dials to another dispatcher.
	nowhere atomic.Bool
	stop    func()
	ended   chan error
}

// terms of the played dispatcher: a beat often enough to be awaited in a test.
var terms = link.Welcome{
	Session: task.ID{1}, Lease: 10 * time.Second, Heartbeat: 20 * time.Millisecond, Margin: time.Second, MaxPayload: 1 << 20,
}

func newBench(t *testing.T, mode link.Mode, slots int, ex worker.Executor) *bench {
	t.Helper()
	return newElasticBench(t, mode, slots, 0, 0, ex)
}

func newElasticBench(t *testing.T, mode link.Mode, slots, most int, idleAfter time.Duration, ex worker.Executor) *bench {
	t.Helper()
	return newPatientBench(t, mode, slots, most, idleAfter, 0, ex)
}

func newPatientBench(t *testing.T, mode link.Mode, slots, most int, idleAfter, starting time.Duration, ex worker.Executor) *bench {
	t.Helper()
	b := &bench{pull: mode == link.Pull, t: t, links: make(chan link.Conn, 16), ended: make(chan error, 1)}
	a, err := worker.New(worker.Config{
		ID: "w", Mode: mode, Slots: slots, MaxSlots: most, IdleAfter: idleAfter, StartPatience: starting,
		Executors: []worker.Executor{ex}, DrainTimeout: 2 * time.Second,
		ReconnectFirst: time.Millisecond, ReconnectLast: 5 * time.Millisecond,
		Dial: func(context.Context) (link.Conn, error) {
			there, here := link.Pipe()
			b.links <- there
			return here, nil
		},
		Move: func(_ context.Context, elsewhere bool) (link.Conn, error) {
			if elsewhere && b.nowhere.Load() {
				return nil, errors.New("nobody else answers")
			}
			there, here := link.Pipe()
			b.links <- there
			return here, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	go func() { b.ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-b.ended:
		case <-time.After(2 * patience):
			t.Error("the agent did not end")
		}
	})
	return b
}

// end is one played session.
type end struct {
	*bench
	conn   link.Conn
	hello  *link.Hello
	frames chan link.Frame
	// reports that arrived and were not asked for yet.
	reports map[task.Token]link.Report
}

// next waits for the agent to dial and say Hello.
func (b *bench) next() *end {
	b.t.Helper()
	select {
	case c := <-b.links:
		e := &end{bench: b, conn: c, frames: make(chan link.Frame, 1024), reports: map[task.Token]link.Report{}}
		var reader sync.WaitGroup
		reader.Go(func() {
			defer close(e.frames)
			for {
				f, err := c.Recv()
				if err != nil {
					return
				}
				e.frames <- f
			}
		})
		b.t.Cleanup(func() { c.Close(nil); reader.Wait() })
		e.hello = expect[*link.Hello](e)
		return e
	case <-time.After(patience):
		b.t.Fatal("the agent did not dial")
		return nil
	}
}

// attach is next with the usual welcome.
func (b *bench) attach() *end {
	e := b.next()
	w := terms
	e.send(&w)
	return e
}

func (e *end) send(f link.Frame) {
	e.t.Helper()
	if err := e.conn.Send(f); err != nil {
		e.t.Fatalf("send %T: %v", f, err)
	}
}

// expect waits for a frame of one type; others are passed over.
func expect[F link.Frame](e *end) F {
	e.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case f, ok := <-e.frames:
			if !ok {
				e.t.Fatalf("the link ended while %T was expected", *new(F))
			}
			if want, ok := f.(F); ok {
				return want
			}
		case <-timer.C:
			e.t.Fatalf("no %T within %s", *new(F), patience)
		}
	}
}

// report waits for the report of one claim; those of others are kept.
func (e *end) report(tok task.Token) link.Report {
	e.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if r, ok := e.reports[tok]; ok {
			delete(e.reports, tok)
			return r
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("no report of %v within %s", tok, patience)
		}
		for _, r := range expect[*link.Outcomes](e).Items {
			e.reports[r.Token] = r
		}
	}
}

func (e *end) ack(tok task.Token) {
	e.t.Helper()
	e.send(&link.Acks{Items: []link.Ack{{Token: tok, Verdict: task.VerdictRecorded}}})
}

func token(n byte) task.Token {
	return task.Token{Task: task.ID{n}, Epoch: 1, Claim: task.ID{9, n}, Attempt: 1}
}

func offer(n byte) link.Offer {
	return link.Offer{Token: token(n), FunctionName: "f", Runtime: "test", Form: task.FormNone, Args: []byte{n}}
}

func offers(ns ...byte) *link.Offers {
	f := &link.Offers{}
	for _, n := range ns {
		f.Items = append(f.Items, offer(n))
	}
	return f
}

// gate is an executor whose attempts run until the test lets them go.
type gate struct {
	started chan *worker.Attempt
	release chan task.Outcome
}

func newGate() *gate {
	return &gate{started: make(chan *worker.Attempt, 16), release: make(chan task.Outcome)}
}

func (g *gate) Runtimes() []string               { return []string{"test"} }
func (g *gate) Start(context.Context, int) error { return nil }
func (g *gate) Close() error                     { return nil }
func (g *gate) Run(ctx context.Context, _ int, a *worker.Attempt) task.Outcome {
	g.started <- a
	select {
	case out := <-g.release:
		return out
	case <-ctx.Done():
		return task.Fail(task.EndCancelled, "stopped")
	}
}

var success = task.Outcome{End: task.EndSucceeded, Result: []byte("r"), Encoding: task.EncodingJSON}

// awaitStart waits for an attempt to start.
func (g *gate) awaitStart(t *testing.T) *worker.Attempt {
	t.Helper()
	select {
	case a := <-g.started:
		return a
	case <-time.After(patience):
		t.Fatal("no attempt started")
		return nil
	}
}

func TestAttemptIsAcceptedReportedAndForgotten(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	e.send(offers(1))
	g.awaitStart(t)
	if got := expect[*link.Accepts](e).Items; len(got) != 1 || got[0].Token != token(1) {
		t.Fatalf("accepted %+v, want claim 1", got)
	}
	g.release <- success
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded || string(r.Outcome.Result) != "r" {
		t.Fatalf("reported %+v", r.Outcome)
	}
	// Held until it is acknowledged, not after.
	if b := expect[*link.Beat](e); len(b.Held) != 1 {
		t.Fatalf("the beat lists %d claims before the acknowledgement, want 1", len(b.Held))
	}
	e.ack(token(1))
	e.awaitHeld(0)
}

// awaitHeld waits for a beat that lists n claims.
func (e *end) awaitHeld(n int) {
	e.t.Helper()
	for range 100 {
		if len(expect[*link.Beat](e).Held) == n {
			return
		}
	}
	e.t.Fatalf("100 beats and none lists %d claims", n)
}

// A result computed while no dispatcher is there is offered again after the next
// Welcome, until it is acknowledged.
func TestOutboxSurvivesReconnects(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	e := b.attach()
	e.send(offers(1))
	g.awaitStart(t)
	e.conn.Close(errors.New("cut"))
	e = b.next()
	if len(e.hello.Held) != 1 || e.hello.Held[0].Token != token(1) || e.hello.Held[0].StartedAt.IsZero() {
		t.Fatalf("Hello lists %+v, want the running claim 1", e.hello.Held)
	}
	w := terms
	e.send(&w)
	if got := expect[*link.Accepts](e).Items; got[0].Token != token(1) {
		t.Fatalf("after the reconnect %+v is accepted, want claim 1", got)
	}
	g.release <- success
	e.report(token(1))
	for range 3 {
		e.conn.Close(errors.New("cut before the acknowledgement"))
		e = b.attach()
		if len(e.hello.Held) != 1 {
			t.Fatalf("Hello lists %d claims, want the unacknowledged one", len(e.hello.Held))
		}
		if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
			t.Fatalf("reported again as %q", r.Outcome.End)
		}
	}
	e.ack(token(1))
	e.awaitHeld(0)
}

func TestStaleClaimsOfWelcomeAreStopped(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	e := b.attach()
	e.send(offers(1, 2))
	g.awaitStart(t)
	expect[*link.Accepts](e)
	e.conn.Close(errors.New("cut"))
	e = b.next()
	w := terms
	w.Stale = []task.Token{token(1), token(2)}
	e.send(&w)
	ends := map[task.Token]task.End{}
	for len(ends) < 2 {
		for _, r := range expect[*link.Outcomes](e).Items {
			ends[r.Token] = r.Outcome.End
		}
	}
	if ends[token(1)] != task.EndCancelled || ends[token(2)] != task.EndCancelled {
		t.Fatalf("stale claims ended as %v", ends)
	}
}

func TestRevokeStopsARunningAttempt(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	e.send(offers(1))
	g.awaitStart(t)
	e.send(&link.Revoke{Tokens: []task.Token{token(7), token(1)}})
	if r := e.report(token(1)); r.Outcome.End != task.EndCancelled {
		t.Fatalf("a revoked attempt is reported as %q", r.Outcome.End)
	}
}

func TestRecallReturnsTheLatestOffers(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	e.send(offers(1, 2, 3, 4))
	g.awaitStart(t)
	e.send(&link.Recall{N: 2})
	var back []byte
	for len(back) < 2 {
		// On a machine that pauses here, the third goes back by itself, after these.
		for _, r := range expect[*link.Outcomes](e).Items {
			if r.Outcome.End != task.EndReturned {
				t.Fatalf("a recalled offer is reported as %q", r.Outcome.End)
			}
			back = append(back, r.Token.Task[0])
		}
	}
	if !slices.Equal(back[:2], []byte{3, 4}) {
		t.Fatalf("recalled %v, want the latest, in their order: 3 and 4", back)
	}
	// More than what waits: the running attempt stays.
	e.send(&link.Recall{N: 100})
	if len(back) == 2 {
		if r := e.report(token(2)); r.Outcome.End != task.EndReturned {
			t.Fatalf("claim 2 ended as %q", r.Outcome.End)
		}
	}
	g.release <- success
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("the running attempt ended as %q", r.Outcome.End)
	}
}

// What was offered ahead of its turn does not wait for the end of a long attempt.
func TestOffersBehindALongAttemptGoBack(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	e.send(offers(1, 2, 3))
	g.awaitStart(t)
	for _, n := range []byte{2, 3} {
		if r := e.report(token(n)); r.Outcome.End != task.EndReturned {
			t.Fatalf("claim %d ended as %q, want it returned", n, r.Outcome.End)
		}
	}
	g.release <- success
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("the running attempt ended as %q", r.Outcome.End)
	}
}

// Without an acknowledged renewal the attempt is stopped before its lease ends.
func TestLeaseRunsOutWhileDetached(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	e := b.next()
	w := terms
	w.Lease, w.Margin = 500*time.Millisecond, 100*time.Millisecond
	e.send(&w)
	e.send(offers(1))
	started := time.Now()
	g.awaitStart(t)
	// Beats arrive and none is acknowledged.
	r := e.report(token(1))
	if took := time.Since(started); r.Outcome.End != task.EndLost || took < 350*time.Millisecond {
		t.Fatalf("reported as %q after %s, want lost and not before the lease less its margin", r.Outcome.End, took)
	}
}

func TestAcknowledgedBeatsRenewTheLease(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	e := b.next()
	w := terms
	w.Lease, w.Margin = 300*time.Millisecond, 100*time.Millisecond
	e.send(&w)
	e.send(offers(1))
	g.awaitStart(t)
	for start := time.Now(); time.Since(start) < 900*time.Millisecond; {
		beat := expect[*link.Beat](e)
		if len(beat.Held) != 1 {
			t.Fatalf("the beat lists %d claims", len(beat.Held))
		}
		e.send(&link.BeatAck{Seq: beat.Seq})
	}
	g.release <- success
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("after three leases of acknowledged beats the attempt ended as %q", r.Outcome.End)
	}
}

func TestPullAsksForWhatItHasRoomFor(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Pull, 3, g).attach()
	if n := expect[*link.Want](e).N; n != 3 {
		t.Fatalf("asks for %d with 3 free slots", n)
	}
	e.send(offers(1, 2))
	g.awaitStart(t)
	g.awaitStart(t)
	long := success
	g.release <- long
	// One slot of the two is free again; the third was asked for before.
	if n := expect[*link.Want](e).N; n < 1 {
		t.Fatalf("asks for %d after a task ended", n)
	}
	g.release <- success
}

func TestPushNeverAsks(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 2, g).attach()
	for range 5 {
		timer := time.NewTimer(patience)
		select {
		case f := <-e.frames:
			if _, ok := f.(*link.Want); ok {
				t.Fatal("a push worker sent Want")
			}
		case <-timer.C:
			t.Fatal("no frame")
		}
		timer.Stop()
	}
}

func TestDrainFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	e := b.attach()
	e.send(offers(1, 2))
	g.awaitStart(t)
	b.stop()
	expect[*link.Drain](e)
	if r := e.report(token(2)); r.Outcome.End != task.EndReturned {
		t.Fatalf("the waiting offer ended as %q", r.Outcome.End)
	}
	e.send(offers(3))
	if r := e.report(token(3)); r.Outcome.End != task.EndReturned {
		t.Fatalf("an offer during the drain ended as %q", r.Outcome.End)
	}
	g.release <- success
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("the running attempt ended as %q", r.Outcome.End)
	}
	for n := byte(1); n <= 3; n++ {
		e.ack(token(n))
	}
	expect[*link.Bye](e)
}

func TestRefusedWorkerEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t, link.Push, 1, newGate())
	e := b.next()
	e.send(&link.Bye{Reason: "wrong version"})
	select {
	case err := <-b.ended:
		if err == nil {
			t.Fatal("a refused worker ended without an error")
		}
		b.ended <- nil // for the cleanup
	case <-time.After(patience):
		t.Fatal("a refused worker goes on")
	}
}

// needy is an executor that asks for its function's bytes.
type needy struct{ gate }

func (n *needy) Run(ctx context.Context, _ int, a *worker.Attempt) task.Outcome {
	b, err := a.Code(ctx)
	if err != nil {
		return task.Fail(task.EndUnreadable, err.Error())
	}
	return task.Outcome{End: task.EndSucceeded, Result: b, Encoding: task.EncodingPickle}
}

func TestFunctionBytes(t *testing.T) {
	t.Parallel()
	e := newBench(t, link.Push, 2, &needy{}).attach()
	with := func(n byte, hash byte) link.Offer {
		o := offer(n)
		o.Form, o.Hash = task.FormSource, [32]byte{hash}
		return o
	}
	e.send(&link.Offers{Items: []link.Offer{with(1, 5), with(2, 5)}})
	if got := expect[*link.NeedFunction](e).Hash; got != [32]byte{5} {
		t.Fatalf("asked for %x", got)
	}
	// Not answered: asked again with a later beat.
	expect[*link.NeedFunction](e)
	e.send(&link.FunctionBytes{Hash: [32]byte{5}, Bytes: []byte("code")})
	seen := map[task.Token]bool{}
	for len(seen) < 2 {
		for _, r := range expect[*link.Outcomes](e).Items {
			if string(r.Outcome.Result) != "code" {
				t.Fatalf("%+v", r.Outcome)
			}
			seen[r.Token] = true
		}
	}
	e.send(&link.Offers{Items: []link.Offer{with(3, 6)}})
	expect[*link.NeedFunction](e)
	e.send(&link.FunctionBytes{Hash: [32]byte{6}, Missing: true})
	if r := e.report(token(3)); r.Outcome.End != task.EndUnreadable {
		t.Fatalf("a function that is gone ends the attempt as %q", r.Outcome.End)
	}
}

// panicky shows that an executor's panic costs one attempt and no slot.
type panicky struct{ gate }

func (p *panicky) Run(_ context.Context, _ int, a *worker.Attempt) task.Outcome {
	if a.Args[0] == 1 {
		panic("boom")
	}
	return success
}

func TestExecutorPanic(t *testing.T) {
	t.Parallel()
	e := newBench(t, link.Push, 1, &panicky{}).attach()
	e.send(offers(1, 2))
	if r := e.report(token(1)); r.Outcome.End != task.EndLost {
		t.Fatalf("a panic is reported as %q", r.Outcome.End)
	}
	if r := e.report(token(2)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("the next attempt ended as %q", r.Outcome.End)
	}
}

// An agent that is asked to move opens the next link first, says good-bye, and takes along
// what it holds: what runs goes on.
func TestMoves(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	old := b.attach()
	if !old.hello.Moves {
		t.Fatal("Hello does not say that the agent moves")
	}
	old.send(offers(1, 2))
	g.awaitStart(t)

	// Nobody else is there: it stays, and can be asked again.
	b.nowhere.Store(true)
	old.send(&link.Move{Reason: "test", Elsewhere: true})
	expect[*link.Beat](old)
	expect[*link.Beat](old)
	b.nowhere.Store(false)
	old.send(&link.Move{Reason: "test", Elsewhere: true})
	if bye := expect[*link.Bye](old); !bye.Retry {
		t.Fatalf("the agent left by %+v, want one that says that it goes on", bye)
	}
	e := b.next()
	if len(e.hello.Held) != 2 {
		t.Fatalf("Hello lists %+v, want both claims", e.hello.Held)
	}
	w := terms
	e.send(&w)
	g.release <- success
	if r := e.report(token(1)); r.Outcome.End != task.EndSucceeded {
		t.Fatalf("claim 1 ended %s", r.Outcome.End)
	}
	g.awaitStart(t)
	g.release <- success
	e.report(token(2))
	e.ack(token(1))
	e.ack(token(2))
	e.awaitHeld(0)
}

// A dispatcher that was moved to and refuses the worker does not end it.
func TestRefusedMove(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 1, g)
	old := b.attach()
	old.send(offers(1))
	g.awaitStart(t)
	old.send(&link.Move{Reason: "test"})
	b.next().send(&link.Bye{Reason: "other workers only"})
	if e := b.attach(); len(e.hello.Held) != 1 {
		t.Fatalf("Hello lists %+v, want the running claim", e.hello.Held)
	}
	select {
	case err := <-b.ended:
		t.Fatalf("the agent ended: %v", err)
	default:
	}
}

// A dispatcher that is not there yet when the agent ends is not waited for.
func TestEndsWhileMoving(t *testing.T) {
	t.Parallel()
	dialling := make(chan struct{})
	there, here := link.Pipe()
	a, err := worker.New(worker.Config{
		ID: "w", Mode: link.Push, Slots: 1, Executors: []worker.Executor{newGate()},
		Dial: func(context.Context) (link.Conn, error) { return here, nil },
		Move: func(ctx context.Context, _ bool) (link.Conn, error) {
			close(dialling)
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	if _, err := there.Recv(); err != nil {
		t.Fatal(err)
	}
	w := terms
	if err := there.Send(&w); err != nil {
		t.Fatal(err)
	}
	if err := there.Send(&link.Move{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	<-dialling
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the agent did not end")
	}
	there.Close(nil)
}

// What an executor says of an attempt is what the worker reports, every time.
func TestTruthful(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	for n := byte(1); n <= 25; n++ {
		e.send(offers(n))
		g.awaitStart(t)
		g.release <- success
		if r := e.report(token(n)); r.Outcome.End != task.EndSucceeded || string(r.Outcome.Result) != "r" {
			t.Fatalf("attempt %d succeeded and was reported as %+v", n, r.Outcome)
		}
		e.ack(token(n))
	}
}
