// Package linkpb carries link frames over the gRPC streams of the worker service.
//
// [NewDispatcherConn] and [NewWorkerConn] make a [link.Conn] of either end; [Dial]
// is the worker's way to a dispatcher. Each connection has one goroutine that
// reads and, while there is something to be written, one that writes, so neither
// side ever sends from its receive loop and two peers that both send cannot lock each
// other. A dispatcher has thousands of connections on which nothing is to be written.
//
// Values over 256 KiB leave in chunks, one at a time, and frames without such
// values go first: a large payload delays a heartbeat by one chunk at most.
package linkpb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

const (
	// chunkSize is the largest piece of a value in one message, and the largest value
	// that travels inside its frame.
	chunkSize = 256 << 10
	// batchBytes is where a frame of many items is cut in two.
	batchBytes = 1 << 20
	// batchItems is the most items of one message: what a worker has to say after a reconnect
	// may be thousands, and the receiver takes no more than wire.MaxItems.
	batchItems = 1024
	// maxQueued bounds the messages that a peer may leave unread.
	maxQueued = 1 << 16
	// flushTime is how long Close waits for a peer that reads nothing of what was sent before.
	flushTime = 2 * time.Second
)

// stream is one end of a bidirectional gRPC stream: S is sent, R is received.
type stream[S, R any] interface {
	Send(*S) error
	Recv() (*R, error)
	Context() context.Context
}

// codec translates between frames and the messages of one direction each way.
type codec[S, R any] struct {
	encode func(link.Frame, *chunker) ([]*S, error)
	decode func(*R, *assembler) (link.Frame, error)
	chunk  func(*treadlev1.Chunk) *S
	// refuse is what is said to a peer whose frame cannot be taken, before the link ends; nil
	// at the worker's end, where the next session says all there is to say.
	refuse func(*wire.Error) link.Frame
}

// conn implements link.Conn on a stream.
type conn[S, R any] struct {
	stream stream[S, R]
	codec  codec[S, R]
	parts  assembler // of the goroutine that reads
	// half ends the sending direction after the last message, whole the stream; both
	// are nil at the dispatcher's end, where the handler's return ends the stream.
	half, whole func()

	received chan unreadFrame
	unread   unread
	recvErr  error // set before received is closed

	mu sync.Mutex
	// writing says that there is a goroutine that writes, or that the last one has ended.
	writing bool
	control []queued[S]
	bulk    []*bulkMessage[S]
	chunks  chunker
	closing bool
	aborted bool
	// quota bounds what waits and what is received half; nil at the worker's end, whose reports
	// are bounded by what it was offered.
	quota  *Quota
	member member
	// held is the memory of what waits, charged as much of it as counts for all; behind says
	// that the peer should be given less, tight that there is little room for all.
	held, charged int64
	behind, tight bool
	relieved      func()
	stall         *time.Timer // set while held is over the soft limit
	stallSent     uint64
	// sendErr is why a message could not be sent, where that is the message's fault, or why the
	// link was ended from here.
	sendErr error
	written chan struct{} // closed when the writer has ended
	sent    atomic.Uint64 // messages, so that Close sees a peer that reads

	closeOnce sync.Once
	closed    chan struct{}
	readDone  chan struct{}
}

// NewDispatcherConn makes a Conn of the dispatcher's end of a worker stream. maxPayload
// bounds a result, in bytes: a larger one is not kept, and its report says so. quota bounds
// what the link holds together with others. The handler must return soon after Close: that
// is what ends the stream. The Conn is a [link.Gauge].
func NewDispatcherConn(s grpc.BidiStreamingServer[treadlev1.WorkerFrame, treadlev1.DispatcherFrame], maxPayload int, quota *Quota) link.Conn {
	return newConn[treadlev1.DispatcherFrame, treadlev1.WorkerFrame](s, dispatcherCodec, newAssembler(maxPayload), quota, nil, nil)
}

// NewWorkerConn makes a Conn of the worker's end. cancel ends the stream's context.
func NewWorkerConn(s grpc.BidiStreamingClient[treadlev1.WorkerFrame, treadlev1.DispatcherFrame], cancel context.CancelFunc) link.Conn {
	return newConn[treadlev1.WorkerFrame, treadlev1.DispatcherFrame](s, workerCodec, assembler{}, nil, func() {
		_ = s.CloseSend() // the error would only say that the stream is over
	}, cancel)
}

func newConn[S, R any](s stream[S, R], c codec[S, R], parts assembler, quota *Quota, half, whole func()) *conn[S, R] {
	cn := &conn[S, R]{
		stream: s, codec: c, parts: parts, quota: quota, half: half, whole: whole,
		received: make(chan unreadFrame, unreadFrames),
		written:  make(chan struct{}),
		closed:   make(chan struct{}),
		readDone: make(chan struct{}),
	}
	cn.member.end = cn.end
	cn.parts.quota, cn.parts.stop = quota, cn.closed
	cn.unread.quota = quota
	if quota != nil {
		cn.member.owner = quota.owner
	}
	go cn.read()
	return cn
}

// read hands frames to Recv until the stream ends; after Close it only waits for
// that end.
func (c *conn[S, R]) read() {
	defer close(c.readDone)
	defer c.parts.drop()
	defer c.dropUnread()
	defer close(c.received)
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.recvErr = c.ended(err)
			return
		}
		if refusal := wire.Refusal(any(m).(proto.Message)); refusal != nil {
			c.refuse(refusal)
			return
		}
		f, err := c.codec.decode(m, &c.parts)
		if err == nil {
			err = c.parts.idle()
		}
		var ended errEnded
		if errors.As(err, &ended) {
			c.dismiss(ended)
			return
		}
		if err != nil {
			c.refuse(&wire.Error{Field: kindOf(any(m).(proto.Message)), Text: err.Error()})
			return
		}
		if f == nil {
			continue // a chunk
		}
		u, ok := c.unread.enter(f, c.closed)
		if !ok {
			continue
		}
		select {
		case c.received <- u:
		case <-c.closed:
			c.unread.leave(u)
		}
	}
}

// dropUnread gives back what the frames have that nobody takes any more, once the link is
// closed. Both who closes it and who reads call it, each when it has done so: one of them is the last.
func (c *conn[S, R]) dropUnread() {
	select {
	case <-c.closed:
	default:
		return
	}
	for {
		select {
		case u, ok := <-c.received:
			if !ok {
				return
			}
			c.unread.leave(u)
		default:
			return
		}
	}
}

// refuse ends the reading for the sake of a frame that cannot be taken, and tells the peer.
func (c *conn[S, R]) refuse(err *wire.Error) {
	e := task.Errorf(task.CodeInvalid, "", "the peer sent a malformed frame: %w", err)
	e.Field = err.Field
	c.recvErr = e
	if c.codec.refuse != nil {
		_ = c.Send(c.codec.refuse(err)) // a link that is closing has nobody to tell
	}
}

// dismiss ends the reading for what the link holds, and tells the peer to come again.
func (c *conn[S, R]) dismiss(err errEnded) {
	c.recvErr = task.Errorf(task.CodeUnavailable, "", "the link is ended: %w", err)
	c.quota.budget.ended.Add(1)
	_ = c.Send(&link.Bye{Retry: true, Reason: err.Error()}) // a link that is closing has nobody to tell
}

// kindOf names the kind of a frame.
func kindOf(m proto.Message) string {
	r := m.ProtoReflect()
	if f := r.WhichOneof(r.Descriptor().Oneofs().ByName("kind")); f != nil {
		return string(f.Name())
	}
	return ""
}

// ended is the error of a stream that has ended. What became of a message of ours goes
// before what the stream says of its end.
func (c *conn[S, R]) ended(err error) error {
	c.mu.Lock()
	sendErr := c.sendErr
	c.mu.Unlock()
	switch {
	case sendErr != nil:
		return sendErr
	case errors.Is(err, io.EOF):
		return link.ErrClosed
	case c.whole != nil && status.Code(err) == codes.InvalidArgument:
		// A dispatcher without a word of its own for it.
		return task.Errorf(task.CodeInvalid, "", "the dispatcher refused a frame: %w", err)
	}
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		return plainError{err}
	}
	return err
}

// plainError is what ended a stream, for people: the message of its status, then the code.
// The status itself is within.
type plainError struct{ error }

// Is reports a peer that was not admitted as [link.ErrNotAdmitted].
func (e plainError) Is(target error) bool {
	code := status.Code(e.error)
	return target == link.ErrNotAdmitted && (code == codes.Unauthenticated || code == codes.PermissionDenied)
}

func (e plainError) Error() string {
	s := status.Convert(e.error)
	return fmt.Sprintf("%s (%s)", s.Message(), s.Code())
}

func (e plainError) Unwrap() error { return e.error }

// unsendable tells an error of a message from one of the stream: the same message would
// fail on the next stream too. It returns nil for the latter.
func unsendable(err error) error {
	if errors.Is(err, io.EOF) {
		return nil // the stream has ended; receiving says why
	}
	switch status.Code(err) {
	case codes.ResourceExhausted:
		return task.Errorf(task.CodeTooLarge, "", "a frame cannot be sent: %w", err)
	case codes.Internal:
		return task.Errorf(task.CodeInvalid, "", "a frame cannot be sent: %w", err)
	default:
		return nil
	}
}

// Recv implements link.Conn.
func (c *conn[S, R]) Recv() (link.Frame, error) {
	select {
	case u, ok := <-c.received:
		if !ok {
			return nil, c.recvErr
		}
		c.unread.leave(u)
		return u.frame, nil
	case <-c.closed:
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.sendErr != nil {
			return nil, c.sendErr
		}
		return nil, link.ErrClosed
	}
}

// Close implements link.Conn: without a reason it first lets the peer read what was
// sent, as long as it does read.
func (c *conn[S, R]) Close(reason error) {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.closing = true
		c.aborted = c.aborted || reason != nil
		if c.stall != nil {
			c.stall.Stop()
		}
		c.awaken()
		c.mu.Unlock()
		close(c.closed)
		c.dropUnread()
		if reason == nil {
			c.flush()
		}
		c.mu.Lock()
		c.aborted = true
		c.mu.Unlock()
		if c.whole != nil {
			c.whole()
		}
	})
}

// flush waits until everything is written and, at the worker's end, until the
// dispatcher has ended the stream: a message that was sent is only buffered, and
// cancelling the stream would lose it.
func (c *conn[S, R]) flush() {
	timer := time.NewTimer(flushTime)
	defer timer.Stop()
	for done, before := false, c.sent.Load(); !done; {
		select {
		case <-c.written:
			done = true
		case <-c.stream.Context().Done():
			return
		case <-timer.C:
			now := c.sent.Load()
			if now == before {
				return
			}
			before = now
		}
		timer.Reset(flushTime)
	}
	if c.whole == nil {
		return
	}
	select {
	case <-c.readDone:
	case <-timer.C:
	}
}
