package pebblestore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// answer is what a standing request was answered with: a task, or nothing.
type answer struct{ claim, task task.ID }

// modelTask is what the model knows of a task that waits.
type modelTask struct {
	id       task.ID
	lane     laneKey
	priority int
	seq      int
	large    bool
	deadline time.Time
	// due is the end of its delay.
	due   time.Time
	ready bool
}

type modelRequest struct {
	claim            task.ID
	queues, runtimes []string
}

// standModel says who is served with what, by looking at all requests and all tasks.
type standModel struct {
	now      time.Time
	tasks    []*modelTask
	requests []modelRequest
	answers  []answer
}

// next is what a request would get.
func (m *standModel) next(queues, runtimes []string) (best *modelTask) {
	for _, t := range m.tasks {
		if !t.ready || !slices.Contains(queues, t.lane.queue) || !slices.Contains(runtimes, t.lane.runtime) {
			continue
		}
		if best == nil || t.priority > best.priority || t.priority == best.priority && t.seq < best.seq {
			best = t
		}
	}
	return best
}

func (m *standModel) expired(t *modelTask) bool {
	return !t.deadline.IsZero() && !m.now.Before(t.deadline)
}

func (m *standModel) take(t *modelTask) {
	m.tasks = slices.DeleteFunc(m.tasks, func(o *modelTask) bool { return o == t })
}

// serve is the end of a commit: who waits longest comes first.
func (m *standModel) serve() {
	keep := m.requests[:0]
	for _, r := range m.requests {
		switch t := m.next(r.queues, r.runtimes); {
		case t == nil:
			keep = append(keep, r)
		case t.large || m.expired(t):
			m.answers = append(m.answers, answer{claim: r.claim})
		default:
			m.take(t)
			m.answers = append(m.answers, answer{r.claim, t.id})
		}
	}
	m.requests = keep
}

func (m *standModel) promote() {
	for _, t := range m.tasks {
		t.ready = t.ready || !t.due.After(m.now)
	}
}

// standWorld is a store beside its model.
type standWorld struct {
	*testing.T
	f       *fixture
	rng     *rand.Rand
	m       standModel
	seq     int
	known   map[task.ID]*modelTask
	held    []task.Token
	answers []answer
	served  int
	// usual are lists that most requests ask for.
	usual [6]modelRequest
	// busy says that more is submitted than asked for; it changes now and then.
	busy bool
}

// lists returns queues and runtimes for a request.
func (w *standWorld) lists() (queues, runtimes []string) {
	if w.rng.IntN(5) == 0 {
		return w.names(modelQueues), w.names(modelRuntimes)
	}
	u := w.usual[w.rng.IntN(len(w.usual))]
	return slices.Clone(u.queues), slices.Clone(u.runtimes)
}

func (w *standWorld) names(of []string) []string {
	out := make([]string, 0, 4)
	for range 1 + w.rng.IntN(3) {
		out = append(out, of[w.rng.IntN(len(of))]) // now and then a name comes twice
	}
	return out
}

var (
	modelQueues   = []string{"a", "b", "c", "d"}
	modelRuntimes = []string{"go/f", "go/g", "go/h", task.RuntimePython}
)

func (w *standWorld) submit() {
	subs := make([]store.Submission, 1+w.rng.IntN(6))
	for i := range subs {
		args := []byte("args")
		large := w.rng.IntN(25) == 0
		if large {
			args = make([]byte, maxArgsKept+1)
		}
		t := sampleTask(args)
		t.Queue, t.Runtime = modelQueues[w.rng.IntN(4)], modelRuntimes[w.rng.IntN(4)]
		t.Priority = w.rng.IntN(3)
		if w.rng.IntN(10) == 0 {
			t.Deadline = w.m.now.Add(time.Duration(1+w.rng.IntN(5)) * time.Second)
		}
		subs[i] = store.Submission{Task: t, Args: args}
		w.seq++
		mt := &modelTask{id: t.ID, lane: laneKey{t.Queue, t.Runtime}, priority: t.Priority, seq: w.seq, large: large, deadline: t.Deadline, ready: true}
		w.known[t.ID] = mt
		w.m.tasks = append(w.m.tasks, mt)
	}
	if _, err := w.f.s.Submit(context.Background(), w.m.now, subs); err != nil {
		w.Fatal(err)
	}
	w.m.serve()
}

func (w *standWorld) stand() {
	r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: "w"}
	r.Queues, r.Runtimes = w.lists()
	w.m.requests = append(w.m.requests, modelRequest{r.Claim, slices.Clone(r.Queues), slices.Clone(r.Runtimes)})
	err := w.f.s.Stand(context.Background(), w.m.now, r, time.Hour, func(tasks []store.Claimed) {
		a := answer{claim: r.Claim}
		for _, c := range tasks {
			a.task = c.Token.Task
			w.held = append(w.held, c.Token)
			w.served++
		}
		w.answers = append(w.answers, a)
	})
	if err != nil {
		w.Fatal(err)
	}
	// What was handed over is not looked at any more.
	clear(r.Queues)
	clear(r.Runtimes)
	w.m.promote()
	w.m.serve()
}

func (w *standWorld) withdraw() {
	if len(w.m.requests) == 0 {
		return
	}
	i := w.rng.IntN(len(w.m.requests))
	w.f.s.Withdraw(w.m.requests[i].claim)
	w.m.requests = slices.Delete(w.m.requests, i, i+1)
}

// claim takes tasks without standing for them.
func (w *standWorld) claim() {
	r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: w.names(modelQueues), Runtimes: w.names(modelRuntimes),
		Max: 1 + w.rng.IntN(3), Until: w.m.now.Add(time.Hour)}
	got, err := w.f.s.Claim(context.Background(), w.m.now, []store.ClaimRequest{r})
	if err != nil {
		w.Fatal(err)
	}
	w.m.promote()
	var want []task.ID
	for len(want) < r.Max {
		t := w.m.next(r.Queues, r.Runtimes)
		if t == nil {
			break
		}
		w.m.take(t)
		if !w.m.expired(t) {
			want = append(want, t.id)
		}
	}
	var have []task.ID
	for _, c := range got[0] {
		have = append(have, c.Token.Task)
		w.held = append(w.held, c.Token)
	}
	if !slices.Equal(have, want) {
		w.Fatalf("claimed %v, want %v", have, want)
	}
	w.m.serve()
}

// settle ends attempts, or gives tasks back at once or with a delay.
func (w *standWorld) settle() {
	var items []store.Settlement
	for range min(len(w.held), 1+w.rng.IntN(3)) {
		i := w.rng.IntN(len(w.held))
		out := task.Outcome{End: task.EndSucceeded, Result: []byte("1"), Encoding: task.EncodingJSON}
		switch w.rng.IntN(5) {
		case 0:
			out = task.Fail(task.EndReturned, "handed back")
		case 1:
			out = task.Fail(task.EndLost, "killed")
		case 2:
			out = task.Fail(task.EndReturned, "handed back unasked")
			out.Unasked = true // it waits
		}
		items = append(items, store.Settlement{Token: w.held[i], Outcome: out, Jitter: w.rng.Float64()})
		w.held = slices.Delete(w.held, i, i+1)
	}
	if _, err := w.f.s.Settle(context.Background(), w.m.now, items); err != nil {
		w.Fatal(err)
	}
	for _, it := range items {
		// How long a delay is, and what has ended, is not the model's affair.
		rec, err := w.f.s.Task(context.Background(), it.Token.Task)
		if err != nil {
			w.Fatal(err)
		}
		if t := w.known[it.Token.Task]; !rec.Status.Terminal() {
			t.due = rec.NotBefore
			t.ready = !t.due.After(w.m.now)
			w.m.tasks = append(w.m.tasks, t)
		}
	}
	w.m.serve()
}

func (w *standWorld) reap() {
	w.f.clock.Advance(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	w.m.now = w.f.clock.Now()
	if w.rng.IntN(2) == 0 {
		return // others look at the clock too
	}
	if _, err := w.f.s.Reap(context.Background(), w.m.now, 1000); err != nil {
		w.Fatal(err)
	}
	w.m.promote()
	w.m.serve()
	w.m.tasks = slices.DeleteFunc(w.m.tasks, w.m.expired)
	w.held = slices.DeleteFunc(w.held, func(tok task.Token) bool { return w.m.expired(w.known[tok.Task]) })
}

func (w *standWorld) step(n int) {
	if w.rng.IntN(40) == 0 {
		w.busy = !w.busy
	}
	submit := 2
	if w.busy {
		submit = 9
	}
	switch op := w.rng.IntN(20); {
	case op < submit:
		w.submit()
	case op < 13:
		w.stand()
	case op < 14:
		w.withdraw()
	case op < 15:
		w.claim()
	case op < 18:
		w.settle()
	default:
		w.reap()
	}
	if !slices.Equal(w.answers, w.m.answers) {
		w.Fatalf("step %d: answered %v, want %v", n, w.answers, w.m.answers)
	}
	w.answers, w.m.answers = nil, nil
	if n%50 == 49 {
		if err := w.f.s.CheckInvariants(context.Background()); err != nil {
			w.Fatalf("step %d: %v", n, err)
		}
	}
}

// TestStandingAgainstAModel: whatever happens, requests are served as by one who looks at
// all of them after each change; also where groups are forgotten at once, or too many to
// be found by lane.
func TestStandingAgainstAModel(t *testing.T) {
	t.Parallel()
	for _, bounds := range []struct{ size, idle int }{{maxStanding, maxIdle}, {maxStanding, 30}, {60, 20}, {100, 0}, {0, 0}} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("size=%d/idle=%d/seed=%d", bounds.size, bounds.idle, seed), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem(); o.Retention = time.Hour })
				f.bound(bounds.size, bounds.idle)
				w := &standWorld{T: t, f: f, rng: rand.New(rand.NewPCG(seed, 7)), known: map[task.ID]*modelTask{}}
				w.m.now = f.clock.Now()
				for i := range w.usual {
					w.usual[i] = modelRequest{queues: w.names(modelQueues), runtimes: w.names(modelRuntimes)}
				}
				for n := range 600 {
					w.step(n)
				}
				if w.served < 50 {
					t.Errorf("%d tasks were served in all: the test says little", w.served)
				}
			})
		}
	}
}

// bound sets other bounds on the memory of groups, and none on those that are told to claim.
func (f *fixture) bound(size, idle int) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.s.waiting.maxSize, f.s.waiting.maxIdle, f.s.waiting.maxTold = size, idle, 1<<30
}
