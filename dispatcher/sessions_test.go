package dispatcher

import (
	"fmt"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// fleet is an engine with many idle sessions of one crew, as the workers of a real one are.
type fleet struct {
	e      *Engine
	now    time.Time
	ids    []task.ID
	n      uint32
	queues func(i int) []string
}

func newFleet(tb testing.TB, sessions int) *fleet {
	tb.Helper()
	return newFleetOf(tb, sessions, func(int) []string { return []string{"default"} })
}

// newFleetOf is a fleet of which each worker serves the queues of its number.
func newFleetOf(tb testing.TB, sessions int, queues func(i int) []string) *fleet {
	tb.Helper()
	f := &fleet{now: time.Unix(1_000_000, 0), queues: queues}
	cfg, err := Config{ID: f.id(), NewID: f.id, Registrar: noHandlers{}, Jitter: func() float64 { return 0.5 }, Modes: []link.Mode{link.Push}}.withDefaults()
	if err != nil {
		tb.Fatal(err)
	}
	f.e = newEngine(cfg)
	f.e.standing = true
	for i := range sessions {
		id := f.id()
		f.ids = append(f.ids, id)
		f.do(opened{session: id, mode: link.Push})
		f.do(received{session: id, frame: f.hello(i)})
		f.do(resumed{session: id})
	}
	return f
}

func (f *fleet) hello(i int) *link.Hello {
	return &link.Hello{
		Version: link.Version, Worker: fmt.Sprint("w", i), Slots: 4, Queues: f.queues(i), Runtimes: []string{"python"}, Moves: true,
	}
}

func (f *fleet) id() task.ID {
	f.n++
	return task.ID{0: 1, 12: byte(f.n >> 24), 13: byte(f.n >> 16), 14: byte(f.n >> 8), 15: byte(f.n)}
}

// do gives the engine an event, and answers each claim with nothing at once.
func (f *fleet) do(ev event) (claims int) {
	f.e.step(f.now, ev)
	out := f.e.take(f.now)
	for len(out.claims) > 0 {
		claims += len(out.claims)
		for _, r := range out.claims {
			f.e.step(f.now, claimed{request: r})
		}
		out = f.e.take(f.now)
	}
	f.e.next()
	return claims
}

func (f *fleet) beat(i int) { f.do(received{session: f.ids[i], frame: &link.Beat{Seq: 1}}) }

// A signal has a bounded number of sessions ask the store, however many are idle, and all of
// them are reached when there is work for all.
func TestSignalsWakeFew(t *testing.T) {
	f := newFleet(t, 500)
	ready := rung{signals: []store.Signal{{Kind: store.Ready, Queue: "default", Runtime: "python"}}}
	if n := f.do(ready); n != wakeAtMost {
		t.Errorf("one signal led to %d claims, want %d", n, wakeAtMost)
	}
	for count, want := range map[int]int{1: 2, 2: 3, 15: 16, 16: 16, 1000: 16} {
		counted := rung{signals: []store.Signal{{Kind: store.Ready, Queue: "default", Runtime: "python", Count: count}}}
		if n := f.do(counted); n != want {
			t.Errorf("a signal of %d tasks led to %d claims, want %d", count, n, want)
		}
	}
	// Work for everybody: each claim brings a task for each slot that it asks for.
	f.e.step(f.now, ready)
	served, rounds := map[task.ID]int{}, 0
	for out := f.e.take(f.now); len(out.claims) > 0; out = f.e.take(f.now) {
		rounds++
		for _, r := range out.claims {
			served[r.Session] += r.Max
			ev := claimed{request: r}
			for range r.Max {
				ev.tasks = append(ev.tasks, store.Claimed{
					Token: task.Token{Task: f.id(), Epoch: 1, Claim: r.Claim, Attempt: 1}, Task: &task.Task{Queue: "default", Runtime: "python"},
				})
			}
			f.e.step(f.now, ev)
		}
	}
	if len(served) != len(f.ids) {
		t.Errorf("%d of %d sessions got work", len(served), len(f.ids))
	}
	if rounds > 20 {
		t.Errorf("%d rounds of claims until all had work", rounds)
	}
}

// step gives the engine an event and returns the effects, how many sessions the event touched, and how
// many sessions, crews and words of idle slots were looked at for it, and for what was due, in all.
func (f *fleet) step(ev event) (out ready, touched, looked int) {
	before := f.e.looked + f.e.wants.total
	f.e.step(f.now, ev)
	f.e.timers()
	f.e.remember()
	touched = len(f.e.touched)
	out = f.e.take(f.now)
	f.e.next()
	return out, touched, f.e.looked + f.e.wants.total - before
}

// serve has a session ask the store and gives it a task.
func (f *fleet) serve(i int) task.Token {
	s := f.e.sessions[f.ids[i]]
	f.e.rouse(s)
	out := f.e.take(f.now)
	for _, r := range out.claims {
		if r.Session == s.id {
			tok := task.Token{Task: f.id(), Epoch: 1, Claim: r.Claim, Attempt: 1}
			f.do(claimed{request: r, tasks: []store.Claimed{{Token: tok, Task: &task.Task{Queue: "default", Runtime: "python"}}}})
			return tok
		}
	}
	panic("the session asks for nothing")
}

// What an event costs does not depend on the number of sessions: no pass goes over all of them, in a fleet
// of equal workers as in one where each serves a queue of its own beside the common one. The end of the
// dispatcher alone, which says good-bye to each, is not here.
func TestEventsTouchFew(t *testing.T) {
	t.Run("alike", func(t *testing.T) { eventsTouchFew(t, newFleet(t, 2000)) })
	t.Run("own queues", func(t *testing.T) {
		f := newFleetOf(t, 2000, func(i int) []string { return []string{fmt.Sprint("own", i), "default"} })
		eventsTouchFew(t, f)
	})
}

func eventsTouchFew(t *testing.T, f *fleet) {
	check := func(name string, ev event, most int) (out ready) {
		t.Helper()
		out, touched, looked := f.step(ev)
		if touched > most {
			t.Errorf("%s touches %d sessions, want at most %d", name, touched, most)
		}
		if bound := 8*most + 16; looked > bound {
			t.Errorf("%s looks at %d sessions, crews and words, want at most %d", name, looked, bound)
		}
		for len(out.claims) > 0 {
			for _, r := range out.claims {
				f.e.step(f.now, claimed{request: r})
			}
			out.claims = f.e.take(f.now).claims
		}
		return out
	}
	from := func(i int, frame link.Frame) event { return received{session: f.ids[i], frame: frame} }
	signal := func(s store.Signal) event { return rung{signals: []store.Signal{s}} }
	lane := store.Signal{Kind: store.Ready, Queue: "default", Runtime: "python"}

	check("a signal", signal(lane), wakeAtMost)
	check("a signal of another queue", signal(store.Signal{Kind: store.Ready, Queue: "other", Runtime: "python"}), 0)
	check("another dispatcher's idle slot", signal(store.Signal{Kind: store.Wanted, Queue: "default", Runtime: "python", From: f.id(), Count: 1}), 0)
	check("another dispatcher's word", signal(store.Signal{Kind: store.Attending, Runtime: string(link.Push), From: f.id(), Count: 2000}), 0)
	check("a tick", ticked{}, 0)

	// A session from its beginning to its end.
	id := f.id()
	f.ids = append(f.ids, id)
	last := len(f.ids) - 1
	check("a link", opened{session: id, mode: link.Push}, 1)
	check("a Hello", from(last, f.hello(last)), 1)
	check("its answer", resumed{session: id}, 1)
	check("a beat", from(last, &link.Beat{Seq: 1}), 1)
	tok := f.serve(last)
	item := store.Renewal{Token: tok}
	check("a start", from(last, &link.Accepts{Items: []link.Accept{{Token: tok}}}), 1)
	check("output", from(last, &link.Output{Token: tok, Bytes: []byte("x")}), 1)
	check("a beat that holds", from(last, &link.Beat{Seq: 2, Held: []link.Holding{{Token: tok}}}), 1)
	check("its answer", renewed{session: id, seq: 2, items: []store.Renewal{item}, verdicts: []task.Verdict{task.VerdictRecorded}}, 1)
	check("a revocation", signal(store.Signal{Kind: store.Revoked, Task: tok.Task, Claim: tok.Claim}), 1)
	check("a report", from(last, &link.Outcomes{Items: []link.Report{{Token: tok, Outcome: task.Outcome{End: task.EndSucceeded}}}}), 1)
	check("its verdict", settled{session: id, token: tok, verdict: task.VerdictRecorded}, 1)
	check("a need", from(last, &link.NeedFunction{}), 1)
	check("its answer", loaded{session: id}, 1)
	check("too much to read", reads{session: id, behind: true}, 1)
	check("read", reads{session: id}, 1)
	check("a request that is answered with nothing", claimed{request: store.ClaimRequest{Session: id, Claim: f.e.sessions[id].standing}, stood: true}, 1)
	check("out of order", from(last, &link.Beat{Seq: 3, Unfit: true}), 1)
	check("a drain", from(last, &link.Drain{}), 1)
	check("a good-bye", from(last, &link.Bye{}), 1)
	check("the end of its link", closed{session: id, reason: link.ErrClosed}, 1)
	check("a refusal", from(3, &link.Want{N: 1}), 1)
	check("too much asked for", overdone{session: f.ids[4], reason: link.ErrOverrun}, 1)
	check("a move", from(5, &link.Bye{Retry: true}), 1)

	// One is lost with what it holds, and its worker comes back in another.
	f.serve(9)
	check("a loss", closed{session: f.ids[9], reason: link.ErrClosed}, 1)
	id = f.id()
	f.ids = append(f.ids, id)
	f.do(opened{session: id, mode: link.Push})
	check("a Hello of a worker that was lost", from(len(f.ids)-1, f.hello(9)), 2)
	f.do(resumed{session: id})
	f.serve(10)
	check("another loss", closed{session: f.ids[10], reason: link.ErrClosed}, 1)
	end := f.now.Add(f.e.cfg.Grace)
	f.rest(200 * time.Millisecond)
	f.now = end
	check("the end of its grace", ticked{}, 1)
	eventsOfTime(t, f, check)
}

// rest lets time pass in which every worker that is there beats, and does what is due then.
func (f *fleet) rest(d time.Duration) {
	f.now = f.now.Add(d)
	for _, s := range f.e.sessions {
		if s.state == active || s.state == silent {
			s.lastHeard = f.now
		}
	}
	for n := 0; n <= 2*len(f.ids) && !f.e.next().After(f.now); n++ {
		f.do(ticked{})
	}
}

// eventsOfTime is about what comes to all sessions at once.
func eventsOfTime(t *testing.T, f *fleet, check func(string, event, int) ready) {
	// Some are too many here, and none is idle: that is found out of a bounded number.
	for _, s := range f.e.sessions {
		if s.state == active {
			f.e.hold(s, task.Token{Task: f.id(), Epoch: 1}, true)
		}
	}
	f.do(rung{signals: []store.Signal{{Kind: store.Attending, Runtime: string(link.Push), From: f.id()}}})
	moves := 0
	for range settledLooks {
		at := f.e.balance.at
		f.e.balance.at = at.Add(time.Hour)
		f.rest(at.Sub(f.now)) // what else is due then
		f.e.balance.at = at
		for _, s := range check("who has to move", ticked{}, mayMoveLooks/8).sends {
			if _, ok := s.frame.(*link.Move); ok {
				moves++
			}
		}
	}
	if moves != maxMoves {
		t.Errorf("%d workers are asked to move, want %d", moves, maxMoves)
	}
	// Each is told of to people, in turn.
	f.rest(announceEvery)
	f.e.pollAt = f.now.Add(time.Hour) // and not the poll
	f.rest(wantLasts + 1)
	f.now = f.now.Add(announceEvery)
	told := map[string]bool{}
	for n := 0; len(told) < f.e.shown.n && n < len(f.ids); n++ {
		out := check("to be told of", ticked{}, duesAtMost)
		for _, p := range out.presence {
			told[p.Worker] = true
		}
	}
	if len(told) < 1900 {
		t.Errorf("people are told of %d workers, want some 2,000", len(told))
	}
	// The poll reaches all crews.
	f.now, f.e.pollAt = f.now.Add(time.Millisecond), f.now
	check("the poll", ticked{}, pollAtMost)
	for n := 0; f.e.crews.polling != nil && n < len(f.ids); n++ {
		check("the poll", ticked{}, pollAtMost)
	}
	// Nobody is heard any more: a deadline looks at those that it is for.
	f.rest(wantLasts + 1)
	f.e.pollAt = f.now.Add(time.Hour)
	f.now = f.now.Add(f.e.silence())
	for n := 0; n < len(f.ids) && !f.e.next().After(f.now); n++ {
		check("silence", ticked{}, 2*duesAtMost)
	}
	for _, s := range f.e.sessions {
		if s.state == active {
			t.Fatalf("a session that was not heard for %s is active", f.e.silence())
		}
	}
}

// BenchmarkBeat is the heartbeat of one idle session among many.
func BenchmarkBeat(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			f := newFleet(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				f.now = f.now.Add(time.Second / time.Duration(n))
				f.beat(i % n)
			}
		})
	}
}

// BenchmarkLoneTask is a task from the bell to the end of its attempt, among idle sessions.
func BenchmarkLoneTask(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			f := newFleet(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				f.now = f.now.Add(10 * time.Microsecond)
				f.e.step(f.now, rung{signals: []store.Signal{{Kind: store.Ready, Queue: "default", Runtime: "python", Count: 1}}})
				var tok task.Token
				var session task.ID
				for out := f.e.take(f.now); len(out.claims) > 0; out = f.e.take(f.now) {
					for _, r := range out.claims {
						ev := claimed{request: r}
						if session.IsZero() {
							session = r.Session
							tok = task.Token{Task: f.id(), Epoch: 1, Claim: r.Claim, Attempt: 1}
							ev.tasks = []store.Claimed{{Token: tok, Task: &task.Task{Queue: "default", Runtime: "python"}}}
						}
						f.e.step(f.now, ev)
					}
				}
				f.do(received{session: session, frame: &link.Accepts{Items: []link.Accept{{Token: tok}}}})
				f.do(received{session: session, frame: &link.Outcomes{Items: []link.Report{{Token: tok, Outcome: task.Outcome{End: task.EndSucceeded}}}}})
			}
		})
	}
}

// A worker that says good-bye holding nothing has detached, also while a claim is under way for it; what
// that brings goes back.
func TestGoodByeDuringAClaim(t *testing.T) {
	f := newFleet(t, 1)
	id := f.ids[0]
	f.e.rouse(f.e.sessions[id])
	out := f.e.take(f.now)
	if len(out.claims) != 1 {
		t.Fatalf("%d claims, want one", len(out.claims))
	}
	f.do(received{session: id, frame: &link.Bye{Reason: "it drained"}})
	f.e.step(f.now, closed{session: id, reason: link.ErrClosed})
	notes := f.e.take(f.now).notes
	if len(notes) != 1 || notes[0].text != "worker detached" || f.e.sessions[id] != nil {
		t.Errorf("the log says %+v, want that the worker detached", notes)
	}
	tok := task.Token{Task: f.id(), Epoch: 1, Claim: out.claims[0].Claim, Attempt: 1}
	f.e.step(f.now, claimed{request: out.claims[0], tasks: []store.Claimed{{Token: tok, Task: &task.Task{Queue: "default", Runtime: "python"}}}})
	settles := f.e.take(f.now).settles
	if len(settles) != 1 || settles[0].settlement.Outcome.End != task.EndReturned {
		t.Errorf("settled %+v, want that the task goes back", settles)
	}
}

// Between two batches of effects no session is hungry, and idle ones stand in the list in which the
// bell looks for them.
func TestFlowOfASession(t *testing.T) {
	f := newFleet(t, 1)
	f.e.standing = false
	s := f.e.sessions[f.ids[0]]
	is := func(want flow, l *chain[*session]) {
		t.Helper()
		if got := s.flow(); got != want || s.idling.in != l {
			t.Errorf("the session is %s, want %s; in the right list: %v", got, want, s.idling.in == l)
		}
	}
	bell := rung{signals: []store.Signal{{Kind: store.Ready, Queue: "default", Runtime: "python"}}}
	take := func(ev event) ready {
		f.e.step(f.now, ev)
		return f.e.take(f.now)
	}
	// Its standing request was made while the fleet attached.
	is(standing, &s.crew.idle[freeSlots])
	s.standing = task.ID{}
	is(idle, &s.crew.idle[freeSlots])
	out := take(bell)
	is(claiming, nil)
	ev := claimed{request: out.claims[0]}
	var tokens []task.Token
	for range ev.request.Max {
		tok := task.Token{Task: f.id(), Epoch: 1, Claim: ev.request.Claim, Attempt: 1}
		tokens = append(tokens, tok)
		ev.tasks = append(ev.tasks, store.Claimed{Token: tok, Task: &task.Task{Queue: "default", Runtime: "python"}})
	}
	take(ev)
	is(full, nil)
	take(bell) // the bell passes over it, and it looks as soon as it has room
	is(full, nil)
	out = take(received{session: s.id, frame: &link.Outcomes{Items: []link.Report{{Token: tokens[0], Outcome: task.Outcome{End: task.EndSucceeded}}}}})
	is(claiming, nil)
	take(claimed{request: out.claims[0]})
	is(idle, &s.crew.idle[freeSlots])
	take(received{session: s.id, frame: &link.Beat{Seq: 1, Unfit: true}})
	is(gated, nil)
	out = take(received{session: s.id, frame: &link.Beat{Seq: 2}})
	is(claiming, nil)
	take(claimed{request: out.claims[0]})
	is(idle, &s.crew.idle[freeSlots])
	// The poll wakes it though nobody rang.
	f.now = f.now.Add(f.e.cfg.PollEvery)
	take(ticked{})
	is(claiming, nil)
}
