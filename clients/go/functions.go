package treadle

import (
	"context"
	"iter"

	"github.com/google/uuid"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// Registration is a function to register.
type Registration struct {
	// Name is any text of 1 to 256 characters. It is not a key: the newest
	// registration of a name is what the name means, and ids stay valid.
	Name string
	// Runtime defaults to "python".
	Runtime string
	// Payload is a pickled callable, Source is Python source text that defines a
	// callable called Name, or only one function. Exactly one of them is set.
	Payload []byte
	Source  string
	// Python is the version whose bytecode the payload holds, for example "3.12": workers
	// with another Python refuse it. Empty for what any Python can run.
	Python string
	// Queue is where the function's tasks wait; default "default".
	Queue string
	// RequestID makes the registration idempotent; default: a new one.
	RequestID string
	// Transient registrations of the same name, options and bytes are one, and go when no task
	// has named them for a retention. Their RequestID is not looked at.
	Transient bool
}

// Register registers a function. Every call gives a new id, unless the registration
// has the RequestID of an earlier one, or is transient and registered already.
func (c *Client) Register(ctx context.Context, r Registration) (*Function, error) {
	if r.RequestID == "" { // with Transient it is for servers that do not know of that
		r.RequestID = newID()
	}
	p, err := call(ctx, c, "RegisterFunction", c.rpc.RegisterFunction, &treadlev1.RegisterFunctionRequest{
		Name: r.Name, Runtime: r.Runtime, Payload: r.Payload, Source: r.Source, Queue: r.Queue, RequestId: r.RequestID,
		Python: r.Python, Transient: r.Transient,
	})
	if err != nil {
		return nil, err
	}
	return functionOf(p), nil
}

// RegisterSource registers a Python function from its source text.
func (c *Client) RegisterSource(ctx context.Context, name, source string) (*Function, error) {
	return c.Register(ctx, Registration{Name: name, Source: source})
}

// Function returns a registration by id, or the newest one of a name.
func (c *Client) Function(ctx context.Context, idOrName string) (*Function, error) {
	p, err := call(ctx, c, "GetFunction", c.rpc.GetFunction, &treadlev1.GetFunctionRequest{Function: idOrName})
	if err != nil {
		return nil, err
	}
	return functionOf(p), nil
}

// DeleteFunction deletes a registration by id; its name then means the newest one left of
// that name. It fails with [ErrState] while the function has unfinished tasks.
func (c *Client) DeleteFunction(ctx context.Context, id string) error {
	_, err := call(ctx, c, "DeleteFunction", c.rpc.DeleteFunction, &treadlev1.DeleteFunctionRequest{FunctionId: id})
	return err
}

// Functions ranges over all registrations, newest first, and asks for them page by
// page. An error ends the sequence.
func (c *Client) Functions(ctx context.Context) iter.Seq2[*Function, error] {
	return pages(func(token string) ([]*treadlev1.Function, string, error) {
		p, err := call(ctx, c, "ListFunctions", c.rpc.ListFunctions, &treadlev1.ListFunctionsRequest{PageToken: token})
		return p.GetFunctions(), p.GetNextPageToken(), err
	}, functionOf)
}

// pages turns a paged list into a sequence.
func pages[P, T any](next func(token string) (items []P, nextToken string, err error), of func(P) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for token := ""; ; {
			items, following, err := next(token)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, p := range items {
				if !yield(of(p), nil) {
					return
				}
			}
			if token = following; token == "" {
				return
			}
		}
	}
}

// newID returns a UUID of version 7. The error of its source of randomness ends the
// program inside the standard library since Go 1.24, so there is none to handle.
func newID() string { return uuid.Must(uuid.NewV7()).String() }
