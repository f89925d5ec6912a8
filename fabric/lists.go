package fabric

import (
	"context"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// MaxPayload is the limit on one payload or result, in bytes.
func (f *Fabric) MaxPayload() int { return f.cfg.MaxPayload }

// ListFunctions returns up to limit registrations, newest first, whose id is smaller than
// before; the zero id starts at the newest.
func (f *Fabric) ListFunctions(ctx context.Context, before task.ID, limit int) ([]task.Function, error) {
	return f.cfg.Store.ListFunctions(ctx, before, limit)
}

// ListTasks returns up to q.Limit records, newest first; [Fabric.ListQuery] makes a query of a
// filter. It may return fewer than exist after many that do not match: next is the id to pass as
// q.Before for the following page, zero when the listing is complete.
func (f *Fabric) ListTasks(ctx context.Context, q store.ListQuery) (page []*task.Task, next task.ID, err error) {
	return f.cfg.Store.ListTasks(ctx, q)
}

// Workers returns the workers that dispatchers see at present, sorted by id.
func (f *Fabric) Workers(ctx context.Context) ([]store.Presence, error) {
	return f.cfg.Store.Workers(ctx, f.cfg.Now())
}

// Queues counts unfinished tasks by queue and runtime key, sorted by both.
func (f *Fabric) Queues(ctx context.Context) ([]store.QueueStat, error) {
	return f.cfg.Store.QueueStats(ctx)
}
