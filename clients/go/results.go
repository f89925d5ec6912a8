package treadle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// maxStreams is how many AwaitResults streams the waiting callers of one client share.
// Servers bound the streams of a connection, so past that number new waiters join
// the stream with the fewest.
const maxStreams = 16

// waiter is one caller that waits for one result.
type waiter struct {
	id string
	// answer has room for one, so that nobody waits for who left.
	answer chan awaited
	stream *resultStream // guarded by resultStreams.mu
}

type awaited struct {
	result *treadlev1.TaskResult
	err    error
}

func newWaiter() *waiter { return &waiter{answer: make(chan awaited, 1)} }

// resultStreams waits for results on behalf of many callers with few streams: those
// whose tasks were recorded together are awaited together.
type resultStreams struct {
	c *Client

	mu     sync.Mutex
	live   map[*resultStream]bool
	closed bool
	wg     sync.WaitGroup
}

// resultStream is the goroutine of one AwaitResults stream, which is opened again
// when others join it or the connection is lost.
type resultStream struct {
	owner *resultStreams
	// waiting belongs to the goroutine.
	waiting map[string][]*waiter
	left    map[string]bool

	// The rest is guarded by owner.mu.
	joining []*waiter
	size    int                // waiters that have not left
	cancel  context.CancelFunc // ends the stream that is open
}

func newResultStreams(c *Client) *resultStreams {
	s := &resultStreams{c: c, live: map[*resultStream]bool{}}
	c.batcher.recorded = s.add
	return s
}

// add has the results of the waiters delivered to them.
func (s *resultStreams) add(ws []*waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		for _, w := range ws {
			w.answer <- awaited{err: fmt.Errorf("AwaitResults: %w", ErrClosed)}
		}
		return
	}
	target := s.target(len(ws))
	for _, w := range ws {
		w.stream = target
	}
	target.joining = append(target.joining, ws...)
	target.size += len(ws)
	if !s.live[target] {
		s.live[target] = true
		s.wg.Go(target.run)
	} else if target.cancel != nil {
		target.cancel()
	}
}

// target returns a new stream while there is room for one, else the smallest that n
// more fit in.
func (s *resultStreams) target(n int) *resultStream {
	var smallest *resultStream
	if len(s.live) >= maxStreams {
		for r := range s.live {
			if r.size+n <= maxBatch && (smallest == nil || r.size < smallest.size) {
				smallest = r
			}
		}
	}
	if smallest != nil {
		return smallest
	}
	return &resultStream{owner: s, waiting: map[string][]*waiter{}, left: map[string]bool{}}
}

// wait returns the result of a waiter that was added.
func (s *resultStreams) wait(ctx context.Context, w *waiter) (*Result, error) {
	select {
	case a := <-w.answer:
		if a.err != nil {
			return nil, a.err
		}
		return resultOf(a.result), nil
	case <-ctx.Done():
		s.mu.Lock()
		// The last one to leave ends the stream.
		if r := w.stream; r != nil {
			w.stream = nil
			if r.size--; r.size == 0 && r.cancel != nil {
				r.cancel()
			}
		}
		s.mu.Unlock()
		return nil, ctxError(ctx, "Call", "task "+w.id+" is not finished")
	}
}

// close waits for the streams, which end with the client's life.
func (s *resultStreams) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
}

func (r *resultStream) run() {
	c := r.owner.c
	pause := newBackOff()
	start := time.Now() // of a time without progress
	for {
		ctx, cancel := context.WithCancel(c.life)
		if !r.next(cancel) {
			cancel()
			return
		}
		before := len(r.left)
		err := c.awaitOnce(ctx, r.left, r.deliver)
		joined := ctx.Err() != nil && c.life.Err() == nil
		cancel()
		if len(r.left) < before || joined {
			pause.Reset()
			start = time.Now()
		}
		if err == nil || joined {
			continue
		}
		if errors.Is(err, ErrNotFound) && r.sift() {
			continue
		}
		if err = c.closedError("AwaitResults", err); !c.retryable(err) || time.Since(start) > c.config.retry {
			r.fail(err)
			return
		}
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-timer.C:
		case <-c.life.Done():
			timer.Stop()
		}
	}
}

// next takes in who joined and says whether there is anybody to wait for; if not,
// the stream is gone.
func (r *resultStream) next(cancel context.CancelFunc) bool {
	r.owner.mu.Lock()
	defer r.owner.mu.Unlock()
	for id, ws := range r.waiting {
		if ws = slices.DeleteFunc(ws, func(w *waiter) bool { return w.stream == nil }); len(ws) == 0 {
			delete(r.waiting, id)
			delete(r.left, id)
		} else {
			r.waiting[id] = ws
		}
	}
	for _, w := range r.joining {
		if w.stream == nil {
			continue // the caller has left
		}
		id := strings.ToLower(w.id)
		r.waiting[id] = append(r.waiting[id], w)
		r.left[id] = true
	}
	r.joining, r.cancel = nil, cancel
	if r.size > 0 {
		return true
	}
	delete(r.owner.live, r)
	return false
}

func (r *resultStream) deliver(p *treadlev1.TaskResult) bool {
	ws := r.waiting[p.GetTaskId()]
	delete(r.waiting, p.GetTaskId())
	for _, w := range ws {
		w.answer <- awaited{result: p}
	}
	r.forget(ws)
	return true
}

// sift answers the waiters of tasks that the server does not know, so that they do
// not take the others with them, and says whether there were any.
func (r *resultStream) sift() bool {
	found := false
	for id := range r.left {
		_, err := r.owner.c.Task(r.owner.c.life, id)
		if !errors.Is(err, ErrNotFound) {
			continue
		}
		found = true
		ws := r.waiting[id]
		delete(r.waiting, id)
		delete(r.left, id)
		for _, w := range ws {
			w.answer <- awaited{err: err}
		}
		r.forget(ws)
	}
	return found
}

// fail ends the stream with an error for all who wait.
func (r *resultStream) fail(err error) {
	r.owner.mu.Lock()
	ws := r.joining
	delete(r.owner.live, r)
	r.owner.mu.Unlock()
	for _, w := range r.waiting {
		ws = append(ws, w...)
	}
	for _, w := range ws {
		w.answer <- awaited{err: err}
	}
}

// forget takes waiters off the count. Those that left are off it already.
func (r *resultStream) forget(ws []*waiter) {
	r.owner.mu.Lock()
	defer r.owner.mu.Unlock()
	for _, w := range ws {
		if w.stream != nil {
			w.stream = nil
			r.size--
		}
	}
}
