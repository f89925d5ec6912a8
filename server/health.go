package server

import (
	"context"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/task"
)

// healthServer is grpc.health.v1: SERVING while the store answers. Check asks the
// store; Watch is served by the standard implementation, which the sweeper keeps up
// to date.
type healthServer struct {
	*health.Server
	s *Server
}

func (h healthServer) Check(ctx context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	_ = h.s.probe(ctx) // it tells h.Server, which answers
	return h.Server.Check(ctx, req)
}

// Watch ends after watchAge: whoever likes may call it, and nothing says that he still listens.
func (h healthServer) Watch(req *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	ctx, cancel := context.WithTimeout(stream.Context(), h.s.watchAge)
	defer cancel()
	err := h.Server.Watch(req, boundedWatch{stream, ctx})
	if ctx.Err() != nil && stream.Context().Err() == nil {
		return task.Errorf(task.CodeUnavailable, "", "the watch has lasted %s, as long as one may: watch again", h.s.watchAge)
	}
	return err
}

// boundedWatch is a stream with an end.
type boundedWatch struct {
	healthpb.Health_WatchServer
	ctx context.Context
}

func (w boundedWatch) Context() context.Context { return w.ctx }

// probeTimeout bounds one question to the store.
const probeTimeout = 2 * time.Second

// probe asks the store whether it answers and tells the health service.
func (s *Server) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// No function has the zero id: the answer that there is none is an answer.
	_, err := s.cfg.Store.Function(ctx, task.ID{})
	if task.CodeOf(err) == task.CodeNotFound {
		err = nil
	}
	state := healthpb.HealthCheckResponse_SERVING
	if err != nil {
		state = healthpb.HealthCheckResponse_NOT_SERVING
	}
	for _, name := range s.serviceNames() {
		// After health.Shutdown these calls change nothing.
		s.health.SetServingStatus(name, state)
	}
	return err
}

// serviceNames lists what health can be asked about; "" is the server as a whole.
func (s *Server) serviceNames() []string {
	names := []string{"", treadlev1.WorkerService_ServiceDesc.ServiceName}
	if !s.cfg.WorkersOnly {
		names = append(names, treadlev1.FabricService_ServiceDesc.ServiceName, treadlev1.RootService_ServiceDesc.ServiceName)
	}
	return names
}
