package task

import (
	"strings"
	"time"
)

// End is what an attempt, or a claim that was never started, ended in.
type End string

// Ends. The comment of each says what becomes of the task; see [Task.Settle].
const (
	EndNone End = ""
	// EndSucceeded completes the task.
	EndSucceeded End = "succeeded"
	// EndRaised: the function raised. Spends function_retries.
	EndRaised End = "raised"
	// EndLost: the session or the runner was lost while the attempt ran. Spends max_retries.
	EndLost End = "lost"
	// EndLapsed: an offer whose worker never said that it started. Uncounted up to
	// [MaxLapses] in a row.
	EndLapsed End = "lapsed"
	// EndReturned: handed back (drain, recall, denied on return). Uncounted; of started
	// attempts up to [MaxReturns].
	EndReturned End = "returned"
	// EndTimedOut: the run time limit passed. Fails the task.
	EndTimedOut End = "timed_out"
	// EndExhausted: memory limit, or result too large. Fails the task.
	EndExhausted End = "exhausted"
	// EndUnreadable: payload unreadable, object not callable, result not
	// serializable. Fails the task.
	EndUnreadable End = "unreadable"
	// EndCancelled: stopped because a client asked.
	EndCancelled End = "cancelled"
)

// Class is the failure class that users see as error_type.
type Class string

// Failure classes.
const (
	ClassFunction      Class = "FunctionExecutionFailure"
	ClassWorker        Class = "WorkerFailureError"
	ClassDeadline      Class = "DeadlineExceededError"
	ClassResource      Class = "ResourceLimitExceeded"
	ClassSerialization Class = "SerializationError"
	ClassCancelled     Class = "Cancelled"
)

// Failure says why a task failed, for people and for programs.
type Failure struct {
	Class Class
	// Type is the exception's class as Python or Go names it, for example
	// "ValueError"; empty where no exception was raised. At most [MaxTypeText] bytes.
	Type string
	// Message is the exception's text, or the reason. At most [MaxErrorText] bytes.
	Message string
	// Traceback is the full text as the runtime prints it. At most [MaxErrorText] bytes.
	Traceback string
	// Worker is the last worker that had the task.
	Worker string
	// Pickle is the pickled exception object, when its pickle names only
	// standard-library classes and reloads; otherwise empty.
	Pickle []byte
	// ForeignPickle is the pickled exception when it names classes of other
	// modules: for clients that trust and have them. At most [MaxErrorText] bytes.
	ForeignPickle []byte
}

// Outcome is what a worker, or a dispatcher on its behalf, reports of an attempt.
type Outcome struct {
	End End
	// Result is the encoded value, only with EndSucceeded. It may be nil for an
	// empty value.
	Result   []byte
	Encoding Encoding
	// Repr is set when JSON was asked for and cannot hold the value.
	Repr string
	// Failure details every other end; nil is allowed for EndReturned and EndLapsed.
	Failure *Failure
	// RunTime is measured by the worker from start to end.
	RunTime time.Duration
	// NoRetry and RetryAfter are the function's word on an EndRaised, and mean nothing with
	// other ends: it is not tried again whatever is left of function_retries, or after that
	// time, at most [MaxRetryAfter], in place of [RetryDelay]; 0 for no word.
	NoRetry    bool
	RetryAfter time.Duration
	// Unasked is the dispatcher's word on an EndReturned: it neither recalled the offer nor
	// knows of a reason why it came back. No frame carries it.
	Unasked bool
}

// Check refuses an outcome that no worker may report. maxResult bounds the result in bytes,
// 0 for no bound; one that is larger has CodeTooLarge, all others CodeInvalid.
func (o *Outcome) Check(maxResult int) error {
	const op = "report"
	switch o.End {
	case EndSucceeded, EndRaised, EndLost, EndReturned, EndTimedOut, EndExhausted, EndUnreadable, EndCancelled:
	default:
		return Errorf(CodeInvalid, op, "no attempt ends as %q", ClipText(string(o.End), 64))
	}
	switch {
	case o.Encoding != EncodingPickle && o.Encoding != EncodingJSON && (o.Encoding != "" || len(o.Result) > 0):
		return Errorf(CodeInvalid, op, "a result is encoded as %q: want %q or %q",
			ClipText(string(o.Encoding), 64), EncodingPickle, EncodingJSON)
	case o.RetryAfter < 0 || o.RetryAfter > MaxRetryAfter:
		return Errorf(CodeInvalid, op, "the next attempt is to wait %s: want 0 to %s", o.RetryAfter, MaxRetryAfter)
	case o.End != EndSucceeded && len(o.Result) > 0:
		return Errorf(CodeInvalid, op, "an attempt that ended as %q has a result of %d bytes", o.End, len(o.Result))
	case maxResult > 0 && len(o.Result) > maxResult:
		return Errorf(CodeTooLarge, op, "the result has %d bytes, the limit is %d (--max-payload)", len(o.Result), maxResult)
	}
	return nil
}

// ClassOf returns the failure class that an end leads to.
func ClassOf(e End) Class {
	switch e {
	case EndRaised:
		return ClassFunction
	case EndLost, EndLapsed:
		return ClassWorker
	case EndTimedOut:
		return ClassDeadline
	case EndExhausted:
		return ClassResource
	case EndUnreadable:
		return ClassSerialization
	case EndCancelled:
		return ClassCancelled
	default:
		return ""
	}
}

// Fail builds the outcome of an end that is not a success.
func Fail(e End, message string) Outcome {
	return Outcome{End: e, Failure: &Failure{Class: ClassOf(e), Message: message}}
}

// Bound cuts a failure's texts to their limits, keeping the end of a traceback, where the
// raised line is, and makes them valid UTF-8. Bound twice is bound once.
func (f *Failure) Bound() {
	f.Type = plainText(f.Type, MaxTypeText)
	f.Message = plainText(f.Message, MaxErrorText)
	f.Traceback = strings.ToValidUTF8(f.Traceback, "\uFFFD")
	if len(f.Traceback) > MaxErrorText {
		const mark = "... (start of the traceback cut)\n"
		tail := f.Traceback[len(f.Traceback)-(MaxErrorText-len(mark)):]
		for len(tail) > 0 && tail[0]&0xC0 == 0x80 {
			tail = tail[1:]
		}
		f.Traceback = mark + tail
	}
	if len(f.ForeignPickle) > MaxErrorText {
		f.ForeignPickle = nil
	}
	if len(f.Pickle) > MaxErrorText {
		f.Pickle = nil
	}
}

// Bound cuts the texts of an outcome to what a record keeps, and RetryAfter to its limit. The
// failure is changed in place.
func (o *Outcome) Bound() {
	o.RetryAfter = min(max(o.RetryAfter, 0), MaxRetryAfter)
	o.Repr = plainText(o.Repr, MaxRepr)
	if o.Failure != nil {
		o.Failure.Bound()
	}
}

// ClipText cuts s to at most limit bytes at a character boundary.
func ClipText(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xC0 == 0x80 {
		limit--
	}
	return s[:limit]
}

// plainText is s as valid UTF-8 of at most limit bytes.
func plainText(s string, limit int) string {
	return ClipText(strings.ToValidUTF8(ClipText(s, limit), "\uFFFD"), limit)
}
