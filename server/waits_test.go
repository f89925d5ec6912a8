package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/server/auth"
)

// TestWaitQuotaInTheAPI: each kind of wait is refused with words, and a refused call
// records nothing.
func TestWaitQuotaInTheAPI(t *testing.T) {
	ring := newRing(t)
	e := start(t, ring.use(t), func(c *Config) { c.QuotaWaited = 2 })
	ctx := ring.as(t.Context(), auth.Client)
	if _, err := e.fabric.RegisterFunction(ctx, &treadlev1.RegisterFunctionRequest{Name: "f", Source: "def f(): pass"}); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for range 3 {
		made, err := e.fabric.Execute(ctx, &treadlev1.ExecuteRequest{Function: "f"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, made.GetTaskId())
	}
	held, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := e.fabric.AwaitResults(held, &treadlev1.AwaitResultsRequest{TaskIds: ids[:2]}); err != nil {
		t.Fatal(err)
	}
	e.waiting(2)
	calls := map[string]func(context.Context) error{
		"AwaitResults": func(ctx context.Context) error {
			stream, err := e.fabric.AwaitResults(ctx, &treadlev1.AwaitResultsRequest{TaskIds: ids[2:]})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"WatchTask": func(ctx context.Context) error {
			stream, err := e.fabric.WatchTask(ctx, &treadlev1.WatchTaskRequest{TaskId: ids[2]})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"GetResult": func(ctx context.Context) error {
			_, err := e.fabric.GetResult(ctx, &treadlev1.GetResultRequest{TaskId: ids[2], Wait: durationpb.New(time.Millisecond)})
			return err
		},
		"Call": func(ctx context.Context) error {
			_, err := e.fabric.Call(ctx, &treadlev1.CallRequest{Function: "f", Timeout: durationpb.New(time.Millisecond)})
			return err
		},
	}
	for name, call := range calls {
		if err := call(ctx); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "quota waited") {
			t.Errorf("%s over the quota: %v", name, err)
		}
	}
	page, err := e.fabric.ListTasks(ctx, &treadlev1.ListTasksRequest{})
	if err != nil || len(page.GetTasks()) != 3 {
		t.Errorf("a refused call left %d tasks, %v", len(page.GetTasks()), err)
	}
	cancel()
	e.waiting(0)
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		if err := call(ctx); status.Code(err) == codes.ResourceExhausted {
			t.Errorf("%s after the waits ended: %v", name, err)
		}
		cancel()
	}
}
