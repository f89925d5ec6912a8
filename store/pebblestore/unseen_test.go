package pebblestore

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestUnseenForgetsNothing adds ids that overtake each other, some of them far, and asks for
// all of them: one that was added is never called unseen, and most new ones are.
func TestUnseenForgetsNothing(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	at := func(n uint64) (id task.ID) {
		binary.BigEndian.PutUint64(id[:8], n)
		binary.BigEndian.PutUint64(id[8:], rng.Uint64())
		return id
	}
	var u unseen
	var added []task.ID
	unseen, asked := 0, 0
	for n := uint64(1 << 20); n < 1<<20+3*maxUnseen; n++ {
		id := at(n - rng.Uint64N(2000))
		if len(added) > 0 && rng.IntN(4) == 0 {
			id = added[rng.IntN(len(added))]
			if !u.maybe(id) {
				t.Fatalf("id %s was added and is called unseen", id)
			}
		} else if asked++; !u.maybe(id) {
			unseen++
		}
		u.add(id)
		added = append(added, id)
	}
	for _, id := range added {
		if !u.maybe(id) {
			t.Fatalf("id %s was added and is called unseen", id)
		}
	}
	if unseen < asked*96/100 {
		t.Errorf("%d of %d new ids were called unseen", unseen, asked)
	}
	// One far ahead costs look-ups, never a wrong answer.
	far := at(1 << 40)
	u.add(far)
	for n := range uint64(2 * maxUnseen) {
		u.add(at(1<<30 + n))
	}
	if !u.maybe(far) || !u.maybe(at(1<<39)) || u.floor != far {
		t.Errorf("the floor is %s, want the id far ahead, %s", u.floor, far)
	}
}

// TestRequestIDsOfAllKinds: whatever a request id looks like and whenever its time is, the
// same request is known, after the store was opened again, too.
func TestRequestIDsOfAllKinds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewCrashableMem(); o.Retention = time.Hour })
	id := func(after time.Duration, version byte) string {
		id := randomID()
		ms := f.clock.Now().Add(after).UnixMilli()
		binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16|uint64(id[6])<<8|uint64(id[7]))
		id[6] = version<<4 | id[6]&15
		return id.String()
	}
	used := map[string]task.ID{}
	submit := func(key string) store.Submitted {
		t.Helper()
		got, err := f.s.Submit(context.Background(), f.clock.Now(), []store.Submission{{Task: sampleTask(nil), Key: store.Key{ID: key}}})
		if err != nil {
			t.Fatal(err)
		}
		return got[0]
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 6 {
		fresh := []string{
			id(0, 7), id(time.Millisecond, 7), id(-time.Millisecond, 7), id(-time.Hour, 7), id(time.Second, 7), id(0, 4), id(0, 4),
			strings.ToUpper(id(0, 7)), "a request " + id(0, 7), "0", "zzz", strings.Repeat("f", 36),
		}
		if round >= 2 {
			// From here on a client is a day ahead, and then one two years.
			fresh = append(fresh, id(24*time.Hour, 7))
		}
		if round >= 4 {
			fresh = append(fresh, id(2*requestIDAhead, 7))
		}
		for _, key := range fresh {
			if _, again := used[key]; again {
				continue
			}
			got := submit(key)
			if got.Duplicate || got.Err != nil {
				t.Fatalf("round %d: the new request id %q: %+v", round, key, got)
			}
			used[key] = got.ID
		}
		for key, want := range used {
			if got := submit(key); !got.Duplicate || got.ID != want {
				t.Fatalf("round %d: the request id %q again: %+v, want %s", round, key, got, want)
			}
		}
		if round < 2 {
			f.clock.Advance(2 * time.Second)
			looks := 0
			for range 10 {
				if f.s.requestIDs.maybe(id(0, 7)) {
					looks++
				}
			}
			if looks > 3 {
				t.Errorf("round %d: %d of 10 request ids newer than all others are looked for", round, looks)
			}
		}
		if round%2 == 0 {
			f.reopen(t)
		} else {
			f.crash(t, rng, 0)
		}
		f.clock.Advance(2 * time.Second)
		if round < 2 && f.s.requestIDs.maybe(id(0, 7)) {
			t.Errorf("round %d: after the store was opened a request id newer than all others is looked for", round)
		}
	}
	// Removed with its task, a request id is free again.
	const key = "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"
	first := submit(key)
	if _, err := f.s.Cancel(context.Background(), f.clock.Now(), []task.ID{first.ID}, false); err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(2 * f.opts.Retention)
	if _, err := f.s.Reap(context.Background(), f.clock.Now(), 1000); err != nil {
		t.Fatal(err)
	}
	if again := submit(key); again.Duplicate || again.Err != nil || again.ID == first.ID {
		t.Errorf("a request id after its task was removed: %+v", again)
	}
}

// TestRequestIDsBehindManyOthers: where the newest is not found soon, all are looked for.
func TestRequestIDsBehindManyOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	b := f.s.db.NewBatch()
	row := keyRow{}
	for i := range requestIDRows + 1 {
		id := task.ID{0, 0, 0, 1, 0, byte(i >> 8), 4 << 4, byte(i)}
		if err := b.Set(textKey(spaceTaskKey, id.String()), row.encode(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(f.s.sync); err != nil {
		t.Fatal(err)
	}
	f.reopen(t)
	if f.s.requestIDs.floor != f.s.requestIDs.ceiling || !f.s.requestIDs.maybe(stateID(1).String()) {
		t.Errorf("the floor is %s, want %s", f.s.requestIDs.floor, f.s.requestIDs.ceiling)
	}
}
