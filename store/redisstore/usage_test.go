package redisstore

import (
	"fmt"
	"testing"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// What owners have is counted anew while tasks come, end and go, whatever the counters said
// before; in every round, and by a process that takes over from another one.
func TestUsageIsCountedAnew(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Shards = 2 })
	ctx := t.Context()
	client := server.Client()
	defer client.Close()
	submit := func(n int) {
		t.Helper()
		items := make([]store.Submission, n)
		for i := range items {
			tk := sampleTask(nil)
			tk.CreatedBy = fmt.Sprint("owner", i%3)
			items[i] = store.Submission{Task: tk}
		}
		if _, err := f.s.Submit(ctx, f.clock.Now(), items); err != nil {
			t.Fatal(err)
		}
	}
	settle := func(n int) {
		t.Helper()
		got, err := f.s.Claim(ctx, f.clock.Now(), []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
			Queues: []string{task.DefaultQueue}, Runtimes: []string{task.RuntimePython}, Max: n, Until: f.clock.Now().Add(f.opts.Lease)}})
		if err != nil || len(got[0]) != n {
			t.Fatalf("claimed %d of %d, %v", len(got[0]), n, err)
		}
		var items []store.Settlement
		for _, c := range got[0] {
			items = append(items, store.Settlement{Token: c.Token,
				Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("12345"), Encoding: task.EncodingJSON}})
		}
		if _, err := f.s.Settle(ctx, f.clock.Now(), items); err != nil {
			t.Fatal(err)
		}
	}
	submit(900)
	settle(200)
	for round := range 3 {
		// Drift of every kind: too much, too little, an owner that has nothing.
		for shard := range f.s.tags {
			k := f.s.keys(shard)
			for _, err := range []error{
				client.HIncrBy(ctx, k.named(keyUsage+"owner0"), usageTasks, 7).Err(),
				client.HDel(ctx, k.named(keyUsage+"owner1"), usageBytes, "qdefault").Err(),
				client.HSet(ctx, k.named(keyUsage+"nobody"), usageTasks, 5, usageBytes, 5, "qx", 5).Err(),
				client.SAdd(ctx, k.named(keyOwners), "nobody").Err(),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		steps := 0
		for ; ; steps++ {
			over, err := f.s.recountSome(ctx, f.clock.Now(), -1, 1)
			if err != nil || steps > 100 {
				t.Fatalf("after %d steps: %v", steps, err)
			}
			if over {
				break
			}
			submit(7)
			settle(5)
			switch steps {
			case 2:
				// Finished tasks go while they are counted.
				f.clock.Advance(2 * f.opts.Retention)
				for range 3 {
					if _, _, err := f.s.reapOnce(ctx, f.clock.Now(), f.s.recount.shard, 40); err != nil {
						t.Fatal(err)
					}
				}
			case 4:
				f.s.recount = recounting{} // another process begins with the first task
			}
		}
		if steps < 6 {
			t.Fatalf("round %d took %d steps: nothing happened meanwhile", round, steps)
		}
		if err := f.s.CheckInvariants(ctx); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if u, err := f.s.Usage(ctx, "nobody"); err != nil || u.Tasks != 0 || u.Bytes != 0 || len(u.Queues) != 0 {
			t.Fatalf("an owner of nothing has %+v, %v", u, err)
		}
	}
	// It is not done again before its time.
	if over, err := f.s.recountSome(ctx, f.clock.Now(), recountEvery, 1); err != nil || !over {
		t.Fatalf("counted again at once: %v, %v", over, err)
	}
}
