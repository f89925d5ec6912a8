package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/treadle-dev/treadle/internal/logfold"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/task"
)

// Options of [Serve]. The zero value serves [Default] on the local dispatcher.
type Options struct {
	// Dispatchers are "host:port" addresses; a DNS name may stand for several. Workers spread
	// over them and move when told to. Default 127.0.0.1:50051.
	Dispatchers []string
	// Mode is [link.Push] (default) or [link.Pull].
	Mode link.Mode
	// Slots is how many handlers run at once. Default four for each processor.
	Slots int
	// MaxSlots lets that number grow to this one while tasks wait at the worker, as --slots
	// MIN-MAX does; what is idle for half a minute shuts again. Default Slots. At most 4,096.
	MaxSlots int
	// Queues default to "default".
	Queues []string
	// Handlers default to [Default].
	Handlers *Handlers
	Name     string
	// DrainTimeout is how long running handlers may go on after ctx ended. Default 25 s.
	DrainTimeout time.Duration
	// Token is the bearer token that the worker shows. Default: TREADLE_TOKEN.
	Token string
	// TLS speaks TLS with that configuration. Default: what TREADLE_TLS_CA trusts ("system"
	// for the CAs of the system), showing TREADLE_TLS_CERT with TREADLE_TLS_KEY; plain text
	// when that is not set.
	TLS *tls.Config
	// Insecure lets a token travel to another machine in plain text.
	Insecure bool
	// DialOptions replace what Token, TLS and Insecure say.
	DialOptions []grpc.DialOption
	// Logger defaults to slog.Default(). It gets a line at INFO for each failed attempt. Of
	// many lines of one kind 50 pass in 10 s, and one says how many more there were.
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
	fold := logfold.New(o.Logger.Handler(), logfold.Options{})
	defer fold.Close()
	o.Logger = slog.New(fold)
	api := func() (API, error) {
		return API{}, errors.New("this worker has dial options of its own: it cannot tell handlers how to call its dispatcher")
	}
	if len(o.DialOptions) == 0 {
		if err := o.secure(); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		api = o.api
	}
	if len(o.Handlers.Runtimes()) == 0 {
		return fmt.Errorf("serve: no handler is registered: call worker.Handle first")
	}
	dialer, err := linkpb.NewDialer(o.Dispatchers, o.Mode, task.MaxPayloadLimit, o.DialOptions...)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("serve: make a worker id: %w", err)
	}
	agent, err := New(Config{
		ID: id.String(), Name: o.Name, Software: "go-handlers", Mode: o.Mode, Dial: dialer.Dial, Move: dialer.Move, API: api,
		Slots: o.Slots, MaxSlots: o.MaxSlots, Queues: o.Queues,
		Executors: []Executor{o.Handlers}, DrainTimeout: o.DrainTimeout, Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	o.Logger.Info("worker starts", "worker", id.String(), "dispatchers", strings.Join(o.Dispatchers, ","), "mode", o.Mode, "slots", o.Slots)
	return agent.Run(ctx)
}

// api is how handlers call the dispatcher: as the worker does, without its token and its
// certificate.
func (o Options) api() (API, error) {
	if o.TLS == nil {
		return API{}, nil
	}
	cfg := o.TLS.Clone()
	cfg.Certificates, cfg.GetClientCertificate = nil, nil
	return API{TLS: cfg}, nil
}

// secure makes the dial options of what the options or the environment say.
func (o *Options) secure() (err error) {
	if o.Token == "" {
		o.Token = strings.TrimSpace(os.Getenv("TREADLE_TOKEN")) // files of secrets end in a new line
	}
	if ca := os.Getenv("TREADLE_TLS_CA"); o.TLS == nil && ca != "" {
		if o.TLS, err = tlsfiles.Client(ca, os.Getenv("TREADLE_TLS_CERT"), os.Getenv("TREADLE_TLS_KEY")); err != nil {
			return err
		}
	}
	o.DialOptions, err = linkpb.Security(o.TLS, o.Token, o.Insecure, o.Dispatchers)
	return err
}
