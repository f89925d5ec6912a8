package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/task"
)

// fabric implements FabricService. Its methods read the request and say what is
// wrong with it; everything else is done by Server and the store. Errors are turned
// into statuses by the interceptors, in one place.
type fabric struct {
	treadlev1.UnimplementedFabricServiceServer
	s *Server
}

func (f fabric) RegisterFunction(ctx context.Context, req *treadlev1.RegisterFunctionRequest) (*treadlev1.Function, error) {
	fn, err := f.s.registerFunction(ctx, req)
	if err != nil {
		return nil, err
	}
	return functionProto(fn), nil
}

func (f fabric) GetFunction(ctx context.Context, req *treadlev1.GetFunctionRequest) (*treadlev1.Function, error) {
	fn, err := f.s.lookup(ctx, req.GetFunction())
	if err != nil {
		return nil, err
	}
	return functionProto(fn), nil
}

func (f fabric) DeleteFunction(ctx context.Context, req *treadlev1.DeleteFunctionRequest) (*treadlev1.DeleteFunctionResponse, error) {
	if err := f.s.deleteFunction(ctx, req.GetFunctionId()); err != nil {
		return nil, err
	}
	return &treadlev1.DeleteFunctionResponse{}, nil
}

func (f fabric) Execute(ctx context.Context, req *treadlev1.ExecuteRequest) (*treadlev1.Task, error) {
	return f.s.execute(ctx, req)
}

func (f fabric) ExecuteBatch(ctx context.Context, req *treadlev1.ExecuteBatchRequest) (*treadlev1.ExecuteBatchResponse, error) {
	return f.s.executeBatch(ctx, req.GetRequests())
}

func (f fabric) Call(ctx context.Context, req *treadlev1.CallRequest) (*treadlev1.TaskResult, error) {
	wait, err := waitOf("timeout", req.GetTimeout(), defaultCallWait)
	if err != nil {
		return nil, err
	}
	in := req.GetInput()
	item, err := f.s.submission(ctx, &treadlev1.ExecuteRequest{
		Function: req.GetFunction(), Args: in.GetArgs(), Kwargs: in.GetKwargs(), Options: in.GetOptions(), RequestId: in.GetRequestId(),
	}, make(map[string]task.Function, 1))
	if err != nil {
		return nil, err
	}
	m, err := f.s.call(ctx, item, wait)
	if err != nil {
		return nil, err
	}
	return forREST(ctx, task.EncodingJSON, m), nil
}

// forREST leaves the pickles of an exception out of an answer over REST to a caller who
// spoke JSON. The task's record has them.
func forREST(ctx context.Context, args task.Encoding, m *treadlev1.TaskResult) *treadlev1.TaskResult {
	if exchangeOf(ctx) != nil && args == task.EncodingJSON && m.GetError() != nil {
		m.Error.ExceptionPickle, m.Error.ForeignPickle = nil, nil
	}
	return m
}

func (f fabric) GetTask(ctx context.Context, req *treadlev1.GetTaskRequest) (*treadlev1.Task, error) {
	t, err := f.s.taskFor(ctx, req.GetTaskId())
	if err != nil {
		return nil, err
	}
	return taskProto(t), nil
}

func (f fabric) GetResult(ctx context.Context, req *treadlev1.GetResultRequest) (*treadlev1.TaskResult, error) {
	wait, err := waitOf("wait", req.GetWait(), 0)
	if err != nil {
		return nil, err
	}
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	if err := f.s.reach(ctx, id); err != nil {
		return nil, err
	}
	t, result, err := f.s.result(ctx, id, wait)
	if err != nil {
		return nil, err
	}
	return forREST(ctx, t.Args, resultProto(t, result)), nil
}

func (f fabric) AwaitResults(req *treadlev1.AwaitResultsRequest, stream grpc.ServerStreamingServer[treadlev1.AwaitResultsResponse]) error {
	if n := len(req.GetTaskIds()); n > maxBatch {
		return invalid("task_ids", "%d task ids: want at most %d", n, maxBatch)
	} else if err := f.s.guard.limits.charge(stream.Context(), costOfIDs(n)); err != nil {
		return err
	}
	ids := make([]task.ID, 0, len(req.GetTaskIds()))
	seen := make(map[task.ID]bool, len(req.GetTaskIds()))
	for _, text := range req.GetTaskIds() {
		id, err := taskID(text)
		if err != nil {
			return err
		}
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	if err := f.s.reach(stream.Context(), ids...); err != nil {
		return err
	}
	return f.s.awaitResults(stream.Context(), ids, stream.Send)
}

func (f fabric) WatchTask(req *treadlev1.WatchTaskRequest, stream grpc.ServerStreamingServer[treadlev1.Task]) error {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return err
	}
	if err := f.s.reach(stream.Context(), id); err != nil {
		return err
	}
	return f.s.watch(stream.Context(), id, stream.Send)
}

func (f fabric) CancelTask(ctx context.Context, req *treadlev1.CancelTaskRequest) (*treadlev1.Task, error) {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	if err := f.s.reach(ctx, id); err != nil {
		return nil, err
	}
	records, err := f.s.cfg.Store.Cancel(ctx, f.s.cfg.Now(), []task.ID{id}, req.GetOnlyQueued())
	if err != nil {
		return nil, err
	}
	if records[0] == nil {
		return nil, noTask(id.String())
	}
	return taskProto(records[0]), nil
}

func (f fabric) GetLogs(ctx context.Context, req *treadlev1.GetLogsRequest) (*treadlev1.TaskLogs, error) {
	attempt := int(req.GetAttempt())
	if attempt < 0 {
		return nil, invalid("attempt", "attempt %d: want a number from 1, or 0 for the latest", attempt)
	}
	t, err := f.s.taskFor(ctx, req.GetTaskId())
	if err != nil {
		return nil, err
	}
	if attempt > t.AttemptCount {
		return nil, task.Errorf(task.CodeNotFound, "", "task %s has no attempt %d: %d were started", t.ID, attempt, t.AttemptCount)
	}
	if attempt == 0 {
		attempt = t.AttemptCount
	}
	out := &treadlev1.TaskLogs{TaskId: t.ID.String(), Attempt: int32(attempt)}
	if attempt == 0 {
		return out, nil // nothing was started yet
	}
	b, err := f.s.cfg.Store.Log(ctx, t.ID, attempt)
	if err != nil {
		return nil, err
	}
	out.Text = text(string(b))
	return out, nil
}

func (f fabric) GetServerInfo(context.Context, *treadlev1.GetServerInfoRequest) (*treadlev1.ServerInfo, error) {
	return &treadlev1.ServerInfo{
		Version: f.s.cfg.Version, Durability: f.s.cfg.Store.Info().Durability,
		MaxPayload: int32(f.s.cfg.MaxPayload), Retention: durationpb.New(f.s.cfg.Retention),
	}, nil
}
