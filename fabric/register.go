package fabric

import (
	"bytes"
	"context"
	"crypto/sha256"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/internal/pickle"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// MaxRequestID bounds an idempotency key, in bytes.
const MaxRequestID = 128

// Registration asks for a function to be recorded.
type Registration struct {
	// Name is what the function is called: 1 to [task.MaxNameLength] characters, no NUL among
	// them. AnyName lets it be empty or have one, as the routes at the root of REST promise.
	Name    string
	AnyName bool
	// Queue is where its tasks wait. Default [task.DefaultQueue].
	Queue string
	// Runtime is the runtime key. Default, and the only one at present, [task.RuntimePython]:
	// workers register their own Go handlers, see [Fabric.RegisterHandler].
	Runtime string
	// Pickle is a pickled callable, Source the text of a program that defines one. Exactly one
	// is given, except that with AnyName an empty Pickle is refused as no pickle.
	Pickle []byte
	Source string
	// Python is the version whose bytecode Pickle holds, for example "3.12"; empty when any
	// Python can run it.
	Python string
	// RequestID makes the registration idempotent; at most 128 bytes.
	RequestID string
	// Transient registrations are one for all who register the same, and go when no task has
	// named them for a retention.
	Transient bool
}

// form checks what a registration has of runtime and bytes, and returns the bytes.
func (r *Registration) form() (task.Form, []byte, error) {
	fallback(&r.Queue, task.DefaultQueue)
	fallback(&r.Runtime, task.RuntimePython)
	if r.Name == "" && !r.AnyName {
		return "", nil, invalid("name", "name is empty: want 1 to %d characters", task.MaxNameLength)
	}
	if err := checkQueue(r.Queue); err != nil {
		return "", nil, err
	}
	if _, isGo := task.GoHandler(r.Runtime); isGo {
		return "", nil, invalid("runtime",
			"runtime %.64q: only a worker registers a Go handler, with worker.Handle; start a worker that has it", r.Runtime)
	}
	if r.Runtime != task.RuntimePython {
		return "", nil, invalid("runtime", "runtime %.64q does not exist: want %q, which is also the default; workers register their own Go handlers as \"go/NAME\"",
			r.Runtime, task.RuntimePython)
	}
	if err := checkPython(r.Python, r.Source != ""); err != nil {
		return "", nil, err
	}
	var form task.Form
	var payload []byte
	switch {
	case len(r.Pickle) > 0 && r.Source != "":
		return "", nil, invalid("source", "both payload and source are set: want exactly one of them")
	case r.Source != "":
		form, payload = task.FormSource, []byte(r.Source)
	case len(r.Pickle) > 0 || r.AnyName:
		form, payload = task.FormPickle, r.Pickle
	default:
		return "", nil, invalid("payload", "neither payload nor source is set: want exactly one of them")
	}
	// The root routes promise that any text is a name; a source whose name holds one could never run.
	if strings.ContainsRune(r.Name, 0) && !r.AnyName {
		return "", nil, invalid("name", "name %.64q has a NUL character, which no function's name has", r.Name)
	}
	return form, payload, nil
}

// Register checks a registration and records the function. A repeat by its request id, and a
// transient function that is registered already, answer the one recorded first.
func (f *Fabric) Register(ctx context.Context, c Caller, r Registration) (task.Function, error) {
	form, payload, err := r.form()
	if err != nil {
		return task.Function{}, err
	}
	if n := utf8.RuneCountInString(r.Name); n > task.MaxNameLength {
		return task.Function{}, invalid("name", "name has %d characters: want at most %d", n, task.MaxNameLength)
	}
	if form == task.FormSource {
		if i := bytes.IndexByte(payload, 0); i >= 0 {
			return task.Function{}, invalid("source", "source has a NUL character at byte %d, and Python compiles none: is it UTF-16, or a binary file?", i)
		}
	}
	if err := checkRequestID(r.RequestID); err != nil {
		return task.Function{}, err
	}
	if err := f.CheckSize("payload", len(payload)); err != nil {
		return task.Function{}, err
	}
	if form == task.FormPickle {
		if err := CheckPickle(payload); err != nil {
			return task.Function{}, err
		}
	}
	fn := task.Function{
		ID: f.cfg.NewID(), Name: r.Name, Queue: r.Queue, Runtime: r.Runtime, Form: form, Python: r.Python,
		Hash: sha256.Sum256(payload), Size: len(payload), CreatedAt: f.cfg.Now(),
		Transient: r.Transient, CreatedBy: c.Owner,
	}
	var key store.Key
	if r.RequestID != "" && !r.Transient {
		key.ID = c.key(r.RequestID)
		d := newDigest("register")
		d.text(r.Name).text(r.Queue).text(r.Runtime).text(string(form)).bytes(fn.Hash[:])
		if r.Python != "" {
			d.text(r.Python)
		}
		key.Digest = d.sum()
	}
	recorded, err := f.recordFunction(ctx, fn, payload, key)
	failpoint.Hit(failpoint.MidRegister)
	return recorded, err
}

// CheckPickle says why payload is not one whole pickle, or nil. Nothing is ever unpickled here.
func CheckPickle(payload []byte) error {
	if err := pickle.Check(payload); err != nil {
		e := task.Errorf(task.CodeInvalidPayload, "", "payload: %w", err)
		e.Field = "payload"
		return e
	}
	return nil
}

// pythonVersion is a minor version as people write it.
var pythonVersion = regexp.MustCompile(`^[1-9][0-9]?\.[0-9]{1,3}$`)

func checkPython(version string, source bool) error {
	switch {
	case version == "":
		return nil
	case source:
		return invalid("python", "python is set for source, which any Python compiles: set it for payloads only")
	case !pythonVersion.MatchString(version):
		return invalid("python", "python is %.40q: want major and minor version, for example \"3.12\"", version)
	}
	return nil
}

// CheckSize refuses a payload of so many bytes when it is over Config.MaxPayload; what names its
// field.
func (f *Fabric) CheckSize(what string, size int) error {
	if size <= f.cfg.MaxPayload {
		return nil
	}
	e := task.Errorf(task.CodeTooLarge, "", "%s has %d bytes; the limit is %d (--max-payload)", what, size, f.cfg.MaxPayload)
	e.Field = what
	return e
}

func checkRequestID(id string) error {
	if len(id) > MaxRequestID {
		return invalid("request_id", "request_id has %d bytes: want at most %d", len(id), MaxRequestID)
	}
	if !store.ClientKey(id) {
		return invalid("request_id", "request_id %.40q begins with a zero byte: such ids are kept for Treadle itself, use another one", id)
	}
	return nil
}

func checkQueue(name string) error {
	if len(name) > task.MaxQueueLength {
		return invalid("queue", "queue name has %d bytes: want at most %d", len(name), task.MaxQueueLength)
	}
	for _, r := range name {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return invalid("queue", "queue name %q has a space or a control character", name)
		}
	}
	return nil
}
