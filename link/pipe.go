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
	frames []Frame
	closed bool
}

func newQueue() *queue {
	q := &queue{}
	q.ready.L = &q.mu
	return q
}

func (q *queue) put(f Frame) error {
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
	q.frames = append(q.frames, f)
	q.ready.Signal()
	return nil
}

func (q *queue) get() (Frame, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 {
		if q.closed {
			return nil, ErrClosed
		}
		q.ready.Wait()
	}
	f := q.frames[0]
	q.frames[0] = nil
	q.frames = q.frames[1:]
	return f, nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}
