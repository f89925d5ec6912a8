package pebblestore

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestClaimsMeetTheirRecords: wherever a record and the claim behind it stand (log, table, one
// level or several), the store finds after any restart what it had before. The checker compares
// memory with disk whenever either could have moved.
func TestClaimsMeetTheirRecords(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 9))
		f := newFixture(t, func(o *Options) { o.FS = vfs.NewCrashableMem(); o.maxResident = 1 + rng.IntN(30) })
		held := map[task.ID]task.Token{}
		claims := 0
		for step := range 150 {
			claims += claimedStep(t, f, rng, held)
			if err := f.s.CheckInvariants(context.Background()); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			for id, tok := range held {
				got, err := f.s.Task(context.Background(), id)
				if err != nil {
					t.Fatal(err)
				}
				if have, ok := got.Token(); !ok || have != tok {
					t.Fatalf("seed %d, step %d: task %s is held by %+v, want %+v", seed, step, id, have, tok)
				}
			}
		}
		if claims == 0 {
			t.Fatalf("seed %d: nothing was claimed", seed)
		}
	}
}

// claimedStep does one thing to a store, keeps held up to date, and returns how many tasks
// were claimed.
func claimedStep(t *testing.T, f *fixture, rng *rand.Rand, held map[task.ID]task.Token) (claimed int) {
	t.Helper()
	ctx := context.Background()
	f.clock.Advance(time.Millisecond)
	switch now := f.clock.Now(); rng.IntN(10) {
	case 0, 1:
		for range 1 + rng.IntN(5) {
			submitOne(t, f)
		}
	case 2, 3, 4:
		got, err := f.s.Claim(ctx, now, []store.ClaimRequest{{Claim: randomID(), Session: randomID(), Worker: "w",
			Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: 1 + rng.IntN(4), Until: now.Add(time.Hour)}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range got[0] {
			held[c.Token.Task] = c.Token
		}
		claimed = len(got[0])
	case 5, 6:
		outcomes := []task.Outcome{{End: task.EndSucceeded}, task.Fail(task.EndReturned, "back"), task.Fail(task.EndLost, "lost")}
		for id, tok := range held {
			v, err := f.s.Settle(ctx, now, []store.Settlement{{Token: tok, Outcome: outcomes[rng.IntN(len(outcomes))]}})
			if err != nil || v[0] != task.VerdictRecorded {
				t.Fatal(v, err)
			}
			delete(held, id)
			if rng.IntN(2) == 0 {
				break
			}
		}
	case 7:
		if err := f.s.db.Flush(); err != nil {
			t.Fatal(err)
		}
	case 8:
		lower, upper := bounds(spaceLive)
		if err := errors.Join(f.s.db.Flush(), f.s.db.Compact(ctx, lower, upper, false)); err != nil {
			t.Fatal(err)
		}
	case 9:
		if rng.IntN(2) == 0 {
			f.reopen(t)
		} else {
			f.crash(t, rng, 50)
		}
	}
	return claimed
}
