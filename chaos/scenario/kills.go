package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/internal/failpoint"
)

// all are the stores of a scenario that fits each of them.
var all = []string{"embedded", "redis", "replicated"}

// longRuns has tasks run long enough to be struck.
func longRuns(_ *Env, s *load.Shape) {
	s.MinRun, s.MaxRun, s.Rate, s.Deadline = 300*time.Millisecond, 900*time.Millisecond, 6, 0
}

// killWorker ends a worker with SIGKILL; a supervisor starts it again.
func killWorker(e *Env) error {
	w := e.Worker()
	if err := e.Mark("SIGKILL "+w.Name, w.PID()); err != nil {
		return err
	}
	w.Kill()
	return w.Start()
}

// once arms a kill point in processes of a role; the seed decides which hit it is.
func once(role string, p failpoint.Point, action string, least, most int) func(*Env, *cluster.Spec) {
	return func(e *Env, s *cluster.Spec) {
		who := role
		if e.Embedded() && role != cluster.RoleWorker {
			who = cluster.RoleUp
		}
		n := least + e.Pick(most-least+1)
		s.Once[who] = append(s.Once[who], fmt.Sprintf("%s=%s=%s@%d", failpoint.Env, p, action, n))
	}
}

// killed waits until a process that holds a kill point has died of it.
func killed(role string) func(context.Context, *Env) error {
	return func(ctx context.Context, e *Env) error {
		prefix := role
		if e.Embedded() && role != cluster.RoleWorker {
			prefix = cluster.RoleUp
		}
		seen := 0
		return repeat(ctx, e, time.Second/4, func() error {
			if n := e.exits(prefix); n > seen {
				seen = n
				return e.saw("kill point in " + prefix)
			}
			return nil
		})
	}
}

// exits counts how often processes of a role ended by themselves.
func (e *Env) exits(role string) (n int) {
	for _, p := range e.Processes() {
		if len(p.Name) >= len(role) && p.Name[:len(role)] == role {
			n += p.Exits()
		}
	}
	return n
}

// killScenarios are rows 1 and 4 to 7.
func killScenarios() []Scenario {
	return []Scenario{
		{
			Row: 1, Name: "worker-kill", Fault: "worker SIGKILL while RUNNING", Expect: "requeued within 2 s, attempt + 1, one result",
			Stores: all, Bound: 2 * time.Second, Recovery: Restarts, Shape: longRuns, Sometimes: []Condition{Requeued},
			Inject: func(ctx context.Context, e *Env) error {
				return repeat(ctx, e, 2500*time.Millisecond, func() error { return killWorker(e) })
			},
		},
		{
			Row: 1, Name: "worker-kill-after-run", Fault: "worker SIGKILL after the run, before its report", Expect: "run again, one result",
			Stores: all, Spec: once(cluster.RoleWorker, failpoint.AfterRun, "kill", 3, 20), Inject: killed(cluster.RoleWorker),
			Sometimes: []Condition{Struck, Requeued, exited(cluster.RoleWorker, 3)},
		},
		{
			Row: 1, Name: "worker-kill-before-accept", Fault: "worker SIGKILL after an offer arrived, before its accept",
			Expect: "offered elsewhere", Stores: all,
			Spec: once(cluster.RoleWorker, failpoint.BeforeAccept, "kill", 3, 20), Inject: killed(cluster.RoleWorker),
			Sometimes: []Condition{Struck, exited(cluster.RoleWorker, 3)},
		},
		{
			Row: 4, Name: "kill-after-submit", Fault: "server SIGKILL after the submit write, before the reply",
			Expect: "retry with the same key gives one task", Stores: all,
			Spec: once(cluster.RoleServer, failpoint.AfterSubmit, "kill", 10, 120), Inject: killed(cluster.RoleServer),
			Sometimes: []Condition{Struck},
		},
		{
			Row: 4, Name: "kill-mid-registration", Fault: "server SIGKILL after a function is recorded, before the reply",
			Expect: "retry with the same key gives one function", Stores: all,
			Inject: registerThroughKill, Sometimes: []Condition{Struck},
			// The first registration is the load's own, the second one that of the scenario.
			Spec: once(cluster.RoleServer, failpoint.MidRegister, "kill", 2, 2),
		},
		{
			Row: 5, Name: "kill-after-claim", Fault: "dispatcher SIGKILL after a claim, before it is sent",
			Expect: "the offer lapses within 3 s, or goes back when its worker returns; no attempt used", Stores: all,
			Spec: once(cluster.RoleDispatcher, failpoint.AfterClaim, "kill", 10, 60), Inject: killed(cluster.RoleDispatcher),
			Sometimes: []Condition{Struck}, After: noLosses,
		},
		{
			Row: 5, Name: "kill-after-send", Fault: "dispatcher SIGKILL after offers were sent",
			Expect: "the worker keeps what it got; no attempt used", Stores: all,
			Spec: once(cluster.RoleDispatcher, failpoint.AfterSend, "kill-soon", 10, 60), Inject: killed(cluster.RoleDispatcher),
			Sometimes: []Condition{Struck}, After: noLosses,
		},
		{
			Row: 6, Name: "kill-after-report", Fault: "dispatcher SIGKILL after the result write, before its acknowledgement",
			Expect: "the worker reports again, same result", Stores: all,
			Spec: once(cluster.RoleDispatcher, failpoint.AfterReport, "kill", 10, 60), Inject: killed(cluster.RoleDispatcher),
			Sometimes: []Condition{Struck}, After: noLosses,
		},
		{
			Row: 7, Name: "dispatcher-kill", Fault: "one of two dispatchers SIGKILL under load",
			Expect: "the other serves within 2 s; accepted leases survive", Stores: []string{"redis", "replicated", "embedded"},
			Bound: 2 * time.Second, Recovery: Gap, Sometimes: []Condition{Struck}, After: noLosses,
			Inject: func(ctx context.Context, e *Env) error {
				return repeat(ctx, e, 3*time.Second, func() error {
					d := e.Dispatcher()
					if err := e.Mark("SIGKILL " + d.Name); err != nil {
						return err
					}
					d.Kill()
					if !e.Embedded() {
						if err := e.Pause(ctx, time.Second); err != nil {
							return err
						}
					}
					return d.Start()
				})
			},
		},
	}
}
