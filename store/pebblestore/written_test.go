package pebblestore

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestBytesWrittenPerTask holds how much one task without work costs the log, from its
// submission to its result: what is written is synced, shipped by every backup and read
// at every open. The counts do not depend on the machine, so a field that is written
// three times in the life of a task shows here.
func TestBytesWrittenPerTask(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		batch int
		keyed bool
		limit int64
	}{
		{batch: 64, keyed: true, limit: 640},
		{batch: 64, keyed: false, limit: 490},
		{batch: 1, keyed: true, limit: 860},
	} {
		t.Run(fmt.Sprintf("batch=%d/keyed=%t", c.batch, c.keyed), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
			const tasks = 1024
			start := f.s.db.Metrics().WAL.BytesWritten
			var submit, claim, settle int64
			for range tasks / c.batch {
				a, b, c := noop(t, f, c.batch, c.keyed)
				submit, claim, settle = submit+a, claim+b, settle+c
			}
			all := int64(f.s.db.Metrics().WAL.BytesWritten-start) / tasks
			t.Logf("%d bytes a task: submit %d, claim %d, settle %d", all, submit/tasks, claim/tasks, settle/tasks)
			if all > c.limit {
				t.Errorf("a task without work writes %d bytes, want at most %d", all, c.limit)
			}
			if all < 100 {
				t.Errorf("%d bytes a task: nothing was counted", all)
			}
		})
	}
}

// noop takes n tasks that do nothing from submission to their result, as a server and
// one worker would, and returns the bytes that each step wrote.
func noop(t *testing.T, f *fixture, n int, keyed bool) (submit, claim, settle int64) {
	t.Helper()
	ctx, now := context.Background(), f.clock.Now()
	step := func(change func() error) int64 {
		before := f.s.db.Metrics().WAL.BytesWritten
		if err := change(); err != nil {
			t.Fatal(err)
		}
		return int64(f.s.db.Metrics().WAL.BytesWritten - before)
	}
	args := []byte(`{"args":[],"kwargs":{}}`)
	subs := make([]store.Submission, n)
	for i := range subs {
		tk := sampleTask(args)
		tk.FunctionName, tk.Function, tk.Hash = "noop", filled, [32]byte(append(filled[:], filled[:]...))
		tk.Form, tk.Args, tk.Returns = task.FormSource, task.EncodingJSON, task.EncodingJSON
		subs[i] = store.Submission{Task: tk, Args: args}
		if keyed {
			subs[i].Key = store.Key{ID: newID().String(), Digest: tk.Hash}
		}
	}
	submit = step(func() error {
		_, err := f.s.Submit(ctx, now, subs)
		return err
	})
	var got [][]store.Claimed
	f.clock.Advance(3 * time.Millisecond)
	now = f.clock.Now()
	claim = step(func() (err error) {
		got, err = f.s.Claim(ctx, now, []store.ClaimRequest{{Claim: randomID(), Session: filled, Worker: filled.String(),
			Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: n, Until: now.Add(15 * time.Second)}})
		return err
	})
	if len(got[0]) != n {
		t.Fatalf("%d tasks were claimed, want %d", len(got[0]), n)
	}
	f.clock.Advance(2 * time.Millisecond)
	now = f.clock.Now()
	settle = step(func() error {
		reports := make([]store.Settlement, n)
		for i, c := range got[0] {
			reports[i] = store.Settlement{Token: c.Token, Session: filled, Outcome: task.Outcome{
				End: task.EndSucceeded, Result: []byte("null"), Encoding: task.EncodingJSON, RunTime: time.Millisecond}}
		}
		_, err := f.s.Settle(ctx, now, reports)
		return err
	})
	return submit, claim, settle
}

// filled is an id without zeros.
var filled = task.ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
