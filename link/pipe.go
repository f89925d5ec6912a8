package link

import "sync"

// maxQueuedFrames bounds what a peer may leave unread before its link is ended. A
// session in order has far fewer frames under way: credit bounds the offers, and
// what a worker reports is bounded by what it was offered.
const maxQueuedFrames = 1 << 16

// Pipe returns the two ends of a link inside one process. Frames are handed over as
// they are, without a copy.
func Pipe() (dispatcher, worker Conn) {
	down, up := newQueue(), newQueue()
	return &pipeConn{in: up, out: down}, &pipeConn{in: down, out: up}
}

type pipeConn struct{ in, out *queue }

func (p *pipeConn) Send(f Frame) error { return p.out.put(f) }

func (p *pipeConn) Recv() (Frame, error) { return p.in.get() }

// Close lets the peer read what was sent before.
func (p *pipeConn) Close(error) {
	p.out.close()
	p.in.close()
}

// queue is a bounded first-in-first-out list that never blocks its writer.
type queue struct {
	mu     sync.Mutex
	ready  sync.Cond
	frames []queued
	closed bool
}

// queued is a frame and what is called when it was taken, or will not be.
type queued struct {
	frame   Frame
	written func()
}

func newQueue() *queue {
	q := &queue{}
	q.ready.L = &q.mu
	return q
}

func (q *queue) put(f Frame) error {
	written := written(f)
	if err := q.add(f, written); err != nil {
		if written != nil {
			written()
		}
		return err
	}
	return nil
}

// written is what is to be called once for a frame; most often nil.
func written(f Frame) func() {
	if b, ok := f.(*FunctionBytes); ok {
		return b.Written
	}
	return nil
}

func (q *queue) add(f Frame, written func()) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	if len(q.frames) >= maxQueuedFrames {
		q.closed = true
		q.ready.Broadcast()
		return ErrOverrun
	}
	q.frames = append(q.frames, queued{f, written})
	q.ready.Signal()
	return nil
}

func (q *queue) get() (Frame, error) {
	next, err := q.take()
	if next.written != nil {
		next.written()
	}
	return next.frame, err
}

func (q *queue) take() (queued, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 {
		if q.closed {
			return queued{}, ErrClosed
		}
		q.ready.Wait()
	}
	next := q.frames[0]
	q.frames[0] = queued{}
	q.frames = q.frames[1:]
	return next, nil
}

// close ends the queue. What is in it may still be taken, and nobody waits for that.
func (q *queue) close() {
	var calls []func()
	q.mu.Lock()
	q.closed = true
	for i := range q.frames {
		if q.frames[i].written != nil {
			calls = append(calls, q.frames[i].written)
			q.frames[i].written = nil
		}
	}
	q.ready.Broadcast()
	q.mu.Unlock()
	for _, written := range calls {
		written()
	}
}
