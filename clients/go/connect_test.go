package treadle_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/clients/go/treadletest"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// What no waiting mends is told at once, although calls are retried for half a minute.
func TestWhatCanNeverBeReached(t *testing.T) {
	rest := httptest.NewServer(http.NotFoundHandler())
	defer rest.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	for name, test := range map[string]struct {
		address string
		options []treadle.Option
		want    string
	}{
		"the port of REST": {rest.Listener.Addr().String(), nil, "8000 is the REST port; gRPC is 50051"},
		"another CA":       {secure.Listener.Addr().String(), []treadle.Option{treadle.WithCA("system")}, "its certificate is refused"},
		"plain text":       {rest.Listener.Addr().String(), []treadle.Option{treadle.WithCA("system")}, "the server speaks plain text and this client TLS"},
	} {
		c, err := treadle.Dial(test.address, test.options...)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.Info(t.Context())
		if !errors.Is(err, treadle.ErrUnavailable) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.address) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("%s: told after %s", name, took)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A server that is not there yet is waited for, and so is one that was there before.
func TestWhatTimeMends(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := treadle.Dial(address, treadle.WithRetry(500*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	begin := time.Now()
	if _, err := c.Info(t.Context()); !errors.Is(err, treadle.ErrUnavailable) || time.Since(begin) < 100*time.Millisecond {
		t.Errorf("%v after %s, want retries", err, time.Since(begin))
	}
}

func TestAddresses(t *testing.T) {
	for _, address := range []string{"http://127.0.0.1:8000", "h:99999", "a b", ":1"} {
		if _, err := treadle.Dial(address); !errors.Is(err, treadle.ErrInvalid) || !strings.Contains(err.Error(), "want HOST:PORT") {
			t.Errorf("Dial(%q): %v", address, err)
		}
	}
	for address, want := range map[string]string{"localhost": "localhost:50051", "::1": "[::1]:50051", "dns:///h:1": "dns:///h:1"} {
		c, err := treadle.Dial(address)
		if err != nil || c.Address() != want {
			t.Errorf("Dial(%q): %v", address, err)
			continue
		}
		_ = c.Close()
	}
}

// One request that cannot be sent, or that a server refuses, leaves those alone that travel with it.
func TestNeighboursOfARefusedRequest(t *testing.T) {
	for name, bad := range map[string]string{"not UTF-8": "caf\xe9", "too long": strings.Repeat("x", 2000)} {
		t.Run(name, func(t *testing.T) {
			hold := make(chan struct{})
			var flying atomic.Int32
			srv := treadletest.Start(t, grpc.UnaryInterceptor(func(
				ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler,
			) (any, error) {
				batch, ok := req.(*treadlev1.ExecuteBatchRequest)
				if !ok {
					return next(ctx, req)
				}
				flying.Add(1)
				<-hold
				for i, r := range batch.GetRequests() {
					if len(r.GetFunction()) > 1024 { // as servers refuse it: before they look at any request of the batch
						return nil, treadletest.Error(codes.InvalidArgument, "INVALID_REQUEST", "requests[%d].function is too long", i)
					}
				}
				return next(ctx, req)
			}))
			srv.Handle("double", double)
			c := dial(t, srv)
			const callers, guilty = 100, 33
			errs := make([]error, callers)
			var wg sync.WaitGroup
			var calling atomic.Int32
			for i := range callers {
				wg.Go(func() {
					function := "double"
					if i == guilty {
						function = bad
					}
					calling.Add(1)
					_, errs[i] = c.Execute(t.Context(), treadle.Request{Function: function, Args: []any{i}})
				})
			}
			waitFor(t, func() bool { return flying.Load() > 0 && calling.Load() == callers })
			close(hold)
			wg.Wait()
			for i, err := range errs {
				if i == guilty {
					if !errors.Is(err, treadle.ErrInvalid) || !strings.Contains(err.Error(), "function") {
						t.Errorf("the refused request: %v", err)
					}
				} else if err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			}
		})
	}
}

// What gRPC cannot carry is refused by name.
func TestTextThatIsNotUTF8(t *testing.T) {
	c := dial(t, treadletest.Start(t))
	_, byID := c.Task(t.Context(), "\xff")
	var byFilter error
	for _, err := range c.Tasks(t.Context(), "status = \xe9") {
		byFilter = err
	}
	_, registered := c.Register(t.Context(), treadle.Registration{Name: "caf\xe9", Source: "def f(): return 1"})
	for want, err := range map[string]error{
		`task_id "\xff" is not UTF-8`: byID, `filter "status = \xe9" is not UTF-8`: byFilter, `name "caf\xe9" is not UTF-8`: registered,
	} {
		if !errors.Is(err, treadle.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, token := range []string{"caf\xe9", "a\nb"} {
		_, err := treadle.Dial("127.0.0.1:1", treadle.WithToken(token))
		if !errors.Is(err, treadle.ErrInvalid) || !strings.Contains(err.Error(), "the token has a character at byte") {
			t.Errorf("token %q: %v", token, err)
		}
	}
}
