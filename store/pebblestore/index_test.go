package pebblestore

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestLaneAgainstASortedList pushes, takes and drops entries at random and compares
// the lane with a list that is sorted from scratch each time.
func TestLaneAgainstASortedList(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 3))
		l := &lane{}
		var want []*entry
		seq := uint64(0)
		push := func(e *entry) {
			e.where = whereReady
			l.push(e)
			want = append(want, e)
			slices.SortFunc(want, func(a, b *entry) int {
				return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.seq, b.seq))
			})
		}
		var taken []*entry
		for step := range 600 {
			switch op := rng.IntN(10); {
			case op < 4:
				seq++
				push(&entry{seq: seq, priority: int8(rng.IntN(3))})
			case op < 7 && len(want) > 0:
				e := l.head()
				if e != want[0] {
					t.Fatalf("seed %d, step %d: the head is %d of priority %d, want %d of %d", seed, step, e.seq, e.priority, want[0].seq, want[0].priority)
				}
				l.pop()
				e.where = whereLeased
				want = want[1:]
				taken = append(taken, e)
			case op < 8 && len(taken) > 0:
				// A requeue keeps its sequence.
				i := rng.IntN(len(taken))
				push(taken[i])
				taken = slices.Delete(taken, i, i+1)
			case len(want) > 0:
				i := rng.IntN(len(want))
				want[i].where = whereEnded
				l.drop(want[i])
				want = slices.Delete(want, i, i+1)
			}
			if l.ready != len(want) || l.standing() != len(want) {
				t.Fatalf("seed %d, step %d: %d ready, %d standing, want %d", seed, step, l.ready, l.standing(), len(want))
			}
		}
		for _, e := range want {
			if got := l.head(); got != e {
				t.Fatalf("seed %d: the rest is out of order", seed)
			}
			l.pop()
		}
		if l.head() != nil || l.mask != 0 {
			t.Fatalf("seed %d: an emptied lane has a head", seed)
		}
	}
}

// TestLaneForgetsTheDead: a lane that nobody claims from must not keep what was cancelled.
func TestLaneForgetsTheDead(t *testing.T) {
	t.Parallel()
	l := &lane{}
	for i := range uint64(10_000) {
		e := &entry{seq: i, where: whereReady}
		l.push(e)
		e.where = whereEnded
		l.drop(e)
	}
	if n := l.levels[0].len(); n > 200 {
		t.Fatalf("%d entries stand in an empty lane", n)
	}
}

func TestHeapAgainstASortedList(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 4))
		h := &timeHeap{slot: slotDelay}
		at := map[*entry]int64{}
		var in []*entry
		for range 400 {
			switch op := rng.IntN(10); {
			case op < 5:
				e := new(entry)
				at[e] = int64(rng.IntN(50))
				h.push(e, at[e])
				in = append(in, e)
			case op < 7 && len(in) > 0:
				i := rng.IntN(len(in))
				h.remove(in[i])
				h.remove(in[i])
				in = slices.Delete(in, i, i+1)
			case op < 9 && len(in) > 0:
				e := h.items[0].e
				at[e] += int64(rng.IntN(20))
				h.rekey(at[e])
			}
			if len(h.items) != len(in) {
				t.Fatalf("seed %d: %d items, want %d", seed, len(h.items), len(in))
			}
			for i, it := range h.items {
				if int(it.e.pos[slotDelay]) != i+1 || it.at != at[it.e] || i > 0 && h.items[(i-1)/2].at > it.at {
					t.Fatalf("seed %d: the heap is broken at %d", seed, i)
				}
			}
		}
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 5))
	var o tail
	var all []byte
	for range 300 {
		p := make([]byte, rng.IntN(3000))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if rng.IntN(50) == 0 {
			p = append(p, make([]byte, 2*task.MaxLog)...)
		}
		o.write(p)
		all = append(all, p...)
		if want := all[max(0, len(all)-task.MaxLog):]; !bytes.Equal(o.bytes(), want) {
			t.Fatalf("after %d bytes: %d kept, want the last %d", len(all), len(o.bytes()), len(want))
		}
		if cap(o.b) > 8*task.MaxLog {
			t.Fatalf("%d bytes of memory for %d", cap(o.b), task.MaxLog)
		}
	}
}

// TestQueueLeavesMemory: a queue longer than the bound is served from disk.
func TestQueueLeavesMemory(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem(); o.maxResident = 10 })
	var want []task.ID
	for range 100 {
		want = append(want, submitOne(t, f))
	}
	resident := func() int {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		return f.s.ix.resident
	}
	if n := resident(); n > 11 {
		t.Fatalf("%d records in memory, the bound is 10", n)
	}
	f.reopen(t)
	if n := resident(); n > 11 {
		t.Fatalf("%d records in memory after a restart, the bound is 10", n)
	}
	for _, id := range want {
		c := claimOne(t, f)
		if c.Token.Task != id || string(c.Args) != "args" {
			t.Fatalf("claimed %s with %q, want %s", c.Token.Task, c.Args, id)
		}
		if v, err := f.s.Settle(context.Background(), f.clock.Now(), []store.Settlement{{Token: c.Token,
			Outcome: task.Outcome{End: task.EndSucceeded}}}); err != nil || v[0] != task.VerdictRecorded {
			t.Fatal(v, err)
		}
	}
	if n := resident(); n != 0 {
		t.Fatalf("%d records in memory of nothing", n)
	}
}

// TestNothingHappensForNothing: an empty claim, a renewal and an idle reap write nothing.
func TestNothingHappensForNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	submitOne(t, f)
	c := claimOne(t, f)
	ctx := context.Background()
	written := f.s.db.Metrics().WAL.BytesIn
	for range 10 {
		f.clock.Advance(time.Second / 10)
		now := f.clock.Now()
		if got, err := f.s.Claim(ctx, now, []store.ClaimRequest{{Claim: randomID(), Queues: []string{"default"},
			Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(time.Second)}}); err != nil || len(got[0]) != 0 {
			t.Fatal(got, err)
		}
		if _, err := f.s.Renew(ctx, now, []store.Renewal{{Token: c.Token, Until: now.Add(time.Second), StartedAt: now}}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.s.Settle(ctx, now, []store.Settlement{{Token: task.Token{Task: c.Token.Task}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.s.Reap(ctx, now, 10); err != nil {
			t.Fatal(err)
		}
	}
	if after := f.s.db.Metrics().WAL.BytesIn; after != written {
		t.Fatalf("%d bytes were written for nothing", after-written)
	}
}
