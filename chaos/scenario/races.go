package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/treadle-dev/treadle/chaos/check"
	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/chaos/netfault"
)

// resets breaks the links of the fleet again and again, at any byte.
func resets(ctx context.Context, e *Env) error {
	return repeat(ctx, e, 900*time.Millisecond, func() error {
		t := netfault.Toxic{}
		switch e.Pick(3) {
		case 0:
			t.Slice = 1 + e.Pick(40)
		case 1:
			t.Cut = int64(200 + e.Pick(4000))
		}
		if err := e.Mark(fmt.Sprintf("links are reset, then %+v", t)); err != nil {
			return err
		}
		for _, p := range e.Fleet {
			p.Set(t)
			p.Reset()
		}
		if err := e.Pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		for _, p := range e.Fleet {
			p.Set(netfault.Toxic{})
		}
		return nil
	})
}

// deadlines checks that no task outlived its deadline by more than a reap and the time that
// a busy machine takes to get round to it.
func deadlines(ctx context.Context, e *Env) error {
	const late = 2 * time.Second
	list, err := e.final(ctx)
	if err != nil {
		return err
	}
	var errs []error
	var worst time.Duration
	n := 0
	for _, r := range list {
		if r.Deadline.IsZero() {
			continue
		}
		over := r.FinishedAt.Sub(r.Deadline)
		if r.Class == timedOut {
			n++
			worst = max(worst, over)
		}
		if over > late {
			errs = append(errs, fmt.Errorf("I14: task %s is %s %s, %s after its deadline", r.ID, r.Status, r.Class, over))
		}
	}
	e.Note("%d tasks ended by their deadline, the latest %s after it", n, worst.Round(time.Millisecond))
	if n == 0 {
		return errors.New("this run proves nothing: no deadline passed")
	}
	return errors.Join(errs...)
}

// rolling drains and restarts every process, one after another, until the time is over.
func rolling(ctx context.Context, e *Env) error {
	end := time.Now().Add(e.Dur)
	for {
		for _, p := range e.Processes() {
			if err := e.Mark("SIGTERM " + p.Name); err != nil {
				return err
			}
			if err := p.Stop(stopLimit); err != nil {
				return err
			}
			if err := p.Start(); err != nil {
				return err
			}
			if err := e.Pause(ctx, 300*time.Millisecond); err != nil {
				return err
			}
		}
		if time.Now().After(end) {
			return nil
		}
	}
}

// crowd opens more connections to the server than it has descriptors, and holds them.
func crowd(ctx context.Context, e *Env) error {
	const connections = 300
	if err := e.Mark(fmt.Sprintf("%d connections, the server has %d descriptors", connections, fewFDs)); err != nil {
		return err
	}
	var mu sync.Mutex
	var open []net.Conn
	refused := 0
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			c, err := net.DialTimeout("tcp", e.FrontAddr(), 2*time.Second)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused++
				return
			}
			open = append(open, c)
		})
	}
	wg.Wait()
	fds := 0
	err := cluster.Await(ctx, "the server has run out of descriptors", 5*time.Second, func(context.Context) (bool, error) {
		fds = cluster.Descriptors(e.Front.PID())
		return fds >= fewFDs-2, nil
	})
	if err != nil {
		return fmt.Errorf("this run proves nothing: the server has %d descriptors open of %d: %w", fds, fewFDs, err)
	}
	if err := e.Pause(ctx, 3*time.Second); err != nil {
		return err
	}
	for _, c := range open {
		c.Close()
	}
	e.Note("%d connections stood, %d were refused, the server had %d descriptors open", len(open), refused, fds)
	if n := e.Front.Exits(); n > 0 {
		return fmt.Errorf("the server died of it %d times", n)
	}
	if err := e.Mark("the connections are closed"); err != nil {
		return err
	}
	return wait(ctx, 3*time.Second)
}

// fewFDs is enough to run a server with, and little more.
const fewFDs = 128

// anything makes faults of all kinds, drawn by lot.
func anything(ctx context.Context, e *Env) error {
	return repeat(ctx, e, 800*time.Millisecond, func() error {
		switch e.Pick(7) {
		case 0, 1:
			return killWorker(e)
		case 2:
			return freeze(ctx, e, e.Worker(), 1500*time.Millisecond)
		case 3:
			d := e.Dispatcher()
			if err := e.Mark("SIGKILL " + d.Name); err != nil {
				return err
			}
			d.Kill()
			return d.Start()
		case 4:
			if err := e.Mark("links are reset"); err != nil {
				return err
			}
			for _, p := range e.AllLinks() {
				p.Reset()
			}
			return nil
		case 5:
			w := e.Worker()
			if err := e.Mark("SIGTERM " + w.Name); err != nil {
				return err
			}
			if err := w.Stop(stopLimit); err != nil {
				return err
			}
			return w.Start()
		default:
			if e.Redis == nil {
				return killWorker(e)
			}
			if e.Store == "redis" {
				return killRedis(ctx, e)
			}
			return freezeRedis(ctx, e)
		}
	})
}

// freezeRedis stops a server for a moment that no Sentinel notices.
func freezeRedis(ctx context.Context, e *Env) error {
	s := e.Redis.Servers[e.Pick(len(e.Redis.Servers))]
	if err := e.Mark("SIGSTOP a Redis server"); err != nil {
		return err
	}
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if err := e.Pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	return s.Signal(syscall.SIGCONT)
}

// raceScenarios are rows 22, 31, 32, 35 and 37, and the mix of everything.
func raceScenarios() []Scenario {
	return []Scenario{
		{
			Row: 22, Name: "stream-resets", Fault: "streams are reset in the middle of frames, bytes are sliced",
			Expect: "reconnected, leases kept", Stores: all, Inject: resets, Sometimes: []Condition{Struck}, After: noLosses, Shape: longRuns,
		},
		{
			Row: 31, Name: "cancel-races", Fault: "cancels race with completions, claims and reaps, workers are killed",
			Expect: "linearizable", Stores: all,
			Shape: func(_ *Env, s *load.Shape) {
				s.Cancel, s.MinRun, s.MaxRun, s.Rate, s.Loops = 0.9, 0, 20*time.Millisecond, 120, 16
			},
			Inject: func(ctx context.Context, e *Env) error {
				return repeat(ctx, e, 2*time.Second, func() error { return killWorker(e) })
			},
			Sometimes: []Condition{Struck, {"100 tasks were cancelled", func(e *Env, _ *check.Findings) bool { return e.cancelled() >= 100 }}},
		},
		{
			Row: 32, Name: "deadline-races", Fault: "deadlines race with cancels, completions, claims and reaps",
			Expect: "never early, late by a reap at most", Stores: all,
			Shape: func(_ *Env, s *load.Shape) {
				s.Deadline, s.Cancel, s.MaxRun, s.Rate, s.Loops = 0.7, 0.3, 600*time.Millisecond, 50, 12
			},
			Inject: func(ctx context.Context, e *Env) error {
				return repeat(ctx, e, 2*time.Second, func() error { return killWorker(e) })
			},
			After: deadlines, Sometimes: []Condition{Struck},
		},
		{
			Row: 35, Name: "rolling-restart", Fault: "every process is drained by SIGTERM and restarted under load, in turn",
			Expect: "nothing lost, no attempt spent", Stores: all, Inject: rolling, After: noLosses, Sometimes: []Condition{Struck}, Shape: longRuns,
		},
		{
			Row: 37, Name: "too-many-connections", Fault: "the server runs out of descriptors", Expect: "accepting backs off and recovers",
			Stores: []string{"redis", "embedded"}, Inject: crowd, Sometimes: []Condition{Struck},
			Spec: func(_ *Env, s *cluster.Spec) { s.FDs[cluster.RoleServer], s.FDs[cluster.RoleUp] = fewFDs, fewFDs },
		},
		{
			Name: "anything", Fault: "faults of all kinds, drawn by lot", Expect: "all invariants", Stores: []string{"embedded", "redis", "replicated", "sentinel"},
			Inject: anything, Sometimes: []Condition{Struck},
		},
	}
}

// cancelled counts the tasks that are CANCELLED.
func (e *Env) cancelled() (n int) {
	for _, entry := range e.storeHistory() {
		for _, it := range entry.Items {
			if entry.Op == "cancel" && strings.EqualFold(it.Outcome, "cancelled") {
				n++
			}
		}
	}
	return n
}
