package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/internal/pickle"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// bigPickle is a whole pickle of size bytes.
func bigPickle(size int) []byte {
	p := append([]byte{0x80, 4, 'B', 0, 0, 0, 0}, bytes.Repeat([]byte{'x'}, size-8)...)
	n := size - 8
	p[3], p[4], p[5], p[6] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	return append(p, '.')
}

func TestOnePayloadLimit(t *testing.T) {
	const limit = 1 << 20
	e := start(t, func(c *Config) { c.MaxPayload = limit })
	fn := e.registerRoot()
	send := func(size int) answer {
		body, err := json.Marshal(map[string]string{"function_id": fn, "payload": S(bigPickle(size))})
		if err != nil {
			t.Fatal(err)
		}
		return e.do("POST", "/execute_function", body)
	}
	// Exactly the limit passes, wrapped as Python wraps it; one byte more does not.
	a := e.must(send(limit), 200)
	c := e.claim()
	e.settle(c, succeed(bigPickle(limit), task.EncodingPickle))
	if r := e.must(e.get("/result/"+a.str("task_id")), 200); r.str("result") != S(bigPickle(limit)) {
		t.Error("a result of the limit's size is not what it was")
	}
	for _, size := range []int{limit + 1, limit * 21 / 20, 2 * limit, 6 * limit} {
		a := send(size)
		if a.status != 413 || !strings.Contains(a.str("detail"), "limit") {
			t.Errorf("%d bytes: %d %.300s", size, a.status, a.raw)
		}
	}
	body := []byte(`{"function_id":"` + fn + `","payload":"` + strings.Repeat("A", 3*limit) + `"}`)
	chunked := e.do("POST", "/execute_function", body, func(r *http.Request) { r.ContentLength = -1 })
	if chunked.status != 413 {
		t.Errorf("chunked: %d %.300s", chunked.status, chunked.raw)
	}
	a = e.do("POST", "/v1/tasks", body)
	if got, _ := a.json["error"].(map[string]any); a.status != 413 || got["reason"] != "TOO_LARGE" || got["status"] != "RESOURCE_EXHAUSTED" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if countTasks(e) != 1 {
		t.Error("a refused payload was stored")
	}
}

func TestSeedCarriesTheLargestResult(t *testing.T) {
	const limit = 1 << 20
	e := start(t, func(c *Config) { c.MaxPayload, c.RESTCompat = limit, CompatSeed })
	fn := e.registerRoot()
	a := e.finish(fn, succeed(bigPickle(limit), task.EncodingPickle))
	if a.str("result") != S(pickle.Text(S(bigPickle(limit)))) {
		t.Error("the result is not what it was")
	}
}

// TestHealthByAnyName: probes and balancers use names of their own, and get nothing else.
func TestHealthByAnyName(t *testing.T) {
	e := start(t)
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 403, "/": 403, "/openapi.json": 403, "/v1/tasks": 403} {
		for _, method := range []string{"GET", "HEAD"} {
			a := e.do(method, path, nil, func(r *http.Request) { r.Host = "treadle.default.svc.cluster.local" })
			if a.status != want || want == 403 && method == "GET" && !strings.Contains(string(a.raw), "--allowed-host") {
				t.Errorf("%s %s: %d %s", method, path, a.status, a.raw)
			}
		}
	}
	for request, want := range map[string]string{
		"OPTIONS / HTTP/1.0\r\n\r\n":                                  "HTTP/1.0 204",
		"OPTIONS / HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n": "HTTP/1.1 204",
		"OPTIONS /v1/tasks HTTP/1.0\r\n\r\n":                          "HTTP/1.0 405",
	} {
		conn, err := net.Dial("tcp", e.srv.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(got), want) || strings.Contains(string(got), "Access-Control") {
			t.Errorf("%q: %q, %v", request, got, err)
		}
	}
}

func TestHostsAndOrigins(t *testing.T) {
	e := start(t, func(c *Config) { c.AllowedHosts = []string{"Treadle.example"} })
	port := e.srv.HTTPAddr()[strings.LastIndex(e.srv.HTTPAddr(), ":"):]
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST" + port: 200, "localhost.": 200, "127.0.0.1" + port: 200, "127.0.0.1": 200, "[::1]" + port: 200, "127.9.9.9": 200,
		"treadle.example": 200, "treadle.example:80": 200, "app.localhost": 200,
		"evil.example": 403, "evil.example" + port: 403, "192.168.1.7": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403,
	} {
		a := e.do("GET", "/", nil, func(r *http.Request) { r.Host = host })
		if a.status != want {
			t.Errorf("host %s: %d %s", host, a.status, a.raw)
		}
		a = e.do("GET", "/v1/tasks", nil, func(r *http.Request) { r.Host = host })
		if a.status != want || want == 403 && !strings.Contains(string(a.raw), `"HOST_NOT_ALLOWED"`) {
			t.Errorf("host %s: %d %s", host, a.status, a.raw)
		}
	}
	body := []byte(`{"name":"f","source":"x"}`)
	for header, want := range map[[2]string]int{
		{"Sec-Fetch-Site", "cross-site"}: 403, {"Sec-Fetch-Site", "same-site"}: 403, {"Sec-Fetch-Site", "same-origin"}: 200, {"Sec-Fetch-Site", "none"}: 200,
		{"Origin", "https://evil.example"}: 403, {"Origin", "null"}: 403, {"Origin", e.url}: 200, {"X-Nothing", "x"}: 200,
	} {
		a := e.do("POST", "/v1/functions", body, func(r *http.Request) { r.Header.Set(header[0], header[1]) })
		if a.status != want {
			t.Errorf("%v: %d %s", header, a.status, a.raw)
		}
		if a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%v: other origins may read the answer", header)
		}
	}
}

func TestHostList(t *testing.T) {
	addr := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		bound, configured string
		allowed           []string
		host              string
		want              bool
	}{
		{"0.0.0.0:80", "0.0.0.0:80", nil, "192.168.1.7:80", true},
		{"[::]:80", ":80", nil, "[fd00::1]:80", true},
		{"0.0.0.0:80", "0.0.0.0:80", nil, "evil.example", false},
		{"127.0.0.1:80", "myhost:80", nil, "MyHost:80", true},
		{"127.0.0.1:80", "127.0.0.1:80", nil, "10.0.0.1", false},
		{"127.0.0.1:80", "127.0.0.1:80", []string{"*"}, "evil.example", true},
		{"127.0.0.1:80", "127.0.0.1:80", nil, "", true},
	} {
		if got := newHostList(addr(c.bound), c.configured, c.allowed).admits(c.host); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestPages(t *testing.T) {
	e := start(t)
	e.executeRoot(e.registerRoot())
	if a := e.must(e.get("/healthz"), 200); a.str("status") != "ok" {
		t.Errorf("%s", a.raw)
	}
	if a := e.must(e.get("/readyz"), 200); a.str("status") != "ready" {
		t.Errorf("%s", a.raw)
	}
	e.must(e.get("/nothing"), 404)
	m := string(e.must(e.get("/metrics"), 200).raw)
	for _, line := range []string{
		`treadle_tasks_submitted_total 1`, `treadle_queue_tasks{queue="default",runtime="python",status="QUEUED"} 1`,
		`treadle_info{durability="memory",version="test"} 1`, `treadle_grpc_calls_total{code="OK",method="/treadle.v1.RootService/ExecuteRoot"} 1`,
		`treadle_http_requests_total{method="POST",route="/execute_function",status="200"} 1`, `treadle_http_requests_total{method="GET",route="none",status="404"} 1`,
		`treadle_grpc_call_seconds_count{method="/treadle.v1.RootService/RegisterRoot"} 1`,
	} {
		if !strings.Contains(m, line+"\n") {
			t.Errorf("metrics lack %s", line)
		}
	}
}

// downStore does not answer while it is down.
type downStore struct {
	store.Store
	down chan struct{} // closed: down
}

func (d downStore) Function(ctx context.Context, id task.ID) (task.Function, error) {
	select {
	case <-d.down:
		return task.Function{}, task.Errorf(task.CodeUnavailable, "function", "the store is away")
	default:
		return d.Store.Function(ctx, id)
	}
}

func TestStoreAway(t *testing.T) {
	down := make(chan struct{})
	e := start(t, func(c *Config) { c.Store = downStore{c.Store, down} })
	e.must(e.get("/readyz"), 200)
	close(down)
	e.must(e.get("/readyz"), 503)
	e.must(e.get("/healthz"), 200)
	a := e.must(e.post("/execute_function", map[string]any{"function_id": "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", "payload": S(anyPickle)}), 503)
	if !strings.Contains(a.str("detail"), "away") {
		t.Errorf("%s", a.raw)
	}
}

// brokenStore fails and panics as no store should.
type brokenStore struct{ store.Store }

func (brokenStore) Workers(context.Context, time.Time) ([]store.Presence, error) {
	return nil, errors.New("secret: /var/lib/path")
}

func (brokenStore) QueueStats(context.Context) ([]store.QueueStat, error) { panic("no queues") }

func TestInternalErrorsStayInside(t *testing.T) {
	e := start(t, func(c *Config) { c.Store = brokenStore{c.Store} })
	for _, path := range []string{"/v1/workers", "/v1/queues"} {
		a := e.must(e.get(path), 500)
		if strings.Contains(string(a.raw), "secret") || strings.Contains(string(a.raw), "no queues") || !strings.Contains(string(a.raw), `"INTERNAL"`) {
			t.Errorf("%s", a.raw)
		}
	}
	e.must(e.get("/healthz"), 200)
}

// raw speaks HTTP by hand.
func (e *env) raw(request string) string {
	e.t.Helper()
	conn, err := net.Dial("tcp", e.srv.HTTPAddr())
	if err != nil {
		e.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		e.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		e.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, b)
}

func TestHTTPByHand(t *testing.T) {
	e := start(t)
	body := `{"name":"f","payload":"` + strings.TrimSpace(S(anyPickle)) + `"}`
	const head = "POST /register_function HTTP/1.1\r\nHost: localhost\r\n"
	for name, c := range map[string]struct{ request, want string }{
		"chunks":           {head + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", 5, body[:5], len(body)-5, body[5:]), "200 "},
		"HTTP/1.0":         {"GET / HTTP/1.0\r\n\r\n", "200 "},
		"no Host":          {"GET / HTTP/1.1\r\n\r\n", "400 "},
		"large headers":    {head + "X: " + strings.Repeat("x", 40<<10) + "\r\n\r\n", "431 "},
		"bad length":       {head + "Content-Length: -5\r\n\r\n", "400 "},
		"absolute":         {"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 "},
		"absolute foreign": {"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "403 "},
		"star":             {"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", ""},
		"bad escape":       {"GET /status/%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", "400 "},
		"nul":              {"GET /status/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", "404 "},
		"expect":           {head + "Content-Length: 999999999999\r\nExpect: 100-continue\r\n\r\n", "413 "},
	} {
		if got := e.raw(c.request); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %.200s", name, got)
		}
	}
	// A client that leaves in the middle of its body is no trouble for others.
	conn, err := net.Dial("tcp", e.srv.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "%sContent-Length: 500\r\n\r\n{", head)
	conn.Close()
	e.must(e.post("/register_function", body), 200)
}

// The bytes of large bodies that are held at one time are bounded; those over the
// bound wait and are served.
func TestBodyBudget(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxPayload, c.MaxBodies = 1<<20, 1 })
	fn := e.registerRoot()
	body, err := json.Marshal(map[string]string{"function_id": fn, "payload": S(bigPickle(900 << 10))})
	if err != nil {
		t.Fatal(err)
	}
	// One client holds the whole budget with a body that does not end.
	hold, err := net.Dial("tcp", e.srv.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	fmt.Fprintf(hold, "POST /execute_function HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", len(body))
	if _, err := hold.Write(body[:100<<10]); err != nil {
		t.Fatal(err)
	}
	budget := e.srv.budget
	e.eventually("the body takes its share", func() bool {
		used, _, _ := budget.held()
		return used > 0
	})
	answers := make(chan answer, 4)
	for range cap(answers) {
		go func() { answers <- e.do("POST", "/execute_function", body) }()
	}
	e.executeRoot(fn) // small bodies pass meanwhile
	if len(answers) != 0 {
		t.Fatalf("%+v was served over the budget", <-answers)
	}
	if _, err := hold.Write(body[100<<10:]); err != nil {
		t.Fatal(err)
	}
	for range cap(answers) {
		e.must(<-answers, 200)
	}
}

// Large results share the budget: they wait for room, and small ones pass meanwhile.
func TestResultBudget(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxPayload = 2 << 20 })
	fn := e.registerRoot()
	value := bigPickle(2<<20 - 100)
	large := e.finish(fn, succeed(value, task.EncodingPickle)).str("task_id")
	small := e.finish(fn, succeed(bigPickle(100), task.EncodingPickle)).str("task_id")
	budget := e.srv.budget
	all := e.srv.cfg.MaxBodies
	if !budget.try("somebody", all) {
		t.Fatal("something is held")
	}
	answers := make(chan answer, 4)
	for i := range cap(answers) {
		path := []string{"/result/", "/v1/tasks/"}[i%2] + large + []string{"", "/result"}[i%2]
		go func() { answers <- e.do("GET", path, nil) }()
	}
	for _, path := range []string{"/result/" + small, "/v1/tasks/" + small + "/result", "/v1/tasks/" + small + "/result?wait=10s"} {
		e.must(e.get(path), 200)
	}
	if len(answers) != 0 {
		t.Fatalf("%+v was served over the budget", <-answers)
	}
	budget.release("somebody", all)
	for range cap(answers) {
		a := e.must(<-answers, 200)
		if got := a.str("result"); got != "" && got != S(value) {
			t.Error("the result at the root is not what it was")
		}
		if got := a.str("result_pickle"); a.json["result"] == nil && got != base64.StdEncoding.EncodeToString(value) {
			t.Error("the result under /v1 is not what it was")
		}
		if length := a.header.Get("Content-Length"); length != strconv.Itoa(len(a.raw)) {
			t.Errorf("Content-Length %q of %d bytes", length, len(a.raw))
		}
	}
	e.eventually("everything is given back", func() bool { used, _, _ := budget.held(); return used == 0 })
}

// The time for a body ends with the body: a call may wait longer.
func TestBodyDeadline(t *testing.T) {
	e := start(t)
	e.source("f")
	e.srv.http.Handler.(*httpHandler).grace = 50 * time.Millisecond
	begin := time.Now()
	a := e.must(e.post("/v1/functions/f:call?timeout=300ms", `{"args":[1]}`), 200)
	if took := time.Since(begin); a.str("status") != "QUEUED" || took < 300*time.Millisecond {
		t.Errorf("after %v: %s", took, a.raw)
	}
	// A body that never ends is refused.
	got := e.raw("POST /v1/functions/f:call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
	if !strings.HasPrefix(got, "408 ") || !strings.Contains(got, "BODY_TOO_SLOW") {
		t.Errorf("%s", got)
	}
}

func TestListenErrors(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	st := newStore(t)
	for _, cfg := range []Config{
		{Store: st, GRPCAddr: busy.Addr().String()}, {Store: st, GRPCAddr: "127.0.0.1:0", HTTPAddr: busy.Addr().String()},
	} {
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		flag := "--grpc-addr"
		if cfg.HTTPAddr != "" {
			flag = "--http-addr"
		}
		if err := s.Listen(); err == nil || !strings.Contains(err.Error(), flag+" "+busy.Addr().String()+": another process listens there") {
			t.Errorf("a taken port: %v", err)
		}
		s.Shutdown(t.Context())
	}
	for _, cfg := range []Config{
		{}, {Store: st}, {Store: st, GRPCAddr: "x", MaxPayload: 5}, {Store: st, GRPCAddr: "x", RESTCompat: "other"}, {Store: st, GRPCAddr: "x", RESTCreatedStatus: 204},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestWithoutHTTP(t *testing.T) {
	e := start(t, func(c *Config) { c.HTTPAddr = "" })
	if e.srv.HTTPAddr() != "" {
		t.Errorf("HTTP at %s", e.srv.HTTPAddr())
	}
	e.source("f")
}

func TestReadyzSaysWhatStarts(t *testing.T) {
	var reason atomic.Value
	reason.Store("the pool starts")
	e := start(t, func(c *Config) { c.Starting = func() string { return reason.Load().(string) } })
	if a := e.must(e.get("/readyz"), 503); a.str("status") != "starting" || a.str("error") != "the pool starts" {
		t.Errorf("%s", a.raw)
	}
	reason.Store("")
	e.must(e.get("/readyz"), 200)
}
