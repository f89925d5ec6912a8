package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/treadle-dev/treadle/chaos/check"
	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/chaos/netfault"
	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/store/storetap"
)

const (
	// defaultLease is the product's.
	defaultLease = 10 * time.Second
	// frozenBound is how long a task of a silent worker may wait when its lease has ended:
	// for the reaper, and in the queue.
	frozenBound = 2 * time.Second
)

// beyond is longer than a lease and the reaper's period.
func (e *Env) beyond() time.Duration { return e.Lease + 3*time.Second }

// outlasting has tasks run longer than a silent worker keeps them, and tell all the time
// that they do.
func outlasting(e *Env, s *load.Shape) {
	s.MinRun, s.MaxRun, s.Tick, s.Rate = e.Lease+2500*time.Millisecond, e.Lease+4*time.Second, 50*time.Millisecond, 4
	s.Deadline, s.Cancel, s.Pairs, s.MaxTasks = 0, 0, 0, 2
}

// longKey ends the keys of the first tasks of the clients, which are long.
const longKey = "-000001"

// outliving has the first task of each client run longer than a silent worker keeps it, so
// that the worker still has its outcome to tell when the task runs elsewhere.
func outliving(e *Env, s *load.Shape) {
	longRuns(e, s)
	s.Rate, s.Cancel, s.Longs, s.Long = 3, 0, 1, e.Lease+time.Second
}

// holder waits for a worker that runs a long task and returns it.
func (e *Env) holder(ctx context.Context) (w *cluster.Process, err error) {
	err = cluster.Await(ctx, "a long task runs", 15*time.Second, func(context.Context) (bool, error) {
		runs, err := history.Read[history.Run](e.Ledger())
		if err != nil {
			return false, err
		}
		running := map[int]bool{}
		for _, r := range runs {
			if strings.HasSuffix(r.Key, longKey) {
				running[r.Agent] = r.What == history.Started
			}
		}
		i := slices.IndexFunc(e.Workers, func(w *cluster.Process) bool { return running[w.PID()] })
		if i >= 0 {
			w = e.Workers[i]
		}
		return i >= 0, nil
	})
	return w, err
}

// shortLease gives the workers of a scenario less time than the product's default.
func shortLease(e *Env, s *cluster.Spec) {
	e.Lease = min(e.Lease, 4*time.Second)
	s.Lease = e.Lease
}

// freeze stops a process for a while.
func freeze(ctx context.Context, e *Env, p *cluster.Process, d time.Duration, agents ...int) error {
	if err := e.Mark("SIGSTOP "+p.Name, agents...); err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if err := wait(ctx, d); err != nil {
		return err
	}
	return thaw(p)
}

// thaw lets a frozen process go on. One that somebody else has woken was not frozen for as
// long as the scenario says.
func thaw(p *cluster.Process) error {
	if !p.Frozen() {
		return fmt.Errorf("this run proves nothing: %s was frozen, and goes on before its SIGCONT", p.Name)
	}
	return p.Signal(syscall.SIGCONT)
}

// cutOff takes a worker off all dispatchers, longer than its lease.
func cutOff(d netfault.Direction) func(context.Context, *Env) error {
	return func(ctx context.Context, e *Env) error {
		// Let it have something to do.
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
		w, err := e.busiest()
		if err != nil {
			return err
		}
		if err := e.Mark("cut off "+w.Name, w.PID()); err != nil {
			return err
		}
		if err := netfault.Cut(e.Firewall, d, e.Links(w.Name)...); err != nil {
			return err
		}
		if err := wait(ctx, e.beyond()); err != nil {
			return err
		}
		return e.Heal()
	}
}

// busiest returns the worker that has begun the most executions.
func (e *Env) busiest() (best *cluster.Process, err error) {
	runs, err := history.Read[history.Run](e.Ledger())
	if err != nil {
		return nil, err
	}
	begun := map[int]int{}
	for _, r := range runs {
		if r.What == history.Started {
			begun[r.Agent]++
		}
	}
	for _, w := range e.Workers {
		if best == nil || begun[w.PID()] > begun[best.PID()] {
			best = w
		}
	}
	return best, nil
}

// noOverlap checks that a worker that was cut off had stopped what it ran before it ran
// elsewhere: the last word of each execution comes before the first of the next one.
func noOverlap(_ context.Context, e *Env) error {
	runs, err := history.Read[history.Run](e.Ledger())
	if err != nil {
		return err
	}
	type life struct{ first, last int64 }
	byKey := map[string]map[string]*life{}
	for _, r := range runs {
		if byKey[r.Key] == nil {
			byKey[r.Key] = map[string]*life{}
		}
		l := byKey[r.Key][r.Run]
		if l == nil {
			l = &life{first: r.At}
			byKey[r.Key][r.Run] = l
		}
		l.last = r.At
	}
	var errs []error
	pairs := 0
	for key, set := range byKey {
		var lives []*life
		for _, l := range set {
			lives = append(lives, l)
		}
		slices.SortFunc(lives, func(a, b *life) int { return int(a.first - b.first) })
		for i := 1; i < len(lives); i++ {
			pairs++
			if late := time.Duration(lives[i-1].last - lives[i].first); late > 0 {
				errs = append(errs, fmt.Errorf("I9: key %s still ran %s after it had started elsewhere", key, late))
			}
		}
	}
	if pairs == 0 {
		return errors.New("this run proves nothing: no task ran twice")
	}
	e.Note("%d tasks moved, none ran in two places at a time", pairs)
	return errors.Join(errs...)
}

// pointHit is what a process logs when it comes to a kill point that is armed.
const pointHit = `"msg":"failpoint"`

func logged(p *cluster.Process, text string) bool {
	b, err := os.ReadFile(p.LogPath())
	return err == nil && strings.Contains(string(b), text)
}

// lateRenewal is met when a lease was renewed that had run out, and was not reaped yet.
var lateRenewal = Condition{"a lease was renewed that was overdue", func(e *Env, _ *check.Findings) bool {
	entries := e.storeHistory()
	slices.SortFunc(entries, func(a, b storetap.Entry) int { return int(a.Start - b.Start) })
	heard := map[string]int64{} // claim to when it was renewed last
	for i := range entries {
		s := &entries[i]
		if s.Op != "renew" {
			continue
		}
		for _, it := range s.Items {
			if it.Verdict != "recorded" {
				continue
			}
			if last := heard[it.Claim+it.Task]; last != 0 && s.Start-last > e.Lease.Nanoseconds() {
				return true
			}
			heard[it.Claim+it.Task] = s.Start // the lease is counted from when its worker was heard
		}
	}
	return false
}}

// takenOver is met when a dispatcher saw to a task that another one, which was frozen, had
// handed out; where there is one process, nobody can.
var takenOver = Condition{"another dispatcher took over what the frozen one had handed out", func(e *Env, _ *check.Findings) bool {
	faults := e.Faults()
	if e.Embedded() || len(faults) == 0 {
		return e.Embedded()
	}
	claimed := map[string]int{} // task to the process that claimed it last
	entries := e.storeHistory()
	slices.SortFunc(entries, func(a, b storetap.Entry) int { return int(a.Start - b.Start) })
	for i := range entries {
		s := &entries[i]
		if s.Start > e.loadEnd {
			break
		}
		for _, it := range s.Items {
			by, held := claimed[it.Task]
			if held && by != s.Process && s.Start > faults[0].At && (s.Op == "claim" || it.Verdict == "recorded") {
				return true
			}
			switch {
			case s.Op == "claim":
				claimed[it.Task] = s.Process
			case s.Op == "settle" && it.Verdict == "recorded":
				delete(claimed, it.Task)
			}
		}
	}
	return false
}}

// chargedOnce checks that each loss of a worker was charged once.
func chargedOnce(ctx context.Context, e *Env) error {
	list, err := e.final(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		lost := 0
		for _, end := range r.Ends {
			if end == "lost" {
				lost++
			}
		}
		if r.Lost > len(e.Faults()) || r.Lost > lost {
			errs = append(errs, fmt.Errorf("task %s was charged with %d lost workers, its attempts ended as %v", r.ID, r.Lost, r.Ends))
		}
	}
	return errors.Join(errs...)
}

// awaitLog waits for a text in a process's log.
func awaitLog(ctx context.Context, p *cluster.Process, text string, limit time.Duration) error {
	return cluster.Await(ctx, fmt.Sprintf("%s says %q", p.Name, text), limit, func(context.Context) (bool, error) {
		return logged(p, text), nil
	})
}

// freezeScenarios are rows 3, 8, 9, 20, 21, 23 and 26.
func freezeScenarios() []Scenario {
	return []Scenario{
		{
			Row: 3, Name: "worker-freeze", Fault: "worker SIGSTOP longer than its lease, then SIGCONT",
			Expect: "the new attempt's result is kept, the stale one refused", Stores: all, Bound: frozenBound, PlusLease: true, Recovery: Restarts,
			Shape: outliving, Sometimes: []Condition{Requeued, Contested},
			Inject: func(ctx context.Context, e *Env) error {
				w, err := e.holder(ctx)
				if err != nil {
					return err
				}
				if err := freeze(ctx, e, w, e.beyond(), w.PID()); err != nil {
					return err
				}
				return wait(ctx, 2*time.Second) // its reports come in
			},
		},
		{
			Row: 8, Name: "dispatcher-freeze", Fault: "dispatcher SIGSTOP past its sessions, then SIGCONT",
			Expect: "its late reaps and claims are refused by epoch", Stores: []string{"redis", "replicated", "embedded"},
			Shape: longRuns, Recovery: Gap, Sometimes: []Condition{Struck, takenOver}, Strands: true,
			// The others go on; where there is one process, it is frozen for as long as it is.
			BoundOf: func(e *Env) time.Duration {
				if e.Embedded() {
					return e.beyond() + frozenBound
				}
				return 3 * time.Second
			},
			Inject: func(ctx context.Context, e *Env) error {
				if err := freeze(ctx, e, e.Dispatcher(), e.beyond()); err != nil {
					return err
				}
				return wait(ctx, 2*time.Second)
			},
		},
		{
			Row: 9, Name: "two-reapers", Fault: "both dispatchers reap the same leases at once",
			Expect: "one requeue", Stores: []string{"redis", "replicated"},
			Shape: func(e *Env, s *load.Shape) {
				outliving(e, s)
				// What the late reaper has found still runs elsewhere when it goes on: all tasks are
				// long, and few enough to start elsewhere at once.
				s.Longs, s.MaxTasks, s.Long = 2, 2, 6500*time.Millisecond
			},
			// One of them stops between its look at what is overdue and what it does about it,
			// until the other has taken the tasks and they run elsewhere.
			Spec: func(e *Env, s *cluster.Spec) {
				shortLease(e, s)
				s.Once["dispatcher-1"] = []string{fmt.Sprintf("%s=%s=pause@1", failpoint.Env, failpoint.MidReap)}
			},
			Sometimes: []Condition{Requeued, {"a reaper was late", func(e *Env, _ *check.Findings) bool {
				return logged(e.Process("dispatcher-1"), pointHit)
			}}},
			Inject: func(ctx context.Context, e *Env) error {
				w, err := e.holder(ctx)
				if err != nil {
					return err
				}
				if err := freeze(ctx, e, w, 6*time.Second, w.PID()); err != nil {
					return err
				}
				return wait(ctx, 6*time.Second) // until the late reaper has gone on
			},
			After: chargedOnce,
		},
		{
			Row: 9, Name: "late-renewal", Fault: "both dispatchers reap a lease that its worker renews at that moment",
			Expect: "the lease stands", Stores: []string{"redis", "replicated"},
			Shape: func(e *Env, s *load.Shape) {
				outliving(e, s)
				s.Longs, s.MaxTasks, s.Long = 2, 2, 8*time.Second
			},
			// Both stop when they have found what is overdue, and the worker is heard of before they
			// do something about it. It has given the tasks up by then; for one of them it does not
			// say so before the reapers have gone on.
			Spec: func(e *Env, s *cluster.Spec) {
				shortLease(e, s)
				for _, role := range []string{cluster.RoleDispatcher, cluster.RoleWorker} {
					point := map[string]failpoint.Point{cluster.RoleDispatcher: failpoint.MidReap, cluster.RoleWorker: failpoint.AfterRun}[role]
					s.Once[role] = []string{fmt.Sprintf("%s=%s=pause@1", failpoint.Env, point)}
				}
			},
			Sometimes: []Condition{Struck, lateRenewal},
			Inject: func(ctx context.Context, e *Env) error {
				w, err := e.holder(ctx)
				if err != nil {
					return err
				}
				if err := e.Mark("SIGSTOP "+w.Name, w.PID()); err != nil {
					return err
				}
				if err := w.Signal(syscall.SIGSTOP); err != nil {
					return err
				}
				for _, d := range e.Dispatchers {
					if err := awaitLog(ctx, d, pointHit, e.beyond()); err != nil {
						return err
					}
				}
				if err := thaw(w); err != nil {
					return err
				}
				return wait(ctx, 6*time.Second) // until both reapers have gone on
			},
			After: chargedOnce,
		},
		{
			Row: 20, Name: "worker-blackhole", Fault: "worker and dispatchers do not hear each other (no reset)",
			Expect: "found within the lease; the worker stops its executor before the task runs elsewhere",
			Stores: all, Bound: frozenBound, PlusLease: true, Recovery: Restarts, Shape: outlasting, Inject: cutOff(netfault.Both), After: noOverlap,
			Sometimes: []Condition{Requeued}, NoRestart: true,
		},
		{
			Row: 21, Name: "one-way-partition", Fault: "dispatchers do not hear the worker, the worker hears them",
			Expect: "as row 20", Stores: all, Bound: frozenBound, PlusLease: true, Recovery: Restarts, Shape: outlasting, Inject: cutOff(netfault.Up),
			After: noOverlap, Sometimes: []Condition{Requeued}, NoRestart: true,
		},
		{
			Row: 23, Name: "deaf-worker", Fault: "worker alive but deaf: its receive loop is stuck",
			Expect: "its heartbeat stops, its work is moved", Stores: all, Bound: frozenBound, PlusLease: true, Recovery: Restarts, Shape: longRuns,
			Spec: func(e *Env, s *cluster.Spec) {
				s.Once["worker-1"] = []string{fmt.Sprintf("%s=%s=hang@%d", failpoint.Env, failpoint.WorkerReceive, 12+e.Pick(20))}
			},
			Sometimes: []Condition{Requeued},
			Inject: func(ctx context.Context, e *Env) error {
				w := e.Workers[0]
				if err := awaitLog(ctx, w, pointHit, 10*time.Second); err != nil {
					return err
				}
				if err := e.Mark(w.Name+" is deaf", w.PID()); err != nil {
					return err
				}
				if err := wait(ctx, e.beyond()); err != nil {
					return err
				}
				w.Kill() // it does not hear SIGTERM either
				return w.Start()
			},
		},
		{
			Row: 26, Name: "agent-kill-orphans", Fault: "agent SIGKILL while its executors run, fork and ignore signals",
			Expect: "no orphan after a second", Stores: all, Shape: longRuns, Sometimes: []Condition{Struck},
			Inject: agentKill,
		},
	}
}

// agentKill fills the workers with executions that do not want to go and kills an agent.
func agentKill(ctx context.Context, e *Env) error {
	const stubborn = `
def stubborn():
    import os, signal, subprocess, time
    for n in range(1, 32):
        if n not in (9, 19):
            signal.signal(n, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"])
    if os.fork() == 0:
        time.sleep(600)
    time.sleep(1.5)
    return "stayed"
`
	fn, err := e.API().RegisterSource(ctx, "stubborn", stubborn)
	if err != nil {
		return err
	}
	for range 3 {
		for range 12 {
			if _, err := e.API().Execute(ctx, requestOf(fn.ID)); err != nil {
				return err
			}
		}
		if err := e.Pause(ctx, time.Second); err != nil {
			return err
		}
		w := e.Worker()
		children := cluster.Children(w.PID())
		if err := e.Mark("SIGKILL "+w.Name, w.PID()); err != nil {
			return err
		}
		w.Kill()
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
		if left := cluster.Orphans(); len(left) > 0 {
			return fmt.Errorf("I20: %d of %d processes below %s were there a second after its death: %s", len(left), children, w.Name, strings.Join(left, "; "))
		}
		e.Note("%s had %d processes below it; none was left after a second", w.Name, children)
		if children == 0 {
			return fmt.Errorf("%s had nothing below it: this run proves nothing", w.Name)
		}
		if err := w.Start(); err != nil {
			return err
		}
	}
	return nil
}
