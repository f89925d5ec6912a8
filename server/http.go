package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/treadle-dev/treadle/gen/openapi"
	"github.com/treadle-dev/treadle/server/auth"
)

// Limits of the HTTP server. There is no write timeout, as calls may wait for
// minutes; bodies have deadlines of their own.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10
	maxHTTPStreams    = 250
)

// newHTTP builds the HTTP server on the listener that is bound already.
func (s *Server) newHTTP() (*http.Server, error) {
	h := &httpHandler{
		s: s, grace: bodyGrace, hosts: newHostList(s.httpLis.Addr(), s.cfg.HTTPAddr, s.cfg.AllowedHosts),
		origins: http.NewCrossOriginProtection(),
		metrics: promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}),
	}
	var err error
	if s.routes, err = newRoutes(); err != nil {
		return nil, err
	}
	if h.mux, err = s.newGateway(); err != nil {
		return nil, err
	}
	h.openapi = describe(openapi.JSON, s.cfg.Version)
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxHTTPStreams},
		ConnContext: withConn,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if s.cfg.TLS != nil {
		srv.TLSConfig = s.cfg.TLS.Config(false, "h2", "http/1.1")
		// Whoever has the certificate of a name cannot be a page that borrowed one.
		h.hosts.add(s.cfg.TLS.Names())
	}
	return srv, nil
}

// httpHandler is the whole HTTP port: what every request passes, the few pages that
// are no API calls, and the gateway.
type httpHandler struct {
	s       *Server
	mux     *runtime.ServeMux
	grace   time.Duration
	hosts   hostList
	origins *http.CrossOriginProtection
	metrics http.Handler
	openapi []byte
}

func (h *httpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ex := &exchange{mux: h.mux}
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			h.s.log.Error("panic in an HTTP handler", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if !rec.wrote {
				writeError(rec, r, restError{http: http.StatusInternalServerError, code: codes.Internal, reason: reasonInternal,
					text: "internal error; the server's log has the cause"})
			}
		}
		route := ex.route
		if route == "" {
			route = "none"
		}
		h.s.metrics.observeHTTP(route, knownMethod(r.Method), rec.status, time.Since(start))
		h.s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "took", time.Since(start))
	}()
	w = rec
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if !h.knownAs(r) {
		writeError(w, r, restError{http: http.StatusForbidden, code: codes.PermissionDenied, reason: reasonHost,
			text: fmt.Sprintf("this server is not known as %.100q: use its address or localhost, or start it with --allowed-host and that name", r.Host)})
		return
	}
	if err := h.origins.Check(r); err != nil {
		writeError(w, r, restError{http: http.StatusForbidden, code: codes.PermissionDenied, reason: reasonOrigin,
			text: "requests from pages of other origins are refused"})
		return
	}
	if r.Method == http.MethodOptions && r.URL.Path == "/" {
		h.options(w, r)
		return
	}
	page := h.page(r.URL.Path)
	ctx, leave, err := h.enter(w, r, page != nil)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	defer leave()
	r = r.WithContext(ctx)
	if page != nil {
		ex.route = r.URL.Path
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			allowed := []string{http.MethodGet, http.MethodHead}
			if r.URL.Path == "/" {
				allowed = append(allowed, http.MethodOptions)
			}
			writeMethodNotAllowed(w, r, allowed)
			return
		}
		if err := h.s.guard.meter(ctx, "GET "+r.URL.Path, nil); err != nil {
			h.refuse(w, r, err)
			return
		}
		page(w, r)
		return
	}
	if !utf8.ValidString(r.URL.Path) {
		writeError(w, r, restError{http: http.StatusNotFound, code: codes.NotFound, reason: reasonRoute,
			text: fmt.Sprintf("Not Found: %.200q is not UTF-8", r.URL.Path)})
		return
	}
	if h.s.cfg.WorkersOnly {
		writeError(w, r, restError{http: http.StatusNotFound, code: codes.NotFound, reason: reasonRoute,
			text: "Not Found: this process serves workers; the API is at the server"})
		return
	}
	p, _ := auth.From(ctx)
	b := &body{r: r, w: w, rest: r.Body, limit: h.s.cfg.maxBody(), grace: h.grace, held: holding{b: h.s.budget, owner: p.ID}}
	defer b.release()
	ex.body = b
	call := r.WithContext(context.WithValue(r.Context(), exchangeKey{}, ex))
	call.Body = b
	// The body is JSON whatever the header says, and never a form.
	call.Header = r.Header.Clone()
	call.Header.Del("Content-Type")
	if call.Method == http.MethodHead {
		call.Method = http.MethodGet // net/http drops the body of the answer
	}
	h.mux.ServeHTTP(w, call)
}

// knownAs reports whether a request may be sent to the name in its Host. Names are checked
// so that a page cannot reach this server by a name of its own; what says no more than
// health does is answered under any name, as probes and balancers use their own, and so is what
// takes a token, which such a page has not got.
func (h *httpHandler) knownAs(r *http.Request) bool {
	switch {
	case h.hosts.admits(r.Host):
		return true
	case r.URL.Path == "/healthz" || r.URL.Path == "/readyz":
		return true
	case r.URL.Path == "/":
		return r.Method == http.MethodOptions
	case r.URL.Path == "/metrics":
		return h.s.cfg.Tokens != nil
	}
	return false
}

// options answers the check of health that HAProxy makes when it is told of none, OPTIONS / in
// HTTP/1.0. It says what any other answer does: there is a server.
func (h *httpHandler) options(w http.ResponseWriter, r *http.Request) {
	leave, err := h.s.public.enter(connFrom(r.Context()), false)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	defer leave()
	w.Header().Set("Allow", "GET, HEAD, OPTIONS")
	w.WriteHeader(http.StatusNoContent)
}

// enter admits a request, and its connection with it; requests of public pages are counted
// instead. leave must be called when err is nil.
func (h *httpHandler) enter(w http.ResponseWriter, r *http.Request, isPage bool) (_ context.Context, leave func(), err error) {
	conn := connFrom(r.Context())
	if rule, _ := auth.RuleOf("GET " + r.URL.Path); isPage && rule.Public {
		if conn.old(politeAge) {
			w.Header().Set("Connection", "close")
		}
		leave, err = h.s.public.enter(conn, false)
		return r.Context(), leave, err
	}
	ctx, err := h.admit(r, isPage)
	if err == nil {
		p, _ := auth.From(ctx)
		err = conn.admit(p)
	}
	return ctx, func() {}, err
}

// admit authenticates a request before anything of its body is read. Pages have rules of
// their own; which method of the API another path means is not known yet, so its rule is
// checked when it is called.
func (h *httpHandler) admit(r *http.Request, isPage bool) (context.Context, error) {
	header := r.Header.Values("Authorization")
	if isPage {
		return h.s.guard.admit(r.Context(), "GET "+r.URL.Path, header)
	}
	p, err := h.s.guard.authenticate(r.Header.Get("Authorization"))
	if err == nil {
		err = auth.AuthorizeREST(p)
	}
	return auth.WithPrincipal(r.Context(), p), err
}

// refuse answers a request that may not be made.
func (h *httpHandler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	st := status.Convert(toStatus(r.Context(), h.s.log, r.URL.Path, err))
	setRetryAfter(w, st)
	e := h.s.restErrorOf(r.Context(), r, st)
	if e.http == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="treadle"`)
	}
	writeError(w, r, e)
}

// page returns the handler of a path that is no API call, nil for others.
func (h *httpHandler) page(path string) http.HandlerFunc {
	switch path {
	case "/":
		return h.index
	case "/openapi.json":
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(h.openapi)
		}
	case "/healthz":
		return func(w http.ResponseWriter, _ *http.Request) {
			answer := map[string]any{"status": "ok"}
			if h.s.cfg.Insecure {
				answer["insecure"] = true
			}
			writeJSON(w, http.StatusOK, answer)
		}
	case "/readyz":
		return h.ready
	case "/metrics":
		return h.metrics.ServeHTTP
	default:
		return nil
	}
}

func (h *httpHandler) index(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"service": "treadle", "version": h.s.cfg.Version, "durability": h.s.cfg.Store.Info().Durability,
		"openapi": "/openapi.json", "health": "/healthz", "ready": "/readyz", "metrics": "/metrics",
	})
}

// ready says whether the store answers; healthz only that the process does.
func (h *httpHandler) ready(w http.ResponseWriter, r *http.Request) {
	if starting := h.s.cfg.Starting; starting != nil {
		if reason := starting(); reason != "" {
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "starting", "error": reason})
			return
		}
	}
	if h.s.isClosing() {
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "closing"})
		return
	}
	if err := h.s.probe(r.Context()); err != nil {
		answer := map[string]string{"status": "the store does not answer"}
		if h.s.cfg.Tokens == nil {
			answer["error"] = err.Error() // it may name hosts, which are not for everybody
		}
		writeJSON(w, http.StatusServiceUnavailable, answer)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	default:
		return "OTHER"
	}
}

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (r *recorder) WriteHeader(code int) {
	if !r.wrote {
		r.status, r.wrote = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// restError is one error as REST answers it.
type restError struct {
	http   int
	code   codes.Code
	reason string
	text   string
	// field is the request field at fault, or empty.
	field string
	// faults make the detail of a 422 at the root.
	faults []fault
}

// fault is one entry of a 422, in the form that FastAPI made known.
type fault struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
}

// writeError answers with an error: at the root {"detail": ...}, under /v1 the same
// with an "error" object beside it.
func writeError(w http.ResponseWriter, r *http.Request, e restError) {
	out := map[string]any{"detail": e.text}
	if len(e.faults) > 0 {
		out["detail"] = e.faults
	}
	if !isRoot(r.URL.Path) {
		out["error"] = errorObject(e)
	}
	writeJSON(w, e.http, out)
}

func errorObject(e restError) map[string]any {
	o := map[string]any{"code": e.http, "status": canonicalCode(e.code), "reason": e.reason, "message": e.text}
	if e.field != "" {
		o["field"] = e.field
	}
	return o
}

// streamError is the last line of a stream that failed.
func streamError(m proto.Message) []byte {
	e := restError{http: http.StatusInternalServerError, code: codes.Unknown, reason: reasonInternal, text: "the stream broke"}
	if p, ok := m.(*statuspb.Status); ok {
		st := status.FromProto(p)
		e.code, e.text, e.http = st.Code(), st.Message(), runtime.HTTPStatusFromCode(st.Code())
		if info := infoOf(st); info != nil {
			e.reason = info.GetReason()
			if code := httpByReason[e.reason]; code != 0 {
				e.http = code
			}
		}
	}
	b, _ := json.Marshal(map[string]any{"error": errorObject(e), "detail": e.text})
	return b
}

// canonicalCode is a gRPC code in its official spelling, for example NOT_FOUND.
func canonicalCode(c codes.Code) string {
	var b strings.Builder
	if c == codes.Canceled {
		return "CANCELLED"
	}
	for i, r := range c.String() {
		if i > 0 && 'A' <= r && r <= 'Z' && c != codes.OK {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"detail":"internal error"}`)
	}
	w.Header().Del("Trailer")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

// hostList is the list of names by which browsers may reach the server. It stops
// pages that let their own name point to this address.
type hostList struct {
	all   bool
	names map[string]bool
	// literals admits any IP address: a server bound to all addresses does not know
	// its own, and no page can take an address as its name.
	literals bool
}

func newHostList(bound net.Addr, configured string, allowed []string) hostList {
	l := hostList{names: map[string]bool{"localhost": true}}
	for _, addr := range []string{bound.String(), configured} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		ip, err := netip.ParseAddr(host)
		switch {
		case err == nil && !ip.IsLoopback(), host == "":
			l.literals = true
		case err != nil:
			l.names[strings.ToLower(host)] = true
		}
	}
	for _, name := range allowed {
		if name == "*" {
			l.all = true
		}
		l.names[strings.ToLower(strings.TrimSpace(name))] = true
	}
	return l
}

// add admits further names.
func (l hostList) add(names []string) {
	for _, name := range names {
		l.names[strings.ToLower(strings.TrimSpace(name))] = true
	}
}

func (l hostList) admits(hostport string) bool {
	if l.all || hostport == "" { // HTTP/1.0 has no Host, and no browser speaks it
		return true
	}
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback() || l.literals || l.names[host]
	}
	return l.names[host] || strings.HasSuffix(host, ".localhost")
}
