package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// A failed attempt is one line at INFO that says what comes next; what nobody is to blame for
// is none.
func TestFailedAttemptsAreLogged(t *testing.T) {
	t.Parallel()
	fail := func(end task.End, never bool, after time.Duration) task.Outcome {
		out := task.Fail(end, "first line\nsecond line")
		out.Failure.Type, out.NoRetry, out.RetryAfter = "ValueError", never, after
		return out
	}
	for name, c := range map[string]struct {
		left int
		out  task.Outcome
		want string
	}{
		"retried":     {2, fail(task.EndRaised, false, 0), "retry=yes"},
		"last":        {0, fail(task.EndRaised, false, time.Hour), `retry="no, function_retries are spent"`},
		"no retry":    {2, fail(task.EndRaised, true, 0), `retry="no, as the function says"`},
		"later":       {2, fail(task.EndRaised, false, 5*time.Minute), `retry="after 5m0s"`},
		"timed out":   {2, fail(task.EndTimedOut, false, 0), "retry=no"},
		"lost":        {2, fail(task.EndLost, false, 0), `retry="while max_retries are left"`},
		"handed back": {2, fail(task.EndReturned, false, 0), ""},
		"cancelled":   {2, fail(task.EndCancelled, false, 0), ""},
		"a success":   {2, task.Outcome{End: task.EndSucceeded}, ""},
	} {
		var text bytes.Buffer
		a := &Agent{log: slog.New(slog.NewTextHandler(&text, nil)), kick: make(chan struct{}, 1), claims: map[task.Token]*claim{}}
		o := &link.Offer{Token: task.Token{Task: task.ID{7}, Attempt: 3}, FunctionName: "parse", RetriesLeft: c.left}
		a.finish(&claim{token: o.Token, offer: o, stop: func() {}, startedAt: time.Now()}, c.out)
		got := text.String()
		if c.want == "" {
			if got != "" {
				t.Errorf("%s: the log has %s", name, got)
			}
			continue
		}
		for _, want := range []string{
			"level=INFO", `msg="an attempt failed"`, "task=" + o.Token.Task.String(), "function=parse", "attempt=3",
			`error="ValueError: first line"`, c.want,
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %s is not in the log: %s", name, want, got)
			}
		}
		if strings.Contains(got, "second") || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: more than one line: %s", name, got)
		}
	}
}
