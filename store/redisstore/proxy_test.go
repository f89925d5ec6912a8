package redisstore

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a store and its server. While it is armed it lets a request
// through, waits for the answer, and breaks the connection instead of passing it on: the
// server has done the work and the client does not know.
type proxy struct {
	addr  string
	armed atomic.Int64
	lost  atomic.Int64
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c, target) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return p
}

func (p *proxy) serve(client net.Conn, target string) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	wg.Go(func() {
		_, _ = io.Copy(server, client) // It ends with either side.
		server.Close()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			client.Close()
			return
		}
		if p.armed.Load() > 0 && p.armed.Add(-1) >= 0 {
			p.lost.Add(1)
			client.Close()
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// loseNext breaks the next n answers.
func (p *proxy) loseNext(n int64) {
	p.armed.Store(n)
	p.lost.Store(0)
}
