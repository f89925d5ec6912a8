package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// guard decides who may call what, and how much. Every call passes it twice: admit when
// its headers are there and nothing of its body was read, permit when its handler is
// about to run, which also holds for whatever finds a way around the first.
type guard struct {
	// tokens is nil where no tokens are asked for.
	tokens *auth.File
	// certificates: workers must have shown one.
	certificates bool
	limits       *rateLimits
	// tasks checks the tokens of running tasks; nil where there are none. workersOnly: nobody
	// else calls the API here.
	tasks       *tasktoken.Issuer
	workersOnly bool
	store       store.Tasks

	mu sync.Mutex
	// streams are those that last, with what ends them.
	streams map[*guarded]struct{}
}

// guarded is one lasting stream.
type guarded struct {
	principal auth.Principal
	// until is when the certificate that opened it expires; zero without one.
	until time.Time
	end   context.CancelCauseFunc
}

func newGuard(cfg *Config) *guard {
	return &guard{
		tokens: cfg.Tokens, certificates: cfg.WorkerCertificates, limits: newRateLimits(cfg.RateLimit, cfg.Now),
		tasks: cfg.TaskTokens, workersOnly: cfg.WorkersOnly && cfg.TaskTokens != nil, store: cfg.Store,
		streams: make(map[*guarded]struct{}),
	}
}

// authenticate finds who calls, from the value of the Authorization header.
func (g *guard) authenticate(header string) (auth.Principal, error) {
	if p, is, err := g.taskOf(header); is {
		return p, err
	}
	if g.tokens == nil {
		return auth.Local, nil
	}
	token, err := auth.Bearer(header)
	if err != nil {
		return auth.Principal{}, err
	}
	return g.tokens.Verify(token)
}

// admit authenticates a call by its headers, checks that it may be made, and notes who
// makes it in the context.
func (g *guard) admit(ctx context.Context, method string, header []string) (context.Context, error) {
	rule, ok := auth.RuleOf(method)
	if ok && rule.Public {
		return ctx, nil
	}
	var value string
	if len(header) > 0 {
		value = header[0]
	}
	p, err := g.authenticate(value)
	if err != nil {
		return ctx, err
	}
	ctx = auth.WithPrincipal(ctx, p)
	if !ok {
		// A method of which nobody has heard: gRPC says so to those who may know.
		return ctx, nil
	}
	return ctx, g.permit(ctx, method)
}

// permit checks that the principal of a context may call a method.
func (g *guard) permit(ctx context.Context, method string) error {
	rule, ok := auth.RuleOf(method)
	if ok && rule.Public {
		return nil
	}
	p, known := auth.From(ctx)
	if !known {
		return task.Errorf(task.CodeUnauthenticated, "", "%s needs an authenticated caller", method)
	}
	if err := auth.Authorize(method, p); err != nil {
		return err
	}
	if g.workersOnly && p.Role != auth.Task && strings.HasPrefix(method, fabricMethods) {
		return task.Errorf(task.CodeState, "", "a dispatcher serves the API to running tasks only: connect to a server ('treadle server' or 'treadle up')")
	}
	if !rule.Certificate || !g.certificates {
		return nil
	}
	cert := certificateOf(ctx)
	switch {
	case len(cert.VerifiedChains) == 0:
		return task.Errorf(task.CodeUnauthenticated, "",
			"this server requires a client certificate from workers: start the worker with --tls-cert and --tls-key")
	case tlsfiles.PurposeOf(cert.PeerCertificates[0]) != tlsfiles.ForWorker && tlsfiles.PurposeOf(cert.PeerCertificates[0]) != "":
		return task.Errorf(task.CodeDenied, "", "the certificate of this worker was made for a %s: start it with one made for a worker (worker.pem of 'treadle certs')", tlsfiles.PurposeOf(cert.PeerCertificates[0]))
	}
	return nil
}

// certificateOf returns the TLS state of a gRPC call; the zero state without TLS.
func certificateOf(ctx context.Context) tls.ConnectionState {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			return info.State
		}
	}
	return tls.ConnectionState{}
}

// tap is admit for calls from the network: it runs when the headers of a call are there,
// so that nothing more is read for somebody who may not make it.
func (s *Server) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	ctx, err := s.enter(ctx, info)
	if err == nil {
		return ctx, nil
	}
	method := counted(info.FullMethodName)
	err = toStatus(ctx, s.log, method, err)
	s.metrics.rpcs.WithLabelValues(method, status.Code(err).String()).Inc()
	s.log.DebugContext(ctx, "call refused", "method", method, "code", status.Code(err).String(), "error", status.Convert(err).Message())
	return ctx, err
}

// enter admits a call, and its connection with it; public calls are counted instead.
func (s *Server) enter(ctx context.Context, info *tap.Info) (context.Context, error) {
	conn := connFrom(ctx)
	if rule, _ := auth.RuleOf(info.FullMethodName); rule.Public {
		leave, err := s.public.enter(conn, info.FullMethodName == healthpb.Health_Watch_FullMethodName)
		if err == nil {
			context.AfterFunc(ctx, leave)
		}
		return ctx, err
	}
	ctx, err := s.guard.admit(ctx, info.FullMethodName, info.Header.Get("authorization"))
	if err != nil {
		return ctx, err
	}
	p, _ := auth.From(ctx)
	return ctx, conn.admit(p)
}

// check is permit and the rate limit for a call whose handler is about to run; req is
// nil for streams.
func (s *Server) check(ctx context.Context, method string, req any) error {
	if err := s.guard.permit(ctx, method); err != nil {
		return err
	}
	if err := refusal(req); err != nil {
		return err
	}
	return s.guard.meter(ctx, method, req)
}

// fabricMethods is how the methods of the API begin.
var fabricMethods = "/" + treadlev1.FabricService_ServiceDesc.ServiceName + "/"

// watch ends the returned context when the token or the certificate that opened a stream
// no longer stands. stop must be called.
func (g *guard) watch(ctx context.Context) (_ context.Context, stop func()) {
	p, ok := auth.From(ctx)
	if !ok || g.tokens == nil && !g.certificates && p.Role != auth.Task {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	x := &guarded{principal: p, end: cancel}
	if certs := certificateOf(ctx).PeerCertificates; g.certificates && len(certs) > 0 {
		x.until = certs[0].NotAfter
	}
	g.mu.Lock()
	g.streams[x] = struct{}{}
	g.mu.Unlock()
	return ctx, func() {
		g.mu.Lock()
		delete(g.streams, x)
		g.mu.Unlock()
		cancel(nil)
	}
}

// sweep ends the streams of those who are no longer admitted, and forgets idle limits.
func (g *guard) sweep(ctx context.Context, now time.Time) {
	g.limits.forget()
	g.sweepTasks(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	for x := range g.streams {
		switch {
		case !x.until.IsZero() && now.After(x.until):
			x.end(task.Errorf(task.CodeUnauthenticated, "", "the certificate expired at %s", x.until.UTC().Format(time.RFC3339)))
		case g.tokens != nil && x.principal.Role != auth.Task:
			if err := g.tokens.Check(x.principal); err != nil {
				x.end(err)
			}
		}
	}
}

// checkMethods says which registered method has no rule: a server must not start with one.
func checkMethods(registered []string) error {
	for _, m := range registered {
		rule, ok := auth.RuleOf(m)
		if !ok {
			return fmt.Errorf("server: %s has no entry in the table of server/auth that says who may call it", m)
		}
		if rule.Cost == 0 {
			return fmt.Errorf("server: %s has no cost in the table of server/auth", m)
		}
		if rule.MaxMessage == 0 {
			return fmt.Errorf("server: the entry of %s in the table of server/auth does not say how large a message may be", m)
		}
	}
	return nil
}
