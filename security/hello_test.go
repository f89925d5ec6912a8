//go:build linux

package security

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// names is a repeated text field of so many different names.
func names(field int, prefix string, n int) []byte {
	return times(n, func(i int) []byte { return text(protoNumber(field), fmt.Sprint(prefix, i)) })
}

// TestHellos: what a worker says of itself costs the dispatcher no time, while it is there
// and after it has gone. A Hello that says too much may be refused.
func TestHellos(t *testing.T) {
	for _, tt := range []struct {
		name     string
		method   string
		sessions int
		queues   int
		runtimes int
		slots    int
		wants    int // under pull
	}{
		{"many queues times many runtimes, push", methodPush, 1, 1024, 1024, 1, 0},
		{"many queues times many runtimes, pull", methodPull, 1, 1024, 1024, 4096, 4096},
		{"three hundred each, several workers", methodPush, 8, 300, 300, 16, 0},
		{"many queues (long)", methodPush, 20, 1024, 4, 1, 0},
		{"many runtimes (long)", methodPush, 20, 4, 1024, 1, 0},
		{"a product below a limit, very many workers", methodPush, 200, 64, 64, 1, 0},
		{"one queue, very many workers (long)", methodPush, scale(1000, 5000), 1, 1, 4096, 0},
		{"one queue, very many pulling workers", methodPull, scale(1000, 5000), 1, 1, 4096, 4096},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.dispatcher)
			s.log += int64(tt.sessions) * 400 // a line for each that comes and one when it goes
			ctx, cancel := context.WithTimeout(context.Background(), scale(2500*time.Millisecond, 15*time.Second))
			defer cancel()
			var wg sync.WaitGroup
			var p *peer
			for i := range tt.sessions {
				if i%500 == 0 {
					p = dialPeer(t, c.workers, c.evilWorker, "127.0.0.4")
				}
				from := p
				wg.Go(func() {
					h := helloOf(fmt.Sprintf("hostile-%x", random(8)), tt.slots, names(7, "q", tt.queues), names(8, "r", tt.runtimes))
					frames := [][]byte{h}
					if tt.wants > 0 {
						frames = append(frames, text(kindWant, num(1, uint64(tt.wants))))
					}
					w, err := from.attach(ctx, tt.method, frames...)
					if err != nil {
						return
					}
					beats(ctx, w)
				})
			}
			wg.Wait()
			pause(time.Second) // what is left behind works on
			s.end()
		})
	}
}

// TestHandlersInBulk: handlers of a Hello become functions; many Hellos with many handlers
// hold nobody up.
func TestHandlersInBulk(t *testing.T) {
	c := target(t, false)
	s := c.begin(t, c.dispatcher)
	ctx, cancel := context.WithTimeout(context.Background(), scale(2500*time.Millisecond, 10*time.Second))
	defer cancel()
	p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.4")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w, err := p.attach(ctx, methodPush, hello(fmt.Sprint("handlers-", i), "q", "r", 1, names(9, fmt.Sprint("h-", i, "-"), 1024)))
			if err == nil {
				beats(ctx, w)
			}
		})
	}
	wg.Wait()
	<-ctx.Done()
	s.end()
}

// TestOneIDManySessions: a worker that opens session after session under one id disturbs
// itself alone.
func TestOneIDManySessions(t *testing.T) {
	for _, tt := range []struct {
		name    string
		streams int
		more    []byte
	}{
		{"small Hellos", scale(1500, 10_000), nil},
		{"Hellos that hold much", scale(60, 300), times(20_000, func(int) []byte { return text(11, text(1, forged())) })},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.dispatcher)
			ctx, cancel := context.WithTimeout(context.Background(), scale(2500*time.Millisecond, 15*time.Second))
			defer cancel()
			h := hello("the same id", "hostile", "r", 1, tt.more)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.4")
					for range tt.streams / 4 {
						w, err := p.attach(ctx, methodPush, h)
						if err != nil {
							return
						}
						w.read(nil)
					}
				})
			}
			wg.Wait()
			<-ctx.Done()
			s.end()
		})
	}
}
