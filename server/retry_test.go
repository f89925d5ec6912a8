package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/worker"
)

// What a handler says of its next attempt holds over gRPC: an attempt that is not to be retried
// is the only one, one that waits is delayed as long as it asked for, and the handler knows how
// many retries are left.
func TestHandlersDecideOnTheRetry(t *testing.T) {
	for _, mode := range []link.Mode{link.Push, link.Pull} {
		t.Run(string(mode), func(t *testing.T) {
			left := make(chan int, 8)
			var h worker.Handlers
			worker.HandleIn(&h, "never", func(ctx context.Context, _ int) (int, error) {
				info, _ := worker.TaskFrom(ctx)
				left <- info.RetriesLeft
				return 0, worker.NoRetry(errors.New("no sense"))
			})
			worker.HandleIn(&h, "later", func(ctx context.Context, n int) (int, error) {
				info, _ := worker.TaskFrom(ctx)
				left <- info.RetriesLeft
				if info.Attempt == 1 {
					return 0, worker.RetryAfter(errors.New("busy"), time.Second)
				}
				return n, nil
			})
			e := startWhole(t, mode, &h)
			run := func(name string) *treadlev1.Task {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				req := &treadlev1.CallRequest{
					Function: name, Timeout: durationpb.New(20 * time.Second),
					Input: &treadlev1.CallInput{Args: []byte("[1]"), Options: &treadlev1.ExecuteOptions{FunctionRetries: proto.Int32(3)}},
				}
				r, err := e.fabric.Call(ctx, req)
				for status.Code(err) == codes.NotFound && ctx.Err() == nil { // the worker has not registered it yet
					r, err = e.fabric.Call(ctx, req)
				}
				if err != nil {
					t.Fatal(err)
				}
				tk, err := e.fabric.GetTask(ctx, &treadlev1.GetTaskRequest{TaskId: r.GetTaskId()})
				if err != nil {
					t.Fatal(err)
				}
				return tk
			}
			if tk := run("never"); tk.GetStatus() != treadlev1.Task_FAILED || tk.GetAttemptCount() != 1 || tk.GetError().GetMessage() != "no sense" {
				t.Errorf("never: %s after %d attempts, %v", tk.GetStatus(), tk.GetAttemptCount(), tk.GetError())
			}
			if n := <-left; n != 3 {
				t.Errorf("never: %d retries left, want 3", n)
			}
			tk := run("later")
			if tk.GetStatus() != treadlev1.Task_COMPLETED || len(tk.GetAttempts()) != 2 {
				t.Fatalf("later: %s, %v", tk.GetStatus(), tk.GetAttempts())
			}
			waited := tk.Attempts[1].GetStartedAt().AsTime().Sub(tk.Attempts[0].GetFinishedAt().AsTime())
			if waited < time.Second {
				t.Errorf("later: the second attempt began %s after the first, want 1 s", waited)
			}
			if a, b := <-left, <-left; a != 3 || b != 2 {
				t.Errorf("later: %d and %d retries left, want 3 and 2", a, b)
			}
		})
	}
}
