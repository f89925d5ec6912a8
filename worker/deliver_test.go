package worker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// refuse plays a dispatcher that ends a session for the sake of one report. It returns that
// report when it came, or nil when everything that came was acknowledged.
func (e *end) refuse(tok task.Token, want int) *link.Report {
	e.t.Helper()
	for acked := 0; acked < want; {
		for _, r := range expect[*link.Outcomes](e).Items {
			if r.Token == tok {
				e.send(&link.Bye{Retry: true, Refused: "outcomes.items[0].end", Reason: "a frame of this worker is refused"})
				return &r
			}
			e.ack(r.Token)
			acked++
		}
	}
	return nil
}

// One report that the dispatcher never takes holds up neither the others nor the worker: it
// is sent again alone, then replaced by a failure, then given up.
func TestRefusedReportIsReplacedAndGivenUp(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := newBench(t, link.Push, 3, g)
	e := b.attach()
	e.send(offers(1, 2, 3))
	for range 3 {
		g.awaitStart(t)
	}
	e.conn.Close(nil) // so that all three are reported at once, with the next session
	for range 3 {
		g.release <- success
	}
	bad := token(2)
	var words []string
	for session := 0; ; session++ {
		if session > 8 {
			t.Fatalf("the report is still sent: %v", words)
		}
		e := b.attach()
		if len(e.hello.Held) == 0 {
			break
		}
		r := e.refuse(bad, len(e.hello.Held))
		if r == nil {
			// The report was given up before: nothing that is left is refused.
			e.awaitHeld(0)
			break
		}
		word := string(r.Outcome.End)
		if r.Outcome.Failure != nil {
			word += ": " + r.Outcome.Failure.Message
		}
		words = append(words, word)
	}
	if n := len(words); n < 2 || n > 4 || words[0] != "succeeded" ||
		!strings.HasPrefix(words[n-1], "unreadable: the outcome could not be sent: ") {
		t.Fatalf("the dispatcher was told %q", words)
	}
}

// What an executor makes of an outcome fits into a report.
func TestOutcomesAreBounded(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	for i, tt := range []struct {
		out   task.Outcome
		check func(task.Outcome) error
	}{
		{task.Outcome{End: task.EndSucceeded, Result: make([]byte, terms.MaxPayload)}, func(o task.Outcome) error {
			if o.End != task.EndSucceeded {
				return fmt.Errorf("a result at the limit is reported as %s", o.End)
			}
			return nil
		}},
		{task.Outcome{End: task.EndSucceeded, Result: make([]byte, terms.MaxPayload+1)}, func(o task.Outcome) error {
			if o.End != task.EndExhausted || len(o.Result) > 0 || !strings.Contains(o.Failure.Message, "1048577 bytes") {
				return fmt.Errorf("a result over the limit is reported as %s: %v", o.End, o.Failure)
			}
			return nil
		}},
		{task.Outcome{End: task.EndSucceeded, Repr: strings.Repeat("x", 1<<20)}, func(o task.Outcome) error {
			if len(o.Repr) != task.MaxRepr {
				return fmt.Errorf("a repr of %d bytes is reported", len(o.Repr))
			}
			return nil
		}},
		{task.Outcome{End: task.EndRaised, Failure: &task.Failure{
			Type: strings.Repeat("t", 1<<20), Message: strings.Repeat("m", 1<<20), Traceback: strings.Repeat("b", 1<<20), Pickle: make([]byte, 1<<20),
		}}, func(o task.Outcome) error {
			f := o.Failure
			if len(f.Type) != task.MaxTypeText || len(f.Message) != task.MaxErrorText || len(f.Traceback) > task.MaxErrorText || f.Pickle != nil {
				return fmt.Errorf("texts of %d, %d and %d bytes and a pickle of %d are reported", len(f.Type), len(f.Message), len(f.Traceback), len(f.Pickle))
			}
			return nil
		}},
	} {
		tok := byte(i + 1)
		e.send(offers(tok))
		g.awaitStart(t)
		g.release <- tt.out
		if err := tt.check(e.report(token(tok)).Outcome); err != nil {
			t.Error(err)
		}
		e.ack(token(tok))
	}
}
