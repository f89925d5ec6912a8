package redisstore

import (
	"fmt"
	"strconv"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// A task is stored in three parts: the head, which the scripts read and write (place, epoch,
// the claim in force), what never changes (spec) and what its moves change (state). Reading
// puts them together again by the moves of package task: the stored state is that before
// the claim, the claim and its start are replayed.

// encodeSpec encodes what never changes of a task.
func encodeSpec(t *task.Task) []byte {
	w := newWriter(160 + len(t.FunctionName) + len(t.Queue) + len(t.Runtime))
	w.raw(t.Function[:])
	w.raw(t.Hash[:])
	w.text(t.FunctionName)
	w.text(t.Queue)
	w.text(t.Runtime)
	w.text(string(t.Form))
	w.int(int64(t.Priority))
	w.text(string(t.Args))
	w.text(string(t.Returns))
	w.int(int64(t.ArgsSize))
	w.int(int64(t.Timeout))
	w.time(t.Deadline)
	w.int(int64(t.MaxRetries))
	w.int(int64(t.FunctionRetries))
	w.int(t.MemoryLimit)
	w.time(t.CreatedAt)
	w.last(t.Python, t.CreatedBy, idText(t.Parent))
	return w.b
}

// idText is an id as a text of [writer.last]: its bytes, or nothing for none.
func idText(id task.ID) string {
	if id.IsZero() {
		return ""
	}
	return string(id[:])
}

func decodeSpec(b string, t *task.Task) (err error) {
	r := newReader(b)
	r.raw(t.Function[:])
	r.raw(t.Hash[:])
	t.FunctionName = r.text()
	t.Queue = r.text()
	t.Runtime = r.text()
	t.Form = task.Form(r.text())
	t.Priority = int(r.int())
	t.Args = task.Encoding(r.text())
	t.Returns = task.Encoding(r.text())
	t.ArgsSize = r.count()
	t.Timeout = time.Duration(r.int())
	t.Deadline = r.time()
	t.MaxRetries = r.count()
	t.FunctionRetries = r.count()
	t.MemoryLimit = r.int()
	t.CreatedAt = r.time()
	t.Python, t.CreatedBy = r.last(), r.last()
	if parent := r.last(); parent != "" && r.err == nil {
		if t.Parent, err = task.IDFromBytes([]byte(parent)); err != nil {
			r.fail(fmt.Errorf("the parent: %w", err))
		}
	}
	return r.err
}

// encodeState encodes what moves change of a task; nil for one that nothing happened to.
func encodeState(t *task.Task) []byte {
	if t.Status == task.Queued && t.AttemptCount == 0 && t.NotBefore.IsZero() && t.LastClaim.IsZero() {
		return nil
	}
	w := newWriter(192)
	w.text(string(t.Status))
	w.time(t.NotBefore)
	w.time(t.FinishedAt)
	w.int(int64(t.Losses))
	w.int(int64(t.Failures))
	w.int(int64(t.Lapses))
	w.raw(t.LastClaim[:])
	w.int(int64(t.AttemptCount))
	w.uint(uint64(len(t.Attempts)))
	for i := range t.Attempts {
		a := &t.Attempts[i]
		w.int(int64(a.Number))
		w.text(a.Worker)
		w.time(a.StartedAt)
		w.time(a.FinishedAt)
		w.text(string(a.End))
		w.text(a.Reason)
	}
	w.int(int64(t.ResultSize))
	w.text(string(t.ResultEncoding))
	w.text(t.ResultRepr)
	w.bool(t.Failure != nil)
	if f := t.Failure; f != nil {
		w.text(string(f.Class))
		w.text(f.Type)
		w.text(f.Message)
		w.text(f.Traceback)
		w.text(f.Worker)
		w.bytes(f.Pickle)
		w.bytes(f.ForeignPickle)
	}
	return w.b
}

func decodeState(b string, t *task.Task) error {
	if b == "" {
		t.Status = task.Queued
		return nil
	}
	r := newReader(b)
	t.Status = task.Status(r.text())
	t.NotBefore = r.time()
	t.FinishedAt = r.time()
	t.Losses = r.count()
	t.Failures = r.count()
	t.Lapses = r.count()
	r.raw(t.LastClaim[:])
	t.AttemptCount = r.count()
	n := r.uint()
	if n > task.MaxAttemptsKept {
		r.fail(fmt.Errorf("%d attempts", n))
	}
	for ; n > 0 && r.err == nil; n-- {
		t.Attempts = append(t.Attempts, task.Attempt{
			Number: r.count(), Worker: r.text(), StartedAt: r.time(), FinishedAt: r.time(), End: task.End(r.text()), Reason: r.text(),
		})
	}
	t.ResultSize = r.count()
	t.ResultEncoding = task.Encoding(r.text())
	t.ResultRepr = r.text()
	if r.bool() {
		t.Failure = &task.Failure{
			Class: task.Class(r.text()), Type: r.text(), Message: r.text(), Traceback: r.text(), Worker: r.text(),
			Pickle: r.bytes(), ForeignPickle: r.bytes(),
		}
	}
	switch t.Status {
	case task.Queued, task.Running, task.Completed, task.Failed, task.Cancelled:
	default:
		r.fail(fmt.Errorf("unknown status %q", t.Status))
	}
	return r.err
}

// record is a task as it was read, with its head: epoch, claim and start there name the
// state that it is in.
type record struct {
	*task.Task
	head head
}

// decodeRecord reads the values of recordFields; nil for a task that does not exist.
func decodeRecord(id task.ID, v []any) (*record, error) {
	if len(v) < len(recordFields) {
		return nil, fmt.Errorf("the record of task %s has %d fields", id, len(v))
	}
	packed, ok := v[0].(string)
	if !ok {
		return nil, nil
	}
	spec, _ := v[1].(string)
	state, _ := v[2].(string)
	rec, err := assemble(id, packed, spec, state)
	if err != nil {
		return nil, fmt.Errorf("the record of task %s is damaged: %w", id, err)
	}
	return rec, nil
}

func assemble(id task.ID, packed, spec, state string) (*record, error) {
	h, err := decodeHead(packed)
	if err != nil {
		return nil, err
	}
	t := &task.Task{ID: id}
	if err := decodeSpec(spec, t); err != nil {
		return nil, err
	}
	if err := decodeState(state, t); err != nil {
		return nil, err
	}
	t.Seq, t.Epoch = h.place&(1<<placeBits-1), h.epoch
	rec := &record{Task: t, head: h}
	if h.claim.IsZero() {
		return rec, nil
	}
	claimedAt, until := time.UnixMicro(h.claimedAt).UTC(), time.UnixMicro(h.until).UTC()
	// The server's clock may have been set back since the delay was chosen.
	at := claimedAt
	if t.NotBefore.After(at) {
		at = t.NotBefore
	}
	t.Epoch--
	tok, err := t.Claim(at, task.Lease{Claim: h.claim, Session: h.session, Worker: h.worker, Local: h.localPool, Until: until})
	if err != nil {
		return nil, err
	}
	t.Lease.ClaimedAt = claimedAt
	if h.startedAt != 0 {
		startedAt := time.UnixMicro(h.startedAt).UTC()
		t.Renew(startedAt, tok, until, startedAt)
	}
	return rec, nil
}

// numbers reads numeric fields; the first error sticks.
type numbers struct{ err error }

func (p *numbers) int(s string) int64 {
	if s == "" {
		return 0
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil && p.err == nil {
		p.err = err
	}
	return v
}

func (p *numbers) time(s string) time.Time { return time.UnixMicro(p.int(s)).UTC() }

// micros is a time as the scripts know it. Fractions are rounded up: what is due at that
// time is never due earlier.
func micros(t time.Time) int64 {
	us := t.UnixMicro()
	if t.Nanosecond()%1000 != 0 {
		us++
	}
	return us
}

// encodeFunction encodes a registration; its id is the key of the hash that it is in, key
// its idempotency key.
func encodeFunction(f *task.Function, key string) []byte {
	w := newWriter(128 + len(f.Name))
	w.text(f.Name)
	w.text(f.Queue)
	w.text(f.Runtime)
	w.text(string(f.Form))
	w.raw(f.Hash[:])
	w.int(int64(f.Size))
	w.time(f.CreatedAt)
	transient := ""
	if f.Transient {
		transient = "t"
	}
	w.last(f.Python, f.CreatedBy, transient, key)
	return w.b
}

func decodeFunction(id task.ID, b string) (f task.Function, key string, err error) {
	r := newReader(b)
	f = task.Function{ID: id, Name: r.text(), Queue: r.text(), Runtime: r.text(), Form: task.Form(r.text())}
	r.raw(f.Hash[:])
	f.Size = r.count()
	f.CreatedAt = r.time()
	f.Python, f.CreatedBy = r.last(), r.last()
	f.Transient = r.last() == "t"
	key = r.last()
	if r.err != nil {
		return task.Function{}, "", fmt.Errorf("the record of function %s is damaged: %w", id, r.err)
	}
	return f, key, nil
}
