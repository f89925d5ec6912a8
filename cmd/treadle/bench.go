package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/bench"
	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/worker"
)

// benchFlags are the choices of one run of the load generator.
type benchFlags struct {
	up                      bool
	modes, runtimes         []string
	scenarios               []string
	duration                time.Duration
	tasks, batch            int
	clients, callers, slots int
	python, store, httpAddr string
	pids                    []int
	json                    bool
	sessionFlags
}

func newBenchCommand() *cobra.Command {
	b := &benchFlags{}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure throughput, latency and CPU per task with a function that does nothing",
		Long: `Measure a function that does nothing, so that what remains is the fabric.

Without --up the server at --address is measured as it is. With --up each mode gets
processes of its own on free ports, with a new data folder, which are stopped afterwards.

Scenarios:
  batch      --clients at once, each submits --batch tasks, awaits all, begins again
  callers    --callers goroutines of one client, each calls one task after the other
  latency    one call after the other over gRPC
  rest-call  one POST /v1/functions/{id}:call after the other
  rest-root  one POST /execute_function after the other, each with GET /result until done

Every task is recorded, run and its result fetched. The latency of batch is that of a
whole batch. CPU is that of all processes together, where their ids are known.

With --sessions it measures what many attached workers cost their dispatcher instead: this
process attaches so many simulated workers, which run every task at once, and reports what
the server needs while they only beat, the latency of one call after the other, and the rate
and the server's CPU of batches, also as ratios to the first number. With --up each number
gets a server of its own; a running one tells its CPU and memory by --pid.`,
		Example: `  treadle bench --up
  treadle bench --up --mode push,pull --runtime go --duration 10s
  treadle bench --scenario latency --tasks 5000
  treadle bench --up --json > result.json
  treadle bench --up --sessions 1,100,1000,10000
  treadle bench --up --sessions 1,1000 --session-layout shared,own --mode push,pull`,
		Args:        arguments(0, 0, ""),
		RunE:        func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
		Annotations: map[string]string{clientMark: "true"},
	}
	fl := cmd.Flags()
	fl.BoolVar(&b.up, "up", false, "start processes of its own instead of measuring the server at --address")
	fl.StringSliceVar(&b.modes, "mode", []string{bench.ModeLocal, bench.ModePush, bench.ModePull}, "modes to start with --up")
	fl.StringSliceVar(&b.runtimes, "runtime", nil, "python, go (default python, and without --up those that workers serve)")
	fl.StringSliceVar(&b.scenarios, "scenario", bench.Scenarios, "what to measure")
	fl.DurationVar(&b.duration, "duration", 5*time.Second, "how long each scenario lasts")
	fl.IntVar(&b.tasks, "tasks", 0, "end each scenario after that many tasks instead")
	fl.IntVar(&b.batch, "batch", 256, "tasks of one request, in scenario batch")
	fl.IntVar(&b.clients, "clients", 8, "batches at once, in scenario batch")
	fl.IntVar(&b.callers, "callers", 512, "calls at once, in scenario callers")
	fl.IntVar(&b.slots, "slots", defaultSlots(), "slots to start with --up")
	fl.StringVar(&b.python, "python", "python3", "interpreter to start with --up")
	fl.StringVar(&b.store, "store", "embedded:", "store URL to start with --up")
	fl.StringVar(&b.httpAddr, "http-addr", "127.0.0.1:8000", "where the server at --address has REST; empty leaves REST out")
	fl.IntSliceVar(&b.pids, "pid", nil, "processes of the server at --address whose CPU counts, beside its workers here")
	b.sessionFlags.register(cmd)
	addJSONFlag(cmd, &b.json, "print one JSON object with facts of the machine")
	return cmd
}

func (b *benchFlags) run(cmd *cobra.Command) error {
	if err := errors.Join(b.validate(), b.validateSessions(cmd)); err != nil {
		return err
	}
	report := &bench.Report{StartedAt: time.Now().UTC(), Version: versionOf().Version, Machine: bench.ThisMachine()}
	measure := b.measureRunning
	switch {
	case len(b.sessions) > 0:
		measure = b.measureSessions
	case b.up:
		measure = b.measureOwn
	}
	err := measure(cmd, report)
	if len(report.Runs) > 0 || len(report.Sessions) > 0 {
		// What was measured before an error is shown all the same.
		if b.json {
			err = errors.Join(err, printJSON(cmd.OutOrStdout(), report))
		} else {
			err = errors.Join(err, report.Print(cmd.OutOrStdout()))
		}
	}
	return err
}

func (b *benchFlags) validate() error {
	one := func(flag, value string, words ...string) error {
		if slices.Contains(words, value) {
			return nil
		}
		return misuse("--%s %q: want %s", flag, value, strings.Join(words, ", "))
	}
	var errs []error
	for _, m := range b.modes {
		errs = append(errs, one("mode", m, bench.ModeLocal, bench.ModePush, bench.ModePull))
	}
	for _, r := range b.runtimes {
		errs = append(errs, one("runtime", r, bench.RuntimePython, bench.RuntimeGo))
	}
	for _, s := range b.scenarios {
		errs = append(errs, one("scenario", s, bench.Scenarios...))
	}
	positive := map[string]int{"batch": b.batch, "clients": b.clients, "callers": b.callers, "slots": b.slots}
	for _, flag := range []string{"batch", "clients", "callers", "slots"} {
		if positive[flag] < 1 {
			errs = append(errs, misuse("--%s %d: want at least 1", flag, positive[flag]))
		}
	}
	switch {
	case b.batch > 10_000:
		errs = append(errs, misuse("--batch %d: want at most 10000", b.batch))
	case b.duration <= 0:
		errs = append(errs, misuse("--duration %s: want a time above 0", b.duration))
	case b.tasks < 0:
		errs = append(errs, misuse("--tasks %d: want 0 (by time) or more", b.tasks))
	}
	return errors.Join(errs...)
}

// config is what the scenarios need, the addresses excepted.
func (b *benchFlags) config(mode, runtime string) bench.Config {
	return bench.Config{
		Mode: mode, Runtime: runtime, Scenarios: b.scenarios, Duration: b.duration, Tasks: b.tasks,
		Batch: b.batch, Clients: b.clients, Callers: b.callers,
	}
}

// measureRunning measures the server that is there.
func (b *benchFlags) measureRunning(cmd *cobra.Command, report *bench.Report) error {
	return b.onRunning(cmd, report, func(t *benchTarget) error {
		workers, err := t.client.Workers(cmd.Context())
		if err != nil {
			return err
		}
		if len(workers) == 0 {
			return fmt.Errorf("no worker is attached to %s: start one with 'treadle worker'", t.client.Address())
		}
		mode, runtimes, pids := survey(workers)
		if len(b.runtimes) > 0 {
			runtimes = b.runtimes
		}
		t.pids = slices.Concat(pids, t.pids)
		for _, runtime := range runtimes {
			if err := b.scenariosOf(cmd, t, b.config(mode, runtime), report); err != nil {
				return err
			}
		}
		return nil
	})
}

// survey says how tasks get to the workers, what those run, and which of their
// processes are on this machine. A local pool's process is the server's.
func survey(workers []treadle.Worker) (mode string, runtimes []string, pids []int) {
	here, err := os.Hostname()
	modes := map[string]bool{}
	for _, w := range workers {
		modes[w.Mode] = true
		if err == nil && w.Host == here {
			pids = append(pids, w.PID)
		}
		if slices.Contains(w.Runtimes, "python") && !slices.Contains(runtimes, bench.RuntimePython) {
			runtimes = append(runtimes, bench.RuntimePython)
		}
		if slices.Contains(w.Runtimes, "go/"+bench.GoFunction) && !slices.Contains(runtimes, bench.RuntimeGo) {
			runtimes = append(runtimes, bench.RuntimeGo)
		}
	}
	for _, m := range []string{bench.ModeLocal, bench.ModePush, bench.ModePull} {
		if modes[m] && mode != "" {
			mode += "+"
		}
		if modes[m] {
			mode += m
		}
	}
	return mode, runtimes, pids
}

// measureOwn starts processes for each mode and runtime.
func (b *benchFlags) measureOwn(cmd *cobra.Command, report *bench.Report) error {
	runtimes := b.runtimes
	if len(runtimes) == 0 {
		runtimes = []string{bench.RuntimePython}
	}
	for _, mode := range b.modes {
		for _, runtime := range runtimes {
			if mode == bench.ModeLocal && runtime == bench.RuntimeGo {
				continue // the pool of a server has no Go handlers
			}
			cfg := bench.StackConfig{Mode: mode, Runtime: runtime, Slots: b.slots, Python: b.python}
			err := b.onStack(cmd, cfg, report, func(t *benchTarget) error {
				return b.scenariosOf(cmd, t, b.config(mode, runtime), report)
			})
			if err != nil {
				return fmt.Errorf("%s, %s: %w", mode, runtime, err)
			}
		}
	}
	if len(report.Runs) == 0 {
		return misuse("go handlers need --mode push or pull: the pool of a server has none")
	}
	return nil
}

// scenariosOf runs the scenarios.
func (b *benchFlags) scenariosOf(cmd *cobra.Command, t *benchTarget, cfg bench.Config, report *bench.Report) error {
	t.set(&cfg)
	total := int64(-1)
	if b.tasks > 0 {
		total = int64(b.tasks)
	}
	defer showProgress(cmd, &cfg, total, cfg.Mode+" "+cfg.Runtime)()
	runs, err := bench.Run(cmd.Context(), cfg)
	report.Runs = append(report.Runs, runs...)
	return err
}

// newBenchWorkerCommand is the worker of `bench --up --runtime go`: a handler that
// does nothing.
func newBenchWorkerCommand() *cobra.Command {
	var dispatcher, mode string
	var slots int
	cmd := &cobra.Command{
		Use:     "bench-worker",
		Short:   "Serve the Go handler that bench measures",
		Example: "  treadle bench-worker --dispatcher 127.0.0.1:50051",
		Hidden:  true,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var handlers worker.Handlers
			worker.HandleIn(&handlers, bench.GoFunction, func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
			log, flush, err := newLogger(cmd.ErrOrStderr(), "warn", "text")
			if err != nil {
				return err
			}
			defer flush()
			return worker.Serve(cmd.Context(), worker.Options{
				Dispatchers: []string{dispatcher}, Mode: link.Mode(mode), Slots: slots, Handlers: &handlers, Logger: log,
			})
		},
	}
	cmd.Flags().StringVar(&dispatcher, "dispatcher", "127.0.0.1:50051", "HOST:PORT of the dispatcher")
	cmd.Flags().Var(newChoice(&mode, "push", "push", "pull"), "mode", "who starts each delivery")
	cmd.Flags().IntVar(&slots, "slots", defaultSlots(), "how many handlers run at once")
	return cmd
}
