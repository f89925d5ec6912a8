package redisstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/storetest"
	"github.com/treadle-dev/treadle/task"
)

func (f *fixture) register(t *testing.T, name, payload string) task.Function {
	t.Helper()
	fn := task.Function{
		ID: newID(), Name: name, Queue: task.DefaultQueue, Runtime: task.RuntimePython, Form: task.FormPickle,
		Hash: sha256.Sum256([]byte(payload)), Size: len(payload), CreatedAt: f.clock.Now(),
	}
	fn, err := f.s.PutFunction(t.Context(), fn, []byte(payload), store.Key{})
	if err != nil {
		t.Fatal(err)
	}
	return fn
}

// Functions of builds that did not index them can be deleted too, and keep the bytes that
// they share: also when such a build registers between two deletions.
func TestDeleteFunctionsOfOlderBuilds(t *testing.T) {
	f := newFixture(t, nil)
	ctx := t.Context()
	client := server.Client()
	defer client.Close()
	var all []task.Function
	for i := range 300 {
		all = append(all, f.register(t, fmt.Sprint("f", i%10), fmt.Sprint("code", i%3)))
	}
	// As if none had been indexed, then as if one had not.
	forget := func(members ...any) {
		t.Helper()
		key := f.s.any.named(keyFunctionIndex)
		var err error
		if len(members) == 0 {
			err = client.Del(ctx, key).Err()
		} else {
			err = client.ZRem(ctx, key, members...).Err()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	forget()
	for _, fn := range all[100:] {
		if err := f.s.DeleteFunction(ctx, fn.ID); err != nil {
			t.Fatal(err)
		}
	}
	shared := all[0]
	forget("b" + string(shared.Hash[:]) + string(shared.ID[:]))
	for _, fn := range all[1:100] {
		if err := f.s.DeleteFunction(ctx, fn.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := f.s.FunctionNamed(ctx, shared.Name); err != nil || got.ID != shared.ID {
		t.Errorf("the name means %+v, %v, want the one left", got, err)
	}
	ttl, err := client.PTTL(ctx, f.s.any.chunk(f.s.blobOf(shared.Hash, shared.Size).prefix, 0)).Result()
	if err != nil || ttl != -1 {
		t.Errorf("the bytes of a function that is left expire in %s, %v", ttl, err)
	}
	if list, err := f.s.ListFunctions(ctx, task.ID{}, 10); err != nil || len(list) != 1 {
		t.Errorf("%d functions are left, %v", len(list), err)
	}
}

// With more unfinished tasks than one script looks at, those of a function are found in
// every place, in every shard.
func TestDeleteFunctionAmongManyTasks(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Shards = 2 })
	ctx := t.Context()
	used, unused := f.register(t, "used", "a"), f.register(t, "unused", "b")
	submit := func(fn task.ID, n int) {
		t.Helper()
		items := make([]store.Submission, n)
		for i := range items {
			tk := sampleTask(nil)
			tk.Function = fn
			items[i] = store.Submission{Task: tk}
		}
		got, err := f.s.Submit(ctx, f.clock.Now(), items)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range got {
			if a.Err != nil {
				t.Fatal(a.Err)
			}
		}
	}
	submit(used.ID, 3)
	submit(task.ID{9}, 12_000)
	// Whatever was claimed is found where leases are.
	if _, err := f.s.Claim(ctx, f.clock.Now(), []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
		Queues: []string{task.DefaultQueue}, Runtimes: []string{task.RuntimePython}, Max: 2, Until: f.clock.Now().Add(f.opts.Lease)}}); err != nil {
		t.Fatal(err)
	}
	var inUse *store.InUse
	if err := f.s.DeleteFunction(ctx, used.ID); !errors.As(err, &inUse) || inUse.Tasks < 3 {
		t.Errorf("a function with three unfinished tasks: %v", err)
	}
	if err := f.s.DeleteFunction(ctx, unused.ID); err != nil {
		t.Error(err)
	}
}

// What is deleted, shared and collected is the same where tasks are in many shards.
func TestDeletionInShards(t *testing.T) {
	storetest.RunDeletion(t, func(t *testing.T) storetest.Harness {
		return newFixture(t, func(o *Options) { o.Shards = 5 }).harness()
	})
}
