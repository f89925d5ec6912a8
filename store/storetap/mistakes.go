//go:build chaos

package storetap

import (
	"context"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// mistaken makes the mistakes of package seededbug that a store can make between its callers
// and its records, on any store. It asks at each call, so a test may change its mind.
type mistaken struct {
	store.Store

	mu sync.Mutex
	// forged are results that replaced others.
	forged map[task.ID][]byte
}

// Mistaken returns the store with the mistake that is chosen, and s itself when none is.
func Mistaken(s store.Store) store.Store {
	if !seededbug.Any() {
		return s
	}
	m := &mistaken{Store: s, forged: map[task.ID][]byte{}}
	if a, ok := s.(attendant); ok {
		return struct {
			*mistaken
			attendant
		}{m, a}
	}
	if f, ok := s.(embedded); ok {
		return struct {
			*mistaken
			embedded
		}{m, f}
	}
	return m
}

// inForce replaces a token by that of the claim in force, if there is one.
func (m *mistaken) inForce(ctx context.Context, tok task.Token) task.Token {
	if t, err := m.Store.Task(ctx, tok.Task); err == nil {
		if have, ok := t.Token(); ok {
			return have
		}
	}
	return tok
}

// Settle implements store.Queue.
func (m *mistaken) Settle(ctx context.Context, now time.Time, items []store.Settlement) ([]task.Verdict, error) {
	own := append([]store.Settlement(nil), items...)
	if seededbug.On(seededbug.NoFence) {
		for i := range own {
			own[i].Token = m.inForce(ctx, own[i].Token)
		}
	}
	if seededbug.On(seededbug.FalseAck) {
		return m.falseAck(ctx, now, own)
	}
	got, err := m.Store.Settle(ctx, now, own)
	if err != nil || !seededbug.On(seededbug.ResultOverwrite) {
		return got, err
	}
	for i := range got {
		if t, err := m.Store.Task(ctx, own[i].Token.Task); got[i] != task.VerdictRecorded && err == nil && t.Status.Terminal() {
			m.mu.Lock()
			m.forged[t.ID] = append([]byte(nil), own[i].Outcome.Result...)
			m.mu.Unlock()
			got[i] = task.VerdictRecorded
		}
	}
	return got, nil
}

// falseAck acknowledges what a session reports of a claim that is not its own, and records the rest.
func (m *mistaken) falseAck(ctx context.Context, now time.Time, items []store.Settlement) ([]task.Verdict, error) {
	got, err := m.Store.Settle(ctx, now, items)
	for i := range got {
		got[i] = task.VerdictRecorded
	}
	return got, err
}

// Renew implements store.Queue.
func (m *mistaken) Renew(ctx context.Context, now time.Time, items []store.Renewal) ([]task.Verdict, error) {
	own := append([]store.Renewal(nil), items...)
	if seededbug.On(seededbug.NoRenewalFence) {
		for i := range own {
			own[i].Token = m.inForce(ctx, own[i].Token)
		}
	}
	return m.Store.Renew(ctx, now, own)
}

// Cancel implements store.Tasks.
func (m *mistaken) Cancel(ctx context.Context, now time.Time, ids []task.ID, onlyQueued bool) ([]*task.Task, error) {
	if onlyQueued || !seededbug.On(seededbug.LostCancel) {
		return m.Store.Cancel(ctx, now, ids, onlyQueued)
	}
	out := make([]*task.Task, len(ids))
	for i, id := range ids {
		t, err := m.Store.Task(ctx, id)
		switch {
		case task.CodeOf(err) == task.CodeNotFound:
			continue
		case err != nil:
			return nil, err
		case t.Status == task.Running:
			t.Cancel(now)
			out[i] = t
			continue
		}
		got, err := m.Store.Cancel(ctx, now, ids[i:i+1], false)
		if err != nil {
			return nil, err
		}
		out[i] = got[0]
	}
	return out, nil
}

// Task implements store.Tasks.
func (m *mistaken) Task(ctx context.Context, id task.ID) (*task.Task, error) {
	t, err := m.Store.Task(ctx, id)
	if err == nil {
		m.forge(t)
	}
	return t, err
}

// Result implements store.Tasks.
func (m *mistaken) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	t, result, err := m.Store.Result(ctx, id)
	if err != nil {
		return t, result, err
	}
	if forged, ok := m.forge(t); ok {
		result = forged
	}
	return t, result, nil
}

// forge shows the result that replaced another.
func (m *mistaken) forge(t *task.Task) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	result, ok := m.forged[t.ID]
	if ok {
		t.ResultSize = len(result)
	}
	return result, ok
}
