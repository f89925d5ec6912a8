package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/task"
)

// Layouts of sessions.
const (
	// LayoutShared: many sessions on each connection, as behind a proxy that collects them.
	LayoutShared = "shared"
	// LayoutOwn: a connection for each session, as workers have.
	LayoutOwn = "own"
)

// SessionLayouts lists all of them.
var SessionLayouts = []string{LayoutShared, LayoutOwn}

// Limits of [SessionsConfig].
const (
	// MaxSessions is twice what one dispatcher is meant for. Each takes some 60 KiB of the
	// process that simulates it, with a connection of its own twice that, and a local port of
	// the 28,000 that Linux gives out.
	MaxSessions = 20_000
	// MaxSessionSlots is what a dispatcher takes of one worker.
	MaxSessionSlots = 4096
	// MaxSessionStreams is what a server takes on one connection.
	MaxSessionStreams = 1000
)

// SessionsConfig says what to measure with how many simulated workers attached. The zero
// value of an optional field means its default.
type SessionsConfig struct {
	// Config has the address, TLS and token, and shapes the batches. PIDs are the server alone,
	// without which neither its processor time nor its memory is known. Duration is how long
	// idling, calls and batches last each. Mode is ModePush (default) or ModePull. Runtime,
	// Scenarios, HTTPAddr and Callers do not matter.
	Config
	// Sessions attach, 1 to MaxSessions. Required.
	Sessions int
	// Layout is LayoutShared (default) or LayoutOwn.
	Layout string
	// Slots of each session, 1 (default) to MaxSessionSlots.
	Slots int
	// Streams is how many sessions share a connection in LayoutShared, 100 by default, up to
	// MaxSessionStreams.
	Streams int
	// BaseRSS is the memory of the server without sessions, in bytes. Default what it has when
	// the measurement begins, which is right for a server that has just been started.
	BaseRSS int64
}

// SessionMeasurement is what one number of sessions cost.
type SessionMeasurement struct {
	Mode     string `json:"mode"`
	Layout   string `json:"layout"`
	Sessions int    `json:"sessions"`
	// Slots are those of each session; Connections is how many carry the sessions.
	Slots       int `json:"slots"`
	Connections int `json:"connections"`
	// AttachSeconds is how long it took until each session had its Welcome.
	AttachSeconds float64 `json:"attach_seconds"`
	// Idle is nil where the processes of the server are not known.
	Idle *IdleCost `json:"idle,omitempty"`
	// Call is one call after the other, Batch as ScenarioBatch. Their ServedCPUMicrosPerTask is
	// that of the server alone.
	Call  Measurement `json:"call"`
	Batch Measurement `json:"batch"`
	// Ratio compares with the first number of sessions in the same mode and layout; nil for that.
	Ratio *SessionRatio `json:"ratio,omitempty"`
}

// IdleCost is what the server needs while the sessions only beat.
type IdleCost struct {
	// CPUPercent is that of one core.
	CPUPercent float64 `json:"cpu_percent"`
	// RSSBytes is the server's memory at the end of that time, BaseRSSBytes that without sessions,
	// BytesPerSession the difference for each session.
	RSSBytes        int64   `json:"rss_bytes"`
	BaseRSSBytes    int64   `json:"base_rss_bytes"`
	BytesPerSession float64 `json:"bytes_per_session"`
	// ForeignCPU is as in [Measurement].
	ForeignCPU float64 `json:"foreign_cpus"`
}

// SessionRatio holds quotients: the figure of this number of sessions by that of the first.
type SessionRatio struct {
	CallP50   float64 `json:"call_p50"`
	BatchRate float64 `json:"batch_rate"`
	// CPU is the server's processor time for a task in batches; 0 where it is not known.
	CPU float64 `json:"cpu_per_task,omitempty"`
}

// Against sets the ratio to what the first number of sessions cost.
func (m *SessionMeasurement) Against(first *SessionMeasurement) {
	m.Ratio = &SessionRatio{
		CallP50:   quotient(m.Call.Latency.P50, first.Call.Latency.P50),
		BatchRate: quotient(m.Batch.TasksPerSecond, first.Batch.TasksPerSecond),
		CPU:       quotient(m.Batch.ServedCPUMicrosPerTask, first.Batch.ServedCPUMicrosPerTask),
	}
}

func quotient(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func (c *SessionsConfig) fillSessions() error {
	c.fill()
	c.Runtime = RuntimeGo
	if c.Mode == "" {
		c.Mode = ModePush
	}
	if c.Layout == "" {
		c.Layout = LayoutShared
	}
	if c.Slots == 0 {
		c.Slots = 1
	}
	if c.Streams == 0 {
		c.Streams = 100
	}
	if c.Layout == LayoutOwn {
		c.Streams = 1
	}
	switch {
	case c.Mode != ModePush && c.Mode != ModePull:
		return fmt.Errorf("mode %q: want push or pull", c.Mode)
	case c.Layout != LayoutShared && c.Layout != LayoutOwn:
		return fmt.Errorf("session layout %q: want shared or own", c.Layout)
	case c.Sessions < 1 || c.Sessions > MaxSessions:
		return fmt.Errorf("%d sessions: want 1 to %d", c.Sessions, MaxSessions)
	case c.Slots < 1 || c.Slots > MaxSessionSlots:
		return fmt.Errorf("%d slots of a session: want 1 to %d", c.Slots, MaxSessionSlots)
	case c.Streams < 1 || c.Streams > MaxSessionStreams:
		return fmt.Errorf("%d sessions on a connection: want 1 to %d", c.Streams, MaxSessionStreams)
	}
	return c.enoughFiles(openFiles())
}

// spareFiles are the open files that a process has beside the connections of sessions: the
// store's tables and logs, listeners and clients.
const spareFiles = 512

// enoughFiles refuses more connections than the process may have open; 0 is no limit.
func (c *SessionsConfig) enoughFiles(limit uint64) error {
	need := uint64(connections(c.Sessions, c.Streams) + spareFiles)
	if limit == 0 || need <= limit {
		return nil
	}
	return fmt.Errorf("%d sessions in layout %q need %d open files in each process, and %d are allowed: raise that (ulimit -n %d), "+
		"or measure fewer sessions, or those that share connections (--session-layout shared)", c.Sessions, c.Layout, need, limit, need)
}

// Check says what [MeasureSessions] would refuse at once.
func (c SessionsConfig) Check() error { return c.fillSessions() }

// ServerConnections is the --max-connections that a server needs for the sessions. All of
// them come from one address, of which a server takes an eighth before they made a call, and
// 64 are opened at a time.
func (c SessionsConfig) ServerConnections() int {
	return max(4096, c.Sessions+1024) // 4096 is the default of a server
}

// MeasureSessions attaches simulated workers to the server and measures it: while they only
// beat, with one call after the other, and with batches. It detaches them before it returns.
func MeasureSessions(ctx context.Context, cfg SessionsConfig) (m SessionMeasurement, err error) {
	if err := cfg.fillSessions(); err != nil {
		return m, err
	}
	client, err := treadle.Dial(cfg.Address, treadle.WithUserAgent("treadle-bench"),
		treadle.WithTLS(cfg.TLS), treadle.WithCA(""), treadle.WithToken(cfg.Token))
	if err != nil {
		return m, err
	}
	defer func() { _ = client.Close() }()
	// The client has its connection before the memory is looked at.
	if _, err := client.Info(ctx); err != nil {
		return m, err
	}
	// The client has refused by now what a token must not travel to.
	options, err := linkpb.Security(cfg.TLS, cfg.Token, true, nil)
	if err != nil {
		return m, err
	}
	if cfg.BaseRSS == 0 {
		cfg.BaseRSS = residentBytes(cfg.PIDs)
	}
	m = SessionMeasurement{
		Mode: cfg.Mode, Layout: cfg.Layout, Sessions: cfg.Sessions, Slots: cfg.Slots, Connections: connections(cfg.Sessions, cfg.Streams),
	}
	start := time.Now()
	f, err := startFleet(ctx, fleetConfig{
		address: client.Address(), mode: link.Mode(cfg.Mode), sessions: cfg.Sessions, slots: cfg.Slots, streams: cfg.Streams,
		maxPayload: task.DefaultMaxPayload, options: options,
		attached: func(n int64) { cfg.Progress("attach", n) },
	})
	if err != nil {
		return m, err
	}
	defer f.stop()
	m.AttachSeconds = time.Since(start).Seconds()
	if err := f.settle(); err != nil {
		return m, err
	}
	r := &runner{Config: cfg.Config, client: client}
	return m, r.sessions(f, cfg, &m)
}

// sessions measures a fleet that is attached; what breaks it ends the measurement with its cause.
func (r *runner) sessions(f *fleet, cfg SessionsConfig, m *SessionMeasurement) (err error) {
	defer func() {
		if err != nil && f.ctx.Err() != nil {
			err = context.Cause(f.ctx)
		}
	}()
	if m.Idle, err = r.idle(f.ctx, cfg); err != nil {
		return err
	}
	if r.function, err = r.register(f.ctx); err != nil {
		return err
	}
	if err := r.firstCall(f.ctx); err != nil {
		return err
	}
	for _, s := range []struct {
		scenario string
		into     *Measurement
	}{{ScenarioLatency, &m.Call}, {ScenarioBatch, &m.Batch}} {
		if *s.into, err = r.bounded(f.ctx, s.scenario); err != nil {
			return fmt.Errorf("%s with %d sessions: %w", s.scenario, m.Sessions, err)
		}
	}
	return nil
}

// idle watches the server for the duration while nothing is to do.
func (r *runner) idle(ctx context.Context, cfg SessionsConfig) (*IdleCost, error) {
	own, others, machine, start := ownTime(), processTime(r.PIDs), machineTime(), time.Now()
	timer := time.NewTimer(r.Duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	own, others, machine = ownTime()-own, processTime(r.PIDs)-others, machineTime()-machine
	took, resident := time.Since(start), residentBytes(r.PIDs)
	if len(r.PIDs) == 0 || resident == 0 || cfg.BaseRSS == 0 {
		return nil, nil //nolint:nilnil // it is not known, which is no error
	}
	return &IdleCost{
		CPUPercent: 100 * others.Seconds() / took.Seconds(), RSSBytes: resident, BaseRSSBytes: cfg.BaseRSS,
		BytesPerSession: float64(resident-cfg.BaseRSS) / float64(cfg.Sessions),
		ForeignCPU:      max(0, (machine-own-others).Seconds()/took.Seconds()),
	}, nil
}

// bounded measures a scenario, and ends it where the server has come to a stop: a call has
// no end of its own.
func (r *runner) bounded(ctx context.Context, scenario string) (Measurement, error) {
	limit := 4*r.Duration + time.Minute
	if r.Tasks > 0 {
		limit = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not over after %s", limit))
	defer cancel()
	m, err := r.measure(ctx, scenario, r.work(scenario))
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), fmt.Errorf("%d tasks were finished", r.done.Load()))
	}
	return m, err
}
