package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// service implements FabricService. Its methods turn requests into calls of the fabric, and
// what that answers into messages. Errors are turned into statuses by the interceptors, in one
// place.
type service struct {
	treadlev1.UnimplementedFabricServiceServer
	s *Server
}

// maxBatch bounds the items of ExecuteBatch and the ids of AwaitResults.
const maxBatch = 10_000

// callerOf is who makes a call, as the fabric sees it: everybody is nobody in particular where
// no tokens are asked for.
func callerOf(ctx context.Context) fabric.Caller {
	switch p, ok := auth.From(ctx); {
	case !ok || p.ID == auth.Local.ID:
		return fabric.Caller{}
	case p.Role == auth.Task:
		return fabric.Caller{Owner: p.Owner, Task: p.Task, Deadline: p.Deadline}
	default:
		return fabric.Caller{Owner: p.ID}
	}
}

func (f service) RegisterFunction(ctx context.Context, req *treadlev1.RegisterFunctionRequest) (*treadlev1.Function, error) {
	fn, err := f.s.core.Register(ctx, callerOf(ctx), fabric.Registration{
		Name: req.GetName(), Queue: req.GetQueue(), Runtime: req.GetRuntime(), Pickle: req.GetPayload(), Source: req.GetSource(),
		Python: req.GetPython(), RequestID: req.GetRequestId(), Transient: req.GetTransient(),
	})
	if err != nil {
		return nil, err
	}
	return functionProto(fn), nil
}

func (f service) GetFunction(ctx context.Context, req *treadlev1.GetFunctionRequest) (*treadlev1.Function, error) {
	fn, err := f.s.core.Function(ctx, req.GetFunction())
	if err != nil {
		return nil, err
	}
	return functionProto(fn), nil
}

func (f service) DeleteFunction(ctx context.Context, req *treadlev1.DeleteFunctionRequest) (*treadlev1.DeleteFunctionResponse, error) {
	if err := f.s.core.DeleteFunction(ctx, req.GetFunctionId()); err != nil {
		return nil, err
	}
	return &treadlev1.DeleteFunctionResponse{}, nil
}

// submissionOf reads what is to be executed.
func submissionOf(req *treadlev1.ExecuteRequest) (fabric.Submission, error) {
	options, err := optionsOf(req.GetOptions())
	return fabric.Submission{
		Function: req.GetFunction(), Args: req.GetArgs(), Kwargs: req.GetKwargs(), Pickle: req.GetPayload(), Options: options,
		RequestID: req.GetRequestId(),
	}, err
}

func (f service) Execute(ctx context.Context, req *treadlev1.ExecuteRequest) (*treadlev1.Task, error) {
	submission, err := submissionOf(req)
	if err != nil {
		return nil, err
	}
	t, err := f.s.core.Submit(ctx, callerOf(ctx), &submission)
	if err != nil {
		return nil, err
	}
	return taskProto(t), nil
}

func (f service) ExecuteBatch(ctx context.Context, req *treadlev1.ExecuteBatchRequest) (*treadlev1.ExecuteBatchResponse, error) {
	reqs := req.GetRequests()
	if len(reqs) > maxBatch {
		return nil, invalid("requests", "%d requests in one batch: want at most %d", len(reqs), maxBatch)
	}
	out := &treadlev1.ExecuteBatchResponse{Items: make([]*treadlev1.ExecuteBatchItem, len(reqs))}
	batch := f.s.core.NewBatch(callerOf(ctx), len(reqs))
	places := make([]int, 0, len(reqs))
	for i, req := range reqs {
		submission, err := submissionOf(req)
		if err == nil {
			err = batch.Add(ctx, &submission)
		}
		if err != nil {
			if code := task.CodeOf(err); code == task.CodeUnknown || code == task.CodeUnavailable {
				return nil, err // the store's trouble, not the item's
			}
			out.Items[i] = &treadlev1.ExecuteBatchItem{Error: f.s.itemError(ctx, err)}
			continue
		}
		places = append(places, i)
	}
	answers, err := batch.Submit(ctx)
	if err != nil {
		return nil, err
	}
	for k, a := range answers {
		item := &treadlev1.ExecuteBatchItem{}
		if a.Err != nil {
			item.Error = f.s.itemError(ctx, a.Err)
		} else {
			item.TaskId = a.ID.String()
		}
		out.Items[places[k]] = item
	}
	return out, nil
}

// itemError describes an error inside a batch by the same table as a call's.
func (s *Server) itemError(ctx context.Context, err error) *treadlev1.ItemError {
	st, _ := status.FromError(toStatus(ctx, s.log, "ExecuteBatch item", err))
	item := &treadlev1.ItemError{Code: int32(st.Code()), Message: st.Message()}
	if info := infoOf(st); info != nil {
		item.Reason = info.GetReason()
	}
	return item
}

// waitOf reads how long a call waits.
func waitOf(field string, d *durationpb.Duration, def time.Duration) (time.Duration, error) {
	if d == nil {
		return def, nil
	}
	v := d.AsDuration()
	if err := d.CheckValid(); err != nil || v < 0 || v > fabric.MaxWait {
		return 0, invalid(field, "%s is %v: want 0s to %v", field, v, fabric.MaxWait)
	}
	return v, nil
}

func (f service) Call(ctx context.Context, req *treadlev1.CallRequest) (*treadlev1.TaskResult, error) {
	wait, err := waitOf("timeout", req.GetTimeout(), fabric.DefaultCallWait)
	if err != nil {
		return nil, err
	}
	in := req.GetInput()
	options, err := optionsOf(in.GetOptions())
	if err != nil {
		return nil, err
	}
	t, result, err := f.s.core.Call(ctx, callerOf(ctx), f.s.reader(ctx), &fabric.Submission{
		Function: req.GetFunction(), Args: in.GetArgs(), Kwargs: in.GetKwargs(), Options: options, RequestID: in.GetRequestId(),
	}, wait)
	if err != nil {
		return nil, err
	}
	return forREST(ctx, task.EncodingJSON, resultProto(t, result)), nil
}

// forREST leaves the pickles of an exception out of an answer over REST to a caller who
// spoke JSON. The task's record has them.
func forREST(ctx context.Context, args task.Encoding, m *treadlev1.TaskResult) *treadlev1.TaskResult {
	if exchangeOf(ctx) != nil && args == task.EncodingJSON && m.GetError() != nil {
		m.Error.ExceptionPickle, m.Error.ForeignPickle = nil, nil
	}
	return m
}

func (f service) GetTask(ctx context.Context, req *treadlev1.GetTaskRequest) (*treadlev1.Task, error) {
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	t, err := f.s.core.Task(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return taskProto(t), nil
}

func (f service) GetResult(ctx context.Context, req *treadlev1.GetResultRequest) (*treadlev1.TaskResult, error) {
	wait, err := waitOf("wait", req.GetWait(), 0)
	if err != nil {
		return nil, err
	}
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	t, result, err := f.s.core.Await(ctx, callerOf(ctx), f.s.reader(ctx), id, wait)
	if err != nil {
		return nil, err
	}
	return forREST(ctx, t.Args, resultProto(t, result)), nil
}

func (f service) AwaitResults(req *treadlev1.AwaitResultsRequest, stream grpc.ServerStreamingServer[treadlev1.AwaitResultsResponse]) error {
	ctx := stream.Context()
	if n := len(req.GetTaskIds()); n > maxBatch {
		return invalid("task_ids", "%d task ids: want at most %d", n, maxBatch)
	} else if err := f.s.guard.limits.charge(ctx, costOfIDs(n)); err != nil {
		return err
	}
	ids := make([]task.ID, 0, len(req.GetTaskIds()))
	seen := make(map[task.ID]bool, len(req.GetTaskIds()))
	for _, text := range req.GetTaskIds() {
		id, err := fabric.TaskID(text)
		if err != nil {
			return err
		}
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return f.s.core.AwaitAll(ctx, callerOf(ctx), &resultStream{
		ResultReader: f.s.reader(ctx), held: holdingOf(ctx), send: stream.Send, out: &treadlev1.AwaitResultsResponse{},
	}, ids)
}

// Bounds of one message of AwaitResults. A larger result travels alone.
const (
	maxResultsPerMessage = 256
	maxBytesPerMessage   = 1 << 20
)

// resultStream sends results, many in one message where they are small.
type resultStream struct {
	fabric.ResultReader
	held *holding
	send func(*treadlev1.AwaitResultsResponse) error
	out  *treadlev1.AwaitResultsResponse
	size int
}

// Result reads a result that may be large. What is held goes first: a wait for room never has
// some of it.
func (r *resultStream) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	if r.held.forAnswer() > 0 {
		if err := r.Flush(); err != nil {
			return nil, nil, err
		}
	}
	return r.ResultReader.Result(ctx, id)
}

func (r *resultStream) Add(t *task.Task, result []byte) error {
	m := resultProto(t, result)
	n := proto.Size(m)
	if r.size+n > maxBytesPerMessage || len(r.out.Results) == maxResultsPerMessage {
		if err := r.Flush(); err != nil {
			return err
		}
	}
	r.out.Results, r.size = append(r.out.Results, m), r.size+n
	return nil
}

func (r *resultStream) Flush() error {
	if len(r.out.Results) == 0 {
		return nil
	}
	err := r.send(r.out)
	r.out, r.size = &treadlev1.AwaitResultsResponse{}, 0
	r.held.dropAnswer()
	return err
}

func (f service) WatchTask(req *treadlev1.WatchTaskRequest, stream grpc.ServerStreamingServer[treadlev1.Task]) error {
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return err
	}
	return f.s.core.Watch(stream.Context(), callerOf(stream.Context()), id, func(t *task.Task) error { return stream.Send(taskProto(t)) })
}

func (f service) CancelTask(ctx context.Context, req *treadlev1.CancelTaskRequest) (*treadlev1.Task, error) {
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	t, err := f.s.core.Cancel(ctx, callerOf(ctx), id, req.GetOnlyQueued())
	if err != nil {
		return nil, err
	}
	return taskProto(t), nil
}

func (f service) GetLogs(ctx context.Context, req *treadlev1.GetLogsRequest) (*treadlev1.TaskLogs, error) {
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	log, attempt, err := f.s.core.Log(ctx, callerOf(ctx), id, int(req.GetAttempt()))
	if err != nil {
		return nil, err
	}
	return &treadlev1.TaskLogs{TaskId: id.String(), Attempt: int32(attempt), Text: text(string(log))}, nil
}

func (f service) GetServerInfo(context.Context, *treadlev1.GetServerInfoRequest) (*treadlev1.ServerInfo, error) {
	return &treadlev1.ServerInfo{
		Version: f.s.cfg.Version, Durability: f.s.cfg.Store.Info().Durability,
		MaxPayload: int32(f.s.cfg.MaxPayload), Retention: durationpb.New(f.s.cfg.Retention),
	}, nil
}
