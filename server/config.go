package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Attacher takes worker sessions; the dispatcher is one.
type Attacher interface {
	// Attach runs a session on conn and returns when it has ended. The mode is the RPC
	// that the worker came by. ctx ends when the stream or the server does.
	Attach(ctx context.Context, conn link.Conn, mode link.Mode) error
}

// RESTCompat selects how the root routes wrap results.
type RESTCompat string

// Compatibility modes of the root routes.
const (
	// CompatCourse answers each result serialized once.
	CompatCourse RESTCompat = "course"
	// CompatSeed answers what the worker serialized, serialized again.
	CompatSeed RESTCompat = "seed"
)

// Config configures a [Server]. Fields without a default may stay zero.
type Config struct {
	// Store is required.
	Store store.Store
	// Fabric is what the API does, where the process has one already: it was made of
	// [Config.Core]. Default: a new one.
	Fabric *fabric.Fabric
	// Dispatcher takes worker streams; nil refuses them.
	Dispatcher Attacher
	// Modes are the worker RPCs that are admitted. Default: push and pull.
	Modes []link.Mode
	// WorkersOnly serves worker streams, health and metrics and none of the API, except to
	// running tasks: see TaskTokens.
	WorkersOnly bool

	// GRPCAddr is where gRPC listens, host:port. Port 0 picks one. Required without Local.
	GRPCAddr string
	// Local brings connections from inside of the process, where gRPC is spoken, too, in plain
	// text. The server closes it.
	Local net.Listener
	// HTTPAddr is where REST listens; empty means nowhere.
	HTTPAddr string
	// AllowedHosts are further names by which browsers may reach the HTTP port, beside
	// loopback names and the bound address. "*" admits every name.
	AllowedHosts []string

	// TLS makes both listeners speak TLS; nil leaves them in plain text.
	TLS *tlsfiles.Server
	// Tokens are asked for when set; nil takes everybody for an admin.
	Tokens *auth.File
	// WorkerCertificates asks workers for a certificate that TLS verified, too.
	WorkerCertificates bool
	// TaskTokens checks the tokens of running tasks, by which these submit, read and cancel
	// their children: it is the issuer whose keys Dispatcher gives to workers. With WorkersOnly
	// FabricService is served, to such tasks alone. nil: tasks have no tokens here.
	TaskTokens *tasktoken.Issuer
	// Insecure says that other machines reach this server although TLS or tokens are
	// missing; health and metrics say so.
	Insecure bool
	// MaxConnections bounds the open connections of each listener. Default 4096.
	MaxConnections int
	// RateLimit bounds the calls of one token a second, by cost; as much may come at once.
	// 0 is no limit.
	RateLimit float64
	// QuotaWaited bounds the tasks that the calls of one token wait for, where there are
	// tokens. Default [fabric.DefaultQuotaWaited]; negative is no limit.
	QuotaWaited int
	// MaxWaited bounds the tasks that all calls wait for. Default [fabric.DefaultMaxWaited].
	MaxWaited int

	// Quotas bound what one token may have in the store. Without Tokens they hold only for what
	// running tasks of such a token submit.
	Quotas fabric.Quotas

	// Logger defaults to a logger that drops everything.
	Logger *slog.Logger
	// Starting says what of the process is not ready yet, for /readyz; empty, or a nil Starting,
	// for nothing.
	Starting func() string
	// Version is what the server says that it is. Default "dev".
	Version string
	// MaxPayload is the one limit on a decoded payload or result, in bytes, from
	// [task.MinPayloadLimit] to [task.MaxPayloadLimit]. Default 64 MiB.
	MaxPayload int
	// MaxRetries is how many lost workers a task survives that does not say. Negative
	// means none; default 3.
	MaxRetries int
	// TaskTimeout limits the attempts of tasks that do not say; 0 means none.
	TaskTimeout time.Duration
	// Retention is how long finished tasks are kept, for people to read. Default 24 h.
	Retention time.Duration
	// MaxBodies bounds the bytes of requests and results over 64 KiB that are held at one
	// time, over REST and gRPC together; further ones wait, and are answered BUSY when there is
	// no room within 20 s. With tokens, each has half of it, or as much as the largest body.
	// Default: twice the largest body.
	MaxBodies int64

	// RESTCompat defaults to CompatCourse.
	RESTCompat RESTCompat
	// RESTCreatedStatus is the status of accepted registrations and executions at the
	// root, 200 (default) or 201.
	RESTCreatedStatus int

	// NewID makes function and task ids. Default: UUID version 7.
	NewID func() task.ID
	// Now is the clock. Default [time.Now].
	Now func() time.Time
	// SafetyNet is how often waiting calls look by themselves, as a bell may miss a
	// ring. Default 2 s.
	SafetyNet time.Duration
	// ShutdownTimeout bounds the drain that follows the end of Serve's context.
	// Default 10 s.
	ShutdownTimeout time.Duration
}

func (c *Config) fill() error {
	if c.Store == nil {
		return fmt.Errorf("server: no store")
	}
	if c.GRPCAddr == "" && c.Local == nil {
		return fmt.Errorf("server: no gRPC address (--grpc-addr)")
	}
	fallback(&c.Version, "dev")
	fallback(&c.MaxPayload, task.DefaultMaxPayload)
	fallback(&c.Retention, 24*time.Hour)
	fallback(&c.RESTCompat, CompatCourse)
	fallback(&c.RESTCreatedStatus, http.StatusOK)
	fallback(&c.SafetyNet, 2*time.Second)
	fallback(&c.MaxConnections, DefaultMaxConnections)
	fallback(&c.ShutdownTimeout, 10*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if len(c.Modes) == 0 {
		c.Modes = []link.Mode{link.Push, link.Pull}
	}
	if c.NewID == nil {
		c.NewID = func() task.ID { return task.ID(uuid.Must(uuid.NewV7())) }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxConnections < 1 {
		return fmt.Errorf("server: --max-connections %d: want at least 1", c.MaxConnections)
	}
	if c.WorkerCertificates && c.TLS == nil {
		return fmt.Errorf("server: --tls-client-ca without --tls-cert and --tls-key")
	}
	if c.MaxPayload < task.MinPayloadLimit || c.MaxPayload > task.MaxPayloadLimit {
		return fmt.Errorf("server: a payload limit of %d bytes: want %d to %d", c.MaxPayload, task.MinPayloadLimit, task.MaxPayloadLimit)
	}
	fallback(&c.MaxBodies, 2*c.maxBody())
	c.MaxBodies = max(c.MaxBodies, c.maxBody())
	if c.RESTCompat != CompatCourse && c.RESTCompat != CompatSeed {
		return fmt.Errorf("server: --rest-compat %q: want %q or %q", c.RESTCompat, CompatCourse, CompatSeed)
	}
	if c.RESTCreatedStatus != http.StatusOK && c.RESTCreatedStatus != http.StatusCreated {
		return fmt.Errorf("server: --rest-created-status %d: want 200 or 201", c.RESTCreatedStatus)
	}
	return nil
}

// Core is the part of the configuration that is the fabric's.
func (c *Config) Core() fabric.Config {
	return fabric.Config{
		Store: c.Store, Logger: c.Logger, MaxPayload: c.MaxPayload, MaxRetries: c.MaxRetries, TaskTimeout: c.TaskTimeout,
		Quotas: c.Quotas, QuotaWaited: c.QuotaWaited, MaxWaited: c.MaxWaited, NewID: c.NewID, Now: c.Now, SafetyNet: c.SafetyNet,
	}
}

// DefaultMaxConnections is how many connections a listener has open at most.
const DefaultMaxConnections = 4096

// maxMessage is the limit of a gRPC message: the root service carries base64 text,
// in seed mode twice wrapped.
func (c *Config) maxMessage() int { return 2*c.MaxPayload + 1<<20 }

// maxBody is the limit of an HTTP body: base64 makes 4/3 of a payload, and line
// breaks, names and quotes the rest.
func (c *Config) maxBody() int64 { return int64(c.MaxPayload) * 4 / 3 * 105 / 100 }

// bodyShare is how much of MaxBodies one token may have.
func (c *Config) bodyShare() int64 {
	if c.Tokens == nil {
		return c.MaxBodies
	}
	return max(c.MaxBodies/2, c.maxBody())
}

func fallback[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
