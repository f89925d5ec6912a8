package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// memory is the smallest store: the moves of package task over a list. The explorer makes
// and drops hundreds of thousands of them, so it has no index, no lock and no goroutine.
// What it has no method for is never called.
type memory struct {
	store.Store

	tasks []*task.Task
	rung  []store.Signal
}

func (m *memory) find(id task.ID) *task.Task {
	for _, t := range m.tasks {
		if t.ID == id {
			return t
		}
	}
	return nil
}

func (m *memory) Submit(_ context.Context, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	out := make([]store.Submitted, len(items))
	for i, it := range items {
		t := it.Task.Clone()
		out[i] = store.Submitted{ID: t.ID, Err: t.Submit(now, uint64(len(m.tasks)+1))}
		m.tasks = append(m.tasks, t)
		m.ready(t)
	}
	return out, nil
}

func (m *memory) Task(_ context.Context, id task.ID) (*task.Task, error) {
	if t := m.find(id); t != nil {
		return t.Clone(), nil
	}
	return nil, task.Errorf(task.CodeNotFound, "task", "there is no task %s", id)
}

func (m *memory) Cancel(_ context.Context, now time.Time, ids []task.ID, _ bool) ([]*task.Task, error) {
	out := make([]*task.Task, len(ids))
	for i, id := range ids {
		t := m.find(id)
		tok, held := t.Token()
		if t.Cancel(now) && held {
			m.revoked(tok)
		}
		out[i] = t.Clone()
	}
	return out, nil
}

func (m *memory) Claim(_ context.Context, now time.Time, reqs []store.ClaimRequest) ([][]store.Claimed, error) {
	out := make([][]store.Claimed, len(reqs))
	for i := range reqs {
		out[i] = m.claim(now, &reqs[i])
	}
	return out, nil
}

func (m *memory) claim(now time.Time, r *store.ClaimRequest) (out []store.Claimed) {
	give := func(t *task.Task) {
		tok, _ := t.Token()
		out = append(out, store.Claimed{Token: tok, Task: t.Clone()})
	}
	for _, t := range m.tasks {
		if t.Lease != nil && t.Lease.Claim == r.Claim {
			give(t)
		}
	}
	if len(out) > 0 {
		return out
	}
	byOrder := slices.Clone(m.tasks)
	slices.SortStableFunc(byOrder, func(a, b *task.Task) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Seq, b.Seq))
	})
	for _, t := range byOrder {
		if len(out) < r.Max && t.ReadyAt(now) {
			if _, err := t.Claim(now, task.Lease{Claim: r.Claim, Session: r.Session, Worker: r.Worker, Until: r.Until}); err == nil {
				give(t)
			}
		}
	}
	return out
}

func (m *memory) Renew(_ context.Context, now time.Time, items []store.Renewal) ([]task.Verdict, error) {
	out := make([]task.Verdict, len(items))
	for i, it := range items {
		out[i] = m.find(it.Token.Task).Renew(now, it.Token, it.Until, it.StartedAt)
	}
	return out, nil
}

func (m *memory) Settle(_ context.Context, now time.Time, items []store.Settlement) ([]task.Verdict, error) {
	out := make([]task.Verdict, len(items))
	for i := range items {
		it := &items[i]
		t := m.find(it.Token.Task)
		if !it.Session.IsZero() && (t.Lease == nil || t.Lease.Session != it.Session) {
			out[i] = task.VerdictStale
			continue
		}
		out[i] = t.Settle(now, it.Token, it.Outcome, it.Jitter)
		m.ready(t)
	}
	return out, nil
}

func (m *memory) Resume(_ context.Context, now time.Time, r store.Resumption) ([]task.Verdict, error) {
	out := make([]task.Verdict, len(r.Held))
	listed := map[task.ID]bool{}
	for i, h := range r.Held {
		out[i] = task.VerdictStale
		t := m.find(h.Token.Task)
		if t.Lease != nil && t.Lease.Worker == r.Worker {
			out[i] = t.Renew(now, h.Token, h.Until, h.StartedAt)
		}
		if out[i] == task.VerdictRecorded {
			t.Lease.Session = r.Session
			listed[t.ID] = true
		}
	}
	for _, t := range m.tasks {
		if t.Lease != nil && t.Lease.Worker == r.Worker && !listed[t.ID] {
			m.lose(now, t, task.Fail(task.EndReturned, "the worker came back without it"))
		}
	}
	return out, nil
}

func (m *memory) Reap(_ context.Context, now time.Time, _ int) (next time.Time, err error) {
	for _, t := range m.tasks {
		if t.Lease != nil && !t.Lease.Until.After(now) {
			m.expire(now, t)
		}
	}
	return time.Time{}, nil
}

// expire ends the lease in force, whatever is left of it: where clocks drift and renewals
// are late, that may happen at any moment.
func (m *memory) expire(now time.Time, t *task.Task) {
	m.lose(now, t, t.Overdue(false))
}

func (m *memory) lose(now time.Time, t *task.Task, out task.Outcome) {
	tok, _ := t.Token()
	m.revoked(tok)
	t.Settle(now, tok, out, 0)
	m.ready(t)
}

func (m *memory) ready(t *task.Task) {
	if t.Status == task.Queued && t.Lease == nil {
		m.ring(store.Signal{Kind: store.Ready, Queue: t.Queue, Runtime: t.Runtime})
	}
}

func (m *memory) revoked(tok task.Token) {
	m.ring(store.Signal{Kind: store.Revoked, Task: tok.Task, Claim: tok.Claim})
}

func (m *memory) ring(sig store.Signal) {
	if !slices.Contains(m.rung, sig) {
		m.rung = append(m.rung, sig)
	}
}

func (m *memory) text() (out []string) {
	for i, t := range m.tasks {
		out = append(out, fmt.Sprintf("task %d %s, epoch %d, lease %+v", i, t.Status, t.Epoch, t.Lease))
	}
	return out
}
