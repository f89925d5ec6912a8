package pebblestore

import (
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// save writes an entry's record as it now is. A finished task moves to its own
// keyspace and to the retention index, and its arguments go.
func (x *txn) save(e *entry) {
	t := e.t
	x.touch(e)
	var key [32]byte
	rec := record{task: t, key: e.key, logs: e.logs}
	x.buf = appendRecord(x.buf[:0], &rec)
	if !t.Status.Terminal() {
		x.set(appendIDKey(key[:0], spaceLive, e.id), x.buf)
		return
	}
	x.set(appendIDKey(key[:0], spaceFinished, e.id), x.buf)
	x.del(appendIDKey(key[:0], spaceLive, e.id))
	if t.ArgsSize > 0 {
		x.del(appendIDKey(key[:0], spaceArgs, e.id))
	}
	row := retainRow{key: e.key, result: t.Status == task.Completed && t.ResultSize > 0, logs: e.logs}
	x.buf = appendRetainRow(x.buf[:0], &row)
	x.set(appendRetainKey(key[:0], t.FinishedAt, e.id), x.buf)
	x.s.gcAt(t.FinishedAt.Add(x.s.opts.Retention))
	x.signals = append(x.signals, store.Signal{Kind: store.Done, Task: e.id})
}

// saveOutput writes what is kept of the attempt that just ended.
func (x *txn) saveOutput(e *entry, attempt int) {
	out := e.out.bytes()
	e.out = nil
	if len(out) == 0 || attempt == 0 {
		return
	}
	var key [32]byte
	x.set(appendOutputKey(key[:0], e.id, attempt), out)
	if n := len(e.logs); n == 0 || e.logs[n-1] != attempt {
		e.logs = append(e.logs, attempt)
	}
	// Output is kept as long as the attempt is in the history.
	for len(e.logs) > task.MaxAttemptsKept {
		x.del(appendOutputKey(key[:0], e.id, e.logs[0]))
		e.logs = e.logs[1:]
	}
}

// settle applies an outcome to an entry whose claim is in force.
func (x *txn) settle(e *entry, now time.Time, tok task.Token, out task.Outcome, jitter float64) task.Verdict {
	s, t := x.s, e.t
	if have, ok := t.Token(); !ok || have.Epoch != tok.Epoch || have.Claim != tok.Claim {
		// Settle answers without changing anything.
		return t.Settle(now, tok, out, jitter)
	}
	// A claim that was never started has no attempt, unless the outcome proves it.
	before := t.AttemptCount
	started := !t.Lease.StartedAt.IsZero()
	s.ix.unplace(e)
	v := t.Settle(now, tok, out, jitter)
	s.ix.place(e, now)
	if started || t.AttemptCount > before {
		x.saveOutput(e, t.AttemptCount)
	}
	e.out = nil
	if t.Status == task.Completed && len(out.Result) > 0 {
		var key [32]byte
		x.set(appendIDKey(key[:0], spaceResult, e.id), out.Result)
	}
	x.save(e)
	if e.where == whereReady {
		x.wake(e.lane)
	}
	return v
}

// force ends an entry without its holder's word, by move.
func (x *txn) force(e *entry, now time.Time, move func(*task.Task) bool) bool {
	s, t := x.s, e.t
	tok, held := t.Token()
	running := t.Status == task.Running
	s.ix.unplace(e)
	done := move(t)
	s.ix.place(e, now)
	if !done {
		return false
	}
	if running {
		x.saveOutput(e, t.AttemptCount)
	}
	e.out = nil
	x.save(e)
	if held {
		x.signals = append(x.signals, store.Signal{Kind: store.Revoked, Task: e.id, Claim: tok.Claim})
	}
	return true
}
