package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

var errBusy = errors.New("busy")

// Middleware sees every call. Here it makes one kind of error wait, for all handlers.
func ExampleHandlers_Use() {
	var handlers worker.Handlers
	worker.HandleIn(&handlers, "fetch", func(_ context.Context, url string) (string, error) {
		if url == "" {
			return "", worker.NoRetry(errors.New("there is no URL"))
		}
		return "", errBusy
	})
	handlers.Use(func(next worker.HandlerFunc) worker.HandlerFunc {
		return func(ctx context.Context, arg json.RawMessage) (any, error) {
			value, err := next(ctx, arg)
			if errors.Is(err, errBusy) {
				return nil, worker.RetryAfter(err, 5*time.Minute)
			}
			return value, err
		}
	})
	for _, args := range []string{`{"args":[""]}`, `{"args":["http://example.com"]}`} {
		out := handlers.Run(context.Background(), 0, &worker.Attempt{
			Runtime: task.GoRuntime("fetch"), ArgsEncoding: task.EncodingJSON, Args: []byte(args),
		})
		fmt.Println(out.Failure.Message, out.NoRetry, out.RetryAfter)
	}
	// Output:
	// there is no URL true 0s
	// busy false 5m0s
}
