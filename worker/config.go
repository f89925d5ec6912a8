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
	"slices"
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
	// Slots is how many attempts run at once. Required, 1 to 4096.
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
	// CacheBytes bounds the functions kept in memory. Default 256 MiB.
	CacheBytes int
	Logger     *slog.Logger
}

// What a dispatcher takes of a Hello: maxWorkerText bytes of a text, maxListed queues,
// runtimes or handlers.
const (
	maxWorkerText = 256
	maxListed     = 1024
)

func badQueue(q string) bool {
	return q == "" || len(q) > task.MaxQueueLength || !utf8.ValidString(q)
}

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		c.Name = task.ClipText(host, maxWorkerText)
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
	if c.CacheBytes == 0 {
		c.CacheBytes = 256 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.ID == "" || len(c.ID) > 128:
		return c, fmt.Errorf("worker: an id of %d bytes: want 1 to 128", len(c.ID))
	case len(c.Name) > maxWorkerText || !utf8.ValidString(c.Name):
		return c, fmt.Errorf("worker: the name %.64q has %d bytes: want UTF-8 of at most %d", c.Name, len(c.Name), maxWorkerText)
	case len(c.Software) > maxWorkerText || !utf8.ValidString(c.Software):
		return c, fmt.Errorf("worker: the software %.64q has %d bytes: want UTF-8 of at most %d", c.Software, len(c.Software), maxWorkerText)
	case len(c.Queues) > maxListed:
		return c, fmt.Errorf("worker: %d queues: want at most %d", len(c.Queues), maxListed)
	case slices.ContainsFunc(c.Queues, badQueue):
		return c, fmt.Errorf("worker: queue %.200q: want UTF-8 of 1 to %d bytes", c.Queues[slices.IndexFunc(c.Queues, badQueue)], task.MaxQueueLength)
	case c.Dial == nil:
		return c, fmt.Errorf("worker: Dial is required")
	case c.Slots < 1 || c.Slots > 4096:
		return c, fmt.Errorf("worker: %d slots: want 1 to 4096", c.Slots)
	case c.MaxSlots < c.Slots || c.MaxSlots > 4096:
		return c, fmt.Errorf("worker: %d slots at most: want %d, the least, to 4096", c.MaxSlots, c.Slots)
	case len(c.Executors) == 0:
		return c, fmt.Errorf("worker: at least one executor is required")
	}
	return c, nil
}
