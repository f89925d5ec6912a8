package redisstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// With several shards nothing is lost, doubled or left, and keys are idempotent although
// they may live in another shard than their task.
func TestShards(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.Shards = 5 })
	walkShards(t, f.s, f.clock)
	if n, err := f.keys(); err != nil || n > 5+1+1 {
		t.Fatalf("%d keys are left, %v", n, err)
	}
}

func walkShards(t *testing.T, s *Store, clock *fakeClock) {
	t.Helper()
	ctx := t.Context()
	const n = 400
	var items, again []store.Submission
	for i := range n {
		it := keyed(fmt.Sprint("key", i), []byte("args"))
		items = append(items, it)
		it.Task = sampleTask(it.Args)
		again = append(again, it)
	}
	got, err := s.Submit(ctx, clock.Now(), items)
	if err != nil {
		t.Fatal(err)
	}
	dup, err := s.Submit(ctx, clock.Now(), again)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[task.ID]bool{}
	for i := range got {
		if got[i].Err != nil || got[i].Duplicate || got[i].ID != items[i].Task.ID || !dup[i].Duplicate || dup[i].ID != got[i].ID {
			t.Fatalf("item %d: %+v, then %+v", i, got[i], dup[i])
		}
		ids[got[i].ID] = true
	}
	bad := keyed("key0", []byte("other"))
	if got, err := s.Submit(ctx, clock.Now(), []store.Submission{bad}); err != nil || task.CodeOf(got[0].Err) != task.CodeConflict {
		t.Fatalf("a key with another digest: %+v, %v", got, err)
	}
	var listed int
	for q := (store.ListQuery{Limit: 33}); ; {
		page, next, err := s.ListTasks(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for i, tk := range page {
			if listed++; i > 0 && string(tk.ID[:]) >= string(page[i-1].ID[:]) {
				t.Fatal("the list is out of order")
			}
		}
		if listed > n {
			t.Fatalf("listed %d of %d tasks, and the pages go on", listed, n)
		}
		if q.Before = next; next.IsZero() {
			break
		}
	}
	if listed != n {
		t.Fatalf("listed %d", listed)
	}
	claimed := map[task.ID]bool{}
	for {
		r := request(60)
		r.Until = clock.Now().Add(10 * time.Second)
		first, err := s.Claim(ctx, clock.Now(), []store.ClaimRequest{r})
		if err != nil {
			t.Fatal(err)
		}
		same, err := s.Claim(ctx, clock.Now(), []store.ClaimRequest{r})
		if err != nil || len(same[0]) != len(first[0]) || len(first[0]) > 60 {
			t.Fatalf("claimed %d, again %d, %v", len(first[0]), len(same[0]), err)
		}
		var settles []store.Settlement
		for _, c := range first[0] {
			if claimed[c.Token.Task] || !ids[c.Token.Task] {
				t.Fatalf("task %s was given twice or never submitted", c.Token.Task)
			}
			claimed[c.Token.Task] = true
			settles = append(settles, store.Settlement{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}})
		}
		if len(settles) == 0 {
			break
		}
		if verdicts, err := s.Settle(ctx, clock.Now(), settles); err != nil || verdicts[0] != task.VerdictRecorded {
			t.Fatal(verdicts, err)
		}
	}
	if len(claimed) != n {
		t.Fatalf("claimed %d", len(claimed))
	}
	mustCheck(t, s)
	clock.Advance(s.opts.Retention + time.Second)
	for range n {
		if next, err := s.Reap(ctx, clock.Now(), 100); err != nil {
			t.Fatal(err)
		} else if next.After(clock.Now()) {
			break
		}
	}
	mustCheck(t, s)
	if got, err := s.Submit(ctx, clock.Now(), again[:1]); err != nil || got[0].Duplicate || got[0].Err != nil {
		t.Fatalf("a key after retention: %+v, %v", got, err)
	}
	if _, err := s.Cancel(ctx, clock.Now(), []task.ID{again[0].Task.ID}, false); err != nil {
		t.Fatal(err)
	}
	clock.Advance(s.opts.Retention + time.Second)
	if _, err := s.Reap(ctx, clock.Now(), 100); err != nil {
		t.Fatal(err)
	}
}

// A process that ends between reserving a key and recording its task loses nothing: the
// same request later records the task under the id that was reserved.
func TestReservedKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.Shards = 4 })
	it := keyed("reserved", []byte("x"))
	for f.s.shardOf(it.Task.ID) == f.s.shardOfBytes([]byte(it.Key.ID)) {
		it.Task.ID = newID()
	}
	c := f.s.requestCall("reserve", it.Key.ID, it.Key.Digest[:], it.Task.ID)
	if err := f.s.change(t.Context(), "test", c); err != nil {
		t.Fatal(err)
	}
	again := it
	again.Task = sampleTask(it.Args)
	got, err := f.s.Submit(t.Context(), f.clock.Now(), []store.Submission{again})
	if err != nil || got[0].Err != nil || got[0].ID != it.Task.ID {
		t.Fatalf("%+v, %v; want the reserved id", got, err)
	}
	if tk, err := f.s.Task(t.Context(), it.Task.ID); err != nil || tk.Status != task.Queued {
		t.Fatalf("%+v, %v", tk, err)
	}
}
