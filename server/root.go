package server

import (
	"context"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/pickle"
	"github.com/treadle-dev/treadle/task"
)

// root implements RootService, the four routes at the root of the REST API. Base64
// and the wrapping of results in pickles live here and nowhere else. docs/rest.md is
// its contract.
type root struct {
	treadlev1.UnimplementedRootServiceServer
	s *Server
}

// Words by which FastAPI names faults of a request; existing clients know them.
const (
	kindMissing = "missing"
	kindUUID    = "uuid_parsing"
	kindTooLong = "string_too_long"
)

// required lists the fields that are absent.
func required(fields ...struct {
	name  string
	value *string
}) error {
	var v invalidRequest
	for _, f := range fields {
		if f.value == nil {
			v = append(v, violation{f.name, kindMissing, "Field required"})
		}
	}
	if len(v) > 0 {
		return v
	}
	return nil
}

type rootField = struct {
	name  string
	value *string
}

func (r root) RegisterRoot(ctx context.Context, req *treadlev1.RegisterRootRequest) (*treadlev1.RegisterRootResponse, error) {
	if err := required(rootField{"name", req.Name}, rootField{"payload", req.Payload}); err != nil {
		return nil, err
	}
	payload, err := r.payload(req.GetPayload())
	req.Payload = nil // it has been read, and may have 90 MB
	if err != nil {
		return nil, err
	}
	f, err := r.s.core.Register(ctx, callerOf(ctx), fabric.Registration{Name: req.GetName(), AnyName: true, Pickle: payload})
	if err != nil {
		return nil, err
	}
	return &treadlev1.RegisterRootResponse{FunctionId: f.ID.String()}, nil
}

func (r root) ExecuteRoot(ctx context.Context, req *treadlev1.ExecuteRootRequest) (*treadlev1.ExecuteRootResponse, error) {
	if err := required(rootField{"function_id", req.FunctionId}, rootField{"payload", req.Payload}); err != nil {
		return nil, err
	}
	id, err := task.ParseID(req.GetFunctionId())
	if err != nil {
		return nil, invalidRequest{{"function_id", kindUUID, "Input should be a valid UUID: " + err.Error()}}
	}
	// Known functions first: what is no function is not worth a look at its arguments.
	if _, err := r.s.core.Function(ctx, id.String()); err != nil {
		return nil, err
	}
	args, err := r.payload(req.GetPayload())
	req.Payload = nil // it has been read, and may have 90 MB
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return nil, fabric.CheckPickle(args) // these routes know no other arguments
	}
	t, err := r.s.core.Submit(ctx, callerOf(ctx), &fabric.Submission{Function: id.String(), Pickle: args})
	if err != nil {
		return nil, err
	}
	return &treadlev1.ExecuteRootResponse{TaskId: t.ID.String()}, nil
}

// payload decodes base64 text and checks its size.
func (r root) payload(encoded string) ([]byte, error) {
	b, err := pickle.DecodeBase64(encoded)
	if err != nil {
		e := task.Errorf(task.CodeInvalidPayload, "", "payload: %w", err)
		e.Field = "payload"
		return nil, e
	}
	return b, r.s.core.CheckSize("payload", len(b))
}

func (r root) GetRootStatus(ctx context.Context, req *treadlev1.GetRootStatusRequest) (*treadlev1.GetRootStatusResponse, error) {
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	t, err := r.s.core.Task(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return &treadlev1.GetRootStatusResponse{TaskId: t.ID.String(), Status: string(t.Status)}, nil
}

func (r root) GetRootResult(ctx context.Context, req *treadlev1.GetRootResultRequest) (*treadlev1.GetRootResultResponse, error) {
	id, err := fabric.TaskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	t, result, err := r.s.core.Await(ctx, callerOf(ctx), r.s.reader(ctx), id, 0)
	if err != nil {
		return nil, err
	}
	out := &treadlev1.GetRootResultResponse{TaskId: t.ID.String(), Status: string(t.Status)}
	switch {
	case t.Status == task.Completed:
		encoded, err := completedResult(t, result, r.s.cfg.RESTCompat)
		if err != nil {
			return nil, err
		}
		if ex := exchangeOf(ctx); ex != nil && len(encoded.Value) >= largeValue {
			ex.result = &encoded // too large to be text first: it is written as it is encoded
			return out, nil
		}
		out.Result = encoded.String()
	case t.Status.Terminal():
		out.Result, out.Error = failedResult(t, r.s.cfg.RESTCompat), rootError(t)
	default:
		out.Result = "the task is " + string(t.Status) + ": ask again"
	}
	return out, nil
}

// completedResult is the value as text: S(value), in seed mode S(S(value)).
func completedResult(t *task.Task, result []byte, compat RESTCompat) (pickle.Encoded, error) {
	value := result
	if t.ResultEncoding == task.EncodingJSON || len(result) == 0 {
		if len(result) == 0 {
			result = []byte("null")
		}
		var err error
		if value, err = pickle.JSON(result); err != nil {
			return pickle.Encoded{}, task.Errorf(task.CodeState, "", "the result of task %s has no form at this route, read it at /v1/tasks/%s/result: %w", t.ID, t.ID, err)
		}
	}
	if compat == CompatSeed {
		return pickle.Encoded{Value: value, Wraps: 1}, nil
	}
	return pickle.Encoded{Value: value}, nil
}

// rootError is a failure in plain JSON.
func rootError(t *task.Task) *treadlev1.RootError {
	f := failureOf(t)
	return &treadlev1.RootError{
		ErrorType: string(f.Class), ExceptionType: text(f.Type), Message: task.ClipText(summary(f), task.MaxErrorText), Traceback: text(f.Traceback),
		TaskId: t.ID.String(), WorkerId: f.Worker,
	}
}

// failureOf returns why a task ended badly, never nil.
func failureOf(t *task.Task) *task.Failure {
	if t.Failure != nil {
		return t.Failure
	}
	return &task.Failure{Class: task.ClassFunction, Message: "no reason was recorded"}
}

// summary is the last line of a traceback: class and text of the exception, or the reason.
func summary(f *task.Failure) string {
	if f.Type == "" {
		return text(f.Message)
	}
	if f.Message == "" {
		return text(f.Type)
	}
	return text(f.Type + ": " + f.Message)
}

// standIn is the class of Python's builtins that stands for a failure where the
// original exception is not at hand.
var standIn = map[task.Class]string{
	task.ClassFunction:      "RuntimeError",
	task.ClassWorker:        "RuntimeError",
	task.ClassDeadline:      "TimeoutError",
	task.ClassResource:      "MemoryError",
	task.ClassSerialization: "ValueError",
	task.ClassCancelled:     "RuntimeError",
}

// failedResult is what a reader with Python gets of a failed or cancelled task: the
// exception object, S(exception). In seed mode it is a dict, wrapped as the original
// services did: three times when the worker made it, twice when the service did.
func failedResult(t *task.Task, compat RESTCompat) string {
	f := failureOf(t)
	message := summary(f)
	if f.Class != task.ClassFunction {
		message = string(f.Class) + ": " + message // there is no exception whose name says what it is
	}
	if f.Traceback != "" {
		message = task.ClipText(message+"\n"+text(f.Traceback), task.MaxErrorText)
	}
	if compat == CompatSeed {
		dict := []pickle.Attr{
			{Name: "status", Value: string(t.Status)}, {Name: "error_type", Value: string(f.Class)}, {Name: "message", Value: message},
			{Name: "task_id", Value: t.ID.String()}, {Name: "traceback", Value: text(f.Traceback)},
		}
		if f.Class != task.ClassFunction {
			dict = append(dict, pickle.Attr{Name: "worker_id", Value: f.Worker})
			return pickle.Encoded{Value: pickle.Dict(dict), Wraps: 1}.String()
		}
		return pickle.Encoded{Value: pickle.Dict(dict), Wraps: 2}.String()
	}
	if len(f.Pickle) > 0 {
		return pickle.Base64(f.Pickle)
	}
	class, ok := standIn[f.Class]
	if !ok {
		class = "RuntimeError"
	}
	return pickle.Base64(pickle.Exception(class, string(f.Class)+": "+summary(f), []pickle.Attr{
		{Name: "status", Value: string(t.Status)}, {Name: "error_type", Value: string(f.Class)}, {Name: "message", Value: message},
		{Name: "traceback", Value: text(f.Traceback)}, {Name: "task_id", Value: t.ID.String()}, {Name: "worker_id", Value: f.Worker},
	}))
}
