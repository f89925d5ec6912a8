package linkpb

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

func eachErr[A, B any](in []A, f func(A) (B, error)) ([]B, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		b, err := f(v)
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

// batches cuts items so that the bytes of each batch stay near batchBytes and their number
// within batchItems. size may be nil for items of a few dozen bytes.
func batches[T any](items []T, size func(T) int) [][]T {
	var out [][]T
	start, sum := 0, 0
	for i, it := range items {
		n := 0
		if size != nil {
			n = size(it)
		}
		if i > start && (sum+n > batchBytes || i-start == batchItems) {
			out = append(out, items[start:i])
			start, sum = i, 0
		}
		sum += n
	}
	return append(out, items[start:])
}

func tokenOut(t task.Token) *treadlev1.Token {
	return &treadlev1.Token{TaskId: t.Task[:], Epoch: t.Epoch, ClaimId: t.Claim[:], Attempt: int32(t.Attempt)}
}

func tokenIn(t *treadlev1.Token) (task.Token, error) {
	id, err := task.IDFromBytes(t.GetTaskId())
	if err != nil {
		return task.Token{}, fmt.Errorf("token: task: %w", err)
	}
	claim, err := task.IDFromBytes(t.GetClaimId())
	if err != nil {
		return task.Token{}, fmt.Errorf("token: claim: %w", err)
	}
	return task.Token{Task: id, Epoch: t.GetEpoch(), Claim: claim, Attempt: int(t.GetAttempt())}, nil
}

func tokensOut(ts []task.Token) []*treadlev1.Token         { return each(ts, tokenOut) }
func tokensIn(ts []*treadlev1.Token) ([]task.Token, error) { return eachErr(ts, tokenIn) }

func durationOut(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// Two machines' clocks differ, so a start travels as an age.

func holdingOut(h link.Holding) *treadlev1.Holding {
	out := &treadlev1.Holding{Token: tokenOut(h.Token)}
	if !h.StartedAt.IsZero() {
		out.StartedAgo = durationpb.New(max(time.Since(h.StartedAt), 0))
	}
	return out
}

func holdingIn(h *treadlev1.Holding) (link.Holding, error) {
	tok, err := tokenIn(h.GetToken())
	if err != nil {
		return link.Holding{}, err
	}
	out := link.Holding{Token: tok}
	if h.GetStartedAgo() != nil {
		out.StartedAt = time.Now().Add(-h.GetStartedAgo().AsDuration())
	}
	return out, nil
}

func (c *chunker) offerOut(o link.Offer) *treadlev1.Offer {
	out := &treadlev1.Offer{
		Token: tokenOut(o.Token), FunctionId: o.Function[:], FunctionName: o.FunctionName, Runtime: o.Runtime,
		Form: string(o.Form), Hash: o.Hash[:], ArgsEncoding: string(o.ArgsEncoding), Returns: string(o.Returns),
		Args: c.value(o.Args), Python: o.Python, RetriesLeft: int32(min(o.RetriesLeft, task.MaxRetriesLimit)),
	}
	specOut(out, &o.Spec)
	if !o.Parent.IsZero() {
		out.ParentId = o.Parent[:]
	}
	return out
}

// specOut writes what workers see of the options of a task into an offer, see
// [task.Spec.ForWorker], and specIn reads it.
func specOut(out *treadlev1.Offer, s *task.Spec) {
	out.Timeout, out.MemoryLimit, out.MaxRetries = durationOut(s.Timeout), s.MemoryLimit, int32(min(s.MaxRetries, task.MaxRetriesLimit))
	if !s.Deadline.IsZero() {
		out.Deadline = timestamppb.New(s.Deadline)
	}
}

func specIn(o *treadlev1.Offer) task.Spec {
	s := task.Spec{
		Timeout: o.GetTimeout().AsDuration(), MemoryLimit: o.GetMemoryLimit(), MaxRetries: int(o.GetMaxRetries()),
	}
	if o.GetDeadline() != nil {
		s.Deadline = o.GetDeadline().AsTime()
	}
	return s
}

func (a *assembler) offerIn(o *treadlev1.Offer) (link.Offer, error) {
	tok, err := tokenIn(o.GetToken())
	if err != nil {
		return link.Offer{}, err
	}
	fn, err := task.IDFromBytes(o.GetFunctionId())
	if err != nil {
		return link.Offer{}, fmt.Errorf("offer: function: %w", err)
	}
	hash, err := hashIn(o.GetHash())
	if err != nil {
		return link.Offer{}, err
	}
	args, err := a.value(o.GetArgs())
	if err != nil {
		return link.Offer{}, fmt.Errorf("offer: arguments: %w", err)
	}
	out := link.Offer{
		Token: tok, Function: fn, FunctionName: o.GetFunctionName(), Runtime: o.GetRuntime(), Form: task.Form(o.GetForm()),
		Hash: hash, ArgsEncoding: task.Encoding(o.GetArgsEncoding()), Returns: task.Encoding(o.GetReturns()), Args: args,
		Spec: specIn(o), Python: o.GetPython(), RetriesLeft: int(o.GetRetriesLeft()),
	}
	if len(o.GetParentId()) > 0 {
		if out.Parent, err = task.IDFromBytes(o.GetParentId()); err != nil {
			return link.Offer{}, fmt.Errorf("offer: parent: %w", err)
		}
	}
	return out, nil
}

func hashIn(b []byte) (h [32]byte, err error) {
	if len(b) != len(h) {
		return h, fmt.Errorf("a function's hash has %d bytes, want %d", len(b), len(h))
	}
	copy(h[:], b)
	return h, nil
}

func (c *chunker) reportOut(r link.Report) *treadlev1.Report {
	out := &treadlev1.Report{
		Token: tokenOut(r.Token), End: string(r.Outcome.End), Encoding: string(r.Outcome.Encoding), Repr: r.Outcome.Repr,
		RunTime: durationOut(r.Outcome.RunTime), Log: r.Log,
	}
	if r.Outcome.End == task.EndSucceeded {
		out.Result = c.value(r.Outcome.Result)
	}
	if f := r.Outcome.Failure; f != nil {
		out.Failure = &treadlev1.Failure{
			ExceptionType: f.Type, Message: f.Message, Traceback: f.Traceback,
			ExceptionPickle: f.Pickle, ForeignPickle: f.ForeignPickle,
			NoRetry: r.Outcome.NoRetry, RetryAfter: durationOut(r.Outcome.RetryAfter),
		}
	}
	return out
}

// reportSize is what a report takes in its message, in bytes: a large result is not in it.
func reportSize(r link.Report) int {
	n := min(len(r.Outcome.Result), chunkSize) + len(r.Outcome.Repr) + len(r.Log)
	if f := r.Outcome.Failure; f != nil {
		n += len(f.Type) + len(f.Message) + len(f.Traceback) + len(f.Pickle) + len(f.ForeignPickle)
	}
	return n
}

// reasonOut keeps a reason within what the peer takes.
func reasonOut(s string) string { return task.ClipText(s, 2<<10) }

// ends are the words that a worker may report.
var ends = map[string]task.End{
	string(task.EndSucceeded): task.EndSucceeded, string(task.EndRaised): task.EndRaised, string(task.EndLost): task.EndLost,
	string(task.EndReturned): task.EndReturned, string(task.EndTimedOut): task.EndTimedOut,
	string(task.EndExhausted): task.EndExhausted, string(task.EndUnreadable): task.EndUnreadable,
	string(task.EndCancelled): task.EndCancelled,
}

func (a *assembler) reportIn(r *treadlev1.Report) (link.Report, error) {
	tok, err := tokenIn(r.GetToken())
	if err != nil {
		return link.Report{}, err
	}
	end, ok := ends[r.GetEnd()]
	if !ok {
		return link.Report{}, fmt.Errorf("report: %q is not an end that a worker may report", task.ClipText(r.GetEnd(), 64))
	}
	result, err := a.value(r.GetResult())
	var large errTooLarge
	if errors.As(err, &large) {
		// It ends the task, as no other attempt would do better, and nobody's session.
		out := task.Fail(task.EndExhausted, fmt.Sprintf("the result has %d bytes, the limit is %d (--max-payload)", large.size, large.limit))
		out.RunTime = r.GetRunTime().AsDuration()
		return link.Report{Token: tok, Log: r.GetLog(), Outcome: out}, nil
	}
	if err != nil {
		return link.Report{}, fmt.Errorf("report: result: %w", err)
	}
	out := link.Report{Token: tok, Log: r.GetLog(), Outcome: task.Outcome{
		End: end, Result: result, Encoding: task.Encoding(r.GetEncoding()), Repr: r.GetRepr(), RunTime: r.GetRunTime().AsDuration(),
	}}
	if f := r.GetFailure(); f != nil {
		out.Outcome.Failure = &task.Failure{
			Class: task.ClassOf(end), Type: f.GetExceptionType(), Message: f.GetMessage(), Traceback: f.GetTraceback(),
			Pickle: f.GetExceptionPickle(), ForeignPickle: f.GetForeignPickle(),
		}
		out.Outcome.NoRetry, out.Outcome.RetryAfter = f.GetNoRetry(), f.GetRetryAfter().AsDuration()
	}
	return out, nil
}
