package redisstore

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/task"
)

var lastID atomic.Uint64

// newID makes a version 7 id of the moment; ids made by one process grow.
func newID() (id task.ID) {
	n := lastID.Add(1)
	binary.BigEndian.PutUint64(id[:8], uint64(time.Now().UnixMilli())<<16|0x7000|n>>48&0xfff)
	binary.BigEndian.PutUint64(id[8:], 1<<63|n&(1<<62-1))
	return id
}

func randomID() (id task.ID) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

func sampleTask(args []byte) *task.Task {
	return &task.Task{
		ID: newID(), Function: task.ID{1}, FunctionName: "double", Queue: task.DefaultQueue, Runtime: task.RuntimePython,
		Form: task.FormPickle, Hash: [32]byte{1, 2, 3}, Spec: task.Spec{Priority: task.DefaultPriority, MaxRetries: task.DefaultMaxRetries}, Args: task.EncodingPickle,
		Returns: task.EncodingPickle, ArgsSize: len(args),
	}
}

// BenchmarkSubmitClaimSettle walks tasks through submit, claim, start and settle in
// batches, on a server that syncs its append-only file each second.
func BenchmarkSubmitClaimSettle(b *testing.B) {
	srv := redistest.Start(b, "--appendonly", "yes", "--appendfsync", "everysec")
	for _, c := range []struct{ batch, callers int }{{1, 1}, {16, 4}, {64, 1}, {64, 4}, {256, 1}, {256, 4}} {
		b.Run(fmt.Sprintf("batch=%d/callers=%d", c.batch, c.callers), func(b *testing.B) {
			s, err := Open(b.Context(), Options{URL: srv.URL(""), Namespace: freshNamespace(), Logger: quiet})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			cpu, serverCPU := cpuTime(), srv.CPU(b)
			b.ResetTimer()
			var next atomic.Int64
			var wg sync.WaitGroup
			for range c.callers {
				wg.Go(func() {
					for {
						n := min(c.batch, b.N-int(next.Add(int64(c.batch)))+c.batch)
						if n <= 0 {
							return
						}
						walk(b, s, n)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/task")
			b.ReportMetric(float64((srv.CPU(b)-serverCPU).Microseconds())/float64(b.N), "redis-cpu-µs/task")
		})
	}
}

// walk takes n tasks from submission to their result.
func walk(b *testing.B, s *Store, n int) {
	ctx := b.Context()
	args := []byte("64 bytes of arguments, as a small pickled tuple of them would be")
	subs := make([]store.Submission, n)
	for i := range subs {
		subs[i] = store.Submission{Task: sampleTask(args), Args: args}
	}
	if _, err := s.Submit(ctx, time.Now(), subs); err != nil {
		b.Error(err)
	}
	for n > 0 {
		now := time.Now()
		claims, err := s.Claim(ctx, now, []store.ClaimRequest{{
			Claim: randomID(), Session: task.ID{9}, Worker: "bench", Queues: []string{"default"},
			Runtimes: []string{task.RuntimePython}, Max: n, Until: now.Add(10 * time.Second),
		}})
		if err != nil || len(claims[0]) == 0 {
			b.Error("nothing to claim", err)
			return
		}
		renew := make([]store.Renewal, len(claims[0]))
		settle := make([]store.Settlement, len(claims[0]))
		for i, c := range claims[0] {
			renew[i] = store.Renewal{Token: c.Token, Until: now.Add(10 * time.Second), StartedAt: now}
			settle[i] = store.Settlement{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: args[:16]}}
		}
		if _, err := s.Renew(ctx, now, renew); err != nil {
			b.Error(err)
		}
		verdicts, err := s.Settle(ctx, time.Now(), settle)
		if err != nil {
			b.Error(err)
		}
		for _, v := range verdicts {
			if v != task.VerdictRecorded {
				b.Error("verdict", v)
			}
		}
		n -= len(claims[0])
	}
}
