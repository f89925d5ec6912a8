package server

import (
	"errors"
	"math"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

func TestRateLimit(t *testing.T) {
	var mu sync.Mutex
	at := time.Now()
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); at = at.Add(d) }
	l := newRateLimits(10, func() time.Time { mu.Lock(); defer mu.Unlock(); return at })
	take := func(who string, n int, wantWait time.Duration) {
		t.Helper()
		var over *limited
		err := l.take(who, n)
		if errors.As(err, &over) && over.wait == 0 || (err == nil) != (wantWait == 0) || err != nil && (over.wait-wantWait).Abs() > time.Millisecond {
			t.Errorf("%d by %s: %v, want a wait of %s", n, who, err, wantWait)
		}
	}
	for range 10 {
		take("a", 1, 0)
	}
	take("a", 1, 100*time.Millisecond)
	take("b", 10, 0) // each has a bucket of his own
	pass(99 * time.Millisecond)
	take("a", 1, time.Millisecond)
	pass(time.Millisecond)
	take("a", 1, 0)
	// A batch of more than a second's worth passes a full bucket, and is paid off.
	pass(time.Second)
	take("a", 35, 0)
	take("a", 1, 2600*time.Millisecond)
	pass(2600 * time.Millisecond)
	take("a", 1, 0)
	l.forget()
	if len(l.buckets) != 1 { // b's is full again
		t.Errorf("%d buckets are kept, want that of a alone", len(l.buckets))
	}
}

// TestRateLimitInTheAPI: everything counts that a token is needed for.
func TestRateLimitInTheAPI(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), func(c *Config) { c.RateLimit = 0.002 })
	register := []byte(`{"name": "f", "source": "def f(): pass"}`)
	e.must(e.do(http.MethodPost, "/v1/functions", register, ring.header(auth.Client)), 200)
	a := e.must(e.do(http.MethodPost, "/v1/functions", register, ring.header(auth.Client)), 429)
	if obj, _ := a.json["error"].(map[string]any); a.header.Get("Retry-After") != "500" || obj["reason"] != reasonRate || obj["status"] != "RESOURCE_EXHAUSTED" {
		t.Errorf("Retry-After %q: %s", a.header.Get("Retry-After"), a.raw)
	}
	_, err := e.fabric.ExecuteBatch(ring.as(t.Context(), auth.Client), &treadlev1.ExecuteBatchRequest{})
	st := status.Convert(err)
	if st.Code() != codes.ResourceExhausted || infoOf(st).GetReason() != reasonRate || retryAfter(st) < 400*time.Second {
		t.Errorf("%v", err)
	}
	for _, d := range st.Details() {
		if _, ok := d.(*errdetails.ErrorInfo); ok {
			continue
		}
		if _, ok := d.(*errdetails.RetryInfo); !ok {
			t.Errorf("a detail of type %T", d)
		}
	}
	// Reading counts as well, pages that are no API calls among it; probes do not.
	for _, path := range []string{"/v1/functions/f", "/v1/tasks", "/metrics", "/openapi.json", "/"} {
		if a := e.must(e.do(http.MethodGet, path, nil, ring.header(auth.Client)), 429); a.header.Get("Retry-After") == "" {
			t.Errorf("%s says not when to come back", path)
		}
	}
	e.must(e.get("/healthz"), 200)
	e.must(e.do(http.MethodPost, "/v1/functions", register, ring.header(auth.Admin)), 200)
}

// TestCost: each kind of call at the edges of what it counts.
func TestCost(t *testing.T) {
	batch := func(n int) any { return &treadlev1.ExecuteBatchRequest{Requests: make([]*treadlev1.ExecuteRequest, n)} }
	page := func(n int32) any { return &treadlev1.ListTasksRequest{PageSize: n} }
	for _, c := range []struct {
		method string
		req    any
		want   int
	}{
		{treadlev1.FabricService_Execute_FullMethodName, &treadlev1.ExecuteRequest{}, 1},
		{treadlev1.FabricService_ExecuteBatch_FullMethodName, batch(0), 1},
		{treadlev1.FabricService_ExecuteBatch_FullMethodName, batch(3), 3},
		{treadlev1.FabricService_GetTask_FullMethodName, &treadlev1.GetTaskRequest{}, 1},
		{treadlev1.FabricService_CancelTask_FullMethodName, &treadlev1.CancelTaskRequest{}, 1},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(1), 1},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(99), 1},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(100), 2},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(0), 2},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(1000), 11},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(math.MaxInt32), 11},
		{treadlev1.FabricService_ListTasks_FullMethodName, page(-1), 1},
		{treadlev1.FabricService_AwaitResults_FullMethodName, nil, 0},
		{treadlev1.FabricService_WatchTask_FullMethodName, nil, 1},
		{treadlev1.WorkerService_Push_FullMethodName, nil, 0},
		{"GET /metrics", nil, 1},
		{"GET /healthz", nil, 0},
	} {
		rule, ok := auth.RuleOf(c.method)
		if got := cost(rule.Cost, c.req); !ok || got != c.want {
			t.Errorf("%s %v costs %d, want %d", c.method, c.req, got, c.want)
		}
	}
	for n, want := range map[int]int{0: 1, 99: 1, 100: 2, 10_000: 101} {
		if got := costOfIDs(n); got != want {
			t.Errorf("%d ids cost %d, want %d", n, got, want)
		}
	}
}

// TestAwaitedIDsCost: the ids of a wait are charged although they come after its headers.
func TestAwaitedIDsCost(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), func(c *Config) { c.RateLimit = 2 })
	ctx := ring.as(t.Context(), auth.Client)
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = task.ID(uuid.New()).String()
	}
	for _, want := range []codes.Code{codes.NotFound, codes.ResourceExhausted} { // the first leaves a debt
		stream, err := e.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: ids})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); status.Code(err) != want {
			t.Fatalf("%v, want %v", err, want)
		}
		if want == codes.ResourceExhausted && retryAfter(status.Convert(err)) < 40*time.Second {
			t.Errorf("101 units at 2 a second are paid off after %s", retryAfter(status.Convert(err)))
		}
	}
}
