package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var readTests = []test{
	{"Unknown", testReadUnknown},
	{"ManyInOneCall", testReadMany},
	{"ListNewestFirst", testListOrder},
	{"ListPages", testListPages},
	{"ListFilters", testListFilters},
	{"ListCombinesFilters", testListCombined},
	{"ListLooksFarEnough", testListSparse},
	{"ListRefusesBadLimits", testListLimits},
	{"QueueStats", testQueueStats},
}

func testReadUnknown(e *env) {
	_, err := e.Store.Task(e.Context(), newID())
	e.wantCode(err, task.CodeNotFound)
	_, _, err = e.Store.Result(e.Context(), newID())
	e.wantCode(err, task.CodeNotFound)
	_, err = e.Store.Task(e.Context(), task.ID{})
	e.wantCode(err, task.CodeNotFound)
}

func testReadMany(e *env) {
	a, b := e.submit(), e.submit()
	e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
	got, err := e.Store.Tasks(e.Context(), []task.ID{b, newID(), a, b})
	e.must(err)
	if len(got) != 4 || got[1] != nil || got[0] == nil || got[0].ID != b || got[2].ID != a || got[3].ID != b ||
		got[2].Status != task.Completed || got[0].Status != task.Queued {
		e.Fatalf("answered %v", got)
	}
	if got[0] == got[3] {
		e.Fatal("one record was handed out twice")
	}
	got, err = e.Store.Tasks(e.Context(), nil)
	if e.must(err); len(got) != 0 {
		e.Fatalf("no ids gave %v", got)
	}
}

// list reads all pages of a query.
func (e *env) list(q store.ListQuery) (out []task.ID) {
	e.Helper()
	for range 10000 {
		page, next, err := e.Store.ListTasks(e.Context(), q)
		e.must(err)
		if len(page) > q.Limit {
			e.Fatalf("a page of %d, the limit is %d", len(page), q.Limit)
		}
		for _, t := range page {
			out = append(out, t.ID)
		}
		if next.IsZero() {
			return out
		}
		q.Before = next
	}
	e.Fatal("the listing does not end")
	return nil
}

// mixed submits n tasks and brings some of them to each state.
func (e *env) mixed(n int) []task.ID {
	var all []task.ID
	for range n {
		all = append(all, e.submit())
	}
	for i, c := range e.claim(n / 2) {
		switch i % 4 {
		case 0:
			e.settle(c.Token, success("1"), task.VerdictRecorded)
		case 1:
			e.start(c.Token)
		case 2:
			e.settle(c.Token, task.Fail(task.EndRaised, "no"), task.VerdictRecorded)
		case 3:
			e.cancel(c.Token.Task)
		}
	}
	return all
}

func testListOrder(e *env) {
	if got := e.list(store.ListQuery{Limit: 10}); len(got) != 0 {
		e.Fatalf("an empty store lists %v", got)
	}
	want := e.mixed(20)
	slices.Reverse(want)
	if got := e.list(store.ListQuery{Limit: 1000}); !slices.Equal(got, want) {
		e.Fatalf("listed\n%v, want newest first\n%v", got, want)
	}
}

func testListPages(e *env) {
	want := e.mixed(23)
	slices.Reverse(want)
	for _, limit := range []int{1, 2, 7, 22, 23, 24} {
		if got := e.list(store.ListQuery{Limit: limit}); !slices.Equal(got, want) {
			e.Fatalf("pages of %d: %d tasks, want %d in order", limit, len(got), len(want))
		}
	}
	if got := e.list(store.ListQuery{Limit: 5, Before: want[10]}); !slices.Equal(got, want[11:]) {
		e.Fatalf("from the middle: %d tasks, want %d", len(got), len(want)-11)
	}
	// The page that ends the list says so.
	_, next, err := e.Store.ListTasks(e.Context(), store.ListQuery{Limit: 23})
	if e.must(err); !next.IsZero() {
		e.Fatal("a page that holds everything names a next one")
	}
}

func testListFilters(e *env) {
	f1, f2 := task.ID{1, 1}, task.ID{2, 2}
	of := func(f task.ID) func(*task.Task) { return func(t *task.Task) { t.Function = f } }
	a := e.submit(of(f1))
	e.Advance(20 * time.Millisecond)
	b := e.submit(of(f2))
	e.Advance(20 * time.Millisecond)
	c := e.submit(of(f1))
	r := e.request(1)
	r.Worker = "first"
	e.settle(e.claimReq(r)[0].Token, success("1"), task.VerdictRecorded)
	r = e.request(1)
	r.Worker = "second"
	e.start(e.claimReq(r)[0].Token)
	created := e.task(b).CreatedAt
	for name, tt := range map[string]struct {
		q    store.ListQuery
		want []task.ID
	}{
		"completed":     {store.ListQuery{Status: task.Completed}, []task.ID{a}},
		"running":       {store.ListQuery{Status: task.Running}, []task.ID{b}},
		"queued":        {store.ListQuery{Status: task.Queued}, []task.ID{c}},
		"failed":        {store.ListQuery{Status: task.Failed}, nil},
		"function":      {store.ListQuery{Function: f1}, []task.ID{c, a}},
		"no function":   {store.ListQuery{Function: task.ID{3}}, nil},
		"worker":        {store.ListQuery{Worker: "second"}, []task.ID{b}},
		"past worker":   {store.ListQuery{Worker: "first"}, []task.ID{a}},
		"other worker":  {store.ListQuery{Worker: "third"}, nil},
		"after":         {store.ListQuery{CreatedAfter: created}, []task.ID{c}},
		"before":        {store.ListQuery{CreatedBefore: created}, []task.ID{a}},
		"after a":       {store.ListQuery{CreatedAfter: created.Add(-time.Millisecond)}, []task.ID{c, b}},
		"before c":      {store.ListQuery{CreatedBefore: created.Add(time.Millisecond)}, []task.ID{b, a}},
		"before itself": {store.ListQuery{Before: a}, nil},
	} {
		for _, limit := range []int{1, 10} {
			tt.q.Limit = limit
			if got := e.list(tt.q); !slices.Equal(got, tt.want) {
				e.Errorf("%s, limit %d: listed %v, want %v", name, limit, got, tt.want)
			}
		}
	}
}

func testListCombined(e *env) {
	f := task.ID{5}
	var want task.ID
	for i := range 12 {
		id := e.submit(func(t *task.Task) {
			if i%3 == 0 {
				t.Function = f
			}
		})
		if i == 6 {
			want = id
		}
	}
	for i, c := range e.claim(8) {
		if i%2 == 0 {
			e.start(c.Token)
		}
		if i == 0 {
			e.settle(c.Token, success("1"), task.VerdictRecorded)
		}
	}
	got := e.list(store.ListQuery{Limit: 3, Status: task.Running, Function: f, Worker: "w"})
	if !slices.Equal(got, []task.ID{want}) {
		e.Fatalf("listed %v, want %v", got, want)
	}
}

func testListSparse(e *env) {
	rare := e.submit(func(t *task.Task) { t.Function = task.ID{9} })
	var items []store.Submission
	for range 6000 {
		items = append(items, item(newTask(), ""))
	}
	for chunk := range slices.Chunk(items, 1000) {
		e.submitAll(chunk...)
	}
	if got := e.list(store.ListQuery{Limit: 2, Function: task.ID{9}}); !slices.Equal(got, []task.ID{rare}) {
		e.Fatalf("listed %v, want the one behind 6000 others", got)
	}
}

func testListLimits(e *env) {
	for _, limit := range []int{-1, 0, 1001} {
		_, _, err := e.Store.ListTasks(e.Context(), store.ListQuery{Limit: limit})
		e.wantCode(err, task.CodeInvalid)
	}
}

func testQueueStats(e *env) {
	check := func(want ...store.QueueStat) {
		e.Helper()
		got, err := e.Store.QueueStats(e.Context())
		e.must(err)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			e.Fatalf("stats %v, want %v", got, want)
		}
	}
	check()
	for range 4 {
		e.submit()
	}
	e.submit(func(t *task.Task) { t.Queue = "a"; t.Runtime = task.GoRuntime("x") })
	e.submit(func(t *task.Task) { t.Queue = "a"; t.FunctionRetries = 1 })
	a := store.QueueStat{Queue: "a", Runtime: "go/x", Queued: 1}
	b := store.QueueStat{Queue: "a", Runtime: "python", Queued: 1}
	check(a, b, store.QueueStat{Queue: "default", Runtime: "python", Queued: 4})
	claims := e.claim(3)
	check(a, b, store.QueueStat{Queue: "default", Runtime: "python", Queued: 4})
	e.start(claims[0].Token)
	e.start(claims[1].Token)
	check(a, b, store.QueueStat{Queue: "default", Runtime: "python", Queued: 2, Running: 2})
	e.settle(claims[0].Token, success("1"), task.VerdictRecorded)
	e.settle(claims[1].Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	check(a, b, store.QueueStat{Queue: "default", Runtime: "python", Queued: 3})
	r := e.request(1)
	r.Queues = []string{"a"}
	delayed := e.claimReq(r)[0]
	e.settleItem(store.Settlement{Token: delayed.Token, Outcome: task.Fail(task.EndRaised, "no"), Jitter: 0.9}, task.VerdictRecorded)
	check(a, b, store.QueueStat{Queue: "default", Runtime: "python", Queued: 3})
	e.cancel(delayed.Token.Task, claims[1].Token.Task)
	check(a, store.QueueStat{Queue: "default", Runtime: "python", Queued: 2})
}
