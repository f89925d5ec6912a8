package fabric

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// lines is a log that tests read.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

// results takes results and forgets them.
type results struct{ ResultReader }

func (results) Add(*task.Task, []byte) error { return nil }
func (results) Flush() error                 { return nil }

// TestStuckParentsAreTold: once for as long as all slots wait for what nobody can run.
func TestStuckParentsAreTold(t *testing.T) {
	log := make(lines, 1000)
	f := newFabric(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	f.notices.after = 0
	st := f.cfg.Store
	submit := func(c Caller) *task.Task {
		t.Helper()
		made, err := f.Submit(t.Context(), c, &Submission{Function: "f"})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	parent := func() Caller {
		t.Helper()
		made, now := submit(Caller{}), time.Now()
		got, err := st.Claim(t.Context(), now, []store.ClaimRequest{{
			Claim: task.ID(uuid.New()), Session: task.ID(uuid.New()), Worker: "w1", Queues: []string{"default"},
			Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(2 * time.Hour),
		}})
		if err != nil || len(got[0]) != 1 || got[0][0].Task.ID != made.ID {
			t.Fatalf("%v, %v, want task %s", got, err, made.ID)
		}
		if _, err := st.Renew(t.Context(), now, []store.Renewal{{Token: got[0][0].Token, Until: now.Add(2 * time.Hour), StartedAt: now}}); err != nil {
			t.Fatal(err)
		}
		return Caller{Task: made.ID}
	}
	announce := func(name string, slots, running int) {
		t.Helper()
		err := st.Announce(t.Context(), time.Now().Add(3*time.Hour), []store.Presence{{
			Worker: name, Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Slots: slots, Running: running,
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	silent := func(why string) {
		t.Helper()
		f.notices.look(t.Context())
		select {
		case line := <-log:
			t.Fatalf("%s: %s", why, line)
		default:
		}
	}
	parents := []Caller{parent(), parent()}
	announce("w1", 2, 2)
	announce("w2", 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var waits sync.WaitGroup
	defer waits.Wait()
	defer cancel()
	waiting := func(c Caller) {
		t.Helper()
		child := submit(c)
		_, _, before := f.Waiting()
		waits.Go(func() { _ = f.AwaitAll(ctx, c, results{f.Reader()}, []task.ID{child.ID}) })
		// It is noted a moment after it is counted.
		eventually(t, "the call waits", func() bool {
			_, _, now := f.Waiting()
			return now > before && len(f.notices.longWaits()) > before
		})
	}
	waiting(parents[0])
	silent("a slot works on")
	waiting(parents[1])
	silent("another worker has a free slot")
	announce("w2", 1, 1)
	told := func() {
		t.Helper()
		f.notices.look(t.Context())
		select {
		case line := <-log:
			if !strings.Contains(line, "--slots MIN-MAX") || !strings.Contains(line, "worker=w1") || !strings.Contains(line, "queue=default") {
				t.Error(line)
			}
		default:
			t.Fatal("nothing was told")
		}
	}
	told()
	silent("it was told already")
	// For an hour nothing changes, but that the calls are made anew now and then.
	now := time.Now()
	f.notices.now = func() time.Time { return now }
	for i := range 3600 / 10 {
		now = now.Add(10 * time.Second)
		f.notices.after = 0
		if i%10 == 0 {
			f.notices.after = 2 * time.Hour // as if each wait had just begun
		}
		silent("it was told already")
	}
	// A slot is free for a while, and then none again.
	announce("w2", 1, 0)
	silent("another worker has a free slot")
	now = now.Add(stuckOver)
	silent("another worker has a free slot")
	announce("w2", 1, 1)
	told()
	silent("it was told already")
}
