//go:build linux

package security

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// TestLinksHoldLittle: what a worker asks for and does not read, and what it sends half, is
// bounded in bytes.
func TestLinksHoldLittle(t *testing.T) {
	for _, f := range []struct {
		name string
		run  func(ctx context.Context, t *testing.T, c *cluster)
	}{
		{"requests for a large function, unread", needFlood},
		{"offers with large arguments, unread", unreadOffers},
		{"half of many values on many streams", halfValues},
		{"large results that nobody asked for, on many streams", wholeResults},
	} {
		subtest(t, f.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.server)
			ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
			defer cancel()
			f.run(ctx, t, c)
			cancel()
			s.end()
			for _, name := range []string{"treadle_link_unwritten_bytes", "treadle_link_unfinished_bytes", "treadle_link_unread_bytes", "treadle_link_function_bytes"} {
				until(t, 10*time.Second, name+" is zero", func() error {
					if n, err := c.metric(c.metricsAt, name); err != nil || n != 0 {
						return fmt.Errorf("%v bytes, %w", n, err)
					}
					return nil
				})
			}
		})
	}
}

// unread attaches a worker of the attacker that beats and reads nothing.
func (c *cluster) unread(ctx context.Context, t *testing.T, id, queue string, slots int) *hostileStream {
	t.Helper()
	s, err := dialPeer(t, c.workers, c.evilWorker, "127.0.0.7").attach(ctx, methodPush, hello(id, queue, "python", slots))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for seq := 1; s.send(beat(seq)) == nil; seq++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return s
}

func needFlood(ctx context.Context, t *testing.T, c *cluster) {
	t.Helper()
	client, err := c.evil()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	source := "def f(): pass\n#" + strings.Repeat("x", 32<<20)
	if _, err := client.Register(ctx, treadle.Registration{Name: "large", Source: source, Queue: "nobody"}); err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256([]byte(source))
	for i := range 5 {
		s := c.unread(ctx, t, fmt.Sprint("needs-", i), "none", 1)
		for range 200 {
			if s.send(text(kindNeed, text(1, hash[:]))) != nil {
				break
			}
		}
	}
	var most float64
	until(t, 10*time.Second, "functions are on their way", func() error {
		n, err := c.metric(c.metricsAt, "treadle_link_function_bytes")
		if most = max(most, n); err == nil && most < 32<<20 {
			err = fmt.Errorf("%v bytes", n)
		}
		return err
	})
	if most > 256<<20 {
		t.Errorf("%v bytes of functions are on their way", most)
	}
	<-ctx.Done()
}

func unreadOffers(ctx context.Context, t *testing.T, c *cluster) {
	t.Helper()
	client, err := c.evil()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fn, err := client.Register(ctx, treadle.Registration{Name: "unread", Source: "def f(x): pass", Queue: "unread"})
	if err != nil {
		t.Fatal(err)
	}
	argument := string(filler(1 << 20))
	for range 30 {
		requests := make([]treadle.Request, 20)
		for i := range requests {
			requests[i] = treadle.Request{Function: fn.ID, Args: []any{argument}}
		}
		if _, err := client.ExecuteBatch(ctx, requests); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		c.unread(ctx, t, fmt.Sprint("unread-", i), "unread", 1000)
	}
	<-ctx.Done()
}

func halfValues(ctx context.Context, t *testing.T, c *cluster) {
	t.Helper()
	chunk := func(value int) []byte {
		return text(kindChunk, cat(num(1, uint64(value)), text(2, filler(200<<10)), num(3, 32<<20)))
	}
	ended := make(chan string, 20)
	for i := range 20 {
		s := c.unread(ctx, t, fmt.Sprint("half-", i), "none", 1)
		s.read(func(message []byte) {
			if bye := dispatched(message).GetBye(); bye != nil {
				ended <- bye.GetReason()
			}
		})
		go func() {
			for v := 1; v <= 4 && s.send(chunk(v)) == nil; v++ {
			}
		}()
	}
	select {
	case reason := <-ended:
		if !strings.Contains(reason, "no room") {
			t.Errorf("a stream ended: %s", reason)
		}
	case <-ctx.Done():
		t.Error("20 streams with 128 MiB of half values each live together")
	}
	<-ctx.Done()
}

// wholeResults reports results of claims that do not exist, each whole in its frame, on more streams than there is memory for.
func wholeResults(ctx context.Context, t *testing.T, c *cluster) {
	t.Helper()
	sent := make(chan int, 24)
	// A value in a frame has at most 256 KiB, but a frame has many.
	frame := text(kindOutcomes, times(80, func(int) []byte {
		return text(1, cat(text(1, forged()), text(2, "succeeded"), text(3, text(1, filler(250<<10))), text(4, "pickle")))
	}))
	for i := range cap(sent) {
		s := c.unread(ctx, t, fmt.Sprint("whole-", i), "none", 1)
		go func() {
			n := 0
			for n < 20 && s.send(frame) == nil {
				n++
			}
			sent <- n
		}()
	}
	total := 0
	for range cap(sent) {
		total += <-sent
	}
	if total == 0 {
		t.Error("no frame was sent")
	}
	<-ctx.Done()
}
