//go:build unix

package pyproc

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

const (
	// exitGrace is how long a runner that closed its pipe may take to exit by itself, so
	// that the reason is its own.
	exitGrace = 250 * time.Millisecond
	// maxKnown bounds the agent's note of what a runner has cached; it may be wrong, see endMissing.
	maxKnown = 256
	// Exit codes of the runner's own program, see main.py.
	exitWire   = 97
	exitBroken = 98
)

// runner is one Python process. run is called by one goroutine at a time; kill and ended
// by any.
type runner struct {
	log   *slog.Logger
	exec  *Executor
	proc  *os.Process
	mark  mark
	info  hello
	out   *output
	limit limit // the memory limit of the process, see limiter

	// The channels to and from the runner, the pipe on which it gets leave to go on, and the
	// one whose closing kills its group: nothing is ever written on that. theirs is the
	// runner's end of to, for taking back what it has not read (nil where that cannot be
	// done). All are closed by reap, or by the end of the agent.
	to, theirs, from, leave, life *os.File
	// asks brings questions of the function that runs, tells takes the answers: see ask.go.
	// answered is closed when nobody reads the questions any more.
	asks, tells *os.File
	answered    chan struct{}
	given       given
	reader      *bufio.Reader
	seq         uint32
	buf         []byte // reused for calls
	// known are the keys of the functions that the runner has loaded.
	known map[codeID][32]byte
	// exchanging is held while a call is on the wire, so that reap does not close the pipes under it.
	exchanging sync.Mutex

	killOnce sync.Once
	killed   atomic.Bool
	// exited is closed when the process has ended, gone when it is collected, nothing that
	// it started is alive, and its output has been delivered.
	exited, gone chan struct{}
	// Set before gone is closed: how the process ended, and how much of what it was sent it
	// had not read.
	state  *os.ProcessState
	unread int
}

// spawn starts a runner and waits until it is ready.
func (e *Executor) spawn(slot int) (*runner, error) {
	var p pipes
	if err := p.open(); err != nil {
		p.closeOurs()
		p.closeTheirs()
		return nil, fmt.Errorf("make the pipes of a runner: %w", err)
	}
	number := e.runnerSeq.Add(1)
	proc, err := e.spawner.start(e.python, []string{e.python, "-c", boot, e.dir}, &os.ProcAttr{
		Dir:   e.workingDir(),
		Env:   e.env,
		Files: []*os.File{p.null, p.outWrite, p.outWrite, p.toRead, p.fromWrite, p.lifeRead, p.leaveRead, p.askWrite, p.tellRead},
		Sys:   runnerAttr(),
	})
	var theirs *os.File
	if err == nil && canTakeBack {
		theirs, p.toRead = p.toRead, nil
	}
	p.closeTheirs()
	if err != nil {
		p.closeOurs()
		return nil, fmt.Errorf("start %s: %w", e.python, err)
	}
	r := &runner{
		exec: e, proc: proc, out: p.out, to: p.to, theirs: theirs, from: p.from, leave: p.leave, life: p.life,
		asks: p.asks, tells: p.tells, answered: make(chan struct{}),
		log:    e.log.With("slot", slot, "pid", proc.Pid),
		reader: bufio.NewReaderSize(p.from, wireBuffer),
		known:  map[codeID][32]byte{},
		exited: make(chan struct{}), gone: make(chan struct{}),
	}
	r.mark = e.mark.brand(proc.Pid, number, r.log)
	go r.out.loop()
	go r.answer()
	go r.reap()
	if err := r.greet(); err != nil {
		r.kill()
		<-r.gone
		return nil, fmt.Errorf("%w; it ended with %s%s", err, describeExit(r.state), r.out.lastWords())
	}
	r.out.stopKeeping()
	r.log.Debug("a Python runner is ready", "python", r.info.Python, "dill", r.info.Dill, "cloudpickle", r.info.Cloudpickle)
	return r, nil
}

// workingDir is empty, for the agent's own, unless that folder was removed: runners start in
// the data folder then.
func (e *Executor) workingDir() string {
	var here unix.Stat_t
	if err := unix.Stat(".", &here); err == nil && here.Nlink > 0 {
		return ""
	}
	e.homeless.Do(func() {
		e.log.Warn("the working directory no longer exists: runners start in the data folder and cannot import modules from the old one",
			"folder", e.dir, "fix", "start the worker again in a folder that stays")
	})
	return e.dir
}

// pipes are what connects a runner with the agent; some ends are the agent's, some the runner's.
type pipes struct {
	to, from, leave, life, asks, tells     *os.File
	out                                    *output
	toRead, fromWrite, leaveRead, lifeRead *os.File
	outWrite, null, askWrite, tellRead     *os.File
}

func (p *pipes) open() (err error) {
	if p.toRead, p.to, err = callChannel(); err != nil {
		return err
	}
	if p.leaveRead, p.leave, err = os.Pipe(); err != nil {
		return err
	}
	if p.from, p.fromWrite, err = os.Pipe(); err != nil {
		return err
	}
	if p.lifeRead, p.life, err = os.Pipe(); err != nil {
		return err
	}
	if p.asks, p.askWrite, err = os.Pipe(); err != nil {
		return err
	}
	if p.tellRead, p.tells, err = os.Pipe(); err != nil {
		return err
	}
	if p.out, p.outWrite, err = newOutput(); err != nil {
		return err
	}
	p.null, err = os.Open(os.DevNull)
	return err
}

func (p *pipes) closeOurs() {
	closeAll(p.to, p.from, p.leave, p.life, p.asks, p.tells)
	if p.out != nil {
		closeAll(p.out.file)
	}
}

func (p *pipes) closeTheirs() {
	closeAll(p.toRead, p.fromWrite, p.leaveRead, p.lifeRead, p.outWrite, p.null, p.askWrite, p.tellRead)
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// greet sends the set-up and waits for the answer.
func (r *runner) greet() error {
	deadline := time.Now().Add(r.exec.cfg.StartTimeout)
	stop := context.AfterFunc(r.exec.ctx, r.kill)
	defer stop()
	r.to.SetDeadline(deadline)
	r.from.SetDeadline(deadline)
	body, err := json.Marshal(setup{Paths: r.exec.cfg.Paths, Libs: r.exec.libs, LibsFirst: r.exec.libsFirst, MaxAttempts: r.exec.cfg.MaxAttemptsPerRunner})
	if err != nil {
		return err
	}
	if _, err := r.to.Write(append(appendHead(nil, 0, kindSetup, len(body)), body...)); err != nil {
		return fmt.Errorf("the runner did not take its set-up: %w", err)
	}
	answer, err := readFrame(r.reader, kindHello, 0, wireBuffer)
	if err != nil {
		return fmt.Errorf("the runner did not say hello: %w", err)
	}
	if err := json.Unmarshal(answer, &r.info); err != nil {
		return fmt.Errorf("the runner's hello is unreadable: %w", err)
	}
	r.to.SetDeadline(time.Time{})
	r.from.SetDeadline(time.Time{})
	return nil
}

// kill ends the process and its group at once. It does not wait; see gone.
func (r *runner) kill() {
	r.killOnce.Do(func() {
		r.killed.Store(true)
		// The process is collected by reap only after exited is closed and under its lock,
		// so the group's number cannot have been given away yet.
		killGroup(r.proc)
	})
}

func (r *runner) ended() bool {
	if r.killed.Load() {
		return true
	}
	select {
	case <-r.exited:
		return true
	default:
		return false
	}
}

// reap waits for the end of the process, ends everything that it started and cleans up.
func (r *runner) reap() {
	state, err := awaitExit(r.proc)
	close(r.exited)
	// The dead process still holds its number: its group is killed before it is collected.
	r.killOnce.Do(func() { killGroup(r.proc) })
	left := r.mark.killAll(r.proc.Pid)
	if state == nil {
		state, err = r.proc.Wait()
	}
	if err != nil {
		r.log.Error("a Python runner cannot be collected", "error", err)
	}
	r.state = state
	if left > 0 {
		r.log.Warn("processes that a function left behind could not be killed", "count", left)
	}
	r.out.finish()
	r.exec.limits.release(r)
	// With nobody left on the other side an exchange ends by itself, after it has read all
	// that was sent; the deadlines are for a process that cannot be killed.
	r.from.SetDeadline(time.Now().Add(exitGrace))
	r.to.SetDeadline(time.Now())
	r.exchanging.Lock()
	if r.theirs != nil {
		r.unread = unread(r.theirs)
	} else {
		r.unread = unread(r.to)
	}
	closeAll(r.to, r.theirs, r.from, r.leave, r.life, r.asks, r.tells)
	r.exchanging.Unlock()
	<-r.answered
	close(r.gone)
}

// unread returns how many bytes lie in a channel.
func unread(pipe *os.File) (n int) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), fionread); err != nil {
			n = 0
		}
	})
	return n
}

// codeID tells functions apart: for source text, of which one may define many functions,
// the callable's name belongs to it.
type codeID struct {
	hash [32]byte
	name string
}

func idOf(a *worker.Attempt) codeID {
	if a.Form != task.FormSource {
		return codeID{hash: a.Hash}
	}
	return codeID{hash: a.Hash, name: a.FunctionName}
}

// key is what a runner knows the function by.
func (id codeID) key() [32]byte {
	if id.name == "" {
		return id.hash
	}
	return sha256.Sum256(append(append([]byte{}, id.hash[:]...), id.name...))
}

// newCall is an attempt as the runner is told of it.
func (r *runner) newCall(a *worker.Attempt, hash [32]byte) call {
	c := call{
		form: formPickle, name: a.FunctionName, task: a.Token.Task, hash: hash, args: a.Args,
		maxResult: a.MaxResult, memory: r.memoryLimit(a),
		function: a.Function, attempt: uint32(a.Token.Attempt), timeout: int64(a.Timeout), maxRetries: uint32(a.MaxRetries), parent: a.Parent,
	}
	r.given.add(a)
	if !a.Deadline.IsZero() {
		c.deadline = a.Deadline.UnixNano()
	}
	if a.Form == task.FormSource {
		c.form = formSource
	}
	if a.ArgsEncoding == task.EncodingJSON {
		c.flags |= callArgsJSON
	}
	if a.Returns == task.EncodingJSON {
		c.flags |= callReturnsJSON
	}
	if c.maxResult <= 0 {
		c.maxResult = r.exec.cfg.MaxPayload
	}
	return c
}

// memoryLimit is that of the attempt, or else the executor's.
func (r *runner) memoryLimit(a *worker.Attempt) int64 {
	if a.MemoryLimit > 0 {
		return a.MemoryLimit
	}
	return r.exec.cfg.MemoryLimit
}

// run runs an attempt; started is false when the runner turned out dead before the
// function could run. code keeps the function's bytes over such replacements.
func (r *runner) run(ctx context.Context, a *worker.Attempt, code *[]byte) (out task.Outcome, started bool) {
	id := idOf(a)
	hash, has := r.known[id]
	if !has {
		hash = id.key()
	}
	c := r.newCall(a, hash)
	byAddress, err := r.exec.limits.impose(r, c.memory)
	if err != nil {
		r.log.Debug("a fresh runner is needed for the memory limit", "error", err)
		return task.Outcome{}, false
	}
	if byAddress {
		c.flags |= callRlimit
	}
	for {
		if !has {
			if *code == nil {
				if *code, err = a.Code(ctx); err != nil {
					if ctx.Err() != nil {
						return cancelled(), true
					}
					return task.Fail(task.EndLost, fmt.Sprintf("the function's bytes could not be fetched: %v", err)), true
				}
			}
			c.code = *code
			c.flags |= callHasCode
		}
		var missing bool
		out, started, missing = r.attempt(ctx, a, id, &c)
		if !missing {
			return out, started
		}
		if has = false; c.flags&callHasCode != 0 {
			r.kill()
			<-r.gone
			return task.Fail(task.EndLost, "the runner asked for a function that it was sent"), true
		}
	}
}

// Why an attempt is over; the first reason wins.
const (
	stopNone int32 = iota
	stopCancelled
	stopTimedOut
	stopAnswered
)

// attempt sends one call and waits for its answer or its end.
func (r *runner) attempt(ctx context.Context, a *worker.Attempt, id codeID, c *call) (out task.Outcome, started, missing bool) {
	var stopped atomic.Int32
	stop := func(why int32) {
		if stopped.CompareAndSwap(stopNone, why) {
			r.kill()
		}
	}
	r.out.begin(a.Output)
	defer r.out.end()
	begun := time.Now()
	if a.Timeout > 0 {
		defer time.AfterFunc(a.Timeout, func() { stop(stopTimedOut) }).Stop()
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { stop(stopCancelled) })()
	}
	p, err := r.exchange(c)
	if err == nil {
		// A timer or a cancel that comes too late must not hit the runner's next attempt; one
		// that has come already may still be about to.
		if !stopped.CompareAndSwap(stopNone, stopAnswered) {
			r.kill()
		}
		if p.end == endMissing {
			delete(r.known, id)
			return task.Outcome{}, true, true
		}
		if p.flags&replyRecycle != 0 {
			r.worn(a, p.flags)
			r.kill()
			<-r.gone
		}
		r.note(id, c, p.flags&replyCached != 0)
		out = p.outcome(c.maxResult)
		out.RunTime = time.Since(begun)
		return out, true, false
	}
	out = r.lost(err, c.memory)
	if stopped.Load() == stopNone && out.End == task.EndLost {
		r.log.Info("a Python runner ended while an attempt ran", "function", a.FunctionName, "task", a.Token.Task, "reason", out.Failure.Message)
	}
	// A runner that died idle has not read the call: the function has not started.
	untouched := errors.Is(err, errNotSent) || r.unread >= c.size()
	if untouched && stopped.Load() == stopNone && r.exec.ctx.Err() == nil {
		return task.Outcome{}, false, false
	}
	switch stopped.Load() {
	case stopTimedOut:
		text := fmt.Sprintf("the attempt ran longer than its timeout of %s", a.Timeout)
		if c.flags&callHasCode != 0 {
			text += "; its runner had to load the function first, which counts: imports included"
		}
		out = task.Fail(task.EndTimedOut, text)
	case stopCancelled:
		out = cancelled()
	}
	out.RunTime = time.Since(begun)
	return out, true, false
}

// worn tells why a runner is replaced after an attempt that ended in order.
func (r *runner) worn(a *worker.Attempt, flags uint16) {
	if flags&replySpent != 0 {
		r.log.Debug("a runner has run as many attempts as it may; it is replaced", "limit", r.exec.cfg.MaxAttemptsPerRunner)
		return
	}
	r.log.Debug("an attempt left threads, children, descriptors or a changed process behind; its runner is replaced",
		"function", a.FunctionName, "task", a.Token.Task)
}

// note keeps in mind what the runner has cached.
func (r *runner) note(id codeID, c *call, cached bool) {
	switch {
	case !cached:
		delete(r.known, id)
	case c.flags&callHasCode != 0:
		if len(r.known) >= maxKnown {
			clear(r.known)
		}
		r.known[id] = c.hash
	}
}

// errNotSent is returned for a call that did not reach the runner whole.
var errNotSent = errors.New("the runner did not take the call")

// exchange sends a call and reads the reply.
func (r *runner) exchange(c *call) (reply, error) {
	r.exchanging.Lock()
	defer r.exchanging.Unlock()
	r.seq++
	var err error
	if r.buf, err = appendCall(r.buf[:0], r.seq, c); err != nil {
		return reply{}, err
	}
	if len(r.buf)+len(c.code)+len(c.args) <= maxMessage {
		r.buf = append(append(r.buf, c.code...), c.args...)
		_, err = r.to.Write(r.buf)
	} else {
		for _, part := range [][]byte{r.buf, c.code, c.args} {
			for len(part) > 0 && err == nil {
				n := min(len(part), maxMessage)
				_, err = r.to.Write(part[:n])
				part = part[n:]
			}
		}
	}
	if err != nil {
		return reply{}, fmt.Errorf("%w: %w", errNotSent, err)
	}
	body, err := readFrame(r.reader, kindReply, r.seq, c.maxResult+replySlack)
	if err != nil {
		return reply{}, err
	}
	return parseReply(body)
}

// lost ends the runner, if it has not ended itself, and says how it ended.
func (r *runner) lost(cause error, memory int64) task.Outcome {
	forced := false
	if errors.Is(cause, errJunk) {
		forced = true
		r.kill()
	}
	select {
	case <-r.exited:
	case <-time.After(exitGrace):
		forced = true
		r.kill()
	}
	<-r.gone
	if memory > 0 && r.limit.exceeded() {
		return task.Fail(task.EndExhausted, fmt.Sprintf("the attempt needed more memory than its limit of %d bytes (%s)",
			memory, r.exec.limits.name()))
	}
	switch {
	case r.exec.ctx.Err() != nil:
		return cancelled()
	case forced && errors.Is(cause, errJunk):
		return task.Fail(task.EndLost, fmt.Sprintf("the runner was killed: a function wrote on descriptors that are not its own (%v)", cause))
	case forced:
		return task.Fail(task.EndLost, "the runner was killed: a function closed the descriptors that it answers on")
	}
	return task.Fail(task.EndLost, "the runner ended by "+describeExit(r.state)+" while the attempt ran")
}

// outcome turns a reply into an outcome.
func (p *reply) outcome(maxResult int) task.Outcome {
	failure := &task.Failure{
		Type: p.label, Message: p.message, Traceback: p.traceback, Pickle: p.pickle, ForeignPickle: p.foreign,
	}
	out := task.Outcome{Failure: failure}
	switch p.end {
	case endSucceeded:
		if len(p.result) > maxResult {
			return task.Fail(task.EndExhausted, fmt.Sprintf("the result has %d bytes; the limit is %d bytes", len(p.result), maxResult))
		}
		encoding := task.EncodingPickle
		if p.encoding == encodingJSON {
			encoding = task.EncodingJSON
		}
		return task.Outcome{End: task.EndSucceeded, Result: p.result, Encoding: encoding, Repr: p.label}
	case endRaised:
		out.End, out.NoRetry, out.RetryAfter = task.EndRaised, p.noRetry, p.retryAfter
	case endExhausted:
		out.End = task.EndExhausted
	default:
		out.End = task.EndUnreadable
	}
	failure.Class = task.ClassOf(out.End)
	failure.Bound()
	return out
}

// describeExit names how a process ended.
func describeExit(state *os.ProcessState) string {
	if state == nil {
		return "an unknown cause"
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return state.String()
	}
	if status.Signaled() {
		return signalName(status.Signal())
	}
	switch code := status.ExitStatus(); code {
	case exitWire:
		return fmt.Sprintf("exit code %d (a function closed or used the descriptors that it answers on)", code)
	case exitBroken:
		return fmt.Sprintf("exit code %d (a function broke the runner's own program; see the log)", code)
	default:
		return fmt.Sprintf("exit code %d", code)
	}
}
