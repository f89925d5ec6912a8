//go:build unix

package pyproc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// Delays between spawns that fail one after the other.
const (
	respawnFirst = 100 * time.Millisecond
	respawnMost  = 5 * time.Second
	// maxReplacements is how many runners an attempt may find dead before it started.
	maxReplacements = 3
)

// slot keeps one runner alive. Its keeper goroutine is the only one that spawns; run is
// called by one goroutine at a time.
type slot struct {
	e     *Executor
	index int
	// ctx ends with the executor or when the slot is shut, done is closed when its keeper has
	// ended.
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	cur *runner
	err error // why the last spawn failed
	// changed is closed and replaced when cur or err changes.
	changed chan struct{}
}

func newSlot(e *Executor, index int) *slot {
	ctx, cancel := context.WithCancel(e.ctx)
	return &slot{e: e, index: index, ctx: ctx, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
}

// shut ends the runner and waits for its keeper.
func (s *slot) shut() {
	s.cancel()
	s.killCurrent()
	<-s.done
}

// keep spawns a runner, waits for its end, and again, until the slot is shut or the
// executor closed.
func (s *slot) keep() {
	defer close(s.done)
	defer s.cancel()
	delay := respawnFirst
	said := "" // said once, until a runner has started
	for s.ctx.Err() == nil {
		r, err := s.e.spawn(s.index)
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			if text := err.Error(); text != said {
				s.e.log.Error("a Python runner did not start", "slot", s.index, "error", err)
				said = text
			}
			s.e.log.Debug("a Python runner did not start", "slot", s.index, "error", err, "retry_in", delay)
			s.set(nil, err)
			select {
			case <-time.After(delay):
			case <-s.ctx.Done():
			}
			delay = min(2*delay, respawnMost)
			continue
		}
		delay, said = respawnFirst, ""
		s.set(r, nil)
		if s.ctx.Err() != nil {
			r.kill()
		}
		<-r.gone
		s.set(nil, nil)
	}
}

func (s *slot) set(r *runner, err error) {
	s.mu.Lock()
	s.cur, s.err = r, err
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

func (s *slot) killCurrent() {
	s.mu.Lock()
	r := s.cur
	s.mu.Unlock()
	if r != nil {
		r.kill()
	}
}

// wait returns the slot's runner as soon as there is a live one. Unless patient it gives
// up at the first spawn that fails.
func (s *slot) wait(ctx context.Context, patient bool) (*runner, error) {
	for {
		s.mu.Lock()
		r, err, changed := s.cur, s.err, s.changed
		s.mu.Unlock()
		if r != nil && !r.ended() {
			return r, nil
		}
		if r == nil && err != nil && !patient {
			return nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err != nil {
				return nil, err
			}
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, errClosed
		}
	}
}

var errClosed = errors.New("the Python executor is closed")

// Prepared implements [worker.Preparer].
func (e *Executor) Prepared(slot int) bool {
	s := e.slotAt(slot)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur != nil && !s.cur.ended()
}

// Prepare implements [worker.Preparer].
func (e *Executor) Prepare(ctx context.Context, slot int, patient bool) error {
	s := e.slotAt(slot)
	if s == nil {
		return fmt.Errorf("there is no slot %d", slot)
	}
	_, err := s.wait(ctx, patient)
	return err
}

// acquire is wait with the patience of an attempt.
func (s *slot) acquire(ctx context.Context) (*runner, *task.Outcome) {
	s.mu.Lock()
	r := s.cur
	s.mu.Unlock()
	if r != nil && !r.ended() {
		return r, nil
	}
	bounded, cancel := context.WithTimeout(ctx, s.e.cfg.StartTimeout)
	defer cancel()
	r, err := s.wait(bounded, false)
	switch {
	case err == nil:
		return r, nil
	case ctx.Err() != nil, errors.Is(err, errClosed):
		out := cancelled()
		return nil, &out
	default:
		// Nothing has run: another worker may do better.
		out := task.Fail(task.EndReturned, fmt.Sprintf("no Python runner could be started: %v", err))
		return nil, &out
	}
}

func cancelled() task.Outcome {
	return task.Fail(task.EndCancelled, "the attempt was stopped by its worker")
}

// run runs an attempt; one that finds its runner dead before it started gets another.
func (s *slot) run(ctx context.Context, a *worker.Attempt) task.Outcome {
	var code []byte
	for range maxReplacements {
		if ctx.Err() != nil {
			return cancelled()
		}
		r, failed := s.acquire(ctx)
		if failed != nil {
			return *failed
		}
		out, started := r.run(ctx, a, &code)
		if started {
			return out
		}
		r.kill()
		<-r.gone
	}
	return task.Fail(task.EndReturned, fmt.Sprintf("%d Python runners in a row died before the attempt started", maxReplacements))
}
