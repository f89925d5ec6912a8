package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/tap"
)

// tlsCredentials are gRPC's TLS credentials, with an answer for clients that speak plain
// text: without it they would see a connection that ends, and no reason.
type tlsCredentials struct {
	credentials.TransportCredentials
	plain *plainText
}

// ServerHandshake implements credentials.TransportCredentials. gRPC bounds its time by a
// deadline on the connection.
func (c tlsCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var first [1]byte
	if _, err := io.ReadFull(raw, first[:]); err != nil {
		return nil, nil, fmt.Errorf("TLS handshake: %w", err)
	}
	const handshakeRecord = 0x16
	conn := &peeked{Conn: raw, head: first[:]}
	if first[0] == handshakeRecord {
		return c.TransportCredentials.ServerHandshake(conn)
	}
	_ = raw.SetDeadline(time.Time{}) // the other server sets its own
	c.plain.take(conn)
	return nil, nil, credentials.ErrConnDispatched
}

// Clone implements credentials.TransportCredentials.
func (c tlsCredentials) Clone() credentials.TransportCredentials {
	return tlsCredentials{c.TransportCredentials.Clone(), c.plain}
}

// peeked is a connection of which the first bytes were read already.
type peeked struct {
	net.Conn
	head []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		p.head = p.head[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// plainTextHint is what a plain-text client is told.
const plainTextHint = "this listener speaks TLS and the client plain text: give the client the CA (--tls-ca, TREADLE_TLS_CA)"

// plainText is a gRPC server that refuses every call with a hint, before anything but its
// headers is read. It gets its connections from the handshake of another one.
type plainText struct {
	grpc  *grpc.Server
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPlainText() *plainText {
	const age = time.Second
	refuse := func(ctx context.Context, _ *tap.Info) (context.Context, error) {
		return ctx, newStatus(codes.FailedPrecondition, reasonTLS, plainTextHint, nil, nil)
	}
	return &plainText{
		grpc: grpc.NewServer(grpc.InTapHandle(refuse), grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxHeaderListSize(maxHeaders),
			grpc.MaxConcurrentStreams(16), grpc.KeepaliveParams(keepalive.ServerParameters{
				MaxConnectionAge: age, MaxConnectionAgeGrace: age, Time: keepAlive, Timeout: keepAliveTimeout,
			})),
		conns: make(chan net.Conn), done: make(chan struct{}),
	}
}

// take serves a connection until it has had its answer.
func (p *plainText) take(conn net.Conn) {
	select {
	case p.conns <- conn:
	case <-p.done:
		conn.Close()
	}
}

// Accept implements net.Listener.
func (p *plainText) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *plainText) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *plainText) Addr() net.Addr { return &net.UnixAddr{Name: "plain text"} }
