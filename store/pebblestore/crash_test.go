package pebblestore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestPowerCut cuts the power at random moments while clients and workers are busy,
// opens what would be left on disk, and checks that nothing acknowledged is lost.
// CRASH_SEED replays one seed; CRASH_SEEDS sets how many are tried.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	seeds := 90
	if testing.Short() {
		seeds = 30
	}
	if text := os.Getenv("CRASH_SEEDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	first := rand.Uint64()
	if text := os.Getenv("CRASH_SEED"); text != "" {
		replay, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, seeds = replay, 1
	}
	var sum witnessCounts
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("CRASH_SEED=%d", seed), func(t *testing.T) { sum.add(powerCut(t, seed)) })
		if t.Failed() {
			return
		}
	}
	t.Logf("%d power cuts over %d acknowledged submits, %d claims and %d settles", 3*seeds, sum.submits, sum.claims, sum.settles)
	if sum.submits == 0 || sum.claims == 0 || sum.settles == 0 {
		t.Fatal("the power was cut before anything was acknowledged: the test shows nothing")
	}
}

type witnessCounts struct{ submits, claims, settles int }

func (c *witnessCounts) add(d witnessCounts) {
	c.submits += d.submits
	c.claims += d.claims
	c.settles += d.settles
}

// powerCut runs three lives of one store, each ended by a power cut.
func powerCut(t *testing.T, seed uint64) witnessCounts {
	rng := rand.New(rand.NewPCG(seed, 2))
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewCrashableMem(); o.Now = time.Now; o.maxResident = 4 + rng.IntN(40) })
	w := &witness{
		submitted: map[task.ID]string{}, settled: map[task.ID]string{}, tried: map[task.ID]bool{}, claimed: map[task.Token]bool{},
		keys: map[string]task.ID{}, epochs: map[task.ID]uint64{},
	}
	for range 3 {
		w.live(t, f, rng)
		w.check(t, f.s)
		if t.Failed() {
			break
		}
	}
	return witnessCounts{len(w.submitted), len(w.claimed), len(w.settled)}
}

// witness remembers what the store acknowledged.
type witness struct {
	mu sync.Mutex
	// submitted and settled hold arguments and results by task.
	submitted, settled map[task.ID]string
	// tried are settles whose answer is unknown.
	tried   map[task.ID]bool
	claimed map[task.Token]bool
	keys    map[string]task.ID
	epochs  map[task.ID]uint64
}

// live keeps the store busy, copies the disk at a random moment and goes on with the
// copy.
func (w *witness) live(t *testing.T, f *fixture, rng *rand.Rand) {
	t.Helper()
	s, disk := f.s, f.opts.FS.(*vfs.MemFS)
	percent := []int{0, 50, 100}[rng.IntN(3)]
	cutAfter := rng.IntN(20)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Acknowledgements after the cut do not count: the copy is older than they are.
	var cut bool
	var clone *vfs.MemFS
	acks := make(chan struct{}, 1)
	acked := func(note func()) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !cut {
			note()
			select {
			case acks <- struct{}{}:
			default:
			}
		}
	}
	var wg sync.WaitGroup
	for i := range 3 {
		lane := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		wg.Go(func() { w.client(ctx, s, lane, acked) })
		work := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		wg.Go(func() { w.worker(ctx, s, work, acked) })
	}
	deadline := time.After(30 * time.Second)
	for n := range cutAfter {
		select {
		case <-acks:
		case <-deadline:
			cancel()
			wg.Wait()
			t.Fatalf("%d of %d acknowledgements within 30 s", n, cutAfter)
		}
	}
	w.mu.Lock()
	clone = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	cut = true
	w.mu.Unlock()
	cancel()
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.opts.FS = clone
	f.open(t)
}

func (w *witness) client(ctx context.Context, s *Store, rng *rand.Rand, acked func(func())) {
	for ctx.Err() == nil {
		items := make([]store.Submission, 1+rng.IntN(3))
		for i := range items {
			args := fmt.Sprint("args ", rng.Uint64())
			if rng.IntN(8) == 0 {
				args = string(make([]byte, 2000)) + args
			}
			tk := sampleTask([]byte(args))
			items[i] = store.Submission{Task: tk, Args: []byte(args)}
			if rng.IntN(2) == 0 {
				items[i].Key = store.Key{ID: tk.ID.String(), Digest: [32]byte{1}}
			}
		}
		got, err := s.Submit(ctx, time.Now(), items)
		if err != nil {
			continue
		}
		acked(func() {
			for i := range got {
				w.submitted[got[i].ID] = string(items[i].Args)
				if key := items[i].Key.ID; key != "" {
					w.keys[key] = got[i].ID
				}
			}
		})
	}
}

func (w *witness) worker(ctx context.Context, s *Store, rng *rand.Rand, acked func(func())) {
	for ctx.Err() == nil {
		now := time.Now()
		got, err := s.Claim(ctx, now, []store.ClaimRequest{{
			Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: []string{task.RuntimePython},
			Max: 1 + rng.IntN(3), Until: now.Add(time.Minute),
		}})
		if err != nil {
			continue
		}
		acked(func() {
			for _, c := range got[0] {
				w.claimed[c.Token] = true
				w.epochs[c.Token.Task] = max(w.epochs[c.Token.Task], c.Token.Epoch)
			}
		})
		for _, c := range got[0] {
			if rng.IntN(4) == 0 {
				continue // Held for the next life.
			}
			result := fmt.Sprint("result ", rng.Uint64())
			if rng.IntN(8) == 0 {
				result += string(make([]byte, maxInlineResult))
			}
			w.mu.Lock()
			w.tried[c.Token.Task] = true
			w.mu.Unlock()
			verdicts, err := s.Settle(ctx, time.Now(), []store.Settlement{
				{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte(result)}, Log: []byte("out")}})
			if err != nil || verdicts[0] != task.VerdictRecorded {
				continue
			}
			acked(func() { w.settled[c.Token.Task] = result })
		}
	}
}

// check compares the reopened store with what was acknowledged.
func (w *witness) check(t *testing.T, s *Store) {
	t.Helper()
	ctx := context.Background()
	if err := s.CheckInvariants(ctx); err != nil {
		t.Fatal(err)
	}
	for id, args := range w.submitted {
		got, result, err := s.Result(ctx, id)
		if err != nil {
			t.Fatalf("an acknowledged task is gone: %v", err)
		}
		want, settled := w.settled[id]
		switch {
		case settled && (got.Status != task.Completed || string(result) != want):
			t.Fatalf("an acknowledged result is gone: task %s is %s with %q, want %q", id, got.Status, result, want)
		case !settled && got.Status.Terminal() && !w.tried[id]:
			t.Fatalf("task %s is %s and nobody ended it", id, got.Status)
		case got.Epoch < w.epochs[id]:
			t.Fatalf("the epoch of task %s fell from %d to %d", id, w.epochs[id], got.Epoch)
		}
		if !got.Status.Terminal() && got.ArgsSize != len(args) {
			t.Fatalf("task %s has %d bytes of arguments, want %d", id, got.ArgsSize, len(args))
		}
	}
	for key, id := range w.keys {
		it := store.Submission{Task: sampleTask(nil), Key: store.Key{ID: key, Digest: [32]byte{1}}}
		got, err := s.Submit(ctx, time.Now(), []store.Submission{it})
		if err != nil || !got[0].Duplicate || got[0].ID != id {
			t.Fatalf("an idempotency key was forgotten: %+v, %v", got, err)
		}
	}
	w.checkClaims(t, s)
}

// checkClaims hands all claims back and claims everything once: arguments are as
// submitted and no token is ever given again.
func (w *witness) checkClaims(t *testing.T, s *Store) {
	t.Helper()
	ctx, now := context.Background(), time.Now()
	if _, err := s.Resume(ctx, now, store.Resumption{Worker: "w", Session: task.ID{2}, Until: now.Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Claim(ctx, now, []store.ClaimRequest{{
		Claim: randomID(), Session: task.ID{2}, Worker: "w", Queues: []string{"default"}, Runtimes: []string{task.RuntimePython},
		Max: 100_000, Until: now.Add(time.Minute),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got[0] {
		if w.claimed[c.Token] {
			t.Fatalf("the token %+v was given before the power cut", c.Token)
		}
		w.claimed[c.Token] = true
		if c.Token.Epoch <= w.epochs[c.Token.Task] {
			t.Fatalf("epoch %d of task %s was given before", c.Token.Epoch, c.Token.Task)
		}
		w.epochs[c.Token.Task] = c.Token.Epoch
		if args, known := w.submitted[c.Token.Task]; known && args != string(c.Args) {
			t.Fatalf("task %s has the arguments %q, want %q", c.Token.Task, c.Args, args)
		}
		if _, settled := w.settled[c.Token.Task]; settled {
			t.Fatalf("task %s was claimed after its end", c.Token.Task)
		}
	}
	// Back to the line, for the next life.
	if _, err := s.Resume(ctx, now, store.Resumption{Worker: "w", Session: task.ID{2}, Until: now.Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
}
