package linkpb

import (
	"fmt"
	"runtime"
	"time"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
)

// queued is a message that waits to be written.
type queued[S any] struct {
	message *S
	// bytes is its part of conn.held: that of its whole frame goes with the last message.
	bytes int64
	// written is what is called once when it was written, or will not be; most often nil.
	written func()
}

// bulkMessage is a message and the chunks that go before it.
type bulkMessage[S any] struct {
	chunks []*treadlev1.Chunk
	queued[S]
}

// Send implements link.Conn.
func (c *conn[S, R]) Send(f link.Frame) error {
	var written func()
	if b, ok := f.(*link.FunctionBytes); ok {
		written = b.Written
	}
	slowest, err := c.queue(f, written)
	if err != nil && written != nil {
		written()
	}
	for _, m := range slowest {
		c.quota.budget.ended.Add(1)
		reason := overrun("all that waits for slow workers is more than there is room for, or than those of one token may have, and nothing "+
			"was written to this one for longest (%s)", time.Since(time.Unix(0, m.since.Load())).Round(time.Millisecond))
		if m == &c.member && err == nil {
			err = reason
		}
		m.end(reason)
	}
	return err
}

// queue puts a frame into the queue. An error says that it is not there.
func (c *conn[S, R]) queue(f link.Frame, written func()) (slowest []*member, err error) {
	bytes := weigh(f)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil, link.ErrClosed
	}
	over := len(c.control)+len(c.bulk) >= maxQueued
	if over {
		err = link.ErrOverrun
	}
	if !over && c.quota != nil && c.held+bytes > c.quota.budget.hard {
		over, err = true, overrun("%d bytes wait for it, the limit is %d", c.held+bytes, c.quota.budget.hard)
		c.quota.budget.ended.Add(1)
	}
	if over {
		c.closing, c.aborted = true, true
		c.awaken()
		return nil, err
	}
	before := len(c.chunks.pending)
	messages, err := c.codec.encode(f, &c.chunks)
	if err != nil {
		return nil, fmt.Errorf("encode a frame: %w", err)
	}
	_, bye := f.(*link.Bye)
	bulk := len(c.chunks.pending) > before || bye && len(c.bulk) > 0
	for i, m := range messages {
		q := queued[S]{message: m}
		if i == len(messages)-1 {
			q.bytes, q.written = bytes, written
		}
		if !bulk {
			c.control = append(c.control, q)
			continue
		}
		// The chunks of all messages go before the first: it is enough that they
		// precede the message that names them.
		b := &bulkMessage[S]{queued: q}
		if i == 0 {
			b.chunks = c.chunks.take()
		}
		c.bulk = append(c.bulk, b)
	}
	slowest = c.count(bytes)
	c.awaken()
	return slowest, nil
}

// awaken has somebody write what waits, or end what was to be written. c.mu is held.
func (c *conn[S, R]) awaken() {
	if !c.writing {
		c.writing = true
		go c.write()
	}
}

// count changes the bytes that wait. c.mu is held.
func (c *conn[S, R]) count(by int64) (slowest []*member) {
	c.held += by
	if c.quota == nil {
		return nil
	}
	b := c.quota.budget
	var want int64
	if c.held > freeQueue {
		want = (c.held + queueStep - 1) / queueStep * queueStep
	}
	if want != c.charged {
		c.charged = want
		c.tight, slowest = b.queues.charge(&c.member, want)
	}
	if c.held > b.soft || c.charged > 0 && c.tight {
		c.behind = c.behind || by > 0
	}
	if c.held > b.soft && c.stall == nil && !c.closing {
		c.stallSent = c.sent.Load()
		c.stall = time.AfterFunc(b.stallAfter, c.stalled)
	}
	return slowest
}

// stalled ends a link over the soft limit of which nothing was written since the last look.
func (c *conn[S, R]) stalled() {
	c.mu.Lock()
	b := c.quota.budget
	if c.closing || c.held <= b.soft {
		c.stall = nil
		c.mu.Unlock()
		return
	}
	if sent := c.sent.Load(); sent != c.stallSent {
		c.stallSent = sent
		c.stall.Reset(b.stallAfter)
		c.mu.Unlock()
		return
	}
	held := c.held
	c.mu.Unlock()
	b.ended.Add(1)
	c.end(overrun("%d bytes wait for it and none was written for %s; over %d a worker has to read", held, b.stallAfter, b.soft))
}

// end ends the link at once; Recv returns the reason.
func (c *conn[S, R]) end(reason error) {
	c.mu.Lock()
	if c.sendErr == nil {
		c.sendErr = reason
	}
	c.mu.Unlock()
	c.Close(reason)
}

// next returns what is to be sent next: control messages first, then one chunk. Where there is
// nothing, over says that the connection is closing; else the goroutine that writes has to end, as the next
// message comes with another one. It ends only where wait is false: it has given others the time to queue more.
func (c *conn[S, R]) next(wait bool) (batch []queued[S], over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.aborted:
		return nil, true
	case len(c.control) > 0:
		batch, c.control = c.control, nil
		return batch, false
	case len(c.bulk) > 0:
		head := c.bulk[0]
		if len(head.chunks) > 0 {
			out := c.codec.chunk(head.chunks[0])
			head.chunks = head.chunks[1:]
			return []queued[S]{{message: out}}, false
		}
		c.bulk[0] = nil
		c.bulk = c.bulk[1:]
		return []queued[S]{head.queued}, false
	case !c.closing && !wait:
		c.writing = false
	}
	return nil, c.closing
}

// write writes what waits until there is nothing left, or until the connection ends.
func (c *conn[S, R]) write() {
	for {
		batch, over := c.next(true)
		if batch == nil && !over {
			runtime.Gosched() // under load there is more in a moment
			if batch, over = c.next(false); batch == nil && !over {
				return
			}
		}
		if batch == nil {
			if c.half != nil {
				c.half()
			}
			c.abandon(nil)
			close(c.written)
			return
		}
		if !c.writeAll(batch) {
			close(c.written)
			return
		}
	}
}

// writeAll writes a batch; false means that the connection has ended, with what was left to be written.
func (c *conn[S, R]) writeAll(batch []queued[S]) bool {
	var left int64
	for len(batch) > 0 {
		q := batch[0]
		if err := c.stream.Send(q.message); err != nil {
			c.mu.Lock()
			c.closing, c.aborted = true, true
			if c.sendErr == nil {
				c.sendErr = unsendable(err)
			}
			lame := c.sendErr != nil && c.whole == nil
			c.mu.Unlock()
			if lame {
				c.Close(err) // the stream itself goes on: its handler has to end it
			}
			c.abandon(batch)
			return false
		}
		c.sent.Add(1)
		batch[0] = queued[S]{}
		batch = batch[1:]
		if left += q.bytes; q.written != nil {
			q.written()
		}
	}
	if left > 0 {
		c.left(left)
	}
	return true
}

// left notes that so many bytes were written.
func (c *conn[S, R]) left(bytes int64) {
	c.mu.Lock()
	c.count(-bytes)
	if c.charged > 0 {
		c.member.since.Store(time.Now().UnixNano())
	}
	relieved := c.behind && (c.charged == 0 || !c.tight && 2*c.held <= c.quota.budget.soft)
	if relieved {
		c.behind = false
	}
	tell := c.relieved
	c.mu.Unlock()
	if relieved && tell != nil {
		tell()
	}
}

// abandon ends what was not written when the writer ends: nothing is queued after it.
func (c *conn[S, R]) abandon(batch []queued[S]) {
	c.mu.Lock()
	batch = append(batch, c.control...)
	for _, b := range c.bulk {
		batch = append(batch, b.queued)
	}
	c.control, c.bulk = nil, nil
	c.closing = true
	c.count(-c.held)
	if c.stall != nil {
		c.stall.Stop()
	}
	c.mu.Unlock()
	for _, q := range batch {
		if q.written != nil {
			q.written()
		}
	}
}

// Owner implements link.Gauge.
func (c *conn[S, R]) Owner() string {
	if c.quota == nil {
		return ""
	}
	return c.quota.owner
}

// Sent implements link.Gauge.
func (c *conn[S, R]) Sent() uint64 { return c.sent.Load() }

// Behind implements link.Gauge.
func (c *conn[S, R]) Behind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.behind
}

// Relieved implements link.Gauge.
func (c *conn[S, R]) Relieved(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relieved = f
}
