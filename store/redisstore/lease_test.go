package redisstore

import (
	"context"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/task"
)

// An offer that nobody acknowledges goes back after its own short lease; one whose holder
// was heard of keeps the full one.
func TestOfferLease(t *testing.T) {
	t.Parallel()
	s := live(t, server.URL(""), func(o *Options) { o.OfferLease = 300 * time.Millisecond; o.Absence = time.Hour })
	silent, heard := submission(nil), submission(nil)
	submitOne(t, s, silent)
	submitOne(t, s, heard)
	claims := claimSome(t, s, request(2))
	if got := claims[0].Task.Lease.Until.Sub(claims[0].Task.Lease.ClaimedAt); got != 300*time.Millisecond {
		t.Fatalf("an offer lasts %s", got)
	}
	until := time.Now().Add(10 * time.Second)
	if v, err := s.Renew(t.Context(), time.Now(), []store.Renewal{{Token: claims[1].Token, Until: until}}); err != nil || v[0] != task.VerdictRecorded {
		t.Fatal(v, err)
	}
	redistest.Poll(t, "the silent offer goes back", func(ctx context.Context) bool {
		next, err := s.Reap(ctx, time.Now(), 100)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Until(next); d > 11*time.Second {
			t.Fatalf("the next look is in %s", d)
		}
		got, err := s.Task(ctx, silent.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.Lease == nil && got.Lapses == 1 && got.AttemptCount == 0
	})
	if got, err := s.Task(t.Context(), heard.Task.ID); err != nil || got.Lease == nil || time.Until(got.Lease.Until) < 5*time.Second {
		t.Fatalf("%+v, %v", got, err)
	}
}

// The clock of a caller decides nothing: an hour off, leases last as long as they should.
func TestCallerClockIsOff(t *testing.T) {
	t.Parallel()
	s := live(t, server.URL(""), func(o *Options) { o.OfferLease = -1; o.Absence = time.Hour })
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		now := func() time.Time { return time.Now().Add(off) }
		it := submission(nil)
		if _, err := s.Submit(t.Context(), now(), []store.Submission{it}); err != nil {
			t.Fatal(err)
		}
		r := request(1)
		r.Until = now().Add(10 * time.Second)
		claims, err := s.Claim(t.Context(), now(), []store.ClaimRequest{r})
		if err != nil || len(claims[0]) != 1 {
			t.Fatal(claims, err)
		}
		if _, err := s.Renew(t.Context(), now(), []store.Renewal{{Token: claims[0][0].Token, Until: now().Add(20 * time.Second), StartedAt: now().Add(-time.Second)}}); err != nil {
			t.Fatal(err)
		}
		next, err := s.Reap(t.Context(), now(), 100)
		if d := next.Sub(now()); err != nil || d < 0 || d > 21*time.Second {
			t.Fatalf("off by %s: reap again in %s, %v", off, d, err)
		}
		got, err := s.Task(t.Context(), it.Task.ID)
		if err != nil || got.Lease == nil {
			t.Fatalf("off by %s: %+v, %v", off, got, err)
		}
		for what, d := range map[string]time.Duration{
			"created": time.Since(got.CreatedAt), "claimed": time.Since(got.Lease.ClaimedAt), "until": time.Until(got.Lease.Until) - 20*time.Second,
			"started": time.Since(got.Lease.StartedAt) - time.Second,
		} {
			if d.Abs() > 5*time.Second {
				t.Errorf("off by %s: %s is off by %s", off, what, d)
			}
		}
		succeed(t, s, claims[0][0].Token, nil)
	}
}

// After nobody looked after the store for a while, no lease is reaped for a lease length.
func TestAbsence(t *testing.T) {
	t.Parallel()
	const lease, absence = 700 * time.Millisecond, 200 * time.Millisecond
	s := live(t, server.URL(""), func(o *Options) { o.Lease, o.Absence, o.OfferLease = lease, absence, -1 })
	ctx := t.Context()
	reap := func() {
		t.Helper()
		if _, err := s.Reap(ctx, time.Now(), 100); err != nil {
			t.Fatal(err)
		}
	}
	reap()
	it := submission(nil)
	submitOne(t, s, it)
	r := request(1)
	r.Until = time.Now().Add(absence / 2)
	claimSome(t, s, r)
	time.Sleep(2 * absence) // The absence itself: there is nothing to wait for.
	back := time.Now()
	reap()
	if got, err := s.Task(ctx, it.Task.ID); err != nil || got.Lease == nil {
		t.Fatalf("a lease that ran out while nobody watched was reaped: %+v, %v", got, err)
	}
	redistest.Poll(t, "it is reaped a lease length later", func(ctx context.Context) bool {
		reap()
		got, err := s.Task(ctx, it.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.Lease == nil
	})
	if d := time.Since(back); d < lease {
		t.Fatalf("reaped %s after the return, want %s at least", d, lease)
	}
}

// After a call that failed this process ends no lease for a lease length, and deadlines all
// the same.
func TestReapThatFailed(t *testing.T) {
	t.Parallel()
	const lease = 900 * time.Millisecond
	s := live(t, server.URL(""), func(o *Options) { o.Lease, o.Absence, o.OfferLease = lease, time.Hour, -1 })
	ctx := t.Context()
	it, timed := submission(nil), submission(nil)
	submitOne(t, s, it)
	r := request(1)
	r.Until = time.Now().Add(time.Millisecond)
	claimSome(t, s, r)
	timed.Task.Deadline = time.Now().Add(time.Millisecond)
	submitOne(t, s, timed)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Reap(gone, time.Now(), 100); err == nil {
		t.Fatal("a call without time was answered")
	}
	back := time.Now()
	var expired time.Time
	redistest.Poll(t, "the lease ends", func(ctx context.Context) bool {
		next, err := s.Reap(ctx, time.Now(), 100)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Task(ctx, it.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.Task(ctx, timed.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case expired.IsZero() && other.Status == task.Failed:
			expired = time.Now()
		case !expired.IsZero() && got.Lease != nil && next.Before(back.Add(lease/2)):
			t.Errorf("a lease that may not end yet is to be looked at again %s after the store was back", next.Sub(back))
		}
		return got.Lease == nil
	})
	if d := expired.Sub(back); expired.IsZero() || d > lease/2 {
		t.Errorf("a task ended %s after its deadline", d)
	}
	if d := time.Since(back); d < lease {
		t.Errorf("the lease ended %s after the store was back, want %s at least", d, lease)
	}
}

// The first dispatcher alive grants leases anew, one that joins prolongs nothing.
func TestAttend(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	ctx := t.Context()
	other := task.ID{2}
	if first, err := f.s.Attend(ctx, f.clock.Now(), other, 300*time.Millisecond); err != nil || first {
		t.Fatalf("the second is first: %v, %v", first, err)
	}
	if first, err := f.s.Attend(ctx, f.clock.Now(), f.me, 300*time.Millisecond); err != nil || first {
		t.Fatalf("one that is known is first: %v, %v", first, err)
	}
	it := submission(nil)
	if _, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{it}); err != nil {
		t.Fatal(err)
	}
	r := request(1)
	r.Local, r.Until = true, f.clock.Now().Add(time.Second)
	if got, err := f.s.Claim(ctx, f.clock.Now(), []store.ClaimRequest{r}); err != nil || len(got[0]) != 1 {
		t.Fatal(got, err)
	}
	if err := f.s.Depart(ctx, f.clock.Now(), f.me); err != nil {
		t.Fatal(err)
	}
	// The other one's presence ends by itself.
	redistest.Poll(t, "nobody is there", func(ctx context.Context) bool {
		n, known, err := f.s.attend(ctx, f.clock.Now(), task.ID{3}, 0)
		return err == nil && n == 0 && !known
	})
	if first, err := f.s.Attend(ctx, f.clock.Now(), task.ID{3}, time.Hour); err != nil || !first {
		t.Fatalf("alone and not first: %v, %v", first, err)
	}
	if got, err := f.s.Task(ctx, it.Task.ID); err != nil || got.Lease != nil || got.Losses != 1 {
		t.Fatalf("what a local pool held: %+v, %v", got, err)
	}
	if _, err := f.s.Attend(ctx, f.clock.Now(), other, 0); task.CodeOf(err) != task.CodeInvalid {
		t.Fatalf("for no time: %v", err)
	}
}
