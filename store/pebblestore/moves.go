package pebblestore

import (
	"bytes"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// save writes an entry's record as it now is, with its result when it has one. A
// finished task moves to its own keyspace and is noted for retention, and its
// arguments go.
func (x *txn) save(e *entry, result []byte) {
	t := e.t
	x.touch(e)
	var key [32]byte
	rec := record{task: t, key: e.key, logs: e.logs}
	if !t.Status.Terminal() {
		rec.args = e.inlineArgs()
		x.buf = appendRecord(x.buf[:0], &rec)
		x.set(appendIDKey(key[:0], spaceLive, e.id), x.buf)
		x.changed(e)
		return
	}
	apart := len(result) > maxInlineResult
	if !apart {
		rec.result = result
	}
	x.buf = appendRecord(x.buf[:0], &rec)
	if !apart && len(x.buf) <= maxRecentRecord {
		x.recent = append(x.recent, finished{task: t, result: bytes.Clone(result)})
	}
	x.set(appendIDKey(key[:0], spaceFinished, e.id), x.buf)
	x.del(appendIDKey(key[:0], spaceLive, e.id))
	if apart {
		x.setValue(appendIDKey(key[:0], spaceResult, e.id), result)
	}
	if t.ArgsSize > maxInlineArgs {
		x.delValue(appendIDKey(key[:0], spaceArgs, e.id), furtherParts(t.ArgsSize))
	}
	row := retained{id: e.id, key: e.key, result: apart, parts: furtherParts(len(result)), logs: e.logs}
	x.s.ix.finished(t)
	if t.CreatedBy != "" {
		row.owner, row.size = t.CreatedBy, t.ResultSize
		x.keep(t.CreatedBy, t.ResultSize)
	}
	x.ended = append(x.ended, row)
	x.endedAt = t.FinishedAt
	if len(x.ended) == maxRetainedRow {
		x.retain()
	}
	x.signals = append(x.signals, store.Signal{Kind: store.Done, Task: e.id})
}

// saveClaim writes what the claim that an entry just got changes of its record. Only that:
// the record with its arguments would be a third of all that is written for a task. The
// next write of the record holds all of it, so no record ever has two claims behind it.
func (x *txn) saveClaim(e *entry) {
	if !e.t.NotBefore.IsZero() {
		// The record on disk may have a moment from before a step of the clock.
		x.save(e, nil)
		return
	}
	x.touch(e)
	var key [32]byte
	x.buf = appendClaim(x.buf[:0], e.t)
	if err := x.live.Merge(appendIDKey(key[:0], spaceLive, e.id), x.buf, nil); err != nil {
		x.s.fail(err)
	}
	x.changed(e)
}

// changed rings for those who watch an unfinished task.
func (x *txn) changed(e *entry) {
	if x.s.bell.Watched(e.id) {
		x.signals = append(x.signals, store.Signal{Kind: store.Changed, Task: e.id})
	}
}

// maxRetainedRow bounds the tasks in one row of the retention index.
const maxRetainedRow = 64

// retain writes the tasks that ended since the last row. Store time never goes
// back, so the last of them finished last.
func (x *txn) retain() {
	if len(x.ended) == 0 {
		return
	}
	var key [32]byte
	x.buf = appendRetained(x.buf[:0], x.ended)
	x.set(appendRetainKey(key[:0], x.endedAt, x.ended[0].id), x.buf)
	x.s.gcAt(x.endedAt.Add(x.s.opts.Retention))
	x.ended = x.ended[:0]
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
	if out.End == task.EndLost && t.Losses == t.MaxRetries && seededbug.On(seededbug.OffByOneRetries) {
		t.MaxRetries++
	}
	started := !t.Lease.StartedAt.IsZero()
	s.ix.unplace(e)
	v := t.Settle(now, tok, out, jitter)
	s.ix.place(e, now)
	if started || t.AttemptCount > before {
		x.saveOutput(e, t.AttemptCount)
	}
	e.out = nil
	var result []byte
	if t.Status == task.Completed {
		result = out.Result
	}
	x.save(e, result)
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
	x.save(e, nil)
	if held {
		x.signals = append(x.signals, store.Signal{Kind: store.Revoked, Task: e.id, Claim: tok.Claim})
	}
	return true
}
