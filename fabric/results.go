package fabric

import (
	"context"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Waits of Call and GetResult.
const (
	// DefaultCallWait is how long a call waits that does not say.
	DefaultCallWait = 30 * time.Second
	// MaxWait is the longest wait of one call.
	MaxWait = 5 * time.Minute
)

// ResultReader reads the results of one call, and bounds the memory that they take: it may wait
// for room, and what it has read is held until the caller says otherwise, by means of its own.
// [Fabric.Reader] is one without bounds.
type ResultReader interface {
	// Result is [Fabric.Result].
	Result(ctx context.Context, id task.ID) (*task.Task, []byte, error)
	// Recorded says that what the call brought is recorded, or refused, and that the call goes
	// on without it, maybe for long.
	Recorded()
}

// TaskID reads the id of a task. Text that is no id names a task that does not exist.
func TaskID(text string) (task.ID, error) {
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

// Task returns the record of a task.
func (f *Fabric) Task(ctx context.Context, c Caller, id task.ID) (*task.Task, error) {
	t, err := f.cfg.Store.Task(ctx, id)
	if task.CodeOf(err) == task.CodeNotFound {
		return nil, noTask(id.String())
	}
	if err != nil {
		return nil, err
	}
	return t, c.reaches(t)
}

// Result returns record and result bytes of a task as it is now. An unfinished task is no
// error.
func (f *Fabric) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	t, result, err := f.cfg.Store.Result(ctx, id)
	if task.CodeOf(err) == task.CodeNotFound {
		return nil, nil, noTask(id.String())
	}
	return t, result, err
}

// SmallResult is Result where the store reads small results together with their records; without
// a record there is nothing to be had like that, and the task has to be asked for by other means.
func (f *Fabric) SmallResult(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	many, ok := f.cfg.Store.(store.Results)
	if !ok {
		return nil, nil, nil
	}
	found, err := many.Results(ctx, []task.ID{id})
	if err != nil {
		return nil, nil, err
	}
	return found[0].Task, found[0].Result, nil
}

// Reader is a [ResultReader] that reads whatever it is asked for.
func (f *Fabric) Reader() ResultReader { return unbounded{f} }

type unbounded struct{ *Fabric }

func (unbounded) Recorded() {}

// Await returns record and result bytes, waiting for the end of the task up to
// wait. An unfinished task is no error.
func (f *Fabric) Await(ctx context.Context, c Caller, r ResultReader, id task.ID, wait time.Duration) (*task.Task, []byte, error) {
	if err := f.Reach(ctx, c, id); err != nil {
		return nil, nil, err
	}
	if wait <= 0 {
		return r.Result(ctx, id)
	}
	w, err := f.waiters.add(c.Owner, id)
	if err != nil {
		return nil, nil, err
	}
	defer f.waiters.remove(w)
	t, result, err := r.Result(ctx, id)
	if err != nil || t.Status.Terminal() {
		return t, result, err
	}
	defer f.notices.waits(c, id)()
	return f.await(ctx, w, r, id, wait)
}

// await looks at a task when it has ended, or when the wait is over. A ring may be false:
// the sweep rings for what the store does not have, and a task that is just being
// submitted is not there yet.
func (f *Fabric) await(ctx context.Context, w *waiter, r ResultReader, id task.ID, wait time.Duration) (*task.Task, []byte, error) {
	for end := time.Now().Add(wait); ; {
		rung, err := w.sleep(ctx, time.Until(end), f.closing)
		if err != nil {
			return nil, nil, err
		}
		t, result, err := r.Result(ctx, id)
		if !rung || err != nil || t.Status.Terminal() {
			return t, result, err
		}
		f.waiters.join(&w.nodes[0])
		if t, result, err = r.Result(ctx, id); err != nil || t.Status.Terminal() {
			return t, result, err
		}
	}
}

// Call submits one task and waits for its result up to wait. An unfinished task is no error.
func (f *Fabric) Call(ctx context.Context, c Caller, r ResultReader, s *Submission, wait time.Duration) (*task.Task, []byte, error) {
	item, err := f.one(ctx, c, s)
	if err != nil {
		return nil, nil, err
	}
	id := item.Task.ID
	w, err := f.waiters.add(c.Owner, id) // before anything is recorded: a refusal leaves nothing behind
	if err != nil {
		return nil, nil, err
	}
	defer f.waiters.remove(w)
	answer, err := f.submitOne(ctx, c, f.cfg.Now(), item)
	r.Recorded()
	if err != nil {
		return nil, nil, err
	}
	if answer.ID != id {
		// A repeated request: the task that it made the first time may have ended.
		f.waiters.remove(w)
		return f.Await(ctx, c, r, answer.ID, wait)
	}
	defer f.notices.waits(c, id)()
	return f.await(ctx, w, r, id, wait)
}

// Results takes what [Fabric.AwaitAll] finds.
type Results interface {
	ResultReader
	// Add takes one result. It may keep it until Flush is called.
	Add(t *task.Task, result []byte) error
	// Flush sends what Add has kept: the next result may take long.
	Flush() error
}

// AwaitAll gives the results of tasks, whose ids must differ, to r as they end, until all have
// ended. It calls r from one goroutine.
func (f *Fabric) AwaitAll(ctx context.Context, c Caller, r Results, ids []task.ID) error {
	if err := f.Reach(ctx, c, ids...); err != nil {
		return err
	}
	w, err := f.waiters.add(c.Owner, ids...)
	if err != nil {
		return err
	}
	defer f.waiters.remove(w)
	defer f.notices.waits(c, ids...)()
	r.Recorded()
	open := make(map[task.ID]*waitNode, len(ids))
	for i := range w.nodes {
		open[w.nodes[i].id] = &w.nodes[i]
	}
	var ended []*waitNode
	for rest := ids; len(rest) > 0; {
		chunk := rest[:min(len(rest), 1000)]
		rest = rest[len(chunk):]
		found, err := f.cfg.Store.Tasks(ctx, chunk)
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
		if err := f.give(ctx, r, ended, open); err != nil || len(open) == 0 {
			return err
		}
		// The sweep is the safety net, so this wait needs no end of its own.
		if rung, err := w.sleep(ctx, MaxWait, f.closing); err != nil {
			return err
		} else if !rung && f.isClosing() {
			return ErrClosing
		}
		ended = w.take()
	}
}

// give gives r what has ended and strikes it from open.
func (f *Fabric) give(ctx context.Context, r Results, ended []*waitNode, open map[task.ID]*waitNode) error {
	for chunk := range slices.Chunk(ended, resultsAtOnce) {
		ids := make([]task.ID, len(chunk))
		for i, n := range chunk {
			ids[i] = n.id
		}
		found, err := f.resultsNow(ctx, ids)
		if err != nil {
			return err
		}
		for i, id := range ids {
			if open[id] == nil {
				continue // rung and found, or rung twice
			}
			t, result := found[i].Task, found[i].Result
			if t == nil {
				if t, result, err = r.Result(ctx, id); err != nil {
					return err
				}
			}
			if !t.Status.Terminal() {
				f.waiters.join(chunk[i]) // a false ring: wait for the next one
				continue
			}
			delete(open, id)
			if err := r.Add(t, result); err != nil {
				return err
			}
		}
	}
	return r.Flush()
}

// resultsAtOnce is how many results are read in one call, where the store has one for it.
const resultsAtOnce = 128

// resultsNow reads the results of tasks that have ended; an entry without a task has to
// be read by itself.
func (f *Fabric) resultsNow(ctx context.Context, ids []task.ID) ([]store.Read, error) {
	if many, ok := f.cfg.Store.(store.Results); ok && len(ids) > 1 {
		return many.Results(ctx, ids)
	}
	return make([]store.Read, len(ids)), nil
}

// Watch gives a task's record to show now and after each change of its status, until it has
// ended.
func (f *Fabric) Watch(ctx context.Context, c Caller, id task.ID, show func(*task.Task) error) error {
	w, err := f.waiters.watch(c.Owner, id)
	if err != nil {
		return err
	}
	defer f.waiters.remove(w)
	var status task.Status
	attempts := -1
	bell := f.cfg.Store.Bell()
	for {
		// Asked for first and looked second: a change is either seen or rung.
		bell.Watch(id, 3*f.cfg.SafetyNet)
		t, err := f.Task(ctx, c, id)
		if err != nil {
			return err
		}
		if t.Status != status || t.AttemptCount != attempts {
			status, attempts = t.Status, t.AttemptCount
			if err := show(t); err != nil {
				return err
			}
		}
		if status.Terminal() {
			return nil
		}
		if _, err := w.sleep(ctx, f.cfg.SafetyNet, f.closing); err != nil {
			return err
		}
		if f.isClosing() {
			return ErrClosing
		}
	}
}

// Cancel ends an unfinished task, with onlyQueued unless it runs already, and returns its
// record as it is after that.
func (f *Fabric) Cancel(ctx context.Context, c Caller, id task.ID, onlyQueued bool) (*task.Task, error) {
	if err := f.Reach(ctx, c, id); err != nil {
		return nil, err
	}
	records, err := f.cfg.Store.Cancel(ctx, f.cfg.Now(), []task.ID{id}, onlyQueued)
	if err != nil {
		return nil, err
	}
	if records[0] == nil {
		return nil, noTask(id.String())
	}
	return records[0], nil
}

// Log returns what is kept of an attempt's output, and which attempt that is; 0 asks for the
// latest one. The latest of a task that never ran is 0, and has no output.
func (f *Fabric) Log(ctx context.Context, c Caller, id task.ID, attempt int) ([]byte, int, error) {
	if attempt < 0 {
		return nil, 0, invalid("attempt", "attempt %d: want a number from 1, or 0 for the latest", attempt)
	}
	t, err := f.Task(ctx, c, id)
	if err != nil {
		return nil, 0, err
	}
	if attempt > t.AttemptCount {
		return nil, 0, task.Errorf(task.CodeNotFound, "", "task %s has no attempt %d: %d were started", t.ID, attempt, t.AttemptCount)
	}
	if attempt == 0 {
		attempt = t.AttemptCount
	}
	if attempt == 0 {
		return nil, 0, nil // nothing was started yet
	}
	b, err := f.cfg.Store.Log(ctx, t.ID, attempt)
	return b, attempt, err
}

// Sweep looks by itself at what is waited for, as a bell may miss a ring, and tells the log of
// tasks that wait for each other. The error is the store's: the next sweep looks again.
func (f *Fabric) Sweep(ctx context.Context) error {
	f.notices.look(ctx)
	return f.waiters.sweep(ctx, f.cfg.Store)
}

// ErrClosing ends streams when a fabric closes.
var ErrClosing = task.Errorf(task.CodeUnavailable, "", "the server is closing: ask another one, or again")
