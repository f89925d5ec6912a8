package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// wantCode checks an error's code, and that it has exactly one ErrorInfo.
func wantCode(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != code {
		t.Fatalf("%v, want %v", err, code)
	}
	info := infoOf(st)
	if info == nil || info.GetReason() != reason || info.GetDomain() != "treadle.dev" {
		t.Fatalf("%v carries %v, want reason %s", err, info, reason)
	}
}

func (e *env) source(name string) *treadlev1.Function {
	e.t.Helper()
	f, err := e.fabric.RegisterFunction(e.t.Context(), &treadlev1.RegisterFunctionRequest{Name: name, Source: "def f(x): return x"})
	if err != nil {
		e.t.Fatal(err)
	}
	return f
}

func TestRegisterFunction(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	f := e.source("double")
	if f.GetForm() != "source" || f.GetQueue() != "default" || f.GetRuntime() != "python" || len(f.GetPayloadSha256()) != 64 || f.GetCreatedAt() == nil {
		t.Errorf("registered %v", f)
	}
	newer, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "double", Payload: anyPickle, Queue: "gpu", Python: "3.12"})
	if err != nil {
		t.Fatal(err)
	}
	if newer.GetPython() != "3.12" || f.GetPython() != "" {
		t.Errorf("registered for Python %q and %q", newer.GetPython(), f.GetPython())
	}
	for text, want := range map[string]string{"double": newer.GetFunctionId(), f.GetFunctionId(): f.GetFunctionId(), strings.ToUpper(f.GetFunctionId()): f.GetFunctionId()} {
		got, err := e.fabric.GetFunction(ctx, &treadlev1.GetFunctionRequest{Function: text})
		if err != nil || got.GetFunctionId() != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for name, req := range map[string]*treadlev1.RegisterFunctionRequest{
		"no name":         {Source: "x"},
		"long name":       {Name: strings.Repeat("\u00fc", 257), Source: "x"},
		"name with NUL":   {Name: "a\x00b", Source: "x"},
		"source with NUL": {Name: "f", Source: "def f(): return '\x00'"},
		"nothing":         {Name: "f"},
		"both":            {Name: "f", Source: "x", Payload: anyPickle},
		"queue":           {Name: "f", Source: "x", Queue: "a b"},
		"long queue":      {Name: "f", Source: "x", Queue: strings.Repeat("q", 129)},
		"python, source":  {Name: "f", Source: "x", Python: "3.12"},
		"python":          {Name: "f", Payload: anyPickle, Python: "3.12.1"},
		"python, text":    {Name: "f", Payload: anyPickle, Python: "three"},
		"go":              {Name: "f", Runtime: "go/resize"},
		"long request id": {Name: "f", Source: "x", RequestId: strings.Repeat("r", 129)},
		"our request id":  {Name: "f", Source: "x", RequestId: store.InternalKey("handler", "resize")},
	} {
		_, err := e.fabric.RegisterFunction(ctx, req)
		t.Log(name, err)
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
	for _, unknown := range []string{"ruby", "command", "Python", "go"} {
		_, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Source: "x", Runtime: unknown})
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
		for _, want := range []string{fmt.Sprintf("runtime %q does not exist", unknown), `"python"`, `"go/NAME"`} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: want it to say %s", err, want)
			}
		}
	}
	_, err = e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Payload: []byte("payload")})
	wantCode(t, err, codes.InvalidArgument, "INVALID_PAYLOAD")
	for _, text := range []string{"nobody", "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", strings.Repeat("x", 300)} {
		_, err := e.fabric.GetFunction(ctx, &treadlev1.GetFunctionRequest{Function: text})
		wantCode(t, err, codes.NotFound, "NOT_FOUND")
	}
}

func TestRequestIDs(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	reg := &treadlev1.RegisterFunctionRequest{Name: "f", Source: "x", RequestId: "r1"}
	a, err := e.fabric.RegisterFunction(ctx, reg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.fabric.RegisterFunction(ctx, reg)
	if err != nil || b.GetFunctionId() != a.GetFunctionId() {
		t.Fatalf("repeated: %v, %v", b, err)
	}
	reg.Source = "y"
	_, err = e.fabric.RegisterFunction(ctx, reg)
	wantCode(t, err, codes.AlreadyExists, "REQUEST_ID_CONFLICT")

	exe := func() *treadlev1.ExecuteRequest {
		return &treadlev1.ExecuteRequest{Function: "f", Args: []byte(`[1]`), RequestId: "e1", Options: &treadlev1.ExecuteOptions{Priority: proto.Int32(3)}}
	}
	first, err := e.fabric.Execute(ctx, exe())
	if err != nil {
		t.Fatal(err)
	}
	e.source("f") // the name means another function by now
	again, err := e.fabric.Execute(ctx, exe())
	if err != nil || again.GetTaskId() != first.GetTaskId() || again.GetPriority() != 3 {
		t.Fatalf("repeated: %v, %v", again, err)
	}
	for name, change := range map[string]func(*treadlev1.ExecuteRequest){
		"args":     func(r *treadlev1.ExecuteRequest) { r.Args = []byte(`[2]`) },
		"kwargs":   func(r *treadlev1.ExecuteRequest) { r.Kwargs = []byte(`{"x":1}`) },
		"priority": func(r *treadlev1.ExecuteRequest) { r.Options.Priority = nil },
		"zero":     func(r *treadlev1.ExecuteRequest) { r.Options.FunctionRetries = proto.Int32(0) },
		"timeout":  func(r *treadlev1.ExecuteRequest) { r.Options.Timeout = durationpb.New(1) },
		"deadline": func(r *treadlev1.ExecuteRequest) { r.Options.Deadline = timestamppb.New(time.Unix(9e9, 0)) },
		"memory":   func(r *treadlev1.ExecuteRequest) { r.Options.MemoryLimit = 1 << 30 },
		"function": func(r *treadlev1.ExecuteRequest) { r.Function = a.GetFunctionId() },
	} {
		req := exe()
		change(req)
		if _, err := e.fabric.Execute(ctx, req); status.Code(err) != codes.AlreadyExists {
			t.Errorf("another %s with the same request id: %v", name, err)
		}
	}
	res, err := e.fabric.ExecuteBatch(ctx, &treadlev1.ExecuteBatchRequest{Requests: []*treadlev1.ExecuteRequest{exe(), {Function: "f", Args: []byte(`[9]`), RequestId: "e1"}}})
	if err != nil || res.GetItems()[0].GetTaskId() != first.GetTaskId() || res.GetItems()[1].GetError().GetReason() != "REQUEST_ID_CONFLICT" {
		t.Fatalf("in a batch: %v, %v", res, err)
	}
}

func TestExecuteOptions(t *testing.T) {
	e := start(t, func(c *Config) { c.TaskTimeout, c.MaxRetries = time.Minute, 7 })
	ctx := t.Context()
	e.source("f")
	def, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	if o := def.GetOptions(); o.GetPriority() != 5 || o.GetTimeout().AsDuration() != time.Minute || o.GetMaxRetries() != 7 || o.GetFunctionRetries() != 0 {
		t.Errorf("defaults: %v", o)
	}
	deadline := timestamppb.New(time.Now().Add(time.Hour).Truncate(time.Microsecond))
	all := &treadlev1.ExecuteOptions{
		Priority: proto.Int32(0), Timeout: durationpb.New(time.Second), Deadline: deadline, MaxRetries: proto.Int32(0),
		FunctionRetries: proto.Int32(1000), MemoryLimit: 1 << 30,
	}
	got, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Options: all})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := e.fabric.GetTask(ctx, &treadlev1.GetTaskRequest{TaskId: got.GetTaskId()})
	if err != nil || !proto.Equal(stored.GetOptions(), all) || !proto.Equal(got.GetOptions(), all) {
		t.Errorf("stored %v, answered %v: %v", stored.GetOptions(), got.GetOptions(), err)
	}
	if stored.GetCreatedAt().AsTime().Sub(got.GetCreatedAt().AsTime()).Abs() > time.Microsecond {
		t.Errorf("created at %v, answered %v", stored.GetCreatedAt().AsTime(), got.GetCreatedAt().AsTime())
	}
	for name, o := range map[string]*treadlev1.ExecuteOptions{
		"priority 10":      {Priority: proto.Int32(10)},
		"priority -1":      {Priority: proto.Int32(-1)},
		"timeout 0":        {Timeout: durationpb.New(0)},
		"timeout -1s":      {Timeout: durationpb.New(-time.Second)},
		"timeout invalid":  {Timeout: &durationpb.Duration{Seconds: 1, Nanos: -1}},
		"deadline invalid": {Deadline: &timestamppb.Timestamp{Seconds: 1 << 60}},
		"retries -1":       {MaxRetries: proto.Int32(-1)},
		"retries 1001":     {FunctionRetries: proto.Int32(1001)},
		"memory -1":        {MemoryLimit: -1},
		"memory 5":         {MemoryLimit: 5},
	} {
		_, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Options: o})
		t.Log(name, err)
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
}

func TestExecuteArguments(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	e.source("f")
	for _, c := range []struct{ args, kwargs, want string }{
		{``, ``, `{"args":[],"kwargs":{}}`},
		{`[1, 2.0 ,"\u00e9"]`, ``, `{"args":[1, 2.0 ,"\u00e9"],"kwargs":{}}`},
		{``, ` {"x":123456789012345678901234567890}`, `{"args":[],"kwargs": {"x":123456789012345678901234567890}}`},
	} {
		if _, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Args: []byte(c.args), Kwargs: []byte(c.kwargs)}); err != nil {
			t.Fatal(err)
		}
		got := e.claim()
		if string(got.Args) != c.want || got.Task.Args != task.EncodingJSON || got.Task.Returns != task.EncodingJSON || got.Task.ArgsSize != len(c.want) {
			t.Errorf("%s %s become %s as %s", c.args, c.kwargs, got.Args, got.Task.Args)
		}
	}
	for _, req := range []*treadlev1.ExecuteRequest{
		{Args: []byte(`{}`)}, {Args: []byte(`5`)}, {Args: []byte(`null`)}, {Args: []byte(`[1`)}, {Args: []byte(`[1] x`)}, {Args: []byte("[\"\xff\"]")},
		{Kwargs: []byte(`[]`)}, {Kwargs: []byte(`{"a":}`)}, {Payload: anyPickle, Args: []byte(`[]`)}, {Payload: anyPickle, Kwargs: []byte(`{}`)},
		{Args: []byte(strings.Repeat("[", 600) + strings.Repeat("]", 600))},
	} {
		req.Function = "f"
		_, err := e.fabric.Execute(ctx, req)
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
	_, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f", Payload: []byte("junk")})
	wantCode(t, err, codes.InvalidArgument, "INVALID_PAYLOAD")
	_, err = e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "nobody"})
	wantCode(t, err, codes.NotFound, "NOT_FOUND")
	_, err = e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
}

func TestExecuteBatch(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	f := e.source("f")
	var reqs []*treadlev1.ExecuteRequest
	for i := range 1000 {
		req := &treadlev1.ExecuteRequest{Function: []string{"f", f.GetFunctionId()}[i%2], Args: fmt.Appendf(nil, "[%d]", i)}
		switch i {
		case 10:
			req.Function = "nobody"
		case 20:
			req.Args = []byte("{")
		case 30:
			req.Args, req.Payload = nil, []byte("junk")
		}
		reqs = append(reqs, req)
	}
	res, err := e.fabric.ExecuteBatch(ctx, &treadlev1.ExecuteBatchRequest{Requests: reqs})
	if err != nil || len(res.GetItems()) != 1000 {
		t.Fatalf("%d items, %v", len(res.GetItems()), err)
	}
	for i, item := range res.GetItems() {
		switch i {
		case 10:
			if item.GetError().GetCode() != int32(codes.NotFound) || item.GetError().GetReason() != "NOT_FOUND" {
				t.Errorf("item %d: %v", i, item)
			}
		case 20, 30:
			want := map[int]string{20: "INVALID_REQUEST", 30: "INVALID_PAYLOAD"}[i]
			if item.GetTaskId() != "" || item.GetError().GetReason() != want || item.GetError().GetMessage() == "" {
				t.Errorf("item %d: %v", i, item)
			}
		default:
			if item.GetError() != nil || item.GetTaskId() == "" {
				t.Fatalf("item %d: %v", i, item)
			}
		}
	}
	if c := e.claim(); c.Token.Task.String() != res.GetItems()[0].GetTaskId() || string(c.Args) != `{"args":[0],"kwargs":{}}` {
		t.Errorf("the first task is %v %s", c.Token, c.Args)
	}
	_, err = e.fabric.ExecuteBatch(ctx, &treadlev1.ExecuteBatchRequest{Requests: make([]*treadlev1.ExecuteRequest, maxBatch+1)})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	if res, err := e.fabric.ExecuteBatch(ctx, &treadlev1.ExecuteBatchRequest{}); err != nil || len(res.GetItems()) != 0 {
		t.Errorf("an empty batch: %v, %v", res, err)
	}
}

func TestCallAndWaits(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	e.source("f")
	type reply struct {
		res *treadlev1.TaskResult
		err error
	}
	replies := make(chan reply, 1)
	call := func(args string, wait time.Duration) {
		go func() {
			res, err := e.fabric.Call(ctx, &treadlev1.CallRequest{Function: "f", Timeout: durationpb.New(wait), Input: &treadlev1.CallInput{Args: []byte(args)}})
			replies <- reply{res, err}
		}()
	}
	call(`[1]`, time.Minute)
	e.settle(e.await(), succeed([]byte(`{"n": 1.0}`), task.EncodingJSON))
	r := <-replies
	if r.err != nil || r.res.GetStatus() != treadlev1.Task_COMPLETED || string(r.res.GetResult()) != `{"n": 1.0}` || r.res.ResultPickle != nil {
		t.Fatalf("%v, %v", r.res, r.err)
	}
	call(`[2]`, time.Minute)
	e.settle(e.await(), task.Outcome{End: task.EndRaised, Failure: &task.Failure{Type: "ValueError", Message: "boom", Traceback: "Traceback"}})
	r = <-replies
	if got := r.res.GetError(); r.err != nil || r.res.GetStatus() != treadlev1.Task_FAILED || got.GetErrorType() != "FunctionExecutionFailure" ||
		got.GetExceptionType() != "ValueError" || got.GetMessage() != "boom" || got.GetTraceback() != "Traceback" || got.GetWorkerId() != "w1" || r.res.Result != nil {
		t.Fatalf("%v, %v", r.res, r.err)
	}
	call(`[3]`, time.Minute)
	e.settle(e.await(), task.Outcome{End: task.EndSucceeded, Result: anyPickle, Encoding: task.EncodingPickle, Repr: "<object>"})
	r = <-replies
	if r.err != nil || string(r.res.GetResultPickle()) != string(anyPickle) || r.res.GetResultRepr() != "<object>" || r.res.Result != nil {
		t.Fatalf("%v, %v", r.res, r.err)
	}
	// The wait is over first.
	call(`[4]`, 20*time.Millisecond)
	r = <-replies
	if r.err != nil || r.res.GetStatus() != treadlev1.Task_QUEUED || r.res.Result != nil {
		t.Fatalf("%v, %v", r.res, r.err)
	}
	id := r.res.GetTaskId()
	got, err := e.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: id, Wait: durationpb.New(10 * time.Millisecond)})
	if err != nil || got.GetStatus() != treadlev1.Task_QUEUED {
		t.Fatalf("%v, %v", got, err)
	}
	go func() {
		res, err := e.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: id, Wait: durationpb.New(time.Minute)})
		replies <- reply{res, err}
	}()
	e.waiting(1)
	c := e.claim()
	if got, err = e.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: id}); err != nil || got.GetStatus() != treadlev1.Task_RUNNING {
		t.Fatalf("%v, %v", got, err)
	}
	e.settle(c, succeed(nil, task.EncodingJSON))
	if r = <-replies; r.err != nil || string(r.res.GetResult()) != "null" {
		t.Fatalf("an empty value: %v, %v", r.res, r.err)
	}
	for _, d := range []*durationpb.Duration{durationpb.New(-1), durationpb.New(fabric.MaxWait + 1), {Seconds: 1 << 40}} {
		_, err := e.fabric.Call(ctx, &treadlev1.CallRequest{Function: "f", Timeout: d})
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
		_, err = e.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: id, Wait: d})
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
	if n := e.waiters(); n != 0 {
		t.Errorf("%d waiters are left", n)
	}
}

// await claims a task as soon as there is one.
func (e *env) await() store.Claimed {
	e.t.Helper()
	e.eventually("a task waits in the store", func() bool {
		stats, err := e.store.QueueStats(e.t.Context())
		if err != nil {
			e.t.Fatal(err)
		}
		return slices.ContainsFunc(stats, func(q store.QueueStat) bool { return q.Queued > 0 })
	})
	return e.claim()
}

// waiters counts the tasks that are waited for.
func (e *env) waiters() int {
	tasks, _, _ := e.srv.core.Waiting()
	return tasks
}

// waiting returns when n tasks are waited for.
func (e *env) waiting(n int) {
	e.t.Helper()
	e.eventually(fmt.Sprintf("%d tasks are waited for", n), func() bool { return e.waiters() == n })
}

func TestAwaitResults(t *testing.T) {
	e := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	e.source("f")
	var reqs []*treadlev1.ExecuteRequest
	for i := range 600 {
		reqs = append(reqs, &treadlev1.ExecuteRequest{Function: "f", Args: fmt.Appendf(nil, "[%d]", i)})
	}
	res, err := e.fabric.ExecuteBatch(ctx, &treadlev1.ExecuteBatchRequest{Requests: reqs})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, item := range res.GetItems() {
		ids = append(ids, item.GetTaskId())
	}
	for range 100 { // ended before anyone asks
		e.settle(e.claim(), succeed([]byte(`"early"`), task.EncodingJSON))
	}
	stream, err := e.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: append(slices.Clone(ids), ids[:5]...)})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 500 {
			e.settle(e.claim(), succeed([]byte(`"late"`), task.EncodingJSON))
		}
	}()
	seen := make(map[string]bool)
	for {
		msg, err := stream.Recv()
		if err != nil {
			if err.Error() != "EOF" {
				t.Fatal(err)
			}
			break
		}
		for _, r := range msg.GetResults() {
			if seen[r.GetTaskId()] || r.GetStatus() != treadlev1.Task_COMPLETED {
				t.Fatalf("%v: seen before: %v", r, seen[r.GetTaskId()])
			}
			seen[r.GetTaskId()] = true
		}
	}
	if len(seen) != 600 {
		t.Fatalf("%d of 600 results", len(seen))
	}
	for _, bad := range [][]string{{"0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"}, {"nonsense"}, {ids[0], "x"}} {
		stream, err := e.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: bad})
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, err, codes.NotFound, "NOT_FOUND")
	}
	if n := e.waiters(); n != 0 {
		t.Errorf("%d waiters are left", n)
	}
}

// A watch sees a start, a return to the queue and the end by the bell, not by looking.
func TestWatchIsRung(t *testing.T) {
	e := start(t, func(c *Config) { c.SafetyNet = time.Hour })
	e.source("f")
	made, err := e.fabric.Execute(t.Context(), &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := e.fabric.WatchTask(t.Context(), &treadlev1.WatchTaskRequest{TaskId: made.GetTaskId()})
	if err != nil {
		t.Fatal(err)
	}
	want := func(status treadlev1.Task_Status) {
		t.Helper()
		if got, err := stream.Recv(); err != nil || got.GetStatus() != status {
			t.Fatalf("watched %v, %v, want %v", got.GetStatus(), err, status)
		}
	}
	want(treadlev1.Task_QUEUED)
	c := e.claim()
	want(treadlev1.Task_RUNNING)
	e.settle(c, task.Outcome{End: task.EndReturned})
	want(treadlev1.Task_QUEUED)
	c = e.claim()
	want(treadlev1.Task_RUNNING)
	e.settle(c, succeed([]byte("1"), task.EncodingJSON))
	want(treadlev1.Task_COMPLETED)
	if _, err := stream.Recv(); err == nil {
		t.Error("the watch goes on after the end")
	}
	e.eventually("nobody watches any more", func() bool {
		_, watched, _ := e.srv.core.Waiting()
		return watched == 0
	})
}

func TestWatchAndCancel(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	e.source("f")
	made, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetTaskId()
	// The same watch over gRPC and as lines over REST.
	stream, err := e.fabric.WatchTask(ctx, &treadlev1.WatchTaskRequest{TaskId: id})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.client.Get(e.url + "/v1/tasks/" + id + ":watch")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "application/x-ndjson" {
		t.Errorf("a stream of type %q", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	want := func(status string) {
		t.Helper()
		got, err := stream.Recv()
		if err != nil || got.GetStatus().String() != status {
			t.Fatalf("watched %v, %v, want %s", got.GetStatus(), err, status)
		}
		var line map[string]any
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &line) != nil || line["status"] != status || line["task_id"] != id {
			t.Fatalf("the line is %s, want %s", lines.Bytes(), status)
		}
	}
	want("QUEUED")
	c := e.claim()
	want("RUNNING")
	left, err := e.fabric.CancelTask(ctx, &treadlev1.CancelTaskRequest{TaskId: id, OnlyQueued: true})
	if err != nil || left.GetStatus() != treadlev1.Task_RUNNING {
		t.Fatalf("one that runs is left alone: %v, %v", left, err)
	}
	cancelled, err := e.fabric.CancelTask(ctx, &treadlev1.CancelTaskRequest{TaskId: id})
	if err != nil || cancelled.GetStatus() != treadlev1.Task_CANCELLED || cancelled.GetError().GetErrorType() != "Cancelled" {
		t.Fatalf("%v, %v", cancelled, err)
	}
	want("CANCELLED")
	if _, err := stream.Recv(); err == nil || lines.Scan() {
		t.Errorf("the watch goes on after the end: %v", err)
	}
	v, err := e.store.Settle(ctx, time.Now(), []store.Settlement{{Token: c.Token, Outcome: succeed([]byte("1"), task.EncodingJSON)}})
	if err != nil || v[0] != task.VerdictStale {
		t.Errorf("a result after the cancel is %v, %v", v, err)
	}
	if again, err := e.fabric.CancelTask(ctx, &treadlev1.CancelTaskRequest{TaskId: id}); err != nil || again.GetStatus() != treadlev1.Task_CANCELLED {
		t.Errorf("cancelled again: %v, %v", again, err)
	}
	_, err = e.fabric.CancelTask(ctx, &treadlev1.CancelTaskRequest{TaskId: "nonsense"})
	wantCode(t, err, codes.NotFound, "NOT_FOUND")
	a := e.get("/v1/tasks/nonsense:watch")
	if a.status != 404 || !strings.Contains(string(a.raw), `"reason":"NOT_FOUND"`) {
		t.Errorf("a watch of nothing: %d %s", a.status, a.raw)
	}
}

func TestLogs(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	e.source("f")
	made, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetTaskId()
	if l, err := e.fabric.GetLogs(ctx, &treadlev1.GetLogsRequest{TaskId: id}); err != nil || l.GetText() != "" || l.GetAttempt() != 0 {
		t.Errorf("before the start: %v, %v", l, err)
	}
	e.settle(e.claim(), succeed([]byte("1"), task.EncodingJSON))
	for _, attempt := range []int32{0, 1} {
		l, err := e.fabric.GetLogs(ctx, &treadlev1.GetLogsRequest{TaskId: id, Attempt: attempt})
		if err != nil || l.GetText() != "printed\uFFFD\n" || l.GetAttempt() != 1 || l.GetTaskId() != id {
			t.Errorf("%v, %v", l, err)
		}
	}
	_, err = e.fabric.GetLogs(ctx, &treadlev1.GetLogsRequest{TaskId: id, Attempt: 2})
	wantCode(t, err, codes.NotFound, "NOT_FOUND")
	_, err = e.fabric.GetLogs(ctx, &treadlev1.GetLogsRequest{TaskId: id, Attempt: -1})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	if a := e.must(e.get("/v1/tasks/"+id+"/logs?attempt=1"), 200); a.str("text") != "printed\uFFFD\n" {
		t.Errorf("%s", a.raw)
	}
}

func TestLists(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	f, g := e.source("f"), e.source("g h \"x\"")
	begin := time.Now()
	for i := range 25 {
		name := []string{f.GetFunctionId(), g.GetFunctionId()}[i%2]
		if _, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: name}); err != nil {
			t.Fatal(err)
		}
	}
	e.settle(e.claim(), succeed([]byte("1"), task.EncodingJSON))
	list := func(filter string, size int32) []string {
		t.Helper()
		var ids []string
		token := ""
		for {
			res, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{Filter: filter, PageSize: size, PageToken: token})
			if err != nil {
				t.Fatalf("%s: %v", filter, err)
			}
			for _, x := range res.GetTasks() {
				ids = append(ids, x.GetTaskId())
			}
			if token = res.GetNextPageToken(); token == "" {
				return ids
			}
			if len(ids) > 1000 {
				t.Fatalf("%s: the pages have no end: %d tasks so far", filter, len(ids))
			}
		}
	}
	all := list("", 0)
	if len(all) != 25 || !slices.IsSortedFunc(all, func(a, b string) int { return strings.Compare(b, a) }) {
		t.Fatalf("%d tasks, newest first: %v", len(all), all)
	}
	if paged := list("", 4); !slices.Equal(paged, all) {
		t.Errorf("pages of 4 give %v", paged)
	}
	for filter, want := range map[string]int{
		`status = QUEUED`: 24, `status=COMPLETED`: 1, `status = "FAILED"`: 0, `function = f`: 13, `function = ` + g.GetFunctionId(): 12,
		`function = "g h \"x\"" AND status=QUEUED`: 12, `worker = w1`: 1, `worker = nobody`: 0, ``: 25, `   `: 25,
		`create_time > ` + begin.Add(-time.Hour).Format(time.RFC3339Nano):                                                       25,
		`created_at < ` + begin.Add(-time.Hour).Format(time.RFC3339):                                                            0,
		`create_time > 2020-01-01T00:00:00Z AND create_time < 2021-01-01T00:00:00Z`:                                             0,
		`create_time > 2020-01-01T00:00:00Z AND create_time < "2200-01-01T00:00:00+02:00" AND function = f AND status = QUEUED`: 12,
	} {
		if got := len(list(filter, 3)); got != want {
			t.Errorf("%s: %d tasks, want %d", filter, got, want)
		}
	}
	for _, filter := range []string{
		`status`, `status =`, `= QUEUED`, `status = NOPE`, `status > QUEUED`, `status = QUEUED OR worker = w1`, `status = QUEUED worker = w1`,
		`status = QUEUED AND`, `AND`, `nothing = 1`, `create_time = 2020-01-01T00:00:00Z`, `create_time > yesterday`, `status = "QUEUED`, `status = = QUEUED`,
		`status = QUEUED AND status = FAILED`, `"status" = QUEUED`, `status = STATUS_UNSPECIFIED`, strings.Repeat("x", 5000), `nothing > 1`,
	} {
		_, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{Filter: filter})
		if code := status.Code(err); code != codes.InvalidArgument {
			t.Errorf("%s: %v", filter, err)
		}
	}
	_, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{Filter: "function = nobody"})
	wantCode(t, err, codes.NotFound, "NOT_FOUND")
	page, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*treadlev1.ListTasksRequest{
		{PageToken: "junk"}, {PageSize: -1}, {PageToken: page.GetNextPageToken(), Filter: "status = QUEUED"}, {PageToken: page.GetNextPageToken()[1:]},
	} {
		_, err := e.fabric.ListTasks(ctx, req)
		wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
	_, err = e.fabric.ListFunctions(ctx, &treadlev1.ListFunctionsRequest{PageToken: page.GetNextPageToken()})
	wantCode(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	fs, err := e.fabric.ListFunctions(ctx, &treadlev1.ListFunctionsRequest{PageSize: 1})
	if err != nil || len(fs.GetFunctions()) != 1 || fs.GetFunctions()[0].GetFunctionId() != g.GetFunctionId() {
		t.Fatalf("%v, %v", fs, err)
	}
	fs, err = e.fabric.ListFunctions(ctx, &treadlev1.ListFunctionsRequest{PageToken: fs.GetNextPageToken()})
	if err != nil || len(fs.GetFunctions()) != 1 || fs.GetFunctions()[0].GetFunctionId() != f.GetFunctionId() || fs.GetNextPageToken() != "" {
		t.Fatalf("%v, %v", fs, err)
	}
	a := e.must(e.get("/v1/tasks?filter="+url.QueryEscape("status = COMPLETED")+"&page_size=5"), 200)
	if tasks, _ := a.json["tasks"].([]any); len(tasks) != 1 {
		t.Errorf("%s", a.raw)
	}
}

func TestFleetAndInfo(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	now := time.Now()
	if err := e.store.Announce(ctx, now.Add(time.Minute), []store.Presence{{
		Worker: "w1", Name: "n\xff", Host: "h", PID: 7, Mode: "push", State: "active", Queues: []string{"default"}, Runtimes: []string{"python"},
		Version: "v", Slots: 4, Running: 1, Offered: 2, ConnectedAt: now, LastSeen: now,
	}}); err != nil {
		t.Fatal(err)
	}
	res, err := e.fabric.ListWorkers(ctx, &treadlev1.ListWorkersRequest{})
	if err != nil || len(res.GetWorkers()) != 1 || res.GetWorkers()[0].GetName() != "n\uFFFD" || res.GetWorkers()[0].GetSlots() != 4 {
		t.Errorf("%v, %v", res, err)
	}
	e.executeRoot(e.registerRoot())
	q, err := e.fabric.ListQueues(ctx, &treadlev1.ListQueuesRequest{})
	if err != nil || len(q.GetQueues()) != 1 || q.GetQueues()[0].GetName() != "default" || q.GetQueues()[0].GetQueued() != 1 {
		t.Errorf("%v, %v", q, err)
	}
	a := e.must(e.get("/v1/info"), 200)
	if a.str("version") != "test" || a.str("durability") != "memory" || a.json["max_payload"] != float64(64<<20) || a.str("retention") != "86400s" {
		t.Errorf("%s", a.raw)
	}
	if a := e.must(e.get("/v1/queues"), 200); !strings.Contains(string(a.raw), `"queued":1,"running":0`) {
		t.Errorf("%s", a.raw)
	}
	if a := e.must(e.get("/v1/workers"), 200); !strings.Contains(string(a.raw), `"worker_id":"w1"`) {
		t.Errorf("%s", a.raw)
	}
}

func TestClosingEndsWaits(t *testing.T) {
	e := start(t)
	e.source("f")
	got := make(chan *treadlev1.TaskResult, 1)
	go func() {
		res, err := e.fabric.Call(t.Context(), &treadlev1.CallRequest{Function: "f", Timeout: durationpb.New(time.Minute)})
		if err != nil {
			t.Error(err)
		}
		got <- res
	}()
	e.waiting(1)
	e.await()
	stream, err := e.fabric.AwaitResults(t.Context(), &treadlev1.AwaitResultsRequest{TaskIds: []string{firstTask(e)}})
	if err != nil {
		t.Fatal(err)
	}
	e.eventually("two calls wait", func() bool {
		tasks, _, waiters := e.srv.core.Waiting()
		return tasks == 1 && waiters == 2
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	e.srv.Shutdown(ctx)
	if res := <-got; res.GetStatus() != treadlev1.Task_RUNNING {
		t.Errorf("the call that waited is answered %v", res)
	}
	_, err = stream.Recv()
	wantCode(t, err, codes.Unavailable, "UNAVAILABLE")
	if ctx.Err() != nil {
		t.Error("the waits held the shutdown up")
	}
}

func firstTask(e *env) string {
	e.t.Helper()
	res, err := e.fabric.ListTasks(e.t.Context(), &treadlev1.ListTasksRequest{PageSize: 1})
	if err != nil || len(res.GetTasks()) != 1 {
		e.t.Fatalf("%v, %v", res, err)
	}
	return res.GetTasks()[0].GetTaskId()
}

// eventually waits for a condition that nothing announces.
func (e *env) eventually(what string, ok func() bool) {
	e.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			e.t.Fatalf("not within 20 s: %s", what)
		}
	}
}
