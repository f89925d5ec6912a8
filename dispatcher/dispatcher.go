package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// inboxSize is how many events may wait for the loop before the links are read
// more slowly; batchSize is how many are taken before effects are carried out.
const (
	inboxSize = 4096
	batchSize = 512
)

// storeRetry is the pause after a failed call to the store, stopFlush how long a
// stopping dispatcher goes on trying to record what workers have reported.
const (
	storeRetry = 100 * time.Millisecond
	stopFlush  = 2 * time.Second
)

// announceEvery is how often the store hears of each session; an entry lives three times as long.
const announceEvery = 2 * time.Second

// Dispatcher drives an [Engine]: one goroutine owns it, a few others carry its
// wishes to the store and bring the answers back as events.
type Dispatcher struct {
	cfg   Config
	store Backend
	log   *slog.Logger

	inbox chan event
	// urgent has what leases depend on, beats and the answers to them: it passes what waits
	// in the inbox.
	urgent chan event
	// done is closed when the loop has ended: nobody may wait for the inbox after it.
	done chan struct{}

	mu    sync.Mutex
	conns map[task.ID]*attached

	// standing is the store, where it holds requests.
	standing store.Standing

	claims  *lane[store.ClaimRequest]
	stands  *lane[store.ClaimRequest]
	stood   *lane[claimed]
	settles *lane[settle]
	renews  *lane[renew]
	shows   *lane[store.Presence]
	loads   *loads
	reports *reports

	// work bounds what helpers do; it outlives the context of Run.
	work    context.Context
	helpers sync.WaitGroup

	sessions atomic.Int64
}

// attached is one worker's link. Once it was welcomed its beats may pass other frames.
type attached struct {
	link.Conn
	gauge    link.Gauge // the same, where it is one
	welcomed atomic.Bool
	// why is why this dispatcher ended the link; the first reason counts.
	why atomic.Pointer[error]
}

// because notes why the link is about to be ended.
func (a *attached) because(reason error) { a.why.CompareAndSwap(nil, &reason) }

// ending is why the link ended, for the log. Who ended it, here or through its context, knows
// better than the link, which says that it is closed.
func (a *attached) ending(ctx context.Context, err error) error {
	if !errors.Is(err, link.ErrClosed) && !errors.Is(err, context.Canceled) {
		return err
	}
	if why := a.why.Load(); why != nil {
		return *why
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// New returns a dispatcher over a store. Run must be called for it to do anything.
func New(cfg Config, backend Backend) (*Dispatcher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	d := &Dispatcher{
		cfg: cfg, store: backend, log: cfg.Logger,
		inbox: make(chan event, inboxSize), urgent: make(chan event, inboxSize), done: make(chan struct{}),
		conns: map[task.ID]*attached{},
	}
	d.standing, _ = backend.(store.Standing)
	d.claims = newLane(d.doClaims)
	d.stands = newLane(d.doStands)
	d.stood = newLane(d.doStood)
	d.settles = newLane(d.doSettles)
	d.renews = newLane(d.doRenews)
	d.shows = newLane(d.doAnnounce)
	d.reports = newReports(cfg.MaxPayload)
	d.loads = newLoads(cfg.MaxPayload, backend.FunctionPayload, d.post)
	return d, nil
}

// Attach serves one worker's link until it ends; it returns nil after an orderly
// end. It may be called by many goroutines, before, during and after Run.
func (d *Dispatcher) Attach(ctx context.Context, conn link.Conn, mode link.Mode) error {
	id := d.cfg.NewID()
	d.mu.Lock()
	at := &attached{Conn: conn}
	at.gauge, _ = conn.(link.Gauge)
	d.conns[id] = at
	d.mu.Unlock()
	owner := ""
	if at.gauge != nil {
		owner = at.gauge.Owner()
		at.gauge.Relieved(func() { d.post(reads{session: id}) })
	}
	defer func() {
		d.mu.Lock()
		delete(d.conns, id)
		d.mu.Unlock()
		d.loads.drop(id)
		conn.Close(nil)
	}()
	stop := context.AfterFunc(ctx, func() { conn.Close(context.Cause(ctx)) })
	defer stop()
	if !d.post(opened{session: id, mode: mode}) {
		_ = conn.Send(&link.Bye{Retry: true, Reason: "this dispatcher has stopped"})
		return nil
	}
	for {
		f, err := conn.Recv()
		if err != nil {
			d.post(closed{session: id, reason: at.ending(ctx, err)})
			if errors.Is(err, link.ErrClosed) {
				return nil
			}
			return err
		}
		hold, err := d.reports.take(ctx, owner, f)
		if err != nil {
			d.post(closed{session: id, reason: err})
			return err
		}
		post := d.post
		if _, beat := f.(*link.Beat); beat && at.welcomed.Load() {
			post = d.postUrgent
		}
		if !post(received{session: id, frame: f, hold: hold}) {
			if hold != nil {
				hold.release()
			}
			return nil
		}
	}
}

// post gives an event to the loop; false means that the loop has ended.
func (d *Dispatcher) post(ev event) bool {
	select {
	case d.inbox <- ev:
		return true
	case <-d.done:
		return false
	}
}

// postUrgent is post for what must not wait behind a full inbox.
func (d *Dispatcher) postUrgent(ev event) bool {
	select {
	case d.urgent <- ev:
		return true
	case <-d.done:
		return false
	}
}

// Run works until ctx ends. Then every session is told to come back (its leases
// stand), what was reported is recorded, and Run returns. It may be called once.
func (d *Dispatcher) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	d.work = work
	if err := d.attend(ctx); err != nil {
		close(d.done)
		return err
	}
	d.helpers.Go(func() { d.claims.run(work) })
	d.helpers.Go(func() { d.stands.run(work) })
	d.helpers.Go(func() { d.stood.run(work) })
	d.helpers.Go(func() { d.settles.run(work) })
	d.helpers.Go(func() { d.renews.run(work) })
	d.helpers.Go(func() { d.shows.run(work) })
	for range loadReaders {
		d.helpers.Go(func() { d.loads.run(work) })
	}
	d.helpers.Go(func() {
		d.loads.watch(ctx, func(conn link.Conn) {
			d.log.Warn("session closed", "reason", errStalled)
			conn.Close(errStalled)
		})
	})
	d.helpers.Go(func() { d.reap(ctx) })
	silence := d.store.Bell().Listen(d.bell)

	d.loop(ctx)

	silence()
	d.claims.close()
	d.stands.close()
	d.stood.close()
	d.settles.close()
	d.renews.close()
	d.shows.close()
	d.loads.close()
	timer := time.AfterFunc(stopFlush, cancel)
	defer timer.Stop()
	ended := make(chan struct{})
	go func() { d.helpers.Wait(); close(ended) }()
	for {
		select {
		case ev := <-d.inbox: // answers that nobody needs any more
			unheld(ev)
		case <-d.urgent:
		case <-ended:
			close(d.done)
			return nil
		}
	}
}

// help runs f beside the loop; Run waits for it.
func (d *Dispatcher) help(f func(ctx context.Context)) {
	d.helpers.Go(func() { f(d.work) })
}

// bell takes the store's signals. It must not block: a full inbox drops them, and
// every session looks by itself at the next poll.
func (d *Dispatcher) bell(signals []store.Signal) {
	keep := make([]store.Signal, 0, len(signals))
	for _, s := range signals {
		if s.Kind != store.Done && s.Kind != store.Changed {
			keep = append(keep, s)
		}
	}
	if len(keep) == 0 {
		return
	}
	select {
	case d.inbox <- rung{signals: keep}:
	default:
	}
}

// loop is the one goroutine that touches the engine.
func (d *Dispatcher) loop(ctx context.Context) {
	e := newEngine(d.cfg)
	e.standing = d.standing != nil
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case ev := <-d.urgent:
			d.step(e, ev)
		case ev := <-d.inbox:
			d.step(e, ev)
		case <-timer.C:
			e.step(time.Now(), ticked{})
		case <-ctx.Done():
			e.step(time.Now(), stopping{reason: "this dispatcher stops"})
			d.perform(e.take(time.Now()), e)
			return
		}
		d.drain(e, d.urgent)
		d.drain(e, d.inbox)
		failpoint.Lag()
		for d.perform(e.take(time.Now()), e) {
		}
		d.sessions.Store(int64(len(e.sessions)))
		if at := e.next(); !at.IsZero() {
			timer.Reset(max(time.Until(at), 0))
		} else {
			timer.Stop()
		}
	}
}

// drain takes what else has arrived, so that effects leave in batches.
func (d *Dispatcher) drain(e *Engine, from <-chan event) {
	for range batchSize {
		select {
		case ev := <-from:
			d.step(e, ev)
		default:
			return
		}
	}
}

// perform carries out effects. Nothing here waits for the store or for a peer. What it finds
// out by itself it tells the engine at once, and returns true.
func (d *Dispatcher) perform(r ready, e *Engine) (told bool) {
	for _, n := range r.notes {
		d.logNote(n)
	}
	d.settles.add(r.settles...)
	d.renews.add(r.renews...)
	for _, rs := range r.resumes {
		d.help(func(ctx context.Context) { d.doResume(ctx, rs) })
	}
	d.claims.add(r.claims...)
	for _, claim := range r.withdraws {
		d.standing.Withdraw(claim)
	}
	d.stands.add(r.stands...)
	for _, s := range r.sends {
		if d.send(s) {
			e.step(time.Now(), reads{session: s.session, behind: true})
			told = true
		}
	}
	failpoint.Seen(failpoint.AfterSend, len(r.sends))
	for _, l := range r.loads {
		if err := d.load(l); err != nil {
			e.step(time.Now(), overdone{session: l.session, reason: err})
			told = true
		}
	}
	for _, h := range r.hangups {
		if conn := d.conn(h.session); conn != nil {
			conn.because(errors.New(h.reason))
			// An orderly close waits for the peer to read; the loop does not.
			d.help(func(context.Context) { conn.Close(nil) })
		}
	}
	if len(r.rings) > 0 {
		d.help(func(ctx context.Context) { d.store.Bell().Ring(ctx, r.rings) })
	}
	d.shows.add(r.presence...)
	return told
}

// load asks for a function for a session whose link is there: when that ends the request is
// forgotten, so it must not be made afterwards.
func (d *Dispatcher) load(l load) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	conn := d.conns[l.session]
	if conn == nil {
		return nil
	}
	return d.loads.add(l.session, conn.Conn, l.hash)
}

// send gives a frame to a session's link, and reports whether it brought so much that the
// session should get no more for now.
func (d *Dispatcher) send(s send) (behind bool) {
	conn := d.conn(s.session)
	if conn == nil {
		return false // and what was loaded for it is forgotten
	}
	large := false
	switch f := s.frame.(type) {
	case *link.Welcome:
		conn.welcomed.Store(true)
	case *link.Offers:
		large = true
	case *link.FunctionBytes:
		large = true
		f.Written = func() { d.loads.written(s.session, f.Hash) }
	}
	if err := conn.Send(s.frame); err != nil {
		if !errors.Is(err, link.ErrClosed) {
			d.log.Warn("could not send to a worker", "session", s.session, "frame", fmt.Sprintf("%T", s.frame), "error", err)
			conn.Close(err)
		}
		return false
	}
	return large && conn.gauge != nil && conn.gauge.Behind()
}

func (d *Dispatcher) conn(id task.ID) *attached {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conns[id]
}

func (d *Dispatcher) logNote(n note) {
	attrs := []any{"worker", n.worker}
	if n.name != "" {
		attrs = append(attrs, "name", n.name)
	}
	if n.host != "" && n.host != n.name {
		attrs = append(attrs, "host", n.host)
	}
	attrs = append(attrs, "tasks", n.count, "session", n.session)
	if n.err != nil {
		attrs = append(attrs, "reason", n.err)
	}
	level := slog.LevelInfo
	if n.warn {
		level = slog.LevelWarn
	}
	d.log.Log(context.Background(), level, n.text, attrs...)
}

// Loading returns the bytes of functions that are on their way to workers, those that are being
// read counted as large as one may be.
func (d *Dispatcher) Loading() int64 { return d.loads.held() }

// Sessions counts the attached workers.
func (d *Dispatcher) Sessions() int { return int(d.sessions.Load()) }
