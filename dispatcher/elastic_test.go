package dispatcher_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// A pool grows while work waits and shrinks when it does not, in every mode and on both
// stores; what runs meanwhile runs once.
func TestElasticPoolFollowsTheWork(t *testing.T) {
	onEachStore(t, func(t *testing.T, f *fabric) {
		for _, mode := range modes {
			t.Run(string(mode), func(t *testing.T) {
				d, stop := f.dispatcher(nil)
				defer stop()
				var runs atomic.Int64
				const most = 6
				started, release := make(chan struct{}, 2*most), make(chan struct{})
				dial := worker.DialLocal(d, func(err error) { t.Logf("dispatcher's end: %v", err) })
				if mode != link.Local {
					dial = dialAs(d, mode)
				}
				a, err := worker.New(worker.Config{
					ID: newID().String(), Mode: mode, Dial: dial, Slots: 1, MaxSlots: most, IdleAfter: 50 * time.Millisecond,
					Executors: []worker.Executor{holding(&runs, started, release)}, Logger: testLogger(t), DrainTimeout: time.Second,
				})
				if err != nil {
					t.Fatal(err)
				}
				defer f.run(a)()
				slots := func() int {
					workers, err := f.store.Workers(t.Context(), time.Now())
					if err != nil {
						t.Fatal(err)
					}
					for _, w := range workers {
						if w.Mode == string(mode) {
							return w.Slots
						}
					}
					return 0
				}
				ids, ends := f.submit("hold", most+2, nil)
				for range most {
					<-started
				}
				f.await("all slots are told", 10*time.Second, func() bool { return slots() == most })
				close(release)
				f.wait(ends, 10*time.Second)
				f.await("the pool shrinks", 10*time.Second, func() bool { return slots() == 1 })
				for _, id := range ids {
					if tk, got := f.result(id); tk.Status != task.Completed || got != `"kept"` || tk.AttemptCount != 1 || tk.Lapses != 0 {
						t.Errorf("task %s: %s with %q after %d attempts and %d lapses", id, tk.Status, got, tk.AttemptCount, tk.Lapses)
					}
				}
				if runs.Load() != most+2 {
					t.Errorf("%d executions of %d tasks", runs.Load(), most+2)
				}
			})
		}
	})
}

// What waits for a slot that is still to be opened goes to a worker that has one free.
func TestFreeSlotsComeBeforeNewOnes(t *testing.T) {
	f := newFabric(t)
	d, _ := f.dispatcher(nil)
	var here, there atomic.Int64
	started, release := make(chan struct{}, 8), make(chan struct{})
	f.agent(d, link.Push, 3, holding(&there, started, release))
	f.await("the first worker is there", 10*time.Second, func() bool { return d.Sessions() == 1 })
	a, err := worker.New(worker.Config{
		ID: newID().String(), Mode: link.Push, Dial: dialAs(d, link.Push), Slots: 1, MaxSlots: 8,
		Executors: []worker.Executor{holding(&here, started, release)}, Logger: testLogger(t), DrainTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.run(a)
	f.await("both workers are there", 10*time.Second, func() bool { return d.Sessions() == 2 })
	_, ends := f.submit("hold", 4, nil)
	for range 4 {
		<-started
	}
	if here.Load() != 1 || there.Load() != 3 {
		t.Errorf("%d tasks in the worker that would have to grow, %d in the one with three slots", here.Load(), there.Load())
	}
	close(release)
	f.wait(ends, 10*time.Second)
}
