package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/bench"
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
		m, err := b.sessionsOf(cmd, &configs[i], report)
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

// sessionsOf measures one number of sessions: on the server that is there, whose processor time and memory
// are known by --pid, or on one of their own, as the memory of those before would hide what these take.
func (b *benchFlags) sessionsOf(cmd *cobra.Command, cfg *bench.SessionsConfig, report *bench.Report) (m bench.SessionMeasurement, err error) {
	measure := func(t *benchTarget) (err error) {
		t.set(&cfg.Config)
		defer showProgress(cmd, &cfg.Config, -1, fmt.Sprintf("%d sessions %s", cfg.Sessions, cfg.Layout))()
		m, err = bench.MeasureSessions(cmd.Context(), *cfg)
		return err
	}
	if b.up {
		err = b.onStack(cmd, bench.StackConfig{
			ServerAlone: true, MaxConnections: cfg.ServerConnections(),
			// It has as many sessions to end as were attached, should it not have noticed yet that they left.
			StopTimeout: time.Minute,
		}, report, measure)
	} else {
		err = b.onRunning(cmd, report, measure)
	}
	return m, err
}
