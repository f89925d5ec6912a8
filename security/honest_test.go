//go:build linux

package security

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/worker"
)

// Roles of this test binary: an honest worker, and an honest client with a steady load.
const (
	roleWorker = "worker"
	roleLoad   = "load"
)

// Environment of the honest processes.
const (
	envAPI        = "SECURITY_API"
	envHTTP       = "SECURITY_HTTP"
	envDispatcher = "SECURITY_DISPATCHER"
)

// Handlers of the honest worker.
const (
	fnDouble = "double"
	// fnSleep sleeps as many milliseconds as it is told and returns them.
	fnSleep = "sleep"
	// fnFail fails with a text of so many bytes.
	fnFail = "fail"
	// fnLatin fails with a text that is not UTF-8.
	fnLatin = "latin"
)

// honestWorker serves the handlers until its standard input ends.
func honestWorker() int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go untilInputEnds(stop)
	worker.Handle(fnDouble, func(_ context.Context, n int) (int, error) { return 2 * n, nil })
	worker.Handle(fnSleep, func(ctx context.Context, ms int) (int, error) {
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
			return ms, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
	worker.Handle(fnFail, func(_ context.Context, n int) (int, error) {
		return 0, errors.New(strings.Repeat("a long error ", n/13))
	})
	worker.Handle(fnLatin, func(context.Context, int) (int, error) { return 0, errors.New("caf\xe9 is missing") })
	if err := worker.Serve(ctx, worker.Options{
		Dispatchers: []string{os.Getenv(envDispatcher)}, Slots: 16, Name: "honest", DrainTimeout: time.Second,
	}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func untilInputEnds(stop func()) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	stop()
}

// sample is one honest call.
type sample struct {
	Kind string `json:"kind"`
	// At is when it began, in Unix nanoseconds; Took how long it was under way.
	At   int64         `json:"at"`
	Took time.Duration `json:"took"`
	Err  string        `json:"err,omitempty"`
}

// Kinds of honest calls: over connections that stand, and over new ones.
const (
	kindREST       = "POST double:call"
	kindGRPC       = "gRPC Call"
	kindFreshREST  = "POST double:call, new connection"
	kindFreshGRPC  = "gRPC Call, new connection"
	kindHealthz    = "GET /healthz, new connection"
	kindCheck      = "Health.Check, new connection"
	steadyEvery    = 100 * time.Millisecond
	freshEvery     = 500 * time.Millisecond
	loadBufferSize = 1 << 16
)

// load is an honest client: each kind of call begins at its times, whatever became of
// those before, and each is printed as one line of JSON.
type load struct {
	api, http, token string
	mu               sync.Mutex
	out              *json.Encoder
	wg               sync.WaitGroup
}

func honestLoad() int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go untilInputEnds(stop)
	l := &load{api: os.Getenv(envAPI), http: "http://" + os.Getenv(envHTTP), token: os.Getenv("TREADLE_TOKEN"), out: json.NewEncoder(os.Stdout)}
	client, err := treadle.Dial(l.api, treadle.WithRetry(0), treadle.WithFailFast())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer client.Close()
	standing := &http.Client{}
	l.every(ctx, steadyEvery, kindREST, func(ctx context.Context) error { return l.post(ctx, standing) })
	l.every(ctx, steadyEvery, kindGRPC, func(ctx context.Context) error { return double(ctx, client) })
	l.every(ctx, freshEvery, kindFreshREST, func(ctx context.Context) error { return l.fresh(func(c *http.Client) error { return l.post(ctx, c) }) })
	l.every(ctx, freshEvery, kindHealthz, func(ctx context.Context) error {
		return l.fresh(func(c *http.Client) error { return l.healthz(ctx, c) })
	})
	l.every(ctx, freshEvery, kindCheck, l.check)
	l.every(ctx, freshEvery, kindFreshGRPC, func(ctx context.Context) error {
		client, err := treadle.Dial(l.api, treadle.WithRetry(0), treadle.WithFailFast())
		if err != nil {
			return err
		}
		defer client.Close()
		return double(ctx, client)
	})
	l.wg.Wait()
	return 0
}

// every makes calls of one kind at regular times until ctx ends.
func (l *load) every(ctx context.Context, period time.Duration, kind string, call func(context.Context) error) {
	l.wg.Go(func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			l.wg.Go(func() { l.one(kind, call) })
		}
	})
}

func (l *load) one(kind string, call func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), honestTimeout)
	defer cancel()
	s := sample{Kind: kind}
	begun := time.Now()
	err := call(ctx)
	s.At, s.Took = begun.UnixNano(), time.Since(begun)
	if err != nil {
		s.Err = err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(s) // when nobody reads any more the input has ended, too
}

func double(ctx context.Context, c *treadle.Client) error {
	var got int
	if err := c.Call(ctx, fnDouble, &got, 21); err != nil {
		return err
	}
	if got != 42 {
		return fmt.Errorf("double(21) is %d", got)
	}
	return nil
}

// fresh makes a call over a connection of its own.
func (l *load) fresh(call func(*http.Client) error) error {
	transport := &http.Transport{DialContext: (&net.Dialer{}).DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	return call(&http.Client{Transport: transport})
}

func (l *load) post(ctx context.Context, c *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.http+"/v1/functions/double:call?timeout=9s", strings.NewReader(`{"args":[21]}`))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.token)
	req.Header.Set("Content-Type", "application/json")
	body, err := do(c, req)
	if err != nil {
		return err
	}
	if !bytes.Contains(body, []byte(`42`)) {
		return fmt.Errorf("no result: %.300s", body)
	}
	return nil
}

func (l *load) healthz(ctx context.Context, c *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.http+"/healthz", http.NoBody)
	if err != nil {
		return err
	}
	_, err = do(c, req)
	return err
}

// do sends a request and wants 200.
func do(c *http.Client, req *http.Request) ([]byte, error) {
	answer, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d: %.300s", answer.StatusCode, body)
	}
	return body, nil
}

func (l *load) check(ctx context.Context) error {
	conn, err := grpc.NewClient(l.api, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err == nil && answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		err = fmt.Errorf("health is %s", answer.GetStatus())
	}
	return err
}

// samples gathers what a load prints.
type samples struct {
	mu  sync.Mutex
	all []sample
	bad string
}

func (s *samples) follow(p *process) {
	for line := range p.lines {
		var one sample
		err := json.Unmarshal([]byte(line), &one)
		s.mu.Lock()
		if err != nil {
			s.bad = line
		}
		s.all = append(s.all, one)
		s.mu.Unlock()
	}
}

// between returns the calls that began in that time.
func (s *samples) between(from, to time.Time) []sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []sample
	for _, one := range s.all {
		if one.At >= from.UnixNano() && one.At < to.UnixNano() {
			found = append(found, one)
		}
	}
	return found
}

// p99 is the 99th percentile of how long calls took; ok is false where there are none.
func p99(calls []sample) (at time.Duration, ok bool) {
	if len(calls) == 0 {
		return 0, false
	}
	took := make([]time.Duration, len(calls))
	for i, c := range calls {
		took[i] = c.Took
	}
	slices.Sort(took)
	return took[min(len(took)-1, len(took)*99/100)], true
}

// allowed is what the 99th percentile may be under attack.
func allowed(base time.Duration) time.Duration { return max(slowFactor*base, base+slowFloor) }

func TestP99(t *testing.T) {
	if _, ok := p99(nil); ok {
		t.Error("a percentile of nothing")
	}
	var calls []sample
	for i := range 200 {
		calls = append(calls, sample{Took: time.Duration(200-i) * time.Millisecond})
	}
	if at, _ := p99(calls); at != 199*time.Millisecond {
		t.Errorf("p99 of 1 to 200 ms is %s", at)
	}
	if at, _ := p99(calls[:1]); at != 200*time.Millisecond {
		t.Errorf("p99 of one is %s", at)
	}
	if got := allowed(10 * time.Millisecond); got != 510*time.Millisecond {
		t.Errorf("10 ms may become %s", got)
	}
	if got := allowed(time.Second); got != 3*time.Second {
		t.Errorf("1 s may become %s", got)
	}
}
