package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

func attempt(name, args string) *worker.Attempt {
	return &worker.Attempt{Runtime: task.GoRuntime(name), ArgsEncoding: task.EncodingJSON, Args: []byte(args)}
}

// explosive panics when its JSON is asked for.
type explosive struct{}

func (explosive) MarshalJSON() ([]byte, error) { panic("no JSON of me") }

func TestHandlers(t *testing.T) {
	t.Parallel()
	var h worker.Handlers
	worker.HandleIn(&h, "double", func(_ context.Context, x int) (int, error) { return 2 * x, nil })
	worker.HandleIn(&h, "greet", func(_ context.Context, who struct{ Name string }) (string, error) { return "hello " + who.Name, nil })
	worker.HandleIn(&h, "fail", func(context.Context, int) (int, error) { return 0, fmt.Errorf("no luck: %w", errors.ErrUnsupported) })
	worker.HandleIn(&h, "panic", func(context.Context, int) (int, error) { panic("at the disco") })
	worker.HandleIn(&h, "channel", func(context.Context, int) (chan int, error) { return make(chan int), nil })
	worker.HandleIn(&h, "wait", func(ctx context.Context, _ int) (int, error) { <-ctx.Done(); return 0, ctx.Err() })

	worker.HandleIn(&h, "marshal", func(context.Context, int) (explosive, error) { return explosive{}, nil })
	worker.HandleIn(&h, "goexit", func(context.Context, int) (int, error) { runtime.Goexit(); return 0, nil })

	pickled, brief, tight := attempt("double", "[1]"), attempt("wait", "{}"), attempt("greet", `{"kwargs":{"Name":"everybody"}}`)
	pickled.ArgsEncoding, brief.Timeout, tight.MaxResult = task.EncodingPickle, time.Millisecond, 10
	for name, test := range map[string]struct {
		attempt *worker.Attempt
		end     task.End
		// want is the result, or part of the failure's message.
		want string
	}{
		"one argument":         {attempt("double", `{"args":[21]}`), task.EndSucceeded, "42"},
		"no argument":          {attempt("double", `{}`), task.EndSucceeded, "0"},
		"keyword arguments":    {attempt("greet", `{"kwargs":{"Name":"you"}}`), task.EndSucceeded, `"hello you"`},
		"two arguments":        {attempt("double", `{"args":[1,2]}`), task.EndUnreadable, "2 positional and 0 keyword"},
		"of another type":      {attempt("double", `{"args":["x"]}`), task.EndUnreadable, "does not fit int"},
		"pickled arguments":    {pickled, task.EndUnreadable, "JSON arguments"},
		"no such handler":      {attempt("nobody", `{}`), task.EndUnreadable, `no handler named "nobody"`},
		"an error":             {attempt("fail", `{}`), task.EndRaised, "no luck"},
		"a panic":              {attempt("panic", `{}`), task.EndRaised, "at the disco"},
		"a panic of a result":  {attempt("marshal", `{}`), task.EndRaised, "no JSON of me"},
		"a goroutine's end":    {attempt("goexit", `{}`), task.EndRaised, "ended its goroutine"},
		"a value without JSON": {attempt("channel", `{}`), task.EndUnreadable, "chan int is not JSON"},
		"too large":            {tight, task.EndExhausted, "17 bytes, the limit is 10"},
		"timeout":              {brief, task.EndTimedOut, "timeout of 1ms"},
	} {
		out := h.Run(t.Context(), 0, test.attempt)
		got := string(out.Result)
		if out.Failure != nil {
			got = out.Failure.Message
		}
		if out.End != test.end || !strings.Contains(got, test.want) {
			t.Errorf("%s: %s with %q, want %s with %q", name, out.End, got, test.end, test.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if out := h.Run(ctx, 0, attempt("wait", "{}")); out.End != task.EndCancelled {
		t.Errorf("a stopped handler ends as %s", out.End)
	}
}

// Handlers decide on the next attempt, also through wrapping; a nil error stays a success.
func TestHandlersDecideOnTheRetry(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	for name, c := range map[string]struct {
		err   error
		never bool
		after time.Duration
		kind  string
	}{
		"plain":           {cause, false, 0, "*errors.errorString"},
		"no retry":        {worker.NoRetry(cause), true, 0, "*errors.errorString"},
		"wrapped":         {fmt.Errorf("outside: %w", worker.NoRetry(cause)), true, 0, "*fmt.wrapError"},
		"later":           {worker.RetryAfter(cause, 5*time.Minute), false, 5 * time.Minute, "*errors.errorString"},
		"at once":         {worker.RetryAfter(cause, -1), false, time.Millisecond, "*errors.errorString"},
		"a day":           {worker.RetryAfter(cause, 24*time.Hour), false, 24 * time.Hour, "*errors.errorString"},
		"cut to a day":    {worker.RetryAfter(cause, 24*time.Hour+1), false, 24 * time.Hour, "*errors.errorString"},
		"outermost words": {worker.NoRetry(worker.RetryAfter(cause, time.Hour)), true, 0, "*worker.retryError"},
	} {
		var h worker.Handlers
		worker.HandleIn(&h, "f", func(context.Context, int) (int, error) { return 1, c.err })
		out := h.Run(t.Context(), 0, attempt("f", "{}"))
		if out.End != task.EndRaised || out.NoRetry != c.never || out.RetryAfter != c.after || out.Failure.Type != c.kind || !errors.Is(c.err, cause) {
			t.Errorf("%s: %s, no retry %t, after %s, %+v", name, out.End, out.NoRetry, out.RetryAfter, out.Failure)
		}
	}
	if worker.NoRetry(nil) != nil || worker.RetryAfter(nil, time.Hour) != nil {
		t.Error("no error became one")
	}
}

func TestMiddleware(t *testing.T) {
	t.Parallel()
	var h worker.Handlers
	var order []string
	mark := func(name string) func(worker.HandlerFunc) worker.HandlerFunc {
		return func(next worker.HandlerFunc) worker.HandlerFunc {
			return func(ctx context.Context, arg json.RawMessage) (any, error) {
				info, ok := worker.TaskFrom(ctx)
				order = append(order, fmt.Sprintf("%s %s %t", name, info.FunctionName, ok))
				return next(ctx, arg)
			}
		}
	}
	worker.HandleIn(&h, "double", func(_ context.Context, x int) (int, error) { order = append(order, "handler"); return 2 * x, nil })
	h.Use(mark("first"), mark("second"))
	a := attempt("double", `{"args":[21]}`)
	a.FunctionName = "double"
	if out := h.Run(t.Context(), 0, a); string(out.Result) != "42" {
		t.Fatalf("result %s, %+v", out.Result, out.Failure)
	}
	if got := strings.Join(order, ", "); got != "first double true, second double true, handler" {
		t.Fatalf("called %s", got)
	}
	// What middleware returns is the outcome, also for handlers and middleware that come later.
	h.Use(func(next worker.HandlerFunc) worker.HandlerFunc {
		return func(ctx context.Context, arg json.RawMessage) (any, error) {
			v, err := next(ctx, arg)
			if string(arg) == "13" {
				panic("unlucky")
			}
			if err != nil {
				return nil, worker.NoRetry(fmt.Errorf("innermost: %w", err))
			}
			return v, nil
		}
	})
	worker.HandleIn(&h, "late", func(_ context.Context, x int) (int, error) { return x, errors.New("no") })
	if out := h.Run(t.Context(), 0, attempt("late", `{"args":[1]}`)); !out.NoRetry || out.Failure.Message != "innermost: no" {
		t.Errorf("late: %+v, %+v", out, out.Failure)
	}
	if out := h.Run(t.Context(), 0, attempt("double", `{"args":[13]}`)); out.End != task.EndRaised || out.Failure.Type != "panic" {
		t.Errorf("a panic of middleware: %+v", out.Failure)
	}
	if out := h.Run(t.Context(), 0, attempt("double", `{"args":["x"]}`)); out.End != task.EndUnreadable || !strings.Contains(out.Failure.Message, "does not fit int") {
		t.Errorf("an argument that does not fit: %s, %+v", out.End, out.Failure)
	}
}

func TestHandlerNames(t *testing.T) {
	t.Parallel()
	var h worker.Handlers
	f := func(context.Context, int) (int, error) { return 0, nil }
	worker.HandleIn(&h, "taken", f)
	for _, name := range []string{"", "taken", "caf\xe9", strings.Repeat("x", task.MaxNameLength+1)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a handler named %.20q is accepted", name)
				}
			}()
			worker.HandleIn(&h, name, f)
		}()
	}
}

func TestOutputIsTheAttemptsLog(t *testing.T) {
	t.Parallel()
	var h worker.Handlers
	worker.HandleIn(&h, "say", func(ctx context.Context, words string) (int, error) { return fmt.Fprintln(worker.Output(ctx), words) })
	var log strings.Builder
	a := attempt("say", `{"args":["good day"]}`)
	a.Output = func(b []byte) { log.Write(b) }
	if out := h.Run(t.Context(), 0, a); string(out.Result) != "9" || log.String() != "good day\n" {
		t.Errorf("result %s, log %q", out.Result, log.String())
	}
	if n, err := fmt.Fprint(worker.Output(t.Context()), "nobody hears"); n != 12 || err != nil {
		t.Errorf("outside an attempt: %d, %v", n, err)
	}
}

func TestHandlersKnowTheirTask(t *testing.T) {
	var h worker.Handlers
	worker.HandleIn(&h, "who", func(ctx context.Context, _ int) (worker.TaskInfo, error) {
		info, ok := worker.TaskFrom(ctx)
		if !ok {
			return info, errors.New("no task")
		}
		return info, nil
	})
	want := worker.TaskInfo{
		ID: task.ID{1}, Attempt: 2, Function: task.ID{3}, FunctionName: "who", Timeout: time.Minute,
		Deadline: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC), MaxRetries: 7, RetriesLeft: 3,
	}
	a := &worker.Attempt{
		Token: task.Token{Task: want.ID, Attempt: 2}, Function: want.Function, FunctionName: "who", Runtime: task.GoRuntime("who"),
		ArgsEncoding: task.EncodingJSON, Args: []byte(`{"args":[1]}`), Spec: task.Spec{Timeout: want.Timeout, Deadline: want.Deadline, MaxRetries: 7}, RetriesLeft: 3,
	}
	out := h.Run(t.Context(), 0, a)
	var got worker.TaskInfo
	if err := json.Unmarshal(out.Result, &got); err != nil || got != want {
		t.Fatalf("got %+v of %+v, %v; want %+v", got, out, err, want)
	}
	if _, ok := worker.TaskFrom(t.Context()); ok {
		t.Fatal("a task outside of a handler")
	}
}
