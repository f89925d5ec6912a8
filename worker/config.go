// Package worker is the agent that runs attempts: it attaches to a dispatcher,
// keeps its slots busy and reports every outcome until it is acknowledged.
//
// The same agent serves push, pull and local mode; they differ in how it dials and
// in whether it asks for work.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// Config of an agent. The zero value of an optional field means its default.
type Config struct {
	// ID is the agent's id, new for each process. Required.
	ID string
	// Name is for people. Default the host's name.
	Name string
	// Software is the version shown to people.
	Software string
	// Mode says who refills the credit. Required.
	Mode link.Mode
	// Dial opens a link to a dispatcher; ctx bounds the dialling. Required.
	Dial func(ctx context.Context) (link.Conn, error)
	// Move opens a link beside the present one, to another dispatcher if elsewhere; it fails
	// when there is none. Without it the agent cannot be asked to move.
	Move func(ctx context.Context, elsewhere bool) (link.Conn, error)
	// API says how tasks reach the API of the dispatcher, see [API]; its Token is ignored, and
	// so are Address and Authority where the link says what was dialled. It may be called by
	// any goroutine. Default nil: running tasks submit no others.
	API func() (API, error)
	// Slots is how many attempts run at once. Required, 1 to [task.MaxSlots].
	Slots int
	// MaxSlots, where it is more than Slots, makes their number follow the work: up to so many
	// are opened while claims wait for one, and those above Slots shut again. Default Slots.
	MaxSlots int
	// IdleAfter is how long a slot above Slots must be idle before it shuts: longer than the
	// pauses of work that comes in waves, as a runner starts in a tenth of a second. Default 30 s.
	IdleAfter time.Duration
	// Queues that the agent serves. Default the queue "default".
	Queues []string
	// Executors run the attempts; their runtime keys must not overlap. Required.
	Executors []Executor
	// DrainTimeout is how long running attempts may go on after the agent was told to
	// stop, before they are handed back. Default 25 s; negative for none.
	DrainTimeout time.Duration
	// Reconnect pauses, doubled from the first to the last, with jitter. Default 20 ms to 1 s.
	ReconnectFirst, ReconnectLast time.Duration
	// RefusedLast is the longest pause while dispatchers refuse what the worker sends: the
	// pauses grow to it from ReconnectFirst, with jitter. Default 30 s.
	RefusedLast time.Duration
	// StartPatience is how long what waits here waits for a slot whose executor gets ready, as
	// after an attempt that was cancelled. A slot that takes longer gets no work until it is.
	// Default 5 s: far longer than an interpreter takes on a busy machine, short enough for a
	// task that another worker could have.
	StartPatience time.Duration
	// CacheBytes bounds the functions kept in memory. Default 256 MiB.
	CacheBytes int
	Logger     *slog.Logger
}

// CheckName says why name cannot be the Name of a [Config]; nil when it can.
func CheckName(name string) error {
	if len(name) > task.MaxWorkerText || !utf8.ValidString(name) {
		return fmt.Errorf("the name %.64q has %d bytes: want UTF-8 of at most %d", name, len(name), task.MaxWorkerText)
	}
	return nil
}

// CheckSlots says why slots, which grow to most, cannot be those of a [Config]; nil when
// they can.
func CheckSlots(slots, most int) error {
	switch {
	case slots < 1 || slots > task.MaxSlots:
		return fmt.Errorf("%d slots: want 1 to %d", slots, task.MaxSlots)
	case most < slots || most > task.MaxSlots:
		return fmt.Errorf("a pool of at least %d slots and at most %d: want at most %[1]d to %[3]d", slots, most, task.MaxSlots)
	}
	return nil
}

// CheckQueues says why queues cannot be those of a [Config]; nil when they can. No queues
// mean the default one.
func CheckQueues(queues []string) error {
	if len(queues) > task.MaxListed {
		return fmt.Errorf("%d queues: want at most %d; start another worker for the others", len(queues), task.MaxListed)
	}
	for _, q := range queues {
		if q == "" || len(q) > task.MaxQueueLength || !utf8.ValidString(q) {
			return fmt.Errorf("queue %.200q has %d bytes: want UTF-8 of 1 to %d", q, len(q), task.MaxQueueLength)
		}
	}
	return nil
}

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		c.Name = task.ClipText(host, task.MaxWorkerText)
	}
	if len(c.Queues) == 0 {
		c.Queues = []string{task.DefaultQueue}
	}
	if c.MaxSlots == 0 {
		c.MaxSlots = c.Slots
	}
	if c.IdleAfter == 0 {
		c.IdleAfter = 30 * time.Second
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 25 * time.Second
	}
	if c.ReconnectFirst == 0 {
		c.ReconnectFirst = 20 * time.Millisecond
	}
	if c.ReconnectLast == 0 {
		c.ReconnectLast = time.Second
	}
	if c.RefusedLast == 0 {
		c.RefusedLast = refusedLast
	}
	if c.StartPatience == 0 {
		c.StartPatience = 5 * time.Second
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 256 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, err := range []error{CheckName(c.Name), CheckQueues(c.Queues), CheckSlots(c.Slots, c.MaxSlots)} {
		if err != nil {
			return c, fmt.Errorf("worker: %w", err)
		}
	}
	switch {
	case c.ID == "" || len(c.ID) > task.MaxWorkerID:
		return c, fmt.Errorf("worker: an id of %d bytes: want 1 to %d", len(c.ID), task.MaxWorkerID)
	case len(c.Software) > task.MaxWorkerText || !utf8.ValidString(c.Software):
		return c, fmt.Errorf("worker: the software %.64q has %d bytes: want UTF-8 of at most %d", c.Software, len(c.Software), task.MaxWorkerText)
	case c.Dial == nil:
		return c, fmt.Errorf("worker: Dial is required")
	case len(c.Executors) == 0:
		return c, fmt.Errorf("worker: at least one executor is required")
	}
	return c, nil
}
