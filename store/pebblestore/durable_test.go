package pebblestore

import (
	"context"
	"crypto/sha256"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestNothingIsSeenBeforeItIsDurable looks at the store from within the sync of each
// kind of change: the index has moved on by then, and nobody may see it.
func TestNothingIsSeenBeforeItIsDurable(t *testing.T) {
	t.Parallel()
	var during atomic.Pointer[func()]
	onSync := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, ".log") {
			if look := during.Swap(nil); look != nil {
				(*look)()
			}
		}
		return nil
	})
	f := newFixture(t, func(o *Options) { o.FS = errorfs.Wrap(vfs.NewMem(), onSync) })
	s := f.s
	rings := 0
	defer s.Bell().Listen(func(batch []store.Signal) { rings += len(batch) })()
	// Whoever would have to wait for the commit gives up at once.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	// in runs a change and looks while it is being synced.
	in := func(name string, change, look func()) {
		t.Helper()
		looked := false
		before := rings
		inSync := func() {
			looked = true
			look()
			if rings != before {
				t.Errorf("%s: the bell rang before the change was durable", name)
			}
		}
		during.Store(&inSync)
		change()
		if !looked {
			t.Errorf("%s was not synced", name)
		}
	}
	waits := func(name string, err error) {
		t.Helper()
		if task.CodeOf(err) != task.CodeUnavailable {
			t.Errorf("%s answered %v before the change was durable", name, err)
		}
	}
	ctx, now := context.Background(), f.clock.Now()
	tk := sampleTask([]byte("args"))
	in("submit", func() {
		if _, err := s.Submit(ctx, now, []store.Submission{{Task: tk, Args: []byte("args")}}); err != nil {
			t.Error(err)
		}
	}, func() {
		_, err := s.Task(ended, tk.ID)
		waits("Task", err)
		_, _, err = s.ListTasks(ended, store.ListQuery{Limit: 10})
		waits("ListTasks", err)
	})
	var c store.Claimed
	in("claim", func() { c = claimOne(t, f) }, func() {
		_, err := s.Tasks(ended, []task.ID{tk.ID})
		waits("Tasks", err)
	})
	in("settle", func() {
		if _, err := s.Settle(ctx, now, []store.Settlement{{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}}}); err != nil {
			t.Error(err)
		}
	}, func() {
		_, _, err := s.Result(ended, tk.ID)
		waits("Result", err)
		_, err = s.Log(ended, tk.ID, 0)
		waits("Log", err)
		_, err = s.Renew(ended, now, []store.Renewal{{Token: c.Token, Until: now.Add(time.Minute)}})
		waits("Renew", err)
		_, _, err = s.ListTasks(ended, store.ListQuery{Limit: 10})
		waits("ListTasks", err)
	})
	if rings != 2 {
		t.Errorf("%d rings, want one for the submit and one for the settle", rings)
	}
	fn := task.Function{ID: newID(), Name: "f", Hash: sha256.Sum256([]byte("code")), Size: 4}
	in("put function", func() {
		if _, err := s.PutFunction(ctx, fn, []byte("code"), store.Key{}); err != nil {
			t.Error(err)
		}
	}, func() {
		_, err := s.Function(ended, fn.ID)
		waits("Function", err)
		_, err = s.FunctionNamed(ended, "f")
		waits("FunctionNamed", err)
		_, err = s.FunctionPayload(ended, fn.Hash)
		waits("FunctionPayload", err)
		_, err = s.ListFunctions(ended, task.ID{}, 1)
		waits("ListFunctions", err)
	})
	f.clock.Advance(2 * f.opts.Retention)
	in("retention", func() {
		if _, err := s.Reap(ctx, f.clock.Now(), 10); err != nil {
			t.Error(err)
		}
	}, func() {
		_, err := s.Task(ended, tk.ID)
		waits("Task", err)
	})
	if _, err := s.Task(ctx, tk.ID); task.CodeOf(err) != task.CodeNotFound {
		t.Errorf("after retention: %v", err)
	}
}
