package treadletest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// Error builds an error as Treadle's servers do, for interceptors that refuse calls.
func Error(code codes.Code, reason, format string, args ...any) error {
	s, err := status.Newf(code, format, args...).WithDetails(&errdetails.ErrorInfo{Domain: "treadle.dev", Reason: reason})
	if err != nil {
		return status.Errorf(codes.Internal, "%v", err)
	}
	return s.Err()
}

func invalid(format string, args ...any) error {
	return Error(codes.InvalidArgument, "INVALID_REQUEST", format, args...)
}

func notFound(kind, id string) error {
	return Error(codes.NotFound, "NOT_FOUND", "no %s %q", kind, id)
}

// RegisterFunction implements the API.
func (s *Server) RegisterFunction(
	_ context.Context, req *treadlev1.RegisterFunctionRequest,
) (*treadlev1.Function, error) {
	if req.GetName() == "" {
		return nil, invalid("name is empty")
	}
	if (len(req.GetPayload()) > 0) == (req.GetSource() != "") {
		return nil, invalid("exactly one of payload and source must be set")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := s.requests[req.GetRequestId()]; id != "" && req.GetRequestId() != "" && !req.GetTransient() {
		return s.function(id)
	}
	f := &treadlev1.Function{Name: req.GetName(), Runtime: req.GetRuntime(), Queue: req.GetQueue(), Form: "pickle", Python: req.GetPython()}
	code := req.GetPayload()
	if req.GetSource() != "" {
		f.Form, code = "source", []byte(req.GetSource())
	}
	if f.GetRuntime() == "" {
		f.Runtime = "python"
	}
	if f.GetQueue() == "" {
		f.Queue = "default"
	}
	sum := sha256.Sum256(code)
	f.PayloadSha256, f.PayloadSize = hex.EncodeToString(sum[:]), int32(len(code))
	if f.Transient = req.GetTransient(); f.GetTransient() {
		for _, known := range s.functions {
			if known.GetTransient() && known.GetName() == f.GetName() && known.GetQueue() == f.GetQueue() && known.GetForm() == f.GetForm() &&
				known.GetRuntime() == f.GetRuntime() && known.GetPython() == f.GetPython() && known.GetPayloadSha256() == f.GetPayloadSha256() {
				return known, nil
			}
		}
	}
	id := s.register(f)
	if req.GetRequestId() != "" && !f.GetTransient() {
		s.requests[req.GetRequestId()] = id
	}
	return f, nil
}

// DeleteFunction implements the API.
func (s *Server) DeleteFunction(_ context.Context, req *treadlev1.DeleteFunctionRequest) (*treadlev1.DeleteFunctionResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.function(canonical(req.GetFunctionId()))
	if err != nil {
		return nil, notFound("function", req.GetFunctionId())
	}
	unfinished := 0
	for _, r := range s.tasks {
		if r.task.GetFunctionId() == f.GetFunctionId() && r.task.GetFinishedAt() == nil {
			unfinished++
		}
	}
	if unfinished > 0 {
		return nil, Error(codes.FailedPrecondition, "FUNCTION_IN_USE", "function %s has %d unfinished tasks", f.GetFunctionId(), unfinished)
	}
	s.functions = slices.DeleteFunc(s.functions, func(known *treadlev1.Function) bool { return known == f })
	return &treadlev1.DeleteFunctionResponse{}, nil
}

// GetFunction implements the API.
func (s *Server) GetFunction(_ context.Context, req *treadlev1.GetFunctionRequest) (*treadlev1.Function, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.function(req.GetFunction())
}

// ListFunctions implements the API.
func (s *Server) ListFunctions(
	_ context.Context, req *treadlev1.ListFunctionsRequest,
) (*treadlev1.ListFunctionsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(s.functions)
	slices.Reverse(all)
	items, next, err := page(all, req.GetPageSize(), req.GetPageToken())
	return &treadlev1.ListFunctionsResponse{Functions: items, NextPageToken: next}, err
}

// page cuts one page out of a list; a token is the index of the first item.
func page[T any](all []T, size int32, token string) (items []T, next string, err error) {
	start := 0
	if token != "" {
		if start, err = strconv.Atoi(token); err != nil || start < 0 || start > len(all) {
			return nil, "", invalid("page_token %q is not one of this server", token)
		}
	}
	switch {
	case size < 0:
		return nil, "", invalid("page_size %d: want 1 to 1000, or 0 for 100", size)
	case size == 0:
		size = 100
	}
	items = all[start:]
	if n := int(min(size, 1000)); len(items) > n {
		items, next = items[:n], strconv.Itoa(start+n)
	}
	return items, next, nil
}

// Execute implements the API.
func (s *Server) Execute(_ context.Context, req *treadlev1.ExecuteRequest) (*treadlev1.Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.submit(req)
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(r.task), nil
}

// ExecuteBatch implements the API.
func (s *Server) ExecuteBatch(
	_ context.Context, req *treadlev1.ExecuteBatchRequest,
) (*treadlev1.ExecuteBatchResponse, error) {
	if len(req.GetRequests()) > 10_000 {
		return nil, invalid("%d requests, at most 10000", len(req.GetRequests()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &treadlev1.ExecuteBatchResponse{}
	for _, one := range req.GetRequests() {
		item := &treadlev1.ExecuteBatchItem{}
		if r, err := s.submit(one); err == nil {
			item.TaskId = r.task.GetTaskId()
		} else {
			st := status.Convert(err)
			item.Error = &treadlev1.ItemError{Code: int32(st.Code()), Message: st.Message()}
			for _, d := range st.Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					item.Error.Reason = info.GetReason()
				}
			}
		}
		resp.Items = append(resp.Items, item)
	}
	return resp, nil
}

// Call implements the API.
func (s *Server) Call(ctx context.Context, req *treadlev1.CallRequest) (*treadlev1.TaskResult, error) {
	in := req.GetInput()
	wait := 30 * time.Second
	if req.GetTimeout() != nil {
		wait = req.GetTimeout().AsDuration()
	}
	s.mu.Lock()
	r, err := s.submit(&treadlev1.ExecuteRequest{
		Function: req.GetFunction(), Args: in.GetArgs(), Kwargs: in.GetKwargs(), Options: in.GetOptions(),
		RequestId: in.GetRequestId(),
	})
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.await(ctx, r, wait)
}

// find returns a task's record.
func (s *Server) find(id string) (*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.tasks[canonical(id)]; r != nil {
		return r, nil
	}
	return nil, notFound("task", id)
}

// snapshot returns a copy of the record, its result, and what closes at the next change.
func (s *Server) snapshot(r *record) (*treadlev1.Task, *treadlev1.TaskResult, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.result != nil {
		return proto.CloneOf(r.task), r.result, r.changed
	}
	result := &treadlev1.TaskResult{TaskId: r.task.GetTaskId(), Status: r.task.GetStatus()}
	return proto.CloneOf(r.task), result, r.changed
}

// await returns the result, at the latest when wait is over.
func (s *Server) await(ctx context.Context, r *record, wait time.Duration) (*treadlev1.TaskResult, error) {
	timer := time.NewTimer(min(wait, 5*time.Minute))
	defer timer.Stop()
	for {
		t, result, changed := s.snapshot(r)
		if terminal(t.GetStatus()) {
			return result, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return result, nil
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-s.life.Done():
			return nil, Error(codes.Unavailable, "UNAVAILABLE", "the server stops")
		}
	}
}

// GetTask implements the API.
func (s *Server) GetTask(_ context.Context, req *treadlev1.GetTaskRequest) (*treadlev1.Task, error) {
	r, err := s.find(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	t, _, _ := s.snapshot(r)
	return t, nil
}

// GetResult implements the API.
func (s *Server) GetResult(ctx context.Context, req *treadlev1.GetResultRequest) (*treadlev1.TaskResult, error) {
	r, err := s.find(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	return s.await(ctx, r, req.GetWait().AsDuration())
}

// AwaitResults implements the API.
func (s *Server) AwaitResults(
	req *treadlev1.AwaitResultsRequest, stream treadlev1.FabricService_AwaitResultsServer,
) error {
	ids := req.GetTaskIds()
	if len(ids) > 10_000 {
		return invalid("%d ids, at most 10000", len(ids))
	}
	records := map[string]*record{}
	for _, id := range ids {
		r, err := s.find(id)
		if err != nil {
			return err
		}
		records[id] = r
	}
	ctx, cancel := context.WithCancel(stream.Context())
	results := make(chan *treadlev1.TaskResult)
	done := make(chan struct{})
	for _, r := range records {
		s.runs.Go(func() {
			if result, err := s.await(ctx, r, 5*time.Minute); err == nil && terminal(result.GetStatus()) {
				select {
				case results <- result:
				case <-done:
				}
			}
		})
	}
	defer cancel()
	defer close(done)
	for range records {
		select {
		case result := <-results:
			if err := stream.Send(&treadlev1.AwaitResultsResponse{Results: []*treadlev1.TaskResult{result}}); err != nil {
				return err
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.life.Done():
			return Error(codes.Unavailable, "UNAVAILABLE", "the server stops")
		}
	}
	return nil
}

// ListTasks implements the API.
func (s *Server) ListTasks(_ context.Context, req *treadlev1.ListTasksRequest) (*treadlev1.ListTasksResponse, error) {
	match, err := parseFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*treadlev1.Task
	for _, id := range slices.Backward(s.order) {
		if t := s.tasks[id].task; match(t) {
			m := proto.CloneOf(t)
			if e := m.GetError(); e != nil && req.GetView() != treadlev1.ListTasksRequest_FULL {
				e.Traceback, e.ExceptionPickle, e.ForeignPickle = "", nil, nil
			}
			all = append(all, m)
		}
	}
	items, next, err := page(all, req.GetPageSize(), req.GetPageToken())
	return &treadlev1.ListTasksResponse{Tasks: items, NextPageToken: next}, err
}

// parseFilter reads "a = x AND b = y" over status, function and worker.
func parseFilter(filter string) (func(*treadlev1.Task) bool, error) {
	var tests []func(*treadlev1.Task) bool
	if strings.TrimSpace(filter) != "" {
		for term := range strings.SplitSeq(filter, " AND ") {
			field, value, ok := strings.Cut(term, "=")
			field, value = strings.TrimSpace(field), strings.Trim(strings.TrimSpace(value), `"`)
			switch {
			case ok && field == "status":
				tests = append(tests, func(t *treadlev1.Task) bool { return t.GetStatus().String() == value })
			case ok && field == "function":
				tests = append(tests, func(t *treadlev1.Task) bool {
					return t.GetFunctionId() == value || t.GetFunctionName() == value
				})
			case ok && field == "worker":
				tests = append(tests, func(t *treadlev1.Task) bool { return t.GetWorker() == value })
			default:
				return nil, invalid("filter: %q is not understood", strings.TrimSpace(term))
			}
		}
	}
	return func(t *treadlev1.Task) bool {
		return !slices.ContainsFunc(tests, func(test func(*treadlev1.Task) bool) bool { return !test(t) })
	}, nil
}

// WatchTask implements the API.
func (s *Server) WatchTask(req *treadlev1.WatchTaskRequest, stream treadlev1.FabricService_WatchTaskServer) error {
	r, err := s.find(req.GetTaskId())
	if err != nil {
		return err
	}
	for {
		t, _, changed := s.snapshot(r)
		if err := stream.Send(t); err != nil || terminal(t.GetStatus()) {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.life.Done():
			return Error(codes.Unavailable, "UNAVAILABLE", "the server stops")
		}
	}
}

// CancelTask implements the API.
func (s *Server) CancelTask(_ context.Context, req *treadlev1.CancelTaskRequest) (*treadlev1.Task, error) {
	r, err := s.find(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	if t, _, _ := s.snapshot(r); req.GetOnlyQueued() && t.GetStatus() == treadlev1.Task_RUNNING {
		return t, nil
	}
	s.update(r, func(t *treadlev1.Task) {
		t.Status, t.FinishedAt = treadlev1.Task_CANCELLED, now()
		t.Error = &treadlev1.TaskError{ErrorType: "Cancelled", Message: "cancelled by a client", TaskId: t.GetTaskId()}
		r.result = &treadlev1.TaskResult{TaskId: t.GetTaskId(), Status: t.GetStatus(), Error: t.GetError()}
	})
	if r.stop != nil {
		r.stop()
	}
	t, _, _ := s.snapshot(r)
	return t, nil
}

// GetLogs implements the API.
func (s *Server) GetLogs(_ context.Context, req *treadlev1.GetLogsRequest) (*treadlev1.TaskLogs, error) {
	r, err := s.find(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	attempt := req.GetAttempt()
	if attempt == 0 {
		attempt = r.task.GetAttemptCount()
	}
	if attempt > r.task.GetAttemptCount() {
		return nil, notFound("attempt", fmt.Sprint(attempt))
	}
	return &treadlev1.TaskLogs{TaskId: r.task.GetTaskId(), Attempt: attempt, Text: r.log}, nil
}

// ListWorkers implements the API.
func (s *Server) ListWorkers(_ context.Context, req *treadlev1.ListWorkersRequest) (*treadlev1.ListWorkersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	items, next, err := page(s.workers, req.GetPageSize(), req.GetPageToken())
	return &treadlev1.ListWorkersResponse{Workers: items, NextPageToken: next}, err
}

// ListQueues implements the API.
func (s *Server) ListQueues(_ context.Context, req *treadlev1.ListQueuesRequest) (*treadlev1.ListQueuesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var queues []*treadlev1.Queue
	for _, id := range s.order {
		t := s.tasks[id].task
		if terminal(t.GetStatus()) {
			continue
		}
		i := slices.IndexFunc(queues, func(q *treadlev1.Queue) bool {
			return q.GetName() == t.GetQueue() && q.GetRuntime() == t.GetRuntime()
		})
		if i < 0 {
			i = len(queues)
			queues = append(queues, &treadlev1.Queue{Name: t.GetQueue(), Runtime: t.GetRuntime()})
		}
		if t.GetStatus() == treadlev1.Task_RUNNING {
			queues[i].Running++
		} else {
			queues[i].Queued++
		}
	}
	items, next, err := page(queues, req.GetPageSize(), req.GetPageToken())
	return &treadlev1.ListQueuesResponse{Queues: items, NextPageToken: next}, err
}

// GetServerInfo implements the API.
func (s *Server) GetServerInfo(context.Context, *treadlev1.GetServerInfoRequest) (*treadlev1.ServerInfo, error) {
	return &treadlev1.ServerInfo{
		Version: "treadletest", Durability: "memory", MaxPayload: 64 << 20, Retention: durationpb.New(24 * time.Hour),
	}, nil
}
