package fabric

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// run plays a worker for the next task: it claims, starts and ends it with a JSON value.
func run(t *testing.T, f *Fabric, value string) task.ID {
	t.Helper()
	now := time.Now()
	got, err := f.cfg.Store.Claim(t.Context(), now, []store.ClaimRequest{{
		Claim: task.ID(uuid.New()), Session: task.ID(uuid.New()), Worker: "w", Queues: []string{task.DefaultQueue},
		Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(time.Minute),
	}})
	if err != nil || len(got[0]) != 1 {
		t.Fatalf("%v, %v, want one task", got, err)
	}
	c := got[0][0]
	if _, err := f.cfg.Store.Renew(t.Context(), now, []store.Renewal{{Token: c.Token, Until: now.Add(time.Minute), StartedAt: now}}); err != nil {
		t.Fatal(err)
	}
	out := task.Outcome{End: task.EndSucceeded, Result: []byte(value), Encoding: task.EncodingJSON}
	if v, err := f.cfg.Store.Settle(t.Context(), now, []store.Settlement{{Token: c.Token, Outcome: out}}); err != nil || v[0] != task.VerdictRecorded {
		t.Fatalf("settle: %v, %v", v, err)
	}
	return c.Task.ID
}

// reader notes what a call says to the reader that it was given.
type reader struct {
	ResultReader
	said []string
}

func (r *reader) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	r.said = append(r.said, "result")
	return r.ResultReader.Result(ctx, id)
}

func (r *reader) Recorded() { r.said = append(r.said, "recorded") }

// TestCall: a call reads its result by the reader that it was given, after it has said that what
// it brought is recorded; a repeat is answered with the first task.
func TestCall(t *testing.T) {
	f := newFabric(t)
	r := &reader{ResultReader: f.Reader()}
	type answer struct {
		t      *task.Task
		result []byte
		err    error
	}
	answers := make(chan answer, 1)
	s := &Submission{Function: "f", Args: []byte("[1]"), RequestID: "once", Options: Some(Options{Priority: Some(9)})}
	go func() {
		got, result, err := f.Call(t.Context(), Caller{}, r, s, time.Minute)
		answers <- answer{got, result, err}
	}()
	eventually(t, "the task is there", func() bool { q, err := f.Queues(t.Context()); return err == nil && len(q) == 1 && q[0].Queued == 1 })
	id := run(t, f, "42")
	first := <-answers
	if first.err != nil || first.t.ID != id || string(first.result) != "42" || first.t.Priority != 9 {
		t.Fatalf("%+v", first)
	}
	if !slices.Equal(r.said, []string{"recorded", "result"}) {
		t.Errorf("the reader was asked %q", r.said)
	}
	again, result, err := f.Call(t.Context(), Caller{}, f.Reader(), s, time.Minute)
	if err != nil || again.ID != id || string(result) != "42" || f.Submitted() != 2 {
		t.Errorf("a repeat: %v, %q, %v", again, result, err)
	}
	s.Args = []byte("[2]")
	if _, _, err := f.Call(t.Context(), Caller{}, f.Reader(), s, time.Minute); task.CodeOf(err) != task.CodeConflict {
		t.Errorf("another request of the same id: %v", err)
	}
	if tasks, watched, waits := f.Waiting(); tasks+watched+waits != 0 {
		t.Errorf("%d tasks are waited for, %d watched, by %d", tasks, watched, waits)
	}
}

// TestCloseEndsWaits: calls are answered with what is known, and streams end.
func TestCloseEndsWaits(t *testing.T) {
	f := newFabric(t)
	made, err := f.Submit(t.Context(), Caller{}, &Submission{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 3)
	go func() {
		got, _, err := f.Await(t.Context(), Caller{}, f.Reader(), made.ID, time.Hour)
		if err == nil && got.Status != task.Queued {
			err = errors.New("the task is " + string(got.Status))
		}
		ended <- err
	}()
	go func() {
		if err := f.AwaitAll(t.Context(), Caller{}, results{f.Reader()}, []task.ID{made.ID}); !errors.Is(err, ErrClosing) {
			ended <- errors.Join(errors.New("AwaitAll does not end"), err)
			return
		}
		ended <- nil
	}()
	go func() {
		if err := f.Watch(t.Context(), Caller{}, made.ID, func(*task.Task) error { return nil }); !errors.Is(err, ErrClosing) {
			ended <- errors.Join(errors.New("Watch does not end"), err)
			return
		}
		ended <- nil
	}()
	eventually(t, "three calls wait", func() bool { _, _, waits := f.Waiting(); return waits == 3 })
	f.Close()
	f.Close()
	for range 3 {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a call waits on")
		}
	}
}

// TestChildrenAlone: a running task has its children and nothing else, whichever way it asks, and
// they take after it.
func TestChildrenAlone(t *testing.T) {
	f := newFabric(t)
	deadline := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	other, err := f.Submit(t.Context(), Caller{Owner: "somebody"}, &Submission{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	c := Caller{Owner: "somebody", Task: task.ID(uuid.New()), Deadline: deadline}
	child, err := f.Submit(t.Context(), c, &Submission{Function: "f", Options: Some(Options{Deadline: Some(deadline.Add(time.Hour))})})
	if err != nil || child.Parent != c.Task || child.CreatedBy != "somebody" || !child.Deadline.Equal(deadline) {
		t.Errorf("%+v, %v, want a child", child, err)
	}
	asks := map[string]func(id task.ID) error{
		"Task":     func(id task.ID) error { _, err := f.Task(t.Context(), c, id); return err },
		"Await":    func(id task.ID) error { _, _, err := f.Await(t.Context(), c, f.Reader(), id, 0); return err },
		"AwaitAll": func(id task.ID) error { return f.AwaitAll(t.Context(), c, results{f.Reader()}, []task.ID{id}) },
		"Watch":    func(id task.ID) error { return f.Watch(t.Context(), c, id, func(*task.Task) error { return errSeen }) },
		"Log":      func(id task.ID) error { _, _, err := f.Log(t.Context(), c, id, 0); return err },
		"Cancel":   func(id task.ID) error { _, err := f.Cancel(t.Context(), c, id, false); return err },
	}
	for name, ask := range asks {
		if err := ask(other.ID); task.CodeOf(err) != task.CodeDenied {
			t.Errorf("%s of another's task: %v", name, err)
		}
		if err := ask(c.Task); task.CodeOf(err) != task.CodeNotFound {
			t.Errorf("%s of no task: %v", name, err)
		}
	}
	if got, err := f.Task(t.Context(), Caller{}, other.ID); err != nil || got.Status != task.Queued {
		t.Errorf("the other task: %+v, %v", got, err)
	}
	if got, err := f.Cancel(t.Context(), c, child.ID, false); err != nil || got.Status != task.Cancelled {
		t.Errorf("%+v, %v, want it cancelled", got, err)
	}
	for name, ask := range asks {
		if err := ask(child.ID); err != nil && !errors.Is(err, errSeen) {
			t.Errorf("%s of its child: %v", name, err)
		}
	}
}

var errSeen = errors.New("seen")
