package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// startWhole is start with a dispatcher, and a worker that serves handlers over gRPC.
func startWhole(t *testing.T, mode link.Mode, handlers *worker.Handlers) *env {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	e := start(t, func(c *Config) {
		core, err := fabric.New(c.Core())
		if err != nil {
			t.Fatal(err)
		}
		c.Fabric = core
		d, err := dispatcher.New(dispatcher.Config{
			Modes: []link.Mode{mode}, Heartbeat: 200 * time.Millisecond, ID: task.ID(uuid.New()), NewID: func() task.ID { return task.ID(uuid.New()) },
			Registrar: core, Jitter: rand.Float64,
		}, c.Store)
		if err != nil {
			t.Fatal(err)
		}
		c.Dispatcher, c.Modes = d, []link.Mode{mode}
		go func() { ended <- d.Run(ctx) }()
	})
	go func() {
		ended <- worker.Serve(ctx, worker.Options{
			Dispatchers: []string{e.conn.Target()}, Mode: mode, Slots: 2, Handlers: handlers,
			DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("ended with %v", err)
			}
		}
	})
	return e
}

type badError struct{ text string }

func (b badError) Error() string { return b.text }

// Text that is not UTF-8, wherever a handler puts it, costs nobody the worker: the task ends
// as it would have with other text, and so do its neighbours.
func TestTextOfHandlersIsMadeValid(t *testing.T) {
	for _, mode := range []link.Mode{link.Push, link.Pull} {
		t.Run(string(mode), func(t *testing.T) {
			var h worker.Handlers
			worker.HandleIn(&h, "error", func(context.Context, int) (int, error) { return 0, errors.New("caf\xe9 is missing") })
			worker.HandleIn(&h, "panic", func(context.Context, int) (int, error) { panic("caf\xe9") })
			worker.HandleIn(&h, "result", func(context.Context, int) (string, error) { return "caf\xe9", nil })
			worker.HandleIn(&h, "log", func(ctx context.Context, n int) (int, error) {
				_, err := fmt.Fprintf(worker.Output(ctx), "caf\xe9 \xff\xfe")
				return n, err
			})
			worker.HandleIn(&h, "huge", func(context.Context, int) (int, error) {
				return 0, badError{strings.Repeat("x\xff", 1<<20)}
			})
			worker.HandleIn(&h, "fine", func(_ context.Context, n int) (int, error) { return n, nil })
			e := startWhole(t, mode, &h)
			for name, want := range map[string]treadlev1.Task_Status{
				"error": treadlev1.Task_FAILED, "panic": treadlev1.Task_FAILED, "huge": treadlev1.Task_FAILED,
				"result": treadlev1.Task_COMPLETED, "log": treadlev1.Task_COMPLETED, "fine": treadlev1.Task_COMPLETED,
			} {
				r := e.callHandler(name)
				if r.GetStatus() != want {
					t.Fatalf("%s is %s: %v", name, r.GetStatus(), r.GetError())
				}
				for _, text := range []string{r.GetError().GetMessage(), r.GetError().GetTraceback(), string(r.GetResult()), r.GetResultRepr()} {
					if !utf8.ValidString(text) {
						t.Errorf("%s: %.80q is not UTF-8", name, text)
					}
				}
				if name == "error" && (r.GetError().GetMessage() != "caf\uFFFD is missing" || r.GetError().GetErrorType() != string(task.ClassFunction)) {
					t.Errorf("the error reads %v", r.GetError())
				}
				if n := len(r.GetError().GetMessage()); n > task.MaxErrorText {
					t.Errorf("%s: a message of %d bytes is kept", name, n)
				}
			}
		})
	}
}

// callHandler calls a handler that its worker may not have registered yet.
func (e *env) callHandler(name string) *treadlev1.TaskResult {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	for {
		r, err := e.fabric.Call(ctx, &treadlev1.CallRequest{
			Function: name, Timeout: durationpb.New(20 * time.Second), Input: &treadlev1.CallInput{Args: []byte("[1]")},
		})
		if err == nil {
			return r
		}
		if c := status.Code(err); c != codes.NotFound || ctx.Err() != nil {
			e.t.Fatalf("%s: %v", name, err)
		}
	}
}

// What a dispatcher would not take of a worker's Hello ends the worker at its start, in words.
func TestHelloThatCannotBeSent(t *testing.T) {
	var h worker.Handlers
	worker.HandleIn(&h, "fine", func(_ context.Context, n int) (int, error) { return n, nil })
	func() {
		defer func() {
			if r := fmt.Sprint(recover()); !strings.Contains(r, `caf\xe9`) || !strings.Contains(r, "UTF-8") {
				t.Errorf("a handler's name that is not UTF-8: %v", r)
			}
		}()
		worker.HandleIn(&h, "caf\xe9", func(_ context.Context, n int) (int, error) { return n, nil })
	}()
	for want, o := range map[string]worker.Options{
		"name":  {Name: strings.Repeat("n", 257)},
		"UTF-8": {Queues: []string{"caf\xe9"}},
		"128":   {Queues: []string{strings.Repeat("q", 129)}},
		"1024":  {Queues: slices.Repeat([]string{"q"}, 1025)},
	} {
		o.Handlers, o.Dispatchers = &h, []string{"127.0.0.1:1"}
		if err := worker.Serve(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// A Hello over a limit is a good-bye for ever, of another frame one that is worth coming
// back after; both name the field and the limit.
func TestFramesOverTheirLimits(t *testing.T) {
	var h worker.Handlers
	worker.HandleIn(&h, "fine", func(_ context.Context, n int) (int, error) { return n, nil })
	e := startWhole(t, link.Push, &h)
	hello := &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Hello{Hello: &treadlev1.Hello{Version: 1, Worker: "w", Slots: 1}}}
	long := &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Hello{Hello: &treadlev1.Hello{Version: 1, Worker: "w", Slots: 1, Name: strings.Repeat("n", 60<<20)}}}
	bad := &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: &treadlev1.Outcomes{Items: []*treadlev1.Report{{End: "nonsense"}}}}}
	for name, tt := range map[string]struct {
		frames  []*treadlev1.WorkerFrame
		refused string
		retry   bool
	}{
		"hello": {[]*treadlev1.WorkerFrame{long}, "hello.name", false},
		"end":   {[]*treadlev1.WorkerFrame{hello, bad}, "outcomes.items[0].end", true},
	} {
		stream, err := treadlev1.NewWorkerServiceClient(e.conn).Push(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range tt.frames {
			if err := stream.Send(f); err != nil {
				t.Fatal(err)
			}
		}
		var bye *treadlev1.Bye
		for bye == nil {
			f, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: the stream ended without a good-bye: %v", name, err)
			}
			bye = f.GetBye()
		}
		if bye.GetRefused() != tt.refused || bye.GetRetry() != tt.retry || !strings.Contains(bye.GetReason(), tt.refused) {
			t.Errorf("%s: %v", name, bye)
		}
		_, err = stream.Recv()
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
}

// latin1 is a codec that does not know what UTF-8 is, as a client's might not.
type latin1 struct{}

func (latin1) Name() string                  { return "proto" }
func (latin1) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (latin1) Unmarshal([]byte, any) error   { return nil }

// Requests over a limit, or not UTF-8, are INVALID_ARGUMENT and name the field.
func TestRequestsOverTheirLimits(t *testing.T) {
	e := start(t)
	_, err := e.fabric.RegisterFunction(t.Context(), &treadlev1.RegisterFunctionRequest{Name: strings.Repeat("n", 1<<20), Source: "x"})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	if !strings.Contains(err.Error(), "name: 1048576 bytes: want at most") {
		t.Error(err)
	}
	_, err = e.fabric.ExecuteBatch(t.Context(), &treadlev1.ExecuteBatchRequest{Requests: make([]*treadlev1.ExecuteRequest, maxBatch+1)})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	raw := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("caf\xe9"))
	for method, stream := range map[string]bool{"RegisterFunction": false, "AwaitResults": true, "WatchTask": true} {
		s, err := e.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: stream}, "/treadle.v1.FabricService/"+method, grpc.ForceCodec(latin1{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(raw); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		err = s.RecvMsg(new([]byte))
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
		if !strings.Contains(err.Error(), "UTF-8 at byte 3") {
			t.Errorf("%s: %v", method, err)
		}
	}
	a := e.post("/v1/functions", map[string]any{"name": strings.Repeat("n", 1<<20), "source": "def f(): pass"})
	if e.must(a, 400); !strings.Contains(string(a.raw), "want at most") {
		t.Errorf("over REST: %s", a.raw)
	}
}
