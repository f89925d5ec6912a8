package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// Agent runs attempts for a dispatcher. Make one with [New], call [Agent.Run] once.
//
// Three kinds of goroutine share the mutex: one per slot takes claims and runs
// them; the session's goroutine alone talks to the dispatcher; the guard stops
// attempts whose lease runs out. Whoever has something to report leaves it in the
// outbox and kicks the session, which sends everything that has gathered.
//
// Beside each field stands who writes it and who reads it. "The slots" are their goroutines and those of
// their executors that call a [Feed]; "the session" is the one goroutine that serves a link, or dials the next one.
type Agent struct {
	// Written by New alone.
	cfg       Config
	log       *slog.Logger
	executors map[string]Executor
	runtimes  []string
	handlers  []string
	code      *codeCache // has a lock of its own
	// callAPI is the method api, made into a value once.
	callAPI func(task.Token) (API, error)
	// kick wakes the session: the outbox has something. Written by all, read by the session.
	kick chan struct{}
	// started is closed by Run when the executors have started; read by who waits for Started.
	started chan struct{}
	// repairing ends when slots that are out of order are waited for no longer. Written by Run before
	// it starts the slots, read by these.
	repairing context.Context //nolint:containedctx // the slots' goroutines share it; it ends with Run

	// mu guards what follows.
	mu sync.Mutex
	// idle are the slots that wait for work, the one that waited shortest last: it is
	// woken first, as its runner and caches are still warm. A slot adds itself, who wakes it takes it off.
	idle []chan struct{}
	// claims is everything that was offered and not acknowledged. The session adds and removes; all read.
	claims map[task.Token]*claim
	// queue are the claims that wait, in the order in which they start. The session adds at the end, a slot
	// takes the first and puts back at the head; who stops a claim or gives it back takes it out.
	queue []*claim
	// active counts the waiting and the running claims. Written where a claim comes or ends, read by the
	// session and the drain.
	active int
	// pool is the number of slots: written by the slots, the grower and those that wake a slot; read by all.
	pool pool
	// fault is why slots are out of order. Written by these, read by all.
	fault string
	// flow bounds the claims that are here; see credit.go.
	flow
	// terms are those of the last Welcome, attachedTo has the address of the dispatcher that gave them,
	// attached says that the link stands. Written by the session; read by all.
	terms      link.Welcome
	attachedTo API
	attached   bool
	// Outbox: what the session sends next, and empties then. accepts and reports are written by the slots
	// and by who ends a claim, needs also by the session.
	accepts []link.Accept
	reports []link.Report
	needs   [][32]byte
	// careful: reports go one by one; alone is the one that is under way, if any. Of the session alone.
	careful bool
	alone   task.Token
	// draining is written by the end of Run's context, ending by Run; read by all.
	draining bool
	ending   bool
}

// New checks the configuration and returns an agent.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, executors: map[string]Executor{}, code: newCodeCache(cfg.CacheBytes),
		kick: make(chan struct{}, 1), started: make(chan struct{}), claims: map[task.Token]*claim{}, pool: newPool(cfg.Slots, cfg.MaxSlots),
	}
	a.callAPI = a.api
	for _, ex := range cfg.Executors {
		for _, key := range ex.Runtimes() {
			if a.executors[key] != nil {
				return nil, fmt.Errorf("worker: two executors for runtime %q", key)
			}
			a.executors[key] = ex
			if len(key) > len("go/")+4*task.MaxNameLength || !utf8.ValidString(key) {
				return nil, fmt.Errorf("worker: runtime or handler %.64q: want UTF-8 of at most %d bytes", key, 4*task.MaxNameLength)
			}
			a.runtimes = append(a.runtimes, key)
			if name, ok := task.GoHandler(key); ok {
				a.handlers = append(a.handlers, name)
			}
		}
	}
	if len(a.runtimes) > task.MaxListed {
		return nil, fmt.Errorf("worker: %d runtimes and handlers: want at most %d", len(a.runtimes), task.MaxListed)
	}
	return a, nil
}

// Run attaches to a dispatcher, again and again, until ctx ends; then it drains:
// running attempts get the drain timeout, everything else is handed back. It
// returns nil after that, or an error when a dispatcher refused the worker for good
// or an executor could not start.
func (a *Agent) Run(ctx context.Context) error {
	for _, ex := range a.cfg.Executors {
		if err := ex.Start(ctx, a.cfg.Slots); err != nil {
			if ctx.Err() != nil {
				return a.closeExecutors() // told to stop before it was ready: nothing was taken
			}
			return errors.Join(fmt.Errorf("start executor for %v: %w", ex.Runtimes(), err), a.closeExecutors())
		}
	}
	close(a.started)
	// Attempts outlive ctx: they end by themselves or with the drain.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	repairing, stopRepairing := context.WithCancel(base)
	defer stopRepairing()
	a.repairing = repairing
	var slots, helpers sync.WaitGroup
	for i := range a.cfg.Slots {
		slots.Go(func() { a.slot(base, i, false) })
	}
	growing, stopGrowing := context.WithCancel(base)
	defer stopGrowing()
	var grower sync.WaitGroup
	grower.Go(func() { a.grow(growing, func(n int) { slots.Go(func() { a.slot(base, n, true) }) }) })
	helpers.Go(func() { a.guard(base) })
	gone := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { a.drain(gone) })
	err := a.sessions(base, gone)
	stop()
	stopGrowing()
	grower.Wait()

	stopRepairing()
	a.mu.Lock()
	a.ending = true
	for len(a.idle) > 0 {
		a.wakeSlot()
	}
	for _, c := range a.claims {
		a.halt(c, stopHandBack)
	}
	a.mu.Unlock()
	slots.Wait()
	cancel()
	helpers.Wait()
	return errors.Join(err, a.closeExecutors())
}

// Started returns a channel that is closed when the executors have started and the agent is
// about to dial; it stays open when one cannot start.
func (a *Agent) Started() <-chan struct{} { return a.started }

func (a *Agent) closeExecutors() error {
	var errs []error
	for _, ex := range a.cfg.Executors {
		errs = append(errs, ex.Close())
	}
	return errors.Join(errs...)
}

// slot runs claims one after another until the agent ends. One that was opened for a claim
// that waits is on its way to it, as one that was woken is.
func (a *Agent) slot(ctx context.Context, n int, woken bool) {
	wake := make(chan struct{}, 1)
	for {
		woken = a.awaitOrder(n, woken)
		c, retired := a.next(wake, woken)
		woken = false
		if retired {
			a.shut(n)
		}
		if c == nil {
			return
		}
		if !a.inOrder(n) {
			a.putBack(c)
			continue
		}
		if a.runAhead(n, c) {
			continue
		}
		runCtx := a.start(ctx, c)
		if runCtx == nil {
			continue
		}
		out := a.run(runCtx, n, c)
		a.finish(c, out)
	}
}

// next waits for a claim and takes it from the queue. There is none for a slot that
// ends with the agent, or retires before it.
func (a *Agent) next(wake chan struct{}, woken bool) (c *claim, retired bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if woken {
		a.pool.woken--
	}
	for len(a.queue) == 0 {
		if a.ending {
			return nil, false
		}
		a.idle = append(a.idle, wake)
		if !a.awaitLocked(wake) {
			return nil, true
		}
	}
	return a.takeLocked(), false
}

// takeLocked takes the first claim that waits; who calls decides what becomes of it.
func (a *Agent) takeLocked() *claim {
	c := a.queue[0]
	a.queue[0] = nil
	a.queue = a.queue[1:]
	a.takenAt = time.Now()
	c.phase, c.stop = ahead, func() {}
	return c
}

// start marks a claim started: the word of it leaves while the executor already
// runs. It returns nil when the claim was stopped meanwhile.
func (a *Agent) start(ctx context.Context, c *claim) context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.stopped != notStopped {
		a.reportLocked(c, c.stopped.end())
		return nil
	}
	c.phase, c.startedAt = running, time.Now()
	runCtx, cancel := context.WithCancel(ctx)
	c.stop = cancel
	a.accepts = append(a.accepts, link.Accept{Token: c.token})
	a.nudge()
	return runCtx
}

// wakeSlot wakes the slot that became idle last, if there is one.
func (a *Agent) wakeSlot() {
	if n := len(a.idle); n > 0 {
		a.idle[n-1] <- struct{}{}
		a.idle = a.idle[:n-1]
		a.pool.woken++
	}
}

func (a *Agent) run(ctx context.Context, slot int, c *claim) (out task.Outcome) {
	defer func() {
		if r := recover(); r != nil {
			a.log.Error("an executor panicked", "task", c.token.Task, "panic", r)
			out = task.Fail(task.EndLost, fmt.Sprintf("the worker's executor panicked: %v", r))
		}
	}()
	a.mu.Lock()
	attempt := a.attemptLocked(c)
	a.mu.Unlock()
	return a.executors[c.offer.Runtime].Run(ctx, slot, attempt)
}

// attemptLocked is what an executor is told of a claim.
func (a *Agent) attemptLocked(c *claim) *Attempt {
	o := c.offer
	return &Attempt{
		Token: c.token, Function: o.Function, FunctionName: o.FunctionName, Runtime: o.Runtime, Form: o.Form, Hash: o.Hash,
		Code: func(ctx context.Context) ([]byte, error) {
			code, err := a.code.get(ctx, o.Hash, func() { a.need(o.Hash) })
			return forPython(o.Python, code), err
		},
		ArgsEncoding: o.ArgsEncoding, Returns: o.Returns, Args: o.Args, Spec: o.Spec, RetriesLeft: o.RetriesLeft, Parent: o.Parent,
		API: a.callAPI, MaxResult: a.terms.MaxPayload, Output: c.output.add,
	}
}

func (a *Agent) finish(c *claim, out task.Outcome) {
	failpoint.Hit(failpoint.AfterRun)
	a.mu.Lock()
	c.stop()
	out.RunTime = time.Since(c.startedAt)
	f := a.finishLocked(c, out)
	a.nudge()
	a.mu.Unlock()
	a.tell(f)
}

// finishLocked ends a claim that an executor had. It returns what the log is to be told.
func (a *Agent) finishLocked(c *claim, out task.Outcome) *failed {
	if out.End == task.EndCancelled && c.stopped != notStopped {
		out = c.stopped.end()
	}
	out = falsified(out)
	switch out.End {
	case task.EndSucceeded, task.EndRaised:
		a.window.Observe(time.Now(), out.RunTime)
	default:
		a.window.Close()
	}
	f := failedOf(c.offer, out)
	a.reportLocked(c, out)
	return f
}

// reportLocked ends a claim: its report waits in the outbox, and is kept after it
// was sent until the dispatcher acknowledges it.
func (a *Agent) reportLocked(c *claim, out task.Outcome) {
	out = bounded(out, a.terms.MaxPayload)
	c.phase, c.offer = ended, nil
	a.active--
	c.report = &link.Report{Token: c.token, Outcome: out, Log: c.output.take()}
	a.reports = append(a.reports, *c.report)
}

// nudge wakes the session's goroutine.
func (a *Agent) nudge() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (a *Agent) need(hash [32]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.needs = append(a.needs, hash)
	a.nudge()
}

// offered takes new claims.
func (a *Agent) offered(items []link.Offer) {
	failpoint.Hit(failpoint.BeforeAccept)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = max(a.asked-len(items), 0)
	now := time.Now()
	for i := range items {
		o := &items[i]
		if a.claims[o.Token] != nil {
			continue
		}
		c := &claim{token: o.Token, offer: o, leaseFrom: now, queuedAt: now}
		a.claims[o.Token] = c
		a.active++
		if a.pool.broken == a.pool.slots {
			a.reportLocked(c, task.Fail(task.EndReturned, a.fault))
			a.nudge()
			continue
		}
		if a.draining || a.executors[o.Runtime] == nil {
			a.reportLocked(c, task.Fail(task.EndReturned, "the worker accepts no more work"))
			a.nudge()
			continue
		}
		a.queue = append(a.queue, c)
		if o.Form != task.FormNone {
			if _, fresh := a.code.entry(o.Hash); fresh {
				a.needs = append(a.needs, o.Hash)
				a.nudge()
			}
		}
		a.wakeSlot()
	}
	a.crowdLocked()
}

// revoked stops claims that are no longer in force.
func (a *Agent) revoked(tokens []task.Token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, tok := range tokens {
		if c := a.claims[tok]; c != nil {
			a.halt(c, stopRevoked)
		}
	}
}

// halt ends a claim before its time. One that an executor has reports when it has
// let go; a waiting one at once.
func (a *Agent) halt(c *claim, why stopReason) {
	switch c.phase {
	case waiting:
		a.queue = slices.DeleteFunc(a.queue, func(q *claim) bool { return q == c })
		out := why.end()
		if why == stopLease {
			out = task.Fail(task.EndReturned, "the lease expired before a slot was free")
		}
		a.reportLocked(c, out)
		a.nudge()
	case ahead, running:
		if c.stopped == notStopped {
			c.stopped = why
			c.stop()
		}
	case ended:
	}
}

// takeBackLocked asks the executors for everything that they have not started.
func (a *Agent) takeBackLocked() {
	for _, c := range a.claims {
		if c.phase == ahead {
			c.stop()
		}
	}
}

// acknowledged forgets reports that were recorded, or refused.
func (a *Agent) acknowledged(items []link.Ack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ack := range items {
		level := slog.LevelInfo
		if c := a.claims[ack.Token]; c != nil && c.phase == ended {
			if c.stopped != notStopped {
				level = slog.LevelDebug // it was stopped as the dispatcher asked for that
			}
			delete(a.claims, ack.Token)
		}
		if ack.Token == a.alone {
			a.alone = task.Token{}
		}
		if ack.Verdict == task.VerdictStale {
			a.log.Log(context.Background(), level, "the dispatcher discarded a late result: its attempt no longer held the task", "task", ack.Token.Task, "attempt", ack.Token.Attempt)
		}
	}
}

// guard stops attempts before their lease ends, when no dispatcher has renewed it:
// another worker may have the task then. It also sees to claims that wait in vain.
func (a *Agent) guard(ctx context.Context) {
	const period = 100 * time.Millisecond
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		a.mu.Lock()
		a.unstickLocked(time.Now())
		if keep := a.terms.Lease - a.terms.Margin; keep > 0 {
			for _, c := range a.claims {
				if c.phase != ended && time.Since(c.leaseFrom) > keep {
					a.log.Warn("lease expired: stopping the attempt", "task", c.token.Task, "attempt", c.token.Attempt)
					a.halt(c, stopLease)
				}
			}
		}
		a.mu.Unlock()
	}
}

// ackWait is how long a drained agent tries to deliver its last reports.
const ackWait = 5 * time.Second

// drain hands back what did not start, gives running attempts their time, and then
// lets the sessions end.
func (a *Agent) drain(gone chan<- struct{}) {
	a.mu.Lock()
	a.draining = true
	for len(a.queue) > 0 {
		a.halt(a.queue[0], stopHandBack)
	}
	a.takeBackLocked()
	left := a.active
	a.nudge()
	a.mu.Unlock()
	a.log.Info("draining", "running", left, "timeout", a.cfg.DrainTimeout)
	if left > 0 {
		time.AfterFunc(max(a.cfg.DrainTimeout, 0), func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, c := range a.claims {
				a.halt(c, stopHandBack)
			}
		})
	}
	limit := ackWait
	if left > 0 {
		limit += max(a.cfg.DrainTimeout, 0)
	}
	time.AfterFunc(limit, func() { close(gone) })
}

// drained reports whether a draining agent has nothing left to say.
func (a *Agent) drained() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.draining && (len(a.claims) == 0 || seededbug.On(seededbug.DrainLoses))
}

// Status describes the agent for people.
type Status struct {
	// Attached says that a dispatcher has welcomed the agent and the link stands.
	Attached bool `json:"attached"`
	Draining bool `json:"draining"`
	Running  int  `json:"running"`
	// Waiting offers have not started yet; Unreported outcomes are not acknowledged yet.
	Waiting    int `json:"waiting"`
	Unreported int `json:"unreported"`
	// Slots are there, Broken of them can run nothing at present, for the reason in Fault.
	Slots  int    `json:"slots"`
	Broken int    `json:"broken"`
	Fault  string `json:"fault,omitempty"`
}

// Healthy says whether a slot can run anything.
func (s Status) Healthy() bool { return s.Broken < s.Slots || s.Slots == 0 }

// Status may be called at any time.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := Status{Attached: a.attached, Draining: a.draining, Unreported: len(a.claims) - a.active,
		Slots: a.pool.slots, Broken: a.pool.broken, Fault: a.fault}
	for _, c := range a.claims {
		switch c.phase {
		case waiting, ahead:
			st.Waiting++
		case running:
			st.Running++
		case ended:
		}
	}
	return st
}
