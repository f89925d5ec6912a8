//go:build linux

package security

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Methods that anybody may call, and one that takes some token.
const (
	healthCheck = "/grpc.health.v1.Health/Check"
	healthList  = "/grpc.health.v1.Health/List"
	healthWatch = "/grpc.health.v1.Health/Watch"
	reflection1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	reflection0 = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
)

// TestPublicMethodsTakeSmallMessages: whoever has no token gets a few KiB at most, of every
// shape of message, at servers and at dispatchers.
func TestPublicMethodsTakeSmallMessages(t *testing.T) {
	needsLevel(t)
	for _, split := range []bool{false, true} {
		c := target(t, split)
		for _, method := range []string{healthCheck, healthList, healthWatch} {
			for shape, message := range map[string][]byte{
				"a name of 64 KiB":            text(1, filler(64<<10)),
				"a name of 1 MiB":             text(1, filler(1<<20)),
				"an unknown field of 300 KiB": text(77, filler(300<<10)),
				"a hundred thousand names":    times(100_000, func(int) []byte { return text(1, "x") }),
				"zeros that are no message":   make([]byte, 256<<10),
			} {
				name := fmt.Sprintf("split=%v%s %s", split, strings.ReplaceAll(method, "/", " "), shape)
				t.Run(name, func(t *testing.T) {
					p := dialPeer(t, c.workers, "", "127.0.0.2")
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					s, err := p.watch(ctx, method, message)
					if err != nil {
						t.Fatal(err)
					}
					st, err := s.end(5 * time.Second)
					if err != nil || st.Code() != codes.ResourceExhausted {
						t.Errorf("%v, %v (%d answers): want RESOURCE_EXHAUSTED", st, err, s.frames.Load())
					}
				})
			}
		}
	}
}

// TestHealthNamesAtTheEdge: what probes send is served.
func TestHealthNamesAtTheEdge(t *testing.T) {
	c := target(t, false)
	p := dialPeer(t, c.api, "", "127.0.0.2")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for name, want := range map[string]codes.Code{
		"": codes.OK, "treadle.v1.FabricService": codes.OK, strings.Repeat("n", 256): codes.NotFound,
	} {
		if _, err := p.call(ctx, healthCheck, text(1, name)); status.Code(err) != want {
			t.Errorf("Check of %.30q: %v, want %s", name, err, want)
		}
	}
}

// flood is an attack without a token, on the API or on the worker streams.
type flood struct {
	name  string
	split bool // a dispatcher alone is attacked
	run   func(t *testing.T, ctx context.Context, addr string)
}

// TestFloodsWithoutToken: calls without a token take nobody's memory and nobody's turn.
func TestFloodsWithoutToken(t *testing.T) {
	for _, f := range []flood{
		{"big Watch calls at once", false, manyCalls(healthWatch, 2, 60, 40<<20)},
		{"big Watch calls at a dispatcher", true, manyCalls(healthWatch, 3, 40, 60<<20)},
		{"big Check calls at once", false, manyCalls(healthCheck, 4, 30, 24<<20)},
		{"big List calls at once (long)", false, manyCalls(healthList, 4, 30, 24<<20)},
		{"big reflection calls without a token (long)", false, manyCalls(reflection1, 2, 60, 16<<20)},
		{"old reflection at a dispatcher", true, manyCalls(reflection0, 2, 60, 16<<20)},
		{"big worker frames without a token", true, manyCalls(methodPush, 2, 60, 16<<20)},
		{"big submissions without a token (long)", false, manyCalls("/treadle.v1.FabricService/Execute", 2, 60, 16<<20)},
		{"methods that there are not (long)", false, manyCalls("/no.such.Service/Method", 2, 60, 16<<20)},
		{"small Watch streams", false, manyStreams(scale(20, 60), 1000)},
		{"small Watch streams at a dispatcher", true, manyStreams(scale(20, 60), 1000)},
	} {
		subtest(t, f.name, func(t *testing.T) {
			c := target(t, f.split)
			victim, addr := c.server, c.api
			if f.split {
				victim, addr = c.dispatcher, c.workers
			}
			s := c.begin(t, victim)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			f.run(t, ctx, addr)
			cancel()
			s.end()
		})
	}
}

// manyCalls sends messages of that size on several connections at once, and holds the
// streams that the server lets live.
func manyCalls(method string, connections, callsEach, size int) func(*testing.T, context.Context, string) {
	return func(t *testing.T, ctx context.Context, addr string) {
		t.Helper()
		message := text(1, filler(size))
		ctx, cancel := context.WithTimeout(ctx, scale(2*time.Second, 10*time.Second))
		defer cancel()
		var wg sync.WaitGroup
		for i := range connections {
			p := dialPeer(t, addr, "", fmt.Sprintf("127.0.0.%d", 2+i))
			for range callsEach {
				wg.Go(func() {
					for ctx.Err() == nil {
						if s, err := p.watch(ctx, method, message); err == nil {
							_, _ = s.end(time.Minute) // until it is refused, or the attack is over
						}
						select {
						case <-ctx.Done():
						case <-time.After(250 * time.Millisecond):
						}
					}
				})
			}
		}
		wg.Wait()
	}
}

// manyStreams opens Watch streams with small requests and holds them.
func manyStreams(connections, each int) func(*testing.T, context.Context, string) {
	return func(t *testing.T, ctx context.Context, addr string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, scale(3*time.Second, 15*time.Second))
		defer cancel()
		var wg sync.WaitGroup
		for i := range connections {
			wg.Go(func() {
				p := dialPeer(t, addr, "", fmt.Sprintf("127.0.0.%d", 2+i))
				for range each {
					open, giveUp := context.WithCancel(ctx)
					impatient := time.AfterFunc(2*time.Second, giveUp)
					_, err := p.watch(open, healthWatch, text(1, fmt.Sprint("service ", i)))
					if !impatient.Stop() || err != nil {
						giveUp()
						return // no more are let in
					}
				}
			})
		}
		wg.Wait()
		<-ctx.Done()
	}
}
