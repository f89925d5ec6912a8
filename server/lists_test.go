package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// largeFailure has all that a failure may carry.
func largeFailure() *task.Failure {
	return &task.Failure{
		Type: "ValueError", Message: strings.Repeat("m", task.MaxErrorText), Traceback: strings.Repeat("t", task.MaxErrorText),
		Pickle: make([]byte, task.MaxErrorText), ForeignPickle: make([]byte, task.MaxErrorText),
	}
}

// failMany makes n tasks that failed at length and returns their ids, newest first.
func (e *env) failMany(n int) []string {
	e.t.Helper()
	e.source("f")
	var ids []string
	for range n {
		made, err := e.fabric.Execute(e.t.Context(), &treadlev1.ExecuteRequest{Function: "f"})
		if err != nil {
			e.t.Fatal(err)
		}
		e.settle(e.claim(), task.Outcome{End: task.EndRaised, Failure: largeFailure()})
		ids = append(ids, made.GetTaskId())
	}
	slices.Reverse(ids)
	return ids
}

// TestListOfLongErrors: a list of failed tasks stays small, and in full it is cut into pages
// that lose nothing.
func TestListOfLongErrors(t *testing.T) {
	e := start(t)
	const n = 40 // 10 MiB of errors
	want := e.failMany(n)
	basic, err := e.fabric.ListTasks(t.Context(), &treadlev1.ListTasksRequest{PageSize: 1000})
	if err != nil || len(basic.GetTasks()) != n || basic.GetNextPageToken() != "" {
		t.Fatalf("%d tasks, token %q, %v", len(basic.GetTasks()), basic.GetNextPageToken(), err)
	}
	if size := proto.Size(basic); size > n*2048 {
		t.Errorf("the basic view of %d tasks has %d bytes", n, size)
	}
	for _, x := range basic.GetTasks() {
		f := x.GetError()
		if f.GetTraceback() != "" || f.GetExceptionPickle() != nil || f.GetForeignPickle() != nil || len(f.GetMessage()) != basicMessage ||
			!strings.HasSuffix(f.GetMessage(), "m... (cut)") || f.GetExceptionType() != "ValueError" {
			t.Fatalf("basic: %d bytes of message, %d of traceback", len(f.GetMessage()), len(f.GetTraceback()))
		}
	}
	var got []string
	for token, pages := "", 0; ; pages++ {
		page, err := e.fabric.ListTasks(t.Context(), &treadlev1.ListTasksRequest{
			PageSize: 1000, PageToken: token, View: treadlev1.ListTasksRequest_FULL,
		})
		if err != nil || len(page.GetTasks()) == 0 || proto.Size(page) > maxPageBytes+1024 {
			t.Fatalf("page %d: %d tasks, %d bytes, %v", pages, len(page.GetTasks()), proto.Size(page), err)
		}
		for _, x := range page.GetTasks() {
			if len(x.GetError().GetTraceback()) != task.MaxErrorText || len(x.GetError().GetForeignPickle()) != task.MaxErrorText {
				t.Fatal("the full view lacks something")
			}
			got = append(got, x.GetTaskId())
		}
		if token = page.GetNextPageToken(); token == "" {
			if pages < 2 {
				t.Errorf("%d pages hold 10 MiB", pages+1)
			}
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pages hold %d tasks, want %d: %v", len(got), n, got)
	}
	if one, err := e.fabric.GetTask(t.Context(), &treadlev1.GetTaskRequest{TaskId: want[0]}); err != nil || len(one.GetError().GetTraceback()) != task.MaxErrorText {
		t.Errorf("a single record is cut: %v", err)
	}
	// REST has the same views.
	for query, long := range map[string]bool{"": false, "&view=BASIC": false, "&view=FULL": true} {
		if a := e.must(e.get("/v1/tasks?page_size=1"+query), 200); strings.Contains(string(a.raw), "tttt") != long {
			t.Errorf("?page_size=1%s: %d bytes", query, len(a.raw))
		}
	}
	e.must(e.get("/v1/tasks?view=7"), 400)
	e.must(e.get("/v1/tasks?view=SOME"), 400)
}

func TestBasicTask(t *testing.T) {
	full := &task.Task{Failure: &task.Failure{Message: strings.Repeat("ü", basicMessage/2), Traceback: "t"}}
	if got := basicTask(full).GetError(); got.GetMessage() != full.Failure.Message || got.GetTraceback() != "" {
		t.Errorf("a message of exactly %d bytes is cut to %d", basicMessage, len(got.GetMessage()))
	}
	full.Failure.Message += "ü"
	if got := basicTask(full).GetError().GetMessage(); len(got) > basicMessage || !strings.HasSuffix(got, "ü... (cut)") {
		t.Errorf("%d bytes, ends %q", len(got), got[len(got)-12:])
	}
	if len(full.Failure.Traceback) != 1 {
		t.Error("the record itself was cut")
	}
}

// TestListPage: the first record is taken whatever its size, the others as they fit.
func TestListPage(t *testing.T) {
	record := func(size int) *treadlev1.Queue { return &treadlev1.Queue{Name: strings.Repeat("x", size)} }
	for _, c := range []struct {
		sizes []int
		page  int32
		want  int
	}{
		{[]int{2 * maxPageBytes, 1}, 0, 1},
		{[]int{1, maxPageBytes}, 0, 1},
		{[]int{maxPageBytes/2 - 10, maxPageBytes/2 - 10, 1, 100}, 0, 3},
		{[]int{0, 0, 0}, 2, 2},
	} {
		page, err := newListPage(c.page)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for n < len(c.sizes) && page.takes(record(c.sizes[n])) {
			n++
		}
		if n != c.want {
			t.Errorf("of records of %v bytes %d are taken, want %d", c.sizes, n, c.want)
		}
	}
}

// crowdedStore has many queues and workers.
type crowdedStore struct {
	store.Store
	queues []store.QueueStat
}

func (c crowdedStore) QueueStats(context.Context) ([]store.QueueStat, error) { return c.queues, nil }

func (c crowdedStore) Workers(context.Context, time.Time) ([]store.Presence, error) {
	var all []store.Presence
	for i := range 2005 {
		all = append(all, store.Presence{Worker: fmt.Sprintf("w%04d", i)})
	}
	return all, nil
}

// crowdedServer starts a server that sees 2,005 workers and as many queues, two runtimes in each.
func crowdedServer(t *testing.T) *env {
	var queues []store.QueueStat
	for i := range 2005 {
		queues = append(queues, store.QueueStat{Queue: fmt.Sprintf("q%04d", i/2), Runtime: []string{"go/resize", "python"}[i%2], Queued: i, Running: 1})
	}
	return start(t, func(c *Config) { c.Store = crowdedStore{c.Store, queues} })
}

func TestFleetIsPaged(t *testing.T) {
	e := crowdedServer(t)
	for size, pages := range map[int32]int{0: 21, 1: 2005, 401: 5, 1000: 3, 5000: 3} {
		var workers, queues []string
		n := 0
		for token := ""; n == 0 || token != ""; n++ {
			page, err := e.fabric.ListWorkers(t.Context(), &treadlev1.ListWorkersRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range page.GetWorkers() {
				workers = append(workers, w.GetWorkerId())
			}
			token = page.GetNextPageToken()
		}
		for m, token := 0, ""; m == 0 || token != ""; m++ {
			page, err := e.fabric.ListQueues(t.Context(), &treadlev1.ListQueuesRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range page.GetQueues() {
				queues = append(queues, q.GetName()+" "+q.GetRuntime())
			}
			token = page.GetNextPageToken()
		}
		if n != pages || len(workers) != 2005 || len(queues) != 2005 || !slices.IsSorted(workers) || !slices.IsSorted(queues) {
			t.Errorf("page_size %d: %d pages of workers (want %d), %d workers, %d queues", size, n, pages, len(workers), len(queues))
		}
	}
	one, err := e.fabric.ListWorkers(t.Context(), &treadlev1.ListWorkersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*treadlev1.ListQueuesRequest{{PageSize: -1}, {PageToken: "junk"}, {PageToken: one.GetNextPageToken()}} {
		_, err := e.fabric.ListQueues(t.Context(), req)
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
	_, err = e.fabric.ListWorkers(t.Context(), &treadlev1.ListWorkersRequest{PageToken: keyToken(pageWorkers, "a", "b")})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	a := e.must(e.get("/v1/workers?page_size=2&page_token="+one.GetNextPageToken()), 200)
	if list, _ := a.json["workers"].([]any); len(list) != 2 || !strings.Contains(string(a.raw), `"worker_id":"w0100"`) || a.str("next_page_token") == "" {
		t.Errorf("%s", a.raw)
	}
	if a := e.must(e.get("/v1/queues"), 200); strings.Count(string(a.raw), `"name"`) != defaultPage || a.str("next_page_token") == "" {
		t.Errorf("%.200s", a.raw)
	}
}

// TestMetricsOfManyQueues: callers name queues, so /metrics bounds the series that come of it.
func TestMetricsOfManyQueues(t *testing.T) {
	e := crowdedServer(t)
	text := string(e.must(e.get("/metrics"), 200).raw)
	if n := strings.Count(text, "\ntreadle_queue_tasks{"); n != 2*(maxQueueSeries+1) {
		t.Errorf("%d series", n)
	}
	rest := 0
	for i := range 2005 - maxQueueSeries {
		rest += i // those with the fewest tasks
	}
	for _, line := range []string{
		fmt.Sprintf(`treadle_queue_tasks{queue="other",runtime="other",status="QUEUED"} %d`, rest),
		fmt.Sprintf(`treadle_queue_tasks{queue="other",runtime="other",status="RUNNING"} %d`, 2005-maxQueueSeries),
		`treadle_queue_tasks{queue="q1002",runtime="go/resize",status="QUEUED"} 2004`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if text := string(start(t).get("/metrics").raw); strings.Contains(text, `queue="other"`) {
		t.Error("a series for the rest where there is none")
	}
}

// TestJSONCallersGetNoPickles: who speaks JSON has no use for a pickled exception. The
// record and gRPC have it.
func TestJSONCallersGetNoPickles(t *testing.T) {
	e := start(t)
	e.source("f")
	answers := make(chan answer)
	go func() { answers <- e.post("/v1/functions/f:call", map[string]any{"args": []int{1}}) }()
	c := e.await()
	e.settle(c, task.Outcome{End: task.EndRaised, Failure: &task.Failure{
		Type: "ValueError", Message: "boom", Traceback: "Traceback", Pickle: anyPickle, ForeignPickle: anyPickle,
	}})
	id := c.Token.Task.String()
	for name, a := range map[string]answer{"call": <-answers, "result": e.get("/v1/tasks/" + id + "/result")} {
		if e.must(a, 200); strings.Contains(string(a.raw), "_pickle") || !strings.Contains(string(a.raw), "boom") {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	if a := e.must(e.get("/v1/tasks/"+id), 200); !strings.Contains(string(a.raw), `"exception_pickle"`) {
		t.Errorf("%s", a.raw)
	}
	res, err := e.fabric.GetResult(t.Context(), &treadlev1.GetResultRequest{TaskId: id, Wait: durationpb.New(0)})
	if err != nil || len(res.GetError().GetExceptionPickle()) == 0 {
		t.Errorf("%v, %v", res, err)
	}
}

// TestRowsOfThePagesRead: short rows are no promise that those after them are short.
func TestRowsOfThePagesRead(t *testing.T) {
	small, large := make([]*task.Task, 32), make([]*task.Task, 32)
	for i := range small {
		small[i] = &task.Task{}
		large[i] = &task.Task{Failure: &task.Failure{Message: strings.Repeat("m", 64<<10), Traceback: strings.Repeat("t", 64<<10)}}
	}
	for name, tt := range map[string]struct {
		last []*task.Task
		want int
	}{"none": {nil, 64}, "short": {small, 64}, "long": {large, 32}} {
		if got := nextRows(tt.last); got != tt.want {
			t.Errorf("after %s rows %d are read, want %d", name, got, tt.want)
		}
	}
}
