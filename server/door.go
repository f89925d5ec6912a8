package server

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// Public calls under way, all listeners together: those that are answered at once, and
// watches.
const (
	maxChecksConn, maxChecksAddr, maxChecks    = 16, 128, 1024
	maxWatchesConn, maxWatchesAddr, maxWatches = 4, 32, 256
	// publicGrace is how long the message of a public call may take to arrive.
	publicGrace = 5 * time.Second
	// watchAge is how long a watch of the server's health lasts at most.
	watchAge = 5 * time.Minute
)

// crowd counts public calls of one kind that are under way, by source address.
type crowd struct {
	kind                  string
	perConn, perAddr, all int

	mu     sync.Mutex
	total  int
	byAddr map[netip.Addr]int
}

// enter counts a call in; leave must be called when err is nil.
func (w *crowd) enter(c *doorConn, count *atomic.Int32) (leave func(), err error) {
	if n := count.Add(1); int(n) > w.perConn {
		count.Add(-1)
		return nil, w.full("connection", w.perConn)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.byAddr[c.addr] >= w.perAddr:
		err = w.full("address", w.perAddr)
	case w.total >= w.all:
		err = w.full("server", w.all)
	}
	if err != nil {
		count.Add(-1)
		return nil, err
	}
	if w.byAddr == nil {
		w.byAddr = make(map[netip.Addr]int)
	}
	w.byAddr[c.addr]++
	w.total++
	return func() {
		count.Add(-1)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.total--
		if w.byAddr[c.addr]--; w.byAddr[c.addr] == 0 {
			delete(w.byAddr, c.addr)
		}
	}, nil
}

func (w *crowd) full(what string, limit int) error {
	return task.Errorf(task.CodeExhausted, "", "%d %s are under way on this %s, as many as may be: try again when one has ended", limit, w.kind, what)
}

// publicCalls bounds the calls that whoever likes may make.
type publicCalls struct{ checks, watches crowd }

func newPublicCalls() *publicCalls {
	return &publicCalls{
		checks:  crowd{kind: "checks of health", perConn: maxChecksConn, perAddr: maxChecksAddr, all: maxChecks},
		watches: crowd{kind: "watches of health", perConn: maxWatchesConn, perAddr: maxWatchesAddr, all: maxWatches},
	}
}

// enter counts a public call in; leave must be called when err is nil.
func (p *publicCalls) enter(c *doorConn, watch bool) (leave func(), err error) {
	if c == nil {
		return func() {}, nil
	}
	if !c.aside && c.old(c.door.age) {
		return nil, task.Errorf(task.CodeUnavailable, "", "this connection has made public calls alone for %s: open another", c.door.age)
	}
	c.met.Store(true)
	if watch {
		if c.aside {
			return nil, task.Errorf(task.CodeUnavailable, "", "as many connections are open as the server allows: health can be checked, and not watched")
		}
		return p.watches.enter(c, &c.watches)
	}
	return p.checks.enter(c, &c.checks)
}
