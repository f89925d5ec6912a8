// Package logfold keeps a log readable, and a disk free, when one cause makes thousands of
// lines: of each level and message a few pass in each window of time, and one line says how
// many more there were.
package logfold

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Defaults of [Options].
const (
	DefaultLines    = 50
	DefaultWindow   = 10 * time.Second
	DefaultMessages = 1024
)

// Options configure a [Handler]; zero fields have defaults.
type Options struct {
	// Lines is how many lines of one level and message pass in a window. Default 50.
	Lines int
	// Window is how long lines are counted together. Default 10 s.
	Window time.Duration
	// Messages bounds the table of levels and messages. When it is full of such as were seen
	// within the window, further ones count together. Default 1024.
	Messages int
}

// Handler is a [slog.Handler] that folds what would be too many lines of one level and
// message into one with their number: the same level and message, folded=N and
// window=10s. It comes when the window has ended, or at [Handler.Close], and has no other
// attributes, as the lines that it stands for may differ in theirs. Lines that pass keep
// theirs. Lines below INFO pass all: who asks for them wants to see each.
//
// All handlers that WithAttrs and WithGroup make share one table. Methods may be called
// at the same time.
type Handler struct {
	inner slog.Handler
	table *table
}

// New folds what goes to inner. Close must be called, or the last numbers are missing.
func New(inner slog.Handler, o Options) *Handler {
	if o.Lines <= 0 {
		o.Lines = DefaultLines
	}
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.Messages <= 0 {
		o.Messages = DefaultMessages
	}
	return &Handler{inner: inner, table: &table{Options: o, out: inner, causes: make(map[key]*cause)}}
}

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{inner: h.inner.WithAttrs(attrs), table: h.table}
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{inner: h.inner.WithGroup(name), table: h.table}
}

// Handle implements [slog.Handler].
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return h.inner.Handle(ctx, r)
	}
	passes, before := h.table.count(r)
	if before > 0 {
		h.table.tell(key{r.Level, r.Message}, before)
	}
	if !passes {
		return nil
	}
	return h.inner.Handle(ctx, r)
}

// Close writes the numbers that are still owed. Lines that come later pass as they are. It
// may be called more than once.
func (h *Handler) Close() {
	h.table.close()
}

// Others is the message under which the number of lines stands whose message found no
// room in the table.
const Others = "further messages"

type key struct {
	level   slog.Level
	message string
}

// cause counts the lines of one level and message in the window that began at from.
type cause struct {
	from          time.Time
	lines, folded int
}

type table struct {
	Options
	// out writes the numbers.
	out slog.Handler

	// telling is held while the timer or Close tells numbers, so that Close returns after the
	// last of them; it is taken before mu.
	telling sync.Mutex

	mu     sync.Mutex
	causes map[key]*cause
	// timer runs while a number is owed.
	timer  *time.Timer
	closed bool
}

// count counts a line. before is the number of a window that ended without having been
// told.
func (t *table) count(r slog.Record) (passes bool, before int) {
	now := r.Time
	if now.IsZero() {
		now = time.Now()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return true, 0
	}
	c := t.causes[key{r.Level, r.Message}]
	if c == nil {
		c = t.add(key{r.Level, r.Message}, now)
	}
	if now.Sub(c.from) >= t.Window {
		before = c.folded
		*c = cause{from: now}
	}
	if c.lines < t.Lines {
		c.lines++
		return true, before
	}
	c.folded++
	if t.timer == nil {
		t.timer = time.AfterFunc(t.Window, t.expire)
	}
	return false, before
}

// add makes room for a cause; mu is held. Without any it counts with others of its level.
func (t *table) add(k key, now time.Time) *cause {
	if len(t.causes) >= t.Messages {
		for old, c := range t.causes {
			if c.folded == 0 && now.Sub(c.from) >= t.Window {
				delete(t.causes, old)
			}
		}
	}
	if len(t.causes) >= t.Messages {
		k.message = Others
		if c := t.causes[k]; c != nil {
			return c
		}
	}
	c := &cause{from: now}
	t.causes[k] = c
	return c
}

// expire tells the numbers of the windows that have ended, and comes again while there are
// others.
func (t *table) expire() {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	owed := t.due(func(c *cause) bool { return time.Since(c.from) >= t.Window })
	t.timer = nil
	if !t.closed {
		next := time.Duration(-1)
		for _, c := range t.causes {
			if left := t.Window - time.Since(c.from); c.folded > 0 && (next < 0 || left < next) {
				next = max(left, 0)
			}
		}
		if next >= 0 {
			t.timer = time.AfterFunc(next, t.expire)
		}
	}
	t.mu.Unlock()
	for k, n := range owed {
		t.tell(k, n)
	}
}

// due takes the causes that have ended out of the table and returns what they owe; mu is
// held.
func (t *table) due(ended func(*cause) bool) map[key]int {
	owed := make(map[key]int)
	for k, c := range t.causes {
		if !ended(c) {
			continue
		}
		if c.folded > 0 {
			owed[k] = c.folded
		}
		delete(t.causes, k)
	}
	return owed
}

func (t *table) close() {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
	}
	owed := t.due(func(*cause) bool { return true })
	t.mu.Unlock()
	for k, n := range owed {
		t.tell(k, n)
	}
}

// tell writes one number.
func (t *table) tell(k key, n int) {
	r := slog.NewRecord(time.Now(), k.level, k.message, 0)
	r.AddAttrs(slog.Int("folded", n), slog.Duration("window", t.Window))
	_ = t.out.Handle(context.Background(), r) // as slog.Logger: whoever logs is not told that it failed
}
