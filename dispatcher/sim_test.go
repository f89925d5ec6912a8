package dispatcher

import (
	"container/heap"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/task"
)

var (
	simSeed  = flag.Uint64("seed", 0, "run the simulation with this seed only")
	simSeeds = flag.Int("seeds", 30, "how many seeds the simulation runs with")
	simSteps = flag.Int("steps", 0, "run the simulation with as many seeds as it takes for so many steps of the engines; overrules -seeds")
)

// TestSimulation runs engines and the embedded store on simulated time with
// simulated workers, and every fault that one process can see: workers that die,
// freeze, lose their link or come back late, dispatchers and stores that restart,
// replies that are lost. Invariants are checked at every step and at the end. A
// seed decides everything.
//
// One seed makes some 5,000 steps. `make test-simulation` makes a million of them without the
// race detector, which takes 20 s on one core; `make test-long` a thousand times as many.
func TestSimulation(t *testing.T) {
	switch {
	case *simSeed != 0:
		simulate(t, *simSeed)
	case *simSteps > 0:
		simulateLong(t, *simSteps)
	default:
		var total simStats
		for i := range *simSeeds {
			total.add(simulate(t, uint64(i)+1))
		}
		if !testing.Short() {
			// One that nobody has seen yet.
			total.add(simulate(t, rand.Uint64()))
		}
		total.seen(t, *simSeeds)
	}
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64) simStats {
	// Fatalf ends the run in the middle, and the seed is told all the same.
	defer func() {
		if t.Failed() {
			t.Logf("reproduce: go test ./dispatcher -run TestSimulation -seed=%d", seed)
		}
	}()
	s := newSim(t, seed)
	s.run()
	if t.Failed() {
		t.FailNow()
	}
	return s.stats
}

// simulateLong runs as many seeds as it takes for so many steps, on all processors. The first
// seed is drawn, so that each run sees new ones.
func simulateLong(t *testing.T, steps int) {
	first := rand.Uint64()
	fmt.Fprintf(os.Stderr, "simulation: %d steps, seeds from %d on\n", steps, first)
	var (
		seeds, failed atomic.Uint64
		mu            sync.Mutex
		total         simStats
		told          = time.Now()
	)
	t.Run("Seeds", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				defer func() {
					if t.Failed() {
						failed.Store(1)
					}
				}()
				for failed.Load() == 0 {
					got := simulate(t, first+seeds.Add(1))
					mu.Lock()
					total.add(got)
					enough := total.Steps >= steps
					if time.Since(told) > 10*time.Second {
						told = time.Now()
						fmt.Fprintf(os.Stderr, "simulation: %d of %d steps, %d seeds\n", total.Steps, steps, seeds.Load())
					}
					mu.Unlock()
					if enough {
						return
					}
				}
			})
		}
	})
	total.seen(t, int(seeds.Load()))
}

// seen fails the test when a run was long enough to see every fault and did not.
func (a *simStats) seen(t *testing.T, seeds int) {
	t.Logf("%d seeds: %+v", seeds, *a)
	if seeds > 10 && !t.Failed() && (a.Stale == 0 || a.Lost == 0 || a.Lapsed == 0 || a.Resumed == 0 || a.Expired == 0 || a.Cancelled == 0 || a.Stood == 0 || a.Moved == 0 || a.Grown == 0 || a.Shrunk == 0 || a.Overran == 0) {
		t.Errorf("a fault that must be seen was not: %+v", *a)
	}
}

// simStats counts what happened, so that a run without faults cannot pass for one.
type simStats struct {
	Tasks, Steps, Claims, Stood, Recorded, Stale, Duplicate, Lost, Lapsed, Resumed, Expired, Cancelled, Moved, Grown, Shrunk, Overran, Faults int
}

func (a *simStats) add(b simStats) {
	a.Tasks += b.Tasks
	a.Steps += b.Steps
	a.Claims += b.Claims
	a.Stood += b.Stood
	a.Recorded += b.Recorded
	a.Stale += b.Stale
	a.Duplicate += b.Duplicate
	a.Lost += b.Lost
	a.Lapsed += b.Lapsed
	a.Resumed += b.Resumed
	a.Expired += b.Expired
	a.Overran += b.Overran
	a.Cancelled += b.Cancelled
	a.Moved += b.Moved
	a.Grown += b.Grown
	a.Shrunk += b.Shrunk
	a.Faults += b.Faults
}

const (
	simTasks   = 300
	simWorkers = 6
	simFaults  = 30 * time.Second // faults and submissions happen in this time
	simLimit   = 20 * time.Minute // everything must have ended by then
)

type sim struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	start time.Time
	seq   int
	plan  agenda
	stats simStats

	fs      *vfs.MemFS
	store   *pebblestore.Store
	silence func() // stops listening to the store's bell

	engines []*simEngine
	workers []*simWorker
	tasks   map[task.ID]*simTask
	order   []task.ID
}

// simTask is what the world outside knows of a task.
type simTask struct {
	last      *task.Task // record seen last
	epoch     uint64     // of the newest claim
	claim     task.ID
	starts    int
	finished  map[task.Token]bool // attempts that a worker ran to their end
	cancelled bool                // a cancel returned CANCELLED
	timeout   time.Duration
}

// simEngine is a dispatcher with the store's answers under way.
type simEngine struct {
	*Engine
	dead   bool
	ticket int // the timer that counts
}

// item is something that happens at a moment; seq keeps the order of equals.
type item struct {
	at  time.Time
	seq int
	do  func()
}

type agenda []item

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at.Before(a[j].at) || a[i].at.Equal(a[j].at) && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(item)) }
func (a *agenda) Pop() any {
	old := *a
	it := old[len(old)-1]
	*a = old[:len(old)-1]
	return it
}

func newSim(t *testing.T, seed uint64) *sim {
	start := time.Unix(1_700_000_000, 0)
	s := &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 0x7265_6164_6c65)), now: start, start: start,
		fs: vfs.NewMem(), tasks: map[task.ID]*simTask{},
	}
	s.openStore()
	for range 2 {
		s.engines = append(s.engines, s.newEngine())
	}
	for i := range simWorkers {
		w := s.newWorker(i)
		s.workers = append(s.workers, w)
		s.after(s.upTo(time.Second), w.dial)
	}
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.plan, item{at: s.now.Add(d), seq: s.seq, do: do})
}

func (s *sim) upTo(d time.Duration) time.Duration { return time.Duration(s.rng.Int64N(int64(d))) }

func (s *sim) chance(percent int) bool { return s.rng.IntN(100) < percent }

func (s *sim) id() task.ID {
	var id task.ID
	for i := range id {
		id[i] = byte(s.rng.Uint32())
	}
	return id
}

// timeID grows with time, as the store's keys expect.
func (s *sim) timeID() task.ID {
	id := s.id()
	ms := s.now.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

func (s *sim) openStore() {
	st, err := pebblestore.Open(context.Background(), pebblestore.Options{
		Dir: "store", FS: s.fs, Durability: pebblestore.Embedded, Lease: 10 * time.Second, Retention: time.Hour,
		Now: func() time.Time { return s.now }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatalf("open the store: %v", err)
	}
	s.store = st
	s.silence = st.Bell().Listen(s.bell)
}

// bell delivers signals to every engine a moment later; some are lost.
func (s *sim) bell(signals []store.Signal) {
	kept := slices.Clone(signals)
	for _, e := range s.engines {
		if s.rng.IntN(50) > 0 {
			s.after(s.upTo(2*time.Millisecond), func() { s.step(e, rung{signals: kept}) })
		}
	}
}

func (s *sim) newEngine() *simEngine {
	cfg, err := Config{
		ID: s.id(), NewID: s.id, Registrar: noHandlers{}, Jitter: s.rng.Float64,
		Modes: []link.Mode{link.Push, link.Pull}, StreamAge: 15 * time.Second,
	}.withDefaults()
	if err != nil {
		s.t.Fatal(err)
	}
	e := &simEngine{Engine: newEngine(cfg)}
	e.standing = true
	return e
}

// step gives an event to an engine and carries out what it wants.
func (s *sim) step(e *simEngine, ev event) {
	if e.dead {
		return
	}
	s.stats.Steps++
	e.step(s.now, ev)
	r := e.take(s.now)
	for _, x := range r.settles {
		s.call(e, func() event { return s.settle(x) })
	}
	for _, x := range r.renews {
		s.call(e, func() event { return s.renew(x) })
	}
	for _, x := range r.resumes {
		s.call(e, func() event { return s.resume(x) })
	}
	for _, x := range r.claims {
		s.credit(e, x)
		s.call(e, func() event { return s.claim(x) })
	}
	for _, claim := range r.withdraws {
		s.store.Withdraw(claim)
	}
	for _, x := range r.stands {
		s.after(s.upTo(3*time.Millisecond), func() { s.stand(e, x) })
	}
	for _, sig := range r.rings {
		s.after(s.upTo(time.Millisecond), func() { s.store.Bell().Ring(context.Background(), []store.Signal{sig}) })
	}
	for _, x := range r.sends {
		if w := s.workerOf(x.session); w != nil {
			w.deliver(x.session, x.frame)
		}
	}
	for _, x := range r.hangups {
		if w := s.workerOf(x.session); w != nil {
			s.after(s.upTo(time.Millisecond), func() { w.cut(x.session) })
		}
	}
	e.ticket++
	ticket := e.ticket
	if at := e.next(); !at.IsZero() {
		s.after(max(at.Sub(s.now), 0), func() {
			if e.ticket == ticket {
				s.step(e, ticked{})
			}
		})
	}
}

// credit checks a claim before it is made: with it the worker has no more than its slots
// as it told them last, as many again while it may open more, and a window.
func (s *sim) credit(e *simEngine, req store.ClaimRequest) {
	x := e.sessions[req.Session]
	if has := len(x.held) + req.Max; has > min(x.maxSlots, 2*x.slots)+window.Max {
		s.t.Errorf("I16: %d claims for a worker with %d of %d slots", has, x.slots, x.maxSlots)
	}
	if !x.window.Open() && len(x.held)+req.Max > min(x.maxSlots, 2*x.slots) {
		s.t.Errorf("I16: %d and %d claims for a worker with %d of %d slots and no window", len(x.held), req.Max, x.slots, x.maxSlots)
	}
}

// call runs a store operation after a delay and answers after another one. Now and
// then the reply is lost and the operation is repeated, as the loop does.
func (s *sim) call(e *simEngine, op func() event) {
	s.after(s.upTo(3*time.Millisecond), func() {
		if e.dead {
			// The process died with the call under way: it may have been carried out.
			if s.chance(50) {
				op()
			}
			return
		}
		ev := op()
		if s.chance(3) {
			s.stats.Faults++
			s.call(e, op)
			return
		}
		s.after(s.upTo(3*time.Millisecond), func() { s.step(e, ev) })
	})
}

func (s *sim) must(err error) {
	if err != nil {
		s.t.Fatalf("store: %v", err)
	}
}

func (s *sim) claim(req store.ClaimRequest) event {
	got, err := s.store.Claim(context.Background(), s.now, []store.ClaimRequest{req})
	s.must(err)
	for _, c := range got[0] {
		s.claimed(c)
	}
	return claimed{request: req, tasks: got[0]}
}

func (s *sim) claimed(c store.Claimed) {
	m := s.tasks[c.Token.Task]
	again := m.claim == c.Token.Claim && m.epoch == c.Token.Epoch
	if !again && c.Token.Epoch <= m.epoch {
		s.t.Errorf("I5: task %s was claimed under epoch %d after epoch %d", c.Token.Task, c.Token.Epoch, m.epoch)
	}
	m.epoch, m.claim = c.Token.Epoch, c.Token.Claim
	s.stats.Claims++
	s.look(c.Token.Task)
}

// stand gives the store a request to hold. A request outlives its engine, as one does
// whose process dies with its store; what it gets goes back when the lease runs out.
func (s *sim) stand(e *simEngine, req store.ClaimRequest) {
	if e.dead {
		return
	}
	err := s.store.Stand(context.Background(), s.now, req, 10*time.Second, func(tasks []store.Claimed) {
		s.stats.Stood++
		for _, c := range tasks {
			s.claimed(c)
		}
		s.after(s.upTo(3*time.Millisecond), func() { s.step(e, claimed{request: req, tasks: tasks, stood: true}) })
	})
	s.must(err)
}

func (s *sim) settle(x settle) event {
	tok := x.settlement.Token
	before := s.look(tok.Task)
	// As it was before: what goes back may be claimed by a standing request in the same call.
	m := *s.tasks[tok.Task]
	verdicts, err := s.store.Settle(context.Background(), s.now, []store.Settlement{x.settlement})
	s.must(err)
	switch verdicts[0] {
	case task.VerdictRecorded:
		s.stats.Recorded++
		if tok.Epoch != m.epoch || tok.Claim != m.claim {
			s.t.Errorf("I8: an outcome of epoch %d was recorded for task %s, whose claim has epoch %d", tok.Epoch, tok.Task, m.epoch)
		}
		if before.Lease == nil || before.Lease.Claim != tok.Claim || before.Epoch != tok.Epoch {
			s.t.Errorf("I6: task %s recorded an outcome of a claim that is not in force", tok.Task)
		}
		switch x.settlement.Outcome.End {
		case task.EndLost:
			s.stats.Lost++
		case task.EndLapsed:
			s.stats.Lapsed++
		default:
		}
	case task.VerdictStale:
		s.stats.Stale++
	case task.VerdictDuplicate:
		s.stats.Duplicate++
	}
	s.look(tok.Task)
	return settled{session: x.session, token: tok, verdict: verdicts[0]}
}

func (s *sim) renew(x renew) event {
	verdicts, err := s.store.Renew(context.Background(), s.now, x.items)
	s.must(err)
	for _, it := range x.items {
		s.look(it.Token.Task)
	}
	return renewed{session: x.session, seq: x.seq, items: x.items, verdicts: verdicts}
}

func (s *sim) resume(x resume) event {
	verdicts, err := s.store.Resume(context.Background(), s.now, x.request)
	s.must(err)
	if slices.Contains(verdicts, task.VerdictRecorded) {
		s.stats.Resumed++
	}
	for _, h := range x.hello.Held {
		s.look(h.Token.Task)
	}
	return resumed{session: x.session, held: x.hello.Held, verdicts: verdicts}
}

// look reads a record and checks what may never happen to it.
func (s *sim) look(id task.ID) *task.Task {
	tk, err := s.store.Task(context.Background(), id)
	s.must(err)
	m := s.tasks[id]
	if last := m.last; last != nil {
		if last.Status.Terminal() && (tk.Status != last.Status || !tk.FinishedAt.Equal(last.FinishedAt) || tk.ResultSize != last.ResultSize) {
			s.t.Errorf("I2: task %s was %s at %s and is %s at %s", id, last.Status, last.FinishedAt, tk.Status, tk.FinishedAt)
		}
		if tk.Epoch < last.Epoch {
			s.t.Errorf("I5: the epoch of task %s fell from %d to %d", id, last.Epoch, tk.Epoch)
		}
		if last.Lease != nil && tk.Lease != nil && last.Lease.Claim != tk.Lease.Claim && tk.Epoch == last.Epoch {
			s.t.Errorf("I9: two claims of task %s share epoch %d", id, tk.Epoch)
		}
	}
	if tk.Losses > tk.MaxRetries+1 || tk.Lapses > task.MaxLapses || tk.Failures > tk.FunctionRetries+1 {
		s.t.Errorf("I7: task %s has %d losses, %d lapses and %d failures", id, tk.Losses, tk.Lapses, tk.Failures)
	}
	if most := tk.MaxRetries + 1 + tk.FunctionRetries + task.MaxReturns; tk.AttemptCount > most {
		s.t.Errorf("I7: task %s was started %d times, want at most %d", id, tk.AttemptCount, most)
	}
	for _, a := range tk.Attempts {
		// A restart forgets the start, which the worker then says again, and each lease that
		// it finds lasts one length more.
		most := tk.Timeout + task.TimeoutMargin(tk.Timeout) + task.StartMargin + 11*time.Second
		if ran := s.now.Sub(a.StartedAt); tk.Timeout > 0 && a.End == task.EndNone && ran > most {
			s.t.Errorf("task %s runs for %s with a timeout of %s", id, ran, tk.Timeout)
		}
		if a.End == task.EndTimedOut && tk.Failure != nil && a.FinishedAt.Sub(a.StartedAt) < tk.Timeout && tk.Deadline.IsZero() {
			s.t.Errorf("task %s timed out after %s of %s", id, a.FinishedAt.Sub(a.StartedAt), tk.Timeout)
		}
	}
	if tk.Status == task.Failed && tk.Failure.Class == task.ClassWorker && tk.Losses != tk.MaxRetries+1 {
		s.t.Errorf("I7: task %s failed for lost workers after %d losses of %d", id, tk.Losses, tk.MaxRetries+1)
	}
	if m.cancelled && tk.Status != task.Cancelled {
		s.t.Errorf("I13: task %s was cancelled and is %s", id, tk.Status)
	}
	if !tk.Deadline.IsZero() && tk.Failure != nil && tk.Failure.Class == task.ClassDeadline && tk.FinishedAt.Before(tk.Deadline) && !timedOut(tk) {
		s.t.Errorf("I14: task %s failed %s before its deadline", id, tk.Deadline.Sub(tk.FinishedAt))
	}
	m.last = tk
	return tk
}

// timedOut reports whether the last attempt of a task used up its own time limit, which
// fails it like a deadline.
func timedOut(tk *task.Task) bool {
	if tk.Timeout == 0 || len(tk.Attempts) == 0 {
		return false
	}
	a := tk.Attempts[len(tk.Attempts)-1]
	return a.End == task.EndTimedOut && a.FinishedAt.Sub(a.StartedAt) >= tk.Timeout
}

func (s *sim) submit() {
	tk := &task.Task{
		ID: s.timeID(), FunctionName: "f", Queue: task.DefaultQueue, Runtime: task.RuntimePython, Form: task.FormSource,
		Spec: task.Spec{Priority: s.rng.IntN(10), MaxRetries: task.DefaultMaxRetries, FunctionRetries: s.rng.IntN(2)}, Args: task.EncodingJSON, Returns: task.EncodingJSON,
	}
	if s.chance(10) {
		tk.Timeout = time.Second + s.upTo(4*time.Second)
	}
	if s.chance(10) {
		tk.Deadline = s.now.Add(s.upTo(20 * time.Second))
	}
	s.tasks[tk.ID] = &simTask{finished: map[task.Token]bool{}, timeout: tk.Timeout}
	s.order = append(s.order, tk.ID)
	_, err := s.store.Submit(context.Background(), s.now, []store.Submission{{Task: tk}})
	s.must(err)
	s.stats.Tasks++
	if s.chance(10) {
		s.after(s.upTo(10*time.Second), func() { s.cancel(tk.ID) })
	}
}

func (s *sim) cancel(id task.ID) {
	got, err := s.store.Cancel(context.Background(), s.now, []task.ID{id}, false)
	s.must(err)
	if got[0].Status == task.Cancelled {
		s.tasks[id].cancelled = true
	}
	s.look(id)
}

func (s *sim) reap() {
	_, err := s.store.Reap(context.Background(), s.now, 1000)
	s.must(err)
	s.after(250*time.Millisecond, s.reap)
}

// fault breaks something at random.
func (s *sim) fault() {
	s.stats.Faults++
	w := s.workers[s.rng.IntN(len(s.workers))]
	switch s.rng.IntN(10) {
	case 0, 1, 2:
		w.crash()
	case 3, 4, 5:
		w.drop()
	case 6, 7:
		w.freeze(s.upTo(16 * time.Second))
	case 8:
		s.restartEngine(s.rng.IntN(len(s.engines)))
	case 9:
		s.restartStore()
	}
}

// restartEngine kills a dispatcher: its links end and its timers are forgotten.
func (s *sim) restartEngine(i int) {
	old := s.engines[i]
	old.dead = true
	s.engines[i] = s.newEngine()
	for _, w := range s.workers {
		if w.engine == old {
			w.unlink()
		}
	}
}

// restartStore kills the store's process and with it every dispatcher in it.
func (s *sim) restartStore() {
	for i := range s.engines {
		s.restartEngine(i)
	}
	s.silence()
	s.must(s.store.Close())
	s.openStore()
	for _, id := range s.order {
		s.look(id)
	}
}

func (s *sim) run() {
	for range simTasks {
		s.after(s.upTo(simFaults), s.submit)
	}
	s.reap()
	for range 60 {
		s.after(s.upTo(simFaults), s.fault)
	}
	limit := s.start.Add(simLimit)
	end := limit
	for len(s.plan) > 0 && !s.t.Failed() {
		it := heap.Pop(&s.plan).(item)
		if it.at.After(end) {
			break
		}
		s.now = it.at
		it.do()
		if over := s.now.Sub(s.start) > simFaults && len(s.order) == simTasks; over && end.Equal(limit) && s.settledDown() {
			// What is still on its way arrives, and what a session leaked stays.
			end = s.now.Add(30 * time.Second)
		}
	}
	s.check()
	s.silence()
	s.must(s.store.Close())
}

// settledDown reports whether every task has ended and every worker let go.
func (s *sim) settledDown() bool {
	for _, w := range s.workers {
		if len(w.claims) > 0 {
			return false
		}
	}
	for _, id := range s.order {
		if last := s.tasks[id].last; last == nil || !last.Status.Terminal() {
			if !s.look(id).Status.Terminal() {
				return false
			}
		}
	}
	return true
}

// check looks at what must hold when everything is over.
func (s *sim) check() {
	if err := s.store.CheckInvariants(context.Background()); err != nil {
		s.t.Errorf("the store's invariants: %v", err)
	}
	for _, id := range s.order {
		tk := s.look(id)
		m := s.tasks[id]
		switch {
		case !tk.Status.Terminal():
			s.t.Errorf("I1: task %s is %s after %s: %+v", id, tk.Status, s.now.Sub(s.start), tk)
		case tk.Status == task.Completed:
			won := task.Token{Task: id, Epoch: tk.Epoch, Claim: tk.LastClaim, Attempt: tk.AttemptCount}
			if !m.finished[won] {
				s.t.Errorf("I10: task %s is COMPLETED by %+v, which no worker finished", id, won)
			}
		case tk.Status == task.Failed && tk.Failure.Class == task.ClassDeadline:
			s.stats.Expired++
			if tk.Deadline.IsZero() {
				s.stats.Overran++
			}
		case tk.Status == task.Cancelled:
			s.stats.Cancelled++
		}
	}
	for _, e := range s.engines {
		for p := e.all.first; p != nil; p = p.next {
			x := p.of
			if x.state == active && len(x.held) != 0 {
				s.t.Errorf("I16: a session holds %d claims after everything has ended", len(x.held))
			}
		}
	}
}

func (s *sim) workerOf(session task.ID) *simWorker {
	for _, w := range s.workers {
		if w.session == session {
			return w
		}
	}
	return nil
}

// link modes of the simulated workers: by turns push, pull and local.
func simMode(i int) link.Mode { return []link.Mode{link.Push, link.Pull, link.Push}[i%3] }

// noHandlers registers nothing: the engine never asks.
type noHandlers struct{}

func (noHandlers) RegisterHandler(context.Context, string) error { return nil }
