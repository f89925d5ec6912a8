// Package bench measures a running Treadle: the throughput and the latency of a
// function that does nothing, so that what remains is the fabric. `treadle bench` is
// its front; the Go benchmark beside it starts a whole stack of processes.
package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	hdrhistogram "github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// Scenarios, in the order in which they run.
const (
	// ScenarioBatch: a few clients, each submits a batch, awaits all its results and
	// begins again.
	ScenarioBatch = "batch"
	// ScenarioCallers: many goroutines call one task at a time through one client,
	// which sends together what has queued up.
	ScenarioCallers = "callers"
	// ScenarioLatency: one call after the other over gRPC.
	ScenarioLatency = "latency"
	// ScenarioRESTCall: one POST /v1/functions/{id}:call after the other.
	ScenarioRESTCall = "rest-call"
	// ScenarioRESTRoot: one POST /execute_function after the other, each followed by
	// GET /result until the task is finished.
	ScenarioRESTRoot = "rest-root"
)

// Scenarios lists all of them.
var Scenarios = []string{ScenarioBatch, ScenarioCallers, ScenarioLatency, ScenarioRESTCall, ScenarioRESTRoot}

// Runtimes that can be measured.
const (
	RuntimePython = "python"
	// RuntimeGo is a Go handler called [GoFunction] on a worker of its own.
	RuntimeGo  = "go"
	GoFunction = "treadle.noop"
)

const pythonNoop = "def noop(*args, **kwargs):\n    return None\n"

// Config says what to measure. Address is required; zero fields mean the defaults.
type Config struct {
	// Address is that of gRPC, HTTPAddr that of REST.
	Address  string
	HTTPAddr string
	// TLS is spoken with both, nil for plain text; Token is shown, empty for none.
	TLS   *tls.Config
	Token string
	// Mode is a label of the runs: how tasks get to the workers.
	Mode string
	// Runtime is RuntimePython (default) or RuntimeGo.
	Runtime string
	// Scenarios default to all.
	Scenarios []string
	// Duration is how long each scenario lasts, default 5 s; Tasks ends it earlier
	// when it is not 0.
	Duration time.Duration
	Tasks    int
	// Batch (default 256) and Clients (default 8) shape ScenarioBatch, Callers (default
	// 512) ScenarioCallers.
	Batch, Clients, Callers int
	// PIDs are the processes of the server and the workers on this machine, whose
	// processor time counts, that of their children included.
	PIDs []int
	// Progress, when set, is told how many tasks are done, from any goroutine.
	Progress func(scenario string, done int64)
}

func (c *Config) fill() {
	if c.Runtime == "" {
		c.Runtime = RuntimePython
	}
	if len(c.Scenarios) == 0 {
		c.Scenarios = Scenarios
	}
	if c.Duration == 0 {
		c.Duration = 5 * time.Second
	}
	if c.Batch == 0 {
		c.Batch = 256
	}
	if c.Clients == 0 {
		c.Clients = 8
	}
	if c.Callers == 0 {
		c.Callers = 512
	}
	if c.Progress == nil {
		c.Progress = func(string, int64) {}
	}
}

// runner is one Run.
type runner struct {
	Config
	client   *treadle.Client
	function string
	rest     *restClient // nil without HTTPAddr

	// Of the scenario that runs:
	scenario string
	done     atomic.Int64
	left     atomic.Int64 // tasks that nobody took yet
	end      time.Time
	mu       sync.Mutex
	latency  *hdrhistogram.Histogram
}

// Run measures the scenarios one after the other. Scenarios that do not fit (REST
// without an HTTP address, pickles for a Go handler) are left out.
func Run(ctx context.Context, cfg Config) ([]Measurement, error) {
	cfg.fill()
	for _, s := range cfg.Scenarios {
		if !slices.Contains(Scenarios, s) {
			return nil, fmt.Errorf("scenario %q: want %s", s, strings.Join(Scenarios, ", "))
		}
	}
	client, err := treadle.Dial(cfg.Address, treadle.WithUserAgent("treadle-bench"),
		treadle.WithTLS(cfg.TLS), treadle.WithCA(""), treadle.WithToken(cfg.Token))
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	r := &runner{Config: cfg, client: client}
	if r.function, err = r.register(ctx); err != nil {
		return nil, err
	}
	if cfg.HTTPAddr != "" {
		r.rest = newRESTClient(cfg, r.function)
		defer r.rest.close()
	}
	// The first call waits for a worker, and loads the function there.
	if err := r.firstCall(ctx); err != nil {
		return nil, err
	}
	var out []Measurement
	for _, s := range Scenarios {
		run := r.work(s)
		if run == nil || !slices.Contains(cfg.Scenarios, s) {
			continue
		}
		m, err := r.measure(ctx, s, run)
		if err != nil {
			return out, fmt.Errorf("%s: %w", s, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// register makes the function that does nothing, and waits until a Go worker has
// made its own.
func (r *runner) register(ctx context.Context) (string, error) {
	if r.Runtime == RuntimePython {
		fn, err := r.client.Register(ctx, treadle.Registration{Name: "noop", Source: pythonNoop, Transient: true})
		if err != nil {
			return "", err
		}
		return fn.ID, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// Nothing announces to clients that a worker came: look until it did.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		fn, err := r.client.Function(ctx, GoFunction)
		if err == nil {
			return fn.ID, nil
		}
		if !errors.Is(err, treadle.ErrNotFound) {
			return "", err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("no worker serves the Go handler %s: %w", GoFunction, context.Cause(ctx))
		}
	}
}

// firstCallTimeout allows for a worker that installs what its interpreter lacks.
const firstCallTimeout = 90 * time.Second

func (r *runner) firstCall(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, firstCallTimeout,
		fmt.Errorf("no worker ran a %s task within %s", r.Runtime, firstCallTimeout))
	defer cancel()
	if err := r.client.Call(ctx, r.function, nil); err != nil {
		return fmt.Errorf("first call: %w", err)
	}
	return nil
}

// work returns what a scenario does, nil when it does not fit.
func (r *runner) work(scenario string) func(context.Context) error {
	switch scenario {
	case ScenarioBatch:
		return r.batches
	case ScenarioCallers:
		return func(ctx context.Context) error { return r.callers(ctx, r.Callers) }
	case ScenarioLatency:
		return func(ctx context.Context) error { return r.callers(ctx, 1) }
	case ScenarioRESTCall:
		if r.rest != nil {
			return func(ctx context.Context) error { return r.sequence(ctx, r.rest.call) }
		}
	case ScenarioRESTRoot:
		if r.rest != nil && r.Runtime == RuntimePython {
			return func(ctx context.Context) error { return r.sequence(ctx, r.rest.root) }
		}
	}
	return nil
}

// measure runs a scenario with the clocks on.
func (r *runner) measure(ctx context.Context, scenario string, run func(context.Context) error) (Measurement, error) {
	// A tenth of the time first: caches fill, windows open, connections are made.
	r.scenario, r.latency = scenario, newHistogram()
	r.begin(r.Duration/10, 0)
	if err := run(ctx); err != nil {
		return Measurement{}, err
	}
	r.latency = newHistogram()
	own, others, machine := ownTime(), processTime(r.PIDs), machineTime()
	start := time.Now()
	r.begin(r.Duration, r.Tasks)
	if err := run(ctx); err != nil {
		return Measurement{}, err
	}
	took := time.Since(start)
	own, others = ownTime()-own, processTime(r.PIDs)-others
	n := r.done.Load()
	if n == 0 {
		return Measurement{}, errors.New("no task was finished in that time")
	}
	m := Measurement{
		Mode: r.Mode, Runtime: r.Runtime, Scenario: scenario, Tasks: n, Seconds: took.Seconds(),
		TasksPerSecond: float64(n) / took.Seconds(),
	}
	switch scenario {
	case ScenarioBatch:
		m.Clients, m.Batch = r.Clients, r.Batch
	case ScenarioCallers:
		m.Clients = r.Callers
	default:
		m.Clients = 1
	}
	m.Latency = percentiles(r.latency)
	if used := own + others; len(r.PIDs) > 0 && used > 0 {
		m.CPUMicrosPerTask = float64(used.Microseconds()) / float64(n)
		m.ServedCPUMicrosPerTask = float64(others.Microseconds()) / float64(n)
		if all := machineTime() - machine; all > 0 {
			m.ForeignCPU = max(0, (all-used).Seconds()/took.Seconds())
		}
	}
	return m, nil
}

// begin sets the clock, or the number of tasks when that is not 0.
func (r *runner) begin(d time.Duration, tasks int) {
	r.done.Store(0)
	r.left.Store(math.MaxInt64)
	r.end = time.Now().Add(d)
	if tasks > 0 {
		r.left.Store(int64(tasks))
		r.end = time.Now().Add(24 * time.Hour)
	}
}

// take asks for up to n more tasks; 0 ends the work.
func (r *runner) take(n int) int {
	if !time.Now().Before(r.end) {
		return 0
	}
	before := r.left.Add(int64(-n)) + int64(n)
	return int(min(max(before, 0), int64(n)))
}

func (r *runner) finished(n int, took time.Duration) {
	r.Progress(r.scenario, r.done.Add(int64(n)))
	r.mu.Lock()
	defer r.mu.Unlock()
	// The histogram refuses what is out of its range: an hour is long enough.
	_ = r.latency.RecordValue(took.Microseconds())
}

// batches is ScenarioBatch.
func (r *runner) batches(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range r.Clients {
		g.Go(func() error {
			for n := r.take(r.Batch); n > 0; n = r.take(r.Batch) {
				start := time.Now()
				if err := r.oneBatch(ctx, n); err != nil {
					return err
				}
				r.finished(n, time.Since(start))
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *runner) oneBatch(ctx context.Context, n int) error {
	requests := make([]treadle.Request, n)
	for i := range requests {
		requests[i].Function = r.function
	}
	submitted, err := r.client.ExecuteBatch(ctx, requests)
	if err != nil {
		return err
	}
	ids := make([]string, n)
	for i, s := range submitted {
		if s.Err != nil {
			return s.Err
		}
		ids[i] = s.TaskID
	}
	got := 0
	for result, err := range r.client.Await(ctx, ids) {
		if err == nil {
			err = result.Err()
		}
		if err != nil {
			return err
		}
		got++
	}
	if got != n {
		return fmt.Errorf("%d results of %d tasks", got, n)
	}
	return nil
}

// callers lets n goroutines call one task after the other.
func (r *runner) callers(ctx context.Context, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	for range n {
		g.Go(func() error {
			return r.sequence(ctx, func(ctx context.Context) error { return r.client.Call(ctx, r.function, nil) })
		})
	}
	return g.Wait()
}

// sequence runs one task after the other.
func (r *runner) sequence(ctx context.Context, one func(context.Context) error) error {
	for r.take(1) > 0 {
		start := time.Now()
		if err := one(ctx); err != nil {
			return err
		}
		r.finished(1, time.Since(start))
	}
	return nil
}

// newHistogram counts microseconds up to an hour, to three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Hour.Microseconds(), 3) }

func percentiles(h *hdrhistogram.Histogram) Latency {
	ms := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	return Latency{
		P50: ms(50), P90: ms(90), P99: ms(99), P999: ms(99.9), Max: float64(h.Max()) / 1000, Mean: h.Mean() / 1000,
	}
}
