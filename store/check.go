package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// MaxKey bounds an idempotency key, in bytes.
const MaxKey = 128

// internalKey begins the keys that Treadle makes for itself. No client may name one: the
// servers refuse request ids that begin like this, see [ClientKey].
const internalKey = "\x00"

// InternalKey is the id of a [Key] of Treadle's own, for one name of a kind. It has the same
// length however long the name is.
func InternalKey(kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return internalKey + kind + "/" + hex.EncodeToString(sum[:])
}

// ClientKey says whether a client may use a request id: those that begin with a zero byte
// are kept for [InternalKey].
func ClientKey(id string) bool { return !strings.HasPrefix(id, internalKey) }

// Check refuses a submission that no store can record, with CodeInvalid.
func (it *Submission) Check() error {
	const op = "submit"
	switch t := it.Task; {
	case t == nil:
		return task.Errorf(task.CodeInvalid, op, "a submission has no task")
	case t.ID.IsZero():
		return task.Errorf(task.CodeInvalid, op, "a task has no id")
	case t.Status != "":
		return task.Errorf(task.CodeInvalid, op, "task %s is %s already", t.ID, t.Status)
	case t.Priority < task.MinPriority || t.Priority > task.MaxPriority:
		return task.Errorf(task.CodeInvalid, op, "priority %d of task %s: want %d to %d", t.Priority, t.ID, task.MinPriority, task.MaxPriority)
	case t.ArgsSize != len(it.Args):
		return task.Errorf(task.CodeInvalid, op, "task %s says that its arguments have %d bytes, they have %d", t.ID, t.ArgsSize, len(it.Args))
	}
	return it.Key.check(op)
}

// CheckFunction refuses a registration that no store can record: CodeInvalid, or
// CodeInvalidPayload where the bytes are not those that f names by their hash.
func CheckFunction(f *task.Function, payload []byte, key Key) error {
	const op = "put function"
	switch {
	case f.ID.IsZero():
		return task.Errorf(task.CodeInvalid, op, "a function has no id")
	case f.Transient && key.ID != "":
		return task.Errorf(task.CodeInvalid, op, "a transient function takes no key")
	case f.Size != len(payload):
		return task.Errorf(task.CodeInvalid, op, "the function says that it has %d bytes, it has %d", f.Size, len(payload))
	case (len(payload) > 0 || f.Hash != [32]byte{}) && sha256.Sum256(payload) != f.Hash:
		return task.Errorf(task.CodeInvalidPayload, op, "the payload of function %s does not have the hash %x", f.ID, f.Hash)
	}
	return key.check(op)
}

func (k Key) check(op string) error {
	if len(k.ID) > MaxKey {
		return task.Errorf(task.CodeInvalid, op, "the request id has %d bytes, the limit is %d", len(k.ID), MaxKey)
	}
	return nil
}

// Twin is the same for transient functions that are one: of the same owner, with the same
// name, options and bytes.
func Twin(f *task.Function) [32]byte {
	h := sha256.New()
	for _, text := range []string{f.CreatedBy, f.Name, f.Queue, f.Runtime, string(f.Form), f.Python, string(f.Hash[:])} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(text)))
		h.Write(n[:])
		h.Write([]byte(text))
	}
	return [32]byte(h.Sum(nil))
}

// UseGranularity is how exactly stores keep when a transient function was used last.
func UseGranularity(retention time.Duration) time.Duration { return min(time.Hour, retention/4) }

// Named is an outcome that a store found, of a worker that was not heard of, in words for people: they
// know machines and not ids. It is written into attempts that were lost alone. A worker that the
// fleet does not know any more leaves the outcome as it is.
func (p *Presence) Named(out task.Outcome) task.Outcome {
	called := p.Name
	switch {
	case called == "":
		called = p.Host
	case p.Host != "" && p.Host != p.Name:
		called += " on " + p.Host
	}
	if out.End != task.EndLost || out.Failure == nil || called == "" {
		return out
	}
	f := *out.Failure
	f.Message += " (" + called + ")"
	out.Failure = &f
	return out
}

// Matches reports whether the query selects a record; Before and Limit are the caller's.
// The worker of a task is the one that has it, else the one of its last attempt.
func (q *ListQuery) Matches(t *task.Task) bool {
	switch {
	case q.Status != "" && t.Status != q.Status,
		!q.Function.IsZero() && t.Function != q.Function,
		!q.Parent.IsZero() && t.Parent != q.Parent,
		!q.CreatedAfter.IsZero() && !t.CreatedAt.After(q.CreatedAfter),
		!q.CreatedBefore.IsZero() && !t.CreatedAt.Before(q.CreatedBefore):
		return false
	case q.Worker == "":
		return true
	case t.Lease != nil:
		return t.Lease.Worker == q.Worker
	case len(t.Attempts) > 0:
		return t.Attempts[len(t.Attempts)-1].Worker == q.Worker
	}
	return false
}
