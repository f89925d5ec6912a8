//go:build linux

package security

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	treadle "github.com/treadle-dev/treadle/clients/go"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// reasonOf is the word that an error of the API carries.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// TestQuotasUnderFire: however many calls ask at once, a token gets no more than its quota,
// and others get theirs.
func TestQuotasUnderFire(t *testing.T) {
	needsLevel(t)
	long := func(n int) []byte { return append(append([]byte(`["`), filler(n)...), `"]`...) }
	fn := "the function of the attacker, by name"
	for _, tt := range []struct {
		name, method string
		// message is the i-th of so many, sent by 16 at a time.
		calls   int
		message func(i int) []byte
		most    int
	}{
		{"tasks", "Execute", 400, func(int) []byte { return wire(t, &treadlev1.ExecuteRequest{Function: fn}) }, 100},
		{"bytes of arguments", "Execute", 100, func(int) []byte { return wire(t, &treadlev1.ExecuteRequest{Function: fn, Args: long(250_000)}) }, 16},
		{"bytes of functions", "RegisterFunction", 100, func(i int) []byte {
			return wire(t, &treadlev1.RegisterFunctionRequest{Name: "big", Queue: "nobody", Source: fmt.Sprintf("def f(): pass\n#%d%s", i, filler(500_000))})
		}, 8},
		{"functions", "RegisterFunction", 200, func(i int) []byte {
			return wire(t, &treadlev1.RegisterFunctionRequest{Name: "small", Queue: "nobody", Source: fmt.Sprintf("def f(): return %d", i)})
		}, 20},
		{"queues", "RegisterFunction", 200, func(i int) []byte {
			return wire(t, &treadlev1.RegisterFunctionRequest{Name: "small", Queue: fmt.Sprint("q-", i), Source: "def f(): pass"})
		}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := quotaCluster(t, fn)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			var next, admitted atomic.Int64
			var wg sync.WaitGroup
			for range 16 {
				p := dialPeer(t, c.api, c.evilClient, "127.0.0.9")
				wg.Go(func() {
					for {
						i := int(next.Add(1))
						if i > tt.calls {
							return
						}
						_, err := p.call(ctx, "/treadle.v1.FabricService/"+tt.method, tt.message(i))
						switch {
						case err == nil:
							admitted.Add(1)
						case reasonOf(err) != "QUOTA_EXCEEDED":
							t.Errorf("%v (%s): want QUOTA_EXCEEDED", err, reasonOf(err))
							return
						}
					}
				})
			}
			wg.Wait()
			if n := admitted.Load(); n == 0 || n > int64(tt.most) {
				t.Errorf("%d of %d were admitted: want 1 to %d", n, tt.calls, tt.most)
			}
			if err := c.callNow(5 * time.Second); err != nil {
				t.Errorf("another token pays for it: %v", err)
			}
		})
	}
	t.Run("a batch", func(t *testing.T) {
		c := quotaCluster(t, fn)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		requests := make([]*treadlev1.ExecuteRequest, 5000)
		for i := range requests {
			requests[i] = &treadlev1.ExecuteRequest{Function: fn}
		}
		out, err := callAs[treadlev1.ExecuteBatchResponse](ctx, dialPeer(t, c.api, c.evilClient, "127.0.0.9"), "/treadle.v1.FabricService/ExecuteBatch",
			&treadlev1.ExecuteBatchRequest{Requests: requests})
		if err != nil {
			t.Fatal(err)
		}
		admitted := 0
		for _, item := range out.GetItems() {
			if item.GetTaskId() != "" {
				admitted++
			} else if r := item.GetError().GetReason(); r != "QUOTA_EXCEEDED" {
				t.Fatalf("an item is refused with %s", r)
			}
		}
		if admitted > 100 || admitted == 0 {
			t.Errorf("%d of a batch were admitted: want 1 to 100", admitted)
		}
	})
	t.Run("waits", func(t *testing.T) {
		c := quotaCluster(t, fn)
		id := c.submit(t, "nobody", 1, treadle.Options{})[0]
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		var refused, waited atomic.Int64
		var wg sync.WaitGroup
		for i := range 4 {
			p := dialPeer(t, c.api, c.evilClient, fmt.Sprint("127.0.0.", 10+i))
			for range 50 {
				wg.Go(func() {
					_, err := p.call(ctx, "/treadle.v1.FabricService/GetResult", wire(t, &treadlev1.GetResultRequest{TaskId: id, Wait: durationpb.New(time.Minute)}))
					if reasonOf(err) == "QUOTA_EXCEEDED" {
						refused.Add(1)
					} else {
						waited.Add(1)
					}
				})
			}
		}
		wg.Wait()
		if waited.Load() > 50 || refused.Load() < 150 {
			t.Errorf("%d waited and %d were refused: want at most 50, and the others", waited.Load(), refused.Load())
		}
		if err := c.callNow(5 * time.Second); err != nil {
			t.Errorf("another token pays for it: %v", err)
		}
	})
}

// quotaCluster has small quotas, and a function of the attacker in a queue that nobody serves.
func quotaCluster(t *testing.T, name string) *cluster {
	t.Helper()
	c := newCluster(t, setup{idle: true, flags: []string{
		"--quota-tasks", "100", "--quota-bytes", "4MiB", "--quota-functions", "20", "--quota-queues", "10", "--quota-waited", "50",
	}})
	t.Cleanup(c.close)
	client, err := c.evil()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := client.Register(ctx, treadle.Registration{Name: name, Source: "def f(): pass", Queue: "nobody"}); err != nil {
		t.Fatal(err)
	}
	return c
}
