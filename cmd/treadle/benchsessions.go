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
)

// sessionFlags are the choices of bench with --sessions.
type sessionFlags struct {
	sessions       []int
	layouts        []string
	slots, streams int
}

func (s *sessionFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.IntSliceVar(&s.sessions, "sessions", nil, "measure a dispatcher with so many simulated workers attached instead, for example 1,100,1000")
	fl.StringSliceVar(&s.layouts, "session-layout", []string{bench.LayoutShared}, "shared (many sessions on a connection), own (a connection each), with --sessions")
	fl.IntVar(&s.slots, "session-slots", 1, "slots of each session")
	fl.IntVar(&s.streams, "session-streams", 100, "sessions on one connection, in layout shared")
}

// notWithSessions are flags that mean nothing to simulated workers.
var notWithSessions = []string{"scenario", "runtime", "callers", "slots", "python", "http-addr"}

// validateSessions refuses what cannot be measured, before the first of it is.
func (b *benchFlags) validateSessions(cmd *cobra.Command) error {
	if len(b.sessions) == 0 {
		for _, flag := range []string{"session-layout", "session-slots", "session-streams"} {
			if cmd.Flags().Changed(flag) {
				return misuse("--%s is for --sessions: say how many, for example --sessions 1,100,1000", flag)
			}
		}
		return nil
	}
	for _, flag := range notWithSessions {
		if cmd.Flags().Changed(flag) {
			return misuse("--%s has no meaning with --sessions, which attaches simulated workers and measures idling, calls and batches: leave it out", flag)
		}
	}
	if !cmd.Flags().Changed("mode") {
		b.modes = []string{bench.ModePush}
	}
	if slices.Contains(b.modes, bench.ModeLocal) {
		return misuse("--mode local with --sessions: simulated workers attach over the network; want push, pull")
	}
	for _, l := range b.layouts {
		if !slices.Contains(bench.SessionLayouts, l) {
			return misuse("--session-layout %q: want %s", l, strings.Join(bench.SessionLayouts, ", "))
		}
	}
	for _, n := range b.sessions {
		if n < 1 || n > bench.MaxSessions {
			return misuse("--sessions %d: want 1 to %d", n, bench.MaxSessions)
		}
	}
	switch {
	case b.sessionFlags.slots < 1 || b.sessionFlags.slots > bench.MaxSessionSlots:
		return misuse("--session-slots %d: want 1 to %d", b.sessionFlags.slots, bench.MaxSessionSlots)
	case b.streams < 1 || b.streams > bench.MaxSessionStreams:
		return misuse("--session-streams %d: want 1 to %d", b.streams, bench.MaxSessionStreams)
	}
	return nil
}

// sessionsConfig is what one number of sessions needs, the address excepted.
func (b *benchFlags) sessionsConfig(mode, layout string, sessions int) bench.SessionsConfig {
	return bench.SessionsConfig{
		Config:   b.config(mode, bench.RuntimeGo),
		Sessions: sessions, Layout: layout, Slots: b.sessionFlags.slots, Streams: b.streams,
	}
}

// measureSessions measures each number of sessions in each mode and layout, on a server of its
// own with --up.
func (b *benchFlags) measureSessions(cmd *cobra.Command, report *bench.Report) error {
	measure := b.sessionsRunning
	if b.up {
		measure = b.sessionsOwn
	}
	var configs []bench.SessionsConfig
	for _, mode := range b.modes {
		for _, layout := range b.layouts {
			for _, n := range b.sessions {
				cfg := b.sessionsConfig(mode, layout, n)
				if err := cfg.Check(); err != nil {
					return err
				}
				configs = append(configs, cfg)
			}
		}
	}
	firsts := map[string]*bench.SessionMeasurement{}
	for i := range configs {
		m, err := measure(cmd, &configs[i], report)
		if err != nil {
			return fmt.Errorf("%d sessions, %s, layout %s: %w", configs[i].Sessions, configs[i].Mode, configs[i].Layout, err)
		}
		if first := firsts[m.Mode+" "+m.Layout]; first != nil {
			m.Against(first)
		} else {
			firsts[m.Mode+" "+m.Layout] = &m
		}
		report.Sessions = append(report.Sessions, m)
		if m.Idle != nil && !b.up {
			// What the server was before the first session came is gone once they were there.
			for j := range configs {
				configs[j].BaseRSS = m.Idle.BaseRSSBytes
			}
		}
	}
	return nil
}

// sessionsRunning measures the server that is there. Its processor time and memory are known
// by --pid.
func (b *benchFlags) sessionsRunning(cmd *cobra.Command, cfg *bench.SessionsConfig, report *bench.Report) (m bench.SessionMeasurement, err error) {
	c, err := dialFor(cmd, false)
	if err != nil {
		return m, err
	}
	defer func() { _ = c.Close() }()
	if cfg.TLS, err = tlsFor(cmd); err != nil {
		return m, err
	}
	if err := describe(cmd.Context(), c, report); err != nil {
		return m, atAddress(c.Address(), err)
	}
	cfg.Address, cfg.PIDs, cfg.Token = c.Address(), b.pids, strings.TrimSpace(os.Getenv(treadle.EnvToken))
	m, err = b.sessionsAt(cmd, *cfg)
	return m, atAddress(c.Address(), err)
}

// sessionsOwn starts a server for one number of sessions: the memory of the one before would
// hide what these take.
func (b *benchFlags) sessionsOwn(cmd *cobra.Command, cfg *bench.SessionsConfig, report *bench.Report) (m bench.SessionMeasurement, err error) {
	binary, err := os.Executable()
	if err != nil {
		return m, err
	}
	dir, err := os.MkdirTemp("", "treadle-bench-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	log := &bench.Tail{}
	// The server ends in order after a first Ctrl-C, not with the context.
	stack, err := bench.StartStack(context.WithoutCancel(cmd.Context()), bench.StackConfig{
		Binary: binary, ServerAlone: true, MaxConnections: cfg.ServerConnections(), Dir: dir, Store: b.store, Log: log,
		// It has as many sessions to end as were attached, should it not have noticed yet that they left.
		StopTimeout: time.Minute,
	})
	if err == nil {
		defer func() { err = errors.Join(err, stack.Stop()) }()
		m, err = b.sessionsOf(cmd, cfg, stack, report)
	}
	if text := log.String(); err != nil && text != "" && cmd.Context().Err() == nil {
		err = fmt.Errorf("%w\nthe server wrote:\n%s", err, strings.TrimSpace(text))
	}
	return m, err
}

func (b *benchFlags) sessionsOf(cmd *cobra.Command, cfg *bench.SessionsConfig, stack *bench.Stack, report *bench.Report) (m bench.SessionMeasurement, err error) {
	// The server is of this command's making: what the environment says is about others.
	c, err := treadle.Dial(stack.GRPCAddr, treadle.WithCA(""), treadle.WithToken(""))
	if err != nil {
		return m, err
	}
	defer func() { _ = c.Close() }()
	if err := describe(cmd.Context(), c, report); err != nil {
		return m, err
	}
	cfg.Address, cfg.PIDs = stack.GRPCAddr, stack.PIDs
	return b.sessionsAt(cmd, *cfg)
}

// sessionsAt measures one number of sessions, with a progress bar where somebody can see it.
func (b *benchFlags) sessionsAt(cmd *cobra.Command, cfg bench.SessionsConfig) (bench.SessionMeasurement, error) {
	if isTerminal(cmd.ErrOrStderr()) {
		bar := newBar(cmd.ErrOrStderr(), -1, "")
		defer func() { _ = bar.Finish() }()
		cfg.Progress = func(scenario string, done int64) {
			bar.Describe(fmt.Sprintf("%d sessions %s %s", cfg.Sessions, cfg.Layout, scenario))
			_ = bar.Set64(done) // it only draws
		}
	}
	return bench.MeasureSessions(cmd.Context(), cfg)
}
