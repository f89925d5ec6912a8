package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/task"
)

// Handlers is an [Executor] of Go functions. Each is known to clients as a function
// of its name, with JSON arguments and results. The zero value is ready to use;
// register everything before the agent starts.
type Handlers struct {
	mu         sync.Mutex
	funcs      map[string]HandlerFunc
	middleware []func(HandlerFunc) HandlerFunc
	// wrapped are funcs in their middleware; nil until it is asked for.
	wrapped map[string]HandlerFunc
}

// HandlerFunc is a handler in the form that all have in common: it takes its argument as JSON,
// nil for a call without one, and returns what encoding/json can write.
type HandlerFunc func(ctx context.Context, arg json.RawMessage) (any, error)

// Use adds middleware to [Default], see [Handlers.Use].
func Use(middleware ...func(next HandlerFunc) HandlerFunc) { Default.Use(middleware...) }

// Use adds middleware around every handler, also around those that are registered already: for
// traces, metrics, timeouts or a word on errors. The first that was added is the outermost.
// Like the handler it may ask [TaskFrom], and what it returns is the outcome: an error, a
// panic, [NoRetry] and [RetryAfter] count as a handler's own. What does not fit the handler's
// argument passes through it as an error too, and stays one that is not retried as long as it
// is wrapped by %w. Each piece is called once for each handler, before the first call;
// what it returns is called from many goroutines. Add it before the agent starts.
func (h *Handlers) Use(middleware ...func(next HandlerFunc) HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.middleware, h.wrapped = append(h.middleware, middleware...), nil
}

// handler returns the handler of that name with the middleware around it, nil where there is none.
func (h *Handlers) handler(name string) HandlerFunc {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wrapped == nil {
		h.wrapped = make(map[string]HandlerFunc, len(h.funcs))
		for name, f := range h.funcs {
			for _, m := range slices.Backward(h.middleware) {
				f = m(f)
			}
			h.wrapped[name] = f
		}
	}
	return h.wrapped[name]
}

// Default is the registry of [Handle] and [Serve].
var Default Handlers

// Handle registers f under name in [Default]. A call with one positional argument
// passes it as In; a call with keyword arguments only passes them as one object.
// Out must be what encoding/json can write.
//
// ctx ends when the task's timeout passes, when it is cancelled and when its lease
// is lost. A goroutine cannot be killed: a handler that ignores ctx keeps its slot.
//
// It panics when the name is empty, no UTF-8, or taken, like http.Handle.
func Handle[In, Out any](name string, f func(ctx context.Context, in In) (Out, error)) {
	HandleIn(&Default, name, f)
}

// HandleIn is [Handle] with a registry of the caller's.
func HandleIn[In, Out any](h *Handlers, name string, f func(ctx context.Context, in In) (Out, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "" || len([]rune(name)) > task.MaxNameLength {
		panic(fmt.Sprintf("worker: a handler's name has 1 to %d characters", task.MaxNameLength))
	}
	if !utf8.ValidString(name) {
		panic(fmt.Sprintf("worker: a handler's name is UTF-8, %.64q is not", name))
	}
	if h.funcs[name] != nil {
		panic(fmt.Sprintf("worker: two handlers named %q", name))
	}
	if h.funcs == nil {
		h.funcs = map[string]HandlerFunc{}
	}
	h.wrapped = nil
	h.funcs[name] = func(ctx context.Context, raw json.RawMessage) (any, error) {
		var in In
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &in); err != nil {
				return nil, badArguments{fmt.Errorf("the argument does not fit %T: %w", in, err)}
			}
		}
		return f(ctx, in)
	}
}

// badArguments marks a call that never reached the handler.
type badArguments struct{ error }

// Runtimes implements [Executor].
func (h *Handlers) Runtimes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	keys := make([]string, 0, len(h.funcs))
	for name := range h.funcs {
		keys = append(keys, task.GoRuntime(name))
	}
	slices.Sort(keys)
	return keys
}

// Start implements [Executor]; there is nothing to start.
func (h *Handlers) Start(context.Context, int) error { return nil }

// Close implements [Executor]; there is nothing left to stop.
func (h *Handlers) Close() error { return nil }

// Run implements [Executor].
func (h *Handlers) Run(ctx context.Context, _ int, a *Attempt) task.Outcome {
	name, _ := task.GoHandler(a.Runtime)
	f := h.handler(name)
	if f == nil {
		return task.Fail(task.EndUnreadable, fmt.Sprintf("this worker has no handler named %q", name))
	}
	in, err := handlerArgument(a)
	if err != nil {
		return task.Fail(task.EndUnreadable, err.Error())
	}
	runCtx := context.WithValue(ctx, attemptKey{}, a)
	if a.Timeout > 0 {
		var cancel context.CancelFunc
		runCtx, cancel = context.WithTimeout(runCtx, a.Timeout)
		defer cancel()
	}
	result, failure := call(runCtx, f, in)
	switch {
	case ctx.Err() != nil:
		return task.Fail(task.EndCancelled, "the handler was stopped")
	case failure != nil && runCtx.Err() != nil:
		return task.Fail(task.EndTimedOut, fmt.Sprintf("the handler did not end within its timeout of %s", a.Timeout))
	case failure != nil:
		return *failure
	}
	if a.MaxResult > 0 && len(result) > a.MaxResult {
		return task.Fail(task.EndExhausted, fmt.Sprintf("the result has %d bytes, the limit is %d (--max-payload)", len(result), a.MaxResult))
	}
	return task.Outcome{End: task.EndSucceeded, Result: result, Encoding: task.EncodingJSON}
}

// call runs a handler and writes its result; a panic, in either, is a failure like a returned error.
//
// The handler has a goroutine of its own, which costs about a microsecond, since runtime.Goexit
// ends the one that it is called on: a test helper's FailNow does, and would take the slot along.
func call(ctx context.Context, f HandlerFunc, in json.RawMessage) (result []byte, failed *task.Outcome) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		returned := false
		defer func() {
			r := recover()
			switch {
			case r != nil:
				out := task.Fail(task.EndRaised, fmt.Sprint(r))
				out.Failure.Type, out.Failure.Traceback = "panic", fmt.Sprintf("panic: %v\n\n%s", r, debug.Stack())
				failed = &out
			case !returned:
				out := task.Fail(task.EndRaised, "the handler ended its goroutine (runtime.Goexit) in place of returning")
				failed = &out
			}
		}()
		result, failed = returnOf(ctx, f, in)
		returned = true
	}()
	<-done
	return result, failed
}

// returnOf is what a handler returns, its result as JSON.
func returnOf(ctx context.Context, f HandlerFunc, in json.RawMessage) ([]byte, *task.Outcome) {
	value, err := f(ctx, in)
	var bad badArguments
	switch {
	case errors.As(err, &bad):
		out := task.Fail(task.EndUnreadable, bad.Error())
		return nil, &out
	case err != nil:
		out := task.Fail(task.EndRaised, err.Error())
		var word *retryError
		if errors.As(err, &word) {
			out.NoRetry, out.RetryAfter = word.never, word.after
		}
		if word != nil && err == error(word) { //nolint:errorlint // the wrapper itself, whose type says nothing
			err = word.err
		}
		out.Failure.Type, out.Failure.Traceback = fmt.Sprintf("%T", err), err.Error()
		return nil, &out
	}
	result, err := json.Marshal(value)
	if err != nil {
		out := task.Fail(task.EndUnreadable, fmt.Sprintf("the handler's result of type %T is not JSON: %v", value, err))
		return nil, &out
	}
	return result, nil
}

// handlerArgument picks the one argument of a call.
func handlerArgument(a *Attempt) (json.RawMessage, error) {
	if a.ArgsEncoding != task.EncodingJSON {
		return nil, fmt.Errorf("a Go handler takes JSON arguments; this call has pickled ones")
	}
	var in struct {
		Args   []json.RawMessage          `json:"args"`
		Kwargs map[string]json.RawMessage `json:"kwargs"`
	}
	if err := json.NewDecoder(bytes.NewReader(a.Args)).Decode(&in); err != nil {
		return nil, fmt.Errorf("arguments are not JSON: %w", err)
	}
	switch {
	case len(in.Args) == 0 && len(in.Kwargs) == 0:
		return nil, nil
	case len(in.Args) == 1 && len(in.Kwargs) == 0:
		return in.Args[0], nil
	case len(in.Args) == 0:
		return json.Marshal(in.Kwargs)
	default:
		return nil, fmt.Errorf("a Go handler takes one positional argument or keyword arguments; this call has %d positional and %d keyword ones",
			len(in.Args), len(in.Kwargs))
	}
}

type attemptKey struct{}

// TaskInfo is what a handler may know of the task that it runs for.
type TaskInfo struct {
	// ID is the task's. It is the same in each attempt, so it serves as the idempotency key of
	// side effects: an attempt may run more than once.
	ID task.ID
	// Attempt counts from 1.
	Attempt int
	// Function is the id that the handler's name is registered under.
	Function     task.ID
	FunctionName string
	// Timeout of one attempt; 0 for none. Deadline of the task, by the store's clock; zero for none.
	Timeout  time.Duration
	Deadline time.Time
	// MaxRetries is how many lost workers the task survives. RetriesLeft is how often it runs
	// again if the handler fails: what is left of function_retries.
	MaxRetries  int
	RetriesLeft int
	// Parent is the task that submitted this one, zero for a client's.
	Parent task.ID
}

// TaskFrom returns the task that ctx belongs to; false outside a handler.
func TaskFrom(ctx context.Context) (TaskInfo, bool) {
	a, ok := ctx.Value(attemptKey{}).(*Attempt)
	if !ok {
		return TaskInfo{}, false
	}
	return TaskInfo{
		ID: a.Token.Task, Attempt: a.Token.Attempt, Function: a.Function, FunctionName: a.FunctionName,
		Timeout: a.Timeout, Deadline: a.Deadline, MaxRetries: a.MaxRetries, RetriesLeft: a.RetriesLeft, Parent: a.Parent,
	}, true
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	if f != nil {
		f(b)
	}
	return len(b), nil
}

// Output returns the log of the attempt that ctx belongs to: what a handler writes
// there is kept with the task, its last 64 KiB. Outside an attempt it discards.
func Output(ctx context.Context) io.Writer {
	if a, ok := ctx.Value(attemptKey{}).(*Attempt); ok {
		return writerFunc(a.Output)
	}
	return io.Discard
}
