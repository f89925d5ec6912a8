package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/server/pickle"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// maxRequestID bounds an idempotency key, in bytes.
const maxRequestID = 128

// registration is a registration asked for, checked except for its payload.
type registration struct {
	name, queue, runtime string
	// python is the version whose bytecode the payload holds, or empty.
	python    string
	form      task.Form
	payload   []byte
	requestID string
	transient bool
}

// registerFunction checks a request of FabricService and records the function.
func (s *Server) registerFunction(ctx context.Context, req *treadlev1.RegisterFunctionRequest) (task.Function, error) {
	r := registration{
		name: req.GetName(), queue: req.GetQueue(), runtime: req.GetRuntime(), python: req.GetPython(), requestID: req.GetRequestId(),
		transient: req.GetTransient(),
	}
	fallback(&r.queue, task.DefaultQueue)
	fallback(&r.runtime, task.RuntimePython)
	if r.name == "" {
		return task.Function{}, invalid("name", "name is empty: want 1 to %d characters", task.MaxNameLength)
	}
	if err := checkQueue(r.queue); err != nil {
		return task.Function{}, err
	}
	if _, isGo := task.GoHandler(r.runtime); isGo {
		return task.Function{}, invalid("runtime",
			"runtime %.64q: only a worker registers a Go handler, with worker.Handle; start a worker that has it", r.runtime)
	}
	if r.runtime != task.RuntimePython {
		return task.Function{}, invalid("runtime", "runtime %.64q does not exist: want %q, which is also the default; workers register their own Go handlers as \"go/NAME\"",
			r.runtime, task.RuntimePython)
	}
	if err := checkPython(r.python, req.GetSource() != ""); err != nil {
		return task.Function{}, err
	}
	switch {
	case len(req.GetPayload()) > 0 && req.GetSource() != "":
		return task.Function{}, invalid("source", "both payload and source are set: want exactly one of them")
	case req.GetSource() != "":
		r.form, r.payload = task.FormSource, []byte(req.GetSource())
	case len(req.GetPayload()) > 0:
		r.form, r.payload = task.FormPickle, req.GetPayload()
	default:
		return task.Function{}, invalid("payload", "neither payload nor source is set: want exactly one of them")
	}
	// The root routes promise that any text is a name; a source whose name holds one could never run.
	if strings.ContainsRune(r.name, 0) {
		return task.Function{}, invalid("name", "name %.64q has a NUL character, which no function's name has", r.name)
	}
	return s.register(ctx, r)
}

// register checks what both APIs have in common and records the function.
func (s *Server) register(ctx context.Context, r registration) (task.Function, error) {
	if n := utf8.RuneCountInString(r.name); n > task.MaxNameLength {
		return task.Function{}, invalid("name", "name has %d characters: want at most %d", n, task.MaxNameLength)
	}
	if r.form == task.FormSource {
		if i := bytes.IndexByte(r.payload, 0); i >= 0 {
			return task.Function{}, invalid("source", "source has a NUL character at byte %d, and Python compiles none: is it UTF-16, or a binary file?", i)
		}
	}
	if err := checkRequestID(r.requestID); err != nil {
		return task.Function{}, err
	}
	if err := s.checkSize("payload", len(r.payload)); err != nil {
		return task.Function{}, err
	}
	if r.form == task.FormPickle {
		if err := checkPickle(r.payload); err != nil {
			return task.Function{}, err
		}
	}
	f := task.Function{
		ID: s.cfg.NewID(), Name: r.name, Queue: r.queue, Runtime: r.runtime, Form: r.form, Python: r.python,
		Hash: sha256.Sum256(r.payload), Size: len(r.payload), CreatedAt: s.cfg.Now(),
		Transient: r.transient, CreatedBy: ownerOf(ctx),
	}
	var key store.Key
	if r.requestID != "" && !r.transient {
		key.ID = r.requestID
		d := newDigest("register")
		d.text(r.name).text(r.queue).text(r.runtime).text(string(r.form)).bytes(f.Hash[:])
		if r.python != "" {
			d.text(r.python)
		}
		key.Digest = d.sum()
	}
	if p, _ := auth.From(ctx); p.Role == auth.Task && key.ID != "" {
		key.ID = childKey(p, key.ID)
	}
	recorded, err := s.recordFunction(ctx, f, r.payload, key)
	failpoint.Hit(failpoint.MidRegister)
	return recorded, err
}

// checkPickle refuses what is not one whole pickle. Nothing is ever unpickled here.
func checkPickle(payload []byte) error {
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

func (s *Server) checkSize(what string, size int) error {
	if size <= s.cfg.MaxPayload {
		return nil
	}
	e := task.Errorf(task.CodeTooLarge, "", "%s has %d bytes; the limit is %d (--max-payload)", what, size, s.cfg.MaxPayload)
	e.Field = what
	return e
}

func checkRequestID(id string) error {
	if len(id) > maxRequestID {
		return invalid("request_id", "request_id has %d bytes: want at most %d", len(id), maxRequestID)
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

// lookup finds a function by id or name; text that parses as a UUID is an id.
func (s *Server) lookup(ctx context.Context, text string) (task.Function, error) {
	if text == "" {
		return task.Function{}, invalid("function", "function is empty: want the id or the name of a function")
	}
	if id, err := task.ParseID(text); err == nil {
		return s.functionByID(ctx, id)
	}
	if utf8.RuneCountInString(text) > task.MaxNameLength {
		return task.Function{}, task.Errorf(task.CodeNotFound, "", "no function has a name of more than %d characters", task.MaxNameLength)
	}
	f, err := s.cfg.Store.FunctionNamed(ctx, text)
	if task.CodeOf(err) == task.CodeNotFound {
		return f, task.Errorf(task.CodeNotFound, "", "no function is called %q: register it first", text)
	}
	return f, err
}

func (s *Server) functionByID(ctx context.Context, id task.ID) (task.Function, error) {
	if f, ok := s.functions.get(id); ok {
		return f, nil
	}
	asked := time.Now()
	f, err := s.cfg.Store.Function(ctx, id)
	if task.CodeOf(err) == task.CodeNotFound {
		return f, task.Errorf(task.CodeNotFound, "", "no function has the id %s: register it first", id)
	}
	if err == nil {
		s.functions.put(f, asked)
	}
	return f, err
}

// deleteFunction deletes a registration.
func (s *Server) deleteFunction(ctx context.Context, text string) error {
	id, err := task.ParseID(text)
	if err != nil {
		return task.Errorf(task.CodeNotFound, "", "no function has the id %.64q: functions are deleted by id, as a name may mean several", text)
	}
	err = s.cfg.Store.DeleteFunction(ctx, id)
	s.functions.drop(id)
	if task.CodeOf(err) == task.CodeNotFound {
		return task.Errorf(task.CodeNotFound, "", "no function has the id %s", id)
	}
	return err
}

// functionCache keeps functions by id for a moment: they never change, but other servers
// may delete them. Names change, so they are not kept.
type functionCache struct {
	mu   sync.RWMutex
	byID map[task.ID]cachedFunction
}

type cachedFunction struct {
	task.Function
	read time.Time
}

// Bounds of the cache; a record has a few hundred bytes.
const (
	maxCachedFunctions = 10_000
	// functionAge is how long a function that another server deleted may still be submitted
	// for here: one look-up in as much time costs nothing.
	functionAge = 5 * time.Second
)

func (c *functionCache) get(id task.ID) (task.Function, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	f, ok := c.byID[id]
	return f.Function, ok && time.Since(f.read) < functionAge
}

func (c *functionCache) put(f task.Function, read time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = make(map[task.ID]cachedFunction)
	}
	if _, ok := c.byID[f.ID]; !ok && len(c.byID) >= maxCachedFunctions {
		for id := range c.byID { // any one will do
			delete(c.byID, id)
			break
		}
	}
	c.byID[f.ID] = cachedFunction{f, read}
}

func (c *functionCache) drop(id task.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byID, id)
}

// digest hashes what a request asks for, so that the same request id with other
// content is noticed. Every part is preceded by its length.
type digest struct{ h hash.Hash }

func newDigest(what string) digest { return digest{sha256.New()}.text(what) }

func (d digest) bytes(b []byte) digest {
	d.number(uint64(len(b)))
	d.h.Write(b)
	return d
}

func (d digest) text(s string) digest { return d.bytes([]byte(s)) }

func (d digest) number(n uint64) digest {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	d.h.Write(b[:])
	return d
}

func (d digest) sum() (sum [32]byte) {
	d.h.Sum(sum[:0])
	return sum
}
