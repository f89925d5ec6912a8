package bench

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/task"
)

// attachAtOnce is how many sessions wait for their Welcome at one time. It stays below the
// 128 connections without an admitted call that a server with the least --max-connections of
// [sessionConnections] takes from one address.
const attachAtOnce = 64

// errFleetEnds ends what the sessions still do when the fleet is stopped.
var errFleetEnds = errors.New("the simulated workers were stopped")

// fleetConfig says which sessions to attach.
type fleetConfig struct {
	address string
	mode    link.Mode
	// sessions attach, with slots each; streams of them share a connection.
	sessions, slots, streams int
	maxPayload               int
	// options hold the transport credentials.
	options []grpc.DialOption
	// attached, when set, is told how many are attached, from any goroutine.
	attached func(n int64)
}

// fleet is a number of simulated workers in this process. Each speaks the worker's protocol as
// an agent does: it says Hello with the handler [GoFunction], beats as Welcome told it, runs
// what it is offered at once and reports it. It starts nothing for a task, so what the fleet
// costs this process says nothing about real workers.
type fleet struct {
	cfg fleetConfig
	// ctx ends with the fleet, and with the first session that ends by itself: its cause says why.
	ctx    context.Context //nolint:containedctx // the sessions' goroutines share it; stop ends it
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	channels []*grpc.ClientConn
	sessions []*session
	welcomed atomic.Int64
	ending   atomic.Bool

	// unsettled counts the sessions that settle waits for; settled is closed by the last.
	unsettled atomic.Int64
	settled   chan struct{}

	mu sync.Mutex
	// due orders the next beats.
	due  beats
	wake chan struct{}
}

// session is one simulated worker.
type session struct {
	fleet     *fleet
	conn      link.Conn
	heartbeat time.Duration

	// mu orders what is sent: by the goroutine that reads, and by the one that beats.
	mu   sync.Mutex
	seq  uint64
	held map[task.Token]struct{} // reports that are not acknowledged
	// window and asked are what a worker keeps under pull: how many short tasks it wants beyond
	// its slots, and how many it asked for and has not got.
	window window.Window
	asked  int
	// target is the beat whose acknowledgement settles the session, 0 for none.
	target uint64
}

// startFleet attaches all sessions, or none. The caller stops the fleet; the end of ctx breaks
// it off.
func startFleet(ctx context.Context, cfg fleetConfig) (*fleet, error) {
	f := &fleet{cfg: cfg, settled: make(chan struct{}), wake: make(chan struct{}, 1)}
	f.ctx, f.cancel = context.WithCancelCause(ctx)
	if err := f.attach(); err != nil {
		f.cancel(err) // breaks off what is attached by now
		f.stop()
		return nil, err
	}
	return f, nil
}

// attach opens the connections and all sessions.
func (f *fleet) attach() error {
	options := append([]grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(wire.Codec(f.cfg.maxPayload))),
		// The windows and pings of a worker, with small buffers: there may be thousands.
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(4 << 20),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithReadBufferSize(4 << 10),
	}, f.cfg.options...)
	for range connections(f.cfg.sessions, f.cfg.streams) {
		channel, err := grpc.NewClient(f.cfg.address, options...)
		if err != nil {
			return fmt.Errorf("dial %s: %w", f.cfg.address, err)
		}
		f.channels = append(f.channels, channel)
	}
	f.wg.Add(1)
	go f.beat()
	f.sessions = make([]*session, f.cfg.sessions)
	limit := attachTimeout + time.Duration(f.cfg.sessions)*attachTimeoutEach
	ctx, cancel := context.WithTimeoutCause(f.ctx, limit, fmt.Errorf("the sessions did not attach within %s", limit))
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(attachAtOnce)
	for i := range f.sessions {
		g.Go(func() error {
			s, err := f.open(ctx, i)
			if err != nil {
				return fmt.Errorf("attach session %d of %d: %w", i+1, f.cfg.sessions, err)
			}
			f.sessions[i] = s
			n := f.welcomed.Add(1)
			if f.cfg.attached != nil {
				f.cfg.attached(n)
			}
			return nil
		})
	}
	return g.Wait()
}

// How long all sessions may take to attach: attachTimeout, and attachTimeoutEach for each. A
// dispatcher that needs more has other troubles.
const (
	attachTimeout     = 30 * time.Second
	attachTimeoutEach = 20 * time.Millisecond
)

// connections is how many connections that many sessions need.
func connections(sessions, streams int) int { return (sessions + streams - 1) / streams }

// open attaches one session; ctx bounds that, the session lives until the fleet ends.
func (f *fleet) open(ctx context.Context, number int) (*session, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	streamCtx, end := context.WithCancel(f.ctx)
	stop := context.AfterFunc(ctx, end)
	client := treadlev1.NewWorkerServiceClient(f.channels[number/f.cfg.streams])
	method := client.Push
	if f.cfg.mode == link.Pull {
		method = client.Pull
	}
	stream, err := method(streamCtx)
	if err != nil {
		end()
		return nil, causeOf(ctx, err)
	}
	s := &session{fleet: f, conn: linkpb.NewWorkerConn(stream, end), held: make(map[task.Token]struct{})}
	if err := s.hello(number); err != nil {
		s.conn.Close(err)
		return nil, causeOf(ctx, err)
	}
	if !stop() {
		err := context.Cause(ctx)
		s.conn.Close(err)
		return nil, err
	}
	f.wg.Add(1)
	go s.serve()
	// Beats are spread over the period: a fleet that is there for long has lost its step.
	f.schedule(dueBeat{time.Now().Add(rand.N(s.heartbeat)), s})
	return s, nil
}

// causeOf is why ctx ended where it did, as the calls under it only say that they were cancelled.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// hello introduces the session and waits for the terms.
func (s *session) hello(number int) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make a worker id: %w", err)
	}
	cfg := s.fleet.cfg
	err = s.conn.Send(&link.Hello{
		Version: link.Version, Worker: id.String(), Name: fmt.Sprintf("bench-%d", number+1), Host: task.ClipText(host, 256), PID: os.Getpid(),
		Software: "treadle-bench " + runtime.Version(), Queues: []string{task.DefaultQueue},
		Runtimes: []string{task.GoRuntime(GoFunction)}, Handlers: []string{GoFunction}, Slots: cfg.slots,
	})
	if err != nil {
		return err
	}
	f, err := s.conn.Recv()
	if err != nil {
		return fmt.Errorf("no welcome: %w", err)
	}
	switch f := f.(type) {
	case *link.Welcome:
		s.heartbeat = f.Heartbeat
	case *link.Bye:
		return fmt.Errorf("the dispatcher said good-bye: %s", f.Reason)
	default:
		return fmt.Errorf("the dispatcher's first frame is %T, want Welcome", f)
	}
	return s.want()
}

// want asks for work under pull, by halves of the window as an agent does.
func (s *session) want() error {
	cfg, size := s.fleet.cfg, s.window.Size(s.fleet.cfg.slots)
	if cfg.mode != link.Pull {
		return nil
	}
	room := cfg.slots + size - s.asked
	if room <= 0 || s.asked >= cfg.slots && 2*room < size {
		return nil
	}
	s.asked += room
	return s.conn.Send(&link.Want{N: room})
}

// serve answers the dispatcher until the session ends. One that ends by itself ends the
// measurement: its figures would be those of fewer sessions.
func (s *session) serve() {
	f := s.fleet
	defer f.wg.Done()
	for {
		frame, err := s.conn.Recv()
		if err == nil {
			err = s.frame(frame)
		}
		if err != nil {
			if !f.ending.Load() {
				f.cancel(fmt.Errorf("a simulated worker lost its session: %w", err))
			}
			s.conn.Close(err)
			return
		}
	}
}

func (s *session) frame(f link.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f := f.(type) {
	case *link.Offers:
		return s.run(f.Items)
	case *link.Acks:
		for i := range f.Items {
			delete(s.held, f.Items[i].Token)
		}
	case *link.BeatAck:
		for _, token := range f.Stale {
			delete(s.held, token)
		}
		if s.target != 0 && f.Seq >= s.target {
			s.target = 0
			if s.fleet.unsettled.Add(-1) == 0 {
				close(s.fleet.settled)
			}
		}
	case *link.Bye:
		return fmt.Errorf("the dispatcher said good-bye: %s", f.Reason)
	case *link.Revoke, *link.Recall, *link.Drain:
		// Every offer was reported when it came: nothing runs that could be stopped or given back.
	default:
		return fmt.Errorf("the dispatcher sent a frame of type %T", f)
	}
	return nil
}

// run reports each offer as done: a report proves the start. s.mu is held.
func (s *session) run(offers []link.Offer) error {
	reports := make([]link.Report, len(offers))
	for i := range offers {
		s.held[offers[i].Token] = struct{}{}
		reports[i] = link.Report{
			Token:   offers[i].Token,
			Outcome: task.Outcome{End: task.EndSucceeded, Result: emptyResult, Encoding: task.EncodingJSON},
		}
	}
	if err := s.conn.Send(&link.Outcomes{Items: reports}); err != nil {
		return err
	}
	s.asked -= len(offers) // of no meaning under push
	s.window.Observe(time.Now(), 0)
	return s.want()
}

// emptyResult is the JSON of what the handler returns.
var emptyResult = []byte("{}")

// sendBeat renews what is not acknowledged.
func (s *session) sendBeat() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	b := &link.Beat{Seq: s.seq}
	for token := range s.held {
		b.Held = append(b.Held, link.Holding{Token: token})
	}
	return s.conn.Send(b)
}

// dueBeat is the next beat of a session.
type dueBeat struct {
	at      time.Time
	session *session
}

// beats is a heap, the earliest first.
type beats []dueBeat

func (b beats) Len() int           { return len(b) }
func (b beats) Less(i, j int) bool { return b[i].at.Before(b[j].at) }
func (b beats) Swap(i, j int)      { b[i], b[j] = b[j], b[i] }
func (b *beats) Push(x any)        { *b = append(*b, x.(dueBeat)) }
func (b *beats) Pop() any {
	last := (*b)[len(*b)-1]
	*b = (*b)[:len(*b)-1]
	return last
}

func (f *fleet) schedule(d dueBeat) {
	f.mu.Lock()
	heap.Push(&f.due, d)
	first := f.due[0].session == d.session
	f.mu.Unlock()
	if first {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// next takes a beat that is due and schedules the one after it; without one it returns how
// long to wait.
func (f *fleet) next(now time.Time) (*session, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.due) == 0 {
		return nil, time.Hour // schedule wakes
	}
	first := &f.due[0]
	if wait := first.at.Sub(now); wait > 0 {
		return nil, wait
	}
	s := first.session
	if first.at = first.at.Add(s.heartbeat); first.at.Before(now) {
		first.at = now.Add(s.heartbeat) // what was missed is not made up for, as with a ticker
	}
	heap.Fix(&f.due, 0)
	return s, 0
}

// beat sends the beats of all sessions: one timer for all costs this process least.
func (f *fleet) beat() {
	defer f.wg.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for f.ctx.Err() == nil {
		s, wait := f.next(time.Now())
		if s != nil {
			// A link that has ended is told to the goroutine that reads.
			_ = s.sendBeat()
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-f.wake:
		case <-f.ctx.Done():
		}
	}
}

// settle waits until each session has had two beats acknowledged that it sent after the last
// one was attached: by then the dispatcher is through with all that attaching made it do.
// It may be called once.
func (f *fleet) settle() error {
	limit := settleTimeout + time.Duration(len(f.sessions))*attachTimeoutEach
	ctx, cancel := context.WithTimeoutCause(f.ctx, limit, fmt.Errorf("the dispatcher has not answered two heartbeats of each session within %s", limit))
	defer cancel()
	f.unsettled.Store(int64(len(f.sessions)))
	for _, s := range f.sessions {
		s.mu.Lock()
		s.target = s.seq + 2
		s.mu.Unlock()
	}
	select {
	case <-f.settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const settleTimeout = time.Minute

// stop detaches all sessions and returns when nothing of the fleet is left.
func (f *fleet) stop() {
	f.ending.Store(true)
	var leaving sync.WaitGroup
	for _, s := range f.sessions {
		if s == nil {
			continue
		}
		leaving.Add(1)
		// All at once: each waits for the dispatcher to end its stream, for two seconds at most.
		go func() {
			defer leaving.Done()
			s.mu.Lock()
			_ = s.conn.Send(&link.Bye{Reason: "the measurement is over"}) // the link ends either way
			s.mu.Unlock()
			s.conn.Close(nil)
		}()
	}
	leaving.Wait()
	f.cancel(errFleetEnds)
	f.wg.Wait()
	for _, c := range f.channels {
		_ = c.Close() // it can only say that it was closed before
	}
}
