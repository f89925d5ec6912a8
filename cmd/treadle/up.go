package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func newUpCommand() *cobra.Command {
	n := &node{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process: API, REST, dispatcher, local pool",
		Long: `Runs the whole fabric in one process on the embedded store: the gRPC API, REST, a
dispatcher for workers, and a local pool of Python runners. Nothing else needs to be
installed; state survives restarts.

SIGTERM or Ctrl-C drains: running tasks get --drain-timeout, queued ones stay queued.`,
		Example: `  treadle up
  treadle up --slots 16 --memory-limit 512MiB
  treadle up --slots 0                      # no local pool: start 'treadle worker' beside it
  treadle up --store memory: --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --json`,
		GroupID: groupServe,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.prepare(cmd, roleUp); err != nil {
				return err
			}
			n.Ready = func(grpcAddr, httpAddr string) { n.announce(cmd.OutOrStdout(), grpcAddr, httpAddr) }
			return n.up(cmd.Context())
		},
	}
	n.register(cmd, roleUp)
	return cmd
}

func newWorkerCommand() *cobra.Command {
	n := &node{}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker agent with a pool of Python runners",
		Long: `Attaches to a dispatcher and runs tasks in a pool of Python runners. A worker dials,
again and again, keeps the results that it could not deliver, and needs no open port.

SIGTERM or Ctrl-C drains: running tasks get --drain-timeout, then they are handed back.`,
		Example: `  treadle worker --slots 8
  treadle worker --mode pull --dispatcher 127.0.0.1:50051
  treadle worker --queues gpu,default --python .venv/bin/python`,
		GroupID: groupServe,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.prepare(cmd, roleWorker); err != nil {
				return err
			}
			if n.JSON {
				n.Ready = func(worker, httpAddr string) {
					printReady(cmd.OutOrStdout(), map[string]any{"worker_id": worker, "http_addr": httpAddr, "pid": os.Getpid()})
				}
			}
			return n.work(cmd.Context())
		},
	}
	n.register(cmd, roleWorker)
	return cmd
}

// prepare checks the settings and makes the logger.
func (n *node) prepare(cmd *cobra.Command, r role) error {
	if err := n.validate(r); err != nil {
		return err
	}
	log, err := n.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	n.Log, n.Version = log, versionOf().Version
	return nil
}

// announce says that the server is ready: three lines to paste, or one for programs.
func (n *node) announce(w io.Writer, grpcAddr, httpAddr string) {
	if n.JSON {
		printReady(w, map[string]any{"grpc_addr": grpcAddr, "http_addr": httpAddr, "pid": os.Getpid()})
		return
	}
	if httpAddr == "" {
		fmt.Fprintf(w, "Treadle is up: gRPC on %s\n", grpcAddr)
		return
	}
	fmt.Fprintf(w, `Treadle is up: gRPC on %[1]s, REST on http://%[2]s. Paste these:

curl -s http://%[2]s/v1/functions -d '{"name": "double", "source": "def double(x): return 2 * x"}'
curl -s http://%[2]s/v1/functions/double:call -d '{"args": [21]}'
curl -s http://%[2]s/v1/tasks

`, grpcAddr, httpAddr)
}

// printReady writes the one line that programs wait for.
func printReady(w io.Writer, line map[string]any) {
	_ = json.NewEncoder(w).Encode(line) // nobody reads: the server runs all the same
}
