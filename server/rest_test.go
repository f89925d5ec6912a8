package server

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

func TestREST(t *testing.T) {
	e := start(t)
	a := e.must(e.post("/v1/functions", map[string]any{"name": "double", "runtime": "python", "source": "def double(x): return 2 * x"}), 200)
	id := a.str("function_id")
	isUUID(t, id)
	p := base64.StdEncoding.EncodeToString(anyPickle)
	for _, payload := range []string{p, strings.TrimRight(p, "="), p + "\n", p[:4] + "\r\n " + p[4:], strings.NewReplacer("+", "-", "/", "_").Replace(p)} {
		e.must(e.post("/v1/functions", map[string]any{"name": "p", "payload": payload}), 200)
	}
	if a := e.must(e.get("/v1/functions/double"), 200); a.str("function_id") != id {
		t.Errorf("%s", a.raw)
	}
	// A value of any size survives both ways, byte for byte.
	const value = `{"n": 123456789012345678901234567890, "f": 1.10, "s": "\u00fc", "z": null, "l": [1e400]}`
	done := make(chan answer)
	go func() {
		done <- e.post("/v1/functions/double:call?timeout=20s", `{"args": [`+value+`], "kwargs": {"k": 1.0}}`)
	}()
	c := e.await()
	if string(c.Args) != `{"args":[`+value+`],"kwargs":{"k": 1.0}}` {
		t.Errorf("the worker gets %s", c.Args)
	}
	e.settle(c, succeed([]byte(value), task.EncodingJSON))
	a = e.must(<-done, 200)
	if !strings.Contains(string(a.raw), `"result":`+value) || a.str("status") != "COMPLETED" || strings.Contains(string(a.raw), "result_") {
		t.Errorf("%s", a.raw)
	}
	a = e.must(e.get("/v1/tasks/"+a.str("task_id")+"/result?wait=5"), 200)
	if !strings.Contains(string(a.raw), `"result":`+value) {
		t.Errorf("%s", a.raw)
	}
	// No body at all, and a wait that ends first.
	a = e.must(e.do(http.MethodPost, "/v1/functions/double:call?timeout=10ms", nil), 200)
	if a.str("status") != "QUEUED" || a.json["result"] != nil {
		t.Errorf("%s", a.raw)
	}
	a = e.must(e.get("/v1/tasks/"+a.str("task_id")), 200)
	if _, has := a.json["attempts"].([]any); !has || a.json["attempt_count"] != float64(0) || a.json["started_at"] != nil {
		t.Errorf("%s", a.raw)
	}
	b := e.must(e.post("/v1/tasks:batch", `{"requests": [{"function": "double", "args": [1]}, {"function": "nobody"}, {"function": "double", "args": 5}, {"function":"double","kwargs":null}]}`), 200)
	items, _ := b.json["items"].([]any)
	if len(items) != 4 || !strings.Contains(string(b.raw), `"reason":"NOT_FOUND"`) || !strings.Contains(string(b.raw), `"reason":"INVALID_REQUEST"`) {
		t.Errorf("%s", b.raw)
	}
	for _, c := range []struct {
		path, body string
		status     int
		reason     string
	}{
		{"/v1/functions", `{"name": 5}`, 400, "INVALID_REQUEST"}, {"/v1/functions", `[]`, 400, "INVALID_REQUEST"}, {"/v1/functions", `{"name":"f","source":"x"} x`, 400, "INVALID_REQUEST"},
		{"/v1/functions", `{"name":"f","payload":"!!!"}`, 400, "INVALID_REQUEST"}, {"/v1/functions", `{"name":"f","payload":"QUFB"}`, 400, "INVALID_PAYLOAD"},
		{"/v1/functions/nobody:call", `{}`, 404, "NOT_FOUND"}, {"/v1/functions/double:call", `{"args": 5}`, 400, "INVALID_REQUEST"},
		{"/v1/functions/double:call?timeout=soon", `{}`, 400, "INVALID_REQUEST"}, {"/v1/functions/double:call?timeout=6m", `{}`, 400, "INVALID_REQUEST"},
		{"/v1/functions/double:call?function=%ff", `{}`, 400, "INVALID_REQUEST"}, {"/v1/functions/double:call", `{"options":{"priority":"high"}}`, 400, "INVALID_REQUEST"},
		{"/v1/functions/double:call", `{"options":{"priority":99}}`, 400, "INVALID_REQUEST"}, {"/v1/functions/double:call", `{"options":{"timeout":"later"}}`, 400, "INVALID_REQUEST"},
		{"/v1/tasks", `{}`, 400, "INVALID_REQUEST"}, {"/v1/tasks", `{"function":"nobody"}`, 404, "NOT_FOUND"}, {"/v1/tasks/x:cancel", ``, 404, "NOT_FOUND"},
	} {
		a := e.post(c.path, c.body)
		got, _ := a.json["error"].(map[string]any)
		if a.status != c.status || got["reason"] != c.reason || got["code"] != float64(c.status) || got["message"] == "" || a.str("detail") == "" {
			t.Errorf("%s %s: %d %s", c.path, c.body, a.status, a.raw)
		}
	}
	e.must(e.post("/v1/tasks", `{"function":"double","options":{"timeout":"500ms","deadline":"2200-01-01T00:00:00Z","priority":"7","maxRetries":2,"memory_limit":1e9}}`), 200)
	a = e.must(e.get("/v1/tasks?page_size=1"), 200)
	if !strings.Contains(string(a.raw), `"options":{"priority":7,"timeout":"0.5s","deadline":"2200-01-01T00:00:00Z","max_retries":2,"function_retries":0,"memory_limit":1000000000}`) {
		t.Errorf("%s", a.raw)
	}
}

func TestNamesInPaths(t *testing.T) {
	e := start(t)
	for _, name := range []string{"<lambda>", "a b", "\U0001f600", "100%", "a%2Fb", "a?b#c", "x:y", "call", ":", "a+b", "\"q\"", "..", "\u00fc", "a\tb"} {
		a := e.must(e.post("/v1/functions", map[string]any{"name": name, "source": "x"}), 200)
		for _, escape := range []func(string) string{url.PathEscape, func(s string) string {
			var b strings.Builder
			for _, c := range []byte(s) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
			return b.String()
		}} {
			path := "/v1/functions/" + escape(name)
			if got := e.must(e.get(path), 200); got.str("function_id") != a.str("function_id") || got.str("name") != name {
				t.Errorf("%q at %s: %s", name, path, got.raw)
			}
			e.must(e.post(path+":call?timeout=0s", `{}`), 200)
		}
	}
}
