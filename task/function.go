package task

import (
	"strings"
	"time"
)

// Runtime keys. A runtime key names what an attempt needs; a worker lists the
// keys that it serves. Go handlers have one key each, see [GoRuntime].
const (
	RuntimePython = "python"
	goPrefix      = "go/"
)

// GoRuntime returns the runtime key of the Go handler of that name.
func GoRuntime(handler string) string { return goPrefix + handler }

// GoHandler returns the handler's name when key is the runtime key of a Go handler.
func GoHandler(key string) (name string, ok bool) { return strings.CutPrefix(key, goPrefix) }

// Form says how the bytes of a function are to be read by its runtime.
type Form string

// Forms of a function.
const (
	// FormPickle is a pickled Python callable (dill, cloudpickle or pickle).
	FormPickle Form = "pickle"
	// FormSource is UTF-8 Python source text that defines a callable of the function's name.
	FormSource Form = "source"
	// FormNone has no bytes: a Go handler lives in the worker's binary.
	FormNone Form = "none"
)

// Encoding says how arguments or a result are encoded. The server and the
// dispatcher treat both as opaque bytes.
type Encoding string

// Encodings of arguments and results.
const (
	EncodingPickle Encoding = "pickle"
	EncodingJSON   Encoding = "json"
)

// Function is what a registration recorded. Functions never change.
type Function struct {
	ID   ID
	Name string
	// Queue is where the function's tasks wait. Default [DefaultQueue].
	Queue string
	// Runtime is the runtime key, for example "python" or "go/resize".
	Runtime string
	Form    Form
	// Python is the version whose bytecode the payload holds, for example "3.12"; empty
	// when any Python can run it.
	Python string
	// Hash is the SHA-256 of the payload: payloads are stored once by it and
	// runners cache what they loaded by it.
	Hash      [32]byte
	Size      int
	CreatedAt time.Time
	// Transient registrations are one for all who register the same, and go when no task has
	// named them for a retention.
	Transient bool
	// CreatedBy is the id of the token that registered it; empty where no tokens are asked
	// for, and for the handlers of workers.
	CreatedBy string
}
