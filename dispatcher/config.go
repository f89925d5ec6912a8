package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Config of a dispatcher. The zero value of a field means its default.
type Config struct {
	// Lease is how long a session may hold an attempt without a renewal. Default 10 s.
	Lease time.Duration
	// Heartbeat is how often a worker must be heard. Default 1 s.
	Heartbeat time.Duration
	// MissedBeats is how many heartbeats in a row may be missed before a session
	// gets no more work. Default 3.
	MissedBeats int
	// Grace is how long a worker whose stream closed may take to come back before
	// its attempts are requeued. Default 1 s; negative for none.
	Grace time.Duration
	// Margin is how long before the end of a lease a worker stops the attempt.
	// Default a fifth of Lease.
	Margin time.Duration
	// ReapEvery is the longest time between two looks for overdue tasks. Default 250 ms.
	ReapEvery time.Duration
	// PollEvery is the safety net under the store's bell. Default 2 s.
	PollEvery time.Duration
	// Modes are the workers that this dispatcher takes and is ready to share with the other
	// dispatchers of the store. None: it neither gives nor gets any by itself.
	Modes []link.Mode
	// MoveEvery is how often dispatchers tell each other how many workers they have, give
	// or take a quarter. Default 2 s.
	MoveEvery time.Duration
	// StreamAge is when a worker has to open a new stream, give or take a tenth; its leases
	// are kept. Default 30 min; negative for never.
	StreamAge time.Duration
	// MaxPayload is the limit on one result in bytes, told to workers. Default 64 MiB.
	MaxPayload int
	// OfferBytes bounds the arguments of one claim beyond its first task. Default 16 MiB.
	OfferBytes int

	// TaskKey makes the key with which the worker of a session makes tokens of running tasks.
	// Default nil: this process serves no calls of tasks, and workers get none.
	TaskKey func(session task.ID) []byte

	// Registrar makes the Go handlers of workers known. It is required.
	Registrar Registrar
	// ID tells this dispatcher from others on the store; NewID makes ids for
	// sessions and claims (random).
	ID    task.ID
	NewID func() task.ID
	// Jitter returns a random number in [0,1). Default the runtime's generator.
	Jitter func() float64
	Logger *slog.Logger
}

// Registrar records functions by the rules of the application: package fabric is one.
type Registrar interface {
	// RegisterHandler makes a Go handler known as the function of its name. A handler that is
	// known keeps its function. An error of [task.CodeInvalid] refuses the worker for good.
	RegisterHandler(ctx context.Context, name string) error
}

// Backend is the slice of the store that a dispatcher uses.
type Backend interface {
	store.Queue
	store.Fleet
	// FunctionPayload is that of [store.Functions].
	FunctionPayload(ctx context.Context, hash [32]byte) ([]byte, error)
	Bell() store.Bell
}

func (c Config) withDefaults() (Config, error) {
	setDuration(&c.Lease, 10*time.Second)
	setDuration(&c.Heartbeat, time.Second)
	setDuration(&c.Grace, time.Second)
	setDuration(&c.Margin, c.Lease/5)
	setDuration(&c.ReapEvery, 250*time.Millisecond)
	setDuration(&c.PollEvery, 2*time.Second)
	setDuration(&c.MoveEvery, 2*time.Second)
	setDuration(&c.StreamAge, 30*time.Minute)
	if c.MissedBeats == 0 {
		c.MissedBeats = 3
	}
	if c.MaxPayload == 0 {
		c.MaxPayload = task.DefaultMaxPayload
	}
	if c.OfferBytes == 0 {
		c.OfferBytes = 16 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.ID.IsZero() || c.NewID == nil || c.Registrar == nil || c.Jitter == nil:
		return c, fmt.Errorf("dispatcher: ID, NewID, Registrar and Jitter are required")
	case c.Heartbeat <= 0 || c.Heartbeat*time.Duration(c.MissedBeats) >= c.Lease:
		return c, fmt.Errorf("heartbeat %s and lease %s: the lease must outlast %d missed heartbeats; lengthen the lease",
			c.Heartbeat, c.Lease, c.MissedBeats)
	case c.Margin >= c.Lease-c.Heartbeat:
		return c, fmt.Errorf("lease %s leaves no time between a heartbeat of %s and the margin of %s", c.Lease, c.Heartbeat, c.Margin)
	}
	return c, nil
}

func setDuration(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}
