package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "treadle.dev"

// Reasons of errors that do not come from the domain.
const (
	reasonInternal  = "INTERNAL"
	reasonCancelled = "CALL_CANCELLED"
	reasonTimeout   = "CALL_TIMED_OUT"
	reasonUnserved  = "NOT_SERVED"
	reasonMethod    = "METHOD_NOT_ALLOWED"
	reasonRoute     = "NO_SUCH_ROUTE"
	reasonHost      = "HOST_NOT_ALLOWED"
	reasonOrigin    = "CROSS_ORIGIN"
	reasonTooLarge  = "TOO_LARGE"
	reasonPayload   = "INVALID_PAYLOAD"
	reasonInvalid   = "INVALID_REQUEST"
	reasonBusy      = "BUSY"
	reasonSlowBody  = "BODY_TOO_SLOW"
	reasonEncoding  = "CONTENT_ENCODING"
	reasonNotFound  = "NOT_FOUND"
	reasonRate      = "RATE_LIMITED"
	reasonQuota     = "QUOTA_EXCEEDED"
	reasonInUse     = "FUNCTION_IN_USE"
	reasonTLS       = "TLS_REQUIRED"
	reasonUnknown   = "UNKNOWN_FIELD"
)

// errorRow is one line of the error table: what a code of the domain is in gRPC, in
// REST and to programs. docs/errors.md shows the same table to people.
type errorRow struct {
	grpc   codes.Code
	http   int
	reason string
}

var errorTable = map[task.Code]errorRow{
	task.CodeInvalid:         {codes.InvalidArgument, http.StatusBadRequest, reasonInvalid},
	task.CodeInvalidPayload:  {codes.InvalidArgument, http.StatusBadRequest, reasonPayload},
	task.CodeNotFound:        {codes.NotFound, http.StatusNotFound, reasonNotFound},
	task.CodeConflict:        {codes.AlreadyExists, http.StatusConflict, "REQUEST_ID_CONFLICT"},
	task.CodeState:           {codes.FailedPrecondition, http.StatusConflict, "ILLEGAL_STATE"},
	task.CodeTooLarge:        {codes.ResourceExhausted, http.StatusRequestEntityTooLarge, reasonTooLarge},
	task.CodeExhausted:       {codes.ResourceExhausted, http.StatusTooManyRequests, "EXHAUSTED"},
	task.CodeUnavailable:     {codes.Unavailable, http.StatusServiceUnavailable, "UNAVAILABLE"},
	task.CodeUnauthenticated: {codes.Unauthenticated, http.StatusUnauthorized, "UNAUTHENTICATED"},
	task.CodeDenied:          {codes.PermissionDenied, http.StatusForbidden, "DENIED"},
	task.CodeUnknown:         {codes.Internal, http.StatusInternalServerError, reasonInternal},
}

// httpByReason is the REST column of the table, for errors that come back from gRPC.
var httpByReason = func() map[string]int {
	m := map[string]int{
		reasonCancelled: 499, // the client went away; nobody reads this
		reasonTimeout:   http.StatusGatewayTimeout,
		reasonUnserved:  http.StatusNotImplemented,
		reasonRate:      http.StatusTooManyRequests,
		reasonQuota:     http.StatusTooManyRequests,
		reasonInUse:     http.StatusConflict,
		reasonBusy:      http.StatusServiceUnavailable,
		reasonSlowBody:  http.StatusRequestTimeout,
	}
	for _, row := range errorTable {
		m[row.reason] = row.http
	}
	return m
}()

// violation is one fault of a request's shape.
type violation struct {
	// field is the field's name.
	field string
	// kind is the word by which FastAPI would name the fault.
	kind string
	// text is a sentence for people.
	text string
}

// invalidRequest lists everything that is wrong with a request's shape.
type invalidRequest []violation

func (v invalidRequest) Error() string {
	texts := make([]string, len(v))
	for i, x := range v {
		texts[i] = x.field + ": " + x.text
	}
	return strings.Join(texts, "; ")
}

// invalid is a fault of one field.
func invalid(field, format string, args ...any) error {
	e := task.Errorf(task.CodeInvalid, "", format, args...)
	e.Field = field
	return e
}

// refusal returns why a request is not within the contract's limits, or nil. Frames of
// workers are refused by their link, which has a word for it.
func refusal(req any) error {
	m, ok := req.(proto.Message)
	if _, frame := req.(*treadlev1.WorkerFrame); !ok || frame {
		return nil
	}
	if err := wire.Refusal(m); err != nil {
		return invalid(err.Field, "%w", err)
	}
	return nil
}

// toStatus turns any error of a handler into the status that the client gets, with
// exactly one ErrorInfo. Causes that nobody foresaw are logged and not told.
func toStatus(ctx context.Context, log *slog.Logger, method string, err error) error {
	if err == nil {
		return nil
	}
	var shape invalidRequest
	var domain *task.Error
	var quota *fabric.OverQuota
	var inUse *store.InUse
	switch {
	case errors.As(err, &inUse):
		meta := map[string]string{"function_id": inUse.Function.String(), "tasks": strconv.Itoa(inUse.Tasks)}
		return newStatus(codes.FailedPrecondition, reasonInUse, inUse.Error(), meta, nil)
	case errors.As(err, &quota):
		return newStatus(codes.ResourceExhausted, reasonQuota, quota.Error(), quota.Metadata(), nil)
	case errors.As(err, &shape):
		bad := &errdetails.BadRequest{}
		for _, v := range shape {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: v.field, Description: v.text, Reason: v.kind})
		}
		return newStatus(codes.InvalidArgument, reasonInvalid, shape.Error(), nil, bad)
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && task.CodeOf(err) == task.CodeUnavailable:
		// The store was given no more time: it is the call that ended, and not the store.
		return newStatus(codes.DeadlineExceeded, reasonTimeout, "the call's own deadline passed", nil, nil)
	case errors.As(err, &domain) && domain.Code != task.CodeUnknown:
		row, ok := errorTable[domain.Code]
		if !ok {
			row = errorTable[task.CodeUnknown]
		}
		var meta map[string]string
		if domain.Field != "" {
			meta = map[string]string{"field": domain.Field}
		}
		text := err.Error()
		if domain.Code == task.CodeUnavailable {
			text = withoutAddresses(text)
		}
		return newStatus(row.grpc, row.reason, text, meta, nil)
	case errors.Is(err, context.Canceled):
		return newStatus(codes.Canceled, reasonCancelled, "the call was cancelled", nil, nil)
	case errors.Is(err, context.DeadlineExceeded):
		return newStatus(codes.DeadlineExceeded, reasonTimeout, "the call's own deadline passed", nil, nil)
	}
	if st, ok := status.FromError(err); ok {
		return withInfo(st)
	}
	log.ErrorContext(ctx, "call failed", "method", method, "error", err)
	return newStatus(codes.Internal, reasonInternal, "internal error; the server's log has the cause", nil, nil)
}

// address is what the errors of a network name: host and port, and the name that was
// looked up.
var address = regexp.MustCompile(`(?i)\blookup [^\s:]+|\[[0-9a-f:.]*:[0-9a-f:.%]*\]:\d{1,5}|[\w][\w.-]*:\d{2,5}\b`)

// withoutAddresses is the text of an error for clients: where a server has its store is
// for those who run it. They find it in the log and at /readyz.
func withoutAddresses(text string) string {
	return address.ReplaceAllStringFunc(text, func(found string) string {
		if strings.HasPrefix(strings.ToLower(found), "lookup ") {
			return "lookup of the store"
		}
		return "the store"
	})
}

// newStatus builds a status with one ErrorInfo and, where given, the violations.
func newStatus(code codes.Code, reason, text string, meta map[string]string, bad *errdetails.BadRequest) error {
	st := status.New(code, task.ClipText(text, 8<<10))
	info := &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: meta}
	var err error
	if bad == nil {
		st, err = st.WithDetails(info)
	} else {
		st, err = st.WithDetails(info, bad)
	}
	if err != nil {
		return status.Error(codes.Internal, "an error could not be described: "+err.Error())
	}
	return st.Err()
}

// withInfo adds the ErrorInfo that statuses made by gRPC itself lack.
func withInfo(st *status.Status) error {
	if infoOf(st) != nil {
		return st.Err()
	}
	reason := reasonInternal
	switch st.Code() {
	case codes.Unimplemented:
		reason = reasonUnserved
	case codes.Canceled:
		reason = reasonCancelled
	case codes.DeadlineExceeded:
		reason = reasonTimeout
	default:
		for _, row := range errorTable {
			if row.grpc == st.Code() && row.reason != reasonPayload && row.reason != "EXHAUSTED" {
				reason = row.reason
			}
		}
	}
	return newStatus(st.Code(), reason, st.Message(), nil, nil)
}

// infoOf returns the ErrorInfo of a status, nil without one.
func infoOf(st *status.Status) *errdetails.ErrorInfo {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// violationsOf returns the field violations of a status.
func violationsOf(st *status.Status) []*errdetails.BadRequest_FieldViolation {
	for _, d := range st.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			return bad.GetFieldViolations()
		}
	}
	return nil
}
