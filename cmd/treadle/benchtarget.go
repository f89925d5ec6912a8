package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/bench"
	treadle "github.com/treadle-dev/treadle/clients/go"
)

// What all measurements of bench share: the server that they go to, and the progress that they show.

// benchTarget is a server to be measured, with a client of it.
type benchTarget struct {
	client   *treadle.Client
	httpAddr string
	tls      *tls.Config
	token    string
	// pids are the processes whose processor time counts.
	pids []int
}

// set tells a measurement where to go.
func (t *benchTarget) set(cfg *bench.Config) {
	cfg.Address, cfg.HTTPAddr, cfg.TLS, cfg.Token, cfg.PIDs = t.client.Address(), t.httpAddr, t.tls, t.token, t.pids
}

// onRunning measures the server at --address.
func (b *benchFlags) onRunning(cmd *cobra.Command, report *bench.Report, measure func(*benchTarget) error) error {
	c, err := dialFor(cmd, false)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	secure, err := tlsFor(cmd)
	if err != nil {
		return err
	}
	t := &benchTarget{client: c, httpAddr: b.httpAddr, tls: secure, token: strings.TrimSpace(os.Getenv(treadle.EnvToken)), pids: b.pids}
	if err = describe(cmd.Context(), c, report); err == nil {
		err = measure(t)
	}
	return atAddress(c.Address(), err)
}

// onStack measures processes that it starts, and stops afterwards; cfg says which, the binary, the folder
// and the store excepted.
func (b *benchFlags) onStack(cmd *cobra.Command, cfg bench.StackConfig, report *bench.Report, measure func(*benchTarget) error) (err error) {
	if cfg.Binary, err = os.Executable(); err != nil {
		return err
	}
	if cfg.Dir, err = os.MkdirTemp("", "treadle-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	log := &bench.Tail{}
	cfg.Store, cfg.Log = b.store, log
	// The processes end in order after a first Ctrl-C, not with the context.
	stack, err := bench.StartStack(context.WithoutCancel(cmd.Context()), cfg)
	if err == nil {
		defer func() { err = errors.Join(err, stack.Stop()) }()
		err = b.atStack(cmd, stack, report, measure)
	}
	if text := log.String(); err != nil && text != "" && cmd.Context().Err() == nil {
		err = fmt.Errorf("%w\nthe processes wrote:\n%s", err, strings.TrimSpace(text))
	}
	return err
}

func (b *benchFlags) atStack(cmd *cobra.Command, stack *bench.Stack, report *bench.Report, measure func(*benchTarget) error) error {
	// The stack is of this command's making: what the environment says is about others.
	c, err := treadle.Dial(stack.GRPCAddr, treadle.WithCA(""), treadle.WithToken(""))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := describe(cmd.Context(), c, report); err != nil {
		return err
	}
	return atAddress(c.Address(), measure(&benchTarget{client: c, httpAddr: stack.HTTPAddr, pids: stack.PIDs}))
}

// showProgress draws a bar for a measurement where somebody can see it, until the function that it returns
// is called. total is -1 where the end is not known.
func showProgress(cmd *cobra.Command, cfg *bench.Config, total int64, what string) (finish func()) {
	if !isTerminal(cmd.ErrOrStderr()) {
		return func() {}
	}
	bar := newBar(cmd.ErrOrStderr(), total, "")
	cfg.Progress = func(scenario string, done int64) {
		bar.Describe(what + " " + scenario)
		_ = bar.Set64(done) // it only draws
	}
	return func() { _ = bar.Finish() }
}

func describe(ctx context.Context, c *treadle.Client, report *bench.Report) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	report.Server, report.Durability = info.Version, info.Durability
	return nil
}
