package worker

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// refusedLast is the longest pause of a worker whose frames are refused again and again, or that
// is not admitted.
const refusedLast = 30 * time.Second

// refusedFrame returns the error of a session that ended for the sake of a frame of ours:
// it cannot be sent, or the dispatcher refuses it. The same frame would end the next
// session too.
func refusedFrame(err error) *task.Error {
	var e *task.Error
	if errors.As(err, &e) && (e.Code == task.CodeInvalid || e.Code == task.CodeTooLarge) {
		return e
	}
	return nil
}

// bounded keeps an outcome within what a report may hold, whatever the executor made of it.
func bounded(out task.Outcome, maxResult int) task.Outcome {
	if maxResult > 0 && len(out.Result) > maxResult {
		return task.Fail(task.EndExhausted, fmt.Sprintf("the result has %d bytes, the limit is %d (--max-payload)", len(out.Result), maxResult))
	}
	if out.Failure != nil {
		f := *out.Failure // the executor may keep its own
		out.Failure = &f
	}
	out.Bound()
	return out
}

// outcomesLocked takes the reports to send. After a session that ended for the sake of a
// report they go one by one, each when the one before was acknowledged: so the one that is
// not taken is known, and holds up nobody else's for long.
func (a *Agent) outcomesLocked() []link.Report {
	if !a.careful {
		out := a.reports
		a.reports = nil
		return out
	}
	if a.alone != (task.Token{}) {
		return nil
	}
	if len(a.reports) == 0 {
		a.careful = false
		return nil
	}
	out := a.reports[:1:1]
	a.reports = a.reports[1:]
	a.alone = out[0].Token
	return out
}

// undelivered takes the end of a session for the sake of a frame. A report that is refused
// alone is replaced by a failure that says so; if that is refused as well it is given up,
// and its lease ends by itself. It returns what it did, for the log.
func (a *Agent) undelivered(why *task.Error) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if why.Field != "" && why.Field != "frame" && !strings.HasPrefix(why.Field, "outcomes") {
		return ""
	}
	c := a.claims[a.alone]
	if !a.careful || c == nil || c.report == nil {
		a.careful = true
		return "reports are sent one by one"
	}
	if c.replaced {
		delete(a.claims, c.token)
		return "the outcome of task " + c.token.Task.String() + " is given up: its lease will expire"
	}
	c.replaced = true
	end := task.EndUnreadable
	if why.Code == task.CodeTooLarge {
		end = task.EndExhausted
	}
	out := task.Fail(end, "the outcome could not be sent: "+strings.ToValidUTF8(why.Error(), "\uFFFD"))
	out.RunTime = c.report.Outcome.RunTime
	c.report = &link.Report{Token: c.token, Outcome: bounded(out, 0)}
	return "the outcome of task " + c.token.Task.String() + " is replaced by a failure"
}

// pauses are the pauses between sessions. Links that fail are dialled again within
// ReconnectLast, as leases run meanwhile; frames that are refused again and again are not
// worth that hurry, nor is a dispatcher that does not admit the worker.
type pauses struct {
	failed, refused *backoff.ExponentialBackOff
	// said is when the log last told of sessions without progress, count how many there
	// were since they began.
	said  time.Time
	count int
	// cut is how many welcomed sessions in a row ended before anything was done.
	cut int
	// denied says that the last session ended as the worker is not admitted.
	denied bool
}

// hastyCuts is how many sessions in a row may end between the welcome and the first thing
// done before the pauses grow. A line that breaks every few hundred bytes is dialled anew
// within the grace, or all that the worker holds is lost; a dispatcher that welcomes and
// hangs up each time is not worth that for long.
const hastyCuts = 20

func newPauses(cfg Config) *pauses {
	pause := func(last time.Duration) *backoff.ExponentialBackOff {
		p := &backoff.ExponentialBackOff{
			InitialInterval: cfg.ReconnectFirst, MaxInterval: last, Multiplier: 2, RandomizationFactor: 0.5,
		}
		p.Reset()
		return p
	}
	return &pauses{failed: pause(cfg.ReconnectLast), refused: pause(cfg.RefusedLast)}
}

// sayEvery is how often the log repeats itself while there is no progress.
const sayEvery = time.Minute

// next is the pause after a session, and whether the log is to tell of it.
func (p *pauses) next(was sessionEnd, refused bool, now time.Time) (wait time.Duration, say bool) {
	progress := was.progress
	switch {
	case progress:
		p.cut = 0
		p.failed.Reset()
	case was.welcomed && p.cut < hastyCuts:
		p.cut++
		p.failed.Reset()
	}
	if progress && !refused || was.denied != p.denied {
		p.count = 0
		p.refused.Reset()
	}
	p.denied = was.denied
	if refused || was.denied {
		wait = p.refused.NextBackOff()
	} else {
		p.refused.Reset()
		wait = p.failed.NextBackOff()
	}
	p.count++
	if p.count == 1 || now.Sub(p.said) >= sayEvery {
		p.said, say = now, true
	}
	return wait, say
}
