package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

func TestUnknownFields(t *testing.T) {
	e := start(t)
	e.must(e.post("/v1/functions", `{"name":"double","source":"def double(x): return 2 * x"}`), 200)
	id := e.must(e.post("/v1/tasks", `{"function":"double","args":[1]}`), 200).str("task_id")
	for _, c := range []struct{ method, path, body, field, hint string }{
		{"POST", "/v1/functions", `{"nmae":"x","source":"y"}`, "nmae", "did you mean name?"},
		{"POST", "/v1/functions/double:call?timeout=0s", `{"arg":[21]}`, "arg", "did you mean args?"},
		{"POST", "/v1/functions/double:call?timeout=0s", `{"args":[21],"options":{"timeuot":"5s"}}`, "options.timeuot", "did you mean timeout?"},
		{"POST", "/v1/functions/double:call?timeout=0s", `{"args":[21],"timeout":"5s"}`, "timeout", "did you mean options.timeout?"},
		{"POST", "/v1/functions/double:call?timeout=0s", `{"args":[21],"colour":1}`, "colour", "known are args, kwargs, options, request_id"},
		{"POST", "/v1/functions/double:call?timeuot=5s&timeout=0s", `{}`, "timeuot", "did you mean timeout?"},
		{"POST", "/v1/functions/double:call?function=x&timeout=0s", `{}`, "function", "part of the path"},
		{"POST", "/v1/functions/double:call?request_id=x&timeout=0s", `{}`, "request_id", "into the body"},
		{"POST", "/v1/functions/double:call?input.args=x&timeout=0s", `{}`, "input.args", ""},
		{"POST", "/v1/tasks?request_id=x", `{"function":"double"}`, "request_id", "into the body"},
		{"POST", "/v1/tasks", `{"function":"double","options":{"prioritty":1}}`, "options.prioritty", "did you mean priority?"},
		{"POST", "/v1/tasks:batch", `{"requests":[{"function":"double"},{"function":"double","options":{"x":1}}]}`, "requests.1.options.x", "known are"},
		{"POST", "/v1/tasks/" + id + ":cancel", `{"only_queued":true}`, "only_queued", "?only_queued=... in its query"},
		{"GET", "/v1/tasks?pageSize=5", "", "pageSize", "did you mean page_size?"},
		{"GET", "/v1/tasks?fliter=x", "", "fliter", "did you mean filter?"},
		{"GET", "/v1/tasks/" + id + "?wait=5s", "", "wait", "known are strict"},
		{"GET", "/v1/tasks/" + id + "/logs?atempt=1", "", "atempt", "did you mean attempt?"},
		{"GET", "/v1/tasks/" + id + "/result?wiat=1s", "", "wiat", "did you mean wait?"},
		{"GET", "/v1/info?x=1", "", "x", "known are strict"},
	} {
		var body []byte
		if c.body != "" {
			body = []byte(c.body)
		}
		a := e.do(c.method, c.path, body)
		got, _ := a.json["error"].(map[string]any)
		if a.status != 400 || got["reason"] != "UNKNOWN_FIELD" || got["field"] != c.field || !strings.Contains(a.str("detail"), c.hint) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, a.status, a.raw)
		}
		// The same is taken when it is asked for.
		join := "?"
		if strings.Contains(c.path, "?") {
			join = "&"
		}
		if strings.Contains(c.body, "nmae") {
			continue // nothing is left of its name
		}
		e.must(e.do(c.method, c.path+join+"strict=false", body), 200)
	}
	// Nothing of what was refused was recorded, and a document that is none stays one.
	for path, reason := range map[string]string{"/v1/tasks?strict=perhaps": "INVALID_REQUEST", "/v1/tasks?strict=false&page_size=x": "INVALID_REQUEST", "/v1/tasks?%zz": "INVALID_REQUEST"} {
		if a := e.must(e.get(path), 400); !strings.Contains(string(a.raw), `"`+reason+`"`) {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	if a := e.must(e.post("/v1/tasks", `{"arg":[1],}`), 400); !strings.Contains(string(a.raw), `"INVALID_REQUEST"`) {
		t.Errorf("%s", a.raw)
	}
	// What is inside of arguments is the function's own.
	e.must(e.post("/v1/tasks", `{"function":"double","args":[{"timeuot":1}],"kwargs":{"anything":1}}`), 200)
	// A large body is read in place.
	large := `{"function":"double","args":["` + strings.Repeat("x", 300<<10) + `"],"kwarg":{}}`
	if a := e.must(e.post("/v1/tasks", large), 400); !strings.Contains(a.str("detail"), "did you mean kwargs?") {
		t.Errorf("%s", a.raw)
	}
	e.must(e.post("/v1/tasks?strict=false", large), 200)
}

func TestRootIgnoresUnknownFields(t *testing.T) {
	for _, compat := range []RESTCompat{CompatCourse, CompatSeed} {
		e := start(t, func(c *Config) { c.RESTCompat = compat })
		a := e.must(e.post("/register_function?x=1", map[string]any{"name": "f", "payload": S(anyPickle), "extra": map[string]any{"y": 1}}), 200)
		a = e.must(e.post("/execute_function?strict=true", map[string]any{"function_id": a.str("function_id"), "payload": S(anyPickle), "priority": 1}), 200)
		e.must(e.get("/status/"+a.str("task_id")+"?x=1"), 200)
		e.must(e.get("/result/"+a.str("task_id")+"?strict=1&wait=1"), 200)
	}
}

func TestMessagesOfREST(t *testing.T) {
	e := start(t)
	e.must(e.post("/v1/functions", `{"name":"double","source":"def double(x): return 2 * x"}`), 200)
	id := e.must(e.post("/v1/tasks", `{"function":"double","args":[1]}`), 200).str("task_id")
	for _, c := range []struct{ method, path, body, field, text string }{
		{"GET", "/v1/tasks?page_size=abc", "", "page_size", `"abc" is not an integer`},
		{"GET", "/v1/tasks?page_size=", "", "page_size", "is not an integer"},
		{"GET", "/v1/tasks?page_size=1&page_size=2", "", "page_size", "2 times"},
		{"GET", "/v1/tasks?view=SHORT", "", "view", `"SHORT": want BASIC or FULL`},
		{"GET", "/v1/tasks/" + id + "/logs?attempt=first", "", "attempt", "is not an integer"},
		{"GET", "/v1/tasks/" + id + "/result?wait=", "", "wait", "is not a duration"},
		{"GET", "/v1/tasks/" + id + "/result?wait=1s2", "", "wait", "is not a duration"},
		{"GET", "/v1/tasks/" + id + "/result?wait=1s500", "", "wait", "is not a duration"},
		{"POST", "/v1/tasks/" + id + ":cancel?only_queued=perhaps", "", "only_queued", "neither true nor false"},
		{"POST", "/v1/tasks", `{"function":"double","options":{"timeout":""}}`, "options.timeout", "is not a duration"},
		{"POST", "/v1/tasks", `{"function":"double","options":{"max_retries":2147483648}}`, "options.max_retries", "not an integer of 32 bits"},
		{"POST", "/v1/tasks", `{"function":"double","options":{"priority":99}}`, "options.priority", "want 0 to 9"},
		{"POST", "/v1/tasks", "[]", "", "the body: want an object, not an array"},
		{"POST", "/v1/tasks:batch", "", "requests", "the body is empty"},
		{"GET", "/v1/functions/", "", "function", "the id or the name of a function is wanted"},
		{"GET", "/v1/functions/:call", "", "function", "lacks the id or the name of a function before :call"},
		{"POST", "/v1/functions/:call", "{}", "function", "lacks the id or the name of a function before :call"},
		{"GET", "/v1/tasks/", "", "task_id", "the id of a task is wanted"},
		{"POST", "/v1/tasks/:cancel", "", "task_id", "lacks the id of a task before :cancel"},
	} {
		a := e.do(c.method, c.path, []byte(c.body))
		got, _ := a.json["error"].(map[string]any)
		field, _ := got["field"].(string)
		if a.status != 400 || got["reason"] != "INVALID_REQUEST" || field != c.field || !strings.Contains(a.str("detail"), c.text) ||
			strings.Contains(string(a.raw), "strconv") || strings.Contains(string(a.raw), "ParseInt") {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, a.status, a.raw)
		}
	}
	// A byte order mark is invisible to whoever wrote it: it is called by its name.
	for path, status := range map[string]int{"/v1/tasks": 400, "/register_function": 422} {
		for _, size := range []int{1, 300 << 10} {
			a := e.must(e.post(path, "\ufeff"+`{"function":"`+strings.Repeat("x", size)+`"}`), status)
			if !strings.Contains(string(a.raw), "byte order mark (BOM)") {
				t.Errorf("%s: %s", path, a.raw)
			}
		}
	}
	// A stream of a task that nobody knows is an error like any other.
	a := e.must(e.get("/v1/tasks/0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11:watch"), 404)
	if a.header.Get("Content-Type") != "application/json" || !strings.Contains(string(a.raw), `"NOT_FOUND"`) {
		t.Errorf("%s %s", a.header, a.raw)
	}
}

// lateStore has no time left.
type lateStore struct{ store.Store }

func (lateStore) Function(ctx context.Context, _ task.ID) (task.Function, error) {
	<-ctx.Done()
	return task.Function{}, task.Errorf(task.CodeUnavailable, "function", "given up before it began: %w", ctx.Err())
}

func TestDeadlineOfACall(t *testing.T) {
	e := start(t, func(c *Config) { c.Store = lateStore{c.Store} })
	for _, timeout := range []string{"1n", "20m"} {
		a := e.do("GET", "/v1/functions/0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", nil, func(r *http.Request) { r.Header.Set("Grpc-Timeout", timeout) })
		if a.status != 504 || !strings.Contains(string(a.raw), `"CALL_TIMED_OUT"`) {
			t.Errorf("%s: %d %s", timeout, a.status, a.raw)
		}
	}
	for _, timeout := range []string{"soon", "5 s", "5", "S", "-1S", "999999999S"} {
		a := e.do("GET", "/v1/functions/0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", nil, func(r *http.Request) { r.Header.Set("Grpc-Timeout", timeout) })
		if text, _ := a.json["detail"].(string); a.status != 400 || !strings.Contains(text, strconv.Quote(timeout)+": want at most 8 digits and a unit") {
			t.Errorf("%s: %d %s", timeout, a.status, a.raw)
		}
	}
}

func TestAddressesStayInside(t *testing.T) {
	for text, want := range map[string]string{
		"submit: dial tcp 10.0.0.5:6379: connect: connection refused":                  "submit: dial tcp the store: connect: connection refused",
		"dial tcp [fd00::5]:6379: i/o timeout":                                         "dial tcp the store: i/o timeout",
		"dial tcp: lookup redis.internal on 10.0.0.2:53: no such host":                 "dial tcp: lookup of the store on the store: no such host",
		"MOVED 3999 redis-3.internal:6381":                                             "MOVED 3999 the store",
		"the server is closing: ask another one, or again":                             "the server is closing: ask another one, or again",
		"the watch has lasted 1h0m0s, as long as one may: watch again":                 "the watch has lasted 1h0m0s, as long as one may: watch again",
		"read tcp 127.0.0.1:51234->127.0.0.1:6379: read: connection reset by peer":     "read tcp the store->the store: read: connection reset by peer",
		"redis: all sentinels specified in configuration are unreachable: s1:26379: x": "redis: all sentinels specified in configuration are unreachable: the store: x",
	} {
		err := task.Errorf(task.CodeUnavailable, "", "%s", text)
		if got := toStatus(t.Context(), nil, "m", err); !strings.HasSuffix(got.Error(), want) {
			t.Errorf("%s\nbecame %s\nwant   %s", text, got, want)
		}
	}
}
