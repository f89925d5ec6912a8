// Package server is the API of Treadle: FabricService and RootService over gRPC, the
// same over REST through a gateway, and the streams of workers. It is thin: requests
// are checked here, and everything that lasts is in the store.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/link/linkpb"
)

// Server serves the API. Use it in this order: New, Listen, Serve; Shutdown may be
// called at any time and more than once.
type Server struct {
	cfg Config
	log *slog.Logger
	// core is what the API does.
	core    *fabric.Fabric
	metrics *metrics
	health  healthServer
	guard   *guard
	budget  *budget
	frames  *budget // of frames of workers over freeFrame while they arrive
	// links is what the streams of workers may hold.
	links  *linkpb.Budget
	public *publicCalls
	// watchAge is how long a watch of the health service lasts.
	watchAge time.Duration

	grpc    *grpc.Server
	grpcLis net.Listener
	// local is Config.Local, counted.
	local net.Listener
	// plain answers those who speak plain text to TLS; nil without it.
	plain *plainText
	// inline is how the gateway reaches the same services.
	inline  *inline
	routes  restRoutes
	http    *http.Server
	httpLis net.Listener

	// closing is closed when a shutdown begins. The waits of long calls end then, so that the drain
	// is short.
	closing   chan struct{}
	closeOnce sync.Once
	// stopped is closed when Shutdown has finished.
	stopped      chan struct{}
	shutdownOnce sync.Once
}

// New checks the configuration and builds a server that listens nowhere yet.
func New(cfg Config) (*Server, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	if cfg.Fabric == nil {
		var err error
		if cfg.Fabric, err = fabric.New(cfg.Core()); err != nil {
			return nil, err
		}
	}
	core := cfg.Fabric
	s := &Server{
		cfg: cfg, log: cfg.Logger, core: core, metrics: newMetrics(cfg.Store, cfg.Version), guard: newGuard(&cfg),
		budget: newBudget(cfg.MaxBodies, cfg.bodyShare()), frames: newBudget(2*int64(cfg.maxMessage()), int64(cfg.maxMessage())), links: linkpb.NewBudget(cfg.MaxPayload), public: newPublicCalls(), watchAge: watchAge,
		closing: make(chan struct{}), stopped: make(chan struct{}),
	}
	s.budget.core = core
	s.health = healthServer{Server: health.NewServer(), s: s}
	s.metrics.security(&cfg)
	s.metrics.budget(s.budget)
	s.metrics.submitted(core)
	if cfg.Dispatcher != nil {
		s.metrics.links(s.links, cfg.Dispatcher)
	}
	s.grpc = s.newGRPC()
	if err := checkMethods(methodsOf(s.grpc)); err != nil {
		return nil, err
	}
	s.inline = &inline{unary: s.unary, stream: s.stream, limits: wire.New(s.cfg.MaxPayload)}
	s.registerServices(s.inline)
	return s, nil
}

// Listen binds both addresses. An error names the flag and the address.
func (s *Server) Listen() error {
	var err error
	if s.cfg.Local != nil {
		s.local = s.limit("local", s.cfg.Local)
	}
	if s.cfg.GRPCAddr != "" {
		if s.grpcLis, err = listen("--grpc-addr", s.cfg.GRPCAddr); err != nil {
			return err
		}
		s.grpcLis = s.limit("grpc", s.grpcLis)
	}
	if s.cfg.HTTPAddr == "" {
		return nil
	}
	if s.httpLis, err = listen("--http-addr", s.cfg.HTTPAddr); err != nil {
		if s.grpcLis != nil {
			_ = s.grpcLis.Close()
		}
		return err
	}
	s.httpLis = s.limit("http", s.httpLis)
	s.http, err = s.newHTTP()
	return err
}

// listen binds an address. An error names the flag, and what to do when the port is taken.
func listen(flag, address string) (net.Listener, error) {
	lis, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s %s: another process listens there: stop it, or choose another port (0 picks a free one): %w", flag, address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, address, err)
	}
	return lis, nil
}

// limit bounds the connections of a listener, and counts them.
func (s *Server) limit(name string, lis net.Listener) net.Listener {
	d := newDoor(name, lis, newDoorLimits(s.cfg.MaxConnections, s.cfg.Tokens != nil), s.log)
	s.metrics.door(d)
	return d
}

// GRPCAddr returns the bound address, after Listen; empty when gRPC is served inside of the
// process alone.
func (s *Server) GRPCAddr() string {
	if s.grpcLis == nil {
		return ""
	}
	return s.grpcLis.Addr().String()
}

// HTTPAddr returns the bound address, after Listen; empty when HTTP is off.
func (s *Server) HTTPAddr() string {
	if s.httpLis == nil {
		return ""
	}
	return s.httpLis.Addr().String()
}

// Serve serves until Shutdown is called, ctx ends or a listener fails. When ctx ends it
// shuts down by itself within Config.ShutdownTimeout. It returns when every
// goroutine of the server has ended: nil after an orderly end.
func (s *Server) Serve(ctx context.Context) error {
	if s.grpcLis == nil && s.local == nil {
		return errors.New("server: Serve before Listen")
	}
	stopBell := s.core.Listen()
	defer stopBell()
	background, cancel := context.WithCancel(context.Background())
	defer cancel()

	var group sync.WaitGroup
	failed := make(chan error, 5)
	serve := func(what string, f func() error) {
		group.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("serve %s: %w", what, err)
			}
		})
	}
	if s.grpcLis != nil {
		serve("gRPC", func() error { return s.grpc.Serve(s.grpcLis) })
	}
	if s.local != nil {
		serve("gRPC inside of the process", func() error { return s.grpc.Serve(s.local) })
	}
	if s.plain != nil {
		serve("plain text", func() error { return s.plain.grpc.Serve(s.plain) })
	}
	if s.http != nil {
		serve("HTTP", func() error {
			if s.http.TLSConfig != nil {
				return s.http.ServeTLS(s.httpLis, "", "")
			}
			return s.http.Serve(s.httpLis)
		})
	}
	group.Go(func() { s.sweepLoop(background) })

	var err error
	select {
	case <-s.stopped:
	case err = <-failed:
	case <-ctx.Done():
	}
	limit, stop := context.WithTimeout(background, s.cfg.ShutdownTimeout)
	defer stop()
	s.Shutdown(limit)
	cancel()
	group.Wait()
	return err
}

// Shutdown ends serving: no new calls, waiting calls are answered with what is known,
// running ones may finish until ctx ends and are then cut off. A cut-off loses
// nothing: whatever was acknowledged is in the store.
func (s *Server) Shutdown(ctx context.Context) {
	s.shutdownOnce.Do(func() {
		s.shutdown(ctx)
		close(s.stopped)
	})
	<-s.stopped
}

func (s *Server) shutdown(ctx context.Context) {
	s.health.Shutdown()
	s.closeOnce.Do(func() { close(s.closing) })
	s.core.Close()
	var group sync.WaitGroup
	if s.http != nil {
		group.Go(func() {
			if err := s.http.Shutdown(ctx); err != nil {
				s.log.Warn("HTTP requests were cut off", "error", err)
				_ = s.http.Close()
			}
			s.inline.close()
		})
	}
	if s.plain != nil {
		s.plain.grpc.Stop()
		_ = s.plain.Close() // in case it was never served
	}
	group.Go(func() { stopGRPC(ctx, s.grpc) })
	group.Wait()
	if s.grpcLis != nil {
		_ = s.grpcLis.Close() // in case it was never served
	}
	if s.local != nil {
		_ = s.local.Close()
	}
	if s.httpLis != nil {
		_ = s.httpLis.Close()
	}
}

// stopGRPC drains a server until ctx ends, then cuts it off. GracefulStop alone
// waits for streams for ever.
func stopGRPC(ctx context.Context, g *grpc.Server) {
	drained := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		g.Stop()
		<-drained
	}
}

func (s *Server) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// sweepLoop is the safety net under the bell, and keeps the health service current.
func (s *Server) sweepLoop(ctx context.Context) {
	ticker := time.NewTicker(s.cfg.SafetyNet)
	defer ticker.Stop()
	healthy := true
	for {
		err := s.probe(ctx)
		if (err == nil) != healthy && ctx.Err() == nil {
			healthy = err == nil
			if healthy {
				s.log.Info("the store answers again")
			} else {
				s.log.Warn("the store does not answer", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		s.guard.sweep(ctx, s.cfg.Now())
		if err := s.core.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("waiting tasks could not be looked up", "error", err)
		}
	}
}
