package treadle

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// Kinds of refused calls, for errors.Is. Each matches an [*Error] by its code and reason.
var (
	// ErrInvalid: the request is malformed; the message says what to change.
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound: no function, task or worker of that id or name.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the request id was used before with other content.
	ErrConflict = errors.New("conflict")
	// ErrState: not possible in the current state.
	ErrState = errors.New("illegal state")
	// ErrTooLarge: a payload, an argument list or an answer is over the limit.
	ErrTooLarge = errors.New("too large")
	// ErrExhausted: a quota or a full disk; try again later.
	ErrExhausted = errors.New("exhausted")
	// ErrUnavailable: no server answered within the retry time. What the call asked
	// for may or may not have been recorded: repeat it with the same request id.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnauthenticated: the token is missing or unknown.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrDenied: the token's role does not allow the call.
	ErrDenied = errors.New("permission denied")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("client closed")
)

// Ways in which a task has no value, for errors.Is on the errors of [Client.Call]
// and [Result.Decode].
var (
	// ErrTaskFailed: the task is FAILED; errors.As finds the [*TaskError].
	ErrTaskFailed = errors.New("task failed")
	// ErrTaskCancelled: the task is CANCELLED; errors.As finds the [*TaskError].
	ErrTaskCancelled = errors.New("task cancelled")
	// ErrUnfinished: the task is QUEUED or RUNNING.
	ErrUnfinished = errors.New("task unfinished")
	// ErrNotJSON: the task is COMPLETED with a value that JSON cannot hold.
	ErrNotJSON = errors.New("value is not JSON")
)

// Error is a call that failed. What a function raised is no such error, but a
// [*TaskError].
type Error struct {
	// Op is the method of the API, for example "Execute".
	Op string
	// Code is the gRPC code.
	Code codes.Code
	// Reason is one of the words in docs/errors.md, empty when the call did not
	// reach a server.
	Reason string
	// Message names the value, the limit and the fix.
	Message string

	cause error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	b.WriteString(e.Message)
	if e.Message == "" {
		b.WriteString(e.Code.String())
	}
	if e.Reason != "" {
		b.WriteString(" (" + e.Reason + ")")
	}
	return b.String()
}

// Unwrap returns the cause: a context's error, or the error of package status.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus lets status.FromError and status.Code see through the error.
func (e *Error) GRPCStatus() *status.Status {
	if s, ok := status.FromError(e.cause); ok && s != nil {
		return s
	}
	return status.New(e.Code, e.Message)
}

// Is reports whether the error is of one of the kinds Err... of this package.
func (e *Error) Is(kind error) bool {
	switch kind {
	case ErrInvalid:
		return e.Code == codes.InvalidArgument
	case ErrNotFound:
		return e.Code == codes.NotFound
	case ErrConflict:
		return e.Code == codes.AlreadyExists || e.Code == codes.Aborted
	case ErrState:
		return e.Code == codes.FailedPrecondition
	case ErrTooLarge:
		return e.tooLarge()
	case ErrExhausted:
		return e.Code == codes.ResourceExhausted && !e.tooLarge()
	case ErrUnavailable:
		return e.Code == codes.Unavailable
	case ErrUnauthenticated:
		return e.Code == codes.Unauthenticated
	case ErrDenied:
		return e.Code == codes.PermissionDenied
	default:
		return false
	}
}

// tooLarge tells a size limit from a quota: both are RESOURCE_EXHAUSTED. The
// transport's own refusal of a message has no reason.
func (e *Error) tooLarge() bool {
	return e.Code == codes.ResourceExhausted &&
		(strings.HasSuffix(e.Reason, "TOO_LARGE") || e.Reason == "" && strings.Contains(e.Message, "larger than max"))
}

// newError turns what a generated client returned into an [*Error]; nil stays nil.
func newError(op string, err error) error {
	if err == nil {
		return nil
	}
	var typed *Error
	if errors.As(err, &typed) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	e := &Error{Op: op, Code: s.Code(), Message: s.Message(), cause: err}
	switch e.Code { // so that errors.Is finds the error of the caller's context
	case codes.Canceled:
		e.cause = errors.Join(context.Canceled, err)
	case codes.DeadlineExceeded:
		e.cause = errors.Join(context.DeadlineExceeded, err)
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			e.Reason = info.GetReason()
		}
	}
	return e
}

// requestError is [newError] for a call with that request. What gRPC could not encode has not
// left this process, and is the request's fault.
func requestError(op string, req any, err error) error {
	e := newError(op, err)
	var typed *Error
	if !errors.As(e, &typed) || typed.Code != codes.Internal || !strings.HasPrefix(typed.Message, "grpc: error while marshaling") {
		return e
	}
	field, text := "text of the request", ""
	if m, ok := req.(proto.Message); ok {
		if name, bad := brokenText(m.ProtoReflect()); name != "" {
			field, text = name, bad
		}
	}
	return &Error{Op: op, Code: codes.InvalidArgument, Message: fmt.Sprintf("%s %.128q is not UTF-8", field, text), cause: err}
}

// brokenText finds the first text of a message that is not UTF-8, and its field.
func brokenText(m protoreflect.Message) (field, text string) {
	check := func(name string, d protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch {
		case d.Kind() == protoreflect.StringKind && !utf8.ValidString(v.String()):
			field, text = name, v.String()
		case d.Message() != nil && !d.IsMap():
			if inner, bad := brokenText(v.Message()); inner != "" {
				field, text = name+"."+inner, bad
			}
		}
	}
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(d.Name())
		if !d.IsList() {
			check(name, d, v)
			return field == ""
		}
		for i := range v.List().Len() {
			if check(fmt.Sprintf("%s[%d]", name, i), d, v.List().Get(i)); field != "" {
				break
			}
		}
		return field == ""
	})
	return field, text
}

// itemError is [newError] for one item of a batch.
func itemError(op string, it *treadlev1.ItemError) error {
	return &Error{Op: op, Code: codes.Code(it.GetCode()), Reason: it.GetReason(), Message: it.GetMessage()}
}

// invalid refuses a request before it is sent.
func invalid(op, format string, args ...any) error {
	return &Error{Op: op, Code: codes.InvalidArgument, Message: fmt.Sprintf(format, args...)}
}

// ctxError is the error of a call whose own context ended.
func ctxError(ctx context.Context, op, detail string) error {
	s := status.FromContextError(ctx.Err())
	cause := context.Cause(ctx)
	message := cause.Error()
	if detail != "" {
		message = detail + ": " + message
	}
	return &Error{Op: op, Code: s.Code(), Message: message, cause: errors.Join(ctx.Err(), cause)}
}

// TaskError is what a task was FAILED or CANCELLED for.
type TaskError struct {
	// Type is the failure class: FunctionExecutionFailure, WorkerFailureError,
	// DeadlineExceededError, ResourceLimitExceeded, SerializationError or Cancelled.
	Type string `json:"error_type"`
	// ExceptionType is the exception's class, for example "ValueError"; empty where
	// none was raised.
	ExceptionType string `json:"exception_type,omitempty"`
	Message       string `json:"message"`
	// Traceback is the text as the runtime prints it, at most 64 KiB.
	Traceback string `json:"traceback,omitempty"`
	TaskID    string `json:"task_id"`
	WorkerID  string `json:"worker_id,omitempty"`
	// ExceptionPickle is the pickled exception when it names only standard-library
	// classes, ForeignPickle when it names others. Unpickling runs code.
	ExceptionPickle []byte `json:"exception_pickle,omitempty"`
	ForeignPickle   []byte `json:"foreign_pickle,omitempty"`
}

func (e *TaskError) Error() string {
	switch {
	case e.ExceptionType != "" && e.Message != "":
		return fmt.Sprintf("%s: %s: %s", e.Type, e.ExceptionType, e.Message)
	case e.ExceptionType != "":
		return fmt.Sprintf("%s: %s", e.Type, e.ExceptionType)
	default:
		return fmt.Sprintf("%s: %s", e.Type, e.Message)
	}
}

// Is matches [ErrTaskCancelled] for a cancelled task and [ErrTaskFailed] for every other.
func (e *TaskError) Is(kind error) bool {
	switch kind {
	case ErrTaskCancelled:
		return e.Type == "Cancelled"
	case ErrTaskFailed:
		return e.Type != "Cancelled"
	default:
		return false
	}
}
