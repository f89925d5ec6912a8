package server

import (
	"context"

	"google.golang.org/grpc"

	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// A running task may submit tasks of its own, its children. It shows a token that its worker
// made for the attempt, see package tasktoken. That the token was made by one of this
// process's workers is a matter of arithmetic, and is checked when the headers of a call are
// there. That the attempt still runs is the store's word, and is asked for when the handler
// is about to run, as a store may be slow and headers are read one after the other.

// taskOf finds the running task of an Authorization header; is says that it names one.
func (g *guard) taskOf(header string) (p auth.Principal, is bool, err error) {
	token, err := auth.Bearer(header)
	if err != nil || !tasktoken.Is(token) {
		return p, false, nil
	}
	if g.tasks == nil {
		return p, true, task.Errorf(task.CodeUnauthenticated, "",
			"the token of a running task counts at the dispatcher that the task's worker is attached to, and nowhere else: leave the address out")
	}
	id, claim, ok := g.tasks.Verify(token)
	if !ok {
		return p, true, task.Errorf(task.CodeUnauthenticated, "",
			"the token of a running task was not made here: it counts at the dispatcher that the task's worker is attached to, until that restarts")
	}
	return auth.Principal{ID: "task:" + task.ID(id).String(), Role: auth.Task, Task: id, Claim: claim}, true, nil
}

// errEnded is the refusal of a token whose attempt is over.
func errEnded(p auth.Principal) error {
	return task.Errorf(task.CodeUnauthenticated, "",
		"the token of task %s has ended with its attempt: the attempt finished, was cancelled, or lost its lease", p.Task)
}

// stands reports whether the record is that of the attempt a token is for.
func stands(p auth.Principal, t *task.Task) bool {
	return t != nil && t.Lease != nil && t.Lease.Claim == p.Claim
}

// standing asks the store whether the attempt of a running task that calls still has its
// claim, and notes whom it belongs to. Other callers pass.
func (g *guard) standing(ctx context.Context) (context.Context, error) {
	p, _ := auth.From(ctx)
	if p.Role != auth.Task || p.Stands {
		return ctx, nil
	}
	t, err := g.store.Task(ctx, p.Task)
	if err != nil && task.CodeOf(err) != task.CodeNotFound {
		return ctx, err
	}
	if !stands(p, t) {
		return ctx, errEnded(p)
	}
	p.Stands, p.Owner, p.Deadline = true, t.CreatedBy, t.Deadline
	return auth.WithPrincipal(ctx, p), nil
}

// sweepTasks ends the calls of attempts that are over. While the store does not answer they
// go on: it has not said so.
func (g *guard) sweepTasks(ctx context.Context) {
	var calls []*guarded
	g.mu.Lock()
	for x := range g.streams {
		if x.principal.Role == auth.Task {
			calls = append(calls, x)
		}
	}
	g.mu.Unlock()
	for len(calls) > 0 {
		some := calls[:min(len(calls), 1000)]
		calls = calls[len(some):]
		ids := make([]task.ID, len(some))
		for i, x := range some {
			ids[i] = x.principal.Task
		}
		found, err := g.store.Tasks(ctx, ids)
		if err != nil {
			return
		}
		for i, x := range some {
			if !stands(x.principal, found[i]) {
				x.end(errEnded(x.principal))
			}
		}
	}
}

// forTask runs the handler of a unary call of a running task: a long wait ends with the
// attempt.
func (s *Server) forTask(ctx context.Context, req any, handler grpc.UnaryHandler) (any, error) {
	ctx, stop := s.guard.watch(ctx)
	defer stop()
	resp, err := handler(ctx, req)
	if ended := context.Cause(ctx); err != nil && ended != nil && task.CodeOf(ended) == task.CodeUnauthenticated {
		return nil, ended
	}
	return resp, err
}
