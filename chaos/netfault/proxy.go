// Package netfault breaks connections: a TCP proxy on each link, and dropped packets where
// the suite has a network of its own.
package netfault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Toxic is what a proxy does to the connections that go through it.
type Toxic struct {
	// Latency is added to each piece that goes either way.
	Latency time.Duration
	// Up and Down say that nothing goes on in that direction, though the connections
	// stand: what a link does whose packets are dropped.
	Up, Down bool
	// Slice cuts what goes through into pieces of up to that many bytes; 0 does not.
	Slice int
	// Cut resets a connection after that many bytes from the far end; 0 does not.
	Cut int64
	// Refuse resets new connections.
	Refuse bool
}

// Proxy is one link: it listens on an address of its own and forwards to a target.
type Proxy struct {
	// Addr is where it listens.
	Addr   string
	target string
	l      net.Listener

	mu    sync.Mutex
	toxic Toxic
	// changed is closed when the toxic changes.
	changed chan struct{}
	conns   map[*pair]bool
	closed  bool
	wg      sync.WaitGroup
}

// pair is one connection: the near end was accepted, the far end is at the target.
type pair struct{ near, far *net.TCPConn }

func (p *pair) reset() {
	for _, c := range []*net.TCPConn{p.near, p.far} {
		_ = c.SetLinger(0) // so that Close sends a reset; it may be gone
		c.Close()
	}
}

// Listen starts a proxy on a free port of a loopback address.
func Listen(ip, target string) (*Proxy, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return nil, fmt.Errorf("a proxy to %s: %w", target, err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, l: l, conns: map[*pair]bool{}, changed: make(chan struct{})}
	p.wg.Go(p.serve)
	return p, nil
}

// IP is the address that the proxy alone listens on.
func (p *Proxy) IP() string {
	host, _, _ := net.SplitHostPort(p.Addr) // it is the listener's
	return host
}

// Set replaces the toxic; the zero one heals the link.
func (p *Proxy) Set(t Toxic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toxic = t
	close(p.changed)
	p.changed = make(chan struct{})
}

// Reset ends all connections with a reset and says how many there were.
func (p *Proxy) Reset() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.reset()
	}
	return len(p.conns)
}

// Close ends the proxy and waits for its goroutines.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Set(Toxic{})
	p.l.Close()
	p.Reset()
	p.wg.Wait()
}

func (p *Proxy) state() (Toxic, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.toxic, p.changed
}

func (p *Proxy) serve() {
	for {
		c, err := p.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		near, ok := c.(*net.TCPConn)
		if !ok {
			c.Close()
			continue
		}
		p.wg.Go(func() { p.link(near) })
	}
}

func (p *Proxy) link(near *net.TCPConn) {
	if t, _ := p.state(); t.Refuse {
		_ = near.SetLinger(0) // as in reset
		near.Close()
		return
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(context.Background(), "tcp", p.target)
	if err != nil {
		_ = near.SetLinger(0) // the target is down: so is the link
		near.Close()
		return
	}
	far, ok := c.(*net.TCPConn)
	if !ok {
		panic(fmt.Sprintf("a TCP connection of type %T", c))
	}
	both := &pair{near, far}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		both.reset()
		return
	}
	p.conns[both] = true
	p.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(both, near, far, true) })
	pumps.Go(func() { p.pump(both, far, near, false) })
	pumps.Wait()
	near.Close()
	far.Close()
	p.mu.Lock()
	delete(p.conns, both)
	p.mu.Unlock()
}

// pump copies one direction; up is from the near end to the target.
func (p *Proxy) pump(both *pair, from, to *net.TCPConn, up bool) {
	buf := make([]byte, 32<<10)
	var passed int64
	for {
		n, err := from.Read(buf)
		for piece := buf[:n]; len(piece) > 0; {
			t, changed := p.state()
			if up && t.Up || !up && t.Down {
				<-changed
				continue
			}
			size := len(piece)
			if t.Slice > 0 {
				size = min(size, t.Slice)
			}
			if t.Latency > 0 {
				select {
				case <-time.After(t.Latency):
				case <-changed:
				}
			}
			if !up && t.Cut > 0 && passed+int64(size) > t.Cut {
				_, _ = to.Write(piece[:max(0, t.Cut-passed)]) // the reset follows
				both.reset()
				return
			}
			if _, err := to.Write(piece[:size]); err != nil {
				both.reset()
				return
			}
			passed += int64(size)
			piece = piece[size:]
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = to.CloseWrite() // the other direction goes on
				return
			}
			both.reset()
			return
		}
	}
}
