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
	e   *Engine
	now time.Time
	ids []task.ID
	n   uint32
}

func newFleet(tb testing.TB, sessions int) *fleet {
	tb.Helper()
	f := &fleet{now: time.Unix(1_000_000, 0)}
	cfg, err := Config{ID: f.id(), NewID: f.id, NewFunctionID: f.id, Jitter: func() float64 { return 0.5 }, Modes: []link.Mode{link.Push}}.withDefaults()
	if err != nil {
		tb.Fatal(err)
	}
	f.e = newEngine(cfg)
	f.e.standing = true
	for i := range sessions {
		id := f.id()
		f.ids = append(f.ids, id)
		f.do(opened{session: id, mode: link.Push})
		f.do(received{session: id, frame: &link.Hello{
			Version: link.Version, Worker: fmt.Sprint("w", i), Slots: 4, Queues: []string{"default"}, Runtimes: []string{"python"},
		}})
		f.do(resumed{session: id})
	}
	return f
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

// What an event costs does not depend on the number of sessions: nothing looks at one that nothing
// happened to.
func TestEventsTouchFew(t *testing.T) {
	f := newFleet(t, 2000)
	for _, c := range []struct {
		name string
		ev   event
		most int
	}{
		{"a beat", received{session: f.ids[7], frame: &link.Beat{Seq: 1}}, 1},
		{"a signal", rung{signals: []store.Signal{{Kind: store.Ready, Queue: "default", Runtime: "python"}}}, wakeAtMost},
		{"a signal of another queue", rung{signals: []store.Signal{{Kind: store.Ready, Queue: "other", Runtime: "python"}}}, 0},
		{"another dispatcher's idle slot", rung{signals: []store.Signal{{Kind: store.Wanted, Queue: "default", Runtime: "python", From: f.id(), Count: 1}}}, 0},
		{"a tick", ticked{}, 0},
		{"the end of a link", closed{session: f.ids[9], reason: link.ErrClosed}, 1},
	} {
		f.e.step(f.now, c.ev)
		f.e.timers()
		f.e.remember()
		if n := len(f.e.touched); n > c.most {
			t.Errorf("%s looks at %d sessions, want at most %d", c.name, n, c.most)
		}
		f.do(ticked{})
	}
	// Nobody is heard any more: a deadline looks at those that it is for.
	f.now = f.now.Add(f.e.silence())
	for range f.ids[100:] {
		f.do(ticked{})
	}
	for _, id := range f.ids[100:] {
		if s := f.e.sessions[id]; s.state != silent {
			t.Fatalf("a session that was not heard for %s is %s", f.e.silence(), s.state)
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
				f.e.step(f.now, rung{signals: []store.Signal{{Kind: store.Ready, Queue: "default", Runtime: "python"}}})
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
	is(standing, &s.crew.free)
	s.standing = task.ID{}
	is(idle, &s.crew.free)
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
	is(idle, &s.crew.free)
	take(received{session: s.id, frame: &link.Beat{Seq: 1, Unfit: true}})
	is(gated, nil)
	out = take(received{session: s.id, frame: &link.Beat{Seq: 2}})
	is(claiming, nil)
	take(claimed{request: out.claims[0]})
	is(idle, &s.crew.free)
	// The poll wakes it though nobody rang.
	f.now = f.now.Add(f.e.cfg.PollEvery)
	take(ticked{})
	is(claiming, nil)
}
