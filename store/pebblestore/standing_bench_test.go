package pebblestore

import (
	"fmt"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// standBench is a store in memory with somebody who stands and works in it.
type standBench struct {
	*testing.B
	s    *Store
	subs [1]store.Submission
	args []byte
	got  []store.Claimed
	// deliver keeps what was served for settle.
	deliver func([]store.Claimed)
}

func newStandBench(b *testing.B) *standBench {
	s, err := Open(b.Context(), Options{Durability: Memory, Logger: quiet})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	v := &standBench{B: b, s: s, args: []byte("64 bytes of arguments, as a small pickled tuple of them would be")}
	v.deliver = func(tasks []store.Claimed) { v.got = append(v.got, tasks...) }
	return v
}

func (b *standBench) stand(queues, runtimes []string) {
	r := store.ClaimRequest{Claim: randomID(), Session: task.ID{9}, Worker: "bench", Queues: queues, Runtimes: runtimes}
	if err := b.s.Stand(b.Context(), time.Now(), r, time.Minute, b.deliver); err != nil {
		b.Fatal(err)
	}
}

func (b *standBench) submit() {
	b.subs[0] = store.Submission{Task: sampleTask(b.args), Args: b.args}
	if _, err := b.s.Submit(b.Context(), time.Now(), b.subs[:]); err != nil {
		b.Fatal(err)
	}
}

// settle completes what was served.
func (b *standBench) settle(want int) {
	if len(b.got) != want {
		b.Fatalf("%d tasks were served, want %d", len(b.got), want)
	}
	items := make([]store.Settlement, 0, 1)
	for _, c := range b.got {
		items = append(items, store.Settlement{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: b.args[:16]}})
	}
	if _, err := b.s.Settle(b.Context(), time.Now(), items); err != nil {
		b.Fatal(err)
	}
	b.got = b.got[:0]
}

// drain claims and completes what nobody stood for.
func (b *standBench) drain() {
	r := store.ClaimRequest{Claim: randomID(), Session: task.ID{9}, Worker: "bench", Queues: []string{"default"},
		Runtimes: []string{task.RuntimePython}, Max: 1 << 20, Until: time.Now().Add(time.Minute)}
	claims, err := b.s.Claim(b.Context(), time.Now(), []store.ClaimRequest{r})
	if err != nil {
		b.Fatal(err)
	}
	b.got = claims[0]
	b.settle(len(b.got))
}

// BenchmarkSubmitBesideStanding submits to a queue that nobody serves, while requests of
// other queues stand: each of a queue of its own, or all of one.
func BenchmarkSubmitBesideStanding(b *testing.B) {
	for _, c := range []struct {
		standing int
		own      bool
	}{{0, false}, {1000, false}, {10_000, false}, {1000, true}, {10_000, true}} {
		b.Run(fmt.Sprintf("standing=%d/own=%t", c.standing, c.own), func(b *testing.B) {
			v := newStandBench(b)
			for i := range c.standing {
				queue := "other"
				if c.own {
					queue = fmt.Sprint("other", i)
				}
				v.stand([]string{queue}, []string{task.RuntimePython})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				v.submit()
				if i%1000 == 999 {
					b.StopTimer()
					v.drain()
					b.StartTimer()
				}
			}
		})
	}
}

// BenchmarkStandSubmitSettle is one task of a waiting worker: the request stands, the task
// is submitted and served, its result is recorded; with others that wait for the same.
func BenchmarkStandSubmitSettle(b *testing.B) {
	for _, others := range []int{0, 1000, 10_000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			v := newStandBench(b)
			queues, runtimes := []string{"default"}, []string{task.RuntimePython}
			for range others {
				v.stand(queues, runtimes)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				v.stand(queues, runtimes)
				v.submit()
				v.settle(1)
			}
		})
	}
}

// BenchmarkStandOfManyPairs stands and withdraws a request of many queues and runtimes,
// in a store that has no task, and in one with tasks of other queues: a look-up of a lane
// costs next to nothing while there is none.
func BenchmarkStandOfManyPairs(b *testing.B) {
	for _, c := range []struct{ queues, runtimes, lanes int }{{1, 1, 0}, {1, 1000, 0}, {64, 64, 0}, {1, 1, 100}, {1, 1000, 100}, {64, 64, 100}} {
		b.Run(fmt.Sprintf("queues=%d/runtimes=%d/lanes=%d", c.queues, c.runtimes, c.lanes), func(b *testing.B) {
			v := newStandBench(b)
			for i := range c.lanes {
				t := sampleTask(v.args)
				t.Queue = fmt.Sprint("somebody-elses-queue", i)
				if _, err := v.s.Submit(b.Context(), time.Now(), []store.Submission{{Task: t, Args: v.args}}); err != nil {
					b.Fatal(err)
				}
			}
			r := store.ClaimRequest{Claim: randomID(), Session: task.ID{9}, Worker: "bench",
				Queues: names("queue-of-somebody", c.queues), Runtimes: names("go/a-handler-of-somebody", c.runtimes)}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := v.s.Stand(b.Context(), time.Now(), r, time.Minute, v.deliver); err != nil {
					b.Fatal(err)
				}
				v.s.Withdraw(r.Claim)
			}
		})
	}
}

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, i)
	}
	return out
}
