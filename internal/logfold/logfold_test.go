package logfold

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink keeps records.
type sink struct {
	mu   *sync.Mutex
	got  *[]string
	with string
}

func newSink() sink { return sink{new(sync.Mutex), new([]string), ""} }

func (s sink) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelDebug }

func (s sink) WithAttrs(attrs []slog.Attr) slog.Handler { s.with += fmt.Sprint(attrs); return s }

func (s sink) WithGroup(name string) slog.Handler { s.with += name + "."; return s }

func (s sink) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message + s.with
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.got = append(*s.got, text)
	return nil
}

func (s sink) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(*s.got)
}

// count counts lines.
func (s sink) count(line string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range *s.got {
		if l == line {
			n++
		}
	}
	return n
}

// TestFold: at the limit nothing is folded, one more is counted, and the number comes when
// the window ends.
func TestFold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		h := New(out, Options{Lines: 3, Window: 10 * time.Second})
		log := slog.New(h)
		for range 3 {
			log.Info("at the limit")
		}
		for range 8 {
			log.Error("over")
			log.Debug("each is wanted")
		}
		log.With("worker", "w1").WithGroup("g").Error("over", "n", 1) // folded with the others
		log.Warn("over", "n", 1)                                      // another level is another cause
		time.Sleep(10*time.Second - 1)
		synctest.Wait()
		for line, want := range map[string]int{
			"INFO at the limit": 3, "ERROR over": 3, "DEBUG each is wanted": 8, "WARN over n=1": 1,
		} {
			if n := out.count(line); n != want {
				t.Errorf("%q stands %d times, want %d", line, n, want)
			}
		}
		if len(out.lines()) != 15 {
			t.Errorf("%d lines before the window's end: %q", len(out.lines()), out.lines())
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if out.count("ERROR over folded=6 window=10s") != 1 || len(out.lines()) != 16 {
			t.Errorf("at the window's end: %q", out.lines()[15:])
		}
		log.With("worker", "w1").Error("over") // a new window
		if out.count("ERROR over[worker=w1]") != 1 {
			t.Errorf("the first line of a new window: %q", out.lines())
		}
		h.Close()
		if len(out.lines()) != 17 {
			t.Errorf("Close tells what is not owed: %q", out.lines()[16:])
		}
	})
}

// TestCloseTells: shutdown says what is owed, once, and later lines pass.
func TestCloseTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		h := New(out, Options{Lines: 1})
		log := slog.New(h)
		for range 5 {
			log.Info("x")
		}
		h.Close()
		h.Close()
		if out.count("INFO x folded=4 window=10s") != 1 || len(out.lines()) != 2 {
			t.Errorf("%q", out.lines())
		}
		log.Info("x")
		log.Info("x")
		if out.count("INFO x") != 3 {
			t.Errorf("%q", out.lines())
		}
		time.Sleep(time.Minute) // nothing is left that would write or run
		if len(out.lines()) != 4 {
			t.Errorf("%q", out.lines())
		}
	})
}

// TestTableIsBounded: messages that differ each time share one count when the table is
// full, and make room when their window is over.
func TestTableIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		h := New(out, Options{Lines: 2, Messages: 10})
		defer h.Close()
		log := slog.New(h)
		for i := range 1000 {
			log.Info(fmt.Sprint("message ", i))
		}
		h.table.mu.Lock()
		n := len(h.table.causes)
		h.table.mu.Unlock()
		if n > 11 { // one for the others of this level
			t.Errorf("%d messages are kept", n)
		}
		if n := len(out.lines()); n != 12 {
			t.Errorf("%d lines passed", n)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if out.count("INFO "+Others+" folded=988 window=10s") != 1 {
			t.Errorf("%q", out.lines())
		}
		log.Info("message 5000")
		log.Info("message 5000")
		if out.count("INFO message 5000") != 2 {
			t.Error("there is no room after the window")
		}
	})
}

// TestAtOnce counts every line exactly once whoever writes; the race detector watches.
func TestAtOnce(t *testing.T) {
	out := newSink()
	h := New(out, Options{Lines: 10, Window: time.Millisecond})
	log := slog.New(h)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 2000 {
				log.Warn("x")
			}
		})
	}
	group.Wait()
	h.Close()
	sum := 0
	for _, l := range out.lines() {
		n := 0
		if _, err := fmt.Sscanf(l, "WARN x folded=%d", &n); err != nil {
			n = 1
		}
		sum += n
	}
	if sum != 16000 {
		t.Errorf("%d of 16000 lines are accounted for", sum)
	}
}

// nothing is a handler that costs nothing, so that the rest is what folding costs.
type nothing struct{ slog.Handler }

func (nothing) Handle(context.Context, slog.Record) error { return nil }

func BenchmarkPass(b *testing.B) {
	for name, h := range map[string]slog.Handler{
		"plain":   nothing{},
		"folding": New(nothing{}, Options{Lines: 1 << 60}),
	} {
		b.Run(name, func(b *testing.B) {
			r := slog.NewRecord(time.Now(), slog.LevelInfo, "worker attached", 0)
			b.ReportAllocs()
			for b.Loop() {
				if err := h.Handle(context.Background(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
