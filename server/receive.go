package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// gRPC has one limit for the messages of a whole server, and reads a message before anybody
// can say how large it may be. Here each method has a limit of its own, and a large message
// is read when the budget has room for it. So the handlers of all services are wrapped when
// they are registered: they read the five bytes in front of a message from the transport,
// judge its length, and only then ask for the rest.

// requestCodec decodes the messages of callers, held to the limits of the contract, and
// encodes the answers. What of a message may be as large as its method lets it is bounded
// by that.
var requestCodec = wire.Codec(task.MaxPayloadLimit)

// transport is what a gRPC server's stream is read through. ServerTransportStream of the
// public API has less; a test holds that the stream of this version of gRPC has it all.
type transport interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
	RecvCompress() string
	WriteStatus(st *status.Status) error
}

// registrar wraps the handlers of what is registered with a gRPC server.
type registrar struct {
	*grpc.Server
	s *Server
}

// RegisterService implements [grpc.ServiceRegistrar]. Unary methods become streams that take
// one message and send one: the description that callers see is the same.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	wrapped := *desc
	wrapped.Methods, wrapped.Streams = nil, make([]grpc.StreamDesc, 0, len(desc.Methods)+len(desc.Streams))
	for _, m := range desc.Methods {
		wrapped.Streams = append(wrapped.Streams, r.s.receiveOne("/"+desc.ServiceName+"/"+m.MethodName, m))
	}
	for _, d := range desc.Streams {
		wrapped.Streams = append(wrapped.Streams, r.s.receiveMany("/"+desc.ServiceName+"/"+d.StreamName, d))
	}
	r.Server.RegisterService(&wrapped, service)
}

// receiveOne is a unary method that reads its message by itself.
func (s *Server) receiveOne(name string, m grpc.MethodDesc) grpc.StreamDesc {
	limit, public := s.messageLimit(name)
	return grpc.StreamDesc{StreamName: m.MethodName, Handler: func(service any, ss grpc.ServerStream) error {
		start := time.Now()
		in := s.inbound(ss.Context(), name, limit, public)
		in.once = true
		ctx := &in.ctx
		answer, err := m.Handler(service, ctx, func(into any) error {
			err := in.receive(ctx, into)
			if err != nil {
				s.observe(ctx, name, start, err)
			}
			return err
		}, s.unary)
		in.held.dropRequest()
		if err != nil {
			in.held.dropAnswer()
			return err
		}
		return in.send(ss, answer)
	}}
}

// receiveMany is a method of streams that reads its messages by itself.
func (s *Server) receiveMany(name string, d grpc.StreamDesc) grpc.StreamDesc {
	limit, public := s.messageLimit(name)
	handler := d.Handler
	d.Handler = func(service any, ss grpc.ServerStream) error {
		in := s.inbound(ss.Context(), name, limit, public)
		in.once = !d.ClientStreams
		defer in.held.dropAnswer()
		defer in.held.dropRequest()
		return handler(service, receiver{ServerStream: ss, in: in})
	}
	return d
}

// messageLimit is the largest message that a method takes, in bytes.
func (s *Server) messageLimit(method string) (limit int, public bool) {
	rule, _ := auth.RuleOf(method)
	if rule.MaxMessage == auth.Payload {
		return s.cfg.maxMessage(), rule.Public
	}
	return rule.MaxMessage, rule.Public
}

// receiver is a stream that reads its messages through inbound.
type receiver struct {
	grpc.ServerStream
	in *inbound
}

func (r receiver) Context() context.Context { return &r.in.ctx }

func (r receiver) RecvMsg(m any) error {
	if err := r.in.receive(r.Context(), m); err != nil {
		return err
	}
	return refusal(m)
}

func (r receiver) SendMsg(m any) error { return r.in.send(r.ServerStream, m) }

// callContext is the context of a call that knows what the call has of the budget.
type callContext struct {
	context.Context
	held *holding
}

func (c *callContext) Value(key any) any {
	if _, ok := key.(holdingKey); ok {
		return c.held
	}
	return c.Context.Value(key)
}

// inbound reads the messages of one call. One goroutine at a time may use it.
type inbound struct {
	s      *Server
	ctx    callContext
	held   holding
	method string
	limit  int
	// once: the call has exactly one message.
	once bool
	// public: whoever likes may call, so the message has to be there soon.
	public bool
	// free is the size up to which messages do not count: freeBody, freeFrame for frames of workers.
	free uint32
	// link: messages have a budget of their own while they arrive, as what workers have done must
	// not wait behind what clients ask for. Then the link counts them.
	link   bool
	got    bool
	header [5]byte
}

func (s *Server) inbound(ctx context.Context, method string, limit int, public bool) *inbound {
	p, _ := auth.From(ctx)
	in := &inbound{s: s, method: method, limit: limit, public: public, free: freeBody}
	in.held.b, in.held.owner = s.budget, p.Account()
	if strings.HasPrefix(method, workerMethods) {
		in.held.b, in.free, in.link = s.frames, freeFrame, true
	}
	in.ctx.Context, in.ctx.held = ctx, &in.held
	return in
}

// freeFrame is the size up to which frames of workers are read at once. An agent of ours sends values of
// more than 256 KiB in chunks and cuts its frames at 1 MiB, so none is as large.
const freeFrame = 2 << 20

// workerMethods is how the methods of workers begin.
const workerMethods = "/treadle.v1.WorkerService/"

// receive reads one message. It returns io.EOF when the caller has sent all, and
// otherwise an error that is a status.
func (in *inbound) receive(ctx context.Context, into any) error {
	t, ok := grpc.ServerTransportStreamFromContext(ctx).(transport)
	if !ok {
		return newStatus(codes.Internal, reasonInternal, "this version of gRPC hides how messages are read", nil, nil)
	}
	err := in.read(ctx, t, into)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	err = withInfo(status.Convert(err))
	// Whatever a handler of a stream makes of the error, this is what was wrong.
	_ = t.WriteStatus(status.Convert(err))
	return err
}

func (in *inbound) read(ctx context.Context, t transport, into any) error {
	if in.public {
		defer in.hurry(t, publicGrace)()
	}
	if err := t.ReadMessageHeader(in.header[:]); err != nil {
		if errors.Is(err, io.EOF) && in.once && !in.got {
			return status.Error(codes.Internal, "grpc: cardinality violation: received no request message from non-client-streaming RPC")
		}
		return broken(err)
	}
	size := binary.BigEndian.Uint32(in.header[1:])
	switch flag := in.header[0]; {
	case in.once && in.got:
		return status.Error(codes.Internal, "grpc: cardinality violation: received multiple request messages for non-client-streaming RPC")
	case int64(size) > int64(in.limit):
		return newStatus(codes.ResourceExhausted, reasonTooLarge,
			fmt.Sprintf("grpc: received message larger than max (%d vs. %d): one message to %s has at most %d bytes", size, in.limit, in.method, in.limit), nil, nil)
	case flag == 1 && (t.RecvCompress() == "" || t.RecvCompress() == encoding.Identity):
		return status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	case flag == 1:
		return status.Errorf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", t.RecvCompress())
	case flag != 0:
		return status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", flag)
	}
	if size > freeBody {
		if size > in.free {
			if err := in.held.takeRequest(ctx, int64(size)); err != nil {
				return broken(err)
			}
			if in.link {
				defer in.held.dropRequest()
			}
		}
		defer in.hurry(t, arrival(int(size)))()
	}
	data, err := t.Read(int(size))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return broken(err)
	}
	in.got = true
	err = requestCodec.Unmarshal(data, into)
	data.Free()
	if err != nil {
		if st, ok := status.FromError(err); ok {
			return st.Err()
		}
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	if !in.once {
		return nil
	}
	// The caller has to be done: what came after would lie unread as long as the call lasts.
	if err := in.read(ctx, t, into); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// hurry ends a call whose message does not arrive in time, until stop is called. The
// status ends the stream, and with it the read that waits.
func (in *inbound) hurry(t transport, limit time.Duration) (stop func()) {
	timer := time.AfterFunc(limit, func() {
		st := newStatus(codes.DeadlineExceeded, reasonSlowBody, fmt.Sprintf("the message arrived too slowly: it had %s", limit), nil, nil)
		_ = t.WriteStatus(status.Convert(st))
	})
	return func() { timer.Stop() }
}

// arrival is how long a message or body of some size may take to arrive.
func arrival(size int) time.Duration {
	return bodyGrace + time.Duration(size/bodyRate)*time.Second
}

// broken is why a message could not be read, as a status or io.EOF.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
	}
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	return status.FromContextError(err).Err()
}

// send sends one message. A large answer holds its room in the budget until it has been
// written to the connection: gRPC takes any message at once, and keeps it for as long as
// the caller does not read.
func (in *inbound) send(ss grpc.ServerStream, m any) error {
	if in.held.forAnswer() == 0 {
		return ss.SendMsg(m)
	}
	defer in.held.dropAnswer()
	a := &heldAnswer{message: m, written: make(chan struct{})}
	if err := ss.SendMsg(a); err != nil {
		return err
	}
	return a.wait(&in.ctx, connFrom(&in.ctx))
}

// heldAnswer is a message of which the codec tells when it has been written.
type heldAnswer struct {
	message any
	size    int
	parts   atomic.Int32
	written chan struct{}
}

// wait waits until the answer was written, or the call has ended. A caller who reads less
// than bodyRate from a connection, after bodyGrace, loses it: nothing else ends what gRPC holds
// for him.
func (a *heldAnswer) wait(ctx context.Context, conn *doorConn) error {
	select {
	case <-a.written:
		return nil
	default:
	}
	begun, before := time.Now(), int64(0)
	if conn != nil {
		before = conn.sent.Load()
	}
	timer := time.NewTimer(arrival(a.size))
	defer timer.Stop()
	for {
		select {
		case <-a.written:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		least := int64((time.Since(begun) - bodyGrace).Seconds() * bodyRate)
		if conn == nil || conn.sent.Load()-before < least {
			if conn != nil {
				_ = conn.Close()
			}
			return newStatus(codes.DeadlineExceeded, reasonSlowBody, "the answer was read too slowly", nil, nil)
		}
		timer.Reset(bodyGrace) // the connection carries other answers as well
	}
}

// serverCodec is requestCodec, and tells when a [heldAnswer] has been written.
type serverCodec struct{ encoding.CodecV2 }

// Marshal implements [encoding.CodecV2].
func (c serverCodec) Marshal(v any) (mem.BufferSlice, error) {
	a, ok := v.(*heldAnswer)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	data, err := c.CodecV2.Marshal(a.message)
	if err != nil {
		return nil, err
	}
	a.size = data.Len()
	a.parts.Store(1)
	for i, b := range data {
		if raw := b.ReadOnlyData(); !mem.IsBelowBufferPoolingThreshold(cap(raw)) {
			a.parts.Add(1)
			data[i] = mem.NewBuffer(&raw, freed{a, b})
		}
	}
	a.done()
	return data, nil
}

// done counts one part of the answer as written.
func (a *heldAnswer) done() {
	if a.parts.Add(-1) == 0 {
		close(a.written)
	}
}

// freed is the pool to which a part of an answer returns when gRPC has written it.
type freed struct {
	a    *heldAnswer
	part mem.Buffer
}

// Get implements [mem.BufferPool].
func (freed) Get(size int) *[]byte { b := make([]byte, size); return &b }

// Put implements [mem.BufferPool].
func (f freed) Put(*[]byte) {
	f.part.Free()
	f.a.done()
}
