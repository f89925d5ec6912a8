package scenario

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/store/pebblestore"
)

const (
	// SoakTasks is how many tasks a whole soak has.
	SoakTasks = 250_000
	// soakClients submit them.
	soakClients = 4
	// soakPace is the slowest that a soak may be, in tasks a second.
	soakPace = 60
	// soakPause is the shortest time between two faults.
	soakPause = 200 * time.Millisecond
)

// usage is what a process holds at rest. What it holds for the store is counted apart from
// the other descriptors: a pool keeps as many connections as were ever used at once, and
// the embedded store has as many open files as it has data, up to a limit.
type usage struct{ goroutines, descriptors, store, children int }

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d more for the store, %d children", u.goroutines, u.descriptors, u.store, u.children)
}

const (
	// stray is how many goroutines come and go at rest: a look at the metrics is one.
	stray = 3
	// pooled bounds what a process holds for the store: two pools and what listens, or the
	// files of some hundred thousand tasks.
	pooled = 2*16 + 4
)

// above says that a process holds more than at another time, beyond what comes and goes.
func (u usage) above(base usage) bool {
	return u.goroutines > base.goroutines+stray || u.descriptors > base.descriptors || u.store > pooled || u.children > base.children
}

// baseline is what the processes that live through a soak hold.
type baseline map[string]usage

// survivors are processes that no fault of a soak ends: what they lose, they lose for good.
func (e *Env) survivors() []*cluster.Process {
	list := []*cluster.Process{e.Front, e.Workers[0]}
	if !e.Embedded() {
		list = append(list, e.Dispatchers[0])
	}
	return list
}

// measure looks at a process.
func (e *Env) measure(ctx context.Context, p *cluster.Process) (u usage, err error) {
	n, err := e.Metric(ctx, p.Name, "go_goroutines")
	if err != nil {
		return u, fmt.Errorf("%s: %w", p.Name, err)
	}
	if u.store, err = e.Connections(p); err != nil {
		return u, err
	}
	u.goroutines, u.children = int(n), cluster.Children(p.PID())
	u.descriptors = cluster.Descriptors(p.PID()) - u.store
	return u, nil
}

// soak runs a first part, which fills pools and caches, notes what the processes hold, and
// runs the rest.
func soak(ctx context.Context, e *Env) error {
	var err error
	if e.emptyKeys, err = e.keys(ctx); err != nil {
		return err
	}
	first := max(e.Tasks/20, 1000)
	if err := e.soakPart(ctx, 1, first); err != nil {
		return err
	}
	if err := e.rest(ctx); err != nil {
		return err
	}
	if err := e.gather(ctx); err != nil {
		return err
	}
	// What the processes tidy up by themselves is gone after a while.
	if err := wait(ctx, 3*time.Second); err != nil {
		return err
	}
	e.base = baseline{}
	for _, p := range e.survivors() {
		if e.base[p.Name], err = e.measure(ctx, p); err != nil {
			return err
		}
	}
	if err := e.reviveAll(); err != nil {
		return err
	}
	return e.soakPart(ctx, 1+soakClients, max(e.Tasks-first, 1000))
}

// gather has all workers attached to the one dispatcher that is compared, which holds
// something for each of them.
func (e *Env) gather(ctx context.Context) error {
	if e.Embedded() {
		return nil
	}
	if err := e.Dispatchers[1].Stop(stopLimit); err != nil {
		return err
	}
	// A worker is shown as attached for a while when its dispatcher has gone.
	return cluster.Await(ctx, "all workers are attached to "+e.Dispatchers[0].Name, 25*time.Second, func(ctx context.Context) (bool, error) {
		n, err := e.Metric(ctx, e.Dispatchers[0].Name, `treadle_connections{listener="grpc"}`)
		return int(n) >= len(e.Workers), err
	})
}

// rest ends the faults and waits until nothing is left to do.
func (e *Env) rest(ctx context.Context) error {
	if err := errors.Join(e.Heal(), e.StopClients(time.Minute), e.AwaitWorkers(ctx, len(e.Workers))); err != nil {
		return err
	}
	return e.drain(ctx)
}

// soakPart has clients run that many tasks, with faults until they are done.
func (e *Env) soakPart(ctx context.Context, number, tasks int) error {
	limit := time.Minute + time.Duration(tasks)*time.Second/soakPace
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	shape := e.Shape
	shape.MaxTasks = (tasks + soakClients - 1) / soakClients
	if err := e.StartClients(number, soakClients, e.Seed, e.Function, shape); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- e.AwaitClients(ctx) }()
	// Often enough that a small soak, which lasts some seconds, has its dozen.
	timer := time.NewTimer(soakPause)
	defer timer.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-timer.C:
		}
		if err := e.soakFault(ctx); err != nil {
			cancel()
			return errors.Join(err, <-done)
		}
		timer.Reset(soakPause + time.Duration(e.Pick(800))*time.Millisecond)
	}
}

// soakFault makes a fault that the survivors survive.
func (e *Env) soakFault(ctx context.Context) error {
	mortal := e.Workers[1+e.Pick(len(e.Workers)-1)]
	switch e.Pick(6) {
	case 0, 1:
		return e.killAndStart(mortal)
	case 2:
		return freeze(ctx, e, e.Worker(), time.Second)
	case 3:
		if err := e.Mark("links are reset"); err != nil {
			return err
		}
		for _, p := range e.AllLinks() {
			p.Reset()
		}
		return nil
	case 4:
		if err := e.Mark("SIGTERM " + mortal.Name); err != nil {
			return err
		}
		return errors.Join(mortal.Stop(stopLimit), mortal.Start())
	default:
		if e.Embedded() {
			return e.killAndStart(mortal)
		}
		return e.killAndStart(e.Dispatchers[1])
	}
}

func (e *Env) killAndStart(p *cluster.Process) error {
	var agents []int
	if strings.HasPrefix(p.Name, cluster.RoleWorker) {
		agents = []int{p.PID()}
	}
	if err := e.Mark("SIGKILL "+p.Name, agents...); err != nil {
		return err
	}
	p.Kill()
	return p.Start()
}

// atBaseline checks that what a soak used is given back: I20.
func atBaseline(ctx context.Context, e *Env) error {
	if err := e.gather(ctx); err != nil {
		return err
	}
	for _, p := range e.survivors() {
		base := e.base[p.Name]
		var now usage
		err := cluster.Await(ctx, "I20: "+p.Name+" holds what it held", 30*time.Second, func(ctx context.Context) (bool, error) {
			u, err := e.measure(ctx, p)
			if err != nil {
				return false, err
			}
			now = u
			return !u.above(base), nil
		})
		if err != nil {
			return fmt.Errorf("%w: %s; when a twentieth was done: %s", err, now, base)
		}
		e.Note("%s: %s; when a twentieth was done: %s", p.Name, now, base)
	}
	return e.keysGone(ctx)
}

// keysGone starts the servers with a short retention and checks that what they then forget
// leaves nothing: the load's function, which stays, is what the store holds.
func (e *Env) keysGone(ctx context.Context) error {
	full, err := e.keys(ctx)
	if err != nil {
		return err
	}
	// Workers would be away while their server is.
	for _, p := range e.Workers {
		if err := p.Stop(stopLimit); err != nil {
			return err
		}
	}
	for _, p := range e.Processes() {
		if strings.HasPrefix(p.Name, cluster.RoleWorker) {
			continue
		}
		if err := p.Stop(stopLimit); err != nil {
			return err
		}
		p.Args = append(p.Args, "--retention", "1s")
		if err := p.Start(); err != nil {
			return err
		}
	}
	// Pages, as nothing says how many tasks there are.
	err = cluster.Await(ctx, "I20: no task is left after its retention", time.Minute+time.Duration(e.Tasks)*time.Second/1000,
		func(ctx context.Context) (bool, error) {
			for _, err := range e.API().Tasks(ctx, "") {
				return false, err
			}
			return true, nil
		})
	if err != nil {
		return err
	}
	left := -1
	err = cluster.Await(ctx, "I20: the store's keys are at their baseline", time.Minute, func(ctx context.Context) (bool, error) {
		if left, err = e.keys(ctx); err != nil {
			return false, err
		}
		return left <= e.emptyKeys, nil
	})
	e.Note("store keys: %d with the function alone, %d after the load, %d after the retention", e.emptyKeys, full, left)
	return err
}

// keys counts the store's keys. The embedded store tells them only to who has it open, so
// its process is stopped meanwhile.
func (e *Env) keys(ctx context.Context) (n int, err error) {
	if !e.Embedded() {
		keys, err := e.Redis.Keys(ctx)
		return int(keys), err
	}
	if err := e.Front.Stop(stopLimit); err != nil {
		return 0, err
	}
	st, err := pebblestore.Open(ctx, pebblestore.Options{
		Dir: filepath.Join(e.Dir, "data", "store"), Durability: pebblestore.Embedded, Retention: 24 * time.Hour, Lease: time.Second, MinFree: -1,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return 0, err
	}
	n, err = st.CountKeys()
	return n, errors.Join(err, st.Close(), e.Front.Start())
}

// soakScenarios are row 40.
func soakScenarios() []Scenario {
	return []Scenario{{
		Row: 40, Name: "soak", Fault: "many tasks with faults of many kinds, drawn by lot",
		Expect: "all invariants; goroutines, descriptors, children and store keys are back where they were", Stores: all, Soak: true,
		Clients: -1, Inject: soak, After: atBaseline, Sometimes: []Condition{Struck, Requeued}, NoRestart: true,
		Shape: func(_ *Env, s *load.Shape) {
			s.Rate, s.Loops, s.Batch, s.MinRun, s.MaxRun, s.Patience, s.Deadline = 20, 4, 50, 0, 2*time.Millisecond, 40*time.Second, 0
		},
	}}
}
