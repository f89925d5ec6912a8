package scenario

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/chaos/check"
	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/chaos/sandbox"
	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/store/storetap"
)

// Options are those of one run.
type Options struct {
	Seed  uint64
	Store string
	Mode  string
	// Dur is how long faults are made.
	Dur time.Duration
	// Binary is the program, Python the workers' interpreter.
	Binary, Python string
	// Plain says that the binary is one that users get: it has no tap and no kill points.
	Plain bool
	// Dir is where the run is kept, Root the repository.
	Dir, Root string
	// Env is added to all processes of Treadle.
	Env []string
	// Lease is that of the run, the product's default when 0.
	Lease time.Duration
	// Slack stretches the bounds of recoveries, for machines that have other work to do.
	Slack float64
	// Tasks is how many a soak submits.
	Tasks int
}

// Report is what came of a run.
type Report struct {
	Row      int    `json:"row"`
	Name     string `json:"name"`
	Fault    string `json:"fault"`
	Expect   string `json:"expect"`
	Store    string `json:"store"`
	Promise  string `json:"durability"`
	Mode     string `json:"mode"`
	Seed     uint64 `json:"seed"`
	Command  string `json:"command"`
	Firewall bool   `json:"dropped_packets"`
	check.Findings
	Faults int `json:"faults"`
	// Recovery is in seconds, 0 when it was not measured; Bound what is allowed.
	Recovery  float64  `json:"recovery_seconds"`
	Recovered int      `json:"recoveries"`
	Bound     float64  `json:"bound_seconds"`
	Took      float64  `json:"took_seconds"`
	Notes     []string `json:"notes,omitempty"`
	// Failures are why the run failed; empty for one that passed.
	Failures []string `json:"failures,omitempty"`
	Dir      string   `json:"dir,omitempty"`
}

// OK says that the run passed.
func (r *Report) OK() bool { return len(r.Failures) == 0 }

const (
	// warmUp lets the load begin before the first fault.
	warmUp = 1500 * time.Millisecond
	// drainLimit is how long the tasks that are left may take when the faults are over: a
	// lease, the backoff of a task that lost its worker again and again, and a little.
	drainLimit = 45 * time.Second
	// stopLimit is how long a process may take to end after SIGTERM.
	stopLimit = 15 * time.Second
)

// Run runs a scenario once.
func Run(ctx context.Context, s *Scenario, o Options) *Report {
	began := time.Now()
	r := &Report{
		Row: s.Row, Name: s.Name, Fault: s.Fault, Expect: s.Expect, Store: o.Store, Mode: o.Mode, Seed: o.Seed, Dir: o.Dir,
		Command: fmt.Sprintf("chaos run -seed %d -store %s -mode %s -faults %s -dur %s", o.Seed, o.Store, o.Mode, s.Name, o.Dur),
	}
	e := &Env{
		Scenario: s, Seed: o.Seed, Store: o.Store, Mode: o.Mode, Dur: o.Dur, Lease: cmp.Or(o.Lease, defaultLease), Tasks: o.Tasks, Extra: o.Env,
		Rand: rand.New(rand.NewPCG(o.Seed, 0x7472656164)), Shape: load.DefaultShape(), Root: o.Root, RunDir: o.Dir,
	}
	if o.Lease != 0 {
		r.Command += fmt.Sprintf(" -lease %s", o.Lease)
	}
	if s.Soak {
		r.Command += fmt.Sprintf(" -tasks %d", o.Tasks)
	}
	if s.Bound > 0 {
		r.Bound = s.Bound.Seconds() * max(o.Slack, 1)
		if s.PlusLease {
			r.Bound += e.Lease.Seconds()
		}
	}
	if s.BoundOf != nil {
		r.Bound = s.BoundOf(e).Seconds() * max(o.Slack, 1)
	}
	if s.Shape != nil {
		s.Shape(e, &e.Shape)
	}
	err := run(ctx, e, o, r)
	if err != nil {
		r.Failures = append(r.Failures, err.Error())
	}
	if e.Cluster != nil {
		e.Close()
		if left := strays(ctx); len(left) > 0 {
			r.Failures = append(r.Failures, fmt.Sprintf("%d processes outlived the run: %s", len(left), strings.Join(left, "; ")))
		}
	}
	r.Notes, r.Faults = e.notes, len(e.Faults())
	r.Took = time.Since(began).Seconds()
	return r
}

// strays gives what a killed agent leaves behind the second that it may take.
func strays(ctx context.Context) (left []string) {
	err := cluster.Await(ctx, "everything has gone", 1500*time.Millisecond, func(context.Context) (bool, error) {
		left = cluster.Strays()
		return len(left) == 0, nil
	})
	if err == nil {
		return nil
	}
	return left
}

func run(ctx context.Context, e *Env, o Options, r *Report) error {
	s := e.Scenario
	if s.NeedsRoot && !sandbox.Inside() {
		return errors.New("it needs root, for namespaces of its own")
	}
	if s.Solo != nil {
		return s.Solo(ctx, e)
	}
	spec := cluster.Spec{
		Store: o.Store, Mode: o.Mode, Binary: o.Binary, Python: o.Python, Dir: o.Dir, Workers: 3, Slots: 4, Tap: !o.Plain, Lease: o.Lease,
		Args: map[string][]string{}, Env: map[string][]string{}, Once: map[string][]string{}, FDs: map[string]int{},
		UID: map[string]int{}, Sentinels: map[string][]int{},
	}
	for _, role := range []string{cluster.RoleUp, cluster.RoleServer, cluster.RoleDispatcher, cluster.RoleWorker} {
		spec.Env[role] = slices.Clone(o.Env)
	}
	if s.Spec != nil {
		s.Spec(e, &spec)
	}
	var err error
	if e.Cluster, err = cluster.Launch(ctx, spec); err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	r.Promise, r.Firewall = e.Promise(), e.Firewall != nil
	if e.log, err = history.Create(e.HistoryFile("harness.jsonl"), "harness"); err != nil {
		return err
	}
	defer e.log.Close()
	f, err := e.API().Register(ctx, treadle.Registration{Name: "work", Source: load.Source, RequestID: "register-work"})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	e.Function = f.ID
	clients := s.Clients
	if clients == 0 {
		clients = 4
	}
	if clients > 0 {
		if err := e.StartClients(1, clients, o.Seed, f.ID, e.Shape); err != nil {
			return err
		}
	}
	if err := wait(ctx, warmUp); err != nil {
		return err
	}
	if err := s.Inject(ctx, e); err != nil {
		return fmt.Errorf("inject: %w", err)
	}
	if s.Ends {
		return e.met(r)
	}
	return finish(ctx, e, r)
}

// finish ends the faults, lets the cluster come to rest and looks at what is left.
func finish(ctx context.Context, e *Env, r *Report) error {
	s := e.Scenario
	e.loadEnd = history.Now()
	if err := e.Heal(); err != nil {
		return err
	}
	if err := e.reviveAll(); err != nil {
		return err
	}
	if err := e.StopClients(e.Shape.Patience + 10*time.Second); err != nil {
		return err
	}
	if e.Shape.Longs > 0 {
		// Workers that drain hand back what lasts longer than they wait: an execution more that
		// no fault explains.
		if err := e.drain(ctx); err != nil {
			return fmt.Errorf("before the last restart: %w", err)
		}
	}
	if !s.NoRestart {
		if err := e.restartAll(ctx); err != nil {
			return err
		}
	}
	if err := e.drain(ctx); err != nil {
		return err
	}
	evidence, err := e.collect(ctx)
	if err != nil {
		return err
	}
	if s.MayLose != nil {
		evidence.MayLose = s.MayLose(e)
	}
	r.Findings = *check.Run(evidence)
	r.Failures = append(r.Failures, r.Violations...)
	e.recovery(evidence, r)
	if err := e.met(r); err != nil {
		r.Failures = append(r.Failures, err.Error())
	}
	if s.After != nil {
		if err := s.After(ctx, e); err != nil {
			r.Failures = append(r.Failures, err.Error())
		}
	}
	if err := e.StopAll(stopLimit); err != nil {
		r.Failures = append(r.Failures, err.Error())
	}
	if err := e.CheckStore(ctx); err != nil {
		r.Failures = append(r.Failures, "I18: "+err.Error())
	}
	return nil
}

// met says what should have happened in the run and did not.
func (e *Env) met(r *Report) error {
	var errs []error
	for _, c := range e.Scenario.Sometimes {
		if !c.Met(e, &r.Findings) {
			errs = append(errs, errors.New("this run proves nothing, as it never happened that "+c.Name))
		}
	}
	return errors.Join(errs...)
}

// reviveAll starts what a scenario left down.
func (e *Env) reviveAll() error {
	if e.Redis != nil {
		for _, s := range e.Redis.Servers {
			if !alive(s.PID()) {
				if err := s.Run(); err != nil {
					return err
				}
			}
		}
	}
	// The server goes first, as the others may need its store.
	for _, p := range e.Processes() {
		if !p.Running() {
			if err := p.Start(); err != nil {
				return err
			}
		}
	}
	return nil
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// restartAll restarts every process once, as an update would.
func (e *Env) restartAll(ctx context.Context) error {
	if err := e.AwaitWorkers(ctx, len(e.Workers)); err != nil {
		return fmt.Errorf("before the last restart: %w", err)
	}
	for _, p := range e.Processes() {
		if err := p.Stop(stopLimit); err != nil {
			return err
		}
		if err := p.Start(); err != nil {
			return err
		}
	}
	return e.AwaitWorkers(ctx, len(e.Workers))
}

// drain waits until every task has ended and every worker let go: I1, I16.
func (e *Env) drain(ctx context.Context) error {
	var left string
	err := cluster.Await(ctx, "every task has ended", drainLimit, func(ctx context.Context) (bool, error) {
		queues, err := e.API().Queues(ctx)
		if err != nil {
			return false, err
		}
		left = fmt.Sprintf("%+v", queues)
		for _, q := range queues {
			if q.Queued+q.Running > 0 {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("I1: %w; left: %s", err, left)
	}
	err = cluster.Await(ctx, "every worker has its credit back", 8*time.Second, func(ctx context.Context) (bool, error) {
		workers, err := e.API().Workers(ctx)
		if err != nil {
			return false, err
		}
		left = fmt.Sprintf("%+v", workers)
		for _, w := range workers {
			if w.Running+w.Offered > 0 {
				return false, nil
			}
		}
		return len(workers) > 0, nil
	})
	if err != nil {
		return fmt.Errorf("I16: %w; left: %s", err, left)
	}
	return nil
}

// collect reads the histories and the final state of every task.
func (e *Env) collect(ctx context.Context) (*check.Evidence, error) {
	ev := &check.Evidence{}
	files, err := filepath.Glob(e.HistoryFile("client-*.jsonl"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		events, err := history.Read[history.Event](f)
		if err != nil {
			return nil, err
		}
		ops, err := history.Operations(events)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		ev.Operations = append(ev.Operations, ops...)
	}
	if ev.Runs, err = history.Read[history.Run](e.Ledger()); err != nil {
		return nil, err
	}
	if files, err = filepath.Glob(e.HistoryFile("store-*.jsonl")); err != nil {
		return nil, err
	}
	for _, f := range files {
		entries, err := history.Read[storetap.Entry](f)
		if err != nil {
			return nil, err
		}
		ev.Store = append(ev.Store, entries...)
	}
	ev.Faults, ev.Strands = e.evidentFaults(), e.Scenario.Strands
	// A worker runs as many as it has slots and holds as many again for them.
	ev.Capacity = 2 * e.Spec.Workers * e.Slots
	ev.Lease = e.Lease
	ev.Final, err = e.final(ctx)
	return ev, err
}

// final lists every task of the load as it ended.
func (e *Env) final(ctx context.Context) ([]check.Record, error) {
	var list []check.Record
	index := map[string]int{}
	var done []string
	for t, err := range e.API().Tasks(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the tasks: %w", err)
		}
		if t.FunctionID != e.Function {
			continue // one of a scenario's own
		}
		r := check.Record{
			ID: t.ID, Status: string(t.Status), CreatedAt: t.CreatedAt, FinishedAt: t.FinishedAt, Deadline: t.Options.Deadline,
			Lost: t.LostWorkers, Attempts: t.AttemptCount,
		}
		if t.Options.MaxRetries != nil {
			r.MaxRetries = *t.Options.MaxRetries
		}
		if t.Error != nil {
			r.Class = t.Error.Type
			// The exception of a task that raises names its execution, as a result does.
			if _, text, ok := strings.Cut(t.Error.Message, "{"); ok {
				r.Run, _ = load.Decode(json.RawMessage("{" + text))
			}
		}
		for _, a := range t.Attempts {
			r.Ends = append(r.Ends, a.End)
		}
		index[t.ID] = len(list)
		list = append(list, r)
		if t.Status == treadle.Completed {
			done = append(done, t.ID)
		}
	}
	for part := range slices.Chunk(done, 1000) {
		for res, err := range e.API().Await(ctx, part) {
			if err != nil {
				return nil, fmt.Errorf("fetch the results: %w", err)
			}
			r := &list[index[res.TaskID]]
			r.Run, r.Key = load.Decode(res.JSON)
		}
	}
	return list, nil
}

// recovery measures how long the system needed after each fault.
func (e *Env) recovery(ev *check.Evidence, r *Report) {
	s := e.Scenario
	var worst time.Duration
	switch s.Recovery {
	case None:
		return
	case Restarts:
		var all []time.Duration
		for _, f := range e.Faults() {
			all = append(all, restarts(ev.Runs, f)...)
		}
		if len(all) == 0 {
			if s.Bound > 0 {
				r.Failures = append(r.Failures, "this run proves nothing: no task was running where the fault struck")
			}
			return
		}
		slices.Sort(all)
		worst, r.Recovered = all[(len(all)*99+99)/100-1], len(all)
	case Gap:
		for _, f := range e.Faults() {
			worst = max(worst, gap(ev, f.At, e.loadEnd))
			r.Recovered++
		}
	}
	r.Recovery = worst.Seconds()
	if r.Bound > 0 && r.Recovery > r.Bound {
		r.Failures = append(r.Failures, fmt.Sprintf("recovery took %.2f s, the bound is %.2f s", r.Recovery, r.Bound))
	}
}

// restarts are the times from a fault until each task that ran on a struck worker started
// elsewhere. Tasks that had lost a worker before wait for their backoff and are left out.
func restarts(runs []history.Run, f Fault) (list []time.Duration) {
	type life struct {
		start, end int64
		agent      int
	}
	byKey := map[string][]*life{}
	byRun := map[string]*life{}
	for _, l := range runs {
		switch l.What {
		case history.Started:
			x := &life{start: l.At, agent: l.Agent}
			byRun[l.Run] = x
			byKey[l.Key] = append(byKey[l.Key], x)
		case history.Ended:
			if x := byRun[l.Run]; x != nil {
				x.end = l.At
			}
		}
	}
	for _, lives := range byKey {
		slices.SortFunc(lives, func(a, b *life) int { return int(a.start - b.start) })
		first := lives[0]
		struck := slices.Contains(f.Agents, first.agent) && first.start < f.At && (first.end == 0 || first.end > f.At)
		if struck && len(lives) > 1 && lives[1].start > f.At {
			list = append(list, time.Duration(lives[1].start-f.At))
		}
	}
	return list
}

// gap is the longest time between a fault and an end in which nothing was confirmed, or
// nothing began to run, whichever is longer.
func gap(ev *check.Evidence, at, end int64) time.Duration {
	var confirmed, began []int64
	for _, op := range ev.Operations {
		if op.Invoke.Op == history.Submit && op.Return.Type == history.OK {
			confirmed = append(confirmed, op.Return.At)
		}
	}
	for _, l := range ev.Runs {
		if l.What == history.Started {
			began = append(began, l.At)
		}
	}
	return max(longest(confirmed, at, end), longest(began, at, end))
}

func longest(times []int64, from, to int64) time.Duration {
	slices.Sort(times)
	last, worst := from, int64(0)
	for _, t := range times {
		if t > from && t < to {
			worst = max(worst, t-last)
			last = t
		}
	}
	return time.Duration(max(worst, to-last))
}

// Keep says whether the folder of a run is worth keeping, and removes it otherwise.
func (r *Report) Keep(always bool) error {
	if always || !r.OK() {
		return nil
	}
	dir := r.Dir
	r.Dir = ""
	return errors.Join(os.RemoveAll(dir))
}
