package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/collector"
	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/server"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/store/redisstore"
	"github.com/treadle-dev/treadle/store/storetap"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
	"github.com/treadle-dev/treadle/worker/pyproc"
)

// node is one process of the fabric: its settings and the wiring of the parts that
// they ask for. This file alone chooses a store.
type node struct {
	serverFlags
	Version string
	Log     *slog.Logger
	// flush writes what the log still owes; may be nil.
	flush func()
	// role is the command, for those who look at the store's connections.
	role string
	// terminal: the process was started at one.
	terminal bool
	// reload reads the files of tokens and certificates again; nil while there are none.
	reload atomic.Pointer[func() error]
	// Ready is called once: with the addresses that a server listens on, or with a
	// worker's id and its HTTP address.
	Ready func(grpcAddrOrWorker, httpAddr string)
}

// heapFloor is the memory that a server or a worker takes before it looks for some to free.
const heapFloor = 128 << 20

func randomID() task.ID { return task.ID(uuid.New()) }

// The stores of one process.
const (
	storeEmbedded = "embedded:"
	storeMemory   = "memory:"
)

// checkStore says why url names no store that a process can use, or, when it is to be
// shared, none that others can use beside it; nil when it does. It dials nothing.
func checkStore(url string, shared bool) error {
	switch {
	case redisstore.IsURL(url):
		if err := redisstore.CheckURL(url); err != nil {
			return fmt.Errorf("--store: %w", err)
		}
	case url != storeEmbedded && url != storeMemory:
		return fmt.Errorf("--store %q is not a store URL: want %s, %s, redis://, rediss://, redis+sentinel:// or redis+cluster://",
			redactURL(url), storeEmbedded, storeMemory)
	case shared:
		return fmt.Errorf("--store %s belongs to one process, and servers and dispatchers share theirs: "+
			"name a Redis (redis://HOST:PORT), or run everything in one process with 'treadle up'", url)
	}
	return nil
}

// openStore opens what a store URL names. shared says that other processes must be
// able to use it beside this one.
func (n *node) openStore(ctx context.Context, shared bool) (store.Store, error) {
	if err := checkStore(n.Store, shared); err != nil {
		return nil, &usageError{err}
	}
	if redisstore.IsURL(n.Store) {
		return redisstore.Open(ctx, redisstore.Options{URL: n.Store, Retention: n.Retention, Lease: n.Lease, Logger: n.Log,
			ClientName: "treadle-" + n.role})
	}
	opts := pebblestore.Options{Retention: n.Retention, Lease: n.Lease, Logger: n.Log, OpenDamaged: n.OpenDamaged}
	if n.Store == storeMemory {
		opts.Durability = pebblestore.Memory
	} else {
		opts.Durability, opts.Dir = pebblestore.Embedded, filepath.Join(n.DataDir, "store")
		if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the data folder (--data-dir): %w", err)
		}
	}
	return pebblestore.Open(ctx, opts)
}

// redactURL keeps what may be a password out of messages.
func redactURL(u string) string {
	i := strings.LastIndex(u, "@")
	if i < 0 {
		return task.ClipText(u, 128)
	}
	// What stands before it may be a password in a URL of any spelling: of that the scheme alone is shown.
	scheme, _, ok := strings.Cut(u[:i], "://")
	if !ok || strings.Contains(scheme, ":") {
		return task.ClipText("***"+u[i:], 128)
	}
	return task.ClipText(scheme+"://***"+u[i:], 128)
}

// up runs everything in one process until ctx ends, then drains: the pool first,
// while its results can still be fetched, then the worker streams and the API.
func (n *node) up(ctx context.Context) error {
	return n.serve(ctx, parts{api: true, dispatcher: true, modes: []link.Mode{link.Push, link.Pull}, slots: n.Slots})
}

// server runs the API and REST on a store that dispatchers share.
func (n *node) server(ctx context.Context) error { return n.serve(ctx, parts{api: true, shared: true}) }

// dispatch runs a dispatcher on a store that servers share: for the worker streams
// of its mode, or with a pool of its own.
func (n *node) dispatch(ctx context.Context) error {
	p := parts{dispatcher: true, shared: true}
	switch n.Mode {
	case "any":
		p.modes = []link.Mode{link.Push, link.Pull}
	case string(link.Local):
		p.slots = n.Slots
	default:
		p.modes = []link.Mode{link.Mode(n.Mode)}
	}
	return n.serve(ctx, p)
}

// parts says what a process is made of.
type parts struct {
	api        bool
	dispatcher bool
	// modes are the worker streams that are admitted, slots the size of the local pool.
	modes []link.Mode
	slots int
	// shared: the store must be one that other processes can use.
	shared bool
}

func (n *node) serve(ctx context.Context, p parts) (err error) {
	limit := apiDrain + drainMargin
	if p.slots > 0 {
		limit += n.DrainTimeout
	}
	ctx, stop := n.hearHangups(ctx)
	defer stop()
	stages, end := n.stages(ctx, limit)
	defer end()
	collector.KeepFloor(heapFloor)
	st, err := n.openStore(ctx, p.shared)
	if err != nil {
		return err
	}
	st = storetap.Wrap(st) // nothing in a build that users get
	defer func() { err = errors.Join(err, st.Close()) }()
	cfg := n.serverConfig(st, p.modes)
	cfg.WorkersOnly = !p.api
	if err := n.secure(&cfg); err != nil {
		return err
	}
	if cfg.Fabric, err = fabric.New(cfg.Core()); err != nil {
		return err
	}
	var d *dispatcher.Dispatcher
	if p.dispatcher {
		issuer := tasktoken.New()
		cfg.TaskTokens = issuer
		d, err = dispatcher.New(dispatcher.Config{
			Lease: n.Lease, Heartbeat: n.Heartbeat, Grace: orNone(n.ReconnectGrace), MaxPayload: int(n.MaxPayload),
			Modes: p.modes, StreamAge: orNone(n.StreamAge),
			TaskKey:   func(session task.ID) []byte { return issuer.SessionKey(session) },
			Registrar: cfg.Fabric, ID: randomID(), NewID: randomID, Jitter: rand.Float64, Logger: n.Log,
		}, st)
		if err != nil {
			return err
		}
		if len(p.modes) > 0 {
			cfg.Dispatcher = d
		}
	}
	var srv *server.Server
	var pool *worker.Agent
	if p.slots > 0 {
		pool, err = n.agent(randomID().String(), link.Local, worker.DialLocal(d, func(err error) {
			n.Log.Warn("the local pool lost its connection to the dispatcher", "error", err)
		}), nil, func() (worker.API, error) { return n.localAPI(srv, cfg.TLS) })
		if err != nil {
			return err
		}
		cfg.Starting = func() string {
			select {
			case <-pool.Started():
				return ""
			default:
				return "the pool of Python runners starts"
			}
		}
	}
	srv, err = server.New(cfg)
	if err != nil {
		return err
	}
	if err := srv.Listen(); err != nil {
		return err
	}
	stages.run("store", watchStore(st))
	n.collect(stages)
	stages.run("API", srv.Serve)
	if d != nil {
		stages.run("dispatcher", d.Run)
	}
	if pool != nil {
		stages.run("pool", pool.Run)
		select {
		case <-pool.Started():
		case <-stages.failed:
			return stages.wait(ctx) // an interpreter that does not work, for example
		case <-ctx.Done():
			return stages.wait(ctx)
		}
	}
	if n.Ready != nil {
		n.Ready(srv.GRPCAddr(), srv.HTTPAddr())
	}
	return stages.wait(ctx)
}

// serverConfig is what the flags say of a server; [node.secure] adds the rest.
func (n *node) serverConfig(st store.Store, modes []link.Mode) server.Config {
	return server.Config{
		Store: st, GRPCAddr: n.GRPCAddr, HTTPAddr: n.HTTPAddr, Logger: n.Log, Version: n.Version, Modes: modes,
		MaxPayload: int(n.MaxPayload), MaxRetries: orNone(n.MaxRetries), TaskTimeout: n.TaskTimeout, Retention: n.Retention,
		RESTCompat: server.RESTCompat(n.RESTCompat), RESTCreatedStatus: n.RESTCreatedStatus, AllowedHosts: n.AllowedHosts,
	}
}

// collect adds what a process does that is the first one of its container.
func (n *node) collect(s *stages) {
	if os.Getpid() == 1 {
		s.run("orphans", func(ctx context.Context) error {
			collectOrphans(ctx, 1, orphanAge)
			return nil
		})
	}
}

// watchStore ends with an error when the store can no longer promise what it
// acknowledges; the process must not go on then.
func watchStore(st store.Store) func(context.Context) error {
	failing, ok := st.(interface {
		Failed() <-chan struct{}
		Err() error
	})
	return func(ctx context.Context) error {
		if !ok {
			<-ctx.Done()
			return nil
		}
		select {
		case <-failing.Failed():
			return fmt.Errorf("the store failed; fix the cause and restart: %w", failing.Err())
		case <-ctx.Done():
			return nil
		}
	}
}

// orNone turns a zero that a user gave into the negative number that means none,
// as a zero in a configuration means its default.
func orNone[T int | time.Duration](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

// work runs a worker agent until ctx ends, then drains.
func (n *node) work(ctx context.Context) error {
	ctx, stop := n.hearHangups(ctx)
	defer stop()
	collector.KeepFloor(heapFloor)
	options, err := n.dialOptions()
	if err != nil {
		return err
	}
	dialer, err := linkpb.NewDialer(n.Dispatchers, link.Mode(n.Mode), int(n.MaxPayload), options...)
	if err != nil {
		return err
	}
	id := randomID().String()
	agent, err := n.agent(id, link.Mode(n.Mode), dialer.Dial, dialer.Move, n.workerAPI)
	if err != nil {
		return err
	}
	n.Log.Info("worker starts", "worker", id, "dispatchers", strings.Join(n.Dispatchers, ","), "mode", n.Mode, "slots", slotRange{&n.serverFlags})
	if n.Ready != nil {
		n.Ready(id, n.HTTPAddr)
	}
	stages, end := n.stages(ctx, n.DrainTimeout+drainMargin)
	defer end()
	n.collect(stages)
	if n.HTTPAddr != "" {
		stages.run("HTTP", func(ctx context.Context) error { return serveWorkerHealth(ctx, n.HTTPAddr, agent) })
	}
	stages.run("worker", agent.Run)
	return stages.wait(ctx)
}

// agent makes a worker with a Python executor.
func (n *node) agent(id string, mode link.Mode, dial func(context.Context) (link.Conn, error),
	move func(context.Context, bool) (link.Conn, error), api func() (worker.API, error),
) (*worker.Agent, error) {
	python, err := pyproc.New(pyproc.Config{
		Python: n.Python, Paths: n.PythonPath, MemoryLimit: n.MemoryLimit, Dir: filepath.Join(n.DataDir, "workers", id),
		Logger: n.Log, MaxPayload: int(n.MaxPayload), MaxAttemptsPerRunner: n.MaxAttemptsPerRunner, NoProvision: n.NoProvision,
	})
	if err != nil {
		return nil, err
	}
	return worker.New(worker.Config{
		ID: id, Name: n.Name, Software: n.Version, Mode: mode, Dial: dial, Move: move, API: api, Slots: n.Slots,
		MaxSlots: n.MaxSlots, IdleAfter: n.IdleAfter, Queues: n.Queues,
		Executors: []worker.Executor{python}, DrainTimeout: orNone(n.DrainTimeout), Logger: n.Log,
	})
}

// stages are parts that start in order and stop in the opposite one, each when the
// one after it has ended. The first that fails stops all.
type stages struct {
	watchdog *watchdog
	mu       sync.Mutex
	parts    []*stage
	failed   chan struct{}
	once     sync.Once
}

type stage struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// stages makes the parts of a process. When it takes longer than limit after ctx ended, or
// a part failed, until end is called, the process ends by itself.
func (n *node) stages(ctx context.Context, limit time.Duration) (s *stages, end func()) {
	s = &stages{watchdog: newWatchdog(limit, n.Log, os.Exit), failed: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { s.watchdog.begin(s.running) }) // while parts are made, too
	return s, func() {
		stop()
		s.watchdog.end()
		if n.flush != nil {
			n.flush()
		}
	}
}

func (s *stages) run(name string, part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	st := &stage{name: name, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	s.parts = append(s.parts, st)
	s.mu.Unlock()
	go func() {
		defer close(st.done)
		st.err = part(ctx)
		if ctx.Err() == nil {
			// Nothing ends by itself: whatever the reason, the process cannot go on.
			s.once.Do(func() { close(s.failed) })
		}
	}()
}

// wait returns when all parts have ended: after ctx, or after the first failure.
func (s *stages) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-s.failed:
	}
	s.watchdog.begin(s.running)
	var errs []error
	for i := len(s.parts) - 1; i >= 0; i-- {
		s.parts[i].cancel()
		<-s.parts[i].done
		errs = append(errs, s.parts[i].err)
	}
	return errors.Join(errs...)
}

// running names the parts that have not ended. Without any it is the store, which is closed
// last.
func (s *stages) running() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, p := range s.parts {
		select {
		case <-p.done:
		default:
			names = append(names, p.name)
		}
	}
	if len(names) == 0 {
		names = append(names, "store")
	}
	return names
}
