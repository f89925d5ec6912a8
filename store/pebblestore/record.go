package pebblestore

import (
	"errors"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// record is what is stored of one task: the task and what the store needs beside it.
type record struct {
	task *task.Task
	// key is the idempotency key, deleted with the task.
	key string
	// logs lists the attempts whose output is stored.
	logs []int
	// args and result hold small payloads, which then have no key of their own: every
	// key costs more than a few hundred bytes in a record do.
	args, result []byte
}

// What goes into the record, in bytes. The record of an unfinished task is written
// again by each requeue, that of a finished one only once.
const (
	maxInlineArgs   = 512
	maxInlineResult = 4 << 10
)

// Numbers of the fields of a task record. A number is never used again for
// something else. The id is in the key.
const (
	fFunction = iota + 1
	fFunctionName
	fQueue
	fRuntime
	fForm
	fHash
	fPriority
	fArgs
	fReturns
	fArgsSize
	fTimeout
	fDeadline
	fMaxRetries
	fFunctionRetries
	fMemoryLimit
	fCreatedAt
	fNotBefore
	fFinishedAt
	fStatus
	fEpoch
	fLosses
	fFailures
	fLapses
	fSeq
	fLease
	fLastClaim
	fAttempts
	fAttemptCount
	fResultSize
	fResultEncoding
	fResultRepr
	fFailure
	fKey
	fLogs
	fInlineArgs
	fInlineResult
	fPython
	fCreatedBy
	fParent
)

// Numbers of the fields of a lease.
const (
	fClaim = iota + 1
	fSession
	fLeaseWorker
	fLocal
	fClaimedAt
	fUntil
	fLeaseStartedAt
)

// Numbers of the fields of an attempt.
const (
	fNumber = iota + 1
	fWorker
	fStartedAt
	fAttemptFinishedAt
	fEnd
	fReason
)

// Numbers of the fields of a failure.
const (
	fClass = iota + 1
	fType
	fMessage
	fTraceback
	fFailureWorker
	fPickle
	fForeignPickle
)

// appendRecord encodes a record at the end of b.
func appendRecord(b []byte, rec *record) []byte {
	t := rec.task
	m := openMap(b)
	m.array(fFunction, t.Function[:])
	m.text(fFunctionName, t.FunctionName)
	m.word(fQueue, t.Queue)
	m.word(fRuntime, t.Runtime)
	m.word(fForm, string(t.Form))
	m.array(fHash, t.Hash[:])
	m.int(fPriority, int64(t.Priority))
	m.word(fArgs, string(t.Args))
	m.word(fReturns, string(t.Returns))
	m.int(fArgsSize, int64(t.ArgsSize))
	m.int(fTimeout, int64(t.Timeout))
	m.time(fDeadline, t.Deadline)
	m.int(fMaxRetries, int64(t.MaxRetries))
	m.int(fFunctionRetries, int64(t.FunctionRetries))
	m.int(fMemoryLimit, t.MemoryLimit)
	m.time(fCreatedAt, t.CreatedAt)
	m.time(fNotBefore, t.NotBefore)
	m.since(fFinishedAt, t.FinishedAt, t.CreatedAt)
	m.word(fStatus, string(t.Status))
	m.uint(fEpoch, t.Epoch)
	m.int(fLosses, int64(t.Losses))
	m.int(fFailures, int64(t.Failures))
	m.int(fLapses, int64(t.Lapses))
	m.uint(fSeq, t.Seq)
	if t.Lease != nil {
		m.tag(fLease)
		m.b = appendLease(m.b, t.Lease)
	}
	m.array(fLastClaim, t.LastClaim[:])
	if len(t.Attempts) > 0 {
		m.tag(fAttempts)
		m.b = appendArrayLen(m.b, len(t.Attempts))
		for i := range t.Attempts {
			m.b = appendAttempt(m.b, &t.Attempts[i], t.CreatedAt)
		}
	}
	m.int(fAttemptCount, int64(t.AttemptCount))
	m.int(fResultSize, int64(t.ResultSize))
	m.word(fResultEncoding, string(t.ResultEncoding))
	m.text(fResultRepr, t.ResultRepr)
	if t.Failure != nil {
		m.tag(fFailure)
		m.b = appendFailure(m.b, t.Failure)
	}
	m.name(fKey, rec.key)
	if len(rec.logs) > 0 {
		m.tag(fLogs)
		m.b = appendInts(m.b, rec.logs)
	}
	m.bytes(fInlineArgs, rec.args)
	m.bytes(fInlineResult, rec.result)
	m.text(fPython, t.Python)
	m.name(fCreatedBy, t.CreatedBy)
	m.array(fParent, t.Parent[:])
	return m.done()
}

func appendLease(b []byte, l *task.Lease) []byte {
	m := openSmallMap(b)
	m.array(fClaim, l.Claim[:])
	m.array(fSession, l.Session[:])
	m.name(fLeaseWorker, l.Worker)
	m.bool(fLocal, l.Local)
	m.time(fClaimedAt, l.ClaimedAt)
	m.time(fUntil, l.Until)
	m.time(fLeaseStartedAt, l.StartedAt)
	return m.done()
}

// appendClaim encodes what a claim changes of the record of a task that had never been
// delayed. It is merged to the record: Pebble appends it. An array, so that it cannot be
// taken for a record where that is missing.
func appendClaim(b []byte, t *task.Task) []byte {
	l := t.Lease
	b = appendArrayLen(b, claimFields)
	b = appendUint(b, t.Epoch)
	b = appendBytes(b, l.Claim[:])
	b = appendBytes(b, l.Session[:])
	b = appendName(b, l.Worker)
	b = appendBool(b, l.Local)
	b = appendTime(b, l.ClaimedAt)
	return appendSince(b, l.Until, l.ClaimedAt)
}

// claimFields counts what [appendClaim] writes; a newer build may write more.
const claimFields = 7

// readClaim applies a claim that follows a record.
func readClaim(r *reader, t *task.Task) error {
	n := r.arrayLen()
	if r.err == nil && n < claimFields {
		return fmt.Errorf("a claim of %d fields, want %d", n, claimFields)
	}
	l, epoch := new(task.Lease), r.uint()
	r.array(l.Claim[:])
	r.array(l.Session[:])
	l.Worker = r.name()
	l.Local = r.bool()
	l.ClaimedAt = r.time()
	l.Until = r.since(l.ClaimedAt)
	for ; n > claimFields && r.err == nil; n-- {
		r.skip()
	}
	switch {
	case r.err != nil:
		return r.err
	case t.Lease != nil:
		return errors.New("a claim of a task that has a lease")
	case epoch < t.Epoch:
		return fmt.Errorf("a claim of epoch %d after epoch %d", epoch, t.Epoch)
	}
	t.Epoch, t.Lease = epoch, l
	return nil
}

func appendAttempt(b []byte, a *task.Attempt, created time.Time) []byte {
	m := openSmallMap(b)
	m.int(fNumber, int64(a.Number))
	m.name(fWorker, a.Worker)
	m.since(fStartedAt, a.StartedAt, created)
	m.since(fAttemptFinishedAt, a.FinishedAt, a.StartedAt)
	m.word(fEnd, string(a.End))
	m.text(fReason, a.Reason)
	return m.done()
}

func appendFailure(b []byte, f *task.Failure) []byte {
	m := openSmallMap(b)
	m.text(fClass, string(f.Class))
	m.text(fType, f.Type)
	m.text(fMessage, f.Message)
	m.text(fTraceback, f.Traceback)
	m.name(fFailureWorker, f.Worker)
	m.bytes(fPickle, f.Pickle)
	m.bytes(fForeignPickle, f.ForeignPickle)
	return m.done()
}

func appendInts(b []byte, v []int) []byte {
	b = appendArrayLen(b, len(v))
	for _, n := range v {
		b = appendInt(b, int64(n))
	}
	return b
}

// decodeRecord reads the record of task id, with the claim that was merged to it. It keeps nothing of b. An error names
// the key.
func decodeRecord(space byte, id task.ID, b []byte) (record, error) {
	t := &task.Task{ID: id}
	rec := record{task: t}
	r := &reader{b: b}
	r.eachField(func(num int) bool { return readTaskField(r, &rec, num) })
	if space == spaceLive && r.err == nil && len(r.b) > 0 {
		if err := readClaim(r, t); err != nil {
			r.fail(err)
		}
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail(fmt.Errorf("%d bytes after the end of the record", len(r.b)))
	}
	if r.err == nil {
		r.err = plausible(space, t)
	}
	if r.err != nil {
		return record{}, fmt.Errorf("the record under key %c/%s is damaged: %w", space, id, r.err)
	}
	return rec, nil
}

// plausible refuses records that decode but cannot have been written.
func plausible(space byte, t *task.Task) error {
	switch t.Status {
	case task.Queued, task.Running, task.Completed, task.Failed, task.Cancelled:
	default:
		return fmt.Errorf("unknown status %q", t.Status)
	}
	switch {
	case t.Status.Terminal() != (space == spaceFinished):
		return fmt.Errorf("status %s does not belong there", t.Status)
	case t.Status.Terminal() && t.Lease != nil:
		return fmt.Errorf("status %s with a lease", t.Status)
	case t.Priority < task.MinPriority || t.Priority > task.MaxPriority:
		return fmt.Errorf("priority %d", t.Priority)
	case t.Status == task.Running && (t.Lease == nil || len(t.Attempts) == 0):
		return fmt.Errorf("status %s without lease and attempt", t.Status)
	}
	return nil
}

func readTaskField(r *reader, rec *record, num int) bool {
	t := rec.task
	switch num {
	case fFunction:
		r.array(t.Function[:])
	case fFunctionName:
		t.FunctionName = r.text()
	case fQueue:
		t.Queue = r.word()
	case fRuntime:
		t.Runtime = r.word()
	case fForm:
		t.Form = task.Form(r.word())
	case fPython:
		t.Python = r.text()
	case fCreatedBy:
		t.CreatedBy = r.name()
	case fParent:
		r.array(t.Parent[:])
	case fHash:
		r.array(t.Hash[:])
	case fPriority:
		t.Priority = int(r.int())
	case fArgs:
		t.Args = task.Encoding(r.word())
	case fReturns:
		t.Returns = task.Encoding(r.word())
	case fArgsSize:
		t.ArgsSize = r.count()
	case fTimeout:
		t.Timeout = durationOf(r)
	case fDeadline:
		t.Deadline = r.time()
	case fMaxRetries:
		t.MaxRetries = r.count()
	case fFunctionRetries:
		t.FunctionRetries = r.count()
	case fMemoryLimit:
		t.MemoryLimit = r.int()
	case fCreatedAt:
		t.CreatedAt = r.time()
	case fNotBefore:
		t.NotBefore = r.time()
	case fFinishedAt:
		t.FinishedAt = r.since(t.CreatedAt)
	default:
		return readStateField(r, rec, num)
	}
	return true
}

// readStateField reads what changes in the life of a task.
func readStateField(r *reader, rec *record, num int) bool {
	t := rec.task
	switch num {
	case fStatus:
		t.Status = task.Status(r.word())
	case fEpoch:
		t.Epoch = r.uint()
	case fLosses:
		t.Losses = r.count()
	case fFailures:
		t.Failures = r.count()
	case fLapses:
		t.Lapses = r.count()
	case fSeq:
		t.Seq = r.uint()
	case fLease:
		t.Lease = readLease(r)
	case fLastClaim:
		r.array(t.LastClaim[:])
	case fAttempts:
		n := r.arrayLen()
		t.Attempts = make([]task.Attempt, 0, min(n, task.MaxAttemptsKept))
		for ; n > 0 && r.err == nil; n-- {
			t.Attempts = append(t.Attempts, readAttempt(r, t.CreatedAt))
		}
	case fAttemptCount:
		t.AttemptCount = r.count()
	case fResultSize:
		t.ResultSize = r.count()
	case fResultEncoding:
		t.ResultEncoding = task.Encoding(r.word())
	case fResultRepr:
		t.ResultRepr = r.text()
	case fFailure:
		t.Failure = readFailure(r)
	case fKey:
		rec.key = r.name()
	case fLogs:
		rec.logs = readInts(r)
	case fInlineArgs:
		rec.args = append([]byte(nil), r.bytes()...)
	case fInlineResult:
		rec.result = append([]byte(nil), r.bytes()...)
	default:
		return false
	}
	return true
}

func readLease(r *reader) *task.Lease {
	l := new(task.Lease)
	r.eachField(func(num int) bool {
		switch num {
		case fClaim:
			r.array(l.Claim[:])
		case fSession:
			r.array(l.Session[:])
		case fLeaseWorker:
			l.Worker = r.name()
		case fLocal:
			l.Local = r.bool()
		case fClaimedAt:
			l.ClaimedAt = r.time()
		case fUntil:
			l.Until = r.time()
		case fLeaseStartedAt:
			l.StartedAt = r.time()
		default:
			return false
		}
		return true
	})
	return l
}

func readAttempt(r *reader, created time.Time) (a task.Attempt) {
	r.eachField(func(num int) bool {
		switch num {
		case fNumber:
			a.Number = r.count()
		case fWorker:
			a.Worker = r.name()
		case fStartedAt:
			a.StartedAt = r.since(created)
		case fAttemptFinishedAt:
			a.FinishedAt = r.since(a.StartedAt)
		case fEnd:
			a.End = task.End(r.word())
		case fReason:
			a.Reason = r.text()
		default:
			return false
		}
		return true
	})
	return a
}

func readFailure(r *reader) *task.Failure {
	f := new(task.Failure)
	r.eachField(func(num int) bool {
		switch num {
		case fClass:
			f.Class = task.Class(r.text())
		case fType:
			f.Type = r.text()
		case fMessage:
			f.Message = r.text()
		case fTraceback:
			f.Traceback = r.text()
		case fFailureWorker:
			f.Worker = r.name()
		case fPickle:
			f.Pickle = append([]byte(nil), r.bytes()...)
		case fForeignPickle:
			f.ForeignPickle = append([]byte(nil), r.bytes()...)
		default:
			return false
		}
		return true
	})
	return f
}

func readInts(r *reader) []int {
	n := r.arrayLen()
	v := make([]int, 0, n)
	for ; n > 0 && r.err == nil; n-- {
		v = append(v, r.count())
	}
	return v
}
