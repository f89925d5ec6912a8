package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/tlsfiles"
	"github.com/treadle-dev/treadle/server/auth"
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
		streams: make(map[*guarded]struct{}),
	}
}

// authenticate finds who calls, from the value of the Authorization header.
func (g *guard) authenticate(header string) (auth.Principal, error) {
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
		return task.Errorf(task.CodeUnauthenticated, "", "nobody was authenticated for %s", method)
	}
	if err := auth.Authorize(method, p); err != nil {
		return err
	}
	if !rule.Certificate || !g.certificates {
		return nil
	}
	cert := certificateOf(ctx)
	switch {
	case len(cert.VerifiedChains) == 0:
		return task.Errorf(task.CodeUnauthenticated, "",
			"workers must show a certificate here, and this one showed none: start it with --tls-cert and --tls-key")
	case tlsfiles.PurposeOf(cert.PeerCertificates[0]) != tlsfiles.ForWorker && tlsfiles.PurposeOf(cert.PeerCertificates[0]) != "":
		return task.Errorf(task.CodeDenied, "", "the certificate of this worker was made for a %s", tlsfiles.PurposeOf(cert.PeerCertificates[0]))
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
	ctx, err := s.guard.admit(ctx, info.FullMethodName, info.Header.Get("authorization"))
	if err == nil {
		return ctx, nil
	}
	method := counted(info.FullMethodName)
	err = toStatus(ctx, s.log, method, err)
	s.metrics.rpcs.WithLabelValues(method, status.Code(err).String()).Inc()
	s.log.DebugContext(ctx, "call refused", "method", method, "code", status.Code(err).String(), "error", status.Convert(err).Message())
	return ctx, err
}

// check is permit and the rate limit for a call whose handler is about to run; req is
// nil for streams.
func (s *Server) check(ctx context.Context, method string, req any) error {
	if err := s.guard.permit(ctx, method); err != nil {
		return err
	}
	if rule, _ := auth.RuleOf(method); rule.Metered && s.guard.limits != nil {
		p, _ := auth.From(ctx)
		return s.guard.limits.take(p.ID, cost(req))
	}
	return nil
}

// cost is how many registrations or submissions a request asks for.
func cost(req any) int {
	if batch, ok := req.(*treadlev1.ExecuteBatchRequest); ok {
		return max(1, len(batch.GetRequests()))
	}
	return 1
}

// watch ends the returned context when the token or the certificate that opened a stream
// no longer stands. stop must be called.
func (g *guard) watch(ctx context.Context) (_ context.Context, stop func()) {
	p, ok := auth.From(ctx)
	if !ok || g.tokens == nil && !g.certificates {
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
func (g *guard) sweep(now time.Time) {
	g.limits.forget()
	g.mu.Lock()
	defer g.mu.Unlock()
	for x := range g.streams {
		switch {
		case !x.until.IsZero() && now.After(x.until):
			x.end(task.Errorf(task.CodeUnauthenticated, "", "the certificate expired at %s", x.until.UTC().Format(time.RFC3339)))
		case g.tokens != nil:
			if err := g.tokens.Check(x.principal); err != nil {
				x.end(err)
			}
		}
	}
}

// checkMethods says which registered method has no rule: a server must not start with one.
func checkMethods(registered []string) error {
	for _, m := range registered {
		if _, ok := auth.RuleOf(m); !ok {
			return fmt.Errorf("server: %s has no entry in the table of server/auth that says who may call it", m)
		}
	}
	return nil
}

// rateLimits are token buckets, one for each principal, that hold what may come in one
// second. A nil rateLimits limits nothing.
type rateLimits struct {
	perSecond float64
	burst     int
	now       func() time.Time

	mu      sync.Mutex
	buckets map[string]*rate.Limiter
}

func newRateLimits(perSecond float64, now func() time.Time) *rateLimits {
	if perSecond <= 0 {
		return nil
	}
	return &rateLimits{perSecond: perSecond, burst: int(math.Ceil(perSecond)), now: now, buckets: make(map[string]*rate.Limiter)}
}

// take lets n through or refuses them with when to come back. A request for more than a
// bucket holds passes when the bucket is full and leaves a debt behind it, so that the
// rate holds over time.
func (l *rateLimits) take(id string, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[id]
	if b == nil {
		b = rate.NewLimiter(rate.Limit(l.perSecond), l.burst)
		l.buckets[id] = b
	}
	now, first := l.now(), min(n, l.burst)
	if !b.AllowN(now, first) {
		missing := float64(first) - b.TokensAt(now)
		wait := time.Duration(math.Ceil(missing / l.perSecond * float64(time.Second)))
		return &limited{wait: wait, perSecond: l.perSecond}
	}
	for n -= first; n > 0; n -= l.burst {
		b.ReserveN(now, min(n, l.burst))
	}
	return nil
}

// forget drops full buckets: one made anew would be full as well.
func (l *rateLimits) forget() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for id, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, id)
		}
	}
}

// limited is a call over the rate limit.
type limited struct {
	wait      time.Duration
	perSecond float64
}

func (e *limited) Error() string {
	return fmt.Sprintf("over the limit of %g registrations and submissions a second (--rate-limit): come back in %s",
		e.perSecond, e.wait.Round(time.Millisecond))
}

// GRPCStatus is the error as a status, with ErrorInfo and RetryInfo.
func (e *limited) GRPCStatus() *status.Status {
	st, err := status.New(codes.ResourceExhausted, e.Error()).WithDetails(
		&errdetails.ErrorInfo{Reason: reasonRate, Domain: errorDomain},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(e.wait)})
	if err != nil {
		return status.New(codes.Internal, "an error could not be described: "+err.Error())
	}
	return st
}

// retryAfter is the wait that a status asks for; 0 when it asks for none.
func retryAfter(st *status.Status) time.Duration {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
