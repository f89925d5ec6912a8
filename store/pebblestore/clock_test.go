package pebblestore

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// steppedClock is a process's clock whose wall part can be set while the monotonic part
// goes on: what time.Now returns after an NTP step, a suspended machine or a dead battery.
type steppedClock struct{ wall, mono time.Duration }

// epoch has both parts, as what time.Now returns has.
var epoch = time.Now()

// now builds a reading: Add moves both parts, then the wall part alone is moved.
func (c *steppedClock) now(t *testing.T) time.Time {
	t.Helper()
	return wallBy(t, epoch.Add(c.mono), c.wall)
}

// wallBy moves the wall part of a reading by whole seconds. A Time with a monotonic part
// holds its wall seconds from bit 30 on; nothing in package time offers this.
func wallBy(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	out := at
	word := (*uint64)(unsafe.Pointer(&out))
	*word += uint64(int64(d/time.Second)) << 30
	if got := out.Sub(at); got != 0 {
		t.Fatalf("the monotonic parts differ by %s", got)
	}
	if got := out.Round(0).Sub(at.Round(0)); got != d {
		t.Fatalf("the wall parts differ by %s, want %s", got, d)
	}
	return out
}

// stepped is a store under a clock that can be set.
type stepped struct {
	*fixture
	c   steppedClock
	log *lockedLog
}

type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func newStepped(t *testing.T) *stepped {
	t.Helper()
	f := &stepped{log: &lockedLog{}}
	f.fixture = newFixture(t, func(o *Options) {
		o.FS = vfs.NewMem()
		o.Retention = time.Hour
		o.Now = func() time.Time { return f.c.now(t) }
		o.Logger = slog.New(slog.NewTextHandler(f.log, nil))
	})
	return f
}

func (f *stepped) reap(t *testing.T) {
	t.Helper()
	if _, err := f.s.Reap(context.Background(), f.c.now(t), 100); err != nil {
		t.Fatal(err)
	}
	f.checked(t)
}

func (f *stepped) submit(t *testing.T) task.ID {
	t.Helper()
	tk := sampleTask([]byte("args"))
	got, err := f.s.Submit(context.Background(), f.c.now(t), []store.Submission{{Task: tk, Args: []byte("args")}})
	if err != nil || got[0].Err != nil {
		t.Fatal(got, err)
	}
	return tk.ID
}

// claim claims up to n tasks and says that they were started.
func (f *stepped) claim(t *testing.T, n int) []store.Claimed {
	t.Helper()
	now := f.c.now(t)
	got, err := f.s.Claim(context.Background(), now, []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
		Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: n, Until: now.Add(10 * time.Second)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got[0] {
		f.renew(t, c.Token)
	}
	return got[0]
}

func (f *stepped) renew(t *testing.T, tok task.Token) {
	t.Helper()
	now := f.c.now(t)
	v, err := f.s.Renew(context.Background(), now, []store.Renewal{{Token: tok, Until: now.Add(10 * time.Second), StartedAt: now}})
	if err != nil || v[0] != task.VerdictRecorded {
		t.Fatal(v, err)
	}
}

func (f *stepped) settle(t *testing.T, tok task.Token, end task.End) {
	t.Helper()
	v, err := f.s.Settle(context.Background(), f.c.now(t), []store.Settlement{{Token: tok, Outcome: task.Outcome{End: end}, Jitter: 0.999}})
	if err != nil || v[0] != task.VerdictRecorded {
		t.Fatal(v, err)
	}
}

func (f *stepped) task(t *testing.T, id task.ID) *task.Task {
	t.Helper()
	got, err := f.s.Task(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var leaps = []time.Duration{
	2 * time.Second, 30 * time.Second, time.Hour, 26 * time.Hour, 40 * 365 * 24 * time.Hour,
	-2 * time.Second, -30 * time.Second, -time.Hour, -26 * time.Hour,
}

// TestLeapEndsNoLease: a lease ends when its length has passed, whatever the wall clock
// is set to, and records show the new wall time.
func TestLeapEndsNoLease(t *testing.T) {
	t.Parallel()
	for _, leap := range leaps {
		t.Run(leap.String(), func(t *testing.T) {
			t.Parallel()
			f := newStepped(t)
			id := f.submit(t)
			c := f.claim(t, 1)[0]
			f.c.mono += 5 * time.Second
			f.c.wall += leap
			f.reap(t)
			if got := f.task(t, id); got.Status != task.Running || got.Losses != 0 {
				t.Fatalf("after a leap of %s the task is %s with %d losses", leap, got.Status, got.Losses)
			}
			f.renew(t, c.Token)
			f.c.mono += 9 * time.Second
			f.reap(t)
			if got := f.task(t, id); got.Status != task.Running {
				t.Fatalf("one second before the end of its lease the task is %s", got.Status)
			}
			f.c.mono += 2 * time.Second
			f.reap(t)
			if got := f.task(t, id); got.Status != task.Queued || got.Losses != 1 {
				t.Fatalf("after the end of its lease the task is %s with %d losses", got.Status, got.Losses)
			}
			if created := f.task(t, f.submit(t)).CreatedAt; created.Sub(plain(f.c.now(t))).Abs() > maxDrift {
				t.Errorf("a new record says %s, the wall clock %s", created, plain(f.c.now(t)))
			}
			if n := f.log.count("the wall clock was set"); n != 1 {
				t.Errorf("the log tells of the step %d times, want once", n)
			}
		})
	}
}

// TestLeapDuringClaim: a claim whose caller read the clock before the leap gets a whole lease.
func TestLeapDuringClaim(t *testing.T) {
	t.Parallel()
	f := newStepped(t)
	id := f.submit(t)
	before := f.c.now(t)
	f.c.wall += time.Hour
	got, err := f.s.Claim(context.Background(), f.c.now(t), []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
		Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: 1, Until: before.Add(10 * time.Second)}})
	if err != nil || len(got[0]) != 1 || got[0][0].Task.ID != id {
		t.Fatal(got, err)
	}
	if length := got[0][0].Task.Lease.Until.Sub(got[0][0].Task.Lease.ClaimedAt); length != 10*time.Second {
		t.Fatalf("a lease of %s, want 10s", length)
	}
}

// TestLeapFreezesNoDelay: a delay ends when it has passed, in this process and after a
// restart, whatever the wall clock is set to.
func TestLeapFreezesNoDelay(t *testing.T) {
	t.Parallel()
	for _, leap := range leaps {
		for _, how := range []string{"in memory", "on disk", "restart"} {
			t.Run(leap.String()+" "+how, func(t *testing.T) {
				t.Parallel()
				f := newStepped(t)
				if how == "on disk" {
					f.s.opts.maxResident = 0 // set before the first commit: records are left to the disk
				}
				id := f.submit(t)
				for range 2 { // the second loss is the first that waits
					f.settle(t, f.claim(t, 1)[0].Token, task.EndLost)
				}
				f.c.wall += leap
				if how == "restart" {
					// A commit that has nothing to do with it writes the clock as it is now.
					if _, err := f.s.Cancel(context.Background(), f.c.now(t), []task.ID{f.submit(t)}, false); err != nil {
						t.Fatal(err)
					}
					f.reap(t)
					f.reopen(t)
				}
				f.reap(t)
				f.c.mono += time.Second // longer than the delay
				f.reap(t)
				if got := f.claim(t, 1); len(got) != 1 || got[0].Task.ID != id {
					t.Fatalf("after a leap of %s and its delay the task is not to be had: %+v", leap, f.task(t, id))
				}
				f.checked(t)
			})
		}
	}
}

// TestSetBackWhileClosed: a store that was written under a clock far ahead goes on.
func TestSetBackWhileClosed(t *testing.T) {
	t.Parallel()
	f := newStepped(t)
	f.c.wall = time.Hour
	f.submit(t)
	waits := f.task(t, f.submit(t)).ID
	for _, c := range f.claim(t, 2) {
		if c.Task.ID == waits {
			f.settle(t, c.Token, task.EndLost)
			f.settle(t, f.claim(t, 1)[0].Token, task.EndLost)
		}
	}
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	f.c.wall = 0
	f.open(t)
	if n := f.log.count("the clock was set back"); n != 1 {
		t.Errorf("the log tells of it %d times, want once", n)
	}
	f.c.mono += time.Second
	f.reap(t)
	if got := f.claim(t, 1); len(got) != 1 || got[0].Task.ID != waits {
		t.Fatalf("the delayed task is not to be had: %+v", f.task(t, waits))
	}
	f.c.mono += 11 * time.Second
	f.reap(t)
	if got := f.claim(t, 2); len(got) == 0 {
		t.Fatal("a lease found at open does not end")
	}
}

// TestLeapDeletesNothing: results are kept for the retention, whatever the wall clock is
// set to meanwhile.
func TestLeapDeletesNothing(t *testing.T) {
	t.Parallel()
	for _, leap := range leaps {
		t.Run(leap.String(), func(t *testing.T) {
			t.Parallel()
			f := newStepped(t)
			finish := func() task.ID {
				id := f.submit(t)
				f.settle(t, f.claim(t, 1)[0].Token, task.EndSucceeded)
				return id
			}
			kept := func(id task.ID) bool {
				_, err := f.s.Task(context.Background(), id)
				if err != nil && task.CodeOf(err) != task.CodeNotFound {
					t.Fatal(err)
				}
				return err == nil
			}
			// The place where a removal ended must not hide what finishes after a step back.
			removed := finish()
			f.c.mono += 61 * time.Minute
			f.reap(t)
			if kept(removed) {
				t.Fatal("a task is kept after its retention")
			}
			before := finish()
			f.c.wall += leap
			f.reap(t)
			if !kept(before) {
				t.Fatalf("a leap of %s removed a task that had just finished", leap)
			}
			after := finish()
			f.c.mono += 59 * time.Minute
			f.reap(t)
			if !kept(before) || !kept(after) {
				t.Fatal("a task was removed before its retention was over")
			}
			f.c.mono += 2*time.Minute + leap.Abs()
			if leap > 24*time.Hour {
				f.c.mono += time.Hour - leap // the hold is over after one retention, not after the leap
			}
			f.reap(t)
			f.reap(t) // the first one after the hold
			if kept(before) || kept(after) {
				t.Fatalf("kept after the retention: the one from before the leap %v, the one from after it %v", kept(before), kept(after))
			}
		})
	}
}

// TestLeapsKeepTheRetention: however often the wall clock is set, a finished task is kept for
// the retention, and is gone soon after it. (What finishes while the clock is ahead of what it
// is set back to stays for as much longer, and is left out here.)
func TestLeapsKeepTheRetention(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	suspends := make([]time.Duration, 0, 40)
	for range 40 {
		suspends = append(suspends, 30*time.Minute)
	}
	often := make([]time.Duration, 0, 600)
	for range 300 {
		often = append(often, time.Hour, -time.Hour)
	}
	for name, c := range map[string]struct {
		steps []time.Duration
		every time.Duration
		// late is how much longer than the retention a task may stay.
		late time.Duration
	}{
		"forth and back":             {[]time.Duration{26 * time.Hour, -26 * time.Hour}, time.Second, 0},
		"back and forth":             {[]time.Duration{-26 * time.Hour, 26 * time.Hour}, time.Second, 0},
		"a day apart":                {[]time.Duration{day, -day, day, -day}, 20 * time.Minute, 20 * time.Minute},
		"suspended again and again":  {suspends, 30 * time.Minute, 0},
		"more often than remembered": {often, 100 * time.Millisecond, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newStepped(t)
			done := map[task.ID]time.Duration{} // by the monotonic clock
			finish := func() {
				id := f.submit(t)
				f.settle(t, f.claim(t, 1)[0].Token, task.EndSucceeded)
				done[id] = f.c.mono
			}
			look := func() {
				f.reap(t)
				f.reap(t) // the first one may only find out when the next task is due
				for id, at := range done {
					_, err := f.s.Task(context.Background(), id)
					age := f.c.mono - at
					switch {
					case err == nil && age > time.Hour+c.late+time.Minute:
						t.Fatalf("a task that finished %s ago is kept", age)
					case err != nil && age < time.Hour:
						t.Fatalf("a task that finished %s ago is gone: %v", age, err)
					case err != nil:
						delete(done, id)
					}
				}
			}
			finish()
			for i, step := range c.steps {
				f.c.mono += c.every
				f.c.wall += step
				var offset, least time.Duration
				for _, s := range c.steps[i+1:] {
					offset += s
					least = min(least, offset)
				}
				if least == 0 && i%10 < 2 {
					finish()
				}
				look()
			}
			for range 70 {
				f.c.mono += 2 * time.Minute
				look()
			}
			if len(done) > 0 {
				t.Fatalf("%d tasks are kept", len(done))
			}
		})
	}
}
