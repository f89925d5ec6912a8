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

func TestHandlerNames(t *testing.T) {
	t.Parallel()
	var h worker.Handlers
	f := func(context.Context, int) (int, error) { return 0, nil }
	worker.HandleIn(&h, "taken", f)
	for _, name := range []string{"", "taken", strings.Repeat("x", task.MaxNameLength+1)} {
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
		Deadline: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC), MaxRetries: 7,
	}
	a := &worker.Attempt{
		Token: task.Token{Task: want.ID, Attempt: 2}, Function: want.Function, FunctionName: "who", Runtime: task.GoRuntime("who"),
		ArgsEncoding: task.EncodingJSON, Args: []byte(`{"args":[1]}`), Timeout: want.Timeout, Deadline: want.Deadline, MaxRetries: 7,
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
