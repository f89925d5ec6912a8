// Package treadletest is a Treadle server in memory for the tests of programs that
// use clients/go: it listens on a loopback port and runs functions that the test
// gives it in Go, in goroutines of the test's own process.
//
//	srv := treadletest.Start(t)
//	treadletest.Handle(srv, "double", func(_ context.Context, x int) (int, error) { return 2 * x, nil })
//	client, err := treadle.Dial(srv.Addr())
//
// [Handle] takes the typed functions that worker.Handle takes, so that a test runs the very
// handlers of a worker.
//
// It keeps the contract that a client can see: ids, statuses, request ids, waits,
// batches answered item by item, paging, filters, and errors with their reasons. It
// has no durability, queues, retries or timeouts, and reads no pickles: a function
// without a handler is registered all right, and its tasks stay QUEUED, as they do
// on a server without workers.
package treadletest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// maxMessage is that of clients/go.
const maxMessage = 2*(900<<20) + 1<<20

// Handler runs one task. Its arguments are the positional ones; a value is encoded
// by encoding/json, and an error fails the task as FunctionExecutionFailure.
type Handler func(ctx context.Context, args []json.RawMessage) (any, error)

// Handle makes s run f for the functions named name, with the rules of worker.Handle: a call
// with one positional argument passes it as In, one with keyword arguments only passes them as
// one object, and one without arguments passes the zero value. It returns the function's id.
func Handle[In, Out any](s *Server, name string, f func(ctx context.Context, in In) (Out, error)) string {
	return s.Handle(name, func(ctx context.Context, args []json.RawMessage) (any, error) {
		var in In
		switch {
		case len(args) > 1:
			return nil, fmt.Errorf("a Go handler takes one positional argument or keyword arguments; this call has %d", len(args))
		case len(args) == 1:
			if err := json.Unmarshal(args[0], &in); err != nil {
				return nil, fmt.Errorf("the argument does not fit %T: %w", in, err)
			}
		}
		return f(ctx, in)
	})
}

// Server is the server. All methods may be called by any goroutine.
type Server struct {
	treadlev1.UnimplementedFabricServiceServer

	grpc *grpc.Server
	addr string
	life context.Context
	runs sync.WaitGroup

	mu        sync.Mutex
	handlers  map[string]Handler
	functions []*treadlev1.Function // oldest first
	requests  map[string]string     // request id to function or task id
	tasks     map[string]*record
	order     []string // task ids, oldest first
	workers   []*treadlev1.Worker
	calls     map[string]int
}

// record is a task with what the API does not show as part of it.
type record struct {
	task   *treadlev1.Task
	args   []json.RawMessage
	pickle bool
	result *treadlev1.TaskResult
	log    string
	stop   context.CancelFunc
	// changed is closed and replaced at each change of the status.
	changed chan struct{}
}

// Start runs a server until the test and its cleanups are over. Options are those
// of grpc.NewServer, for example an interceptor that makes calls fail.
func Start(t testing.TB, opts ...grpc.ServerOption) *Server {
	t.Helper()
	s, stop, err := New(opts...)
	if err != nil {
		t.Fatalf("treadletest: %v", err)
	}
	t.Cleanup(stop)
	return s
}

// New is [Start] for programs that are no tests. The function returned stops the
// server and waits for the handlers.
func New(opts ...grpc.ServerOption) (*Server, func(), error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	s := &Server{
		addr: lis.Addr().String(), handlers: map[string]Handler{}, requests: map[string]string{},
		tasks: map[string]*record{}, calls: map[string]int{},
	}
	opts = append(opts, grpc.WaitForHandlers(true), grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(s.countUnary),
		grpc.ChainStreamInterceptor(s.countStream))
	s.grpc = grpc.NewServer(opts...)
	treadlev1.RegisterFabricServiceServer(s.grpc, s)
	var end context.CancelFunc
	s.life, end = context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		// Serve returns nil after Stop, and there is nobody to tell before.
		if err := s.grpc.Serve(lis); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			panic(err)
		}
	})
	return s, func() {
		end()
		s.grpc.Stop()
		serving.Wait()
		s.runs.Wait()
	}, nil
}

// Addr is the address to dial.
func (s *Server) Addr() string { return s.addr }

// Handle registers a function that runs h, and gives the functions of that name
// that are registered later the same handler. It returns the function's id.
func (s *Server) Handle(name string, h Handler) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[name] = h
	return s.register(&treadlev1.Function{Name: name, Runtime: "go/" + name, Queue: "default", Form: "none"})
}

// SetWorkers sets what ListWorkers answers.
func (s *Server) SetWorkers(workers ...*treadlev1.Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workers = workers
}

// Log appends to what the task has printed.
func (s *Server) Log(taskID, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.tasks[taskID]; r != nil {
		r.log += text
	}
}

// Calls returns how often a method was called, for example "ExecuteBatch".
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls["/treadle.v1.FabricService/"+method]
}

func (s *Server) count(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
}

func (s *Server) countUnary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	s.count(info.FullMethod)
	return next(ctx, req)
}

func (s *Server) countStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	s.count(info.FullMethod)
	return next(srv, ss)
}

// register adds a function under the lock and returns its id.
func (s *Server) register(f *treadlev1.Function) string {
	f.FunctionId, f.CreatedAt = newID(), now()
	s.functions = append(s.functions, f)
	return f.GetFunctionId()
}

// function finds a registration by id, or the newest one of a name, under the lock.
func (s *Server) function(idOrName string) (*treadlev1.Function, error) {
	id := canonical(idOrName)
	for i := len(s.functions) - 1; i >= 0; i-- {
		f := s.functions[i]
		if f.GetFunctionId() == id || id == "" && f.GetName() == idOrName {
			return f, nil
		}
	}
	return nil, notFound("function", idOrName)
}

// submit records a task under the lock and starts it where there is a handler.
func (s *Server) submit(req *treadlev1.ExecuteRequest) (*record, error) {
	if r := s.tasks[s.requests[req.GetRequestId()]]; r != nil && req.GetRequestId() != "" {
		return r, nil
	}
	f, err := s.function(req.GetFunction())
	if err != nil {
		return nil, err
	}
	if p := req.GetOptions().GetPriority(); p < 0 || p > 9 {
		return nil, invalid("priority %d is not from 0 to 9", p)
	}
	r := &record{pickle: req.GetPayload() != nil, changed: make(chan struct{})}
	if !r.pickle {
		if r.args, err = arguments(req); err != nil {
			return nil, err
		}
	}
	priority := int32(5)
	if req.GetOptions() != nil && req.Options.Priority != nil {
		priority = req.GetOptions().GetPriority()
	}
	r.task = &treadlev1.Task{
		TaskId: newID(), FunctionId: f.GetFunctionId(), FunctionName: f.GetName(), Queue: f.GetQueue(),
		Runtime: f.GetRuntime(), Status: treadlev1.Task_QUEUED, Priority: priority, CreatedAt: now(),
		ArgsSize: int32(len(req.GetArgs()) + len(req.GetKwargs()) + len(req.GetPayload())), Options: req.GetOptions(),
	}
	id := r.task.GetTaskId()
	s.tasks[id] = r
	s.order = append(s.order, id)
	if req.GetRequestId() != "" {
		s.requests[req.GetRequestId()] = id
	}
	if h := s.handlers[f.GetName()]; h != nil && !r.pickle {
		var ctx context.Context
		ctx, r.stop = context.WithCancel(s.life)
		s.runs.Go(func() { s.run(ctx, r, h) })
	}
	return r, nil
}

// run is one attempt.
func (s *Server) run(ctx context.Context, r *record, h Handler) {
	defer r.stop()
	started := s.update(r, func(t *treadlev1.Task) {
		t.Status, t.StartedAt, t.Worker, t.AttemptCount = treadlev1.Task_RUNNING, now(), "treadletest", 1
		t.Attempts = []*treadlev1.Attempt{{Number: 1, Worker: t.GetWorker(), StartedAt: t.GetStartedAt()}}
	})
	if !started {
		return
	}
	value, err := h(ctx, r.args)
	var text []byte
	if err == nil {
		text, err = json.Marshal(value)
	}
	s.update(r, func(t *treadlev1.Task) {
		r.result = &treadlev1.TaskResult{TaskId: t.GetTaskId()}
		end := "succeeded"
		if err == nil {
			t.Status, t.ResultSize, r.result.Result = treadlev1.Task_COMPLETED, int32(len(text)), text
		} else {
			end = "raised"
			t.Status = treadlev1.Task_FAILED
			t.Error = &treadlev1.TaskError{
				ErrorType: "FunctionExecutionFailure", ExceptionType: fmt.Sprintf("%T", err), Message: err.Error(),
				Traceback: fmt.Sprintf("handler %q: %v\n", t.GetFunctionName(), err),
				TaskId:    t.GetTaskId(), WorkerId: t.GetWorker(),
			}
			r.result.Error = t.GetError()
		}
		t.FinishedAt = now()
		t.Attempts[0].End, t.Attempts[0].FinishedAt = end, t.GetFinishedAt()
		r.result.Status = t.GetStatus()
	})
}

// update changes an unfinished task and tells who waits; a finished one stays as it is.
func (s *Server) update(r *record, change func(*treadlev1.Task)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if terminal(r.task.GetStatus()) {
		return false
	}
	change(r.task)
	close(r.changed)
	r.changed = make(chan struct{})
	return true
}

// arguments reads the JSON array of a request. Keyword arguments follow as one object.
func arguments(req *treadlev1.ExecuteRequest) ([]json.RawMessage, error) {
	var args []json.RawMessage
	if len(req.GetArgs()) > 0 {
		if err := json.Unmarshal(req.GetArgs(), &args); err != nil {
			return nil, invalid("args is not a JSON array: %v", err)
		}
	}
	if len(req.GetKwargs()) > 0 {
		var kwargs map[string]json.RawMessage
		if err := json.Unmarshal(req.GetKwargs(), &kwargs); err != nil {
			return nil, invalid("kwargs is not a JSON object: %v", err)
		}
		args = append(args, req.GetKwargs())
	}
	return args, nil
}

func terminal(s treadlev1.Task_Status) bool { return s >= treadlev1.Task_COMPLETED }

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// canonical returns the lower-case form of a UUID, "" for other text.
func canonical(text string) string {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return ""
	}
	return id.String()
}

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }
