package server

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/treadle-dev/treadle/server/auth"
)

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (bytesCodec) Name() string { return "proto" }

// messageOf is a message of any type that has size bytes: a field that nobody knows.
func messageOf(size int) []byte {
	const number = 536870911 // the largest there is
	b := protowire.AppendTag(nil, number, protowire.BytesType)
	rest := size - len(b)
	rest -= protowire.SizeVarint(uint64(rest))
	for len(b)+protowire.SizeBytes(rest) < size {
		rest++
	}
	return protowire.AppendBytes(b, make([]byte, rest))
}

// send makes a call with one message, and returns how it went: nil when there was an answer.
func send(ctx context.Context, conn *grpc.ClientConn, method string, message []byte, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	options = append(options, grpc.ForceCodecV2(bytesCodec{}))
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, options...)
	if err != nil {
		return err
	}
	if err := s.SendMsg(message); err != nil && err != io.EOF {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	var answer []byte
	return s.RecvMsg(&answer)
}

// TestEveryMethodHasALimit sends each registered method a message of its limit and one of a
// byte more.
func TestEveryMethodHasALimit(t *testing.T) {
	for _, only := range []bool{false, true} {
		e := start(t, func(c *Config) { c.MaxPayload, c.WorkersOnly, c.Dispatcher = 1<<20, only, listener{} })
		methods := methodsOf(e.srv.grpc)
		slices.Sort(methods)
		if len(methods) < 7 {
			t.Fatalf("only %v", methods)
		}
		conn := dialGRPC(t, e.srv.GRPCAddr(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(1<<30)))
		for _, method := range methods {
			rule, _ := auth.RuleOf(method)
			limit := rule.MaxMessage
			switch {
			case limit == auth.Payload:
				limit = e.srv.cfg.maxMessage()
			case rule.Public && limit > 4<<10, limit > 512<<10, limit <= 0:
				t.Errorf("%s takes messages of %d bytes", method, limit)
			}
			if m := messageOf(limit); len(m) != limit {
				t.Fatalf("a message of %d bytes, want %d", len(m), limit)
			}
			if err := send(t.Context(), conn, method, messageOf(limit)); isTooLarge(err) {
				t.Errorf("%s: the limit of %d bytes itself: %v", method, limit, err)
			}
			for _, size := range []int{limit + 1, 4 << 20} {
				err := send(t.Context(), conn, method, messageOf(size))
				if !isTooLarge(err) || !strings.Contains(err.Error(), fmt.Sprint(size)) || !strings.Contains(err.Error(), fmt.Sprint(limit)) {
					t.Errorf("%s: %d bytes, %d over the limit: %v", method, size, size-limit, err)
				}
			}
		}
	}
}

func isTooLarge(err error) bool {
	info := infoOf(status.Convert(err))
	return status.Code(err) == codes.ResourceExhausted && info != nil && info.GetReason() == reasonTooLarge
}

// TestPublicMethodsTakeNoMegabyte: with tokens, and without one.
func TestPublicMethodsTakeNoMegabyte(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	tried := 0
	for _, method := range methodsOf(e.srv.grpc) {
		if rule, _ := auth.RuleOf(method); !rule.Public {
			continue
		}
		tried++
		if err := send(t.Context(), e.conn, method, messageOf(1<<20)); !isTooLarge(err) || !strings.Contains(err.Error(), "1048576 vs. 4096") {
			t.Errorf("%s: %v", method, err)
		}
	}
	if tried < 3 {
		t.Errorf("only %d methods are public", tried)
	}
}

// script is a transport that plays what a caller sends. Asking for what is not there fails.
type script struct {
	t        *testing.T
	frames   [][]byte
	compress string
	asked    []int
	ended    *status.Status
}

func (s *script) ReadMessageHeader(header []byte) error {
	if len(s.frames) == 0 {
		return io.EOF
	}
	copy(header, s.frames[0])
	s.frames = s.frames[1:]
	return nil
}

func (s *script) Read(n int) (mem.BufferSlice, error) {
	s.asked = append(s.asked, n)
	if len(s.frames) == 0 {
		return nil, io.EOF
	}
	b := s.frames[0]
	s.frames = s.frames[1:]
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (s *script) RecvCompress() string { return s.compress }

func (s *script) WriteStatus(st *status.Status) error { s.ended = st; return nil }

func TestReceive(t *testing.T) {
	srv, err := New(Config{Store: newStore(t), GRPCAddr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(t.Context())
	small := messageOf(100)
	head := func(flag byte, size int) []byte {
		return []byte{flag, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}
	}
	for name, c := range map[string]struct {
		frames   [][]byte
		compress string
		many     bool
		want     codes.Code
		text     string
		asked    int
	}{
		"a message":         {frames: [][]byte{head(0, 100), small}, asked: 1},
		"one of many":       {frames: [][]byte{head(0, 100), small, head(0, 100), small}, many: true, asked: 1},
		"no message":        {want: codes.Internal, text: "no request message"},
		"two messages":      {frames: [][]byte{head(0, 100), small, head(0, 1<<30)}, want: codes.Internal, text: "multiple request messages", asked: 1},
		"too large":         {frames: [][]byte{head(0, 1001)}, want: codes.ResourceExhausted, text: "(1001 vs. 1000)"},
		"4 GiB":             {frames: [][]byte{head(0, 1<<32-1)}, want: codes.ResourceExhausted, text: "(4294967295 vs. 1000)"},
		"broken off":        {frames: [][]byte{head(0, 100)}, want: codes.Internal, text: "unexpected EOF", asked: 1},
		"no protobuf":       {frames: [][]byte{head(0, 3), []byte("\xff\xff\xff")}, want: codes.Internal, text: "failed to unmarshal", asked: 1},
		"compressed":        {frames: [][]byte{head(1, 100)}, compress: "gzip", want: codes.Unimplemented, text: `"gzip"`},
		"flag alone":        {frames: [][]byte{head(1, 100)}, want: codes.Internal, text: "compressed flag set"},
		"unknown flag":      {frames: [][]byte{head(7, 100)}, want: codes.Internal, text: "payload format 7"},
		"compressed header": {frames: [][]byte{head(1, 100)}, compress: encoding.Identity, want: codes.Internal, text: "compressed flag set"},
	} {
		s := &script{t: t, frames: c.frames, compress: c.compress}
		in := inbound{s: srv, method: "/x/y", limit: 1000, once: !c.many}
		err := in.receive(grpc.NewContextWithServerTransportStream(t.Context(), fakeStream{script: s}), &healthpb.HealthCheckRequest{})
		if status.Code(err) != c.want || !strings.Contains(fmt.Sprint(err), c.text) || len(s.asked) != c.asked {
			t.Errorf("%s: %v, read %v", name, err, s.asked)
		}
		if err != nil && (s.ended.Code() != c.want || infoOf(status.Convert(err)) == nil) {
			t.Errorf("%s: the caller is told %v", name, s.ended)
		}
	}
	// A stream of many messages ends in order.
	in := inbound{s: srv, method: "/x/y", limit: 1000}
	s := &script{t: t}
	if err := in.receive(grpc.NewContextWithServerTransportStream(t.Context(), fakeStream{script: s}), nil); err != io.EOF || s.ended != nil {
		t.Errorf("the end of a stream: %v, told %v", err, s.ended)
	}
}

// fakeStream is a script as a context carries it.
type fakeStream struct {
	grpc.ServerTransportStream
	*script
}

// TestSlowMessages: a call that announces a message and does not send it ends.
func TestSlowMessages(t *testing.T) {
	t.Parallel()
	e := start(t, func(c *Config) { c.HTTPAddr = "" }) // gateways that are made at one time race in the library
	s, err := e.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, healthpb.Health_Check_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	err = s.RecvMsg(&healthpb.HealthCheckResponse{})
	if took := time.Since(begun); took < publicGrace-time.Second || took > publicGrace+15*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
	wantCode(t, err, codes.DeadlineExceeded, reasonSlowBody)
}

// TestTransportOfThisVersion: the stream of this version of gRPC can be read as receive does.
func TestTransportOfThisVersion(t *testing.T) {
	seen := make(chan bool, 1)
	desc := &grpc.ServiceDesc{ServiceName: "test.Probe", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: "Probe", Handler: func(_ any, ss grpc.ServerStream) error {
			_, ok := grpc.ServerTransportStreamFromContext(ss.Context()).(transport)
			seen <- ok
			return nil
		},
	}}}
	g := grpc.NewServer()
	g.RegisterService(desc, struct{}{})
	lis, err := listen("--grpc-addr", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	if err := callAny(t.Context(), dialGRPC(t, lis.Addr().String()), "/test.Probe/Probe", false); err != nil {
		t.Error(err)
	}
	if !<-seen {
		t.Error("grpc-go's stream has lost what server/receive.go reads messages with")
	}
	g.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
