package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/treadle-dev/treadle/internal/pickle"
	"github.com/treadle-dev/treadle/task"
)

func TestRootLife(t *testing.T) {
	e := start(t)
	fn := e.registerRoot()
	id := e.executeRoot(strings.ToUpper(fn))
	for _, path := range []string{"/status/", "/result/"} {
		a := e.must(e.get(path+id), 200)
		if a.str("status") != "QUEUED" || a.str("task_id") != id {
			t.Errorf("%s: %s", path, a.raw)
		}
		if path == "/result/" {
			if _, isText := a.json["result"].(string); !isText {
				t.Errorf("the result of an unfinished task is no text: %s", a.raw)
			}
		}
	}
	c := e.claim()
	if !bytes.Equal(c.Args, anyPickle) {
		t.Errorf("the worker gets %q", c.Args)
	}
	if a := e.must(e.get("/status/"+strings.ToUpper(id)), 200); a.str("status") != "RUNNING" || a.str("task_id") != id {
		t.Errorf("running: %s", a.raw)
	}
	value := []byte("\x80\x04\x8c\x05value.")
	e.settle(c, succeed(value, task.EncodingPickle))
	first := e.must(e.get("/result/"+id), 200)
	if first.str("status") != "COMPLETED" || first.str("result") != S(value) || first.json["error"] != nil {
		t.Errorf("completed: %s", first.raw)
	}
	if again := e.get("/result/" + id); !bytes.Equal(again.raw, first.raw) {
		t.Errorf("the result changed from %s to %s", first.raw, again.raw)
	}
}

func TestRootRegistrations(t *testing.T) {
	e := start(t)
	seen := make(map[string]bool)
	for _, name := range []string{
		"double", "double", "<lambda>", "", " ", "\U0001f600 emoji", "a/b:c?d#e%20", strings.Repeat("n", 256), strings.Repeat("\u00fc", 256),
		strings.Repeat("\U0001f600", 256), "\x00", "line\nbreak", "null", `"quoted"`, "\u202e",
	} {
		a := e.must(e.post("/register_function", map[string]any{"name": name, "payload": S(anyPickle)}), 200)
		id := a.str("function_id")
		isUUID(t, id)
		if seen[id] {
			t.Errorf("%q: id %s was given before", name, id)
		}
		seen[id] = true
		e.executeRoot(id)
	}
	for _, name := range []string{strings.Repeat("n", 257), strings.Repeat("\U0001f600", 257)} {
		e.must422(e.post("/register_function", map[string]any{"name": name, "payload": S(anyPickle)}), "name", "")
	}
}

// must422 checks the form of a 422: a list of faults with where they are.
func (e *env) must422(a answer, field, kind string) {
	e.t.Helper()
	e.must(a, 422)
	list, ok := a.json["detail"].([]any)
	if !ok || len(list) == 0 {
		e.t.Fatalf("detail is no list: %s", a.raw)
	}
	first, _ := list[0].(map[string]any)
	loc, _ := first["loc"].([]any)
	msg, _ := first["msg"].(string)
	if len(loc) == 0 || loc[0] != "body" || msg == "" || field != "" && (len(loc) < 2 || loc[1] != field) || kind != "" && first["type"] != kind {
		e.t.Fatalf("fault at %q of type %q: %s", field, kind, a.raw)
	}
}

func TestRootPayloads(t *testing.T) {
	e := start(t)
	fn := e.registerRoot()
	good := S(anyPickle)
	many := pickle.Base64([]byte("\x80\x04(" + strings.Repeat("K\x01", 100_000) + "t."))
	for _, payload := range []string{
		good, strings.ReplaceAll(good, "\n", ""), " \r\n" + good + "\t", strings.Join(strings.Split(good, ""), "\n"), many,
	} {
		e.must(e.post("/register_function", map[string]any{"name": "f", "payload": payload}), 200)
		e.must(e.post("/execute_function", map[string]any{"function_id": fn, "payload": payload}), 200)
	}
	before := countTasks(e)
	for _, payload := range []string{
		"", "payload", "not a pickle", "====", "AAAA", "gAROLg", "gAROLg=", "gAROLg==gAROLg==", "g\u00e4ROLg==", "gAROLg==x",
		pickle.Base64([]byte("payload")), pickle.Base64(nil) + "\n", pickle.Base64([]byte("\x80\x04N")), pickle.Base64([]byte("\x80\x04N.\n")),
		pickle.Base64([]byte("N.")), pickle.Base64([]byte("\x80\x06N.")), pickle.Base64([]byte("\x80\x04Nr\xff\xff\xff\x7f.")), "\x00",
	} {
		for path, body := range map[string]map[string]any{
			"/register_function": {"name": "f", "payload": payload}, "/execute_function": {"function_id": fn, "payload": payload},
		} {
			a := e.must(e.post(path, body), 400)
			if a.str("detail") == "" {
				t.Errorf("%s %q: detail is no text: %s", path, payload, a.raw)
			}
		}
	}
	if after := countTasks(e); after != before {
		t.Errorf("refused payloads left %d tasks", after-before)
	}
}

func countTasks(e *env) int {
	e.t.Helper()
	a := e.must(e.get("/v1/tasks?page_size=1000"), 200)
	list, _ := a.json["tasks"].([]any)
	return len(list)
}

// Every length of a payload, in every form that Python clients send.
func TestRootEveryLength(t *testing.T) {
	e := start(t)
	fn := e.registerRoot()
	for n := range 401 {
		// A pickle of bytes, n of them.
		p := append([]byte{0x80, 4, 'B', byte(n), byte(n >> 8), 0, 0}, bytes.Repeat([]byte{byte(n)}, n)...)
		p = append(p, '.')
		text := S(p)
		if n%2 == 0 {
			text = strings.ReplaceAll(text, "\n", "")
		}
		a := e.must(e.post("/execute_function", map[string]any{"function_id": fn, "payload": text}), 200)
		c := e.claim()
		if !bytes.Equal(c.Args, p) {
			t.Fatalf("%d bytes arrive as %q", n, c.Args)
		}
		e.settle(c, succeed(p, task.EncodingPickle))
		if r := e.get("/result/" + a.str("task_id")); r.str("result") != S(p) {
			t.Fatalf("%d bytes come back as %q", n, r.str("result"))
		}
	}
}

func TestRootShapes(t *testing.T) {
	e := start(t)
	fn := e.registerRoot()
	good := strings.TrimSpace(S(anyPickle))
	const reg, exe = "/register_function", "/execute_function"
	for _, c := range []struct {
		path, body, field, kind string
	}{
		{reg, ``, "name", "missing"}, {reg, `{}`, "name", "missing"}, {reg, ` `, "name", "missing"},
		{reg, `{"name":"f"}`, "payload", "missing"}, {reg, `{"payload":"` + good + `"}`, "name", "missing"},
		{reg, `{"name":"f","payload":null}`, "payload", ""}, {reg, `{"name":null,"payload":"` + good + `"}`, "name", ""},
		{reg, `{"name":5,"payload":"` + good + `"}`, "name", "string_type"}, {reg, `{"name":"f","payload":5}`, "payload", "string_type"},
		{reg, `{"name":"f","payload":true}`, "payload", "string_type"}, {reg, `{"name":"f","payload":["x"]}`, "payload", "string_type"},
		{reg, `{"name":"f","payload":{"x":1}}`, "payload", "string_type"}, {reg, `{"name":["f"],"payload":"` + good + `"}`, "name", "string_type"},
		{reg, `{"name":"\ud800","payload":"` + good + `"}`, "name", "string_type"},
		{reg, `[]`, "", "dict_type"}, {reg, `"text"`, "", "dict_type"}, {reg, `null`, "", "dict_type"}, {reg, `5`, "", "dict_type"}, {reg, `true`, "", "dict_type"},
		{reg, `[{"name":"f","payload":"` + good + `"}]`, "", "dict_type"},
		{reg, `{"name":"f","payload":"` + good + `"}x`, "", "json_invalid"}, {reg, `{"name":"f","payload":"` + good + `"}{}`, "", "json_invalid"},
		{reg, `{"name":"f","payload":"` + good + `"`, "", "json_invalid"}, {reg, `{"name":"f","payload":"` + good, "", "json_invalid"},
		{reg, `name=f&payload=x`, "", "json_invalid"}, {reg, `{'name':'f'}`, "", "json_invalid"}, {reg, `{"name":"f",}`, "", "json_invalid"},
		{reg, "\xff\xfe", "", "json_invalid"}, {reg, "{\"name\":\"\xff\",\"payload\":\"" + good + `"}`, "", "json_invalid"},
		{reg, "\ufeff" + `{"name":"f","payload":"` + good + `"}`, "", "json_invalid"}, {reg, `{"name":"f","payload":NaN}`, "", "json_invalid"},
		{reg, strings.Repeat("[", 100_000), "", "json_invalid"}, {reg, `{"x":` + strings.Repeat("[", 100_000), "", "json_invalid"},
		{exe, `{"functionId":"` + fn + `","payload":"` + good + `"}`, "function_id", "missing"}, {exe, ``, "function_id", "missing"}, {exe, `{"function_id":"` + fn + `"}`, "payload", "missing"}, {exe, `{"payload":"` + good + `"}`, "function_id", "missing"},
		{exe, `{"function_id":5,"payload":"` + good + `"}`, "function_id", "string_type"},
		{exe, `{"function_id":"` + fn + `","payload":7}`, "payload", "string_type"},
		{exe, `{"function_id":"","payload":"` + good + `"}`, "function_id", "uuid_parsing"},
		{exe, `{"function_id":"not-a-uuid","payload":"` + good + `"}`, "function_id", "uuid_parsing"},
		{exe, `{"function_id":"` + fn + ` ","payload":"` + good + `"}`, "function_id", "uuid_parsing"},
		{exe, `{"function_id":"` + fn[:35] + `","payload":"` + good + `"}`, "function_id", "uuid_parsing"},
		{exe, `{"function_id":"` + fn[:35] + `g","payload":"` + good + `"}`, "function_id", "uuid_parsing"},
	} {
		t.Run("", func(t *testing.T) {
			e := *e
			e.t = t
			t.Logf("%s %.100s", c.path, c.body)
			e.must422(e.post(c.path, c.body), c.field, c.kind)
		})
	}
	// Both faults are told at once.
	a := e.post(reg, `{}`)
	if list, _ := a.json["detail"].([]any); len(list) != 2 {
		t.Errorf("an empty object has two faults: %s", a.raw)
	}
	for _, body := range []string{
		`{"name":"f","payload":"` + good + `","extra":1,"more":{"deep":[1,2,{}]}}`, `{"name":"x","payload":"x","name":"f","payload":"` + good + `"}`,
		" \r\n\t{\"name\" : \"f\" ,\n\"payload\":\"" + good + "\"} \n\n", `{"n\u0061me":"f","payload":"` + strings.ReplaceAll(good, "=", `\u003d`) + `"}`,
	} {
		e.must(e.post(reg, body), 200)
	}
}

func TestRootUnknownIDs(t *testing.T) {
	e := start(t)
	good := S(anyPickle)
	unknown := uuid.NewString()
	for _, payload := range []string{good, "payload"} {
		a := e.must(e.post("/execute_function", map[string]any{"function_id": unknown, "payload": payload}), 404)
		if a.str("detail") == "" {
			t.Errorf("%s", a.raw)
		}
	}
	for _, id := range []string{unknown, strings.ToUpper(unknown), "nonsense", "%20", "a%2Fb", "123", strings.Repeat("x", 5000), "%F0%9F%98%80", "%00", "%ff"} {
		for _, path := range []string{"/status/", "/result/"} {
			a := e.must(e.get(path+id), 404)
			if a.str("detail") == "" || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s%s: %s", path, id, a.raw)
			}
		}
	}
}

func TestRootMethodsAndPaths(t *testing.T) {
	e := start(t)
	id := e.executeRoot(e.registerRoot())
	for path, want := range map[string]string{
		"/register_function": "POST", "/execute_function": "POST", "/status/" + id: "GET, HEAD", "/result/" + id: "GET, HEAD", "/": "GET, HEAD, OPTIONS",
		"/healthz": "GET, HEAD", "/openapi.json": "GET, HEAD", "/v1/tasks": "GET, HEAD, POST", "/v1/tasks/" + id + ":cancel": "POST",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PURGE"} {
			if strings.Contains(want, method) {
				continue
			}
			a := e.do(method, path, []byte(`{}`))
			if a.status != 405 || a.header.Get("Allow") != want || method != "HEAD" && a.json["detail"] == nil {
				t.Errorf("%s %s: %d, Allow %q: %s", method, path, a.status, a.header.Get("Allow"), a.raw)
			}
		}
	}
	for _, path := range []string{
		"/nothing", "/status", "/result", "/status/" + id + "/", "/status/" + id + "/x", "/register_function/", "/Register_Function",
		"//status/" + id, "/v1", "/v1/", "/v1/nothing", "/v2/tasks", "/favicon.ico", "/docs", "/../etc/passwd",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			a := e.do(method, path, nil)
			if a.status != 404 || a.json["detail"] == nil {
				t.Errorf("%s %s: %d %s", method, path, a.status, a.raw)
			}
		}
	}
	for _, path := range []string{"/status/", "/result/", "/status/" + id + ":cancel"} {
		e.must(e.get(path), 404)
	}
	if a := e.do("HEAD", "/status/"+id, nil); a.status != 200 || len(a.raw) != 0 {
		t.Errorf("HEAD: %d %q", a.status, a.raw)
	}
	if a := e.must(e.get("/"), 200); a.str("service") != "treadle" {
		t.Errorf("/: %s", a.raw)
	}
	// Headers that would turn a POST into a GET elsewhere.
	a := e.do("POST", "/status/"+id, []byte("x=1"), func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("X-HTTP-Method-Override", "GET")
	})
	e.must(a, 405)
}

func TestRootContentTypes(t *testing.T) {
	e := start(t)
	body := []byte(`{"name":"f","payload":"` + strings.TrimSpace(S(anyPickle)) + `"}`)
	for _, ct := range []string{"", "application/json", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "nonsense;;;", "application/grpc"} {
		a := e.do("POST", "/register_function", body, func(r *http.Request) {
			if ct != "" {
				r.Header.Set("Content-Type", ct)
			}
			r.Header.Set("Accept", "application/xml")
		})
		e.must(a, 200)
		if a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%q is answered as %q", ct, a.header.Get("Content-Type"))
		}
	}
	// Chunked, that is without a length.
	a := e.do("POST", "/register_function", body, func(r *http.Request) { r.ContentLength = -1 })
	e.must(a, 200)
	a = e.do("POST", "/register_function", body, func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") })
	e.must(a, 415)
	// A query does not matter, whatever it holds.
	e.must(e.do("POST", "/register_function?name=x&payload=y&;=%zz", body), 200)
}

func TestRootCreatedStatus(t *testing.T) {
	e := start(t, func(c *Config) { c.RESTCreatedStatus = 201 })
	a := e.must(e.post("/register_function", map[string]any{"name": "f", "payload": S(anyPickle)}), 201)
	a = e.must(e.post("/execute_function", map[string]any{"function_id": a.str("function_id"), "payload": S(anyPickle)}), 201)
	e.must(e.get("/status/"+a.str("task_id")), 200)
	e.must(e.post("/register_function", map[string]any{"name": "f", "payload": "payload"}), 400)
	e.must(e.post("/v1/functions", map[string]any{"name": "g", "source": "def g(): pass"}), 200)
}

func TestRootConcurrent(t *testing.T) {
	e := start(t)
	fn := e.registerRoot()
	ids := make(chan string, 200)
	for range 20 {
		go func() {
			for range 10 {
				a := e.post("/execute_function", map[string]any{"function_id": fn, "payload": S(anyPickle)})
				ids <- a.str("task_id")
			}
		}()
	}
	seen := make(map[string]bool)
	for range 200 {
		id := <-ids
		if seen[id] || id == "" {
			t.Fatalf("id %q was given before", id)
		}
		seen[id] = true
		if a := e.get("/status/" + id); a.str("status") != "QUEUED" {
			t.Fatalf("%s: %s", id, a.raw)
		}
	}
}

// outcome is one way for a task to end, and what Python must see of it.
type outcome struct {
	name string
	end  task.Outcome
	// exception is the class that a reader gets in course mode.
	exception, errorType, worker string
	contains                     []string
}

func failures() []outcome {
	trace := "Traceback (most recent call last):\n  File \"f.py\", line 1\nValueError: boom \U0001f600\n"
	raised := task.Outcome{End: task.EndRaised, Failure: &task.Failure{Type: "ValueError", Message: "boom \U0001f600", Traceback: trace}}
	return []outcome{
		{"raised", raised, "RuntimeError", "FunctionExecutionFailure", "w1", []string{"ValueError: boom \U0001f600", trace}},
		{"timed out", task.Fail(task.EndTimedOut, "it ran longer than 2s"), "TimeoutError", "DeadlineExceededError", "w1", []string{"it ran longer than 2s"}},
		{"exhausted", task.Fail(task.EndExhausted, "the result has too many bytes"), "MemoryError", "ResourceLimitExceeded", "w1", []string{"too many bytes"}},
		{"unreadable", task.Fail(task.EndUnreadable, "cannot pickle a generator"), "ValueError", "SerializationError", "w1", []string{"generator"}},
		{"lost", task.Fail(task.EndLost, "killed by signal 9"), "RuntimeError", "WorkerFailureError", "w1", []string{"signal 9", "1 times"}},
		{"invalid text", task.Outcome{End: task.EndRaised, Failure: &task.Failure{Type: "E", Message: "a\xffb"}}, "RuntimeError", "FunctionExecutionFailure", "w1", []string{"E: a\uFFFDb"}},
	}
}

// finish runs one task into an outcome and returns its result at the root.
func (e *env) finish(fn string, out task.Outcome) answer {
	e.t.Helper()
	id := e.executeRoot(fn)
	e.settle(e.claim(), out)
	return e.must(e.get("/result/"+id), 200)
}

// unpickled is what Python found behind a result.
type unpickled struct {
	Type  string
	Text  string
	Attrs map[string]string
	Value any
}

// unpickle reads results as a client does: codecs.decode and pickle.loads, as often
// as said.
func unpickle(t *testing.T, depth int, results ...string) []unpickled {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is not on PATH: these tests compare with CPython")
	}
	in, _ := json.Marshal(results)
	cmd := exec.CommandContext(t.Context(), path, "-c", fmt.Sprintf(`
import codecs, json, pickle, sys
out = []
for r in json.load(sys.stdin):
    for _ in range(%d):
        assert isinstance(r, str), r
        r = pickle.loads(codecs.decode(r.encode(), "base64"))
    is_error = isinstance(r, BaseException)
    out.append({"Type": type(r).__name__, "Text": str(r), "Attrs": vars(r) if is_error else None, "Value": None if is_error else r})
print(json.dumps(out))
`, depth))
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, stderr.Bytes())
	}
	var out []unpickled
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRootFailuresCourse(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxRetries = -1 })
	fn := e.registerRoot()
	for _, o := range failures() {
		a := e.finish(fn, o.end)
		if a.str("status") != "FAILED" {
			t.Fatalf("%s: %s", o.name, a.raw)
		}
		checkError(t, o, a)
		got := unpickle(t, 1, a.str("result"))[0]
		if got.Type != o.exception || !strings.Contains(got.Text, o.errorType) {
			t.Errorf("%s: %+v", o.name, got)
		}
		if got.Attrs["status"] != "FAILED" || got.Attrs["error_type"] != o.errorType || got.Attrs["task_id"] != a.str("task_id") || got.Attrs["worker_id"] != o.worker {
			t.Errorf("%s: attributes %v", o.name, got.Attrs)
		}
		for _, want := range o.contains {
			if !strings.Contains(got.Attrs["message"], want) {
				t.Errorf("%s: message %q lacks %q", o.name, got.Attrs["message"], want)
			}
		}
	}
	// The exception's own pickle, where the runner could make one.
	original := pickle.Exception("ValueError", "mine", nil)
	a := e.finish(fn, task.Outcome{End: task.EndRaised, Failure: &task.Failure{Type: "ValueError", Message: "mine", Pickle: original}})
	if a.str("result") != S(original) {
		t.Errorf("the original exception is lost: %s", a.raw)
	}
}

func checkError(t *testing.T, o outcome, a answer) {
	t.Helper()
	got, _ := a.json["error"].(map[string]any)
	if got["error_type"] != o.errorType || got["task_id"] != a.str("task_id") || got["worker_id"] != o.worker {
		t.Errorf("%s: error %v", o.name, got)
	}
	for _, key := range []string{"message", "traceback", "exception_type"} {
		if _, ok := got[key].(string); !ok {
			t.Errorf("%s: error has no %s: %v", o.name, key, got)
		}
	}
	all := fmt.Sprint(got["message"], got["traceback"])
	for _, want := range o.contains {
		if !strings.Contains(all, want) {
			t.Errorf("%s: error lacks %q: %v", o.name, want, got)
		}
	}
}

func TestRootFailuresSeed(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxRetries, c.RESTCompat = -1, CompatSeed })
	fn := e.registerRoot()
	for _, o := range failures() {
		a := e.finish(fn, o.end)
		checkError(t, o, a)
		depth := 2
		if o.errorType == "FunctionExecutionFailure" {
			depth = 3
		}
		dict, _ := unpickle(t, depth, a.str("result"))[0].Value.(map[string]any)
		if dict["status"] != "FAILED" || dict["error_type"] != o.errorType || dict["task_id"] != a.str("task_id") {
			t.Errorf("%s: %v", o.name, dict)
		}
		if depth == 2 && dict["worker_id"] != o.worker {
			t.Errorf("%s: worker_id %v", o.name, dict["worker_id"])
		}
		for _, want := range o.contains {
			if m, _ := dict["message"].(string); !strings.Contains(m, want) {
				t.Errorf("%s: message %q lacks %q", o.name, m, want)
			}
		}
		if again := e.get("/result/" + a.str("task_id")); !bytes.Equal(again.raw, a.raw) {
			t.Errorf("%s: the result changed", o.name)
		}
	}
	value := pickle.Text("value")
	a := e.finish(fn, succeed(value, task.EncodingPickle))
	if got := unpickle(t, 2, a.str("result"))[0]; got.Value != "value" {
		t.Errorf("completed: %+v", got)
	}
	if got := unpickle(t, 1, a.str("result"))[0]; got.Value != S(value) {
		t.Errorf("completed, once: %+v", got)
	}
}

func TestRootCancelledAndJSON(t *testing.T) {
	for compat, depth := range map[RESTCompat]int{CompatCourse: 1, CompatSeed: 2} {
		e := start(t, func(c *Config) { c.RESTCompat = compat })
		fn := e.registerRoot()
		id := e.executeRoot(fn)
		e.must(e.post("/v1/tasks/"+id+":cancel", ""), 200)
		a := e.must(e.get("/result/"+id), 200)
		got := unpickle(t, depth, a.str("result"))[0]
		if a.str("status") != "CANCELLED" || depth == 1 && (got.Type != "RuntimeError" || !strings.Contains(got.Text, "cancelled")) {
			t.Errorf("%s: %s: %+v", compat, a.raw, got)
		}
		if depth == 2 && got.Value.(map[string]any)["error_type"] != "Cancelled" {
			t.Errorf("%s: %+v", compat, got)
		}
		call := e.must(e.post("/v1/tasks", `{"function":"`+fn+`","args":[1]}`), 200)
		e.settle(e.claim(), succeed([]byte(`{"n": 123456789012345678901234567890, "s": "\ud83d\ude00", "l": [null, true, 1.5]}`), task.EncodingJSON))
		a = e.must(e.get("/result/"+call.str("task_id")), 200)
		got = unpickle(t, depth, a.str("result"))[0]
		if got.Text != "{'n': 123456789012345678901234567890, 's': '\U0001f600', 'l': [None, True, 1.5]}" {
			t.Errorf("%s: JSON result: %+v", compat, got)
		}
	}
}
