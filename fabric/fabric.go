// Package fabric is the application: what may be asked of Treadle, in plain Go types. It
// makes tasks of submissions, registers functions, waits for ends, keeps quotas, and reads
// filters. Everything that lasts is in the store.
//
// It knows no wire: package server turns gRPC and REST into calls of a [Fabric], and anything
// else that submits or waits (a schedule, a program that embeds Treadle, a dispatcher that
// makes the handlers of its workers known) calls the same methods. Who calls, and how much
// memory an answer may take, are arguments, see [Caller] and [ResultReader]; nothing travels in
// a context but its end.
package fabric

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Config configures a [Fabric]. Fields without a default may stay zero.
type Config struct {
	// Store is required.
	Store store.Store
	// Logger defaults to a logger that drops everything.
	Logger *slog.Logger

	// MaxPayload is the one limit on a decoded payload or result, in bytes, from
	// [task.MinPayloadLimit] to [task.MaxPayloadLimit]. Default 64 MiB.
	MaxPayload int
	// MaxRetries is how many lost workers a task survives that does not say. Negative
	// means none; default 3.
	MaxRetries int
	// TaskTimeout limits the attempts of tasks that do not say; 0 means none.
	TaskTimeout time.Duration

	// Quotas bound what one owner may have in the store; callers without an owner have none.
	Quotas Quotas
	// QuotaWaited bounds the tasks that the calls of one owner wait for. Default
	// [DefaultQuotaWaited]; negative is no limit.
	QuotaWaited int
	// MaxWaited bounds the tasks that all calls wait for. Default [DefaultMaxWaited].
	MaxWaited int

	// NewID makes function and task ids. Default: UUID version 7.
	NewID func() task.ID
	// Now is the clock. Default [time.Now].
	Now func() time.Time
	// SafetyNet is how often [Fabric.Sweep] is called, and how often a watched task is looked
	// at, as a bell may miss a ring. Default 2 s.
	SafetyNet time.Duration
}

func (c *Config) fill() error {
	if c.Store == nil {
		return fmt.Errorf("fabric: no store")
	}
	fallback(&c.MaxPayload, task.DefaultMaxPayload)
	fallback(&c.MaxRetries, task.DefaultMaxRetries)
	fallback(&c.QuotaWaited, DefaultQuotaWaited)
	fallback(&c.MaxWaited, DefaultMaxWaited)
	fallback(&c.SafetyNet, 2*time.Second)
	c.MaxRetries = max(c.MaxRetries, 0)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.NewID == nil {
		c.NewID = func() task.ID { return task.ID(uuid.Must(uuid.NewV7())) }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxPayload < task.MinPayloadLimit || c.MaxPayload > task.MaxPayloadLimit {
		return fmt.Errorf("fabric: a payload limit of %d bytes: want %d to %d", c.MaxPayload, task.MinPayloadLimit, task.MaxPayloadLimit)
	}
	return nil
}

// Fabric is the application on one store. Its methods may be called by any goroutine. They
// answer with a [task.Error] where the request is at fault, [*OverQuota] among them, and with
// the store's error otherwise.
//
// Waits need two helpers, which whoever serves a fabric runs: [Fabric.Listen], and
// [Fabric.Sweep] every Config.SafetyNet.
type Fabric struct {
	cfg       Config
	functions functionCache
	// quotas is nil where nothing is bounded.
	quotas  *quotas
	waiters *waiters
	// notices tells of tasks that wait for each other for ever.
	notices   *notices
	submitted atomic.Int64

	// closing ends the waits of long calls early.
	closing   chan struct{}
	closeOnce sync.Once
}

// New checks the configuration and makes a fabric. It needs no end; [Fabric.Close] ends the
// waits of its calls.
func New(cfg Config) (*Fabric, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	return &Fabric{
		cfg: cfg, quotas: newQuotas(&cfg), waiters: newWaiters(cfg.QuotaWaited, cfg.MaxWaited), notices: newNotices(&cfg),
		closing: make(chan struct{}),
	}, nil
}

// Caller is who calls: whose quotas count, and for a running task what its children take after.
// The zero Caller has no owner and no limits of its own.
type Caller struct {
	// Owner is the id of the token of the caller, or of the token that a running task belongs
	// to; empty where none are asked for. What a call stores is its.
	Owner string
	// Task is the running task that calls; zero for everybody else. It submits its children,
	// and has no others.
	Task task.ID
	// Deadline is that of Task; zero for none. No child has a later one.
	Deadline time.Time
}

// Listen lets the store's bell end waits, until stop is called. It is called once, before the
// first call that waits.
func (f *Fabric) Listen() (stop func()) { return f.cfg.Store.Bell().Listen(f.waiters.listen) }

// Close ends the waits of calls early, as if their time were over; streams end with
// [task.CodeUnavailable]. It may be called more than once.
func (f *Fabric) Close() { f.closeOnce.Do(func() { close(f.closing) }) }

func (f *Fabric) isClosing() bool {
	select {
	case <-f.closing:
		return true
	default:
		return false
	}
}

// Submitted is how many tasks this fabric recorded.
func (f *Fabric) Submitted() int64 { return f.submitted.Load() }

// invalid is a fault of one field of a request.
func invalid(field, format string, args ...any) error {
	e := task.Errorf(task.CodeInvalid, "", format, args...)
	e.Field = field
	return e
}

func fallback[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
