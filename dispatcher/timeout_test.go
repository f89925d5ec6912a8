package dispatcher_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// skewed is a store whose time a test moves on.
type skewed struct {
	checkedStore
	by atomic.Int64
}

func (s *skewed) at(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(time.Duration(s.by.Load()))
}

func (s *skewed) Claim(ctx context.Context, now time.Time, reqs []store.ClaimRequest) ([][]store.Claimed, error) {
	for i := range reqs {
		reqs[i].Until = s.at(reqs[i].Until)
	}
	return s.checkedStore.Claim(ctx, s.at(now), reqs)
}

func (s *skewed) Renew(ctx context.Context, now time.Time, items []store.Renewal) ([]task.Verdict, error) {
	moved := make([]store.Renewal, len(items))
	for i, it := range items {
		it.Until, it.StartedAt = s.at(it.Until), s.at(it.StartedAt)
		moved[i] = it
	}
	return s.checkedStore.Renew(ctx, s.at(now), moved)
}

func (s *skewed) Settle(ctx context.Context, now time.Time, items []store.Settlement) ([]task.Verdict, error) {
	return s.checkedStore.Settle(ctx, s.at(now), items)
}

func (s *skewed) Reap(ctx context.Context, now time.Time, limit int) (time.Time, error) {
	_, err := s.checkedStore.Reap(ctx, s.at(now), limit)
	return time.Time{}, err
}

// stumbling is a store whose first Reap fails.
type stumbling struct {
	checkedStore
	calls atomic.Int64
}

func (s *stumbling) Reap(ctx context.Context, now time.Time, limit int) (time.Time, error) {
	if s.calls.Add(1) == 1 {
		return time.Time{}, task.Errorf(task.CodeUnavailable, "reap", "the store is away")
	}
	return s.checkedStore.Reap(ctx, now, limit)
}

// TestDeadlineAfterAnOutage: a task's deadline passes after the store was away for a moment.
// It is looked at within a reap's period, and not a lease later.
func TestDeadlineAfterAnOutage(t *testing.T) {
	f := newFabric(t)
	s := &stumbling{checkedStore: f.store}
	f.store = s
	f.dispatcher(func(c *dispatcher.Config) { c.Lease, c.ReapEvery = time.Minute, 50*time.Millisecond })
	ids, ends := f.submit("nobody", 1, func(tk *task.Task) { tk.Deadline = time.Now().Add(500 * time.Millisecond) })
	f.wait(ends, 20*time.Second)
	if got, _ := f.result(ids[0]); got.Status != task.Failed || got.Failure.Class != task.ClassDeadline || s.calls.Load() < 2 {
		t.Errorf("%s %+v after %d reaps", got.Status, got.Failure, s.calls.Load())
	}
}

// TestTimeoutOfAWorkerThatKeepsNone: it takes the offer, ignores its timeout and goes on
// beating. The task times out all the same, once, and the worker is told to stop.
func TestTimeoutOfAWorkerThatKeepsNone(t *testing.T) {
	for _, mode := range []link.Mode{link.Push, link.Local} {
		t.Run(string(mode), func(t *testing.T) {
			f := newFabric(t)
			clock := &skewed{checkedStore: f.store}
			f.store = clock
			d, _ := f.dispatcher(nil)
			const timeout = time.Second
			ids, ends := f.submit("hang", 1, func(tk *task.Task) { tk.Timeout = timeout })
			theirs, ours := link.Pipe()
			silence := time.AfterFunc(60*time.Second, func() { ours.Close(errors.New("the claim was not withdrawn within 60 s")) })
			defer silence.Stop()
			attached := make(chan error, 1)
			go func() { attached <- d.Attach(t.Context(), theirs, mode) }()
			send := func(fr link.Frame) {
				if err := ours.Send(fr); err != nil {
					t.Error(err)
				}
			}
			send(&link.Hello{
				Version: link.Version, Worker: "rogue", Slots: 1, Queues: []string{task.DefaultQueue}, Runtimes: []string{task.GoRuntime("hang")},
			})
			most, begun := timeout+task.TimeoutMargin(timeout), time.Now()
			var held []link.Holding
			seq, revoked := uint64(0), false
			beat := func() { seq++; send(&link.Beat{Seq: seq, Held: held}) }
			for !revoked {
				fr, err := ours.Recv()
				if err != nil {
					t.Fatal(err)
				}
				switch fr := fr.(type) {
				case *link.Offers:
					held = []link.Holding{{Token: fr.Items[0].Token, StartedAt: time.Now()}}
					send(&link.Accepts{Items: []link.Accept{{Token: fr.Items[0].Token}}})
					beat()
				case *link.BeatAck:
					// Each beat that is recorded moves the time on, until the limit is just past.
					if revoked = len(fr.Stale) > 0; !revoked {
						if time.Duration(clock.by.Load()) <= most {
							clock.by.Add(int64(time.Second))
						}
						beat()
					}
				case *link.Revoke:
					revoked = true
				}
				if time.Since(begun) > 30*time.Second {
					t.Fatalf("the worker beats on %s after the start", time.Duration(clock.by.Load()))
				}
			}
			f.wait(ends, 10*time.Second)
			got, _ := f.result(ids[0])
			if got.Status != task.Failed || got.Failure.Class != task.ClassDeadline || got.AttemptCount != 1 || got.Losses != 0 {
				t.Errorf("%s after %d attempts and %d losses: %+v", got.Status, got.AttemptCount, got.Losses, got.Failure)
			}
			ours.Close(nil)
			<-attached
		})
	}
}
