//go:build linux

package security

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	treadle "github.com/treadle-dev/treadle/clients/go"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// TestEveryCallHasAPrice: --rate-limit holds for every method and page that takes a token, and
// for each token by itself.
func TestEveryCallHasAPrice(t *testing.T) {
	const rate = 40
	c := ownCluster(t, setup{flags: []string{"--rate-limit", fmt.Sprint(rate)}, idle: true})
	id := c.submit(t, "nobody", 1, treadle.Options{})[0]
	for method, request := range map[string]proto.Message{
		"FabricService/GetFunction":      &treadlev1.GetFunctionRequest{Function: fnDouble},
		"FabricService/ListFunctions":    &treadlev1.ListFunctionsRequest{},
		"FabricService/GetTask":          &treadlev1.GetTaskRequest{TaskId: id},
		"FabricService/GetResult":        &treadlev1.GetResultRequest{TaskId: id},
		"FabricService/ListTasks":        &treadlev1.ListTasksRequest{},
		"FabricService/GetLogs":          &treadlev1.GetLogsRequest{TaskId: id},
		"FabricService/ListWorkers":      &treadlev1.ListWorkersRequest{},
		"FabricService/ListQueues":       &treadlev1.ListQueuesRequest{},
		"FabricService/GetServerInfo":    &treadlev1.GetServerInfoRequest{},
		"FabricService/CancelTask":       &treadlev1.CancelTaskRequest{TaskId: id},
		"FabricService/Execute":          &treadlev1.ExecuteRequest{Function: "none"},
		"FabricService/WatchTask":        &treadlev1.WatchTaskRequest{TaskId: id},
		"FabricService/AwaitResults":     &treadlev1.AwaitResultsRequest{TaskIds: []string{id}},
		"FabricService/Call":             &treadlev1.CallRequest{Function: "none"},
		"RootService/GetRootStatus":      &treadlev1.GetRootStatusRequest{TaskId: id},
		"FabricService/ExecuteBatch":     &treadlev1.ExecuteBatchRequest{Requests: []*treadlev1.ExecuteRequest{{Function: "none"}}},
		"FabricService/RegisterFunction": &treadlev1.RegisterFunctionRequest{},
	} {
		t.Run(method, func(t *testing.T) {
			p := dialPeer(t, c.api, c.evilClient, "127.0.0.2")
			var refused atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range rate / 2 {
						ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
						w, err := p.watch(ctx, "/treadle.v1."+method, wire(t, request))
						if err == nil {
							_, err = w.recv()
						}
						cancel()
						if status.Code(err) == codes.ResourceExhausted {
							refused.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if refused.Load() == 0 {
				t.Errorf("%d calls in a row and none was refused at a rate of %d a second", 4*rate, rate)
			}
			if err := c.callNow(5 * time.Second); err != nil {
				t.Errorf("another token pays for it: %v", err)
			}
		})
	}
	for _, path := range []string{"/metrics", "/openapi.json", "/", "/v1/tasks", "/v1/workers", "/v1/queues", "/v1/functions"} {
		t.Run("GET "+path, func(t *testing.T) {
			refused := 0
			for range 4 * rate {
				req, err := http.NewRequest(http.MethodGet, "http://"+c.http+path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+c.evilClient)
				answer, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				answer.Body.Close()
				if answer.StatusCode == http.StatusTooManyRequests {
					refused++
				}
			}
			if refused == 0 {
				t.Errorf("%d requests in a row and none was refused at a rate of %d a second", 4*rate, rate)
			}
		})
	}
}
