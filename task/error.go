package task

import (
	"errors"
	"fmt"
)

// Code is the closed set of things that can go wrong at the border of the
// domain. Callers act on the code; the text is for people. The server maps codes
// to gRPC and HTTP in one table.
type Code int

// Codes.
const (
	CodeUnknown Code = iota
	// CodeInvalid: the request is malformed.
	CodeInvalid
	// CodeInvalidPayload: a payload is present but not what it must be.
	CodeInvalidPayload
	CodeNotFound
	// CodeConflict: the same idempotency key with other content, or another result
	// for the same token.
	CodeConflict
	// CodeState: the move is not legal in the current state.
	CodeState
	// CodeTooLarge: a size limit; the message names size and limit.
	CodeTooLarge
	// CodeExhausted: a quota or a full disk; try again later.
	CodeExhausted
	// CodeUnavailable: the store does not answer, or the process stops. The outcome
	// may be unknown: retry with the same key.
	CodeUnavailable
	CodeUnauthenticated
	CodeDenied
)

func (c Code) String() string {
	names := [...]string{"unknown", "invalid", "invalid payload", "not found", "conflict", "illegal state",
		"too large", "exhausted", "unavailable", "unauthenticated", "denied"}
	if c < 0 || int(c) >= len(names) {
		return fmt.Sprintf("code %d", int(c))
	}
	return names[c]
}

// Error is the one error type of the domain.
type Error struct {
	Code Code
	// Op is the operation that failed, for example "submit".
	Op string
	// Text names the value, the limit and the fix.
	Text string
	// Field is the request field at fault, or empty.
	Field string
	// Err is the cause, for errors.Is and errors.As; Text names it already.
	Err error
}

func (e *Error) Error() string {
	if e.Op == "" {
		return e.Text
	}
	return e.Op + ": " + e.Text
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf builds an [Error]. A %w verb keeps the cause reachable.
func Errorf(code Code, op, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Code: code, Op: op, Text: wrapped.Error(), Err: errors.Unwrap(wrapped)}
}

// CodeOf returns the code of the first [Error] in the chain, CodeUnknown without one.
func CodeOf(err error) Code {
	if err == nil {
		return CodeUnknown // the usual case, and errors.As needs memory
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeUnknown
}
