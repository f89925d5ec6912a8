// Package scenario holds the faults that the suite knows, each with what is expected of
// the system, and runs them.
package scenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/chaos/check"
	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/load"
)

// Scenario is one row of the fault table.
type Scenario struct {
	// Row is the fault's number in the table of docs/faults.md, 0 for one that is not in it.
	Row  int
	Name string
	// Fault and Expect are one line each, for people.
	Fault, Expect string
	// Stores are those that it is run on by default, the first one where only one is
	// asked for; Modes likewise, all when empty.
	Stores []string
	// Bound is how long recovery may take, beyond the lease where PlusLease; 0 is not
	// bounded.
	Bound     time.Duration
	PlusLease bool
	// BoundOf is the bound where it depends on the run, in place of the two above.
	BoundOf func(*Env) time.Duration
	// Recovery says what is measured.
	Recovery Recovery
	// Clients is their number, four when 0, none when negative; Shape what they do, the default when nil.
	Clients int
	Shape   func(*Env, *load.Shape)
	// Spec changes the cluster before it starts.
	Spec func(*Env, *cluster.Spec)
	// Inject makes the faults, from when the load runs until it returns.
	Inject func(context.Context, *Env) error
	// After looks at what is left, once everything has ended.
	After func(context.Context, *Env) error
	// Sometimes must each have happened, or the run proves nothing.
	Sometimes []Condition
	// MayLose: the durability mode does not promise to survive this.
	MayLose func(*Env) bool
	// Strands: its faults keep sound workers from their leases, so each may cost a task one.
	Strands bool
	// NeedsRoot: it cannot be made without namespaces or mounts.
	NeedsRoot bool
	// Ends: the cluster is beyond repair after it, so there is nothing to drain.
	Ends bool
	// Solo runs without a cluster, in place of everything else.
	Solo func(context.Context, *Env) error
	// Soak: it is bounded by a number of tasks, not by a time.
	Soak bool
	// NoRestart leaves out the restart of everything before the drain.
	NoRestart bool
}

// Recovery is what is measured after a fault.
type Recovery int

// Recoveries.
const (
	// None is measured.
	None Recovery = iota
	// Restarts: from the fault until a task that the struck worker ran has started
	// elsewhere, for 99 of 100 of them.
	Restarts
	// Gap: the longest time after a fault in which no submission was confirmed, or no
	// execution began.
	Gap
)

// Condition is something that must have happened in a run.
type Condition struct {
	Name string
	Met  func(*Env, *check.Findings) bool
}

// Conditions that many scenarios share.
var (
	// Contested: the fence was asked while it mattered.
	Contested = Condition{"a stale outcome was refused while another attempt ran", func(_ *Env, f *check.Findings) bool { return f.Overlaps > 0 }}
	// Requeued: at least one task was executed again.
	Requeued = Condition{"a task was executed again", func(_ *Env, f *check.Findings) bool { return f.Extra > 0 }}
	// Struck: the kill point was reached, or the fault made.
	Struck = Condition{"the fault struck", func(e *Env, _ *check.Findings) bool { return len(e.Faults()) > 0 }}
	// FailedOver: another server took the primary's place.
	FailedOver = Condition{"a failover happened", func(e *Env, _ *check.Findings) bool { return e.failedOver() }}
)

// exited is met when a process ended by itself that many times.
func exited(process string, times int) Condition {
	return Condition{fmt.Sprintf("%s ended %d times", process, times), func(e *Env, _ *check.Findings) bool {
		n := 0
		for _, p := range e.Processes() {
			if p.Name == process || strings.HasPrefix(p.Name, process+"-") {
				n += p.Exits()
			}
		}
		return n >= times
	}}
}

// Fault is one that was made.
type Fault struct {
	check.Fault
	// observed: it is the end of a process, which the process itself remembers.
	observed bool
}

// Env is what a scenario works with.
type Env struct {
	*cluster.Cluster
	Scenario *Scenario
	Seed     uint64
	Store    string
	Mode     string
	Dur      time.Duration
	// Lease is how long a silent worker keeps its tasks.
	Lease time.Duration
	// Tasks is how many a soak submits.
	Tasks    int
	Rand     *rand.Rand
	Function string
	Shape    load.Shape
	// Extra are variables for all processes of Treadle.
	Extra []string
	// Root is the repository, RunDir where the run is kept.
	Root, RunDir string

	log *history.Writer
	// loadEnd is when the faults were over.
	loadEnd int64
	// base and emptyKeys are what a soak is compared with.
	base      baseline
	emptyKeys int

	mu        sync.Mutex
	faults    []Fault
	failovers int
	notes     []string
}

// Mark writes a fault down that is about to be made.
func (e *Env) Mark(what string, agents ...int) error {
	e.mu.Lock()
	e.faults = append(e.faults, Fault{Fault: check.Fault{At: history.Now(), What: what, Agents: agents}})
	e.mu.Unlock()
	return e.log.Write(history.Event{Type: "fault", Op: what})
}

// saw writes a fault down that a process made by itself.
func (e *Env) saw(what string) error {
	e.mu.Lock()
	e.faults = append(e.faults, Fault{check.Fault{At: history.Now(), What: what}, true})
	e.mu.Unlock()
	return e.log.Write(history.Event{Type: "fault", Op: what})
}

// evidentFaults are the faults of the run with the processes that ended by themselves.
func (e *Env) evidentFaults() (list []check.Fault) {
	for _, f := range e.Faults() {
		if !f.observed {
			list = append(list, f.Fault)
		}
	}
	for _, p := range e.Processes() {
		for _, d := range p.Deaths() {
			f := check.Fault{At: d.At, What: p.Name + " ended"}
			if strings.HasPrefix(p.Name, cluster.RoleWorker) {
				f.Agents = []int{d.PID}
			}
			list = append(list, f)
		}
	}
	return list
}

// Faults lists those that were made.
func (e *Env) Faults() []Fault {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.faults)
}

// SawFailover reports that another server is the primary.
func (e *Env) SawFailover() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failovers++
}

func (e *Env) failedOver() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failovers > 0
}

// Note adds a number to the record of the run.
func (e *Env) Note(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.notes = append(e.notes, fmt.Sprintf(format, args...))
}

// Pause lets the load run for about that long; the seed decides by how much it differs.
func (e *Env) Pause(ctx context.Context, d time.Duration) error {
	e.mu.Lock()
	d = time.Duration(float64(d) * (0.75 + e.Rand.Float64()/2))
	e.mu.Unlock()
	return wait(ctx, d)
}

// wait is for time that has to pass: the load runs meanwhile.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Pick draws a number below n.
func (e *Env) Pick(n int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Rand.IntN(n)
}

// Worker draws a worker.
func (e *Env) Worker() *cluster.Process { return e.Workers[e.Pick(len(e.Workers))] }

// Dispatcher draws a dispatcher.
func (e *Env) Dispatcher() *cluster.Process { return e.Dispatchers[e.Pick(len(e.Dispatchers))] }

// HistoryFile is a file of the run's history.
func (e *Env) HistoryFile(name string) string { return filepath.Join(e.HistoryDir(), name) }

// Embedded says whether everything but the workers is one process.
func (e *Env) Embedded() bool { return e.Store == "embedded" }

// repeat makes a fault again and again, about every period, until the time is over.
func repeat(ctx context.Context, e *Env, period time.Duration, fault func() error) error {
	end := time.Now().Add(e.Dur)
	for {
		if err := e.Pause(ctx, period); err != nil {
			return err
		}
		if time.Now().After(end) {
			return nil
		}
		if err := fault(); err != nil {
			return err
		}
	}
}
