package treadle

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

const (
	// maxBatch is the server's limit on the items of a batch and the ids of an await.
	maxBatch = 10_000
	// maxBatchBytes bounds a batch well below the message limit; one request alone may
	// be larger.
	maxBatchBytes = 32 << 20
	// maxDirect is how many callers of Run wait in a request of their own. A request of
	// its own answers soonest, but costs the machine many times the share of a batch:
	// past that number callers travel together.
	maxDirect = 8
)

// Request is one execution to record.
type Request struct {
	// Function is an id or a name; text that parses as a UUID is an id.
	Function string
	// Args and Kwargs become JSON by encoding/json; a json.RawMessage passes as it is.
	Args   []any
	Kwargs map[string]any
	// Payload is pickled arguments, instead of Args and Kwargs. The result is then a
	// pickle as well.
	Payload []byte
	Options Options
	// RequestID makes the request idempotent; default: a new one.
	RequestID string
}

// Submitted answers one request of a batch.
type Submitted struct {
	// TaskID is empty when the request was refused.
	TaskID string `json:"task_id,omitempty"`
	// Err is why it was refused: nothing was recorded for it.
	Err error `json:"-"`
}

// proto checks the request and encodes it, under a request id of its own.
func (r Request) proto(op string) (*treadlev1.ExecuteRequest, error) {
	p := &treadlev1.ExecuteRequest{
		Function: r.Function, Payload: r.Payload, Options: r.Options.proto(), RequestId: r.RequestID,
	}
	if p.RequestId == "" {
		p.RequestId = newID()
	}
	if r.Payload != nil {
		if r.Args != nil || r.Kwargs != nil {
			return nil, invalid(op, "a request has either a payload or arguments, not both")
		}
		return p, nil
	}
	var err error
	p.Args = []byte("[]")
	if len(r.Args) > 0 {
		if p.Args, err = json.Marshal(r.Args); err != nil {
			return nil, invalid(op, "arguments: %v", err)
		}
	}
	if len(r.Kwargs) > 0 {
		if p.Kwargs, err = json.Marshal(r.Kwargs); err != nil {
			return nil, invalid(op, "keyword arguments: %v", err)
		}
	}
	return p, nil
}

// Execute records one task and returns its id when the task is durable. The task
// then runs whatever becomes of this program.
//
// Concurrent calls travel together. When ctx ends first the call returns at once;
// the task may have been recorded all the same, and a call with the same RequestID
// finds it. A context that carries outgoing gRPC metadata makes a request of its own.
func (c *Client) Execute(ctx context.Context, r Request) (taskID string, err error) {
	req, err := r.proto("Execute")
	if err != nil {
		return "", err
	}
	return c.execute(ctx, req, nil)
}

// execute records one task. The waiter, if any, has its result delivered.
func (c *Client) execute(ctx context.Context, req *treadlev1.ExecuteRequest, w *waiter) (string, error) {
	if _, own := metadata.FromOutgoingContext(ctx); own {
		p, err := call(ctx, c, "Execute", c.rpc.Execute, req)
		if err == nil && w != nil {
			w.id = p.GetTaskId()
			c.results.add([]*waiter{w})
		}
		return p.GetTaskId(), err
	}
	return retry(ctx, c, "Execute", func() (string, error) { return c.batcher.submit(ctx, req, w) })
}

// ExecuteBatch records many tasks and answers in their order. Requests that are
// refused do not keep the others from being recorded. Batches over 10,000 requests
// or 32 MiB are sent in parts; when a part fails the answers up to there come with
// the error, and the same requests (with their RequestIDs) may be sent again.
func (c *Client) ExecuteBatch(ctx context.Context, requests []Request) ([]Submitted, error) {
	done := make([]Submitted, 0, len(requests))
	part := make([]*treadlev1.ExecuteRequest, 0, min(len(requests), maxBatch))
	size := 0
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		p, err := call(ctx, c, "ExecuteBatch", c.rpc.ExecuteBatch, &treadlev1.ExecuteBatchRequest{Requests: part})
		if err == nil {
			err = checkItems(p, len(part))
		}
		if err != nil {
			return err
		}
		for _, it := range p.GetItems() {
			s := Submitted{TaskID: it.GetTaskId()}
			if it.GetError() != nil {
				s.Err = itemError("Execute", it.GetError())
			}
			done = append(done, s)
		}
		part, size = part[:0:0], 0
		return nil
	}
	for _, r := range requests {
		req, err := r.proto("ExecuteBatch")
		if err != nil {
			return done, err
		}
		n := proto.Size(req)
		if len(part) == maxBatch || size+n > maxBatchBytes {
			if err := flush(); err != nil {
				return done, err
			}
		}
		part, size = append(part, req), size+n
	}
	return done, flush()
}

// checkItems refuses an answer that does not fit its batch.
func checkItems(p *treadlev1.ExecuteBatchResponse, want int) error {
	if len(p.GetItems()) != want {
		return &Error{Op: "ExecuteBatch", Code: codes.Internal, Message: "the server answered another number of items"}
	}
	return nil
}

// Call executes a function with JSON arguments, waits for it and reads the value
// into out like json.Unmarshal; a nil out discards it. A function that failed is a
// [*TaskError]. When ctx ends first the task goes on.
func (c *Client) Call(ctx context.Context, function string, out any, args ...any) error {
	r, err := c.Run(ctx, Request{Function: function, Args: args})
	if err != nil {
		return err
	}
	return r.Decode(out)
}

// Run executes a request and waits for its result. An error means that the call
// failed or ctx ended; how the task itself ended says the result.
func (c *Client) Run(ctx context.Context, r Request) (*Result, error) {
	req, err := r.proto("Call")
	if err != nil {
		return nil, err
	}
	n := c.direct.Add(1)
	defer c.direct.Add(-1)
	if n > maxDirect || r.Payload != nil {
		w := newWaiter()
		if _, err := c.execute(ctx, req, w); err != nil {
			return nil, err
		}
		return c.results.wait(ctx, w)
	}
	p, err := call(ctx, c, "Call", c.rpc.Call, &treadlev1.CallRequest{
		Function: req.GetFunction(), Timeout: durationpb.New(callWait(ctx)),
		Input: &treadlev1.CallInput{
			Args: req.GetArgs(), Kwargs: req.GetKwargs(), Options: req.GetOptions(), RequestId: req.GetRequestId(),
		},
	})
	if err != nil {
		return nil, err
	}
	if res := resultOf(p); res.Status.Terminal() {
		return res, nil
	}
	w := newWaiter()
	w.id = p.GetTaskId()
	c.results.add([]*waiter{w})
	return c.results.wait(ctx, w)
}

// callWait asks the server to answer a little before the caller's context ends, so
// that the error of a wait that was too short names the task.
func callWait(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return maxServerWait
	}
	left := time.Until(end)
	return min(max(left-min(left/10, 100*time.Millisecond), 0), maxServerWait)
}

// Await ranges over the results of many tasks as they finish, in any order, each id
// once. Unknown ids are refused. More than 10,000 ids are awaited in parts. When the
// connection is lost the rest is asked for again. An error ends the sequence.
func (c *Client) Await(ctx context.Context, ids []string) iter.Seq2[*Result, error] {
	return func(yield func(*Result, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stopped := false
		deliver := func(p *treadlev1.TaskResult) bool {
			stopped = !yield(resultOf(p), nil)
			return !stopped
		}
		for part := range slices.Chunk(ids, maxBatch) {
			left := make(map[string]bool, len(part))
			for _, id := range part {
				left[strings.ToLower(id)] = true // as the server writes them
			}
			for len(left) > 0 {
				_, err := retry(ctx, c, "AwaitResults", func() (struct{}, error) {
					before := len(left)
					err := c.awaitOnce(ctx, left, deliver)
					if len(left) < before && c.retryable(err) {
						err = nil // there was progress: the retry time starts anew
					}
					return struct{}{}, err
				})
				if stopped {
					return
				}
				if err != nil {
					yield(nil, err)
					return
				}
			}
		}
	}
}

// awaitOnce opens one AwaitResults stream for the ids in left and removes those that
// were delivered. It returns nil when all were, or when deliver returned false.
func (c *Client) awaitOnce(ctx context.Context, left map[string]bool, deliver func(*treadlev1.TaskResult) bool) error {
	const op = "AwaitResults"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ids := make([]string, 0, len(left))
	for id := range left {
		ids = append(ids, id)
	}
	req := &treadlev1.AwaitResultsRequest{TaskIds: ids}
	stream, err := c.rpc.AwaitResults(ctx, req)
	if err != nil {
		return requestError(op, req, err)
	}
	for {
		p, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && len(left) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return &Error{Op: op, Code: codes.Internal, Message: "the stream ended before all results were sent"}
		case err != nil:
			return newError(op, err)
		}
		c.met.Store(true)
		for _, r := range p.GetResults() {
			if !left[r.GetTaskId()] {
				continue
			}
			delete(left, r.GetTaskId())
			if !deliver(r) {
				return nil
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
}
