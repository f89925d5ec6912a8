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
  treadle up --slots 2-16                   # the local pool grows while work waits
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

func newServerCommand() *cobra.Command {
	n := &node{}
	cmd := &cobra.Command{
		Use:   "server --store URL",
		Short: "Run the API and REST on a store that dispatchers share",
		Long: `Runs the gRPC API and REST on a Redis that any number of servers and dispatchers
share. A server keeps no state: start as many as you like, behind any balancer.`,
		Example: `  treadle server --store redis://127.0.0.1:6379
  treadle server --store 'redis+sentinel://127.0.0.1:26379/mymaster?durability=replicated'`,
		GroupID: groupServe,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.prepare(cmd, roleServer); err != nil {
				return err
			}
			n.Ready = func(grpcAddr, httpAddr string) { n.announce(cmd.OutOrStdout(), grpcAddr, httpAddr) }
			return n.server(cmd.Context())
		},
	}
	n.register(cmd, roleServer)
	return cmd
}

func newDispatcherCommand() *cobra.Command {
	n := &node{}
	cmd := &cobra.Command{
		Use:   "dispatcher --store URL",
		Short: "Run a dispatcher on a store that servers share",
		Long: `Runs a dispatcher on a Redis that any number of servers and dispatchers share: for
the streams of workers (--mode any, push or pull), or with a pool of Python runners of
its own (--mode local). When a dispatcher stops, its workers connect to another one and
keep the tasks that they run; when one joins, the others ask some of their workers to
move there.`,
		Example: `  treadle dispatcher --store redis://127.0.0.1:6379
  treadle dispatcher --store redis://127.0.0.1:6379 --grpc-addr 127.0.0.1:50052 --mode pull
  treadle dispatcher --store redis://127.0.0.1:6379 --mode local --slots 8`,
		GroupID: groupServe,
		Args:    arguments(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.prepare(cmd, roleDispatcher); err != nil {
				return err
			}
			n.Ready = func(grpcAddr, httpAddr string) {
				if n.logsJSON() {
					n.Log.Info("the dispatcher is up", "grpc_addr", grpcAddr, "http_addr", httpAddr, "pid", os.Getpid())
					return
				}
				if !n.JSON {
					fmt.Fprintf(cmd.OutOrStdout(), "The dispatcher is up: workers dial %s\n", grpcAddr)
					return
				}
				n.announce(cmd.OutOrStdout(), grpcAddr, httpAddr)
			}
			return n.dispatch(cmd.Context())
		},
	}
	n.register(cmd, roleDispatcher)
	return cmd
}

func newWorkerCommand() *cobra.Command {
	n := &node{}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker agent with a pool of Python runners",
		Long: `Connects to a dispatcher and runs tasks in a pool of Python runners. A worker opens the
connection and reconnects by itself, keeps results that it could not deliver, and needs no
open port.

With several dispatchers, each worker picks one at random. DNS names are resolved at every
connection. When its dispatcher leaves, or asks it to move because another one has fewer
workers, the worker connects elsewhere and keeps the tasks that it runs.

SIGTERM or Ctrl-C drains: running tasks get --drain-timeout, then they are handed back.`,
		Example: `  treadle worker --slots 8
  treadle worker --slots 1-8                                   # grows while work waits, shrinks when idle
  treadle worker --mode pull --dispatcher 127.0.0.1:50051
  treadle worker --dispatcher 10.0.0.5:50051,10.0.0.6:50051    # spreads, and moves when one leaves
  treadle worker --dispatcher dispatchers.internal:50051       # a name that stands for several
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
	log, flush, err := n.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	n.Log, n.flush, n.Version = log, flush, versionOf().Version
	n.role = cmd.Name()
	n.terminal = isTerminal(cmd.InOrStdin())
	surviveClosedPipes()
	return nil
}

// announce says that the server is ready: three lines to paste, or one for programs.
func (n *node) announce(w io.Writer, grpcAddr, httpAddr string) {
	if n.JSON {
		printReady(w, map[string]any{"grpc_addr": grpcAddr, "http_addr": httpAddr, "pid": os.Getpid()})
		return
	}
	if n.logsJSON() {
		n.Log.Info(map[bool]string{true: "the API server is up", false: "Treadle is up"}[n.role == "server"], "grpc_addr", grpcAddr, "http_addr", httpAddr, "pid", os.Getpid())
		return
	}
	if n.role == "server" {
		fmt.Fprintf(w, "The API server is up: gRPC on %s", grpcAddr)
		if httpAddr != "" {
			fmt.Fprintf(w, ", REST on %s://%s", map[bool]string{true: "https", false: "http"}[n.TLSCert != ""], httpAddr)
		}
		fmt.Fprint(w, ". It runs no tasks: start 'treadle dispatcher' on the same store, and workers that dial it.\n")
		return
	}
	if httpAddr == "" {
		fmt.Fprintf(w, "Treadle is up: gRPC on %s\n", grpcAddr)
		return
	}
	curl, scheme := "curl -s", "http"
	if n.TLSCert != "" {
		curl, scheme = curl+" --cacert ca.pem", "https"
	}
	if n.TokenFile != "" {
		curl += ` -H "Authorization: Bearer $TREADLE_TOKEN"`
	}
	fmt.Fprintf(w, `Treadle is up: gRPC on %[1]s, REST on %[2]s. Try it in another terminal:

%[3]s %[2]s/v1/functions -d '{"name": "double", "source": "def double(x): return 2 * x"}'
%[3]s %[2]s/v1/functions/double:call -d '{"args": [21]}'
%[3]s %[2]s/v1/tasks

`, grpcAddr, scheme+"://"+httpAddr, curl)
}

// logsJSON reports whether the ready line belongs to the log: collectors merge standard
// output and standard error, and take JSON lines alone.
func (n *node) logsJSON() bool { return n.LogFormat == "json" && !n.JSON }

// printReady writes the one line that programs wait for.
func printReady(w io.Writer, line map[string]any) {
	_ = json.NewEncoder(w).Encode(line) // nobody reads: the server runs all the same
}
