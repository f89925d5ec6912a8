package server

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// wantOver fails the test unless err is a refusal by that quota, for people and programs.
func wantOver(t *testing.T, err error, quota, used, limit string) {
	t.Helper()
	st := status.Convert(err)
	info := infoOf(st)
	if st.Code() != codes.ResourceExhausted || info.GetReason() != reasonQuota {
		t.Fatalf("%v is no refusal by a quota", err)
	}
	if m := info.GetMetadata(); m["quota"] != quota || m["used"] != used || m["limit"] != limit {
		t.Errorf("refused by %v, want quota %s with %s of %s", m, quota, used, limit)
	}
	for _, part := range []string{quota, used, limit, "--quota-" + quota} {
		if !strings.Contains(st.Message(), part) {
			t.Errorf("%q lacks %q", st.Message(), part)
		}
	}
}

func withQuotas(q fabric.Quotas) func(*Config) { return func(c *Config) { c.Quotas = q } }

// What is over a quota is refused and leaves nothing; what ends makes room; another token
// has its own.
func TestQuotaOfTasks(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), withQuotas(fabric.Quotas{Tasks: 2}))
	ctx := ring.as(t.Context(), auth.Client)
	f, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Payload: anyPickle})
	if err != nil {
		t.Fatal(err)
	}
	if f.GetCreatedBy() != ring.ids[auth.Client] {
		t.Errorf("the function was created by %q, want %q", f.GetCreatedBy(), ring.ids[auth.Client])
	}
	request := &treadlev1.ExecuteRequest{Function: "f", RequestId: "first"}
	first, err := e.fabric.Execute(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	second, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.fabric.GetTask(ctx, &treadlev1.GetTaskRequest{TaskId: second.GetTaskId()})
	if err != nil || got.GetCreatedBy() != ring.ids[auth.Client] || second.GetCreatedBy() != ring.ids[auth.Client] {
		t.Errorf("the task was created by %q, then %q, %v", second.GetCreatedBy(), got.GetCreatedBy(), err)
	}

	_, err = e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
	wantOver(t, err, "tasks", "2", "2")
	_, err = e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", RequestId: "another"})
	wantOver(t, err, "tasks", "2", "2")
	_, err = e.fabric.Call(ctx, &treadlev1.CallRequest{Function: "f"})
	wantOver(t, err, "tasks", "2", "2")
	if again, err := e.fabric.Execute(ctx, request); err != nil || again.GetTaskId() != first.GetTaskId() {
		t.Errorf("a repeat over the quota: %v, %v, want the first task", again, err)
	}
	page, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{})
	if err != nil || len(page.GetTasks()) != 2 {
		t.Errorf("%d tasks, %v: refused calls left something", len(page.GetTasks()), err)
	}
	admin := ring.as(t.Context(), auth.Admin)
	if _, err := e.fabric.Execute(admin, &treadlev1.ExecuteRequest{Function: "f"}); err != nil {
		t.Errorf("another token: %v", err)
	}

	if _, err := e.fabric.CancelTask(ctx, &treadlev1.CancelTaskRequest{TaskId: second.GetTaskId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", RequestId: "another"}); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	e.settle(e.claim(), succeed([]byte("1"), task.EncodingJSON))
	if _, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"}); err != nil {
		t.Errorf("after one has completed: %v", err)
	}
}

// A batch is let in as far as there is room, item by item, and repeats need none.
func TestQuotaOfABatch(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), withQuotas(fabric.Quotas{Tasks: 3}))
	ctx := ring.as(t.Context(), auth.Client)
	if _, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Payload: anyPickle}); err != nil {
		t.Fatal(err)
	}
	batch := func(keys ...string) (out []string, ids []string) {
		t.Helper()
		req := &treadlev1.ExecuteBatchRequest{}
		for _, key := range keys {
			req.Requests = append(req.Requests, &treadlev1.ExecuteRequest{Function: "f", RequestId: key})
		}
		got, err := e.fabric.ExecuteBatch(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range got.GetItems() {
			out, ids = append(out, item.GetError().GetReason()), append(ids, item.GetTaskId())
			if item.GetError() != nil && codes.Code(item.GetError().GetCode()) != codes.ResourceExhausted {
				t.Errorf("an item failed with %v", item.GetError())
			}
		}
		return out, ids
	}
	_, first := batch("a", "b")
	got, ids := batch("a", "", "c", "b", "")
	want := []string{"", "", reasonQuota, "", reasonQuota}
	if fmt.Sprint(got) != fmt.Sprint(want) || ids[0] != first[0] || ids[3] != first[1] || ids[1] == "" {
		t.Errorf("answered %q with ids %q, want %q", got, ids, want)
	}
	page, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{})
	if err != nil || len(page.GetTasks()) != 3 {
		t.Errorf("%d tasks, %v, want 3", len(page.GetTasks()), err)
	}
}

func TestQuotasOfFunctionsBytesAndQueues(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), withQuotas(fabric.Quotas{Functions: 3, Bytes: int64(3*len(anyPickle)) + 40, Queues: 2}))
	ctx := ring.as(t.Context(), auth.Client)
	register := func(queue, key string) (*treadlev1.Function, error) {
		return e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Payload: anyPickle, Queue: queue, RequestId: key})
	}
	var first *treadlev1.Function
	for i, queue := range []string{"default", "gpu"} {
		f, err := register(queue, fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = f
		}
	}
	_, err := register("third", "third")
	wantOver(t, err, "queues", "2", "2")
	if _, err := register("gpu", ""); err != nil {
		t.Fatal(err)
	}
	_, err = register("gpu", "")
	wantOver(t, err, "functions", "3", "3")
	if again, err := register("default", "0"); err != nil || again.GetFunctionId() != first.GetFunctionId() {
		t.Errorf("a repeat over the quota: %v, %v, want the first function", again, err)
	}

	// Exactly the limit fits: {"args":[""],"kwargs":{}} has 25 bytes without the text.
	args := func(n int) *treadlev1.ExecuteRequest {
		return &treadlev1.ExecuteRequest{Function: first.GetFunctionId(), Args: []byte(`["` + strings.Repeat("x", n-25) + `"]`)}
	}
	_, err = e.fabric.Execute(ctx, args(41))
	wantOver(t, err, "bytes", fmt.Sprint(3*len(anyPickle)), fmt.Sprint(3*len(anyPickle)+40))
	if _, err := e.fabric.Execute(ctx, args(40)); err != nil {
		t.Fatal(err)
	}
	_, err = e.fabric.Execute(ctx, args(25))
	wantOver(t, err, "bytes", fmt.Sprint(3*len(anyPickle)+40), fmt.Sprint(3*len(anyPickle)+40))

	a := e.do(http.MethodPost, "/v1/tasks", []byte(`{"function": "f", "args": [1]}`), ring.header(auth.Client))
	if obj, _ := a.json["error"].(map[string]any); a.status != http.StatusTooManyRequests || obj["reason"] != reasonQuota {
		t.Errorf("over REST: %d %s", a.status, a.raw)
	}
	a = e.do(http.MethodPost, "/register_function", []byte(`{"name": "f", "payload": "`+strings.TrimSpace(S(anyPickle))+`"}`), ring.header(auth.Client))
	if a.status != http.StatusTooManyRequests {
		t.Errorf("at the root: %d %s", a.status, a.raw)
	}
}

// Without tokens nothing is bounded, and nothing says whose it is.
func TestNoQuotasWithoutTokens(t *testing.T) {
	e := start(t, withQuotas(fabric.Quotas{Tasks: 1, Functions: 1, Bytes: 1, Queues: 1}))
	ctx := t.Context()
	for range 2 {
		f, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Payload: anyPickle})
		if err != nil || f.GetCreatedBy() != "" {
			t.Fatalf("%v, %v", f, err)
		}
		got, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Payload: anyPickle})
		if err != nil || got.GetCreatedBy() != "" {
			t.Fatalf("%v, %v", got, err)
		}
	}
}
