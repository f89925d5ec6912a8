package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Waits of Call and GetResult.
const (
	defaultCallWait = 30 * time.Second
	maxWait         = 5 * time.Minute
)

// Bounds of one message of AwaitResults. A larger result travels alone.
const (
	maxResultsPerMessage = 256
	maxBytesPerMessage   = 1 << 20
)

// waitOf reads how long a call waits.
func waitOf(field string, d *durationpb.Duration, def time.Duration) (time.Duration, error) {
	if d == nil {
		return def, nil
	}
	v := d.AsDuration()
	if err := d.CheckValid(); err != nil || v < 0 || v > maxWait {
		return 0, invalid(field, "%s is %v: want 0s to %v", field, v, maxWait)
	}
	return v, nil
}

func taskID(text string) (task.ID, error) {
	id, err := task.ParseID(text)
	if err != nil {
		return id, noTask(text)
	}
	return id, nil
}

// noTask is the answer for ids that are unknown, and for text that is no id: both
// name a task that does not exist.
func noTask(text string) error {
	return task.Errorf(task.CodeNotFound, "", "no task has the id %.64q", text)
}

// task returns the record of the task of that id.
func (s *Server) task(ctx context.Context, text string) (*task.Task, error) {
	id, err := taskID(text)
	if err != nil {
		return nil, err
	}
	return s.taskByID(ctx, id)
}

func (s *Server) taskByID(ctx context.Context, id task.ID) (*task.Task, error) {
	t, err := s.cfg.Store.Task(ctx, id)
	if task.CodeOf(err) == task.CodeNotFound {
		return nil, noTask(id.String())
	}
	return t, err
}

// result returns record and result bytes, waiting for the end of the task up to
// wait. An unfinished task is no error.
func (s *Server) result(ctx context.Context, id task.ID, wait time.Duration) (*task.Task, []byte, error) {
	if wait <= 0 {
		return s.answerNow(ctx, id)
	}
	w, err := s.waiters.add(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	defer s.waiters.remove(w)
	t, result, err := s.answerNow(ctx, id)
	if err != nil || t.Status.Terminal() {
		return t, result, err
	}
	defer s.notices.waits(ctx, id)()
	return s.await(ctx, w, id, wait)
}

// await looks at a task when it has ended, or when the wait is over. A ring may be false:
// the sweep rings for what the store does not have, and a task that is just being
// submitted is not there yet.
func (s *Server) await(ctx context.Context, w *waiter, id task.ID, wait time.Duration) (*task.Task, []byte, error) {
	for end := time.Now().Add(wait); ; {
		rung, err := w.sleep(ctx, time.Until(end), s.closing)
		if err != nil {
			return nil, nil, err
		}
		t, result, err := s.answerNow(ctx, id)
		if !rung || err != nil || t.Status.Terminal() {
			return t, result, err
		}
		s.waiters.join(&w.nodes[0])
		if t, result, err = s.answerNow(ctx, id); err != nil || t.Status.Terminal() {
			return t, result, err
		}
	}
}

func (s *Server) resultNow(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	t, result, err := s.cfg.Store.Result(ctx, id)
	if task.CodeOf(err) == task.CodeNotFound {
		return nil, nil, noTask(id.String())
	}
	return t, result, err
}

// call submits one task and waits for its result.
func (s *Server) call(ctx context.Context, item store.Submission, wait time.Duration) (*treadlev1.TaskResult, error) {
	id := item.Task.ID
	w, err := s.waiters.add(ctx, id) // before anything is recorded: a refusal leaves nothing behind
	if err != nil {
		return nil, err
	}
	defer s.waiters.remove(w)
	answer, err := s.submit(ctx, s.cfg.Now(), item)
	holdingOf(ctx).dropRequest() // it is recorded, and the wait may be long
	if err != nil {
		return nil, err
	}
	if answer.ID != id {
		// A repeated request: the task that it made the first time may have ended.
		s.waiters.remove(w)
		t, result, err := s.result(ctx, answer.ID, wait)
		if err != nil {
			return nil, err
		}
		return resultProto(t, result), nil
	}
	defer s.notices.waits(ctx, id)()
	t, result, err := s.await(ctx, w, id, wait)
	if err != nil {
		return nil, err
	}
	return resultProto(t, result), nil
}

// awaitResults sends the results of tasks as they end.
func (s *Server) awaitResults(ctx context.Context, ids []task.ID, send func(*treadlev1.AwaitResultsResponse) error) error {
	w, err := s.waiters.add(ctx, ids...)
	if err != nil {
		return err
	}
	defer s.waiters.remove(w)
	defer s.notices.waits(ctx, ids...)()
	holdingOf(ctx).dropRequest()
	open := make(map[task.ID]*waitNode, len(ids))
	for i := range w.nodes {
		open[w.nodes[i].id] = &w.nodes[i]
	}
	var ended []*waitNode
	for rest := ids; len(rest) > 0; {
		chunk := rest[:min(len(rest), 1000)]
		rest = rest[len(chunk):]
		found, err := s.cfg.Store.Tasks(ctx, chunk)
		if err != nil {
			return err
		}
		for i, t := range found {
			switch {
			case t == nil:
				return noTask(chunk[i].String())
			case t.Status.Terminal():
				ended = append(ended, open[chunk[i]])
			}
		}
	}
	for {
		if err := s.sendResults(ctx, ended, open, send); err != nil || len(open) == 0 {
			return err
		}
		// The sweep is the safety net, so this wait needs no end of its own.
		if rung, err := w.sleep(ctx, maxWait, s.closing); err != nil {
			return err
		} else if !rung && s.isClosing() {
			return errClosing
		}
		ended = w.take()
	}
}

// sendResults sends what has ended and strikes it from open.
func (s *Server) sendResults(ctx context.Context, ended []*waitNode, open map[task.ID]*waitNode, send func(*treadlev1.AwaitResultsResponse) error) error {
	out := &treadlev1.AwaitResultsResponse{}
	size, held := 0, holdingOf(ctx)
	flush := func() error {
		if len(out.Results) == 0 {
			return nil
		}
		err := send(out)
		out, size = &treadlev1.AwaitResultsResponse{}, 0
		held.dropAnswer()
		return err
	}
	for chunk := range slices.Chunk(ended, resultsAtOnce) {
		ids := make([]task.ID, len(chunk))
		for i, n := range chunk {
			ids[i] = n.id
		}
		found, err := s.resultsNow(ctx, ids)
		if err != nil {
			return err
		}
		for i, id := range ids {
			if open[id] == nil {
				continue // rung and found, or rung twice
			}
			t, result := found[i].Task, found[i].Result
			if t == nil {
				// What is held goes first: a wait for room never has some of it.
				if held.forAnswer() > 0 {
					if err := flush(); err != nil {
						return err
					}
				}
				if t, result, err = s.answerNow(ctx, id); err != nil {
					return err
				}
			}
			if !t.Status.Terminal() {
				s.waiters.join(chunk[i]) // a false ring: wait for the next one
				continue
			}
			delete(open, id)
			m := resultProto(t, result)
			n := proto.Size(m)
			if size+n > maxBytesPerMessage || len(out.Results) == maxResultsPerMessage {
				if err := flush(); err != nil {
					return err
				}
			}
			out.Results, size = append(out.Results, m), size+n
		}
	}
	return flush()
}

// resultsAtOnce is how many results are read in one call, where the store has one for it.
const resultsAtOnce = 128

// resultsNow reads the results of tasks that have ended; an entry without a task has to
// be read by itself.
func (s *Server) resultsNow(ctx context.Context, ids []task.ID) ([]store.Read, error) {
	if many, ok := s.cfg.Store.(store.Results); ok && len(ids) > 1 {
		return many.Results(ctx, ids)
	}
	return make([]store.Read, len(ids)), nil
}

// watch sends a task's record now and after each change of its status.
func (s *Server) watch(ctx context.Context, id task.ID, send func(*treadlev1.Task) error) error {
	w, err := s.waiters.watch(ctx, id)
	if err != nil {
		return err
	}
	defer s.waiters.remove(w)
	var status task.Status
	attempts := -1
	bell := s.cfg.Store.Bell()
	for {
		// Asked for first and looked second: a change is either seen or rung.
		bell.Watch(id, 3*s.cfg.SafetyNet)
		t, err := s.task(ctx, id.String())
		if err != nil {
			return err
		}
		if t.Status != status || t.AttemptCount != attempts {
			status, attempts = t.Status, t.AttemptCount
			if err := send(taskProto(t)); err != nil {
				return err
			}
		}
		if status.Terminal() {
			return nil
		}
		if _, err := w.sleep(ctx, s.cfg.SafetyNet, s.closing); err != nil {
			return err
		}
		if s.isClosing() {
			return errClosing
		}
	}
}

// errClosing ends streams when the server stops.
var errClosing = task.Errorf(task.CodeUnavailable, "", "the server is closing: ask another one, or again")
