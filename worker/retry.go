package worker

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// NoRetry wraps an error that no further attempt would mend, such as a request that makes no
// sense: the task fails with it, however many function_retries are left. It may be wrapped
// further. NoRetry(nil) is nil.
func NoRetry(err error) error {
	if err == nil {
		return nil
	}
	return &retryError{err: err, never: true}
}

// RetryAfter wraps an error after which the next attempt is to wait for d, for example as long
// as a rate limit asks for, in place of the delay that grows from half a second to 30 s. It
// may be wrapped further. RetryAfter(nil, d) is nil.
//
// The attempt spends one of function_retries as any other failure does: with none left the
// task fails. d is cut to 1 ms and [task.MaxRetryAfter], 24 hours. A deadline of the task that
// passes meanwhile ends it.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryError{err: err, after: min(max(d, time.Millisecond), task.MaxRetryAfter)}
}

// retryError is a handler's word on the next attempt.
type retryError struct {
	err   error
	never bool
	after time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// failed is what the log is told of an attempt that failed.
type failed struct {
	token       task.Token
	function    string
	retriesLeft int
	out         task.Outcome
}

// failedOf is what is to be said of the outcome of an offer's attempt; nil where nobody's fault
// ended it.
func failedOf(o *link.Offer, out task.Outcome) *failed {
	if out.Failure == nil || o == nil {
		return nil
	}
	switch out.End {
	case task.EndRaised, task.EndLost, task.EndTimedOut, task.EndExhausted, task.EndUnreadable:
		return &failed{o.Token, o.FunctionName, o.RetriesLeft, out}
	default:
		return nil
	}
}

// tell logs a failed attempt. Nobody holds the agent's lock meanwhile: where the log goes may be slow.
func (a *Agent) tell(f *failed) {
	if f == nil || !a.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	text, _, _ := strings.Cut(f.out.Failure.Message, "\n")
	if f.out.Failure.Type != "" {
		text = f.out.Failure.Type + ": " + text
	}
	a.log.Info("an attempt failed", "task", f.token.Task, "function", f.function, "attempt", f.token.Attempt,
		"end", f.out.End, "error", task.ClipText(text, 300), "retry", f.retry())
}

// retry is what comes next, as far as the worker knows.
func (f *failed) retry() string {
	switch {
	case f.out.End == task.EndLost:
		return "while max_retries are left"
	case f.out.End != task.EndRaised:
		return "no"
	case f.out.NoRetry:
		return "no, as the function says"
	case f.retriesLeft <= 0:
		return "no, function_retries are spent"
	case f.out.RetryAfter > 0:
		return "after " + f.out.RetryAfter.String()
	default:
		return "yes"
	}
}
