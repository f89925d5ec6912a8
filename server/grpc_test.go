package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHealthAndReflection(t *testing.T) {
	down := make(chan struct{})
	e := start(t, func(c *Config) { c.Store = downStore{c.Store, down}; c.SafetyNet = 5 * time.Millisecond })
	ctx := t.Context()
	h := healthpb.NewHealthClient(e.conn)
	for _, name := range []string{"", "treadle.v1.FabricService", "treadle.v1.RootService", "treadle.v1.WorkerService"} {
		if res, err := h.Check(ctx, &healthpb.HealthCheckRequest{Service: name}); err != nil || res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v, %v", name, res, err)
		}
	}
	if _, err := h.Check(ctx, &healthpb.HealthCheckRequest{Service: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown service: %v", err)
	}
	watch, err := h.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		if res, err := watch.Recv(); err != nil || res.GetStatus() != want {
			t.Fatalf("watched %v, %v, want %v", res, err, want)
		}
		if want == healthpb.HealthCheckResponse_SERVING {
			close(down)
		}
	}
	stream, err := reflectionpb.NewServerReflectionClient(e.conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	res, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range res.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{"treadle.v1.FabricService", "treadle.v1.RootService", "treadle.v1.WorkerService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("reflection lists %v without %s", names, want)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("reflection ends with %v", err)
	}
}

func TestMessageLimits(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxPayload = 1 << 20 })
	ctx := t.Context()
	e.source("f")
	if _, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Payload: bigPickle(1 << 20)}); err != nil {
		t.Errorf("the limit itself: %v", err)
	}
	_, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Payload: bigPickle(1<<20 + 1)})
	wantCode(t, err, codes.ResourceExhausted, "TOO_LARGE")
	if !strings.Contains(err.Error(), "1048577") || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("size and limit are not named: %v", err)
	}
	_, err = e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Source: strings.Repeat("#", 1<<20+1)})
	wantCode(t, err, codes.ResourceExhausted, "TOO_LARGE")
	_, err = e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Args: []byte(`["` + strings.Repeat("x", 1<<20) + `"]`)})
	wantCode(t, err, codes.ResourceExhausted, "TOO_LARGE")
}

func TestErrorsOfGRPCItself(t *testing.T) {
	e := start(t, func(c *Config) { c.Store = brokenStore{c.Store} })
	_, err := e.fabric.ListQueues(t.Context(), &treadlev1.ListQueuesRequest{})
	wantCode(t, err, codes.Internal, "INTERNAL")
	_, err = e.fabric.ListWorkers(t.Context(), &treadlev1.ListWorkersRequest{})
	wantCode(t, err, codes.Internal, "INTERNAL")
	for in, want := range map[error]struct {
		code   codes.Code
		reason string
	}{
		context.Canceled:                         {codes.Canceled, "CALL_CANCELLED"},
		context.DeadlineExceeded:                 {codes.DeadlineExceeded, "CALL_TIMED_OUT"},
		status.Error(codes.Unavailable, "x"):     {codes.Unavailable, "UNAVAILABLE"},
		status.Error(codes.Unimplemented, "x"):   {codes.Unimplemented, "NOT_SERVED"},
		status.Error(codes.InvalidArgument, "x"): {codes.InvalidArgument, "INVALID_REQUEST"},
		errors.New("x"):                          {codes.Internal, "INTERNAL"},
	} {
		wantCode(t, toStatus(t.Context(), e.srv.log, "m", in), want.code, want.reason)
	}
	if toStatus(t.Context(), e.srv.log, "m", nil) != nil {
		t.Error("no error becomes one")
	}
	for _, method := range []string{"/treadle.v1.FabricService/Nothing", "/nobody.Service/GetTask"} {
		err := e.conn.Invoke(t.Context(), method, &treadlev1.GetTaskRequest{}, &treadlev1.Task{})
		wantCode(t, err, codes.Unimplemented, "NOT_SERVED")
		if !strings.Contains(status.Convert(err).Message(), method) {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// docs/errors.md shows the table as it is.
func TestErrorTableIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for code, row := range errorTable {
		if line := fmt.Sprintf("| `%s` | %s | %d |", row.reason, canonicalCode(row.grpc), row.http); !strings.Contains(string(doc), line) {
			t.Errorf("docs/errors.md lacks %s for %v", line, code)
		}
	}
	for reason, code := range httpByReason {
		if !strings.Contains(string(doc), "`"+reason+"`") || !strings.Contains(string(doc), fmt.Sprint(code)) {
			t.Errorf("docs/errors.md lacks %s, %d", reason, code)
		}
	}
	for _, reason := range []string{reasonMethod, reasonRoute, reasonHost, reasonOrigin, reasonBusy, reasonSlowBody, reasonEncoding} {
		if !strings.Contains(string(doc), "`"+reason+"`") {
			t.Errorf("docs/errors.md lacks %s", reason)
		}
	}
}

// sessions plays the dispatcher.
type sessions struct{ modes chan link.Mode }

func (s sessions) Attach(_ context.Context, conn link.Conn, mode link.Mode) error {
	f, err := conn.Recv()
	if err != nil {
		return err
	}
	if _, ok := f.(*link.Hello); ok {
		s.modes <- mode
	}
	if err := conn.Send(&link.Bye{Reason: "enough"}); err != nil {
		return err
	}
	for err == nil { // until the worker hangs up: the end of the RPC would overtake the Bye
		_, err = conn.Recv()
	}
	return nil
}

// listener is a dispatcher that hears one frame.
type listener struct{}

func (listener) Attach(_ context.Context, conn link.Conn, _ link.Mode) error {
	_, err := conn.Recv()
	return err
}

func TestAttach(t *testing.T) {
	s := sessions{make(chan link.Mode, 1)}
	e := start(t, func(c *Config) { c.Dispatcher = s; c.Modes = []link.Mode{link.Push} })
	client := treadlev1.NewWorkerServiceClient(e.conn)
	stream, err := client.Push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Hello{Hello: &treadlev1.Hello{Version: link.Version, Worker: "w"}}}); err != nil {
		t.Fatal(err)
	}
	if mode := <-s.modes; mode != link.Push {
		t.Errorf("mode %s", mode)
	}
	if f, err := stream.Recv(); err != nil || f.GetBye().GetReason() != "enough" {
		t.Errorf("%v, %v", f, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("the stream ends with %v", err)
	}
	pull, err := client.Pull(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = pull.Recv()
	wantCode(t, err, codes.FailedPrecondition, "ILLEGAL_STATE")
	// A frame of no kind: what is wrong is the worker's doing.
	real := start(t, func(c *Config) { c.Dispatcher = listener{}; c.Modes = []link.Mode{link.Push} })
	malformed, err := treadlev1.NewWorkerServiceClient(real.conn).Push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := malformed.Send(&treadlev1.WorkerFrame{}); err != nil {
		t.Fatal(err)
	}
	bye, err := malformed.Recv()
	if err != nil || bye.GetBye().GetRefused() != "frame" || !bye.GetBye().GetRetry() {
		t.Errorf("the first word is %v, %v: want a good-bye that says what is refused", bye, err)
	}
	_, err = malformed.Recv()
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	without := start(t)
	push, err := treadlev1.NewWorkerServiceClient(without.conn).Push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = push.Recv()
	wantCode(t, err, codes.FailedPrecondition, "ILLEGAL_STATE")
}

func TestWorkersOnly(t *testing.T) {
	e := start(t, func(c *Config) { c.Dispatcher = sessions{make(chan link.Mode, 1)}; c.WorkersOnly = true })
	_, err := e.fabric.ListQueues(t.Context(), &treadlev1.ListQueuesRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("the API answers %v", err)
	}
	e.must(e.get("/v1/queues"), 404)
	e.must(e.get("/healthz"), 200)
	e.must(e.get("/metrics"), 200)
}
