//go:build linux

package security

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

func typeName(v any) string { return fmt.Sprintf("%T", v) }

// rawCodec sends and receives messages as bytes, under the name of the real one.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// peer is a hostile client: one connection, any bytes.
type peer struct {
	conn  *grpc.ClientConn
	token string
}

// dialPeer connects from a loopback address of its own.
func dialPeer(t *testing.T, addr, token, from string) *peer {
	t.Helper()
	dial := func(ctx context.Context, to string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		return d.DialContext(ctx, "tcp", to)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &peer{conn: conn, token: token}
}

func (p *peer) context(ctx context.Context) context.Context {
	if p.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+p.token)
}

// call makes a unary call.
func (p *peer) call(ctx context.Context, method string, message []byte) (answer []byte, err error) {
	err = p.conn.Invoke(p.context(ctx), method, &message, &answer)
	return answer, err
}

// callAs makes a unary call with real messages.
func callAs[T any, PT interface {
	*T
	proto.Message
}](ctx context.Context, p *peer, method string, request proto.Message) (PT, error) {
	b, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	out, err := p.call(ctx, method, b)
	if err != nil {
		return nil, err
	}
	answer := PT(new(T))
	return answer, proto.Unmarshal(out, answer)
}

// stream opens a stream of any kind. What comes back is not read before recv is called.
func (p *peer) stream(ctx context.Context, method string) (*hostileStream, error) {
	ctx, cancel := context.WithCancel(p.context(ctx))
	s, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		cancel()
		return nil, err
	}
	return &hostileStream{ClientStream: s, cancel: cancel, over: make(chan struct{})}, nil
}

// watch makes a call that is answered by a stream.
func (p *peer) watch(ctx context.Context, method string, message []byte) (*hostileStream, error) {
	s, err := p.stream(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.send(message); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return s, s.CloseSend()
}

// hostileStream is a stream of bytes.
type hostileStream struct {
	grpc.ClientStream
	cancel context.CancelFunc
	mu     sync.Mutex // sends

	once   sync.Once
	frames atomic.Int64
	bytes  atomic.Int64
	err    error
	over   chan struct{}
}

func (s *hostileStream) send(message []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.SendMsg(&message)
}

// recv returns the next message.
func (s *hostileStream) recv() (message []byte, err error) {
	err = s.RecvMsg(&message)
	return message, err
}

// read counts what comes until the stream ends; each message goes to f, when there is one.
func (s *hostileStream) read(f func(message []byte)) {
	s.once.Do(func() {
		go func() {
			defer close(s.over)
			for {
				message, err := s.recv()
				if err != nil {
					s.err = err
					return
				}
				s.frames.Add(1)
				s.bytes.Add(int64(len(message)))
				if f != nil {
					f(message)
				}
			}
		}()
	})
}

// end waits for the end of a stream that is being read and returns its status.
func (s *hostileStream) end(limit time.Duration) (*status.Status, error) {
	s.read(nil)
	select {
	case <-s.over:
		if errors.Is(s.err, io.EOF) {
			return status.New(codes.OK, ""), nil
		}
		return status.Convert(s.err), nil
	case <-time.After(limit):
		return nil, fmt.Errorf("the stream did not end within %s", limit)
	}
}

// Worker streams.
const (
	methodPush = "/treadle.v1.WorkerService/Push"
	methodPull = "/treadle.v1.WorkerService/Pull"
)

// attach opens a worker stream and sends frames.
func (p *peer) attach(ctx context.Context, method string, frames ...[]byte) (*hostileStream, error) {
	s, err := p.stream(ctx, method)
	if err != nil {
		return nil, err
	}
	for _, f := range frames {
		if err := s.send(f); err != nil {
			return s, nil //nolint:nilerr // the stream is over, which its reader finds out
		}
	}
	return s, nil
}

// dispatched decodes what a dispatcher sent.
func dispatched(message []byte) *treadlev1.DispatcherFrame {
	var f treadlev1.DispatcherFrame
	if err := proto.Unmarshal(message, &f); err != nil {
		return nil
	}
	return &f
}

// wire is a message of the contract as bytes.
func wire(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
