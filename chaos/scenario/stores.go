package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/chaos/check"
	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/chaos/netfault"
	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/store/storetap"
)

// minorityUID is the user of processes that are on the wrong side of a partition.
const minorityUID = 2001

// faultyStore has the processes that open the store suffer from faults of its connection.
func faultyStore(faults string) func(*Env, *cluster.Spec) {
	return func(_ *Env, s *cluster.Spec) {
		for _, role := range []string{cluster.RoleUp, cluster.RoleServer, cluster.RoleDispatcher} {
			s.Env[role] = append(s.Env[role], storetap.EnvFaults+"="+faults)
		}
	}
}

// just lets the load run with the faults that the cluster was started with.
func just(ctx context.Context, e *Env) error {
	if err := e.Mark("the store's connection is faulty"); err != nil {
		return err
	}
	return wait(ctx, e.Dur)
}

// outlived is met when a lease was in force that the wall clock of the process that looked
// for overdue ones had ended.
var outlived = Condition{"a lease outlived its end by the wall clock", func(e *Env, _ *check.Findings) bool {
	entries := e.storeHistory()
	slices.SortFunc(entries, func(a, b storetap.Entry) int { return int(a.Start - b.Start) })
	held := map[string]int64{} // task to the shift that it was claimed under
	for i := range entries {
		s := &entries[i]
		if s.Err != "" {
			continue
		}
		if s.Op == "reap" {
			for _, shift := range held {
				if s.Shift-shift > e.Lease.Nanoseconds() {
					return true
				}
			}
		}
		for _, it := range s.Items {
			switch {
			case s.Op == "claim":
				held[it.Task] = s.Shift
			case s.Op == "renew" && it.Verdict == "recorded":
				held[it.Task] = s.Shift
			case s.Op == "settle", s.Op == "cancel":
				delete(held, it.Task)
			}
		}
	}
	return false
}}

// timeGoesOn lets the load run under clocks that leap, with a task that waits for delays
// and one that waits for its deadline: both must end while the clocks still leap.
func timeGoesOn(ctx context.Context, e *Env) error {
	// A lost runner is tried again at once for the first time, later after a delay.
	const stumbles = `
def stumbles(path):
    import os
    with open(path, "a+") as f:
        f.seek(0)
        n = len(f.read())
        f.write("x")
    if n < 3:
        os._exit(9)
    return n
`
	const limit = 30 * time.Second // the delays are some seconds, a leap is an hour
	over := time.Now().Add(e.Dur)
	if err := e.Mark("the clocks leap"); err != nil {
		return err
	}
	fn, err := e.API().RegisterSource(ctx, "stumbles", stumbles)
	if err != nil {
		return err
	}
	slow, err := e.API().RegisterSource(ctx, "waits", "import time\ndef waits(): time.sleep(600)\n")
	if err != nil {
		return err
	}
	delayed, err := e.API().Execute(ctx, requestOf(fn.ID, e.HistoryFile("stumbles")))
	if err != nil {
		return err
	}
	bound := requestOf(slow.ID)
	bound.Options.Deadline = time.Now().Add(2 * time.Second)
	timed, err := e.API().Execute(ctx, bound)
	if err != nil {
		return err
	}
	for _, want := range []struct{ what, task, status, class string }{
		{"a task with delays", delayed, fine, ""}, {"a task with a deadline", timed, broken, timedOut},
	} {
		res, err := e.API().Result(ctx, want.task, limit)
		if err != nil {
			return fmt.Errorf("%s has not ended within %s: %w", want.what, limit, err)
		}
		class := ""
		if res.Error != nil {
			class = res.Error.Type
		}
		if string(res.Status) != want.status || class != want.class {
			return fmt.Errorf("%s is %s %s: want %s %s", want.what, res.Status, class, want.status, want.class)
		}
	}
	return wait(ctx, time.Until(over))
}

// vital are the methods of the store whose lost replies could cost or double a task.
var vital = []string{"submit", "claim", "settle", "cancel"}

// lostReplies is met when the methods that matter were struck.
var lostReplies = Condition{fmt.Sprintf("a reply of each of %v was lost", vital), func(e *Env, _ *check.Findings) bool {
	lost := map[string]bool{}
	for _, entry := range e.storeHistory() {
		if entry.Lost {
			lost[entry.Op] = true
		}
	}
	return !slices.ContainsFunc(vital, func(m string) bool { return !lost[m] })
}}

// untilAllLost lets the load run until each method has had its turn, and something to do in it.
func untilAllLost(ctx context.Context, e *Env) error {
	if err := just(ctx, e); err != nil {
		return err
	}
	return cluster.Await(ctx, lostReplies.Name, time.Minute, func(ctx context.Context) (bool, error) {
		return lostReplies.Met(e, nil), wait(ctx, time.Second/2)
	})
}

// killRedis ends a server with SIGKILL and starts it again after a while.
func killRedis(ctx context.Context, e *Env) error {
	s := e.Redis.Servers[0]
	if err := e.Mark("SIGKILL redis"); err != nil {
		return err
	}
	s.Kill()
	if err := e.Pause(ctx, 700*time.Millisecond); err != nil {
		return err
	}
	return s.Run()
}

// awaitFailover returns when another server than was is the primary.
func awaitFailover(ctx context.Context, e *Env, was *redistest.Server) error {
	err := cluster.Await(ctx, "another server is the primary", 15*time.Second, func(context.Context) (bool, error) {
		now, err := e.Redis.Primary()
		return err == nil && now != was, err
	})
	if err == nil {
		e.SawFailover()
	}
	return err
}

// sentinelFailover kills the primary and brings it back as what the Sentinels make of it.
func sentinelFailover(ctx context.Context, e *Env) error {
	was, err := e.Redis.Primary()
	if err != nil {
		return err
	}
	if err := e.Pause(ctx, time.Second); err != nil {
		return err
	}
	if err := e.Mark("SIGKILL the primary"); err != nil {
		return err
	}
	was.Kill()
	if err := awaitFailover(ctx, e, was); err != nil {
		return err
	}
	if err := e.Pause(ctx, 2*time.Second); err != nil {
		return err
	}
	if err := was.Run(); err != nil {
		return err
	}
	return wait(ctx, 2*time.Second)
}

// minority puts processes on the side of the first primary and Sentinel.
func minority(names ...string) func(*Env, *cluster.Spec) {
	return func(_ *Env, s *cluster.Spec) {
		for _, n := range names {
			s.UID[n] = minorityUID
			s.Sentinels[n] = []int{0}
		}
		for _, n := range []string{cluster.RoleServer, "dispatcher-1", "dispatcher-2"} {
			if !slices.Contains(names, n) {
				s.Sentinels[n] = []int{1, 2}
			}
		}
	}
}

// bothSides is met when a dispatcher took a task, while the primary was partitioned, that
// the dispatcher of the other side had handed out, and whose run there had begun.
var bothSides = Condition{"a task that ran on one side was taken by the other", func(e *Env, f *check.Findings) bool {
	faults := e.Faults()
	if len(faults) == 0 || f.Extra == 0 {
		return false
	}
	cut := faults[0].At
	entries := e.storeHistory()
	slices.SortFunc(entries, func(a, b storetap.Entry) int { return int(a.Start - b.Start) })
	type holding struct {
		process int
		started bool
	}
	held := map[string]holding{}
	for i := range entries {
		s := &entries[i]
		if s.Start > e.loadEnd {
			break
		}
		for _, it := range s.Items {
			was := held[it.Task]
			switch {
			case s.Op == "claim" && was.started && was.process != s.Process && s.Start > cut:
				return true
			case s.Op == "claim":
				held[it.Task] = holding{process: s.Process}
			case s.Op == "renew" && it.Outcome == "started" && it.Verdict == "recorded":
				held[it.Task] = holding{s.Process, true}
			case s.Op == "settle" && it.Verdict == "recorded":
				delete(held, it.Task)
			}
		}
	}
	return false
}}

// splitRedis parts the primary and its side from the others until they have a primary of
// their own, and a while longer.
func splitRedis(ctx context.Context, e *Env) error { return splitFor(ctx, e, 4*time.Second) }

// splitPastLease parts them for longer than a lease, with long tasks under way.
func splitPastLease(ctx context.Context, e *Env) error {
	if _, err := e.holder(ctx); err != nil {
		return err
	}
	return splitFor(ctx, e, e.beyond())
}

func splitFor(ctx context.Context, e *Env, d time.Duration) error {
	if e.Firewall == nil {
		return fmt.Errorf("packets cannot be dropped: %s", e.NoFirewall)
	}
	was := e.Redis.Servers[0]
	others := append(slices.Clone(e.Redis.IPs[1:]), e.Redis.SentinelIPs[1:]...)
	if err := e.Pause(ctx, time.Second); err != nil {
		return err
	}
	if err := e.Mark("the primary is partitioned"); err != nil {
		return err
	}
	err := errors.Join(
		e.Firewall.CutPairs([]string{e.Redis.IPs[0], e.Redis.SentinelIPs[0]}, others),
		e.Firewall.CutUser(minorityUID, others))
	if err != nil {
		return err
	}
	if err := awaitFailover(ctx, e, was); err != nil {
		return err
	}
	if err := e.Pause(ctx, d); err != nil {
		return err
	}
	if err := e.Heal(); err != nil {
		return err
	}
	return cluster.Await(ctx, "the old primary follows the new one", 20*time.Second, func(ctx context.Context) (bool, error) {
		c := was.Client()
		defer c.Close()
		text, err := c.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(text, "role:slave"), err
	})
}

// slowLinks gives the links to the store a toxic for a while and watches that nobody piles
// up goroutines meanwhile.
func slowLinks(t netfault.Toxic, d time.Duration) func(context.Context, *Env) error {
	return func(ctx context.Context, e *Env) error {
		names := []string{cluster.RoleServer, "dispatcher-1", "dispatcher-2"}
		before := map[string]float64{}
		for _, n := range names {
			v, err := e.Metric(ctx, n, "go_goroutines")
			if err != nil {
				return err
			}
			before[n] = v
		}
		if err := e.Mark("the store is slow"); err != nil {
			return err
		}
		for _, p := range e.StoreLinks() {
			p.Set(t)
		}
		most := map[string]float64{}
		for end := time.Now().Add(d); time.Now().Before(end); {
			if err := wait(ctx, 500*time.Millisecond); err != nil {
				return err
			}
			for _, n := range names {
				// The metrics ask the store for its queues, so they may be late; the count is in
				// the next one.
				if v, err := e.Metric(ctx, n, "go_goroutines"); err == nil {
					most[n] = max(most[n], v)
				}
			}
		}
		for _, p := range e.StoreLinks() {
			p.Set(netfault.Toxic{})
		}
		for _, n := range names {
			e.Note("%s: %.0f goroutines before, at most %.0f while the store was slow", n, before[n], most[n])
			if most[n] == 0 || most[n] > before[n]+maxPile {
				return fmt.Errorf("%s had %.0f goroutines, before it were %.0f", n, most[n], before[n])
			}
		}
		return wait(ctx, 3*time.Second)
	}
}

// maxPile is how many more goroutines a slow store may cost a process: some for each call
// of the clients, which are bounded, and for the metrics themselves.
const maxPile = 300

// Bounds of the longest pause in confirmations and starts.
const (
	// restartBound: Redis is down for 0.9 s at most, and whoever failed meanwhile tries again
	// within a second.
	restartBound = 3 * time.Second
	// clusterBound: nodes look at each other every half of the cluster-node-timeout of 2 s, so
	// a dead one is known after 3 s; its replica waits 0.5 to 1 s for its election; the old
	// primary then starts and follows, as nothing is confirmed without a replica. Five runs on
	// a quiet machine took 3.6 to 4.6 s.
	clusterBound = 6 * time.Second
	// moveBound: the slot's keys are moved in a second. Five runs took 0.5 to 0.8 s.
	moveBound = 3 * time.Second
)

// storeScenarios are rows 10 to 15, 19, 33 and 34.
func storeScenarios() []Scenario {
	return []Scenario{
		{
			Row: 10, Name: "lost-replies", Fault: "the store executes, the reply is lost: every method in turn",
			Expect: "no double effect", Stores: all, Spec: faultyStore("lose-reply"), Inject: untilAllLost,
			Sometimes: []Condition{Struck, lostReplies},
			Shape:     func(_ *Env, s *load.Shape) { s.Cancel = 0.2 },
		},
		{
			Row: 10, Name: "faulty-store", Fault: "calls to the store are refused, doubled, late and lost",
			Expect: "no double effect", Stores: all, Spec: faultyStore("duplicate,refuse,lose-reply,delay"), Inject: just,
			Sometimes: []Condition{Struck},
		},
		{
			Row: 11, Name: "redis-kill", Fault: "Redis SIGKILL and restart, with its append-only file",
			Expect: "UNAVAILABLE meanwhile, then everything acknowledged is there", Stores: []string{"redis"}, Bound: restartBound, Recovery: Gap,
			Sometimes: []Condition{Struck},
			Inject: func(ctx context.Context, e *Env) error {
				return repeat(ctx, e, 3*time.Second, func() error { return killRedis(ctx, e) })
			},
		},
		{
			Row: 12, Name: "sentinel-failover", Fault: "the primary under Sentinel is killed", Expect: "a gap of 5 s at most, nothing lost",
			Stores: []string{"sentinel"}, Bound: 5 * time.Second, Recovery: Gap, Inject: sentinelFailover,
			Sometimes: []Condition{FailedOver},
		},
		{
			Row: 13, Name: "primary-partitioned", Fault: "the primary is partitioned, API and a dispatcher on its side (replicated)",
			Expect: "nothing acknowledged is lost", Stores: []string{"sentinel"}, NeedsRoot: true,
			Spec: minority(cluster.RoleServer, "dispatcher-1"), Inject: splitRedis,
			Sometimes: []Condition{FailedOver},
		},
		{
			Row: 13, Name: "primary-partitioned-async", Fault: "the same in the asynchronous mode", Expect: "the loss is told",
			Stores: []string{"sentinel"}, NeedsRoot: true, Inject: splitRedis,
			Spec: func(e *Env, s *cluster.Spec) {
				s.Durability = "async"
				minority(cluster.RoleServer, "dispatcher-1")(e, s)
			},
			// Claims whose outcome was lost are nobody's any more, and end with their lease.
			Sometimes: []Condition{FailedOver}, MayLose: func(*Env) bool { return true }, Strands: true,
		},
		{
			Row: 14, Name: "split-dispatchers", Fault: "dispatchers on both sides of a partition", Expect: "nothing is recorded twice",
			Stores: []string{"sentinel"}, NeedsRoot: true, Inject: splitPastLease, Strands: true,
			Spec: func(e *Env, s *cluster.Spec) {
				shortLease(e, s)
				minority("dispatcher-1")(e, s)
			},
			Shape: func(e *Env, s *load.Shape) {
				outliving(e, s)
				s.Longs, s.Long = 2, 8*time.Second
			},
			Sometimes: []Condition{FailedOver, bothSides},
		},
		{
			Row: 15, Name: "cluster-failover", Fault: "a primary of the Cluster is killed", Expect: "MOVED, CLUSTERDOWN are handled",
			Stores: []string{"cluster"}, Bound: clusterBound, Recovery: Gap, Inject: clusterFailover, Sometimes: []Condition{FailedOver},
		},
		{
			Row: 15, Name: "cluster-slot-move", Fault: "the store's slot moves to another node, live", Expect: "MOVED, ASK are handled, no CROSSSLOT",
			Stores: []string{"cluster"}, Bound: moveBound, Recovery: Gap, Sometimes: []Condition{Struck},
			Inject: func(ctx context.Context, e *Env) error {
				return repeat(ctx, e, 2*time.Second, func() error {
					key, err := e.Redis.AnyKey(ctx)
					if err != nil {
						return err
					}
					if err := e.Mark("the slot moves"); err != nil {
						return err
					}
					return redistest.MoveSlot(ctx, e.Redis.Cluster, key)
				})
			},
		},
		{
			Row: 19, Name: "slow-store", Fault: "the store answers 500 ms late", Expect: "bounded queues, no goroutines pile up",
			Stores: []string{"redis"}, Inject: slowLinks(netfault.Toxic{Latency: 500 * time.Millisecond}, 8*time.Second), Sometimes: []Condition{Struck},
		},
		{
			Row: 19, Name: "stalled-store", Fault: "the store does not answer for 10 s", Expect: "deadline errors, then all goes on",
			Stores: []string{"redis"}, Inject: slowLinks(netfault.Toxic{Up: true, Down: true}, 10*time.Second), Sometimes: []Condition{Struck},
		},
		{
			Row: 33, Name: "clock-steps", Fault: "the wall clocks of dispatchers and servers leap by an hour, forth and back, every second",
			Expect: "no lease ends early or twice; delays and deadlines end", Stores: []string{"redis", "replicated", "embedded"},
			Spec: faultyStore("clock"), Inject: timeGoesOn, Sometimes: []Condition{Struck, outlived},
			Shape: func(e *Env, s *load.Shape) {
				longRuns(e, s)
				s.Deadline = 0.2
			},
			After: func(ctx context.Context, e *Env) error {
				runs, err := history.Read[history.Run](e.Ledger())
				if err != nil {
					return err
				}
				seen := map[string]bool{}
				for _, r := range runs {
					if r.What == history.Started {
						if seen[r.Key] {
							return fmt.Errorf("key %s ran again, and nothing was struck but the clocks", r.Key)
						}
						seen[r.Key] = true
					}
				}
				return noLosses(ctx, e)
			},
		},
		{
			Row: 34, Name: "redis-flushed", Fault: "Redis gets another eviction policy, then is flushed",
			Expect: "refuses to serve, says why, and serves again when a setting was mended", Stores: []string{"redis"}, Inject: flushed,
			Ends: true, Sometimes: []Condition{Struck},
		},
	}
}

// clusterFailover kills the node that holds the store.
func clusterFailover(ctx context.Context, e *Env) error {
	key, err := e.Redis.AnyKey(ctx)
	if err != nil {
		return err
	}
	was, err := e.Redis.Owner(ctx, key)
	if err != nil {
		return err
	}
	if err := e.Pause(ctx, time.Second); err != nil {
		return err
	}
	if err := e.Mark("SIGKILL the slot's primary"); err != nil {
		return err
	}
	was.Kill()
	err = cluster.Await(ctx, "another node holds the slot", 15*time.Second, func(ctx context.Context) (bool, error) {
		now, err := e.Redis.Owner(ctx, key)
		return err == nil && now != was, err
	})
	if err != nil {
		return err
	}
	e.SawFailover()
	// At once: each primary has one replica, so its successor has none, and in the replicated
	// mode confirms nothing before the old one is back as its replica.
	if err := was.Run(); err != nil {
		return err
	}
	return wait(ctx, 4*time.Second)
}

// flushed takes away what the store stands on and looks at what clients are told.
func flushed(ctx context.Context, e *Env) error {
	c := e.Redis.Servers[0].Client()
	defer c.Close()
	impatient, err := treadle.Dial(e.FrontAddr(), treadle.WithRetry(0))
	if err != nil {
		return err
	}
	defer impatient.Close()
	submit := func(ctx context.Context) error {
		_, err := impatient.Execute(ctx, requestOf(e.Function, "flush-probe", 0.0, e.Ledger()))
		return err
	}
	says := func(text string) error {
		return cluster.Await(ctx, "a submission is refused with "+text, 12*time.Second, func(ctx context.Context) (bool, error) {
			err := submit(ctx)
			if errors.Is(err, treadle.ErrUnavailable) && strings.Contains(err.Error(), text) {
				return true, nil
			}
			return false, err
		})
	}
	if err := e.Mark("maxmemory-policy allkeys-lru"); err != nil {
		return err
	}
	if err := c.ConfigSet(ctx, "maxmemory-policy", "allkeys-lru").Err(); err != nil {
		return err
	}
	if err := says("noeviction"); err != nil {
		return err
	}
	if err := c.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err(); err != nil {
		return err
	}
	err = cluster.Await(ctx, "submissions are taken again", 12*time.Second, func(ctx context.Context) (bool, error) {
		err := submit(ctx)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	if err := e.Mark("FLUSHALL"); err != nil {
		return err
	}
	if err := c.FlushAll(ctx).Err(); err != nil {
		return err
	}
	if err := says("identity changed"); err != nil {
		return err
	}
	// Nothing is silently begun anew: there is no store but the one that was lost.
	keys, err := c.Keys(ctx, "*").Result()
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		return fmt.Errorf("after the flush there are %d keys: %v", len(keys), keys)
	}
	return nil
}
