package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

func isBusy(err error) bool { return errors.Is(err, errBusy{}) }

// empty checks that nothing is held, waits or is remembered.
func (b *budget) empty(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used != 0 || b.queue.Len() != 0 || len(b.owners) != 0 {
		t.Errorf("%d bytes are held, %d claims wait, owners %v", b.used, b.queue.Len(), b.owners)
	}
}

func TestBudgetShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100, 60)
		got := make(chan string, 10)
		claim := func(owner string, size int64) {
			go func() {
				n, err := b.acquire(t.Context(), owner, size)
				switch {
				case err != nil:
					got <- owner + " busy"
				case n != min(size, 60):
					t.Errorf("%s got %d of %d", owner, n, size)
				default:
					got <- owner
				}
			}()
			synctest.Wait()
		}
		served := func(want ...string) {
			t.Helper()
			synctest.Wait()
			for _, w := range want {
				select {
				case g := <-got:
					if g != w {
						t.Errorf("%s was served, want %s", g, w)
					}
				default:
					t.Errorf("nobody was served, want %s", w)
				}
			}
			if len(got) > 0 {
				t.Errorf("%s was served as well", <-got)
			}
		}
		claim("a", 200) // more than a share is a share
		served("a")
		claim("a", 1) // its share is used up
		claim("b", 40)
		served("b")
		claim("b", 20) // the total is
		claim("c", 1)  // waits behind it, although there is no less room for it than before
		served()
		if b.try("d", 1) {
			t.Error("somebody passes those who wait")
		}
		b.release("a", 1)
		served("a") // the first that waits, within its share
		b.release("b", 19)
		served() // 20 bytes do not fit into 19
		b.release("b", 1)
		served("b")
		b.release("c", 0)
		b.release("a", 1)
		served("c")
		b.release("a", 59)
		b.release("b", 40)
		b.release("c", 1)
		b.empty(t)

		// Who waits too long is told, and those behind him go on.
		claim("a", 60)
		claim("b", 50)
		claim("c", 40)
		served("a")
		time.Sleep(b.wait - time.Millisecond)
		served()
		time.Sleep(time.Millisecond)
		synctest.Wait()
		for range 2 {
			if g := <-got; g != "b busy" && g != "c busy" && g != "c" {
				t.Errorf("%s", g)
			}
		}
		if _, waiting, refused := b.held(); waiting != 0 || refused < 1 {
			t.Errorf("%d wait, %d were refused", waiting, refused)
		}
	})
}

// A claim whose caller leaves makes way, and one more than may wait is refused at once.
func TestBudgetQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100, 50)
		if !b.try("a", 50) || b.try("a", 1) || b.try("b", 51) || !b.try("b", 50) || b.try("c", 1) {
			t.Error("try takes what there is not, or not what there is")
		}
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, maxWaiting)
		wait := func(owner string) {
			go func() { _, err := b.acquire(ctx, owner, 1); errs <- err }()
			synctest.Wait()
		}
		for range maxWaitingOwner {
			wait("a")
		}
		if _, err := b.acquire(ctx, "a", 1); !isBusy(err) {
			t.Errorf("claim %d of one owner: %v", maxWaitingOwner+1, err)
		}
		for i := range maxWaiting - maxWaitingOwner {
			wait(string(rune('b' + i/maxWaitingOwner)))
		}
		if _, err := b.acquire(ctx, "z", 1); !isBusy(err) {
			t.Errorf("claim %d: %v", maxWaiting+1, err)
		}
		cancel()
		for range maxWaiting {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		b.release("a", 50)
		b.release("b", 50)
		b.empty(t)
	})
}

func TestBodyShare(t *testing.T) {
	ring := newRing(t)
	for _, c := range []struct {
		bodies, payload int64
		tokens          bool
		share           int64
	}{
		{0, 64 << 20, false, 2 * 93952409}, {0, 64 << 20, true, 93952409}, {1 << 30, 64 << 20, true, 512 << 20}, {1, 64 << 20, true, 93952409},
	} {
		cfg := Config{Store: newStore(t), GRPCAddr: "x", MaxBodies: c.bodies, MaxPayload: int(c.payload)}
		if c.tokens {
			ring.use(t)(&cfg)
		}
		if err := cfg.fill(); err != nil {
			t.Fatal(err)
		}
		if got := cfg.bodyShare(); got != c.share || got < cfg.maxBody() || got < int64(cfg.MaxPayload) {
			t.Errorf("%+v: a share of %d of %d", c, got, cfg.MaxBodies)
		}
	}
}

// TestOneBudget: what one token holds by REST counts for its calls over gRPC, and the other
// way round; another token's calls and small ones pass.
func TestOneBudget(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), func(c *Config) { c.MaxPayload = 1 << 20 })
	client, admin := ring.as(t.Context(), auth.Client), ring.as(t.Context(), auth.Admin)
	if _, err := e.fabric.RegisterFunction(client, &treadlev1.RegisterFunctionRequest{Name: "f", Source: "def f(x): return x"}); err != nil {
		t.Fatal(err)
	}
	e.srv.budget.mu.Lock()
	e.srv.budget.wait = 50 * time.Millisecond
	e.srv.budget.mu.Unlock()
	large := &treadlev1.ExecuteRequest{Function: "f", Payload: bigPickle(1 << 19)}
	body, err := json.Marshal(map[string]any{"function": "f", "payload": large.GetPayload()})
	if err != nil {
		t.Fatal(err)
	}
	id, share := ring.ids[auth.Client], e.srv.budget.share
	if !e.srv.budget.try(id, share) {
		t.Fatal("something is held")
	}
	_, err = e.fabric.Execute(client, large)
	wantCode(t, err, codes.Unavailable, reasonBusy)
	if retryAfter(status.Convert(err)) != busyDelay {
		t.Errorf("%v does not say when to come back", err)
	}
	a := e.must(e.do(http.MethodPost, "/v1/tasks", body, ring.header(auth.Client)), 503)
	if obj, _ := a.json["error"].(map[string]any); obj["reason"] != reasonBusy || a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q: %s", a.header.Get("Retry-After"), a.raw)
	}
	if _, err := e.fabric.Execute(client, &treadlev1.ExecuteRequest{Function: "f", Payload: anyPickle}); err != nil {
		t.Errorf("a small message: %v", err)
	}
	if _, err := e.fabric.Execute(admin, large); err != nil {
		t.Errorf("another token: %v", err)
	}
	e.must(e.do(http.MethodPost, "/v1/tasks", body, ring.header(auth.Admin)), 200)
	e.srv.budget.release(id, share)
	if _, err := e.fabric.Execute(client, large); err != nil {
		t.Errorf("with room again: %v", err)
	}
	e.eventually("everything is given back", func() bool { used, _, _ := e.srv.budget.held(); return used == 0 })
	e.srv.budget.empty(t)
	if a := e.do(http.MethodGet, "/metrics", nil, ring.header(auth.Client)); !strings.Contains(string(a.raw), "treadle_held_refused_total 2\n") {
		t.Error("the metrics do not count refusals")
	}
}

// A call that waits for its task holds nothing of its request, over gRPC and REST.
func TestWaitsHoldNothing(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxPayload = 1 << 20 })
	e.source("f")
	ctx, cancel := context.WithCancel(t.Context())
	args := []byte(`["` + strings.Repeat("x", 1<<19) + `"]`)
	ended := make(chan struct{}, 2)
	go func() {
		_, _ = e.fabric.Call(ctx, &treadlev1.CallRequest{Function: "f", Input: &treadlev1.CallInput{Args: args}, Timeout: durationpb.New(time.Minute)})
		ended <- struct{}{}
	}()
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url+"/v1/functions/f:call?timeout=60s", strings.NewReader(`{"args":`+string(args)+`}`))
		if err != nil {
			t.Error(err)
		} else if resp, err := e.client.Do(req); err == nil {
			resp.Body.Close()
		}
		ended <- struct{}{}
	}()
	e.eventually("both are recorded", func() bool { return countTasks(e) == 2 })
	e.eventually("nothing is held", func() bool { used, _, _ := e.srv.budget.held(); return used == 0 })
	if len(ended) != 0 {
		t.Error("a call did not wait")
	}
	cancel()
	<-ended
	<-ended
}

// An answer over gRPC is held until its caller has read it.
func TestAnswersAreHeld(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxPayload = 2 << 20 })
	e.source("f")
	var ids []string
	for range 2 {
		made, err := e.fabric.Execute(t.Context(), &treadlev1.ExecuteRequest{Function: "f", Payload: anyPickle})
		if err != nil {
			t.Fatal(err)
		}
		e.settle(e.claim(), succeed(bigPickle(2<<20), task.EncodingPickle))
		ids = append(ids, made.GetTaskId())
	}
	used := func() int64 { n, _, _ := e.srv.budget.held(); return n }
	conn := dialGRPC(t, e.srv.GRPCAddr(), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	slow := treadlev1.NewFabricServiceClient(conn)
	stream, err := slow.AwaitResults(t.Context(), &treadlev1.AwaitResultsRequest{TaskIds: ids})
	if err != nil {
		t.Fatal(err)
	}
	e.eventually("the first answer is held", func() bool { return used() == 2<<20 })
	for range ids {
		m, err := stream.Recv()
		if err != nil || len(m.GetResults()) != 1 || len(m.GetResults()[0].GetResultPickle()) != 2<<20 {
			t.Fatalf("%d results, %v", len(m.GetResults()), err)
		}
	}
	e.eventually("nothing is held when all is read", func() bool { return used() == 0 })

	ctx, cancel := context.WithCancel(t.Context())
	if _, err := slow.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: ids}); err != nil {
		t.Fatal(err)
	}
	e.eventually("an answer is held again", func() bool { return used() == 2<<20 })
	cancel()
	e.eventually("nothing is held when the caller leaves", func() bool { return used() == 0 })
	res, err := e.fabric.GetResult(t.Context(), &treadlev1.GetResultRequest{TaskId: ids[0]})
	if err != nil || len(res.GetResultPickle()) != 2<<20 {
		t.Errorf("%v", err)
	}
	e.eventually("nothing is held after GetResult", func() bool { return used() == 0 })
	// Without room, an answer that is small passes and one that is large waits.
	all := e.srv.budget.total
	if !e.srv.budget.try("", all) {
		t.Fatal("something is held")
	}
	got := make(chan error, 1)
	go func() {
		_, err := e.fabric.GetResult(t.Context(), &treadlev1.GetResultRequest{TaskId: ids[0]})
		got <- err
	}()
	e.eventually("the large answer waits", func() bool { _, waiting, _ := e.srv.budget.held(); return waiting == 1 })
	small, err := e.fabric.Execute(t.Context(), &treadlev1.ExecuteRequest{Function: "f", Payload: anyPickle})
	if err != nil {
		t.Fatal(err)
	}
	e.settle(e.claim(), succeed(anyPickle, task.EncodingPickle))
	if _, err := e.fabric.GetResult(t.Context(), &treadlev1.GetResultRequest{TaskId: small.GetTaskId()}); err != nil {
		t.Errorf("a small answer: %v", err)
	}
	e.srv.budget.release("", all)
	if err := <-got; err != nil {
		t.Errorf("the large answer: %v", err)
	}
}

// A caller who does not read loses his connection; one who reads slowly enough keeps it.
func TestSlowReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDoorRoom(t, newDoorLimits(64, false))
		lazy, busy := r.admitted("10.0.0.1", "a"), r.admitted("10.0.0.1", "a")
		a := &heldAnswer{size: 4 * bodyRate, written: make(chan struct{})}
		begun := time.Now()
		if err := a.wait(t.Context(), lazy); status.Code(err) != codes.DeadlineExceeded || !isClosed(lazy) || time.Since(begun) != bodyGrace+4*time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		begun = time.Now()
		const lasts = 3 * time.Minute
		go func() {
			for time.Since(begun) < lasts {
				time.Sleep(time.Second)
				busy.sent.Add(bodyRate)
			}
			close(a.written)
		}()
		if err := a.wait(t.Context(), busy); err != nil || isClosed(busy) {
			t.Errorf("a connection that carries much: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b := &heldAnswer{size: 1, written: make(chan struct{})}
		if err := b.wait(ctx, busy); !errors.Is(err, context.Canceled) || isClosed(busy) {
			t.Errorf("a call that ended: %v", err)
		}
		r.empty(lazy, busy)
	})
}

// The codec writes a held answer as it writes any, and knows when it is written.
func TestHeldAnswer(t *testing.T) {
	for _, size := range []int{1, 1 << 20} {
		m := &treadlev1.TaskResult{ResultPickle: make([]byte, size)}
		plain, err := serverCodec{requestCodec}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		a := &heldAnswer{message: m, written: make(chan struct{})}
		data, err := serverCodec{requestCodec}.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if string(data.Materialize()) != string(plain.Materialize()) || a.size != plain.Len() {
			t.Errorf("%d bytes, want %d", a.size, plain.Len())
		}
		select {
		case <-a.written:
			if size > 1 {
				t.Error("written before it was")
			}
		default:
			if size == 1 {
				t.Error("a small answer has nothing to wait for")
			}
		}
		data.Ref()
		data.Free()
		data.Free()
		<-a.written
		plain.Free()
	}
	if _, err := (serverCodec{requestCodec}).Marshal(&heldAnswer{message: 5}); err == nil {
		t.Error("what is no message is written")
	}
	var _ mem.BufferPool = freed{}
}

func TestDoorCountsBytes(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := &doorConn{Conn: near}
	go func() { _, _ = far.Read(make([]byte, 5)) }()
	if n, err := c.Write([]byte("hello")); n != 5 || err != nil || c.sent.Load() != 5 {
		t.Errorf("%d, %v, %d counted", n, err, c.sent.Load())
	}
	near.Close()
}

// A stream over REST that ends after its request leaves nothing behind.
func TestStreamsOutliveTheirRequest(t *testing.T) {
	b := newBudget(1<<20, 1<<20)
	ex := &exchange{body: &body{held: holding{b: b}}}
	ctx := context.WithValue(t.Context(), exchangeKey{}, ex)
	gone := make(chan struct{})
	c := &inline{stream: func(service any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(service, ss)
	}}
	c.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Late", Streams: []grpc.StreamDesc{{
		StreamName: "Late", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			<-gone
			return holdingOf(ss.Context()).takeAnswer(ss.Context(), 1<<20)
		},
	}}}, nil)
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Late/Late")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	ex.body.release()
	close(gone)
	c.close()
	if err := s.RecvMsg(nil); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	b.empty(t)
}
