package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/treadle-dev/treadle/worker"
)

// serveWorkerHealth answers on a worker's --http-addr: /healthz while a slot can run
// anything, /readyz while a dispatcher has it, /metrics of the process.
func serveWorkerHealth(ctx context.Context, addr string, agent *worker.Agent) error {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen on %s (--http-addr): %w", addr, err)
	}
	mux := http.NewServeMux()
	answer := func(ready func(worker.Status) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			status := agent.Status()
			w.Header().Set("Content-Type", "application/json")
			if !ready(status) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_ = json.NewEncoder(w).Encode(status) // the reader went away
		}
	}
	mux.Handle("GET /healthz", answer(worker.Status.Healthy))
	mux.Handle("GET /readyz", answer(func(s worker.Status) bool { return s.Attached && !s.Draining && s.Healthy() }))
	mux.Handle("GET /metrics", promhttp.Handler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s (--http-addr): %w", addr, err)
	}
	return nil
}
