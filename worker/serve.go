package worker

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/task"
)

// Options of [Serve]. The zero value serves [Default] on the local dispatcher.
type Options struct {
	// Dispatchers are "host:port" addresses, tried in turn. Default 127.0.0.1:50051.
	Dispatchers []string
	// Mode is [link.Push] (default) or [link.Pull].
	Mode link.Mode
	// Slots is how many handlers run at once. Default four for each processor.
	Slots int
	// Queues default to "default".
	Queues []string
	// Handlers default to [Default].
	Handlers *Handlers
	Name     string
	// DrainTimeout is how long running handlers may go on after ctx ended. Default 25 s.
	DrainTimeout time.Duration
	// DialOptions replace the plain-text credentials.
	DialOptions []grpc.DialOption
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Serve is the whole main loop of a worker binary with Go handlers: it attaches,
// runs tasks until ctx ends, and drains.
//
//	func main() {
//		worker.Handle("double", func(_ context.Context, x int) (int, error) { return 2 * x, nil })
//		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//		defer stop()
//		if err := worker.Serve(ctx, worker.Options{}); err != nil {
//			log.Fatal(err)
//		}
//	}
func Serve(ctx context.Context, o Options) error {
	if len(o.Dispatchers) == 0 {
		o.Dispatchers = []string{"127.0.0.1:50051"}
	}
	if o.Mode == "" {
		o.Mode = link.Push
	}
	if o.Slots == 0 {
		o.Slots = 4 * runtime.NumCPU()
	}
	if o.Handlers == nil {
		o.Handlers = &Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if len(o.DialOptions) == 0 {
		o.DialOptions = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	if len(o.Handlers.Runtimes()) == 0 {
		return fmt.Errorf("serve: no handler is registered: call worker.Handle first")
	}
	dialer, err := linkpb.NewDialer(o.Dispatchers, o.Mode, task.DefaultMaxPayload, o.DialOptions...)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("serve: make a worker id: %w", err)
	}
	agent, err := New(Config{
		ID: id.String(), Name: o.Name, Software: "go-handlers", Mode: o.Mode, Dial: dialer.Dial, Slots: o.Slots, Queues: o.Queues,
		Executors: []Executor{o.Handlers}, DrainTimeout: o.DrainTimeout, Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	o.Logger.Info("worker starts", "worker", id.String(), "dispatchers", strings.Join(o.Dispatchers, ","), "mode", o.Mode, "slots", o.Slots)
	return agent.Run(ctx)
}
