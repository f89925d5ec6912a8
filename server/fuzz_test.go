package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzREST sends any request to every route: the answer is JSON, or the lines of a
// stream, and never the server's fault.
func FuzzREST(f *testing.F) {
	good := strings.TrimSpace(S(anyPickle))
	for _, s := range [][3]string{
		{"POST", "/register_function", `{"name":"f","payload":"` + good + `"}`},
		{"POST", "/execute_function", `{"function_id":"0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11","payload":"` + good + `"}`},
		{"POST", "/v1/functions", `{"name":"f","source":"x","queue":"q"}`},
		{"POST", "/v1/functions/f:call?timeout=0s", `{"args":[1,{"a":null}],"kwargs":{},"options":{"priority":1,"timeout":"1s"}}`},
		{"POST", "/v1/tasks:batch", `{"requests":[{"function":"f","args":[]},{"payload":"` + good + `"}]}`},
		{"GET", "/v1/tasks?filter=status%20%3D%20QUEUED&page_size=2&page_token=x", ``},
		{"GET", "/status/0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", ``}, {"GET", "/v1/tasks/x/logs?attempt=-1", ``}, {"HEAD", "/result/x", ``},
		{"PUT", "/v1/tasks/x:cancel", `{}`}, {"GET", "/v1/tasks/x:watch", ``}, {"OPTIONS", "/", ``},
	} {
		f.Add(s[0], s[1], []byte(s[2]))
	}
	srv, err := New(Config{Store: newStore(f), GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", TaskTimeout: 1})
	if err != nil {
		f.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		if !strings.HasPrefix(target, "/") {
			return
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		if q := u.Query(); strings.HasSuffix(u.Path, ":call") || strings.HasSuffix(u.Path, "/result") {
			// Waits are legal and long.
			q.Del("wait")
			q.Set("timeout", "0s")
			u.RawQuery = q.Encode()
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+u.RequestURI(), strings.NewReader(string(body)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		srv.http.Handler.ServeHTTP(w, r)
		if w.Code >= 500 || w.Code < 200 {
			t.Fatalf("%s %q %q: %d %s", method, target, body, w.Code, w.Body)
		}
		if ct := w.Header().Get("Content-Type"); ct == "application/json" && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %q %q: %d %s", method, target, body, w.Code, w.Body)
		}
		if w.Code >= 400 && !strings.Contains(w.Body.String(), `"detail"`) {
			t.Fatalf("%s %q %q: %d %s", method, target, body, w.Code, w.Body)
		}
	})
}
