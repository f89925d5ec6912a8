package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// socket is a connection that only opens and closes.
type socket struct {
	net.Conn
	from   net.Addr
	once   sync.Once
	closed chan struct{}
}

func (s *socket) RemoteAddr() net.Addr { return s.from }

func (s *socket) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

// doorRoom is a door and those in front of it.
type doorRoom struct {
	t *testing.T
	d *door
}

func newDoorRoom(t *testing.T, limits doorLimits) doorRoom {
	return doorRoom{t, newDoor("test", nil, limits, slog.New(slog.DiscardHandler))}
}

// comes lets a connection from an address in; nil when it was closed at once.
func (r doorRoom) comes(from string) *doorConn {
	r.t.Helper()
	return r.d.enter(&socket{from: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from + ":1000")), closed: make(chan struct{})})
}

func (r doorRoom) mustCome(from string) *doorConn {
	r.t.Helper()
	c := r.comes(from)
	if c == nil || c.aside {
		r.t.Fatalf("%s was not let in", from)
	}
	return c
}

func (r doorRoom) admitted(from, token string) *doorConn {
	r.t.Helper()
	c := r.mustCome(from)
	if err := c.admit(auth.Principal{ID: token}); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func isClosed(c *doorConn) bool {
	select {
	case <-c.Conn.(*socket).closed:
		return true
	default:
		return false
	}
}

// empty checks that the door's books are empty when all have left.
func (r doorRoom) empty(conns ...*doorConn) {
	r.t.Helper()
	for _, c := range conns {
		_ = c.Close()
		_ = c.Close() // a connection may be closed twice
	}
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != 0 || d.fresh.Len() != 0 || d.side.Len() != 0 || len(d.byAddr) != 0 || len(d.byToken) != 0 {
		r.t.Errorf("%d open, %d fresh, %d aside, by address %v, by token %v", d.open, d.fresh.Len(), d.side.Len(), d.byAddr, d.byToken)
	}
}

func TestDoorLimits(t *testing.T) {
	for all, want := range map[int]doorLimits{
		4096: {4096, 2048, 512, 2048}, 64: {64, 32, 8, 32}, 8: {8, 4, 4, 4}, 2: {2, 1, 1, 1}, 1: {1, 1, 1, 1},
	} {
		if got := newDoorLimits(all, true); got != want {
			t.Errorf("%d: %+v, want %+v", all, got, want)
		}
		if got := newDoorLimits(all, false); got.token != 0 {
			t.Errorf("%d without tokens: %+v", all, got)
		}
	}
}

// A connection that makes no admitted call ends after callWait, one that made one stays.
func TestDoorWaitsForACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDoorRoom(t, newDoorLimits(64, true))
		silent, known := r.mustCome("10.0.0.1"), r.admitted("10.0.0.1", "a")
		time.Sleep(callWait - time.Millisecond)
		synctest.Wait()
		if isClosed(silent) {
			t.Error("closed too early")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !isClosed(silent) || r.d.refusedFor(refusedSilent) != 1 {
			t.Errorf("silent for %s: closed %v, counted %d", callWait, isClosed(silent), r.d.refusedFor(refusedSilent))
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if isClosed(known) {
			t.Error("a connection with an admitted call was closed")
		}
		r.empty(silent, known)
	})
}

// A connection that makes public calls alone lives for publicAge and ends between two calls.
func TestDoorEndsPublicConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, public := newDoorRoom(t, newDoorLimits(64, true)), newPublicCalls()
		c, watcher := r.mustCome("10.0.0.1"), r.mustCome("10.0.0.1")
		leave, err := public.enter(c, false)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		endWatch, err := public.enter(watcher, true)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(publicAge - time.Millisecond)
		synctest.Wait()
		if isClosed(c) || isClosed(watcher) {
			t.Error("closed before its time")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !isClosed(c) || isClosed(watcher) {
			t.Errorf("closed: %v and, with a call under way, %v", isClosed(c), isClosed(watcher))
		}
		if _, err := public.enter(watcher, false); task.CodeOf(err) != task.CodeUnavailable {
			t.Errorf("another public call on an old connection: %v", err)
		}
		endWatch()
		time.Sleep(time.Second)
		synctest.Wait()
		if !isClosed(watcher) {
			t.Error("open after its last call")
		}
		if n := r.d.refusedFor(refusedSilent); n != 0 {
			t.Errorf("%d counted as silent", n)
		}
		r.empty(c, watcher)
	})
}

// Those of one address make room for each other, and nobody else does.
func TestDoorShareOfAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDoorRoom(t, newDoorLimits(64, true))
		other := r.mustCome("10.0.0.2")
		var own, aside []*doorConn
		for range r.d.limits.freshAddr {
			own = append(own, r.mustCome("10.0.0.1"))
		}
		// Newcomers do not drive out what has only just come.
		for range sideRoom {
			c := r.comes("10.0.0.1")
			if c == nil || !c.aside {
				t.Fatal("one too many is not in the side room")
			}
			aside = append(aside, c)
		}
		if c := r.comes("10.0.0.1"); c != nil {
			t.Error("the side room has no end")
		}
		r.mustCome("10.0.0.3").Close()
		if err := aside[0].admit(auth.Principal{ID: "a"}); task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "64") {
			t.Errorf("a call of the side room: %v", err)
		}
		// Later they do, the oldest first.
		time.Sleep(evictAge)
		own = append(own, r.mustCome("10.0.0.1"))
		if !isClosed(own[0]) || isClosed(own[1]) || isClosed(other) {
			t.Errorf("closed: the oldest %v, the next %v, another's %v", isClosed(own[0]), isClosed(own[1]), isClosed(other))
		}
		if n := r.d.refusedFor(refusedShare); n != sideRoom+2 {
			t.Errorf("%d counted, want %d", n, sideRoom+2)
		}
		// Admitted ones are not of the share.
		if err := own[len(own)-1].admit(auth.Principal{ID: "a"}); err != nil {
			t.Fatal(err)
		}
		own = append(own, r.mustCome("10.0.0.1"))
		if isClosed(own[1]) {
			t.Error("an admitted connection counts against the share of its address")
		}
		time.Sleep(sideWait)
		synctest.Wait()
		for _, c := range aside {
			if !isClosed(c) {
				t.Fatal("the side room keeps a connection")
			}
		}
		r.empty(append(append(own, aside...), other)...)
	})
}

// Connections without an admitted call never take what is kept for those with one.
func TestDoorKeepsAReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDoorRoom(t, doorLimits{all: 6, fresh: 3, freshAddr: 2, token: 3})
		var all []*doorConn
		for _, from := range []string{"10.0.0.1", "10.0.0.1", "10.0.0.2"} {
			all = append(all, r.mustCome(from))
		}
		if c := r.comes("10.0.0.3"); !c.aside || r.d.refusedFor(refusedFresh) != 1 {
			t.Errorf("a fourth is taken in, %d counted", r.d.refusedFor(refusedFresh))
		}
		time.Sleep(evictAge)
		all = append(all, r.mustCome("10.0.0.3"))
		if !isClosed(all[0]) {
			t.Error("the oldest stays")
		}
		for _, c := range all[1:] {
			if err := c.admit(auth.Principal{ID: "a"}); err != nil {
				t.Error(err)
			}
		}
		// A token has its share.
		more := r.mustCome("10.0.0.1")
		if err := more.admit(auth.Principal{ID: "a"}); task.CodeOf(err) != task.CodeExhausted || !strings.Contains(err.Error(), "--max-connections 6") {
			t.Errorf("over the share of a token: %v", err)
		}
		if err := more.admit(auth.Principal{ID: "b"}); err != nil {
			t.Error(err)
		}
		if err := more.admit(auth.Principal{ID: "a"}); err != nil {
			t.Errorf("another token on an admitted connection: %v", err)
		}
		all = append(all, more, r.admitted("10.0.0.1", "b"), r.admitted("10.0.0.1", "b"))
		full := r.comes("10.0.0.9")
		if !full.aside || r.d.refusedFor(refusedLimit) != 1 {
			t.Errorf("over --max-connections: %+v, %d counted", full, r.d.refusedFor(refusedLimit))
		}
		// A place that becomes free is given again.
		all[1].Close()
		all = append(all, r.mustCome("10.0.0.9"))
		time.Sleep(sideWait)
		synctest.Wait()
		r.empty(all...)
	})
}

func TestSourceOf(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3:5": "10.1.2.3", "[::ffff:10.1.2.3]:5": "10.1.2.3", "[2001:db8:1:2:3:4:5:6]:5": "2001:db8:1:2::", "[::1]:5": "::",
	} {
		if got := sourceOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text))); got.String() != want {
			t.Errorf("%s counts as %s, want %s", text, got, want)
		}
	}
	if got := sourceOf(&net.UnixAddr{}); got.IsValid() {
		t.Errorf("a socket of another kind counts as %s", got)
	}
}

// Each limit on public calls, at its edge.
func TestPublicCalls(t *testing.T) {
	for _, watch := range []bool{false, true} {
		r, public := newDoorRoom(t, newDoorLimits(1<<20, true)), newPublicCalls()
		w := &public.checks
		if watch {
			w = &public.watches
		}
		var conns []*doorConn
		var leaves []func()
		// enter fills connections of one address one after another.
		enter := func(from string, n int) error {
			var c *doorConn
			for i := range n {
				if i%w.perConn == 0 {
					c = r.mustCome(from)
					conns = append(conns, c)
				}
				leave, err := public.enter(c, watch)
				if err != nil {
					return err
				}
				leaves = append(leaves, leave)
			}
			return nil
		}
		wantFull := func(err error, what string) {
			t.Helper()
			if task.CodeOf(err) != task.CodeExhausted || !strings.Contains(err.Error(), what) {
				t.Errorf("%v, want a refusal for the %s", err, what)
			}
		}
		if err := enter("10.0.0.1", w.perConn); err != nil {
			t.Fatal(err)
		}
		_, err := public.enter(conns[0], watch)
		wantFull(err, "connection")
		if err := enter("10.0.0.1", w.perAddr-w.perConn); err != nil {
			t.Fatal(err)
		}
		wantFull(enter("10.0.0.1", 1), "address")
		for i := 1; i < w.all/w.perAddr; i++ {
			if err := enter(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String(), w.perAddr); err != nil {
				t.Fatal(err)
			}
		}
		wantFull(enter("10.0.2.1", 1), "server")
		for _, leave := range leaves {
			leave()
		}
		if w.total != 0 || len(w.byAddr) != 0 {
			t.Errorf("%d calls of %v are left", w.total, w.byAddr)
		}
		if err := enter("10.0.0.1", 1); err != nil {
			t.Error(err)
		}
		r.empty(conns...)
	}
}

// impatient shortens the wait for a first call, and says for how long.
func impatient(lis net.Listener) time.Duration {
	d := lis.(*door)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wait = 300 * time.Millisecond
	return d.wait
}

// TestDoorOnTheNetwork opens connections of each kind on both ports, with TLS and without.
func TestDoorOnTheNetwork(t *testing.T) {
	p := newPKI(t)
	for name, e := range map[string]*env{"plain": start(t), "TLS": start(t, p.use(t, false))} {
		ends := make(chan error, 2)
		for _, lis := range []net.Listener{e.srv.grpcLis, e.srv.httpLis} {
			wait := impatient(lis)
			conn, err := net.Dial("tcp", lis.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(wait + 20*time.Second))
			if lis == e.srv.grpcLis && name == "plain" {
				// A whole handshake is no call.
				if _, err := conn.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), http2Frame(4, 0)...)); err != nil {
					t.Fatal(err)
				}
			}
			go func() { _, err := io.Copy(io.Discard, conn); ends <- err }()
		}
		known, web := e.conn, e.client
		scheme := "http://"
		if name == "TLS" {
			known = e.dialTLS(p.client(t, ""))
			web, scheme = &http.Client{Transport: &http.Transport{TLSClientConfig: p.client(t, ""), ForceAttemptHTTP2: true}}, "https://"
			defer web.CloseIdleConnections()
		}
		// Whoever made a call stays, on the same connection.
		made := func() {
			t.Helper()
			if err := info(t.Context(), known); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			resp, err := web.Get(scheme + e.srv.HTTPAddr() + "/v1/queues")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", name, resp.Status)
			}
		}
		made()
		for range cap(ends) {
			if err := <-ends; os.IsTimeout(err) {
				t.Errorf("%s: a connection without a call stays", name)
			}
		}
		made()
		for _, lis := range []net.Listener{e.srv.grpcLis, e.srv.httpLis} {
			if open, fresh := lis.(*door).counts(); open != 1 || fresh != 0 {
				t.Errorf("%s: %d open, %d without a call", name, open, fresh)
			}
		}
	}
}

// TestHealthWhenAllIsTaken: probes are answered when no connection is left.
func TestHealthWhenAllIsTaken(t *testing.T) {
	ring := newRing(t)
	const limit = 4
	e := start(t, ring.use(t), func(c *Config) { c.MaxConnections = limit })
	for i := range limit {
		role := []auth.Role{auth.Client, auth.Admin}[i%2]
		if err := info(ring.as(t.Context(), role), dialGRPC(t, e.srv.GRPCAddr())); err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.url+"/v1/queues", nil)
		if err != nil {
			t.Fatal(err)
		}
		ring.header(role)(req)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	conn := dialGRPC(t, e.srv.GRPCAddr())
	if res, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("Check: %v, %v", res, err)
	}
	wantCode(t, info(ring.as(t.Context(), auth.Client), conn), codes.Unavailable, "UNAVAILABLE")
	watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = watch.Recv()
	wantCode(t, err, codes.Unavailable, "UNAVAILABLE")
	e.must(e.get("/healthz"), 200)
	e.must(e.get("/readyz"), 200)
	if a := e.must(e.do("GET", "/v1/queues", nil, ring.header(auth.Client)), 503); !strings.Contains(a.str("detail"), "--max-connections 4") {
		t.Errorf("%s", a.raw)
	}
}

// TestWatchEnds: a watch has an end that says what to do.
func TestWatchEnds(t *testing.T) {
	srv, err := New(Config{Store: newStore(t), GRPCAddr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(t.Context())
	srv.watchAge = 50 * time.Millisecond
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn := dialGRPC(t, srv.GRPCAddr())
	watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err = watch.Recv()
	wantCode(t, err, codes.Unavailable, "UNAVAILABLE")
	if !strings.Contains(err.Error(), "watch again") {
		t.Error(err)
	}
	waitUntil(t, func() bool {
		srv.public.watches.mu.Lock()
		defer srv.public.watches.mu.Unlock()
		return srv.public.watches.total == 0
	})
	conn.Close()
}

// TestPublicStreamsOfAConnection: a connection has few watches, on a dispatcher too.
func TestPublicStreamsOfAConnection(t *testing.T) {
	for _, only := range []bool{false, true} {
		e := start(t, func(c *Config) { c.WorkersOnly = only })
		h := healthpb.NewHealthClient(e.conn)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range maxWatchesConn + 1 {
			s, err := h.Watch(ctx, &healthpb.HealthCheckRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			if i < maxWatchesConn && err != nil {
				t.Errorf("watch %d: %v", i+1, err)
			}
			if i == maxWatchesConn {
				wantCode(t, err, codes.ResourceExhausted, "EXHAUSTED")
			}
		}
		if _, err := h.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
			t.Errorf("a check beside the watches: %v", err)
		}
		cancel()
		waitUntil(t, func() bool {
			e.srv.public.watches.mu.Lock()
			defer e.srv.public.watches.mu.Unlock()
			return e.srv.public.watches.total == 0
		})
	}
}

// A stream that lasts is never ended by the age of its connection.
func TestDoorLeavesStreams(t *testing.T) {
	e := start(t)
	wait := impatient(e.srv.grpcLis)
	e.source("f")
	made, err := e.fabric.Execute(t.Context(), &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*wait)
	defer cancel()
	s, err := e.fabric.WatchTask(ctx, &treadlev1.WatchTaskRequest{TaskId: made.GetTaskId()})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded || errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v, want its own deadline", err)
	}
}

// fullListener has no descriptor left for anybody.
type fullListener struct {
	net.Listener
	err error
}

func (l fullListener) Accept() (net.Conn, error) { return nil, l.err }

// Connections that find no descriptor wait in the kernel: the log is the only place that tells.
func TestWantOfDescriptorsIsTold(t *testing.T) {
	t.Parallel()
	for _, number := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
		var log bytes.Buffer
		cause := &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", number)}
		d := newDoor("grpc", fullListener{err: cause}, newDoorLimits(10, false), slog.New(slog.NewTextHandler(&log, nil)))
		for range 100 { // as http.Server and grpc.Server try again and again
			if _, err := d.Accept(); !errors.Is(err, number) {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "for want of file descriptors"); n != 1 || !strings.Contains(log.String(), "level=WARN") {
			t.Errorf("%s: the log tells it %d times:\n%s", number, n, log.String())
		}
	}
}
