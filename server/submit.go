package server

import (
	"context"
	"time"

	"google.golang.org/grpc/status"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/server/jsonscan"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// maxBatch bounds the items of ExecuteBatch and the ids of AwaitResults.
const maxBatch = 10_000

// submission builds the record of one execution. functions remembers look-ups by
// name within one call, so that a batch sees one meaning of a name.
func (s *Server) submission(ctx context.Context, req *treadlev1.ExecuteRequest, functions map[string]task.Function) (store.Submission, error) {
	f, ok := functions[req.GetFunction()]
	if !ok {
		var err error
		if f, err = s.lookup(ctx, req.GetFunction()); err != nil {
			return store.Submission{}, err
		}
		functions[req.GetFunction()] = f
	}
	if err := checkRequestID(req.GetRequestId()); err != nil {
		return store.Submission{}, err
	}
	t := s.newTask(ctx, f)
	if err := s.applyOptions(t, req.GetOptions()); err != nil {
		return store.Submission{}, err
	}
	args, encoding, err := s.arguments(req)
	if err != nil {
		return store.Submission{}, err
	}
	t.Args, t.Returns, t.ArgsSize = encoding, encoding, len(args)
	item := store.Submission{Task: t, Args: args, Key: store.Key{ID: req.GetRequestId()}, Transient: f.Transient}
	if item.Key.ID != "" {
		item.Key.Digest = submitDigest(req, args, encoding)
	}
	if p, _ := auth.From(ctx); p.Role == auth.Task {
		adopt(p, &item)
	}
	return item, nil
}

// newTask returns the record of a new task of f, by whoever calls, with the server's defaults.
func (s *Server) newTask(ctx context.Context, f task.Function) *task.Task {
	return &task.Task{
		ID: s.cfg.NewID(), Function: f.ID, FunctionName: f.Name, Queue: f.Queue, Runtime: f.Runtime, Form: f.Form, Python: f.Python, Hash: f.Hash,
		CreatedBy: ownerOf(ctx), Priority: task.DefaultPriority, Timeout: s.cfg.TaskTimeout, MaxRetries: s.cfg.MaxRetries,
	}
}

// arguments returns the bytes to store and their encoding.
func (s *Server) arguments(req *treadlev1.ExecuteRequest) ([]byte, task.Encoding, error) {
	if len(req.GetPayload()) > 0 {
		if len(req.GetArgs()) > 0 || len(req.GetKwargs()) > 0 {
			return nil, "", invalid("payload", "both payload and JSON arguments are set: want one of the two forms")
		}
		if err := s.checkSize("payload", len(req.GetPayload())); err != nil {
			return nil, "", err
		}
		return req.GetPayload(), task.EncodingPickle, checkPickle(req.GetPayload())
	}
	b, err := s.jsonArguments(req.GetArgs(), req.GetKwargs())
	return b, task.EncodingJSON, err
}

// jsonArguments joins the two texts into the one document that runners read. The
// texts stay as they are: a number re-encoded might be another number.
func (s *Server) jsonArguments(args, kwargs []byte) ([]byte, error) {
	if len(args) == 0 {
		args = []byte("[]")
	}
	if len(kwargs) == 0 {
		kwargs = []byte("{}")
	}
	const frame = `{"args":,"kwargs":}`
	if err := s.checkSize("args", len(args)+len(kwargs)+len(frame)); err != nil {
		return nil, err
	}
	if err := checkJSON("args", args, jsonscan.Array); err != nil {
		return nil, err
	}
	if err := checkJSON("kwargs", kwargs, jsonscan.Object); err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(args)+len(kwargs)+len(frame))
	b = append(append(b, `{"args":`...), args...)
	b = append(append(b, `,"kwargs":`...), kwargs...)
	return append(b, '}'), nil
}

func checkJSON(field string, text []byte, want jsonscan.Kind) error {
	kind, err := jsonscan.Check(text)
	if err != nil {
		return invalid(field, "%s is not JSON: %w", field, err)
	}
	if kind != want {
		return invalid(field, "%s is %s: want %s, for example %s", field, kind, want, map[jsonscan.Kind]string{
			jsonscan.Array: "[21]", jsonscan.Object: `{"x": 21}`,
		}[want])
	}
	return nil
}

// applyOptions checks the options of one task and writes them over the defaults.
func (s *Server) applyOptions(t *task.Task, o *treadlev1.ExecuteOptions) error {
	if o == nil {
		return nil
	}
	if o.Priority != nil {
		if err := within("options.priority", int64(o.GetPriority()), task.MinPriority, task.MaxPriority); err != nil {
			return err
		}
		t.Priority = int(o.GetPriority())
	}
	if o.Timeout != nil {
		d := o.GetTimeout().AsDuration()
		if err := o.GetTimeout().CheckValid(); err != nil {
			return invalid("options.timeout", "timeout: %w", err)
		}
		if d <= 0 {
			return invalid("options.timeout", "timeout %v: want more than 0, or leave it out for none", d)
		}
		t.Timeout = d
	}
	if o.Deadline != nil {
		// A deadline in the past is legal: the task fails at once, as it would have
		// failed a moment later.
		if err := o.GetDeadline().CheckValid(); err != nil {
			return invalid("options.deadline", "deadline: %w", err)
		}
		t.Deadline = o.GetDeadline().AsTime()
	}
	if o.MaxRetries != nil {
		if err := within("options.max_retries", int64(o.GetMaxRetries()), 0, task.MaxRetriesLimit); err != nil {
			return err
		}
		t.MaxRetries = int(o.GetMaxRetries())
	}
	if o.FunctionRetries != nil {
		if err := within("options.function_retries", int64(o.GetFunctionRetries()), 0, task.MaxRetriesLimit); err != nil {
			return err
		}
		t.FunctionRetries = int(o.GetFunctionRetries())
	}
	if m := o.GetMemoryLimit(); m < 0 || m > 0 && m < minMemoryLimit {
		return invalid("options.memory_limit", "memory_limit %d: want at least %d bytes, or 0 for the worker's own limit", m, minMemoryLimit)
	}
	t.MemoryLimit = o.GetMemoryLimit()
	return nil
}

// minMemoryLimit is the least memory that a task may be limited to: less would stop
// any interpreter before the function runs.
const minMemoryLimit = 1 << 20

func within(field string, v, low, high int64) error {
	if v < low || v > high {
		return invalid(field, "%s is %d: want %d to %d", field, v, low, high)
	}
	return nil
}

// submitDigest hashes what the client asked for: the function as it was named, not
// what the name means by now, so that a repeated request stays the same request.
func submitDigest(req *treadlev1.ExecuteRequest, args []byte, encoding task.Encoding) [32]byte {
	d := newDigest("execute").text(canonicalFunction(req.GetFunction())).text(string(encoding)).bytes(args)
	o := req.GetOptions()
	d.number(uint64(o.GetTimeout().GetSeconds())).number(uint64(o.GetTimeout().GetNanos()))
	d.number(uint64(o.GetDeadline().GetSeconds())).number(uint64(o.GetDeadline().GetNanos()))
	d.number(uint64(o.GetMemoryLimit()))
	if o == nil {
		return d.sum()
	}
	for _, v := range []*int32{o.Priority, o.MaxRetries, o.FunctionRetries} {
		if v == nil {
			d.number(0)
		} else {
			d.number(1).number(uint64(*v))
		}
	}
	return d.sum()
}

func canonicalFunction(text string) string {
	if id, err := task.ParseID(text); err == nil {
		return id.String()
	}
	return text
}

// submit records one task.
func (s *Server) submit(ctx context.Context, now time.Time, item store.Submission) (store.Submitted, error) {
	answers, err := s.recordTasks(ctx, now, []store.Submission{item})
	if err != nil {
		return store.Submitted{}, err
	}
	failpoint.Hit(failpoint.AfterSubmit)
	s.metrics.submitted.Add(1)
	return answers[0], answers[0].Err
}

// execute records one task and answers its record.
func (s *Server) execute(ctx context.Context, req *treadlev1.ExecuteRequest) (*treadlev1.Task, error) {
	item, err := s.submission(ctx, req, make(map[string]task.Function, 1))
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	answer, err := s.submit(ctx, now, item)
	if err != nil {
		return nil, err
	}
	if answer.Duplicate {
		t, err := s.cfg.Store.Task(ctx, answer.ID)
		if err != nil {
			return nil, err
		}
		return taskProto(t), nil
	}
	record := item.Task.Clone()
	record.Status, record.CreatedAt = task.Queued, now
	return taskProto(record), nil
}

// executeBatch records many tasks with one call of the store.
func (s *Server) executeBatch(ctx context.Context, reqs []*treadlev1.ExecuteRequest) (*treadlev1.ExecuteBatchResponse, error) {
	if len(reqs) > maxBatch {
		return nil, invalid("requests", "%d requests in one batch: want at most %d", len(reqs), maxBatch)
	}
	out := &treadlev1.ExecuteBatchResponse{Items: make([]*treadlev1.ExecuteBatchItem, len(reqs))}
	functions := make(map[string]task.Function)
	items := make([]store.Submission, 0, len(reqs))
	places := make([]int, 0, len(reqs))
	for i, req := range reqs {
		item, err := s.submission(ctx, req, functions)
		if err != nil {
			if code := task.CodeOf(err); code == task.CodeUnknown || code == task.CodeUnavailable {
				return nil, err // the store's trouble, not the item's
			}
			out.Items[i] = &treadlev1.ExecuteBatchItem{Error: s.itemError(ctx, err)}
			continue
		}
		items, places = append(items, item), append(places, i)
	}
	if len(items) == 0 {
		return out, nil
	}
	answers, err := s.recordTasks(ctx, s.cfg.Now(), items)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.AfterSubmit)
	accepted := 0
	for k, a := range answers {
		item := &treadlev1.ExecuteBatchItem{}
		if a.Err != nil {
			item.Error = s.itemError(ctx, a.Err)
		} else {
			item.TaskId = a.ID.String()
			accepted++
		}
		out.Items[places[k]] = item
	}
	s.metrics.submitted.Add(float64(accepted))
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
