//go:build unix

package pyproc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/internal/window"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

const (
	// aheadCalls is how many calls a runner may have, the one that runs included: enough
	// that it never waits, few enough that they are back at once when one takes long.
	aheadCalls = 16
	// aheadBytes bounds such a call: all of them fit into the channel, so that nobody ever
	// waits to send while the runner waits to answer.
	aheadBytes = 4 << 10
	// patience is how long a call may run before those behind it are taken back.
	patience = 2 * window.Short
	// starved is how long a runner may take to begin with a call before all are taken back.
	starved = 10 * patience
)

var _ worker.Pipeliner = (*Executor)(nil)

// RunAhead implements [worker.Pipeliner]. It takes small calls of functions that the
// slot's runner has loaded.
func (e *Executor) RunAhead(slot int, first *worker.Attempt, feed worker.Feed) bool {
	s := e.slotAt(slot)
	if s == nil {
		return false
	}
	s.mu.Lock()
	r := s.cur
	s.mu.Unlock()
	if r == nil || r.ended() || !r.suits(first) {
		return false
	}
	p := pipeline{r: r, feed: feed}
	feed.Bind(p.wake)
	return p.run(first)
}

// suits says whether a call of the attempt can be sent to the runner ahead of its turn.
func (r *runner) suits(a *worker.Attempt) bool {
	_, known := r.known[idOf(a)]
	return canTakeBack && known && r.exec.cfg.MaxAttemptsPerRunner != 1 && len(a.Args)+len(a.FunctionName) <= aheadBytes &&
		r.exec.limits.inForce(r, r.memoryLimit(a))
}

// pipeline is one stretch of calls that a runner goes through without a pause.
//
// What the runner has read of the channel it has started, and it starts one call at a
// time: so when calls are taken back, those that stay are the ones that have ended or run.
// Output is left in its pipe until a reply says that there is some; the runner waits with
// the next call until it has been read.
type pipeline struct {
	r    *runner
	feed worker.Feed
	// calls are with the runner, oldest first; the first one runs, or its reply is on its way.
	calls []sent
	done  []worker.Done // to be reported together
	buf   []byte
	woken atomic.Bool
	// deadline is what the reader has, unless wake has changed it.
	deadline time.Time
	unset    bool // set the deadline whatever it was
	// worn is the outcome of a call whose runner has to be replaced.
	worn task.Outcome
}

type sent struct {
	attempt *worker.Attempt
	id      codeID
	call    call
	seq     uint32
	size    int // of the frame
	began   time.Time
}

// wake makes run look for attempts that have to be stopped. Any goroutine may call it.
func (p *pipeline) wake() {
	p.woken.Store(true)
	// The reader sets deadlines too, and looks at woken after that.
	_ = p.r.from.SetReadDeadline(time.Now())
}

// run is the stretch. It returns false when the first call could not be sent.
func (p *pipeline) run(first *worker.Attempt) bool {
	r := p.r
	r.exchanging.Lock()
	r.out.pause()
	if !p.send(first) {
		r.out.resume()
		r.exchanging.Unlock()
		return false
	}
	p.begin()
	end := p.serve()
	if end != nil {
		p.salvage(end)
	}
	p.report()
	// From here on nobody calls wake: what it set last must not hit the next call.
	_ = r.from.SetReadDeadline(time.Time{})
	r.out.resume()
	r.exchanging.Unlock()
	if end != nil {
		p.finish(end)
	}
	return true
}

// salvage ends the runner and reads what it has answered until then.
func (p *pipeline) salvage(end error) {
	if !p.r.ended() && !errors.Is(end, io.EOF) {
		p.r.kill()
	}
	for answered := true; answered && len(p.calls) > 0 && !errors.Is(end, errWorn); {
		_ = p.r.from.SetReadDeadline(time.Now().Add(exitGrace))
		_, err := p.r.reader.Peek(1)
		answered = err == nil && p.reply() == nil
	}
	p.takeBack()
}

// finish waits for the runner's end and reports what it took with it: all that is left
// had been started.
func (p *pipeline) finish(end error) {
	for _, s := range p.calls {
		var out task.Outcome
		switch {
		case errors.Is(end, errWorn):
			out = p.worn
		case errors.Is(end, errTimedOut):
			out = task.Fail(task.EndTimedOut, fmt.Sprintf("the attempt ran longer than its timeout of %s", s.attempt.Timeout))
		case errors.Is(end, errStopped):
			out = cancelled()
		default:
			out = p.r.lost(end, s.call.memory)
			p.r.log.Info("a Python runner ended while an attempt ran",
				"function", s.attempt.FunctionName, "task", s.attempt.Token.Task, "reason", out.Failure.Message)
		}
		if out.RunTime == 0 && !s.began.IsZero() {
			out.RunTime = time.Since(s.began)
		}
		p.done = append(p.done, worker.Done{Attempt: s.attempt, Outcome: out})
	}
	<-p.r.gone
	p.report()
}

func (p *pipeline) send(a *worker.Attempt) bool {
	r := p.r
	r.seq++
	s := sent{attempt: a, id: idOf(a), seq: r.seq}
	s.call = r.newCall(a, r.known[s.id])
	s.call.flags |= callAhead
	var err error
	if p.buf, err = appendCall(p.buf[:0], s.seq, &s.call); err != nil {
		return false
	}
	p.buf = append(p.buf, a.Args...)
	if !r.offer(p.buf) {
		return false
	}
	s.size = len(p.buf)
	p.calls = append(p.calls, s)
	return true
}

// fill sends more calls, many at a time.
func (p *pipeline) fill() {
	room := aheadCalls - len(p.calls)
	if room < aheadCalls/2 {
		return
	}
	more := p.feed.Next(room, p.r.suits)
	for i, a := range more {
		if !p.send(a) {
			p.feed.Back(more[i:])
			return
		}
	}
}

// begin notes that the first call is running.
func (p *pipeline) begin() {
	p.calls[0].began = time.Now()
	p.feed.Started(p.calls[0].attempt)
}

func (p *pipeline) report() {
	if len(p.done) > 0 {
		p.feed.Ended(p.done)
		p.done = nil
	}
}

// Reasons to end a stretch before its time.
var (
	errStopped  = errors.New("the attempt has to be stopped")
	errTimedOut = errors.New("the attempt has run too long")
	errWorn     = errors.New("the runner has to be replaced")
)

// serve goes on until nothing is left, or until the runner is of no more use.
func (p *pipeline) serve() error {
	for len(p.calls) > 0 {
		p.fill()
		if p.r.reader.Buffered() == 0 {
			p.report()
			if err := p.await(); err != nil {
				return err
			}
			if len(p.calls) == 0 {
				return nil
			}
		}
		if err := p.reply(); err != nil {
			return err
		}
		if len(p.calls) > 0 {
			p.begin()
		}
	}
	return nil
}

// await waits until a reply begins to arrive, or everything was taken back.
func (p *pipeline) await() error {
	head := p.calls[0]
	slow := false
	for {
		p.limit(head, slow)
		if p.woken.Swap(false) {
			p.unset = true
			if p.takeBack(); len(p.calls) == 0 {
				return nil
			}
			if p.feed.Stopped(head.attempt) {
				return errStopped
			}
			continue
		}
		_, err := p.r.reader.Peek(1)
		switch {
		case err == nil:
			if slow {
				// Whatever comes after this reply waits for the next call, or for leave.
				p.r.out.end()
				p.r.out.pause()
			}
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded) || p.r.ended():
			return err
		case head.attempt.Timeout > 0 && time.Since(head.began) >= head.attempt.Timeout:
			return errTimedOut
		case slow || p.deadline.After(time.Now()):
			p.unset = true // it was a wake
		default:
			p.unset = true
			if slow = p.alone(head); len(p.calls) == 0 {
				return nil
			}
		}
	}
}

// limit sets the reader's deadline: to the moment when a call is no longer short, or to the
// end of its time.
func (p *pipeline) limit(head sent, slow bool) {
	now := time.Now()
	var at time.Time
	if !slow {
		// Set anew now and then only, as it is not free.
		if at = p.deadline; p.unset || at.Before(now.Add(patience/2)) {
			at = now.Add(patience)
		}
	}
	if t := head.attempt.Timeout; t > 0 {
		if end := head.began.Add(t); at.IsZero() || end.Before(at) {
			at = end
		}
	}
	if p.unset || at != p.deadline {
		p.unset, p.deadline = false, at
		_ = p.r.from.SetReadDeadline(at)
	}
	if p.r.ended() {
		// What the dead runner has sent is read, and no more is waited for.
		p.deadline = now.Add(exitGrace)
		_ = p.r.from.SetReadDeadline(p.deadline)
	}
}

// alone lets a call that is not short run on as if nothing had ever been behind it: its
// start is told, its output delivered as it comes. It returns false when the call has not
// begun, as the runner got no processor, or has ended, so that its reply is on its way.
func (p *pipeline) alone(head sent) bool {
	whole := 0
	for _, s := range p.calls {
		whole += s.size
	}
	if unread(p.r.theirs) >= whole && time.Since(head.began) < starved {
		return false
	}
	if p.takeBack(); len(p.calls) != 1 {
		return false
	}
	p.feed.Slow(head.attempt)
	p.r.out.begin(head.attempt.Output)
	p.r.out.resume()
	return true
}

// takeBack gives back what the runner has not read. The runner may read in between: then
// what it took lies between calls that were taken back, and stays.
func (p *pipeline) takeBack() {
	seqs := p.r.takeBack()
	if len(seqs) == 0 {
		return
	}
	back := make([]*worker.Attempt, 0, len(seqs))
	p.calls = slices.DeleteFunc(p.calls, func(s sent) bool {
		taken := slices.Contains(seqs, s.seq)
		if taken {
			back = append(back, s.attempt)
		}
		return taken
	})
	p.feed.Back(back)
}

// frame reads the reply to the first call.
func (p *pipeline) frame() ([]byte, error) {
	head := &p.calls[0]
	limit := head.call.maxResult + replySlack
	r := p.r.reader
	if n := r.Buffered(); n >= headSize {
		have, _ := r.Peek(n)
		if size := headSize + int(binary.LittleEndian.Uint32(have[12:])); size <= n {
			body, err := checkHead(have[:headSize], kindReply, head.seq, limit)
			if err == nil {
				body = body[:copy(body, have[headSize:])]
				_, err = r.Discard(size)
			}
			return body, err
		}
	}
	return readFrame(steady{p}, kindReply, head.seq, limit)
}

// steady reads on when the deadline passes in the middle of a reply: the call is over.
type steady struct{ p *pipeline }

func (s steady) Read(b []byte) (int, error) {
	for {
		n, err := s.p.r.reader.Read(b)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || s.p.r.ended() {
			return n, err
		}
		if s.p.woken.Swap(false) && s.p.feed.Stopped(s.p.calls[0].attempt) {
			return 0, errStopped
		}
		s.p.unset = true
		_ = s.p.r.from.SetReadDeadline(time.Time{})
	}
}

// reply takes the answer to the first call.
func (p *pipeline) reply() error {
	head := p.calls[0]
	body, err := p.frame()
	if err != nil {
		return err
	}
	answer, err := parseReply(body)
	if err != nil {
		return err
	}
	if answer.end == endMissing {
		delete(p.r.known, head.id)
		p.calls = slices.Delete(p.calls, 0, 1)
		p.feed.Back([]*worker.Attempt{head.attempt})
		return nil
	}
	if answer.flags&(replyOutput|replyRecycle) != 0 {
		p.r.out.begin(head.attempt.Output)
		p.r.out.end()
	}
	if answer.flags&replyRecycle != 0 {
		p.r.worn(head.attempt, answer.flags)
		p.worn = answer.outcome(head.call.maxResult)
		p.worn.RunTime = answer.took
		return errWorn
	}
	if answer.flags&replyOutput != 0 {
		if _, err := p.r.leave.Write([]byte{1}); err != nil {
			return fmt.Errorf("let the runner go on: %w", err)
		}
	}
	p.r.note(head.id, &head.call, answer.flags&replyCached != 0)
	p.calls = slices.Delete(p.calls, 0, 1)
	out := answer.outcome(head.call.maxResult)
	out.RunTime = answer.took
	p.done = append(p.done, worker.Done{Attempt: head.attempt, Outcome: out})
	return nil
}
