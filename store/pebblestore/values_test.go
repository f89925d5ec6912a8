package pebblestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// randomBytes are equal for equal sizes.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// TestLargeValues walks values around the borders of parts through the store, over a
// restart, until retention has removed every key of them.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	before, err := f.s.CountKeys()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{maxInlineArgs + 1, partSize - 1, partSize, partSize + 1, 2 * partSize, 3*partSize + 17} {
		args, result := randomBytes(size), randomBytes(size+1)
		tk := sampleTask(args)
		if _, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: tk, Args: args}}); err != nil {
			t.Fatal(err)
		}
		f.checked(t)
		f.reopen(t)
		c := claimOne(t, f)
		if !bytes.Equal(c.Args, args) {
			t.Fatalf("%d bytes of arguments came back as %d", size, len(c.Args))
		}
		verdicts, err := f.s.Settle(ctx, f.clock.Now(), []store.Settlement{{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: result}}})
		if err != nil || verdicts[0] != task.VerdictRecorded {
			t.Fatal(verdicts, err)
		}
		f.checked(t)
		f.reopen(t)
		if _, got, err := f.s.Result(ctx, tk.ID); err != nil || !bytes.Equal(got, result) {
			t.Fatalf("a result of %d bytes came back as %d: %v", len(result), len(got), err)
		}
	}
	f.clock.Advance(2 * time.Minute)
	for rounds := 0; ; rounds++ {
		if rounds > 1000 {
			t.Fatal("1000 rounds of Reap, and there is always more to do")
		}
		next, err := f.s.Reap(ctx, f.clock.Now(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if next.IsZero() || next.After(f.clock.Now()) {
			break
		}
	}
	f.checked(t)
	// The clock row is written by the first commit.
	if after, err := f.s.CountKeys(); err != nil || after > before+1 {
		t.Errorf("%d keys, %d before: %v", after, before, err)
	}
}

func (f *fixture) checked(t *testing.T) {
	t.Helper()
	if err := f.s.CheckInvariants(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestLargeFunctions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	for _, size := range []int{1, partSize - 1, partSize, partSize + 1, 4 * partSize} {
		payload := randomBytes(size)
		for range 2 { // the second finds the bytes there
			fn := task.Function{ID: newID(), Name: "f", Queue: "default", Runtime: task.RuntimePython, Form: task.FormPickle,
				Hash: sha256.Sum256(payload), Size: size, CreatedAt: f.clock.Now()}
			if _, err := f.s.PutFunction(ctx, fn, payload, store.Key{}); err != nil {
				t.Fatal(err)
			}
			got, err := f.s.FunctionPayload(ctx, fn.Hash)
			if err != nil || !bytes.Equal(got, payload) {
				t.Fatalf("%d bytes came back as %d: %v", size, len(got), err)
			}
		}
		f.checked(t)
		f.reopen(t)
	}
	if _, err := f.s.FunctionPayload(ctx, [32]byte{9}); task.CodeOf(err) != task.CodeNotFound {
		t.Errorf("unknown bytes: %v", err)
	}
}

// TestValuesInOneKey reads what builds wrote that knew no parts.
func TestValuesInOneKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	whole := randomBytes(3*partSize + 5)
	key := hashKey([32]byte{7})
	if err := f.s.db.Set(key, whole, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	size, err := f.s.sizeOf(key)
	if err != nil || size != len(whole) {
		t.Fatal(size, err)
	}
	if got, err := f.s.readValue(key, size); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes came back as %d: %v", len(whole), len(got), err)
	}
	if got, err := f.s.readValue(hashKey([32]byte{8}), partSize+1); err != nil || got != nil {
		t.Errorf("a value that is not there: %d bytes, %v", len(got), err)
	}
}
