// Package embed is a whole Treadle inside of a Go program or a test: API, dispatcher, worker and
// store, without another process and without a port.
//
//	worker.Handle("double", func(_ context.Context, x int) (int, error) { return 2 * x, nil })
//	fabric, err := embed.Start(ctx, embed.Options{})
//	if err != nil {
//		return err
//	}
//	defer fabric.Close()
//	answer, err := treadle.Call[int](ctx, fabric.Client(), "double", 21) // 42
//
// These are the parts of `treadle up`, so queues, priorities, retries, timeouts, request ids and
// durability are those of a server, and the client is the one that dials a server: a program
// that outgrows its process changes [Start] to treadle.Dial, and runs its handlers by
// worker.Serve. Functions in Python run at a worker of their own, which attaches to
// Options.GRPCAddr.
package embed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/dispatcher"
	core "github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/server"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// Options of [Start]. The zero value keeps everything in memory and runs what [worker.Handle] has
// registered.
type Options struct {
	// Dir is a folder that keeps functions, tasks and results, beyond the end of the process, too.
	// It belongs to one process at a time. Default: nothing is kept.
	Dir string
	// Handlers run the tasks, in this process. Default [worker.Default]. They are registered
	// before Start is called; later ones are not seen.
	Handlers *worker.Handlers
	// Slots is how many handlers run at once, up to 4,096. Default four for each processor.
	Slots int
	// Queues are those whose tasks are run here. Default "default", where the tasks of handlers
	// wait.
	Queues []string
	// Retention is how long finished tasks are kept. Default 24 h.
	Retention time.Duration
	// MaxPayload bounds arguments and results, each, in bytes. Default 64 MiB.
	MaxPayload int
	// GRPCAddr and HTTPAddr are where other processes reach this fabric: clients and workers over
	// gRPC, REST and /metrics over HTTP. They are on loopback, as anybody who reaches them may
	// call everything; port 0 picks one. Default: nowhere. Handlers submit child tasks by
	// [worker.APIFrom] where there is a GRPCAddr.
	GRPCAddr, HTTPAddr string
	// DrainTimeout is how long running handlers may go on after Close was called. Default 25 s.
	DrainTimeout time.Duration
	// Logger defaults to [slog.Default].
	Logger *slog.Logger
}

// Fabric is a running fabric. Its methods may be called by any goroutine.
type Fabric struct {
	client *treadle.Client
	server *server.Server
	store  store.Store
	// parts stop in the opposite order of their start.
	parts []*part

	failed   chan struct{}
	failOnce sync.Once

	closeOnce sync.Once
	closed    error
}

// part is one goroutine of a fabric.
type part struct {
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// Start makes a fabric and starts it. When it returns, the handlers are functions that tasks can be
// submitted for. ctx bounds the start alone; [Fabric.Close] ends the fabric.
func Start(ctx context.Context, o Options) (_ *Fabric, err error) {
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("embed: %w", err)
	}
	f := &Fabric{failed: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("embed: %w", err), f.Close())
		}
	}()
	keep := pebblestore.Options{Durability: pebblestore.Memory, Retention: o.Retention, Logger: o.Logger}
	if o.Dir != "" {
		keep.Durability, keep.Dir = pebblestore.Embedded, o.Dir
	}
	st, err := pebblestore.Open(ctx, keep)
	if err != nil {
		return nil, err
	}
	f.store = st
	local := bufconn.Listen(localBuffer)
	issuer := tasktoken.New()
	cfg := server.Config{
		Store: st, Local: local, GRPCAddr: o.GRPCAddr, HTTPAddr: o.HTTPAddr, Logger: o.Logger, Version: "embedded",
		Retention: o.Retention, MaxPayload: o.MaxPayload, TaskTokens: issuer,
	}
	application, err := core.New(cfg.Core())
	if err != nil {
		return nil, err
	}
	cfg.Fabric = application
	d, err := dispatcher.New(dispatcher.Config{
		MaxPayload: o.MaxPayload, TaskKey: func(session task.ID) []byte { return issuer.SessionKey(session) },
		Registrar: application, ID: randomID(), NewID: randomID, Jitter: rand.Float64, Logger: o.Logger,
	}, st)
	if err != nil {
		return nil, err
	}
	cfg.Dispatcher = d
	if f.server, err = server.New(cfg); err != nil {
		return nil, err
	}
	if err := f.server.Listen(); err != nil {
		return nil, err
	}
	agent, err := f.agent(&o, d)
	if err != nil {
		return nil, err
	}
	for _, key := range o.Handlers.Runtimes() {
		name, _ := task.GoHandler(key)
		if err := application.RegisterHandler(ctx, name); err != nil {
			return nil, err
		}
	}
	f.run(f.watchStore)
	f.run(f.server.Serve)
	f.run(d.Run)
	if agent != nil {
		f.run(agent.Run)
	}
	f.client, err = treadle.Dial("passthrough:///embedded", treadle.WithToken(""), treadle.WithCA(""),
		treadle.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return local.DialContext(ctx) })))
	return f, err
}

// localBuffer is how much may be written on a connection inside of the process and not be read,
// in bytes.
const localBuffer = 256 << 10

func (o *Options) fill() error {
	if o.Handlers == nil {
		o.Handlers = &worker.Default
	}
	if o.Slots == 0 {
		o.Slots = 4 * runtime.NumCPU()
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = task.DefaultMaxPayload
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if len(o.Handlers.Runtimes()) == 0 && o.GRPCAddr == "" {
		return errors.New("nothing could run a task: register a handler before Start (worker.Handle), or set GRPCAddr for workers")
	}
	for name, address := range map[string]string{"GRPCAddr": o.GRPCAddr, "HTTPAddr": o.HTTPAddr} {
		if err := checkLoopback(name, address); err != nil {
			return err
		}
	}
	return nil
}

// checkLoopback refuses addresses that other machines reach: there are no tokens and no TLS here.
func checkLoopback(name, address string) error {
	if address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s %q: %w", name, address, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%s %q is not on loopback: other machines need tokens and TLS, which 'treadle up' has", name, address)
	}
	return nil
}

// agent makes the worker of this process; nil without handlers.
func (f *Fabric) agent(o *Options, d *dispatcher.Dispatcher) (*worker.Agent, error) {
	if len(o.Handlers.Runtimes()) == 0 {
		return nil, nil
	}
	cfg := worker.Config{
		ID: randomID().String(), Software: "embedded", Mode: link.Local, Slots: o.Slots, Queues: o.Queues,
		Dial: worker.DialLocal(d, func(err error) {
			o.Logger.Warn("the handlers lost their connection to the dispatcher", "error", err)
		}),
		Executors: []worker.Executor{o.Handlers}, DrainTimeout: o.DrainTimeout, Logger: o.Logger,
	}
	if address := f.server.GRPCAddr(); address != "" {
		cfg.API = func() (worker.API, error) { return worker.API{Address: address}, nil }
	}
	return worker.New(cfg)
}

func randomID() task.ID { return task.ID(uuid.New()) }

// run starts a part. One that ends by itself is a failure of the fabric.
func (f *Fabric) run(do func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	p := &part{stop: stop, done: make(chan struct{})}
	f.parts = append(f.parts, p)
	go func() {
		defer close(p.done)
		p.err = do(ctx)
		if ctx.Err() == nil {
			f.failOnce.Do(func() { close(f.failed) })
		}
	}()
}

// watchStore ends with an error when the store can no longer promise what it acknowledged.
func (f *Fabric) watchStore(ctx context.Context) error {
	failing, ok := f.store.(interface {
		Failed() <-chan struct{}
		Err() error
	})
	if !ok {
		<-ctx.Done()
		return nil
	}
	select {
	case <-failing.Failed():
		return fmt.Errorf("the store failed: %w", failing.Err())
	case <-ctx.Done():
		return nil
	}
}

// Client is a client of this fabric. It is closed with it.
func (f *Fabric) Client() *treadle.Client { return f.client }

// GRPCAddr is the bound address of gRPC; empty without Options.GRPCAddr.
func (f *Fabric) GRPCAddr() string { return f.server.GRPCAddr() }

// HTTPAddr is the bound address of REST; empty without Options.HTTPAddr.
func (f *Fabric) HTTPAddr() string { return f.server.HTTPAddr() }

// Failed is closed when the fabric cannot go on, as its disk failed for example; Close then says
// why.
func (f *Fabric) Failed() <-chan struct{} { return f.failed }

// Close ends the fabric: nothing new starts, running handlers may finish within the drain timeout,
// and everything is released. What is queued is run after the next Start on the same Dir; in memory
// it is gone. It may be called more than once, and returns why the fabric failed, nil when it did
// not.
func (f *Fabric) Close() error {
	f.closeOnce.Do(func() {
		var errs []error
		for i := len(f.parts) - 1; i >= 0; i-- {
			f.parts[i].stop()
			<-f.parts[i].done
			errs = append(errs, f.parts[i].err)
		}
		if f.client != nil {
			errs = append(errs, f.client.Close())
		}
		if f.server != nil && len(f.parts) == 0 {
			f.server.Shutdown(context.Background()) // it listens, and was never served
		}
		if f.store != nil {
			errs = append(errs, f.store.Close())
		}
		f.closed = errors.Join(errs...)
	})
	return f.closed
}
