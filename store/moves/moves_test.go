package moves

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// TestJitterIsReplayed: the values are part of histories, and of what processes of two
// builds decide about one task.
func TestJitterIsReplayed(t *testing.T) {
	t.Parallel()
	for epoch, want := range []float64{0.4813534268475156, 0.4813533672428708, 0.481353546056805} {
		if got := Jitter(&task.Task{ID: task.ID{1, 2, 3}, Epoch: uint64(epoch)}); got != want {
			t.Errorf("epoch %d: %v, want %v", epoch, got, want)
		}
	}
}

func TestJitterSpreads(t *testing.T) {
	t.Parallel()
	var quarters [4]int
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 4000 {
		id := task.ID{1, 0x90} // of one moment, with the random end that ids have
		binary.BigEndian.PutUint64(id[8:], rng.Uint64())
		j := Jitter(&task.Task{ID: id, Epoch: 3})
		if j < 0 || j >= 1 {
			t.Fatalf("task %d: %v is not in [0,1)", n, j)
		}
		quarters[int(4*j)]++
	}
	for i, n := range quarters {
		if n < 800 || n > 1200 {
			t.Errorf("%d of 4000 tasks are in quarter %d", n, i)
		}
	}
}

// TestOutcomesOfStores: what was handed back is not counted, what ended with its owner is.
func TestOutcomesOfStores(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		out    task.Outcome
		losses int
		reason string
	}{
		{Missing(), 0, "the worker reconnected without it"},
		{LostWithOwner(), 1, "the process that ran it ended"},
	} {
		now := time.Unix(1_800_000_000, 0).UTC()
		tk := &task.Task{ID: task.ID{1}, Spec: task.Spec{MaxRetries: 3}}
		if err := tk.Submit(now, 1); err != nil {
			t.Fatal(err)
		}
		tok, err := tk.Claim(now, task.Lease{Claim: task.ID{2}, Worker: "w", Until: now.Add(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		tk.Renew(now, tok, now.Add(time.Minute), now)
		if v := tk.Settle(now, tok, c.out, Jitter(tk)); v != task.VerdictRecorded || tk.Status != task.Queued || tk.Losses != c.losses ||
			tk.Attempts[0].Reason != c.reason {
			t.Errorf("%s: %s, %+v", c.reason, v, tk)
		}
	}
}
