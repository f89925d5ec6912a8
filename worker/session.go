package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/internal/dialaddr"
	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// welcomeWait bounds the wait for a dispatcher's first word.
const welcomeWait = 10 * time.Second

// errDrained ends the sessions of an agent that has nothing left to say.
var errDrained = errors.New("drained")

// refusal is a dispatcher's word that the worker need not come back.
type refusal struct{ reason string }

func (r refusal) Error() string { return "the dispatcher refused this worker: " + r.reason }

// sessions dials and serves until the agent has drained, gone is closed, or a
// dispatcher refuses the worker for good.
func (a *Agent) sessions(ctx context.Context, gone <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()
	watcher.Go(func() {
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	})
	pause := newPauses(a.cfg)
	// Links that were left for others close while the next session is served.
	var leaving sync.WaitGroup
	defer leaving.Wait()
	var next link.Conn
	met := false // a dispatcher has welcomed this worker
	for {
		moved := next != nil
		var was sessionEnd
		var err error
		was, next, err = a.attach(ctx, next, &leaving)
		met = met || was.progress || a.welcomed()
		var refused refusal
		switch {
		case errors.Is(err, errDrained) || a.drained() || ctx.Err() != nil:
			if next != nil {
				next.Close(nil)
			}
			return nil
		case next != nil:
			continue
		case errors.As(err, &refused) && !moved:
			// One that was moved to has no say: those that it comes from want it.
			return err
		case errors.Is(err, link.ErrHopeless) && !met:
			// Later, certificates and addresses may be on their way to being renewed.
			return fmt.Errorf("this worker cannot attach: %w", err)
		}
		var done string
		fault := refusedFrame(err)
		if fault != nil {
			done = a.undelivered(fault)
		}
		was.denied = errors.Is(err, link.ErrNotAdmitted)
		wait, say := pause.next(was, fault != nil, time.Now())
		switch {
		case was.denied && say:
			a.log.Warn("the dispatcher does not admit this worker; trying again", "error", err, "in", wait, "times", pause.count,
				"fix", "start it with a token of the role worker that is valid there (TREADLE_TOKEN, 'treadle token create'), or with the certificate that is asked for")
		case fault != nil && done != "":
			a.log.Warn("the dispatcher rejected a report; reconnecting", "error", err, "in", wait, "then", done)
		case say:
			a.log.Warn("not connected to a dispatcher; reconnecting", "error", err, "in", wait, "times", pause.count)
		default:
			a.log.Debug("not connected to a dispatcher; reconnecting", "error", err, "in", wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// sessionEnd is what is left to say of a session: whether the dispatcher welcomed the worker,
// whether it took or gave anything then, and whether it ended as the worker is not admitted.
type sessionEnd struct{ welcomed, progress, denied bool }

// attach serves a session until it ends, on conn or on a link that it dials. next is the
// link that the worker moves to; leaving counts the ends of links that were left.
func (a *Agent) attach(ctx context.Context, conn link.Conn, leaving *sync.WaitGroup) (was sessionEnd, next link.Conn, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if conn == nil {
		dialCtx, cancel := context.WithTimeout(ctx, welcomeWait)
		defer cancel()
		if conn, err = a.cfg.Dial(dialCtx); err != nil {
			return was, nil, err
		}
	}
	s := &session{
		agent: a, conn: conn, frames: make(chan link.Frame), ended: make(chan struct{}), dialled: make(chan dialled, 1),
	}
	var reader sync.WaitGroup
	reader.Go(s.read)
	err = s.serve(ctx)
	a.mu.Lock()
	a.attached = false
	a.mu.Unlock()
	cancel()
	s.giveUpMoving()
	close(s.ended)
	end := func() {
		conn.Close(nil)
		reader.Wait()
	}
	if s.next != nil {
		// It waits for the former dispatcher, the new one must not.
		leaving.Go(end)
	} else {
		end()
	}
	return s.sessionEnd, s.next, err
}

// session is one attachment. Only its goroutine sends.
type session struct {
	agent *Agent
	conn  link.Conn
	// frames hands over what read received; readErr is set before it is closed.
	frames  chan link.Frame
	readErr error
	ended   chan struct{}

	sessionEnd
	drainSent bool
	// slots is how many the dispatcher knows of, unfit whether it knows that none is in order;
	// first is the number that it was told by Hello, said the one that it was told last.
	slots, first, said int
	unfit              bool
	seq                uint64
	// beats remembers what unacknowledged beats renewed, oldest first.
	beats []beat

	// moving is set while a link to another dispatcher is dialled; dialled brings it. next
	// is the link that the agent goes on with.
	moving  bool
	dialled chan dialled
	next    link.Conn
}

// dialled is what became of dialling another dispatcher.
type dialled struct {
	conn link.Conn
	err  error
}

// errMoved ends a session for the one that comes after it.
var errMoved = errors.New("moved")

// move dials where the worker is asked to go, beside the session, which goes on.
func (s *session) move(ctx context.Context, f *link.Move) {
	dial := s.agent.cfg.Move
	if dial == nil || s.moving || s.agent.isDraining() {
		return
	}
	s.moving = true
	s.agent.log.Info("asked to move", "reason", f.Reason, "elsewhere", f.Elsewhere)
	go func() {
		// Its owner is the session: giveUpMoving waits for it.
		ctx, cancel := context.WithTimeout(ctx, welcomeWait)
		defer cancel()
		conn, err := dial(ctx, f.Elsewhere)
		s.dialled <- dialled{conn, err}
	}()
}

// arrived ends the session when there is a link to go on with.
func (s *session) arrived(d dialled) error {
	s.moving = false
	if d.err != nil {
		s.agent.log.Info("staying with the current dispatcher", "reason", d.err)
		return nil
	}
	s.next = d.conn
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.send(&link.Bye{Retry: true, Reason: "the worker moves"}); err != nil {
		return err
	}
	return errMoved
}

// giveUpMoving waits for a dial that is under way, whose context has ended.
func (s *session) giveUpMoving() {
	if !s.moving {
		return
	}
	if d := <-s.dialled; d.err == nil {
		d.conn.Close(errors.New("the session that asked for it has ended"))
	}
}

func (a *Agent) isDraining() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.draining
}

type beat struct {
	seq    uint64
	sentAt time.Time
	tokens []task.Token
}

// maxBeats bounds the beats remembered: later acknowledgements cover the rest.
const maxBeats = 16

func (s *session) read() {
	defer close(s.frames)
	for {
		f, err := s.conn.Recv()
		if err != nil {
			s.readErr = err
			return
		}
		select {
		case s.frames <- f:
		case <-s.ended:
			return
		}
	}
}

func (s *session) serve(ctx context.Context) error {
	if err := s.hello(ctx); err != nil {
		return err
	}
	period := s.agent.heartbeat()
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case f, ok := <-s.frames:
			if !ok {
				return fmt.Errorf("the connection to the dispatcher ended: %w", s.readErr)
			}
			if err := s.frame(ctx, f); err != nil {
				return err
			}
			if p := s.agent.heartbeat(); p != period {
				period = p
				ticker.Reset(p)
			}
		case <-s.agent.kick:
			// Slots that are about to say something go first: it leaves in one frame, and costs
			// a lone slot nothing.
			runtime.Gosched()
		case d := <-s.dialled:
			if err := s.arrived(d); err != nil {
				return err
			}
		case <-ticker.C:
			if err := s.beat(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := s.flush(); err != nil {
			return err
		}
		if s.agent.drained() {
			_ = s.conn.Send(&link.Bye{Reason: "drained"}) // the link ends either way
			return errDrained
		}
	}
}

// welcomed reports whether a dispatcher has ever told its terms.
func (a *Agent) welcomed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.terms.Heartbeat != 0
}

// heartbeat is the period that the dispatcher asked for, a second before that.
func (a *Agent) heartbeat() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.terms.Heartbeat == 0 {
		return time.Second
	}
	return a.terms.Heartbeat
}

// hello opens the session and waits for the terms.
func (s *session) hello(ctx context.Context) error {
	a := s.agent
	a.mu.Lock()
	held := a.heldLocked()
	a.asked = 0
	slots, most := a.pool.slots, 0
	if a.pool.most > a.pool.least {
		most = a.pool.most
	}
	s.slots, s.said, s.first = slots, slots, slots
	a.mu.Unlock()
	sentAt := time.Now()
	err := s.conn.Send(&link.Hello{
		Version: link.Version, Worker: a.cfg.ID, Name: a.cfg.Name, Host: task.ClipText(hostname(), task.MaxWorkerText), PID: os.Getpid(), Software: a.cfg.Software,
		Queues: a.cfg.Queues, Runtimes: a.runtimes, Handlers: a.handlers, Slots: slots, MaxSlots: most, Held: held,
		Moves: a.cfg.Move != nil, TaskTokens: a.cfg.API != nil,
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(welcomeWait)
	defer timer.Stop()
	select {
	case f, ok := <-s.frames:
		if !ok {
			if why := dialaddr.Hopeless(s.readErr.Error()); why != "" {
				return fmt.Errorf("no welcome: %s (%w)", why, link.ErrHopeless)
			}
			return fmt.Errorf("no welcome: %w", s.readErr)
		}
		switch f := f.(type) {
		case *link.Welcome:
			s.welcome(f, sentAt, held)
			return s.flush()
		case *link.Bye:
			return byeError(f)
		default:
			return fmt.Errorf("the dispatcher's first frame is %T, want Welcome", f)
		}
	case <-timer.C:
		return fmt.Errorf("no welcome within %s", welcomeWait)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return ""
	}
	return h
}

func byeError(f *link.Bye) error {
	if f.Retry && f.Refused != "" {
		e := task.Errorf(task.CodeInvalid, "", "the dispatcher closed the session: %s", f.Reason)
		e.Field = f.Refused
		return e
	}
	if f.Retry {
		return fmt.Errorf("the dispatcher closed the session: %s", f.Reason)
	}
	return refusal{f.Reason}
}

// welcome takes the terms and offers every unacknowledged report again.
func (s *session) welcome(w *link.Welcome, sentAt time.Time, held []link.Holding) {
	s.welcomed = true
	a := s.agent
	a.mu.Lock()
	a.alone = task.Token{}
	a.terms, a.attached, a.attachedTo = *w, true, leadsTo(s.conn)
	for _, h := range held {
		if c := a.claims[h.Token]; c != nil {
			c.leaseFrom = sentAt
		}
	}
	a.reports = a.reports[:0]
	a.accepts = a.accepts[:0]
	for _, c := range a.claims {
		switch {
		case c.report != nil:
			a.reports = append(a.reports, *c.report)
		case c.phase == running:
			a.accepts = append(a.accepts, link.Accept{Token: c.token})
		}
	}
	a.needs = append(a.needs[:0], a.code.unknown()...)
	a.mu.Unlock()
	a.revoked(w.Stale)
	a.log.Info("attached to a dispatcher", "session", w.Session, "kept_tasks", len(held)-len(w.Stale), "lost_tasks", len(w.Stale))
}

// heldLocked lists every claim, unacknowledged reports included.
func (a *Agent) heldLocked() []link.Holding {
	held := make([]link.Holding, 0, len(a.claims))
	for _, c := range a.claims {
		held = append(held, link.Holding{Token: c.token, StartedAt: c.startedAt})
	}
	return held
}

func (s *session) frame(ctx context.Context, f link.Frame) error {
	failpoint.Hit(failpoint.WorkerReceive)
	a := s.agent
	switch f := f.(type) {
	case *link.Offers:
		s.progress = true
		a.offered(f.Items)
	case *link.Acks:
		s.progress = true
		a.acknowledged(f.Items)
	case *link.BeatAck:
		s.progress = true
		s.beatAck(f)
	case *link.Revoke:
		a.revoked(f.Tokens)
	case *link.Recall:
		a.recalled(f.N)
	case *link.FunctionBytes:
		a.code.put(f.Hash, f.Bytes, f.Missing)
	case *link.Drain:
		a.log.Info("the dispatcher is draining", "reason", f.Reason)
	case *link.Move:
		s.move(ctx, f)
	case *link.Bye:
		return byeError(f)
	default:
		return fmt.Errorf("the dispatcher sent a frame of type %T", f)
	}
	return nil
}

// beat says what is held, which renews it, and sends what running attempts have
// printed. It is sent from the goroutine that reads the dispatcher's frames: a
// worker that no longer listens falls silent too.
func (s *session) beat() error {
	a := s.agent
	a.mu.Lock()
	held := a.heldLocked()
	var outputs []*link.Output
	for _, c := range a.claims {
		if c.phase == running {
			if b := c.output.take(); len(b) > 0 {
				outputs = append(outputs, &link.Output{Token: c.token, Bytes: b})
			}
		}
	}
	needs := a.code.unknown()
	s.slots, s.unfit = a.toldLocked()
	told := 0
	if a.pool.most > a.pool.least || s.slots != s.said || s.slots != s.first {
		told, s.said = s.slots, s.slots
	}
	a.mu.Unlock()
	s.seq++
	b := beat{seq: s.seq, sentAt: time.Now()}
	for _, h := range held {
		b.tokens = append(b.tokens, h.Token)
	}
	s.beats = append(s.beats, b)
	if len(s.beats) > maxBeats {
		s.beats = s.beats[1:]
	}
	frames := []link.Frame{&link.Beat{Seq: s.seq, Held: held, Slots: told, Unfit: s.unfit}}
	for _, o := range outputs {
		frames = append(frames, o)
	}
	for _, h := range needs {
		// Asked for before and not answered for a whole beat.
		frames = append(frames, &link.NeedFunction{Hash: h})
	}
	return s.send(frames...)
}

func (s *session) beatAck(f *link.BeatAck) {
	a := s.agent
	for len(s.beats) > 0 && s.beats[0].seq <= f.Seq {
		b := s.beats[0]
		s.beats = s.beats[1:]
		if b.seq != f.Seq {
			continue
		}
		a.mu.Lock()
		for _, tok := range b.tokens {
			if c := a.claims[tok]; c != nil {
				c.leaseFrom = b.sentAt
			}
		}
		a.mu.Unlock()
	}
	a.revoked(f.Stale)
}

// flush sends what has gathered in the outbox.
func (s *session) flush() error {
	a := s.agent
	var frames []link.Frame
	a.mu.Lock()
	if slots, unfit := a.toldLocked(); slots != s.slots || unfit != s.unfit {
		// The dispatcher's credit follows the slots: it is told at once, and before more is
		// asked for.
		a.mu.Unlock()
		if err := s.beat(); err != nil {
			return err
		}
		a.mu.Lock()
	}
	if a.draining && !s.drainSent {
		s.drainSent = true
		frames = append(frames, &link.Drain{Reason: "the worker shuts down"})
	}
	for _, h := range a.needs {
		frames = append(frames, &link.NeedFunction{Hash: h})
	}
	a.needs = nil
	if accepts := a.startedLocked(); len(accepts) > 0 {
		frames = append(frames, &link.Accepts{Items: accepts})
	}
	if reports := a.outcomesLocked(); len(reports) > 0 {
		frames = append(frames, &link.Outcomes{Items: reports})
	}
	if n := a.wantLocked(); n > 0 {
		frames = append(frames, &link.Want{N: n})
		a.asked += n
	}
	a.mu.Unlock()
	return s.send(frames...)
}

// startedLocked takes the starts to announce: those of claims that have a report
// by now are left out, as a report proves the start.
func (a *Agent) startedLocked() []link.Accept {
	now := time.Now()
	out := make([]link.Accept, 0, len(a.accepts))
	for _, acc := range a.accepts {
		if c := a.claims[acc.Token]; c != nil && c.phase == running {
			out = append(out, link.Accept{Token: acc.Token, Ago: now.Sub(c.startedAt)})
		}
	}
	a.accepts = a.accepts[:0]
	return out
}

func (s *session) send(frames ...link.Frame) error {
	for _, f := range frames {
		if err := s.conn.Send(f); err != nil {
			return fmt.Errorf("send %T: %w", f, err)
		}
	}
	return nil
}
