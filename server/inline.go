package server

import (
	"context"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/wire"
)

// inline is the gateway's connection to our own services. It runs the interceptors
// and handlers of the gRPC server in the caller's goroutine, without a socket: a
// REST call passes everything that a gRPC call passes, and a value of 64 MiB is not
// marshaled, copied and parsed once more on its way.
type inline struct {
	unary   grpc.UnaryServerInterceptor
	stream  grpc.StreamServerInterceptor
	methods map[string]inlineMethod
	// limits are what requests are held to; nil for none.
	limits *wire.Limits

	mu     sync.Mutex
	closed bool
	// streams counts the goroutines of running streams; it grows only under mu and
	// while closed is false.
	streams sync.WaitGroup
}

// close refuses new streams and waits for those that run; they end with the
// requests that they belong to.
func (c *inline) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.streams.Wait()
}

type inlineMethod struct {
	service any
	unary   *grpc.MethodDesc
	stream  *grpc.StreamDesc
}

var _ grpc.ClientConnInterface = (*inline)(nil)

// RegisterService makes inline a grpc.ServiceRegistrar.
func (c *inline) RegisterService(desc *grpc.ServiceDesc, service any) {
	if c.methods == nil {
		c.methods = make(map[string]inlineMethod)
	}
	for i := range desc.Methods {
		m := &desc.Methods[i]
		c.methods["/"+desc.ServiceName+"/"+m.MethodName] = inlineMethod{service: service, unary: m}
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		c.methods["/"+desc.ServiceName+"/"+m.StreamName] = inlineMethod{service: service, stream: m}
	}
}

// incoming turns the caller's context into that of a handler.
func incoming(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	return metadata.NewIncomingContext(ctx, md)
}

// Invoke makes one unary call. The request is emptied into what the handler gets, so that
// nobody but the handler keeps a large value alive; the reply shares memory with what
// the handler gives, and neither side changes it afterwards.
func (c *inline) Invoke(ctx context.Context, method string, req, reply any, _ ...grpc.CallOption) error {
	m, ok := c.methods[method]
	if !ok || m.unary == nil {
		return status.Errorf(codes.Unimplemented, "no unary method %s", method)
	}
	resp, err := m.unary.Handler(m.service, incoming(ctx), func(into any) error {
		if err := move(into, req); err != nil {
			return err
		}
		c.judge(into)
		return nil
	}, c.unary)
	if err != nil {
		return err
	}
	return share(reply, resp)
}

// judge holds a request that was made of a document to the limits that a gRPC request is
// held to on the wire: the interceptor finds the refusal in it.
func (c *inline) judge(req any) {
	m, ok := req.(proto.Message)
	if !ok || c.limits == nil {
		return
	}
	if err := c.limits.Check(m); err != nil {
		wire.Refuse(m, err)
	}
}

// move is share, and leaves the source empty.
func move(into, from any) error {
	err := share(into, from)
	if src, ok := from.(proto.Message); ok {
		proto.Reset(src)
	}
	return err
}

// share sets the fields of one message to those of another of the same type, without
// copying what they point to.
func share(into, from any) error {
	dst, ok := into.(proto.Message)
	src, ok2 := from.(proto.Message)
	if !ok || !ok2 {
		return status.Errorf(codes.Internal, "cannot hand a %T over as a %T", from, into)
	}
	r := dst.ProtoReflect()
	src.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		r.Set(f, v)
		return true
	})
	return nil
}

// NewStream starts a server-streaming call; the API has no other streams over REST.
func (c *inline) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	m, ok := c.methods[method]
	if !ok || m.stream == nil || desc.ClientStreams {
		return nil, status.Errorf(codes.Unimplemented, "no server-streaming method %s", method)
	}
	return &inlineStream{
		conn: c, method: method, m: m, ctx: ctx, request: make(chan any, 1), messages: make(chan any), ended: make(chan struct{}),
	}, nil
}

// inlineStream is the client's end of a stream; [inlineServerStream] the other.
type inlineStream struct {
	conn   *inline
	method string
	m      inlineMethod
	ctx    context.Context

	request  chan any
	messages chan any
	// ended is closed when the handler has returned err.
	ended chan struct{}
	err   error
}

// SendMsg hands the one request over.
func (s *inlineStream) SendMsg(m any) error {
	select {
	case s.request <- m:
		return nil
	default:
		return fmt.Errorf("%s takes one request", s.method)
	}
}

// CloseSend starts the handler, as the request is complete. It ends with the
// caller's context at the latest.
func (s *inlineStream) CloseSend() error {
	close(s.request)
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.conn.closed {
		s.err = toStatus(s.ctx, nil, s.method, fabric.ErrClosing)
		close(s.ended)
		return nil
	}
	s.conn.streams.Go(func() {
		defer close(s.ended)
		// It may end after its request, which gives back what it knows of.
		defer holdingOf(s.ctx).dropAnswer()
		s.err = s.conn.stream(s.m.service, inlineServerStream{s, incoming(s.ctx)},
			&grpc.StreamServerInfo{FullMethod: s.method, IsServerStream: true}, s.m.stream.Handler)
	})
	return nil
}

func (s *inlineStream) RecvMsg(m any) error {
	select {
	case from := <-s.messages:
		return share(m, from)
	case <-s.ended:
	}
	if s.err != nil {
		return s.err
	}
	return io.EOF
}

func (s *inlineStream) Header() (metadata.MD, error) { return nil, nil }
func (s *inlineStream) Trailer() metadata.MD         { return nil }
func (s *inlineStream) Context() context.Context     { return s.ctx }

type inlineServerStream struct {
	s   *inlineStream
	ctx context.Context
}

func (x inlineServerStream) SendMsg(m any) error {
	select {
	case x.s.messages <- m:
		return nil
	case <-x.ctx.Done():
		return x.ctx.Err()
	}
}

func (x inlineServerStream) RecvMsg(m any) error {
	req, ok := <-x.s.request
	if !ok {
		return io.EOF
	}
	if err := share(m, req); err != nil {
		return err
	}
	x.s.conn.judge(m)
	return nil
}

func (x inlineServerStream) SetHeader(metadata.MD) error  { return nil }
func (x inlineServerStream) SendHeader(metadata.MD) error { return nil }
func (x inlineServerStream) SetTrailer(metadata.MD)       {}
func (x inlineServerStream) Context() context.Context     { return x.ctx }
