package embed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/clients/go/treadletest"
	"github.com/treadle-dev/treadle/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handlers are those of most tests.
func handlers() *worker.Handlers {
	var h worker.Handlers
	worker.HandleIn(&h, "double", func(_ context.Context, x int) (int, error) { return 2 * x, nil })
	return &h
}

// begin starts a fabric for as long as the test.
func begin(t *testing.T, o Options) *Fabric {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

// soon is the context of a test that must not wait for ever.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What a folder keeps is there after the end of the process: what was queued is run by the next
// one, and results stay.
func TestAFolderIsKept(t *testing.T) {
	ctx, dir := soon(t), t.TempDir()
	first := begin(t, Options{Dir: dir, Handlers: handlers(), Queues: []string{"elsewhere"}})
	id, err := first.Client().Execute(ctx, treadle.Request{Function: "double", Args: []any{21}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(ctx, Options{Dir: dir, Handlers: handlers(), Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("two fabrics share a folder")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := begin(t, Options{Dir: dir, Handlers: handlers()})
	res, err := second.Client().Result(ctx, id, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := treadle.Value[int](res); err != nil || v != 42 {
		t.Errorf("%v, %v, want 42", v, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	third := begin(t, Options{Dir: dir, Handlers: handlers()})
	if res, err = third.Client().Result(ctx, id, 0); err != nil || string(res.JSON) != "42" {
		t.Errorf("after another start: %+v, %v", res, err)
	}
}

// Other processes come by the addresses, and a handler submits children by its own.
func TestOthersReachIt(t *testing.T) {
	ctx := soon(t)
	h := handlers()
	worker.HandleIn(h, "parent", func(ctx context.Context, x int) (int, error) {
		api, err := worker.APIFrom(ctx)
		if err != nil {
			return 0, err
		}
		client, err := treadle.Dial(api.Address, treadle.WithToken(api.Token), treadle.WithCA(""))
		if err != nil {
			return 0, err
		}
		defer client.Close()
		return treadle.Call[int](ctx, client, "double", x)
	})
	f := begin(t, Options{Handlers: h, GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0"})
	other, err := treadle.Dial(f.GRPCAddr(), treadle.WithToken(""), treadle.WithCA(""))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if v, err := treadle.Call[int](ctx, other, "parent", 4); err != nil || v != 8 {
		t.Errorf("%v, %v, want 8", v, err)
	}
	children := 0
	for child, err := range f.Client().Tasks(ctx, "function = double") {
		if err != nil || child.ParentID == "" {
			t.Errorf("%+v, %v, want a child", child, err)
		}
		children++
	}
	if children != 1 {
		t.Errorf("%d children, want 1", children)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.HTTPAddr()+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/readyz answers %d", resp.StatusCode)
	}
}

// Close lets a handler that runs finish, and its result is kept.
func TestCloseDrains(t *testing.T) {
	ctx, dir := soon(t), t.TempDir()
	began, end := make(chan struct{}), make(chan struct{})
	var h worker.Handlers
	worker.HandleIn(&h, "slow", func(context.Context, int) (string, error) {
		close(began)
		<-end
		return "done", nil
	})
	f := begin(t, Options{Dir: dir, Handlers: &h})
	id, err := f.Client().Execute(ctx, treadle.Request{Function: "slow", Args: []any{1}})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	for { // until the worker is seen to drain: the client serves as long as a handler runs
		workers, err := f.Client().Workers(ctx)
		if err != nil || len(workers) != 1 {
			t.Fatalf("%+v, %v, want the worker of this process", workers, err)
		}
		if workers[0].State == "draining" {
			break
		}
	}
	close(end)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	again := begin(t, Options{Dir: dir, Handlers: handlers()})
	if res, err := again.Client().Result(ctx, id, 0); err != nil || string(res.JSON) != `"done"` {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := f.Client().Task(ctx, id); !errors.Is(err, treadle.ErrClosed) {
		t.Errorf("the client of a closed fabric: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"no handler":    {Handlers: &worker.Handlers{}},
		"all addresses": {Handlers: handlers(), GRPCAddr: ":0"},
		"another":       {Handlers: handlers(), HTTPAddr: "192.0.2.1:0"},
		"no port":       {Handlers: handlers(), GRPCAddr: "127.0.0.1"},
		"a payload":     {Handlers: handlers(), MaxPayload: 5},
		"slots":         {Handlers: handlers(), Slots: 1 << 20},
		"a queue":       {Handlers: handlers(), Queues: []string{""}},
		"a retention":   {Handlers: handlers(), Retention: -1},
	} {
		o.Logger = slog.New(slog.DiscardHandler)
		if f, err := Start(t.Context(), o); err == nil {
			t.Errorf("%s: started", name)
			f.Close()
		}
	}
}

// A part that ends by itself is told, and Close says why.
func TestAFailureIsTold(t *testing.T) {
	f := &Fabric{failed: make(chan struct{})}
	broken := errors.New("the disk is gone")
	f.run(func(ctx context.Context) error { <-ctx.Done(); return nil })
	f.run(func(context.Context) error { return broken })
	select {
	case <-f.Failed():
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was told")
	}
	if err := f.Close(); !errors.Is(err, broken) {
		t.Errorf("close: %v", err)
	}
}

// It is the whole fabric: attempts are retried, and end at their timeout.
func TestRetriesAndTimeouts(t *testing.T) {
	ctx := soon(t)
	var h worker.Handlers
	var runs atomic.Int64
	worker.HandleIn(&h, "second", func(context.Context, int) (int64, error) {
		if n := runs.Add(1); n < 2 {
			return 0, errors.New("not yet")
		}
		return runs.Load(), nil
	})
	worker.HandleIn(&h, "never", func(ctx context.Context, _ int) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	})
	f := begin(t, Options{Handlers: &h})
	res, err := f.Client().Run(ctx, treadle.Request{Function: "second", Args: []any{0}, Options: treadle.Options{FunctionRetries: new(1)}})
	if err != nil || string(res.JSON) != "2" {
		t.Errorf("%+v, %v, want the second attempt", res, err)
	}
	res, err = f.Client().Run(ctx, treadle.Request{Function: "never", Args: []any{0}, Options: treadle.Options{Timeout: 10 * time.Millisecond}})
	if err != nil || res.Error == nil || !strings.Contains(res.Error.Message, "timeout of 10ms") {
		t.Errorf("%+v, %v, want a task that failed at its timeout", res, err)
	}
}

// TestTheTwinAgrees runs one table of what a client sees against the fabric and against the
// stand-in of treadletest, which tests of clients use: they answer alike.
func TestTheTwinAgrees(t *testing.T) {
	ctx := soon(t)
	double := func(_ context.Context, x int) (int, error) { return 2 * x, nil }
	twin := treadletest.Start(t)
	treadletest.Handle(twin, "double", double)
	stand, err := treadle.Dial(twin.Addr(), treadle.WithToken(""), treadle.WithCA(""))
	if err != nil {
		t.Fatal(err)
	}
	defer stand.Close()
	for name, c := range map[string]*treadle.Client{"fabric": begin(t, Options{Handlers: handlers()}).Client(), "twin": stand} {
		t.Run(name, func(t *testing.T) {
			if v, err := treadle.Call[int](ctx, c, "double", 21); err != nil || v != 42 {
				t.Errorf("a call: %v, %v", v, err)
			}
			req := treadle.Request{Function: "double", Args: []any{1}, RequestID: "once"}
			first, err := c.Execute(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := c.Execute(ctx, req); err != nil || again != first {
				t.Errorf("a repeat: %s, %v, want %s", again, err, first)
			}
			res, err := c.Result(ctx, first, time.Minute)
			if err != nil || string(res.JSON) != "2" {
				t.Errorf("a result: %+v, %v", res, err)
			}
			unknown := "00000000-0000-4000-8000-0000000000ff"
			for what, got := range map[string]struct{ err, want error }{
				"a function nobody knows": {call(ctx, c, "nobody", 1), treadle.ErrNotFound},
				"a task nobody knows":     {second(c.Task(ctx, unknown)), treadle.ErrNotFound},
				"an argument of no use":   {call(ctx, c, "double", "text"), treadle.ErrTaskFailed},
				"a filter of no sense":    {listing(ctx, c, "status ~ QUEUED"), treadle.ErrInvalid},
				"a cancelled task":        {second(c.Cancel(ctx, unknown)), treadle.ErrNotFound},
			} {
				if !errors.Is(got.err, got.want) {
					t.Errorf("%s: %v, want %v", what, got.err, got.want)
				}
			}
			batch, err := c.ExecuteBatch(ctx, []treadle.Request{{Function: "double", Args: []any{3}}, {Function: "nobody"}})
			if err != nil || batch[0].Err != nil || !errors.Is(batch[1].Err, treadle.ErrNotFound) {
				t.Errorf("a batch: %+v, %v", batch, err)
			}
			cancelled, err := c.Cancel(ctx, first)
			if err != nil || fmt.Sprint(cancelled.Status) != "COMPLETED" {
				t.Errorf("cancelling what has ended: %+v, %v", cancelled, err)
			}
		})
	}
}

func call(ctx context.Context, c *treadle.Client, function string, arg any) error {
	_, err := treadle.Call[int](ctx, c, function, arg)
	return err
}

func second[T any](_ T, err error) error { return err }

func listing(ctx context.Context, c *treadle.Client, filter string) error {
	for _, err := range c.Tasks(ctx, filter) {
		return err
	}
	return nil
}

// TestTheManualRuns: the program that docs/embed.md begins with is the example of this package,
// which runs as a test.
func TestTheManualRuns(t *testing.T) {
	manual, err := os.ReadFile("../docs/embed.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, ok := strings.Cut(string(manual), "```go\n")
	code, _, closed := strings.Cut(code, "```")
	if !ok || !closed || strings.Count(code, "\n") < 15 {
		t.Fatalf("the manual does not begin with a program: %q", code)
	}
	for line := range strings.Lines(code) {
		line = strings.TrimSpace(line)
		if line != "package main" && line != "func main() {" && !strings.Contains(string(example), line) {
			t.Errorf("the example has no line %q", line)
		}
	}
}

// Without handlers of its own it serves workers of other processes.
func TestWorkersAttach(t *testing.T) {
	ctx := soon(t)
	f := begin(t, Options{Handlers: &worker.Handlers{}, GRPCAddr: "127.0.0.1:0"})
	working, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- worker.Serve(working, worker.Options{
			Dispatchers: []string{f.GRPCAddr()}, Handlers: handlers(), Slots: 1, Logger: slog.New(slog.DiscardHandler),
			DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		})
	}()
	for { // until the worker has registered its handlers
		if _, err := f.Client().Function(ctx, "double"); err == nil {
			break
		} else if !errors.Is(err, treadle.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if v, err := treadle.Call[int](ctx, f.Client(), "double", 3); err != nil || v != 6 {
		t.Errorf("%v, %v, want 6", v, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
