//go:build linux

package security

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// squatter is what a hostile connection does once it is open; it returns when the
// connection ends or ctx does.
type squatter func(ctx context.Context, conn net.Conn)

// Frames of HTTP2, made by hand.
const (
	h2Headers  = 1
	h2Settings = 4
	h2Ping     = 6
	h2Ack      = 1
	h2Preface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

func h2Frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := make([]byte, 9, 9+len(payload))
	b[0], b[1], b[2] = byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload))
	b[3], b[4] = kind, flags
	binary.BigEndian.PutUint32(b[5:], stream)
	return append(b, payload...)
}

// silent says nothing at all.
func silent(_ context.Context, conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// says sends something once and then listens.
func says(b []byte) squatter {
	return func(ctx context.Context, conn net.Conn) {
		if _, err := conn.Write(b); err == nil {
			silent(ctx, conn)
		}
	}
}

// polite opens HTTP2, more when it is given, and answers settings and pings for ever.
func polite(more []byte) squatter {
	return func(_ context.Context, conn net.Conn) {
		if _, err := conn.Write(append([]byte(h2Preface), append(h2Frame(h2Settings, 0, 0, nil), more...)...)); err != nil {
			return
		}
		head := make([]byte, 9)
		for {
			if _, err := io.ReadFull(conn, head); err != nil {
				return
			}
			payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
			if _, err := io.ReadFull(conn, payload); err != nil {
				return
			}
			var answer []byte
			switch {
			case head[3] == h2Settings && head[4]&h2Ack == 0:
				answer = h2Frame(h2Settings, h2Ack, 0, nil)
			case head[3] == h2Ping && head[4]&h2Ack == 0:
				answer = h2Frame(h2Ping, h2Ack, 0, payload)
			}
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}
}

// drips sends text, one byte after the other.
func drips(s string, every time.Duration) squatter {
	return func(ctx context.Context, conn net.Conn) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := range len(s) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if _, err := conn.Write([]byte{s[i]}); err != nil {
				return
			}
		}
		silent(ctx, conn)
	}
}

// literal is a header field without indexing or Huffman coding.
func literal(name, value string) []byte {
	return append(append(append([]byte{0, byte(len(name))}, name...), byte(len(value))), value...)
}

// h2Call begins a call of a method; its message does not follow.
func h2Call(method string) []byte {
	return h2Frame(h2Headers, 4, 1, cat(literal(":method", "POST"), literal(":scheme", "http"), literal(":path", method),
		literal(":authority", "x"), literal("content-type", "application/grpc"), literal("te", "trailers")))
}

// squat keeps so many connections open from so many addresses, and opens each again that is
// closed, until ctx ends.
func squat(ctx context.Context, addr string, connections, addresses int, do squatter) (opened *atomic.Int64, wait func()) {
	var wg sync.WaitGroup
	opened = new(atomic.Int64)
	for i := range connections {
		from := &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("127.0.1.%d", 1+i%addresses))}
		wg.Go(func() {
			for ctx.Err() == nil {
				conn, err := (&net.Dialer{LocalAddr: from, Timeout: 2 * time.Second}).DialContext(ctx, "tcp", addr)
				if err == nil {
					opened.Add(1)
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					do(ctx, conn)
					stop()
					conn.Close()
				}
				select {
				case <-ctx.Done():
				case <-time.After(300 * time.Millisecond):
				}
			}
		})
	}
	return opened, wg.Wait
}

// TestHeldConnections: whoever holds all connections that he can get keeps nobody out.
func TestHeldConnections(t *testing.T) {
	get := "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
	post := "POST /v1/functions/double:call HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
	for _, tt := range []struct {
		name      string
		split     bool // the port of a dispatcher
		http      bool // the HTTP port
		addresses int
		do        squatter
	}{
		{"gRPC, silent, one address (long)", false, false, 1, silent},
		{"gRPC, silent, many addresses", false, false, 32, silent},
		{"gRPC, idle HTTP2, one address", false, false, 1, polite(nil)},
		{"gRPC, idle HTTP2, many addresses", false, false, 32, polite(nil)},
		{"gRPC, half a preface (long)", false, false, 4, says([]byte(h2Preface[:10]))},
		{"gRPC, a public call without its message", false, false, 4, polite(h2Call(healthCheck))},
		{"gRPC, a call without a token (long)", false, false, 32, polite(h2Call(methodPush))},
		{"dispatcher, idle HTTP2, one address (long)", true, false, 1, polite(nil)},
		{"dispatcher, idle HTTP2, many addresses", true, false, 32, polite(nil)},
		{"dispatcher, a Watch that never says of what (long)", true, false, 8, polite(h2Call(healthWatch))},
		{"HTTP, silent, one address (long)", false, true, 1, silent},
		{"HTTP, silent, many addresses (long)", false, true, 32, silent},
		{"HTTP, half headers, one address", false, true, 1, says([]byte(get))},
		{"HTTP, half headers, many addresses", false, true, 32, says([]byte(get))},
		{"HTTP, headers byte by byte (long)", false, true, 4, drips(strings.Repeat(get, 1000), 500*time.Millisecond)},
		{"HTTP, half a body without a token (long)", false, true, 16, says([]byte(post))},
		{"HTTP, a public page and then nothing", false, true, 16, says([]byte(get + "\r\n"))},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, tt.split)
			victim, addr := c.server, c.api
			switch {
			case tt.http:
				addr = c.http
			case tt.split:
				victim, addr = c.dispatcher, c.workers
			}
			s := c.begin(t, victim)
			ctx, cancel := context.WithTimeout(context.Background(), scale(4*time.Second, 25*time.Second))
			defer cancel()
			opened, wait := squat(ctx, addr, 4300, tt.addresses, tt.do)
			// Newcomers come in while all of that is open.
			until(t, 5*time.Second, "the connections are opened", func() error {
				if n := opened.Load(); n < 4200 {
					return fmt.Errorf("%d so far", n)
				}
				return nil
			})
			c.newcomers(t)
			<-ctx.Done()
			wait()
			s.end()
		})
	}
}

// newcomers are a worker and a person at a terminal, who come while an attack runs.
func (c *cluster) newcomers(t *testing.T) {
	t.Helper()
	if out, err := c.cli(built.get(t), "workers"); err != nil || !strings.Contains(out, "honest") {
		t.Errorf("treadle workers: %v: %.300s", err, out)
	}
	begun := time.Now()
	w, err := c.attachWorker(t, c.worker, "newcomer", "newcomers")
	if err != nil {
		t.Errorf("a worker that comes now is not welcome after %s: %v", time.Since(begun).Round(time.Millisecond), err)
		return
	}
	w.cancel()
}

// attachWorker opens a session from the honest address and waits for its Welcome.
func (c *cluster) attachWorker(t *testing.T, token, id, queue string) (*hostileStream, error) {
	t.Helper()
	p := dialPeer(t, c.workers, token, "127.0.0.1")
	s, err := p.attach(context.Background(), methodPush, hello(id, queue, "python", 1))
	if err != nil {
		return nil, err
	}
	welcome := make(chan error, 1)
	go func() {
		message, err := s.recv()
		if f := dispatched(message); err == nil && f.GetWelcome() == nil {
			err = fmt.Errorf("the answer to Hello is %v", f)
		}
		welcome <- err
	}()
	select {
	case err = <-welcome:
	case <-time.After(honestTimeout):
		err = fmt.Errorf("no answer to Hello within %s", honestTimeout)
	}
	if err != nil {
		s.cancel()
	}
	return s, err
}
