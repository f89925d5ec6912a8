package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/task"
)

// Transport settings. A peer that does not answer a ping is gone after keepAlive
// and keepAliveTimeout; clients may ping no more often than minPing.
const (
	keepAlive        = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
	minPing          = 5 * time.Second
	handshakeTimeout = 10 * time.Second
	// maxIdle is how long a connection stays without a call. Clients notice nothing: they
	// are told first, and connect again with their next call.
	maxIdle = 10 * time.Minute
	// maxStreams bounds the calls under way on one connection.
	maxStreams = 1000
	// maxHeaders bounds the headers of a call, in bytes.
	maxHeaders = 16 << 10
	// streamWindow is how much of a call may be sent and not read, in bytes: what a message
	// that waits for room costs. A window that gRPC adapts by itself grows to 16 MiB. A
	// message that is being read gets a window of its size.
	streamWindow = 256 << 10
	// connWindow is how much of a connection may be on the way, in bytes. It is
	// given back when it arrives, so it costs no memory.
	connWindow = 8 << 20
)

// newGRPC builds the server that listens for the network.
func (s *Server) newGRPC() *grpc.Server {
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(serverCodec{requestCodec}),
		grpc.MaxRecvMsgSize(s.cfg.maxMessage()),
		grpc.MaxSendMsgSize(s.cfg.maxMessage()),
		grpc.WaitForHandlers(true),
		grpc.InTapHandle(s.tap),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(unserved),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepAlive, Timeout: keepAliveTimeout, MaxConnectionIdle: maxIdle}),
	}
	if s.cfg.TLS != nil {
		s.plain = newPlainText()
		options = append(options, grpc.Creds(tlsCredentials{credentials.NewTLS(s.cfg.TLS.Config(true, "h2")), s.plain}))
	}
	g := grpc.NewServer(options...)
	r := registrar{g, s}
	s.registerServices(r)
	healthpb.RegisterHealthServer(r, s.health)
	treadlev1.RegisterWorkerServiceServer(r, workers{s: s})
	reflection.Register(r)
	return g
}

// methodsOf lists the methods of a server, as "/package.Service/Method".
func methodsOf(g *grpc.Server) []string {
	var names []string
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			names = append(names, "/"+service+"/"+m.Name)
		}
	}
	return names
}

// registerServices registers the API with the gRPC server or the gateway's connection.
func (s *Server) registerServices(g grpc.ServiceRegistrar) {
	if !s.cfg.WorkersOnly || s.cfg.TaskTokens != nil {
		treadlev1.RegisterFabricServiceServer(g, service{s: s})
	}
	if !s.cfg.WorkersOnly {
		treadlev1.RegisterRootServiceServer(g, root{s: s})
	}
}

// unary wraps every unary call: it must be permitted, panics become errors, errors
// become statuses, and each call is counted and logged.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(ctx, info.FullMethod, r)
		}
		err = toStatus(ctx, s.log, info.FullMethod, err)
		s.observe(ctx, info.FullMethod, start, err)
	}()
	if ctx, err = s.guard.standing(ctx); err != nil {
		return nil, err
	}
	if err := s.check(ctx, info.FullMethod, req); err != nil {
		return nil, err
	}
	if p, _ := auth.From(ctx); p.Role == auth.Task {
		return s.forTask(ctx, req, handler)
	}
	return handler(ctx, req)
}

// stream is unary for streams. A worker's stream lasts as long as its session, so
// its duration is not a latency and stays out of the histogram.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := time.Now()
	ctx := ss.Context()
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(ctx, info.FullMethod, r)
		}
		err = toStatus(ctx, s.log, info.FullMethod, err)
		s.observe(ctx, info.FullMethod, start, err)
	}()
	if _, served := auth.RuleOf(info.FullMethod); !served {
		return handler(srv, ss) // unserved: New refuses a method of the server that has no rule
	}
	if ctx, err = s.guard.standing(ctx); err != nil {
		return err
	}
	if err := s.check(ctx, info.FullMethod, nil); err != nil {
		return err
	}
	ctx, stop := s.guard.watch(ctx)
	defer stop()
	err = handler(srv, guardedStream{ss, ctx})
	if ended := context.Cause(ctx); ended != nil && task.CodeOf(ended) == task.CodeUnauthenticated {
		return ended
	}
	return err
}

// unserved answers calls of methods that this server does not have.
func unserved(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	return newStatus(codes.Unimplemented, reasonUnserved, fmt.Sprintf("this server has no method %.256q", method), nil, nil)
}

// guardedStream is a stream whose context also ends with the caller's right to it.
type guardedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// RecvMsg refuses messages that are not within the contract's limits.
func (g guardedStream) RecvMsg(m any) error {
	if err := g.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return refusal(m)
}

func (g guardedStream) Context() context.Context { return g.ctx }

func (s *Server) panicked(ctx context.Context, method string, r any) error {
	s.log.ErrorContext(ctx, "panic in a handler", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return newStatus(codes.Internal, reasonInternal, "internal error; the server's log has the cause", nil, nil)
}

func (s *Server) observe(ctx context.Context, method string, start time.Time, err error) {
	took := time.Since(start)
	code := status.Code(err)
	method = counted(method)
	s.metrics.observeRPC(method, code, took, isLasting(method))
	if s.log.Enabled(ctx, slog.LevelDebug) {
		attrs := []any{"method", method, "code", code.String(), "took", took}
		if err != nil {
			attrs = append(attrs, "error", status.Convert(err).Message())
		}
		s.log.DebugContext(ctx, "call", attrs...)
	}
}

// counted is the name under which calls of a method are counted: callers of methods that
// this server does not have could choose any.
func counted(method string) string {
	if _, ok := auth.RuleOf(method); !ok {
		return "unknown"
	}
	return method
}

// isLasting reports whether a method's calls last as long as the caller likes.
func isLasting(method string) bool {
	return strings.HasPrefix(method, "/treadle.v1.WorkerService/") || strings.HasSuffix(method, "/WatchTask") ||
		strings.HasSuffix(method, "/AwaitResults") || strings.HasPrefix(method, "/grpc.")
}
