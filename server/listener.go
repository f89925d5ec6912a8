package server

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// Connections of nobody in particular. Whoever reaches a port can open connections; only
// those that made a call which was admitted may stay.
const (
	// callWait is how long a connection has for its first admitted call, its handshakes
	// included.
	callWait = 10 * time.Second
	// publicAge is how old a connection gets that made public calls alone. It ends between
	// two calls; over HTTP the answer says so from politeAge on.
	publicAge = 5 * time.Minute
	politeAge = time.Minute
	// sideRoom is how many connections over a limit are served nevertheless, with public
	// pages only and for sideWait, so that probes are answered whatever comes in.
	sideRoom = 64
	sideWait = 5 * time.Second
	// evictAge keeps newcomers from driving each other out in the middle of a handshake.
	evictAge = 500 * time.Millisecond
	// crowded is how many connections without an admitted call make an address the first that
	// has to give some up, at any age. A gateway with a handful of people behind it is none, and
	// whoever fills the 2048 places of such connections with less has at least 64 addresses.
	crowded = 32
	// tellEvery keeps a flood out of the log.
	tellEvery = 10 * time.Second
)

// doorLimits are how many connections a listener has open at one time.
type doorLimits struct {
	// all is the limit on all of them but the side room.
	all int
	// fresh and freshAddr are those on the ones that made no admitted call yet: together, and of
	// one source address.
	fresh, freshAddr int
	// token is the share of one token; 0 without tokens.
	token int
}

func newDoorLimits(all int, tokens bool) doorLimits {
	l := doorLimits{all: all, fresh: max(1, all/2)}
	l.freshAddr = max(all/8, min(8, l.fresh))
	if tokens {
		l.token = max(1, all/2)
	}
	return l
}

// Reasons for which a connection is refused, as the metrics name them.
const (
	refusedLimit  = "limit"  // as many as --max-connections are open
	refusedFresh  = "fresh"  // too many without an admitted call
	refusedShare  = "share"  // too many of those from one address
	refusedSilent = "silent" // no admitted call in time
)

var refusals = []string{refusedLimit, refusedFresh, refusedShare, refusedSilent}

// door is a listener that bounds its connections. One that is not admitted yet makes room
// for a newer one: who is honest is admitted within moments, and who only holds
// connections holds them for moments.
type door struct {
	net.Listener
	name   string
	limits doorLimits
	log    *slog.Logger
	// wait and age are callWait and publicAge.
	wait, age time.Duration
	// told and toldFull are when the log was last told of refusals and of a want of descriptors,
	// in nanoseconds.
	told, toldFull atomic.Int64

	mu   sync.Mutex
	open int
	// fresh and byAddr list the connections without an admitted call, oldest first.
	fresh   list.List
	byAddr  map[netip.Addr]*list.List
	byToken map[string]int
	side    list.List
	refused map[string]int64
}

func newDoor(name string, lis net.Listener, limits doorLimits, log *slog.Logger) *door {
	return &door{
		Listener: lis, name: name, limits: limits, log: log, wait: callWait, age: publicAge,
		byAddr: make(map[netip.Addr]*list.List), byToken: make(map[string]int), refused: make(map[string]int64),
	}
}

// Accept implements [net.Listener].
func (d *door) Accept() (net.Conn, error) {
	for {
		raw, err := d.Listener.Accept()
		if err != nil {
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				d.tellFull(err)
			}
			return nil, err // who serves tries again in a moment
		}
		if c := d.enter(raw); c != nil {
			return c, nil
		}
	}
}

// enter gives a new connection its place; nil when it was closed for want of one.
func (d *door) enter(raw net.Conn) *doorConn {
	c := &doorConn{Conn: raw, door: d, born: time.Now(), addr: sourceOf(raw.RemoteAddr())}
	c.remote = doorAddr{raw.RemoteAddr(), c}
	d.mu.Lock()
	out, reason := d.place(c)
	if reason != "" {
		d.refused[reason]++
	}
	d.mu.Unlock()
	if out != nil {
		_ = out.Conn.Close()
	}
	if reason != "" {
		d.tell(reason)
	}
	if out == c {
		return nil
	}
	return c
}

// place finds room for c. It returns the connection that has to go, c itself included, and
// why somebody does not get what he came for. d.mu is held.
func (d *door) place(c *doorConn) (out *doorConn, reason string) {
	room, reason, age := &d.fresh, "", evictAge
	own := d.byAddr[c.addr]
	switch {
	case own != nil && own.Len() >= d.limits.freshAddr:
		room, reason = own, refusedShare
	case d.fresh.Len() >= d.limits.fresh:
		reason = refusedFresh
	case d.open >= d.limits.all:
		reason = refusedLimit
	}
	if reason != "" {
		if crowd := d.crowd(); reason != refusedShare && crowd != nil {
			// Who has many gives way to who has fewer: opening them anew all the time helps nobody
			// to keep others out.
			room = crowd
			if own == nil || own.Len()+1 < crowd.Len() {
				age = 0
			}
		}
		if out = oldest(room, c.born, age); out == nil {
			return d.placeAside(c), reason
		}
		d.remove(out)
		own = d.byAddr[c.addr]
	}
	if own == nil {
		own = list.New()
		d.byAddr[c.addr] = own
	}
	c.inFresh, c.inAddr = d.fresh.PushBack(c), own.PushBack(c)
	d.open++
	c.timer = time.AfterFunc(d.wait, c.expire)
	return out, reason
}

// placeAside takes c into the side room, where it makes place for c as well. d.mu is held.
func (d *door) placeAside(c *doorConn) (out *doorConn) {
	if d.side.Len() >= sideRoom {
		if out = oldest(&d.side, c.born, evictAge); out == nil {
			return c
		}
		d.remove(out)
	}
	c.aside = true
	c.inSide = d.side.PushBack(c)
	c.timer = time.AfterFunc(min(sideWait, d.wait), c.expire)
	return out
}

// crowd lists the connections of the address that has most of those without an admitted call;
// nil when none has many. It is asked when there is no room, and looks at no more addresses
// than there may be such connections. d.mu is held.
func (d *door) crowd() (most *list.List) {
	for _, own := range d.byAddr {
		if own.Len() >= crowded && (most == nil || own.Len() > most.Len()) {
			most = own
		}
	}
	return most
}

// oldest is the first connection of a list when it is old enough to be driven out.
func oldest(l *list.List, now time.Time, age time.Duration) *doorConn {
	if l.Len() == 0 {
		return nil
	}
	c := l.Front().Value.(*doorConn)
	if now.Sub(c.born) < age {
		return nil
	}
	return c
}

// remove takes a connection off the books, once. d.mu is held.
func (d *door) remove(c *doorConn) {
	if c.gone {
		return
	}
	c.gone = true
	c.timer.Stop()
	if c.inSide != nil {
		d.side.Remove(c.inSide)
		return
	}
	d.open--
	if token := c.token.Load(); token != nil {
		if d.byToken[*token]--; d.byToken[*token] <= 0 {
			delete(d.byToken, *token)
		}
		return
	}
	d.unlist(c)
}

// unlist takes a connection out of the lists of those without an admitted call. d.mu is held.
func (d *door) unlist(c *doorConn) {
	d.fresh.Remove(c.inFresh)
	own := d.byAddr[c.addr]
	own.Remove(c.inAddr)
	if own.Len() == 0 {
		delete(d.byAddr, c.addr)
	}
}

// tell logs refusals, not each of them.
func (d *door) tell(reason string) {
	if due(&d.told) {
		d.log.Warn("connections are refused: see treadle_connections_refused_total, and --max-connections",
			"listener", d.name, "reason", reason, "limit", d.limits.all)
	}
}

// tellFull is about connections that wait in the kernel: nobody sees them refused.
func (d *door) tellFull(err error) {
	if due(&d.toldFull) {
		d.log.Warn("no connection can be accepted for want of file descriptors: raise the limit (ulimit -n, LimitNOFILE=) "+
			"above twice --max-connections, or lower that", "listener", d.name, "max_connections", d.limits.all, "error", err)
	}
}

// due reports whether tellEvery has passed since the time in last, and begins it anew.
func due(last *atomic.Int64) bool {
	now, then := time.Now().UnixNano(), last.Load()
	return now-then >= int64(tellEvery) && last.CompareAndSwap(then, now)
}

// counts returns the open connections and those without an admitted call, the side room
// included in both.
func (d *door) counts() (open, fresh int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open + d.side.Len(), d.fresh.Len() + d.side.Len()
}

// refusedFor returns how many connections were refused for a reason.
func (d *door) refusedFor(reason string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refused[reason]
}

// doorConn is a connection that came through a door.
type doorConn struct {
	net.Conn
	door   *door
	born   time.Time
	addr   netip.Addr
	remote doorAddr
	// aside: it is in the side room, for as long as it lasts.
	aside bool
	// token is the id of the token that made it stay; nil before.
	token atomic.Pointer[string]
	// checks and watches count the public calls under way.
	checks, watches atomic.Int32
	// met: a public call was made.
	met atomic.Bool
	// sent counts the bytes that were written.
	sent atomic.Int64

	// Guarded by door.mu.
	gone                    bool
	timer                   *time.Timer
	inFresh, inAddr, inSide *list.Element
}

// doorAddr is the remote address of a doorConn. It is how calls find the connection they came by:
// gRPC, net/http and TLS hand addresses on as they are.
type doorAddr struct {
	net.Addr
	conn *doorConn
}

// RemoteAddr implements [net.Conn].
func (c *doorConn) RemoteAddr() net.Addr { return &c.remote }

// connOf returns the connection that an address belongs to; nil for other addresses.
func connOf(a net.Addr) *doorConn {
	if d, ok := a.(*doorAddr); ok {
		return d.conn
	}
	return nil
}

type connKey struct{}

// withConn notes the connection of HTTP requests; see [net/http.Server.ConnContext].
func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, connOf(conn.RemoteAddr()))
}

// connFrom returns the connection that a call came by; nil for calls that came by none.
func connFrom(ctx context.Context) *doorConn {
	if c, ok := ctx.Value(connKey{}).(*doorConn); ok {
		return c
	}
	if p, ok := peer.FromContext(ctx); ok {
		return connOf(p.Addr)
	}
	return nil
}

// Write implements [net.Conn].
func (c *doorConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// CloseWrite ends what is sent and leaves the other direction open, which net/http does
// before it closes a connection with a body that nobody read.
func (c *doorConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close implements [net.Conn].
func (c *doorConn) Close() error {
	c.door.mu.Lock()
	c.door.remove(c)
	c.door.mu.Unlock()
	return c.Conn.Close()
}

// admit lets the connection stay, as somebody with a token made a call by it. The error says
// which limit is reached.
func (c *doorConn) admit(p auth.Principal) error {
	if c == nil || c.token.Load() != nil {
		return nil
	}
	d := c.door
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case c.gone || c.token.Load() != nil:
		return nil
	case c.aside:
		return task.Errorf(task.CodeUnavailable, "",
			"as many connections are open as the server allows (--max-connections %d, a part of them for each address that is not known yet): try again", d.limits.all)
	case d.limits.token > 0 && d.byToken[p.Account()] >= d.limits.token:
		return task.Errorf(task.CodeExhausted, "",
			"the token %s has %d connections open, its share of --max-connections %d: use fewer", p.Account(), d.byToken[p.Account()], d.limits.all)
	}
	d.unlist(c)
	c.timer.Stop()
	account := p.Account()
	d.byToken[account]++
	c.token.Store(&account)
	return nil
}

// expire closes a connection that did not become somebody's in time.
func (c *doorConn) expire() {
	d := c.door
	d.mu.Lock()
	busy := c.checks.Load()+c.watches.Load() > 0
	switch left := d.age - time.Since(c.born); {
	case c.gone || c.token.Load() != nil:
		d.mu.Unlock()
		return
	case !c.aside && c.met.Load() && (left > 0 || busy):
		// Calls under way end by themselves, and no others begin.
		c.timer.Reset(max(left, time.Second))
		d.mu.Unlock()
		return
	case !c.met.Load():
		d.refused[refusedSilent]++
	}
	d.remove(c)
	d.mu.Unlock()
	_ = c.Conn.Close()
}

// old reports whether a connection without an admitted call has reached an age.
func (c *doorConn) old(age time.Duration) bool {
	return c != nil && c.token.Load() == nil && (c.aside || time.Since(c.born) >= age)
}

// sourceOf is the address for which a connection counts: a host has 64 bits of IPv6.
func sourceOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}

// refusedConnections is the help of the metric.
var refusedConnections = fmt.Sprintf("Connections that were refused or closed, by reason: %s (as many as --max-connections were open), "+
	"%s (too many without an admitted call), %s (too many of those from one address), %s (no admitted call in time).",
	refusedLimit, refusedFresh, refusedShare, refusedSilent)
