package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/worker"
)

// serving is a server or dispatcher process, which comes back at the address that it had.
type serving struct {
	t    *testing.T
	args []string
	addr string
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

func serve(t *testing.T, args ...string) *serving {
	t.Helper()
	s := &serving{t: t, args: args, addr: "127.0.0.1:0"}
	s.start()
	t.Cleanup(func() { s.end(syscall.SIGKILL) })
	return s
}

// start returns when the process is ready.
func (s *serving) start() {
	s.t.Helper()
	s.cmd, s.log = process(s.t, append(s.args, "--json", "--grpc-addr", s.addr)...), &bytes.Buffer{}
	s.cmd.Stderr = s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var ready struct {
		GRPCAddr string `json:"grpc_addr"`
	}
	if line, err := bufio.NewReader(out).ReadBytes('\n'); err != nil || json.Unmarshal(line, &ready) != nil {
		_ = s.cmd.Wait() // its log says why
		s.t.Fatalf("ready line %q, %v; stderr:\n%s", line, err, s.log)
	}
	s.addr = ready.GRPCAddr
}

// end returns when the process is gone.
func (s *serving) end(sig syscall.Signal) {
	s.t.Helper()
	_ = s.cmd.Process.Signal(sig) // it may have ended
	if err := s.cmd.Wait(); sig == syscall.SIGTERM && err != nil {
		s.t.Errorf("%v ended with %v after SIGTERM; stderr:\n%s", s.args, err, s.log)
	}
}

// ridden is a server that restarts, a worker here that counts executions, and clients.
type ridden struct {
	client *treadle.Client
	mu     sync.Mutex
	runs   map[int]int
	// asked are requests of which each must become one task.
	asked atomic.Int64
	done  atomic.Int64
}

func (r *ridden) echo(_ context.Context, n int) (int, error) {
	r.mu.Lock()
	r.runs[n]++
	r.mu.Unlock()
	return n, nil
}

// call makes one call after the other, until ctx ends.
func (r *ridden) call(ctx context.Context) error {
	for ctx.Err() == nil {
		n, got := int(r.asked.Add(1)), 0
		if err := r.client.Call(context.WithoutCancel(ctx), "echo", &got, n); err != nil || got != n {
			return fmt.Errorf("Call(%d) = %d, %w", n, got, err)
		}
		r.done.Add(1)
	}
	return nil
}

// batches does the same with batches.
func (r *ridden) batches(ctx context.Context) error {
	const size = 20
	for lasting := context.WithoutCancel(ctx); ctx.Err() == nil; {
		last := int(r.asked.Add(size))
		requests := make([]treadle.Request, size)
		for i := range requests {
			requests[i] = treadle.Request{Function: "echo", Args: []any{last - i}}
		}
		submitted, err := r.client.ExecuteBatch(lasting, requests)
		if err != nil {
			return fmt.Errorf("ExecuteBatch: %w", err)
		}
		ids, want := make([]string, size), make(map[string]string, size)
		for i, s := range submitted {
			if s.Err != nil {
				return fmt.Errorf("item %d of a batch: %w", i, s.Err)
			}
			ids[i], want[s.TaskID] = s.TaskID, fmt.Sprint(last-i)
		}
		for result, err := range r.client.Await(lasting, ids) {
			if err != nil || string(result.JSON) != want[result.TaskID] {
				return fmt.Errorf("Await = %+v, %w", result, err)
			}
			delete(want, result.TaskID)
			r.done.Add(1)
		}
		if len(want) > 0 {
			return fmt.Errorf("Await said nothing of %v", want)
		}
	}
	return nil
}

// watch follows one task to its end.
func (r *ridden) watch(ctx context.Context, id string) error {
	var last *treadle.Task
	for task, err := range r.client.Watch(context.WithoutCancel(ctx), id) {
		if err != nil {
			return fmt.Errorf("Watch: %w", err)
		}
		last = task
	}
	if last == nil || last.Status != treadle.Completed {
		return fmt.Errorf("Watch ended with %+v", last)
	}
	return nil
}

// TestGoClientsRideThroughRestarts ends the server under load, gently and not, again and
// again: no call fails, nothing is recorded or run twice.
func TestGoClientsRideThroughRestarts(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	store := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "everysec").URL("")
	srv := serve(t, "server", "--store", store, "--http-addr", "", "--data-dir", t.TempDir())
	dispatcher := serve(t, "dispatcher", "--store", store, "--data-dir", t.TempDir())

	r := &ridden{runs: map[int]int{}}
	var handlers worker.Handlers
	worker.HandleIn(&handlers, "echo", r.echo)
	open := make(chan struct{})
	worker.HandleIn(&handlers, "hold", func(_ context.Context, _ int) (string, error) { <-open; return "held", nil })
	working, stopWorker := context.WithCancel(context.Background())
	var workers sync.WaitGroup
	workers.Go(func() {
		err := worker.Serve(working, worker.Options{Dispatchers: []string{dispatcher.addr}, Handlers: &handlers, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Errorf("worker: %v", err)
		}
	})
	defer workers.Wait()
	defer stopWorker()

	var err error
	if r.client, err = treadle.Dial(srv.addr); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.client.Close() }()
	waitFor(t, func() bool { _, err := r.client.Function(t.Context(), "hold"); return err == nil })
	held, err := r.client.Execute(t.Context(), treadle.Request{Function: "hold", Args: []any{0}})
	if err != nil {
		t.Fatal(err)
	}
	loading, stop := context.WithCancel(t.Context())
	errs := make(chan error, 6)
	for range 4 {
		go func() { errs <- r.call(loading) }()
	}
	go func() { errs <- r.batches(loading) }()
	go func() { errs <- r.watch(loading, held) }()
	progress := func() {
		t.Helper()
		goal := r.done.Load() + 100
		waitFor(t, func() bool { return r.done.Load() >= goal || len(errs) > 0 })
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		progress()
		srv.end(sig)
		srv.start()
	}
	progress()
	stop()
	close(open)
	for range cap(errs) {
		select {
		case err := <-errs:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(40 * time.Second):
			t.Fatal("a call did not return")
		}
	}
	tasks := int64(0)
	for task, err := range r.client.Tasks(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if task.AttemptCount != 1 || task.LostWorkers != 0 {
			t.Errorf("a task was tried again: %+v", task)
		}
		tasks++
	}
	if want := r.asked.Load() + 1; tasks != want {
		t.Errorf("%d tasks were recorded for %d requests", tasks, want)
	}
	for n, runs := range r.runs {
		if runs != 1 {
			t.Errorf("request %d ran %d times", n, runs)
		}
	}
	if int64(len(r.runs)) != r.asked.Load() {
		t.Errorf("%d of %d requests ran", len(r.runs), r.asked.Load())
	}
}
