package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// benchServer serves for a benchmark; nothing dispatches.
func benchServer(b *testing.B) (*Server, string) {
	b.Helper()
	srv, err := New(Config{Store: newStore(b), GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx) }()
	b.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return srv, "http://" + srv.HTTPAddr()
}

func benchPost(b *testing.B, url string, body []byte) map[string]any {
	b.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%d %v %v", resp.StatusCode, out, err)
	}
	return out
}

// work plays a worker that ends every task at once, until the benchmark does.
func work(b *testing.B, st store.Store, out task.Outcome) {
	ready := make(chan struct{}, 1)
	stop := st.Bell().Listen(func(signals []store.Signal) {
		for _, s := range signals {
			if s.Kind == store.Ready {
				select {
				case ready <- struct{}{}:
				default:
				}
			}
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ready:
			case <-ctx.Done():
				return
			}
			for {
				now := time.Now()
				got, err := st.Claim(ctx, now, []store.ClaimRequest{{
					Claim: task.ID(uuid.New()), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: []string{task.RuntimePython},
					Max: 64, Until: now.Add(time.Minute),
				}})
				if err != nil || len(got[0]) == 0 {
					break
				}
				var items []store.Settlement
				for _, c := range got[0] {
					items = append(items, store.Settlement{Token: c.Token, Outcome: out})
				}
				if _, err := st.Settle(ctx, now, items); err != nil {
					break
				}
			}
		}
	}()
	b.Cleanup(func() { stop(); cancel(); <-done })
}

// BenchmarkCall is one REST :call after another, the worker's time left out.
func BenchmarkCall(b *testing.B) {
	srv, url := benchServer(b)
	work(b, srv.cfg.Store, succeed([]byte("42"), task.EncodingJSON))
	benchPost(b, url+"/v1/functions", []byte(`{"name":"f","source":"x"}`))
	for b.Loop() {
		if out := benchPost(b, url+"/v1/functions/f:call", []byte(`{"args":[21]}`)); out["result"] != float64(42) {
			b.Fatal(out)
		}
	}
}

// BenchmarkRootLarge executes with 60 MiB and reads a result of 60 MiB.
func BenchmarkRootLarge(b *testing.B) {
	srv, url := benchServer(b)
	value := bigPickle(60 << 20)
	work(b, srv.cfg.Store, succeed(value, task.EncodingPickle))
	fn := benchPost(b, url+"/register_function", []byte(`{"name":"f","payload":"gAROLg=="}`))["function_id"].(string)
	body, err := json.Marshal(map[string]string{"function_id": fn, "payload": S(value)})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(2 * len(value)))
	b.ReportAllocs()
	for b.Loop() {
		id := benchPost(b, url+"/execute_function", body)["task_id"].(string)
		resp, err := http.Get(url + "/v1/tasks/" + id)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		resp, err = http.Get(url + "/result/" + id)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}

// BenchmarkBatch is one task of a batch of 256 over gRPC and its result, the worker's
// time left out.
func BenchmarkBatch(b *testing.B) {
	srv, _ := benchServer(b)
	work(b, srv.cfg.Store, succeed([]byte("42"), task.EncodingJSON))
	conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := treadlev1.NewFabricServiceClient(conn)
	if _, err := client.RegisterFunction(b.Context(), &treadlev1.RegisterFunctionRequest{Name: "f", Source: "x"}); err != nil {
		b.Fatal(err)
	}
	req := &treadlev1.ExecuteBatchRequest{}
	for range 256 {
		req.Requests = append(req.Requests, &treadlev1.ExecuteRequest{Function: "f", Args: []byte(`[21]`)})
	}
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(req.Requests) {
		res, err := client.ExecuteBatch(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		await := &treadlev1.AwaitResultsRequest{}
		for _, item := range res.GetItems() {
			await.TaskIds = append(await.TaskIds, item.GetTaskId())
		}
		stream, err := client.AwaitResults(b.Context(), await)
		if err != nil {
			b.Fatal(err)
		}
		got := 0
		for {
			msg, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			got += len(msg.GetResults())
		}
		if got != len(req.Requests) {
			b.Fatalf("%d results", got)
		}
	}
}

// BenchmarkGRPC is one unary call over gRPC after another that does next to nothing.
func BenchmarkGRPC(b *testing.B) {
	srv, _ := benchServer(b)
	conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := treadlev1.NewFabricServiceClient(conn)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.GetServerInfo(b.Context(), &treadlev1.GetServerInfoRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
