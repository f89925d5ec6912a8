package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/pickle"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/task"
)

// env is a real server on free ports over a store in memory. Nothing dispatches:
// tests play the worker through the store, with claim and settle.
type env struct {
	t      *testing.T
	srv    *Server
	store  store.Store
	url    string
	conn   *grpc.ClientConn
	fabric treadlev1.FabricServiceClient
	client *http.Client
}

func newStore(t testing.TB) store.Store {
	t.Helper()
	st, err := pebblestore.Open(t.Context(), pebblestore.Options{Durability: pebblestore.Memory, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return st
}

// start serves until the test ends.
func start(t *testing.T, change ...func(*Config)) *env {
	t.Helper()
	cfg := Config{
		Store: newStore(t), GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Version: "test",
		SafetyNet: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx) }()
	conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(srv.cfg.maxMessage()), grpc.MaxCallSendMsgSize(srv.cfg.maxMessage())))
	if err != nil {
		t.Fatal(err)
	}
	e := &env{
		t: t, srv: srv, store: cfg.Store, url: "http://" + srv.HTTPAddr(), conn: conn,
		fabric: treadlev1.NewFabricServiceClient(conn), client: &http.Client{Transport: &http.Transport{}},
	}
	t.Cleanup(func() {
		e.client.CloseIdleConnections()
		conn.Close()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return e
}

// answer is what came back over HTTP.
type answer struct {
	status int
	header http.Header
	raw    []byte
	json   map[string]any
}

func (a answer) str(key string) string {
	s, _ := a.json[key].(string)
	return s
}

// do sends one request; body may be nil. change may edit the request.
func (e *env) do(method, path string, body []byte, change ...func(*http.Request)) answer {
	e.t.Helper()
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.url+path, r)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, raw: raw}
	_ = json.Unmarshal(raw, &a.json)
	return a
}

func (e *env) get(path string) answer { e.t.Helper(); return e.do(http.MethodGet, path, nil) }

// post sends v as JSON, or as it is when it is text.
func (e *env) post(path string, v any) answer {
	e.t.Helper()
	if s, ok := v.(string); ok {
		return e.do(http.MethodPost, path, []byte(s))
	}
	b, err := json.Marshal(v)
	if err != nil {
		e.t.Fatal(err)
	}
	return e.do(http.MethodPost, path, b)
}

// must fails the test unless the answer has the status.
func (e *env) must(a answer, status int) answer {
	e.t.Helper()
	if a.status != status {
		e.t.Fatalf("status %d, want %d: %.500s", a.status, status, a.raw)
	}
	return a
}

// S is the contract's S(x) of a pickle.
func S(p []byte) string { return pickle.Base64(p) }

// anyPickle is a small whole pickle.
var anyPickle = []byte("\x80\x04K\x2a.")

func isUUID(t *testing.T, s string) {
	t.Helper()
	if _, err := uuid.Parse(s); err != nil || s != strings.ToLower(s) || len(s) != 36 {
		t.Fatalf("%q is not a lower-case UUID", s)
	}
}

// registerRoot and executeRoot use the routes at the root.
func (e *env) registerRoot() string {
	e.t.Helper()
	a := e.must(e.post("/register_function", map[string]any{"name": "f", "payload": S(anyPickle)}), 200)
	isUUID(e.t, a.str("function_id"))
	return a.str("function_id")
}

func (e *env) executeRoot(function string) string {
	e.t.Helper()
	a := e.must(e.post("/execute_function", map[string]any{"function_id": function, "payload": S(anyPickle)}), 200)
	isUUID(e.t, a.str("task_id"))
	return a.str("task_id")
}

// claim takes the next task as a worker does and starts it.
func (e *env) claim() store.Claimed {
	e.t.Helper()
	c := e.offer()
	now := time.Now()
	if _, err := e.store.Renew(e.t.Context(), now, []store.Renewal{{Token: c.Token, Until: now.Add(time.Minute), StartedAt: now}}); err != nil {
		e.t.Fatal(err)
	}
	return c
}

// offer takes the next task and does not start it.
func (e *env) offer() store.Claimed {
	e.t.Helper()
	now := time.Now()
	got, err := e.store.Claim(e.t.Context(), now, []store.ClaimRequest{{
		Claim: task.ID(uuid.New()), Session: task.ID(uuid.New()), Worker: "w1", Queues: []string{"default"},
		Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(time.Minute),
	}})
	if err != nil {
		e.t.Fatal(err)
	}
	if len(got[0]) != 1 {
		e.t.Fatalf("%d tasks are ready, want one", len(got[0]))
	}
	return got[0][0]
}

// settle reports the outcome of a claimed task.
func (e *env) settle(c store.Claimed, out task.Outcome) {
	e.t.Helper()
	v, err := e.store.Settle(context.WithoutCancel(e.t.Context()), time.Now(), []store.Settlement{{Token: c.Token, Outcome: out, Log: []byte("printed\xff\n")}})
	if err != nil || v[0] != task.VerdictRecorded {
		e.t.Errorf("settle: %v, %v", v, err)
	}
}

func succeed(result []byte, enc task.Encoding) task.Outcome {
	return task.Outcome{End: task.EndSucceeded, Result: result, Encoding: enc, RunTime: time.Millisecond}
}
