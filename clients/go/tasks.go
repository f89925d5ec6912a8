package treadle

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// Task returns a task's record.
func (c *Client) Task(ctx context.Context, id string) (*Task, error) {
	p, err := call(ctx, c, "GetTask", c.rpc.GetTask, &treadlev1.GetTaskRequest{TaskId: id})
	if err != nil {
		return nil, err
	}
	return taskOf(p), nil
}

// ListOption changes what a list of tasks carries.
type ListOption func(*treadlev1.ListTasksRequest)

// WithFullErrors lists whole records. Without it the errors of a list have no traceback and
// no pickles, and at most 1 KiB of their message; [Client.Task] always has all of it.
func WithFullErrors() ListOption {
	return func(req *treadlev1.ListTasksRequest) { req.View = treadlev1.ListTasksRequest_FULL }
}

// Tasks ranges over the tasks that the filter selects, newest first, page by page.
// The filter is a subset of AIP-160: status = X, function = ID or NAME, worker = ID,
// parent = ID, create_time > T, create_time < T (RFC 3339), joined by AND; "" selects all.
func (c *Client) Tasks(ctx context.Context, filter string, options ...ListOption) iter.Seq2[*Task, error] {
	return pages(func(token string) ([]*treadlev1.Task, string, error) {
		req := &treadlev1.ListTasksRequest{Filter: filter, PageToken: token}
		for _, o := range options {
			o(req)
		}
		p, err := call(ctx, c, "ListTasks", c.rpc.ListTasks, req)
		return p.GetTasks(), p.GetNextPageToken(), err
	}, taskOf)
}

// Result returns a task's result, waiting for it up to wait: 0 does not wait, a
// negative wait lasts until ctx ends. A task that is still unfinished then is no
// error: the result says QUEUED or RUNNING.
func (c *Client) Result(ctx context.Context, id string, wait time.Duration) (*Result, error) {
	end := time.Now().Add(wait)
	for {
		step := maxServerWait
		if wait >= 0 {
			step = min(step, max(0, time.Until(end)))
		}
		p, err := call(ctx, c, "GetResult", c.rpc.GetResult,
			&treadlev1.GetResultRequest{TaskId: id, Wait: durationpb.New(step)})
		if err != nil {
			return nil, err
		}
		r := resultOf(p)
		if r.Status.Terminal() || wait >= 0 && time.Until(end) <= 0 {
			return r, nil
		}
	}
}

// Watch ranges over a task's record: now and after each change of its status, until
// it is terminal. A status that lasted only a moment may be left out. When the
// connection is lost it is opened again. An error ends the sequence.
func (c *Client) Watch(ctx context.Context, id string) iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var last *treadlev1.Task
		for {
			stream, err := retry(ctx, c, "WatchTask", func() (*taskStream, error) { return c.openWatch(ctx, id) })
			if err != nil {
				yield(nil, err)
				return
			}
			for p := stream.first; p != nil; p, err = stream.next() {
				// A stream that was opened again starts with what may be known already.
				if proto.Equal(p, last) {
					continue
				}
				last = p
				if !yield(taskOf(p), nil) || statusOf(p.GetStatus()).Terminal() {
					return
				}
			}
			if err == nil {
				yield(nil, &Error{Op: "WatchTask", Code: codes.Internal, Message: "the stream ended before the task did"})
				return
			}
			if !c.retryable(err) {
				yield(nil, c.closedError("WatchTask", err))
				return
			}
		}
	}
}

// taskStream is a WatchTask stream with its first record, which tells that it works.
type taskStream struct {
	first  *treadlev1.Task
	stream interface {
		Recv() (*treadlev1.Task, error)
	}
}

func (c *Client) openWatch(ctx context.Context, id string) (*taskStream, error) {
	req := &treadlev1.WatchTaskRequest{TaskId: id}
	stream, err := c.rpc.WatchTask(ctx, req)
	if err != nil {
		return nil, requestError("WatchTask", req, err)
	}
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, &Error{Op: "WatchTask", Code: codes.Internal, Message: "the stream ended without a record"}
	}
	if err != nil {
		return nil, newError("WatchTask", err)
	}
	c.met.Store(true)
	return &taskStream{first, stream}, nil
}

// next returns nil and nil at the end of the stream.
func (s *taskStream) next() (*treadlev1.Task, error) {
	p, err := s.stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	return p, newError("WatchTask", err)
}

// Cancel cancels a task: it never completes afterwards, and a running attempt is
// stopped. A task that is finished already is returned as it is.
func (c *Client) Cancel(ctx context.Context, id string) (*Task, error) {
	p, err := call(ctx, c, "CancelTask", c.rpc.CancelTask, &treadlev1.CancelTaskRequest{TaskId: id})
	if err != nil {
		return nil, err
	}
	return taskOf(p), nil
}

// CancelQueued is [Client.Cancel] for a task whose attempt has not started: one that
// runs is left alone and returned as it is.
func (c *Client) CancelQueued(ctx context.Context, id string) (*Task, error) {
	p, err := call(ctx, c, "CancelTask", c.rpc.CancelTask, &treadlev1.CancelTaskRequest{TaskId: id, OnlyQueued: true})
	if err != nil {
		return nil, err
	}
	return taskOf(p), nil
}

// Logs returns what an attempt printed; attempt 0 means the latest one.
func (c *Client) Logs(ctx context.Context, id string, attempt int) (*Logs, error) {
	p, err := call(ctx, c, "GetLogs", c.rpc.GetLogs, &treadlev1.GetLogsRequest{TaskId: id, Attempt: *int32Of(&attempt)})
	if err != nil {
		return nil, err
	}
	return &Logs{TaskID: p.GetTaskId(), Attempt: int(p.GetAttempt()), Text: p.GetText()}, nil
}

// Workers lists the workers that are attached now.
func (c *Client) Workers(ctx context.Context) ([]Worker, error) {
	return all(pages(func(token string) ([]*treadlev1.Worker, string, error) {
		p, err := call(ctx, c, "ListWorkers", c.rpc.ListWorkers, &treadlev1.ListWorkersRequest{PageSize: largestPage, PageToken: token})
		return p.GetWorkers(), p.GetNextPageToken(), err
	}, workerOf))
}

// Queues lists the queues that have unfinished tasks.
func (c *Client) Queues(ctx context.Context) ([]Queue, error) {
	return all(pages(func(token string) ([]*treadlev1.Queue, string, error) {
		p, err := call(ctx, c, "ListQueues", c.rpc.ListQueues, &treadlev1.ListQueuesRequest{PageSize: largestPage, PageToken: token})
		return p.GetQueues(), p.GetNextPageToken(), err
	}, func(q *treadlev1.Queue) Queue {
		return Queue{Name: q.GetName(), Runtime: q.GetRuntime(), Queued: int(q.GetQueued()), Running: int(q.GetRunning())}
	}))
}

// largestPage is how many rows a server puts into one page at most.
const largestPage = 1000

// all collects a sequence; an error ends it.
func all[T any](seq iter.Seq2[T, error]) ([]T, error) {
	out := []T{}
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Info says what the server is.
func (c *Client) Info(ctx context.Context) (*ServerInfo, error) {
	p, err := call(ctx, c, "GetServerInfo", c.rpc.GetServerInfo, &treadlev1.GetServerInfoRequest{})
	if err != nil {
		return nil, err
	}
	return &ServerInfo{
		Version: p.GetVersion(), Durability: p.GetDurability(), MaxPayload: int(p.GetMaxPayload()),
		Retention: p.GetRetention().AsDuration(),
	}, nil
}
