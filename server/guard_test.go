package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/gen/openapi"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// ring is a token file with a token of each role.
type ring struct {
	path string
	ids  map[auth.Role]string
	// secrets has "" for no token and "wrong" for one that nobody made, beside the roles.
	secrets map[auth.Role]string
}

const (
	noToken    auth.Role = ""
	wrongToken auth.Role = "wrong"
)

func newRing(t *testing.T) *ring {
	t.Helper()
	r := &ring{path: filepath.Join(t.TempDir(), "tokens.json"), ids: map[auth.Role]string{}, secrets: map[auth.Role]string{}}
	for _, role := range auth.Roles() {
		rec, secret, err := auth.New(role, "", time.Now(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if err := auth.Add(r.path, rec); err != nil {
			t.Fatal(err)
		}
		r.ids[role], r.secrets[role] = rec.ID, secret
	}
	_, r.secrets[wrongToken], _ = auth.New(auth.Admin, "", time.Now(), time.Time{})
	return r
}

// use makes a server ask for the tokens of the ring.
func (r *ring) use(t *testing.T) func(*Config) {
	return func(c *Config) {
		f, err := auth.Open(r.path, slog.New(slog.DiscardHandler), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		c.Tokens = f
	}
}

// as gives a gRPC call the token of a role.
func (r *ring) as(ctx context.Context, role auth.Role) context.Context {
	if r.secrets[role] == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+r.secrets[role])
}

// header gives an HTTP request the token of a role.
func (r *ring) header(role auth.Role) func(*http.Request) {
	return func(req *http.Request) {
		if r.secrets[role] != "" {
			req.Header.Set("Authorization", "Bearer "+r.secrets[role])
		}
	}
}

var everybody = []auth.Role{noToken, wrongToken, auth.Client, auth.Worker, auth.Admin}

// admitted says who may call a method, by the roles page of docs/security.md and not by
// the table under test.
func admitted(t *testing.T, method string) []auth.Role {
	t.Helper()
	switch service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/"); service {
	case "treadle.v1.FabricService", "treadle.v1.RootService":
		return []auth.Role{auth.Client, auth.Admin}
	case "treadle.v1.WorkerService":
		return []auth.Role{auth.Worker, auth.Admin}
	case "grpc.health.v1.Health":
		return everybody
	case "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection":
		return auth.Roles()
	default:
		t.Fatalf("%s: say in this test who may call it, then in the table", method)
		return nil
	}
}

// want is how a call must end for somebody who is not admitted.
func want(role auth.Role) codes.Code {
	if role == noToken || role == wrongToken {
		return codes.Unauthenticated
	}
	return codes.PermissionDenied
}

// TestEveryMethodAgainstEveryRole calls each registered method as everybody, over the
// network and past it.
func TestEveryMethodAgainstEveryRole(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	methods := methodsOf(e.srv.grpc)
	if len(methods) < 27 {
		t.Fatalf("only %d methods are registered: %v", len(methods), methods)
	}
	for _, method := range methods {
		for _, role := range everybody {
			allowed := slices.Contains(admitted(t, method), role)
			// No message is sent before the answer is there: who may not call is told without.
			ctx, cancel := context.WithTimeout(ring.as(t.Context(), role), 20*time.Second)
			err := callAny(ctx, e.conn, method, allowed)
			cancel()
			code := status.Code(err)
			switch {
			case !allowed && code != want(role):
				t.Errorf("%s as %q: %v, want %v", method, role, err, want(role))
			case !allowed && infoOf(status.Convert(err)) == nil:
				t.Errorf("%s as %q: no ErrorInfo in %v", method, role, err)
			case allowed && slices.Contains([]codes.Code{codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented}, code):
				t.Errorf("%s as %q: %v, want it admitted", method, role, err)
			}
		}
	}
	for method := range e.srv.inline.methods {
		err := e.srv.inline.Invoke(t.Context(), method, &emptypb.Empty{}, &emptypb.Empty{})
		if stream := e.srv.inline.methods[method].stream; stream != nil {
			err = e.srv.stream(nil, inlineServerStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: method}, stream.Handler)
		}
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.Internal {
			t.Errorf("%s without the HTTP port's check: %v", method, err)
		}
	}
}

// callAny calls a method of any kind with an empty message and returns how its first
// answer went; nil is an answer or an orderly end.
func callAny(ctx context.Context, conn *grpc.ClientConn, method string, send bool) error {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if send {
		if err := s.SendMsg(&emptypb.Empty{}); err != nil && err != io.EOF {
			return err
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
	}
	if err := s.RecvMsg(&emptypb.Empty{}); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// routes lists every REST route as "METHOD /path".
func routes() []string {
	var all []string
	for _, r := range openapi.Routes {
		all = append(all, r.Method+" "+r.Path)
	}
	return all
}

// TestEveryRouteAgainstEveryRole sends a request to each REST route as everybody.
func TestEveryRouteAgainstEveryRole(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	api := routes()
	if len(api) < 19 {
		t.Fatalf("only %d routes: %v", len(api), api)
	}
	api = append(api, "GET /nothing", "GET /v1/nothing", "PUT /v1/tasks")
	open, pages := []string{"GET /healthz", "GET /readyz"}, []string{"GET /", "GET /metrics", "GET /openapi.json"}
	for _, route := range slices.Concat(api, open, pages) {
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{task_id}", "00000000-0000-7000-8000-000000000001", "{function}", "nobody").Replace(path)
		for _, role := range everybody {
			a := e.do(method, path, nil, ring.header(role))
			isPage, isOpen := slices.Contains(pages, route), slices.Contains(open, route)
			wanted := 0 // whatever the route itself says
			switch {
			case isOpen:
				wanted = http.StatusOK
			case role == noToken || role == wrongToken:
				wanted = http.StatusUnauthorized
			case role == auth.Worker && !isPage:
				wanted = http.StatusForbidden
			}
			switch refused := a.status == http.StatusUnauthorized || a.status == http.StatusForbidden; {
			case wanted != 0 && a.status != wanted, wanted == 0 && refused:
				t.Errorf("%s as %q: %d, want %d: %s", route, role, a.status, wanted, a.raw)
			case a.status == http.StatusUnauthorized && !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer"):
				t.Errorf("%s as %q: no WWW-Authenticate", route, role)
			case refused && a.str("detail") == "":
				t.Errorf("%s as %q: no detail in %s", route, role, a.raw)
			}
		}
	}
}

// TestRefusedBeforeTheBody: nobody without a token can have a body read.
func TestRefusedBeforeTheBody(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	conn, err := net.Dial("tcp", e.srv.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, len("HTTP/1.1 401"))
	if _, err := io.ReadFull(conn, head); err != nil || string(head) != "HTTP/1.1 401" {
		t.Errorf("%q, %v", head, err)
	}
}

// TestRefusalIsRead: whoever sends a large body that is not read still gets the answer,
// and no reset before it.
func TestRefusalIsRead(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	for range 5 {
		conn, err := net.Dial("tcp", e.srv.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		const size = 4 << 20
		request := fmt.Sprintf("POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size)
		if _, err := conn.Write(append([]byte(request), make([]byte, size/4)...)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(got), "HTTP/1.1 401") || !strings.Contains(string(got), "this server asks for a token") {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestWhoMayNotIsNeverToldMore(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	for _, role := range []auth.Role{noToken, wrongToken} {
		a := e.do(http.MethodGet, "/v1/tasks/zzz", nil, ring.header(role))
		obj, _ := a.json["error"].(map[string]any)
		if a.status != 401 || obj["reason"] != "UNAUTHENTICATED" || bytes.Contains(a.raw, []byte(ring.secrets[wrongToken])) {
			t.Errorf("%q: %d %s", role, a.status, a.raw)
		}
	}
	a := e.do(http.MethodPost, "/v1/tasks", []byte("{"), ring.header(auth.Worker))
	if obj, _ := a.json["error"].(map[string]any); a.status != 403 || obj["reason"] != "DENIED" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// holder is a dispatcher whose sessions last until their context ends.
type holder struct{ attached chan struct{} }

func (h holder) Attach(ctx context.Context, _ link.Conn, _ link.Mode) error {
	h.attached <- struct{}{}
	<-ctx.Done()
	return context.Cause(ctx)
}

// TestRevokedWhileStreaming: a stream does not outlive the token that opened it.
func TestRevokedWhileStreaming(t *testing.T) {
	ring := newRing(t)
	h := holder{make(chan struct{}, 1)}
	e := start(t, ring.use(t), func(c *Config) { c.Dispatcher = h })
	open := func(role auth.Role) grpc.BidiStreamingClient[treadlev1.WorkerFrame, treadlev1.DispatcherFrame] {
		s, err := treadlev1.NewWorkerServiceClient(e.conn).Push(ring.as(t.Context(), role))
		if err != nil {
			t.Fatal(err)
		}
		<-h.attached
		return s
	}
	worker := open(auth.Worker)
	kept := open(auth.Admin)
	if err := auth.Remove(ring.path, ring.ids[auth.Worker]); err != nil {
		t.Fatal(err)
	}
	if _, err := worker.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the stream ended with %v", err)
	}
	if kept.Context().Err() != nil {
		t.Error("the stream of another token was ended, too")
	}
	if _, err := e.fabric.ListTasks(ring.as(t.Context(), auth.Client), &treadlev1.ListTasksRequest{}); err != nil {
		t.Errorf("another token: %v", err)
	}
}

func TestMethodsWithoutAnEntry(t *testing.T) {
	err := checkMethods([]string{treadlev1.FabricService_Call_FullMethodName, "/treadle.v1.FabricService/Forgotten"})
	if err == nil || !strings.Contains(err.Error(), "/treadle.v1.FabricService/Forgotten") {
		t.Errorf("%v", err)
	}
}

// TestInsecureIsLoud: whoever asks is told, people and programs.
func TestInsecureIsLoud(t *testing.T) {
	e := start(t, func(c *Config) { c.Insecure = true })
	if a := e.get("/healthz"); a.json["insecure"] != true {
		t.Errorf("%s", a.raw)
	}
	if a := e.get("/metrics"); !bytes.Contains(a.raw, []byte("treadle_insecure 1\n")) || !bytes.Contains(a.raw, []byte("treadle_tls 0\n")) {
		t.Error("the metrics do not say it")
	}
	e = start(t)
	if a := e.get("/healthz"); a.json["insecure"] != nil {
		t.Errorf("%s", a.raw)
	}
}

func TestUnknownMethodNeedsAToken(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t))
	for role, code := range map[auth.Role]codes.Code{
		noToken: codes.Unauthenticated, wrongToken: codes.Unauthenticated, auth.Worker: codes.Unimplemented,
	} {
		if err := callAny(ring.as(t.Context(), role), e.conn, "/treadle.v1.FabricService/Nothing", false); status.Code(err) != code {
			t.Errorf("as %q: %v, want %v", role, err, code)
		}
	}
	if code := task.CodeOf(e.srv.guard.permit(auth.WithPrincipal(t.Context(), auth.Local), "/x/y")); code != task.CodeDenied {
		t.Errorf("a method without an entry is permitted: %v", code)
	}
}
