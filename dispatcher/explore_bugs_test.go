//go:build chaos

package dispatcher

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/storetap"
)

// TestExploreFinds has the explorer find each mistake that can be made in its worlds, by the
// invariant that it breaks; the same search finds nothing without it.
func TestExploreFinds(t *testing.T) {
	defer seededbug.Choose(seededbug.Bug(os.Getenv(seededbug.Env)))
	for _, c := range []struct {
		bug    seededbug.Bug
		limits limits
		sign   string
	}{
		{seededbug.NoFence, limits{tasks: 1, expiries: 1}, "I6, I8: "},
		{seededbug.ResultOverwrite, limits{tasks: 1, expiries: 1}, "I11: "},
		{seededbug.FalseAck, limits{tasks: 1, expiries: 1}, "I6, I8: "},
		{seededbug.NoRenewalFence, limits{tasks: 1, expiries: 1, ticks: 1}, "I8: "},
		{seededbug.LostCancel, limits{tasks: 1, cancels: 1}, "I13: "},
		{seededbug.ReusedEpoch, limits{tasks: 1, expiries: 1}, "I5: "},
		{seededbug.ClaimTwice, limits{tasks: 2, repeats: 1}, "I5: "},
		{seededbug.OffByOneRetries, limits{tasks: 1, expiries: 2}, "I7: "},
	} {
		t.Run(string(c.bug), func(t *testing.T) {
			c.limits.ordered, c.limits.delays = true, 1
			for _, bug := range []seededbug.Bug{"", c.bug} {
				seededbug.Choose(bug)
				x := explore(c.limits, 20_000, 200, func(s store.Store) store.Store {
					return storetap.Mistaken(&wrong{s.(*memory)})
				})
				t.Logf("%q: %s", bug, x)
				switch {
				case bug == "" && x.bad != "":
					t.Fatalf("%s\n%s", x.bad, strings.Join(x.trace, "\n"))
				case bug != "" && !strings.HasPrefix(x.bad, c.sign):
					t.Fatalf("found %q, want %s", x.bad, c.sign)
				case bug != "":
					t.Logf("%s\n%s", x.bad, strings.Join(x.trace, "\n"))
				}
			}
		})
	}
}

// wrong makes the mistakes that a store makes in its records, as the embedded one does.
type wrong struct{ *memory }

func (s *wrong) Submit(ctx context.Context, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	if seededbug.On(seededbug.OffByOneRetries) {
		for i := range items {
			items[i].Task.MaxRetries++
		}
	}
	return s.memory.Submit(ctx, now, items)
}

func (s *wrong) Claim(ctx context.Context, now time.Time, reqs []store.ClaimRequest) ([][]store.Claimed, error) {
	again := make([]bool, len(reqs))
	for i, r := range reqs {
		for _, t := range s.tasks {
			again[i] = again[i] || t.Lease != nil && t.Lease.Claim == r.Claim
		}
		if again[i] && seededbug.On(seededbug.ClaimTwice) {
			reqs[i].Claim[15]++ // another claim, which gets other tasks
		}
	}
	got, err := s.memory.Claim(ctx, now, reqs)
	if !seededbug.On(seededbug.ReusedEpoch) {
		return got, err
	}
	for i := range got {
		for j := range got[i] {
			tok := &got[i][j].Token
			if t := s.find(tok.Task); !again[i] {
				t.Epoch--
				tok.Epoch = t.Epoch
			}
		}
	}
	return got, err
}
