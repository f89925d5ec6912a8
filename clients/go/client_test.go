package treadle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/clients/go/treadletest"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func double(_ context.Context, args []json.RawMessage) (any, error) {
	var x int
	if err := json.Unmarshal(args[0], &x); err != nil {
		return nil, err
	}
	return 2 * x, nil
}

func broken(context.Context, []json.RawMessage) (any, error) { return nil, errors.New("it broke") }

// gate is a handler that runs until it is opened.
type gate struct {
	entered chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{make(chan struct{}, 10_000), make(chan struct{})} }

func (g *gate) handle(ctx context.Context, _ []json.RawMessage) (any, error) {
	g.entered <- struct{}{}
	select {
	case <-g.open:
		return "through", nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func dial(t *testing.T, srv *treadletest.Server, opts ...treadle.Option) *treadle.Client {
	t.Helper()
	c, err := treadle.Dial(srv.Addr(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func TestCall(t *testing.T) {
	srv := treadletest.Start(t)
	id := srv.Handle("double", double)
	srv.Handle("broken", broken)
	c := dial(t, srv)
	ctx := t.Context()

	for _, function := range []string{id, strings.ToUpper(id), "double"} {
		var got int
		if err := c.Call(ctx, function, &got, 21); err != nil || got != 42 {
			t.Errorf("Call(%q) = %d, %v", function, got, err)
		}
	}
	err := c.Call(ctx, "broken", nil)
	var failed *treadle.TaskError
	if !errors.Is(err, treadle.ErrTaskFailed) || !errors.As(err, &failed) || failed.Message != "it broke" ||
		failed.Type != "FunctionExecutionFailure" || failed.Traceback == "" || failed.TaskID == "" {
		t.Errorf("Call(broken) = %#v", err)
	}
	if err := c.Call(ctx, "nobody", nil); !errors.Is(err, treadle.ErrNotFound) || errors.Is(err, treadle.ErrInvalid) {
		t.Errorf("Call(nobody) = %v", err)
	}
	var text string
	if err := c.Call(ctx, "double", &text, 21); err == nil || !strings.Contains(err.Error(), "result") {
		t.Errorf("decoding 42 into a string = %v", err)
	}
	if err := c.Call(ctx, "double", nil, func() {}); !errors.Is(err, treadle.ErrInvalid) {
		t.Errorf("an argument that is no JSON = %v", err)
	}
}

func TestBigIntegersSurvive(t *testing.T) {
	srv := treadletest.Start(t)
	srv.Handle("echo", func(_ context.Context, args []json.RawMessage) (any, error) { return args[0], nil })
	c := dial(t, srv)
	const big = "123456789012345678901234567890"
	r, err := c.Run(t.Context(), treadle.Request{Function: "echo", Args: []any{json.RawMessage(big)}})
	if err != nil || string(r.JSON) != big {
		t.Fatalf("%s, %v", r.JSON, err)
	}
}

func TestRegister(t *testing.T) {
	srv := treadletest.Start(t)
	c := dial(t, srv)
	ctx := t.Context()
	fn, err := c.RegisterSource(ctx, "double", "def double(x): return 2 * x")
	if err != nil {
		t.Fatal(err)
	}
	if fn.Name != "double" || fn.Runtime != "python" || fn.Form != "source" || fn.Queue != "default" ||
		len(fn.PayloadSHA256) != 64 || fn.CreatedAt.IsZero() {
		t.Errorf("%+v", fn)
	}
	again, err := c.RegisterSource(ctx, "double", "def double(x): return 2 * x")
	if err != nil || again.ID == fn.ID {
		t.Errorf("the second registration has id %v, %v", again, err)
	}
	newest, err := c.Function(ctx, "double")
	if err != nil || newest.ID != again.ID {
		t.Errorf("the name means %v, %v; want the newest", newest, err)
	}
	reg := treadle.Registration{Name: "f", Payload: []byte{0x80, 4, 'N', '.'}, RequestID: "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"}
	one, err1 := c.Register(ctx, reg)
	two, err2 := c.Register(ctx, reg)
	if err := errors.Join(err1, err2); err != nil || one.ID != two.ID || one.Form != "pickle" {
		t.Errorf("the same request id gave %v and %v, %v", one, two, err)
	}
	if _, err := c.Register(ctx, treadle.Registration{Name: "f"}); !errors.Is(err, treadle.ErrInvalid) {
		t.Errorf("nothing to register = %v", err)
	}
}

func TestListsArePaged(t *testing.T) {
	srv := treadletest.Start(t)
	c := dial(t, srv)
	ctx := t.Context()
	for i := range 250 {
		if _, err := c.RegisterSource(ctx, fmt.Sprintf("f%d", i), "def f(): pass"); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for fn, err := range c.Functions(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fn.Name)
	}
	if len(names) != 250 || names[0] != "f249" || names[249] != "f0" {
		t.Errorf("%d names from %q to %q", len(names), names[0], names[len(names)-1])
	}
	if n := srv.Calls("ListFunctions"); n != 3 {
		t.Errorf("%d pages, want 3", n)
	}
	for range c.Functions(ctx) {
		break
	}
	if n := srv.Calls("ListFunctions"); n != 4 {
		t.Errorf("a sequence that is left early asked for %d pages, want 1", n-3)
	}
	if _, err := c.Execute(ctx, treadle.Request{Function: "f7"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Execute(ctx, treadle.Request{Function: "f8"}); err != nil {
		t.Fatal(err)
	}
	var tasks []*treadle.Task
	for task, err := range c.Tasks(ctx, "status = QUEUED AND function = f7") {
		if err != nil {
			t.Fatal(err)
		}
		tasks = append(tasks, task)
	}
	if len(tasks) != 1 || tasks[0].FunctionName != "f7" {
		t.Errorf("%v", tasks)
	}
	for _, err := range c.Tasks(ctx, "colour = red") {
		if !errors.Is(err, treadle.ErrInvalid) {
			t.Errorf("a bad filter = %v", err)
		}
	}
}

func TestResultWaits(t *testing.T) {
	srv := treadletest.Start(t)
	g := newGate()
	srv.Handle("gate", g.handle)
	c := dial(t, srv)
	ctx := t.Context()
	id, err := c.Execute(ctx, treadle.Request{Function: "gate"})
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	r, err := c.Result(ctx, id, 0)
	if err != nil || r.Status != treadle.Running || !errors.Is(r.Decode(nil), treadle.ErrUnfinished) {
		t.Errorf("Result without a wait = %+v, %v", r, err)
	}
	if r, err = c.Result(ctx, id, time.Millisecond); err != nil || r.Status != treadle.Running {
		t.Errorf("Result with a short wait = %+v, %v", r, err)
	}
	close(g.open)
	var text string
	if r, err = c.Result(ctx, id, -1); err != nil || r.Decode(&text) != nil || text != "through" {
		t.Errorf("Result = %+v, %v", r, err)
	}
	if _, err := c.Result(ctx, "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", 0); !errors.Is(err, treadle.ErrNotFound) {
		t.Errorf("Result of an unknown task = %v", err)
	}
}

func TestCallWhoseContextEndsNamesTheTask(t *testing.T) {
	srv := treadletest.Start(t)
	g := newGate()
	srv.Handle("gate", g.handle)
	c := dial(t, srv)
	// Long enough for a busy machine to record the task, and to say so before the end.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := c.Run(ctx, treadle.Request{Function: "gate"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	for task := range c.Tasks(t.Context(), "") {
		if !strings.Contains(err.Error(), task.ID) {
			t.Errorf("%q does not name the task %s", err, task.ID)
		}
	}
}

func TestWatchAndCancel(t *testing.T) {
	srv := treadletest.Start(t)
	g := newGate()
	srv.Handle("gate", g.handle)
	c := dial(t, srv)
	ctx := t.Context()
	id, err := c.Execute(ctx, treadle.Request{Function: "gate", Options: treadle.Options{Priority: new(9)}})
	if err != nil {
		t.Fatal(err)
	}
	<-g.entered
	var seen []treadle.Status
	for task, err := range c.Watch(ctx, id) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, task.Status)
		if task.Status == treadle.Running {
			if *task.Options.Priority != 9 || task.Priority != 9 {
				t.Errorf("%+v", task)
			}
			if task, err := c.CancelQueued(ctx, id); err != nil || task.Status != treadle.Running {
				t.Fatalf("one that runs is left alone: %v, %v", task, err)
			}
			if _, err := c.Cancel(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.Equal(seen, []treadle.Status{treadle.Running, treadle.Cancelled}) {
		t.Errorf("seen %v", seen)
	}
	r, err := c.Result(ctx, id, 0)
	if err != nil || !errors.Is(r.Err(), treadle.ErrTaskCancelled) || errors.Is(r.Err(), treadle.ErrTaskFailed) {
		t.Errorf("%+v, %v", r, err)
	}
	if task, err := c.Cancel(ctx, id); err != nil || task.Status != treadle.Cancelled {
		t.Errorf("cancelling twice = %v, %v", task, err)
	}
	srv.Log(id, "hello\n")
	if logs, err := c.Logs(ctx, id, 0); err != nil || logs.Text != "hello\n" || logs.Attempt != 1 {
		t.Errorf("%+v, %v", logs, err)
	}
}

func TestBatchAndAwait(t *testing.T) {
	srv := treadletest.Start(t)
	srv.Handle("double", double)
	c := dial(t, srv)
	ctx := t.Context()
	requests := make([]treadle.Request, 25_000) // three parts
	for i := range requests {
		requests[i] = treadle.Request{Function: "double", Args: []any{i}}
	}
	requests[7].Function = "nobody"
	subs, err := c.ExecuteBatch(ctx, requests)
	if err != nil || len(subs) != len(requests) {
		t.Fatalf("%d answers, %v", len(subs), err)
	}
	want := map[string]int{}
	var ids []string
	for i, s := range subs {
		if i == 7 {
			if !errors.Is(s.Err, treadle.ErrNotFound) || s.TaskID != "" {
				t.Errorf("the bad item = %+v", s)
			}
			continue
		}
		want[s.TaskID] = 2 * i
		ids = append(ids, s.TaskID)
	}
	for r, err := range c.Await(ctx, ids) {
		if err != nil {
			t.Fatal(err)
		}
		var got int
		if err := r.Decode(&got); err != nil || got != want[r.TaskID] {
			t.Fatalf("%s = %d, %v; want %d", r.TaskID, got, err, want[r.TaskID])
		}
		delete(want, r.TaskID)
	}
	if len(want) != 0 {
		t.Errorf("%d results are missing", len(want))
	}
	if n := srv.Calls("ExecuteBatch"); n != 3 {
		t.Errorf("%d batches, want 3", n)
	}
}

// TestConcurrentCallersTravelTogether holds the first batches back, as a busy server
// does, and sees that all who call meanwhile go with a few more.
func TestConcurrentCallersTravelTogether(t *testing.T) {
	const callers = 512
	hold := make(chan struct{})
	var flying, sent atomic.Int32
	srv := treadletest.Start(t, grpc.UnaryInterceptor(func(
		ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
	) (any, error) {
		if batch, ok := req.(*treadlev1.ExecuteBatchRequest); ok {
			flying.Add(1)
			sent.Add(int32(len(batch.GetRequests())))
			<-hold
		}
		return next(ctx, req)
	}))
	srv.Handle("double", double)
	c := dial(t, srv)
	ids := make([]string, callers)
	var wg sync.WaitGroup
	var calling atomic.Int32
	for i := range ids {
		wg.Go(func() {
			calling.Add(1)
			id, err := c.Execute(t.Context(), treadle.Request{Function: "double", Args: []any{i}})
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
			ids[i] = id
		})
	}
	// The first call may carry all requests, or a few may go with what came first.
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	waitFor(t, func() bool { return flying.Load() > 0 && calling.Load() == callers })
	release()
	wg.Wait()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != callers {
		t.Error("two callers have one task")
	}
	if sent.Load() != callers {
		t.Errorf("%d requests were sent, want %d", sent.Load(), callers)
	}
	if n := srv.Calls("ExecuteBatch"); n > callers/8 {
		t.Errorf("%d callers needed %d requests", callers, n)
	} else {
		t.Logf("%d callers rode %d requests", callers, n)
	}
}

// TestCrowdOfRuns has far more callers than streams, for tasks that last.
func TestCrowdOfRuns(t *testing.T) {
	const callers = 2000
	srv := treadletest.Start(t)
	g := newGate()
	srv.Handle("gate", g.handle)
	srv.Handle("double", double)
	c := dial(t, srv)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			var text string
			if err := c.Call(t.Context(), "gate", &text); err != nil || text != "through" {
				t.Errorf("caller %d: %q, %v", i, text, err)
			}
		})
	}
	for range callers {
		<-g.entered
	}
	// All slots for requests of one's own and all streams are taken: short calls
	// still come through, while those wait.
	for i := range 40 {
		var got int
		if err := c.Call(t.Context(), "double", &got, i); err != nil || got != 2*i {
			t.Errorf("double(%d) = %d, %v", i, got, err)
		}
	}
	close(g.open)
	wg.Wait()
	if n := srv.Calls("Call") + srv.Calls("ExecuteBatch"); n > callers/2 {
		t.Errorf("%d callers needed %d requests", callers, n)
	}
}

func TestLeavingTheQueue(t *testing.T) {
	hold := make(chan struct{})
	var flying, sent atomic.Int32
	srv := treadletest.Start(t, grpc.UnaryInterceptor(func(
		ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
	) (any, error) {
		if batch, ok := req.(*treadlev1.ExecuteBatchRequest); ok {
			flying.Add(1)
			sent.Add(int32(len(batch.GetRequests())))
			<-hold
		}
		return next(ctx, req)
	}))
	srv.Handle("double", double)
	c := dial(t, srv)
	var wg sync.WaitGroup
	for i := range int32(4) {
		wg.Go(func() {
			if _, err := c.Execute(t.Context(), treadle.Request{Function: "double", Args: []any{1}}); err != nil {
				t.Error(err)
			}
		})
		waitFor(t, func() bool { return flying.Load() == i+1 })
	}
	// The fifth finds no free call; it leaves the queue and is never sent.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Execute(ctx, treadle.Request{Function: "double", Args: []any{1}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("leaving = %v", err)
	}
	close(hold)
	wg.Wait()
	if _, err := c.Execute(t.Context(), treadle.Request{Function: "double", Args: []any{1}}); err != nil {
		t.Error(err)
	}
	if sent.Load() != 5 {
		t.Errorf("%d requests were sent, want 5", sent.Load())
	}
}

func TestOwnMetadataMakesAnOwnRequest(t *testing.T) {
	srv := treadletest.Start(t)
	srv.Handle("double", double)
	c := dial(t, srv)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-trace", "1")
	if _, err := c.Execute(ctx, treadle.Request{Function: "double", Args: []any{1}}); err != nil {
		t.Fatal(err)
	}
	if srv.Calls("Execute") != 1 || srv.Calls("ExecuteBatch") != 0 {
		t.Error("the request travelled without its metadata")
	}
}

// flaky makes every method fail with UNAVAILABLE after it was carried out, for the
// first calls of each: the answer is lost, the effect is not.
type flaky struct {
	mu   sync.Mutex
	seen map[string]int
	fail int
}

func (f *flaky) lose(method string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen[method]++; f.seen[method] <= f.fail {
		return treadletest.Error(codes.Unavailable, "UNAVAILABLE", "the answer is lost")
	}
	return nil
}

func (f *flaky) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if lost := f.lose(info.FullMethod); lost != nil {
		return nil, lost
	}
	return resp, err
}

func (f *flaky) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if lost := f.lose(info.FullMethod); lost != nil {
		return lost
	}
	return next(srv, ss)
}

func TestLostAnswersAreRetriedUnderOneRequestID(t *testing.T) {
	f := &flaky{seen: map[string]int{}, fail: 2}
	srv := treadletest.Start(t, grpc.UnaryInterceptor(f.unary), grpc.StreamInterceptor(f.stream))
	srv.Handle("double", double)
	c := dial(t, srv)
	ctx := t.Context()
	if _, err := c.RegisterSource(ctx, "one", "def one(): return 1"); err != nil {
		t.Fatal(err)
	}
	id, err := c.Execute(ctx, treadle.Request{Function: "double", Args: []any{1}})
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if err := c.Call(ctx, "double", &got, 4); err != nil || got != 8 {
		t.Errorf("Call = %d, %v", got, err)
	}
	for r, err := range c.Await(ctx, []string{strings.ToUpper(id)}) {
		if err != nil || r.TaskID != id {
			t.Errorf("Await = %v, %v", r, err)
		}
	}
	for task, err := range c.Watch(ctx, id) {
		if err != nil || task.Status != treadle.Completed {
			t.Errorf("Watch = %v, %v", task, err)
		}
	}
	tasks, functions := 0, 0
	for _, err := range c.Tasks(ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		tasks++
	}
	for _, err := range c.Functions(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		functions++
	}
	if tasks != 2 || functions != 2 {
		t.Errorf("%d tasks and %d functions were recorded, want 2 and 2", tasks, functions)
	}
}

func TestNoServer(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	for name, opt := range map[string]treadle.Option{
		"fail fast": treadle.WithFailFast(), "no retry": treadle.WithRetry(0), "short": treadle.WithRetry(time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := treadle.Dial(addr, opt)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := c.Info(t.Context()); !errors.Is(err, treadle.ErrUnavailable) {
				t.Errorf("Info = %v", err)
			}
			if _, err := c.Execute(t.Context(), treadle.Request{Function: "f"}); !errors.Is(err, treadle.ErrUnavailable) {
				t.Errorf("Execute = %v", err)
			}
			for _, err := range c.Await(t.Context(), []string{"0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"}) {
				if !errors.Is(err, treadle.ErrUnavailable) {
					t.Errorf("Await = %v", err)
				}
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		c, err := treadle.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := c.Info(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Info = %v", err)
		}
	})
}

func TestClose(t *testing.T) {
	srv := treadletest.Start(t)
	g := newGate()
	srv.Handle("gate", g.handle)
	c, err := treadle.Dial(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 { // some in requests of their own, the others on shared streams
		wg.Go(func() {
			if _, err := c.Run(context.Background(), treadle.Request{Function: "gate"}); !errors.Is(err, treadle.ErrClosed) {
				t.Errorf("a call that Close ended = %v", err)
			}
		})
	}
	for range 50 {
		<-g.entered
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, err := c.Execute(context.Background(), treadle.Request{Function: "gate"}); !errors.Is(err, treadle.ErrClosed) {
		t.Errorf("Execute after Close = %v", err)
	}
}

func TestToken(t *testing.T) {
	var got atomic.Value
	srv := treadletest.Start(t, grpc.UnaryInterceptor(func(
		ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler,
	) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		got.Store(strings.Join(md.Get("authorization"), ","))
		return next(ctx, req)
	}))
	t.Setenv(treadle.EnvToken, "from-env")
	t.Setenv(treadle.EnvAddress, srv.Addr())
	c, err := treadle.Dial("")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Info(t.Context()); err != nil || got.Load() != "Bearer from-env" {
		t.Errorf("the server saw %q, %v", got.Load(), err)
	}
	other := dial(t, srv, treadle.WithToken(""))
	if _, err := other.Info(t.Context()); err != nil || got.Load() != "" {
		t.Errorf("the server saw %q, %v", got.Load(), err)
	}
	for address, want := range map[string]bool{
		"example.org:50051": false, "192.0.2.1:1": false, "127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true,
		"unix:/run/treadle": true, "dns:///localhost:1": true, "localhost.example.org:1": false,
	} {
		c, err := treadle.Dial(address)
		if (err == nil) != want {
			t.Errorf("a token in the clear to %s: %v", address, err)
		}
		if c != nil {
			_ = c.Close()
		}
	}
}

func TestErrorKinds(t *testing.T) {
	kinds := map[string]error{
		"invalid": treadle.ErrInvalid, "not found": treadle.ErrNotFound, "conflict": treadle.ErrConflict,
		"state": treadle.ErrState, "too large": treadle.ErrTooLarge, "exhausted": treadle.ErrExhausted,
		"unavailable": treadle.ErrUnavailable, "unauthenticated": treadle.ErrUnauthenticated, "denied": treadle.ErrDenied,
	}
	for want, e := range map[string]*treadle.Error{
		"invalid":         {Code: codes.InvalidArgument},
		"not found":       {Code: codes.NotFound},
		"conflict":        {Code: codes.AlreadyExists},
		"state":           {Code: codes.FailedPrecondition},
		"too large":       {Code: codes.ResourceExhausted, Reason: "TOO_LARGE"},
		"exhausted":       {Code: codes.ResourceExhausted, Reason: "EXHAUSTED"},
		"unavailable":     {Code: codes.Unavailable},
		"unauthenticated": {Code: codes.Unauthenticated},
		"denied":          {Code: codes.PermissionDenied},
	} {
		for name, kind := range kinds {
			if errors.Is(e, kind) != (name == want) {
				t.Errorf("%+v is %s: %v", e, name, errors.Is(e, kind))
			}
		}
	}
	err := error(&treadle.Error{Op: "Execute", Code: codes.NotFound, Reason: "NOT_FOUND", Message: "no function"})
	if err.Error() != "Execute: no function (NOT_FOUND)" {
		t.Errorf("%q", err)
	}
}

// waitFor waits until cond holds, for conditions inside the server that nothing
// announces.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition never came true")
		}
	}
}

func TestCAFile(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{empty: "no certificate in PEM", empty + "x": "no such file"} {
		t.Setenv(treadle.EnvCA, file)
		if _, err := treadle.Dial("127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), treadle.EnvCA) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	c, err := treadle.Dial("example.org:1", treadle.WithToken("t"), treadle.WithCA("system"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := treadle.Dial("example.org:1", treadle.WithToken("t"), treadle.WithCA("")); err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("%v", err)
	}
}
