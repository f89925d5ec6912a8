package server

import (
	"slices"

	"google.golang.org/grpc"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/link/linkpb"
	"github.com/treadle-dev/treadle/task"
)

// workers implements WorkerService: it turns a stream into a Conn and waits for the
// session. The RPC that the worker chose is all that tells push from pull.
type workers struct {
	treadlev1.UnimplementedWorkerServiceServer
	s *Server
}

type workerStream = grpc.BidiStreamingServer[treadlev1.WorkerFrame, treadlev1.DispatcherFrame]

func (w workers) Push(stream workerStream) error { return w.attach(stream, link.Push) }

func (w workers) Pull(stream workerStream) error { return w.attach(stream, link.Pull) }

func (w workers) attach(stream workerStream, mode link.Mode) error {
	if w.s.cfg.Dispatcher == nil {
		return task.Errorf(task.CodeState, "", "this server dispatches no tasks: point the worker at a dispatcher")
	}
	if !slices.Contains(w.s.cfg.Modes, mode) {
		return task.Errorf(task.CodeState, "", "this dispatcher admits no %s workers: start them with another --mode", mode)
	}
	conn := linkpb.NewDispatcherConn(stream, w.s.cfg.MaxPayload, w.s.links.For(callerOf(stream.Context()).Owner))
	defer conn.Close(nil)
	return w.s.cfg.Dispatcher.Attach(stream.Context(), conn, mode)
}
