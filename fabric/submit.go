package fabric

import (
	"context"
	"time"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/internal/jsonscan"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Submission asks for one execution.
type Submission struct {
	// Function is the id or the name of a function; text that parses as a UUID is an id.
	Function string
	// Args and Kwargs are the arguments as JSON, an array and an object; empty ones stand for
	// no arguments. Pickle is the other form, one pickle of both, where it is not empty. Only
	// one form may be given.
	Args, Kwargs []byte
	Pickle       []byte
	// Options default to none. To ask for nothing in particular is another content than to have
	// none, as RequestID sees it.
	Options Optional[Options]
	// RequestID makes the submission idempotent: again with the same content it is the task
	// that it made the first time. At most 128 bytes; empty asks for nothing.
	RequestID string
}

// Batch is submissions of one caller that are recorded by one call of the store. Within it a
// name of a function means one function. One goroutine at a time may use it.
type Batch struct {
	f         *Fabric
	caller    Caller
	functions map[string]task.Function
	items     []store.Submission
}

// NewBatch begins a batch of about n submissions.
func (f *Fabric) NewBatch(c Caller, n int) *Batch {
	return &Batch{f: f, caller: c, functions: make(map[string]task.Function), items: make([]store.Submission, 0, n)}
}

// Add makes a task of a submission and puts it at the end of the batch. After an error the
// batch is as it was: the submission was at fault, or the store did not answer, which is told by
// [task.CodeOf]. The bytes of the arguments are used until the batch was submitted, and are not
// changed.
func (b *Batch) Add(ctx context.Context, s *Submission) error {
	fn, ok := b.functions[s.Function]
	if !ok {
		var err error
		if fn, err = b.f.Function(ctx, s.Function); err != nil {
			return err
		}
		b.functions[s.Function] = fn
	}
	item, err := b.f.task(b.caller, fn, s)
	if err == nil {
		b.items = append(b.items, item)
	}
	return err
}

// Len is how many submissions were added.
func (b *Batch) Len() int { return len(b.items) }

// task makes the record of one execution of fn, and what its idempotency is kept by.
func (f *Fabric) task(c Caller, fn task.Function, s *Submission) (store.Submission, error) {
	if err := checkRequestID(s.RequestID); err != nil {
		return store.Submission{}, err
	}
	t := &task.Task{
		ID: f.cfg.NewID(), Function: fn.ID, FunctionName: fn.Name, Queue: fn.Queue, Runtime: fn.Runtime, Form: fn.Form, Python: fn.Python, Hash: fn.Hash,
		CreatedBy: c.Owner, Spec: f.defaults(),
	}
	if err := s.Options.Value.apply(&t.Spec); err != nil {
		return store.Submission{}, err
	}
	args, encoding, err := f.arguments(s)
	if err != nil {
		return store.Submission{}, err
	}
	t.Args, t.Returns, t.ArgsSize = encoding, encoding, len(args)
	item := store.Submission{Task: t, Args: args, Key: store.Key{ID: s.RequestID}, Transient: fn.Transient}
	if item.Key.ID != "" {
		item.Key.Digest = s.digest(args, encoding)
	}
	c.adopt(&item)
	return item, nil
}

// digest hashes what the caller asked for: the function as it was named, not what the name
// means by now, so that a repeated request stays the same request.
func (s *Submission) digest(args []byte, encoding task.Encoding) [32]byte {
	d := newDigest("execute").text(canonicalFunction(s.Function)).text(string(encoding)).bytes(args)
	s.Options.Value.digest(d, s.Options.Given)
	return d.sum()
}

func canonicalFunction(text string) string {
	if id, err := task.ParseID(text); err == nil {
		return id.String()
	}
	return text
}

// arguments returns the bytes to store and their encoding.
func (f *Fabric) arguments(s *Submission) ([]byte, task.Encoding, error) {
	if len(s.Pickle) > 0 {
		if len(s.Args) > 0 || len(s.Kwargs) > 0 {
			return nil, "", invalid("payload", "both payload and JSON arguments are set: want one of the two forms")
		}
		if err := f.CheckSize("payload", len(s.Pickle)); err != nil {
			return nil, "", err
		}
		return s.Pickle, task.EncodingPickle, CheckPickle(s.Pickle)
	}
	b, err := f.jsonArguments(s.Args, s.Kwargs)
	return b, task.EncodingJSON, err
}

// jsonArguments joins the two texts into the one document that runners read. The
// texts stay as they are: a number re-encoded might be another number.
func (f *Fabric) jsonArguments(args, kwargs []byte) ([]byte, error) {
	if len(args) == 0 {
		args = []byte("[]")
	}
	if len(kwargs) == 0 {
		kwargs = []byte("{}")
	}
	const frame = `{"args":,"kwargs":}`
	if err := f.CheckSize("args", len(args)+len(kwargs)+len(frame)); err != nil {
		return nil, err
	}
	if err := checkJSON("args", args, jsonscan.Array); err != nil {
		return nil, err
	}
	if err := checkJSON("kwargs", kwargs, jsonscan.Object); err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(args)+len(kwargs)+len(frame))
	b = append(append(b, `{"args":`...), args...)
	b = append(append(b, `,"kwargs":`...), kwargs...)
	return append(b, '}'), nil
}

func checkJSON(field string, text []byte, want jsonscan.Kind) error {
	kind, err := jsonscan.Check(text)
	if err != nil {
		return invalid(field, "%s is not JSON: %w", field, err)
	}
	if kind != want {
		return invalid(field, "%s is %s: want %s, for example %s", field, kind, want, map[jsonscan.Kind]string{
			jsonscan.Array: "[21]", jsonscan.Object: `{"x": 21}`,
		}[want])
	}
	return nil
}

// Submit records the batch, and answers each of its submissions in order. It is called once.
// What is over a quota is answered with [*OverQuota], unless it is a repeat.
func (b *Batch) Submit(ctx context.Context) ([]store.Submitted, error) {
	if len(b.items) == 0 {
		return nil, nil
	}
	return b.f.submit(ctx, b.caller, b.f.cfg.Now(), b.items)
}

func (f *Fabric) submit(ctx context.Context, c Caller, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	answers, err := f.recordTasks(ctx, c.Owner, now, items)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.AfterSubmit)
	accepted := int64(0)
	for _, a := range answers {
		if a.Err == nil {
			accepted++
		}
	}
	f.submitted.Add(accepted)
	return answers, nil
}

// one makes a task of a submission that is recorded by itself.
func (f *Fabric) one(ctx context.Context, c Caller, s *Submission) (store.Submission, error) {
	fn, err := f.Function(ctx, s.Function)
	if err != nil {
		return store.Submission{}, err
	}
	return f.task(c, fn, s)
}

// submitOne records a task by itself.
func (f *Fabric) submitOne(ctx context.Context, c Caller, now time.Time, item store.Submission) (store.Submitted, error) {
	answers, err := f.submit(ctx, c, now, []store.Submission{item})
	if err != nil {
		return store.Submitted{}, err
	}
	return answers[0], answers[0].Err
}

// Submit records one task and answers its record; of a repeat, that of the first time.
func (f *Fabric) Submit(ctx context.Context, c Caller, s *Submission) (*task.Task, error) {
	item, err := f.one(ctx, c, s)
	if err != nil {
		return nil, err
	}
	now := f.cfg.Now()
	answer, err := f.submitOne(ctx, c, now, item)
	if err != nil {
		return nil, err
	}
	if answer.Duplicate {
		return f.cfg.Store.Task(ctx, answer.ID)
	}
	record := item.Task.Clone()
	record.Status, record.CreatedAt = task.Queued, now
	return record, nil
}
