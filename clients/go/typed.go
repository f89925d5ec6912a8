package treadle

import (
	"context"
	"iter"
)

// Call executes a function with JSON arguments, waits for it, and returns its value:
//
//	answer, err := treadle.Call[int](ctx, client, "double", 21)
//
// The function is an id or a name. A function that failed is a [*TaskError], a value that is no
// JSON or does not fit Out an error, see [Result.Decode]. When ctx ends first the task goes on.
// [Client.Run] takes options, keyword arguments and a request id; [Value] reads its result.
func Call[Out any](ctx context.Context, c *Client, function string, args ...any) (Out, error) {
	var out Out
	err := c.Call(ctx, function, &out, args...)
	return out, err
}

// Value reads the value of a finished task as Out, with the errors of [Result.Decode].
func Value[Out any](r *Result) (Out, error) {
	var out Out
	err := r.Decode(&out)
	return out, err
}

// Mapped is what [Map] gives for one input.
type Mapped[Out any] struct {
	// Index is that of the input.
	Index int
	// TaskID is empty when the task was refused.
	TaskID string
	// Value is set when Err is nil.
	Value Out
	// Err is why the task was refused or failed, or why its value does not fit Out.
	Err error
}

// Map executes a function once for each input, as its one JSON argument, and ranges over the
// outcomes in the order in which the tasks finish; Index says whose each is. What was refused
// comes first. The error of the sequence is that of the whole, such as a server that is gone,
// and ends it; a task that failed is an Err of its own. When ctx ends, or the loop, the tasks
// go on. All inputs are submitted before the first outcome.
func Map[Out, In any](ctx context.Context, c *Client, function string, inputs []In) iter.Seq2[Mapped[Out], error] {
	return func(yield func(Mapped[Out], error) bool) {
		requests := make([]Request, len(inputs))
		for i, in := range inputs {
			requests[i] = Request{Function: function, Args: []any{in}}
		}
		submitted, err := c.ExecuteBatch(ctx, requests)
		if err != nil {
			yield(Mapped[Out]{}, err)
			return
		}
		index, ids := make(map[string]int, len(inputs)), make([]string, 0, len(inputs))
		for i, s := range submitted {
			if s.Err == nil {
				index[s.TaskID], ids = i, append(ids, s.TaskID)
			} else if !yield(Mapped[Out]{Index: i, Err: s.Err}, nil) {
				return
			}
		}
		for r, err := range c.Await(ctx, ids) {
			if err != nil {
				yield(Mapped[Out]{}, err)
				return
			}
			m := Mapped[Out]{Index: index[r.TaskID], TaskID: r.TaskID}
			m.Value, m.Err = Value[Out](r)
			if !yield(m, nil) {
				return
			}
		}
	}
}
