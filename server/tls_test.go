package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
)

// pki is a folder of `treadle certs`.
type pki struct{ dir string }

func newPKI(t *testing.T, hosts ...string) pki {
	t.Helper()
	p := pki{t.TempDir()}
	if _, err := tlsfiles.Make(p.dir, hosts, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p pki) file(name string) string { return filepath.Join(p.dir, name) }

// use makes a server speak TLS; with workers' certificates when told.
func (p pki) use(t *testing.T, workers bool) func(*Config) {
	return func(c *Config) {
		ca := ""
		if workers {
			ca = p.file("ca.pem")
		}
		s, err := tlsfiles.OpenServer(p.file("server.pem"), p.file("server-key.pem"), ca, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		c.TLS, c.WorkerCertificates = s, workers
	}
}

// client is the configuration of a client that shows the pair of that name, or none.
func (p pki) client(t *testing.T, pair string) *tls.Config {
	t.Helper()
	cert, key := "", ""
	if pair != "" {
		cert, key = p.file(pair+".pem"), p.file(pair+"-key.pem")
	}
	c, err := tlsfiles.Client(p.file("ca.pem"), cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dialTLS makes a gRPC channel; nil is plain text.
func (e *env) dialTLS(cfg *tls.Config) *grpc.ClientConn {
	e.t.Helper()
	creds := insecure.NewCredentials()
	if cfg != nil {
		creds = credentials.NewTLS(cfg)
	}
	conn, err := grpc.NewClient(e.srv.GRPCAddr(), grpc.WithTransportCredentials(creds))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

func info(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := treadlev1.NewFabricServiceClient(conn).GetServerInfo(ctx, &treadlev1.GetServerInfoRequest{})
	return err
}

func TestTLS(t *testing.T) {
	p, stranger := newPKI(t, "fabric.test"), newPKI(t)
	e := start(t, p.use(t, false))
	if err := info(t.Context(), e.dialTLS(p.client(t, ""))); err != nil {
		t.Errorf("with the CA: %v", err)
	}
	if err := info(t.Context(), e.dialTLS(stranger.client(t, ""))); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("with another CA: %v", err)
	}
	old := p.client(t, "")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := info(t.Context(), e.dialTLS(old)); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("with TLS 1.2: %v", err)
	}

	// HTTP, by a name of the certificate, in both versions of HTTP.
	for _, h2 := range []bool{false, true} {
		dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, e.srv.HTTPAddr())
		}
		tr := &http.Transport{TLSClientConfig: p.client(t, ""), ForceAttemptHTTP2: h2, DialContext: dial}
		resp, err := (&http.Client{Transport: tr}).Get("https://fabric.test/v1/info")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if err != nil || resp.StatusCode != http.StatusOK || (resp.ProtoMajor == 2) != h2 || resp.TLS.Version != tls.VersionTLS13 {
			t.Errorf("%s %s: %s, %v", resp.Proto, resp.Status, body, err)
		}
	}
	e.client.Transport = &http.Transport{TLSClientConfig: old}
	if _, err := e.client.Get("https://" + e.srv.HTTPAddr() + "/healthz"); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("HTTP with TLS 1.2: %v", err)
	}
}

// TestPlainTextMeetsTLS: the other side says what is wrong, in both directions.
func TestPlainTextMeetsTLS(t *testing.T) {
	p := newPKI(t)
	e := start(t, p.use(t, false))
	if err := info(t.Context(), e.dialTLS(nil)); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), plainTextHint) {
		t.Errorf("gRPC in plain text: %v", err)
	}
	resp, err := http.Get("http://" + e.srv.HTTPAddr() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "HTTPS server") {
		t.Errorf("HTTP in plain text: %s %s", resp.Status, body)
	}
	// What is neither is cut off.
	conn, err := net.Dial("tcp", e.srv.GRPCAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(conn); os.IsTimeout(err) {
		t.Errorf("still open after %q", b)
	}

	plain := start(t)
	if err := info(t.Context(), plain.dialTLS(p.client(t, ""))); err == nil || !strings.Contains(err.Error(), "first record does not look like a TLS handshake") {
		t.Errorf("TLS to plain text: %v", err)
	}
}

// TestWorkerCertificates: a CA for workers is asked of workers, and of nobody else.
func TestWorkerCertificates(t *testing.T) {
	p, stranger := newPKI(t), newPKI(t)
	h := holder{make(chan struct{}, 8)}
	e := start(t, p.use(t, true), func(c *Config) { c.Dispatcher = h })
	push := func(cfg *tls.Config) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		s, err := treadlev1.NewWorkerServiceClient(e.dialTLS(cfg)).Push(ctx)
		if err != nil {
			return err
		}
		answer := make(chan error, 1)
		go func() { _, err := s.Recv(); answer <- err }()
		select {
		case <-h.attached:
			cancel()
			<-answer
			return nil
		case err := <-answer:
			return err
		}
	}
	if err := push(p.client(t, "worker")); err != nil {
		t.Errorf("with the pair for workers: %v", err)
	}
	if err := push(p.client(t, "")); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "--tls-cert") {
		t.Errorf("without a certificate: %v", err)
	}
	if err := push(p.client(t, "client")); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "made for a client") {
		t.Errorf("with the pair for clients: %v", err)
	}
	foreign := stranger.client(t, "worker")
	foreign.RootCAs = p.client(t, "").RootCAs
	if err := push(foreign); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Unauthenticated {
		t.Errorf("with a pair of another CA: %v", err)
	}
	for _, pair := range []string{"", "client", "worker"} {
		if err := info(t.Context(), e.dialTLS(p.client(t, pair))); err != nil {
			t.Errorf("the API with the pair %q: %v", pair, err)
		}
	}
}

// TestCertificateExpiresWhileStreaming: a stream does not outlive the certificate that
// opened it.
func TestCertificateExpiresWhileStreaming(t *testing.T) {
	p := newPKI(t)
	h := holder{make(chan struct{}, 1)}
	var ahead atomic.Int64
	e := start(t, p.use(t, true), func(c *Config) {
		c.Dispatcher, c.Now = h, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	s, err := treadlev1.NewWorkerServiceClient(e.dialTLS(p.client(t, "worker"))).Push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-h.attached
	ahead.Store(int64(2 * time.Hour))
	if _, err := s.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "the certificate expired at") {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestCertificateIsReplaced: a new pair on disk is taken over while the server runs.
func TestCertificateIsReplaced(t *testing.T) {
	p, next := newPKI(t), newPKI(t)
	e := start(t, p.use(t, false))
	if err := info(t.Context(), e.dialTLS(next.client(t, ""))); err == nil {
		t.Fatal("the certificates of both folders are the same")
	}
	for _, name := range []string{"server.pem", "server-key.pem"} {
		b, err := os.ReadFile(next.file(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "server.pem" { // the key does not fit yet
			if err := e.srv.cfg.TLS.Reload(); err == nil {
				t.Error("a certificate with another's key was taken")
			}
			if err := info(t.Context(), e.dialTLS(p.client(t, ""))); err != nil {
				t.Errorf("halfway: %v", err)
			}
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := info(t.Context(), e.dialTLS(next.client(t, "")))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new certificate is not used: %v", err)
		}
	}
}

// TestConnectionLimit: one connection too many is told so and ends; a place that becomes
// free is given again.
func TestConnectionLimit(t *testing.T) {
	const limit = 3
	e := start(t, func(c *Config) { c.MaxConnections = limit })
	for name, lis := range map[string]net.Listener{"grpc": e.srv.grpcLis, "http": e.srv.httpLis} {
		d := lis.(*door)
		call := func() (func(), error) {
			if name == "grpc" {
				conn := dialGRPC(t, lis.Addr().String())
				return func() { conn.Close() }, info(t.Context(), conn)
			}
			client := &http.Client{Transport: &http.Transport{}}
			resp, err := client.Get("http://" + lis.Addr().String() + "/v1/queues")
			if err != nil {
				return nil, err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusServiceUnavailable {
				err = status.Error(codes.Unavailable, resp.Status)
			}
			return client.CloseIdleConnections, err
		}
		var ends []func()
		for i := range limit {
			end, err := call()
			if err != nil {
				t.Fatalf("%s: connection %d: %v", name, i+1, err)
			}
			ends = append(ends, end)
		}
		end, err := call()
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: one too many: %v", name, err)
		}
		end()
		waitUntil(t, func() bool { open, _ := d.counts(); return open == limit })
		if n := d.refusedFor(refusedLimit); n != 1 {
			t.Errorf("%s: %d refused", name, n)
		}
		ends[0]()
		waitUntil(t, func() bool { open, _ := d.counts(); return open == limit-1 })
		again, err := call()
		if err != nil {
			t.Errorf("%s: a place that became free: %v", name, err)
		}
		for _, end := range append(ends[1:], again) {
			end()
		}
		waitUntil(t, func() bool { open, _ := d.counts(); return open == 0 })
	}
	if a := e.get("/metrics"); !bytes.Contains(a.raw, []byte(`treadle_connections_refused_total{listener="grpc",reason="limit"} 1`)) {
		t.Error("the metrics do not count refused connections")
	}
}

// dialGRPC opens a connection of its own.
func dialGRPC(t *testing.T, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestHalfClose: the half of a limited connection that is sent can be ended alone.
func TestHalfClose(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := newDoor("test", inner, newDoorLimits(1, false), slog.New(slog.DiscardHandler))
	near, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if err := far.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other side reads %v", err)
	}
	if _, err := near.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := far.Read(make([]byte, 1)); n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

// waitUntil waits for something that another goroutine is about to do.
func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 20 s")
		}
	}
}

// TestStreamLimit opens as many calls on one connection as it may have: one more waits
// for a place.
func TestStreamLimit(t *testing.T) {
	e := start(t)
	e.source("f")
	made, err := e.fabric.Execute(t.Context(), &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, closeFirst := context.WithCancel(ctx)
	defer closeFirst()
	for i := range maxStreams {
		c := ctx
		if i == 0 {
			c = first
		}
		s, err := e.fabric.WatchTask(c, &treadlev1.WatchTaskRequest{TaskId: made.GetTaskId()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatalf("call %d: %v", i+1, err)
		}
	}
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if err := info(short, e.conn); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("call %d: %v, want it to wait", maxStreams+1, err)
	}
	closeFirst()
	long, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := info(long, e.conn); err != nil {
		t.Errorf("when a place is free: %v", err)
	}
}

// TestHeaderLimit sends headers of just under and over what a call may have.
func TestHeaderLimit(t *testing.T) {
	e := start(t)
	for size, ok := range map[int]bool{maxHeaders - 1024: true, maxHeaders + 1: false} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-test", strings.Repeat("x", size))
		if err := info(ctx, e.conn); (err == nil) != ok {
			t.Errorf("%d bytes of headers: %v, want accepted: %v", size, err, ok)
		}
	}
}

// http2Frame is a frame in the form of the wire.
func http2Frame(kind, flags byte, payload ...byte) []byte {
	return append([]byte{0, 0, byte(len(payload)), kind, flags, 0, 0, 0, 0}, payload...)
}

// TestPingsAreEnforced: a client that pings without end is cut off.
func TestPingsAreEnforced(t *testing.T) {
	e := start(t)
	conn, err := net.Dial("tcp", e.srv.GRPCAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	const settings, ping = 4, 6
	out := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), http2Frame(settings, 0)...)
	for range 8 {
		out = append(out, http2Frame(ping, 0, make([]byte, 8)...)...)
	}
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if !bytes.Contains(got, []byte("too_many_pings")) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestSilentConnectionsEnd: who connects and says nothing is cut off, on both ports, with
// TLS and without.
func TestSilentConnectionsEnd(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	plain, secured := start(t), start(t, p.use(t, false))
	ended := make(chan string, 4)
	for name, x := range map[string]struct {
		addr  string
		limit time.Duration
	}{
		"gRPC": {plain.srv.GRPCAddr(), handshakeTimeout}, "gRPC, TLS": {secured.srv.GRPCAddr(), handshakeTimeout},
		"HTTP": {plain.srv.HTTPAddr(), readHeaderTimeout}, "HTTPS": {secured.srv.HTTPAddr(), readHeaderTimeout},
	} {
		conn, err := net.Dial("tcp", x.addr)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer conn.Close()
			begun := time.Now()
			_ = conn.SetDeadline(begun.Add(x.limit + 20*time.Second))
			_, err := io.Copy(io.Discard, conn)
			if took := time.Since(begun); os.IsTimeout(err) || took < x.limit-time.Second {
				name += " ended after " + took.String()
			} else {
				name = ""
			}
			ended <- name
		}()
	}
	for range cap(ended) {
		if fault := <-ended; fault != "" {
			t.Error(fault)
		}
	}
}
