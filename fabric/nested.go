package fabric

import (
	"context"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// A running task may submit tasks of its own, its children. They belong to whom it belongs to.

// adopt makes a submission that of a child, where a running task calls. It has no more time
// than its parent, and its request id is its parent's own: the next attempt of the parent finds
// what this one submitted by it, and nobody else does.
func (c Caller) adopt(item *store.Submission) {
	if c.Task.IsZero() {
		return
	}
	t := item.Task
	t.Parent = c.Task
	if !c.Deadline.IsZero() && (t.Deadline.IsZero() || t.Deadline.After(c.Deadline)) {
		t.Deadline = c.Deadline
	}
	if item.Key.ID != "" {
		item.Key.ID = c.key(item.Key.ID)
	}
}

// key is the idempotency key of a request id of this caller.
func (c Caller) key(requestID string) string {
	if c.Task.IsZero() {
		return requestID
	}
	return store.InternalKey("child", c.Task.String()+"/"+requestID)
}

// Reach refuses tasks that the caller may not have: a running task has its own children,
// everybody else has all. Ids that nobody knows are left to the call itself.
func (f *Fabric) Reach(ctx context.Context, c Caller, ids ...task.ID) error {
	if c.Task.IsZero() {
		return nil
	}
	for len(ids) > 0 {
		some := ids[:min(len(ids), 1000)]
		ids = ids[len(some):]
		found, err := f.cfg.Store.Tasks(ctx, some)
		if err != nil {
			return err
		}
		for _, t := range found {
			if err := c.reaches(t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c Caller) reaches(t *task.Task) error {
	if c.Task.IsZero() || t == nil || t.Parent == c.Task {
		return nil
	}
	return task.Errorf(task.CodeDenied, "", "task %s was not submitted by task %s, whose token this is: it may read and cancel what it submitted, and nothing else",
		t.ID, c.Task)
}
