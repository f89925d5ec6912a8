//go:build linux

package security

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// TestStopUnderAttack: SIGTERM ends a process in its time, whatever goes on.
func TestStopUnderAttack(t *testing.T) {
	needsLevel(t)
	for _, tt := range []struct {
		name   string
		attack func(t *testing.T, ctx context.Context, c *cluster)
	}{
		{"nothing goes on", func(*testing.T, context.Context, *cluster) {}},
		{"watches are open", func(t *testing.T, ctx context.Context, c *cluster) { manyStreams(2, 100)(t, ctx, c.api) }},
		{"connections are held", func(_ *testing.T, ctx context.Context, c *cluster) {
			_, wait := squat(ctx, c.api, 500, 16, polite(nil))
			_, more := squat(ctx, c.http, 500, 16, says([]byte("GET / HTTP/1.1\r\nHost: x\r\n")))
			wait()
			more()
		}},
		{"a Hello with many queues and runtimes", func(t *testing.T, ctx context.Context, c *cluster) {
			p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.4")
			w, err := p.attach(ctx, methodPush, helloOf("hostile", 4096, names(7, "q", 1024), names(8, "r", 1024)))
			if err == nil {
				beats(ctx, w)
			}
		}},
		{"a flood of forged reports", func(t *testing.T, ctx context.Context, c *cluster) {
			p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.4")
			bulk{method: methodPush, again: made(func() []byte {
				return text(kindOutcomes, times(100_000, func(int) []byte { return forgedReport() }))
			})}.stream(ctx, c, p, 0)
		}},
		{"answers that nobody reads", func(t *testing.T, ctx context.Context, c *cluster) {
			p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.4")
			bulk{method: methodPush, unread: true, again: func(_ *cluster, _, round int) []byte { return beat(round + 1) }}.stream(ctx, c, p, 0)
		}},
		{"many wait", func(t *testing.T, ctx context.Context, c *cluster) {
			ids := c.unfinished(t, c.evilClient, 1000)
			message := times(len(ids), func(i int) []byte { return text(1, ids[i]) })
			manyWait(ctx, t, c, message, 500)
		}},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, setup{idle: true})
			t.Cleanup(c.close)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			over := make(chan struct{})
			go func() {
				defer close(over)
				tt.attack(t, ctx, c)
			}()
			pause(2 * time.Second)
			took, err := stop(c.server, drain+stopSlack)
			if err != nil {
				t.Errorf("%v\n%.2000s", err, c.server.tail())
			}
			t.Logf("it took %s", took.Round(time.Millisecond))
			cancel()
			<-over
		})
	}
}

func manyWait(ctx context.Context, t *testing.T, c *cluster, message []byte, streams int) {
	t.Helper()
	p := dialPeer(t, c.api, c.evilClient, "127.0.0.3")
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			if w, err := p.watch(ctx, "/treadle.v1.FabricService/AwaitResults", message); err == nil {
				_, _ = w.recv() // until it is refused, or over
			}
		})
	}
	wg.Wait()
}

// timeoutMargin is how much longer than its timeout an attempt may be held by a worker that
// does not stop it: docs/operating.md, "Workers that break their word".
const timeoutMargin = 30 * time.Second

// TestTimeoutsThatWorkersIgnore: a worker that beats and never stops keeps a task no longer
// than its timeout and the margin.
func TestTimeoutsThatWorkersIgnore(t *testing.T) {
	needsLevel(t)
	for _, says := range []bool{true, false} {
		t.Run(fmt.Sprintf("in the beats %v", says), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, setup{idle: true})
			t.Cleanup(c.close)
			queue := "ignored"
			w := c.take(t, "ignores timeouts", queue, 1)
			id := c.submit(t, queue, 1, treadle.Options{Timeout: time.Second, MaxRetries: new(int)})[0]
			o := w.offer(t)
			w.started(o)
			begun := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), timeoutMargin+20*time.Second)
			defer cancel()
			go func() {
				for seq := 1000; ctx.Err() == nil; seq++ {
					held := text(2, text(1, tokenOf(o)))
					if says {
						held = text(2, cat(text(1, tokenOf(o)), text(2, num(2, 1))))
					}
					if w.send(beat(seq, held)) != nil {
						return
					}
					select {
					case <-ctx.Done():
					case <-time.After(500 * time.Millisecond):
					}
				}
			}()
			got := c.ended(t, id, timeoutMargin+10*time.Second)
			if got.Status != treadle.Failed || got.Error == nil || got.Error.Type != "DeadlineExceededError" {
				t.Errorf("after %s it is %s, %v: want FAILED by DeadlineExceededError", time.Since(begun).Round(time.Second), got.Status, got.Error)
			}
		})
	}
}
