//go:build unix

package pyproc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// BenchmarkNoop runs a function that does nothing, one call at a time in each slot.
// Beside the wall clock it tells the CPU time of the runners per task, which other load on
// the machine does not change as much (Linux).
func BenchmarkNoop(b *testing.B) {
	for _, slots := range []int{1, 4} {
		b.Run(fmt.Sprintf("runners=%d", slots), func(b *testing.B) {
			e := start(b, slots)
			attempt := func(int) *worker.Attempt {
				a := fromSource("def f():\n    return None", "")
				a.ArgsEncoding, a.Returns = task.EncodingPickle, task.EncodingPickle
				a.Args = []byte("\x80\x04).") // ()
				return a
			}
			throughput(b, e, slots, attempt)
		})
	}
}

// BenchmarkJSONCall is a call as it comes from curl.
func BenchmarkJSONCall(b *testing.B) {
	e := start(b, 1)
	throughput(b, e, 1, func(int) *worker.Attempt {
		return fromSource("def f(x, y): return {'sum': x + y}", `{"args":[1],"kwargs":{"y":2}}`)
	})
}

// BenchmarkResult1MiB moves a large value both ways.
func BenchmarkResult1MiB(b *testing.B) {
	e := start(b, 1)
	b.SetBytes(2 << 20)
	payload := append([]byte("\x80\x04B\x00\x00\x10\x00"), bytes.Repeat([]byte("x"), 1<<20)...)
	payload = append(payload, "\x85."...)
	throughput(b, e, 1, func(int) *worker.Attempt {
		a := fromSource("def f(x): return x", "")
		a.ArgsEncoding, a.Returns, a.Args = task.EncodingPickle, task.EncodingPickle, payload
		return a
	})
}

func throughput(b *testing.B, e *Executor, slots int, attempt func(slot int) *worker.Attempt) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for slot := range slots {
		if out := e.Run(ctx, slot, attempt(slot)); out.End != task.EndSucceeded {
			b.Fatal(describe(out))
		}
	}
	before := runnersCPU(e)
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for slot := range slots {
		wg.Go(func() {
			a := attempt(slot)
			for left.Add(-1) >= 0 {
				if out := e.Run(ctx, slot, a); out.End != task.EndSucceeded {
					b.Error(describe(out))
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	if used := runnersCPU(e) - before; used > 0 {
		b.ReportMetric(float64(used)/float64(b.N)/1e3, "runner-us/task")
	}
}

// runnersCPU returns the CPU time of all runners in nanoseconds, 0 where it cannot be read.
func runnersCPU(e *Executor) (total int64) {
	for _, s := range e.slots {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(s.cur.proc.Pid) + "/schedstat")
		if fields := bytes.Fields(data); err == nil && len(fields) > 0 {
			n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
			total += n
		}
	}
	return total
}
