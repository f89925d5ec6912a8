package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var concurrentTests = []test{
	{"ClaimsNeverGiveOneTaskTwice", testConcurrentClaims},
	{"OneKeyOneTask", testConcurrentKey},
	{"CancelAgainstSettle", testConcurrentCancel},
	{"ReapersRequeueOnce", testConcurrentReap},
	{"Everything", testConcurrentEverything},
}

// fail reports an error from any goroutine.
func (e *env) failed(err error) bool {
	if err != nil {
		e.Error(err)
	}
	return err != nil
}

func testConcurrentClaims(e *env) {
	const tasks, claimers = 600, 8
	var mu sync.Mutex
	given := map[task.ID]task.Token{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range tasks / 10 {
			var items []store.Submission
			for range 10 {
				items = append(items, item(newTask(), "x"))
			}
			if _, err := e.Store.Submit(e.Context(), e.Now(), items); e.failed(err) {
				return
			}
		}
	})
	for range claimers {
		wg.Go(func() {
			for !e.Failed() {
				got, err := e.Store.Claim(e.Context(), e.Now(), []store.ClaimRequest{e.request(7)})
				if e.failed(err) {
					return
				}
				mu.Lock()
				for _, c := range got[0] {
					if other, twice := given[c.Token.Task]; twice {
						e.Errorf("task %s was given twice: %+v and %+v", c.Token.Task, other, c.Token)
					}
					given[c.Token.Task] = c.Token
				}
				done := len(given) == tasks
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	wg.Wait()
	if len(given) != tasks {
		e.Fatalf("%d tasks were given, want %d", len(given), tasks)
	}
}

func testConcurrentKey(e *env) {
	for range 20 {
		key := store.Key{ID: randomID().String(), Digest: [32]byte{1}}
		var wg sync.WaitGroup
		answers := make([]store.Submitted, 8)
		for i := range answers {
			wg.Go(func() {
				it := item(newTask(), "x")
				it.Key = key
				got, err := e.Store.Submit(e.Context(), e.Now(), []store.Submission{it})
				if !e.failed(err) {
					answers[i] = got[0]
				}
			})
		}
		wg.Wait()
		fresh := 0
		for _, a := range answers {
			if a.Err != nil || a.ID != answers[0].ID {
				e.Fatalf("one key gave %+v and %+v", a, answers[0])
			}
			if !a.Duplicate {
				fresh++
			}
		}
		if fresh != 1 {
			e.Fatalf("%d submissions of one key were new", fresh)
		}
	}
	if got := e.claim(100); len(got) != 20 {
		e.Fatalf("%d tasks of 20 keys", len(got))
	}
}

func testConcurrentCancel(e *env) {
	for range 50 {
		id := e.submit()
		c := e.claimOne()
		var verdict task.Verdict
		var wg sync.WaitGroup
		wg.Go(func() {
			got, err := e.Store.Settle(e.Context(), e.Now(), []store.Settlement{{Token: c.Token, Outcome: success("1")}})
			if !e.failed(err) {
				verdict = got[0]
			}
		})
		var seen *task.Task
		wg.Go(func() {
			got, err := e.Store.Cancel(e.Context(), e.Now(), []task.ID{id}, false)
			if !e.failed(err) {
				seen = got[0]
			}
		})
		wg.Wait()
		t, result, err := e.Store.Result(e.Context(), id)
		e.must(err)
		switch {
		case t.Status == task.Completed && verdict == task.VerdictRecorded && seen.Status == task.Completed && string(result) == "1":
		case t.Status == task.Cancelled && verdict == task.VerdictStale && seen.Status == task.Cancelled && result == nil:
		default:
			e.Fatalf("the task is %s with %q; the report was %s and the cancel saw %s", t.Status, result, verdict, seen.Status)
		}
	}
}

func testConcurrentReap(e *env) {
	for range 20 {
		e.submit()
	}
	for _, c := range e.claim(20) {
		e.start(c.Token)
	}
	e.Advance(e.Lease + time.Millisecond)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			_, err := e.Store.Reap(e.Context(), e.Now(), 1000)
			e.failed(err)
		})
	}
	wg.Wait()
	page, _, err := e.Store.ListTasks(e.Context(), store.ListQuery{Limit: 100})
	e.must(err)
	for _, t := range page {
		if t.Losses != 1 || t.Lease != nil {
			e.Fatalf("after four reapers at once: losses %d, lease %v", t.Losses, t.Lease)
		}
	}
}

// testConcurrentEverything lets clients, workers, a canceller and a reaper loose and
// then checks the books: every task has exactly one end, and only reports that were
// recorded count.
func testConcurrentEverything(e *env) {
	const clients, workers, perClient = 4, 4, 100
	var mu sync.Mutex
	recorded := map[task.ID]int{}
	var submitted []task.ID
	ended := make(chan struct{}, 1)
	stop := e.Store.Bell().Listen(func(batch []store.Signal) {
		if slices.ContainsFunc(batch, func(s store.Signal) bool { return s.Kind == store.Done }) {
			select {
			case ended <- struct{}{}:
			default:
			}
		}
	})
	defer stop()
	var submitting, all sync.WaitGroup
	for range clients {
		submitting.Go(func() {
			for range perClient {
				id := newID()
				it := item(newTask(func(t *task.Task) { t.ID, t.FunctionRetries = id, 1 }), "x")
				if _, err := e.Store.Submit(e.Context(), e.Now(), []store.Submission{it}); e.failed(err) {
					return
				}
				mu.Lock()
				submitted = append(submitted, id)
				mu.Unlock()
				if rand.IntN(10) == 0 {
					if _, err := e.Store.Cancel(e.Context(), e.Now(), []task.ID{id}, false); e.failed(err) {
						return
					}
				}
			}
		})
	}
	done := make(chan struct{})
	for i := range workers {
		all.Go(func() { e.work(fmt.Sprint("w", i), done, &mu, recorded) })
	}
	all.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if _, err := e.Store.Reap(e.Context(), e.Now(), 100); e.failed(err) {
					return
				}
				e.listSome()
			}
		}
	})
	submitting.Wait()
	e.drain(submitted, ended)
	close(done)
	all.Wait()
	e.books(submitted, recorded)
}

// work claims and settles until told to stop.
func (e *env) work(name string, done <-chan struct{}, mu *sync.Mutex, recorded map[task.ID]int) {
	for {
		select {
		case <-done:
			return
		default:
		}
		r := e.request(5)
		r.Worker = name
		got, err := e.Store.Claim(e.Context(), e.Now(), []store.ClaimRequest{r})
		if e.failed(err) {
			return
		}
		for _, c := range got[0] {
			out := success("1")
			switch rand.IntN(8) {
			case 0:
				out = task.Fail(task.EndRaised, "no")
			case 1:
				out = task.Outcome{End: task.EndReturned}
			}
			if rand.IntN(2) == 0 {
				_, err := e.Store.Renew(e.Context(), e.Now(), []store.Renewal{
					{Token: c.Token, Until: e.Now().Add(e.Lease), StartedAt: e.Now(), Log: []byte("x")}})
				if e.failed(err) {
					return
				}
			}
			verdicts, err := e.Store.Settle(e.Context(), e.Now(), []store.Settlement{{Token: c.Token, Outcome: out}})
			if e.failed(err) {
				return
			}
			if verdicts[0] == task.VerdictRecorded && out.End == task.EndSucceeded {
				mu.Lock()
				recorded[c.Token.Task]++
				mu.Unlock()
			}
		}
	}
}

func (e *env) listSome() {
	_, _, err := e.Store.ListTasks(e.Context(), store.ListQuery{Limit: 20})
	e.failed(err)
	_, err = e.Store.QueueStats(e.Context())
	e.failed(err)
}

// drain waits until every task has ended, looking again whenever some did; delayed ones
// need time to pass.
func (e *env) drain(submitted []task.ID, ended <-chan struct{}) {
	e.Helper()
	for late := time.After(time.Minute); ; {
		if e.Failed() {
			return
		}
		got, err := e.Store.Tasks(e.Context(), submitted)
		e.must(err)
		open := 0
		for _, t := range got {
			if !t.Status.Terminal() {
				open++
			}
		}
		if open == 0 {
			return
		}
		e.Advance(20 * time.Millisecond)
		select {
		case <-ended:
		case <-time.After(5 * time.Millisecond): // what is delayed waits for Advance
		case <-late:
			e.Fatalf("%d tasks do not end", open)
		}
	}
}

func (e *env) books(submitted []task.ID, recorded map[task.ID]int) {
	got, err := e.Store.Tasks(e.Context(), submitted)
	e.must(err)
	for i, t := range got {
		want := 0
		if t.Status == task.Completed {
			want = 1
		}
		if recorded[submitted[i]] != want {
			e.Errorf("task %s is %s and %d successes were recorded", t.ID, t.Status, recorded[submitted[i]])
		}
	}
	stats, err := e.Store.QueueStats(e.Context())
	if e.must(err); len(stats) != 0 {
		e.Errorf("nothing is left and the counters say %v", stats)
	}
}
