package fabric

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// One fabric never lets in more than the quota, however many call at once; two let in what
// the other did within a second at most.
func TestQuotasUnderConcurrency(t *testing.T) {
	const limit, callers, each = 100, 16, 20
	st := newStore(t)
	anotherFabric := func() *Fabric {
		return &Fabric{cfg: Config{Store: st}, quotas: &quotas{limits: Quotas{Tasks: limit}, usage: st.Usage, accounts: map[string]*account{}}}
	}
	ctx := t.Context()
	submit := func(f *Fabric) error {
		item := store.Submission{Task: newTestTask(), Key: store.Key{}}
		got, err := f.recordTasks(ctx, "owner", time.Now(), []store.Submission{item})
		if err != nil {
			return err
		}
		return got[0].Err
	}
	one := anotherFabric()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				var over *OverQuota
				if err := submit(one); err != nil && !errors.As(err, &over) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	u, err := st.Usage(ctx, "owner")
	if err != nil || u.Tasks > limit || u.Tasks < limit-callers {
		t.Fatalf("%d calls left %d tasks, %v, want no more than %d, and less only by what is under way", callers*each, u.Tasks, err, limit)
	}
	for u.Tasks < limit { // alone, there is room to the last
		if err := submit(one); err != nil {
			t.Fatal(err)
		}
		u.Tasks++
	}
	for _, f := range []*Fabric{one, anotherFabric()} {
		var over *OverQuota
		if err := submit(f); !errors.As(err, &over) || over.used != limit {
			t.Errorf("over the quota: %v", err)
		}
	}
}

// A store that does not answer refuses nobody by a quota, and holds no room.
func TestQuotasWithoutAStore(t *testing.T) {
	down := task.Errorf(task.CodeUnavailable, "usage", "down")
	answer := func() (store.Usage, error) { return store.Usage{}, down }
	q := &quotas{limits: Quotas{Tasks: 1}, accounts: map[string]*account{},
		usage: func(context.Context, string) (store.Usage, error) { return answer() }}
	for range 3 {
		if _, err := q.admit(t.Context(), "owner", []demand{{tasks: 1}}); task.CodeOf(err) != task.CodeUnavailable {
			t.Fatalf("admitted with %v", err)
		}
	}
	answer = func() (store.Usage, error) { return store.Usage{}, nil }
	ad, err := q.admit(t.Context(), "owner", []demand{{tasks: 1}})
	if err != nil || ad.refused != nil {
		t.Fatalf("admitted %+v, %v", ad, err)
	}
	if other, err := q.admit(t.Context(), "owner", []demand{{tasks: 1}}); err != nil || other.refused == nil {
		t.Errorf("what is under way counts: %+v, %v", other, err)
	} else {
		other.done([]bool{false})
	}
	ad.done([]bool{false})
	if again, err := q.admit(t.Context(), "owner", []demand{{tasks: 1}}); err != nil || again.refused != nil {
		t.Errorf("what was not stored counts: %+v, %v", again, err)
	}
}

func newTestTask() *task.Task {
	return &task.Task{ID: task.ID(uuid.New()), Queue: task.DefaultQueue, Runtime: task.RuntimePython, Spec: task.Spec{Priority: task.DefaultPriority}, CreatedBy: "owner"}
}
