// Package auth says who may call what: bearer tokens, of which only hashes are kept, the
// three roles that they carry, and the table from every method to the roles that it
// admits. A method without an entry is refused to everybody.
package auth

import (
	"context"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// Role is what a token is for.
type Role string

// The roles. An admin may do what the other two may.
const (
	// Client registers functions, executes tasks and reads everything about them.
	Client Role = "client"
	// Worker attaches as a worker and runs what it is given.
	Worker Role = "worker"
	// Admin may call everything.
	Admin Role = "admin"
	// Task is the role of a running task: it submits tasks, its children, and reads and
	// cancels these. Its tokens are made for an attempt and end with it; no file has them.
	Task Role = "task"
)

// Roles lists the roles of a token file.
func Roles() []Role { return []Role{Client, Worker, Admin} }

// ParseRole checks a role's name.
func ParseRole(name string) (Role, bool) {
	for _, r := range Roles() {
		if string(r) == name {
			return r, true
		}
	}
	return "", false
}

// Principal is whom a call comes from.
type Principal struct {
	// ID is the id of the token, or "local" where no tokens are asked for.
	ID   string
	Role Role
	// Expires is when the right ends; zero means never.
	Expires time.Time
	// Of a running task alone: the task and the claim of its attempt; and, after the store was
	// asked whether that claim stands, whom the task belongs to (empty where no tokens are
	// asked for) and its deadline (zero for none).
	Task, Claim task.ID
	Stands      bool
	Owner       string
	Deadline    time.Time
}

// Tasks is the account of calls of running tasks that belong to no token, or of which it is
// not known yet to which.
const Tasks = "tasks"

// Account is whose limits a call counts for: running tasks use those of the token that they
// belong to.
func (p Principal) Account() string {
	switch {
	case p.Role != Task:
		return p.ID
	case p.Owner != "":
		return p.Owner
	default:
		return Tasks
	}
}

// Local is everybody on a server without tokens: it listens on loopback, or its operator
// said --insecure.
var Local = Principal{ID: "local", Role: Admin}

type contextKey struct{}

// WithPrincipal notes who was authenticated.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// From returns who was authenticated; ok is false when nobody was.
func From(ctx context.Context) (p Principal, ok bool) {
	p, ok = ctx.Value(contextKey{}).(Principal)
	return p, ok
}

// Bearer returns the token of an Authorization header. An absent header and one of
// another form are errors of [task.CodeUnauthenticated].
func Bearer(header string) (string, error) {
	if header == "" {
		return "", task.Errorf(task.CodeUnauthenticated, "", "this server asks for a token: send it as 'Authorization: Bearer tdl_...'")
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", task.Errorf(task.CodeUnauthenticated, "", "the Authorization header is malformed: want 'Bearer tdl_...'")
	}
	return strings.TrimSpace(token), nil
}
