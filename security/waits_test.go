//go:build linux

package security

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	treadle "github.com/treadle-dev/treadle/clients/go"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// unfinished submits tasks to a queue that nobody serves and returns their ids.
func (c *cluster) unfinished(t *testing.T, token string, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	client, err := treadle.Dial(c.api, treadle.WithToken(token))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	queue := fmt.Sprintf("nobody-%x", random(4))
	fn, err := client.Register(ctx, treadle.Registration{Name: "wait-" + queue, Source: "def f(): pass", Queue: queue})
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]treadle.Request, n)
	for i := range requests {
		requests[i] = treadle.Request{Function: fn.ID}
	}
	var ids []string
	for len(requests) > 0 {
		part := requests[:min(len(requests), 10_000)]
		requests = requests[len(part):]
		done, err := client.ExecuteBatch(ctx, part)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range done {
			if s.Err != nil {
				t.Fatal(s.Err)
			}
			ids = append(ids, s.TaskID)
		}
	}
	return ids
}

// TestCancelledWaits: a crowd that waits and goes away costs nobody else his turn.
func TestCancelledWaits(t *testing.T) {
	await := func(t *testing.T, ids []string) (string, []byte) {
		return "AwaitResults", wire(t, &treadlev1.AwaitResultsRequest{TaskIds: ids})
	}
	watch := func(t *testing.T, ids []string) (string, []byte) {
		return "WatchTask", wire(t, &treadlev1.WatchTaskRequest{TaskId: ids[0]})
	}
	result := func(t *testing.T, ids []string) (string, []byte) {
		return "GetResult", wire(t, &treadlev1.GetResultRequest{TaskId: ids[0], Wait: durationpb.New(5 * time.Minute)})
	}
	for _, tt := range []struct {
		name         string
		streams, ids int
		// torn closes the connections instead of cancelling the calls.
		torn bool
		call func(*testing.T, []string) (method string, message []byte)
	}{
		{"few streams, many ids", scale(300, 1500), 10_000, false, await},
		{"many streams, fewer ids (long)", scale(1500, 4000), 1000, false, await},
		{"many streams, fewer ids, connections torn", scale(1500, 4000), 1000, true, await},
		{"many streams, one id", 4000, 1, false, await},
		{"many who watch one task", 4000, 1, false, watch},
		{"many who wait for one result (long)", 4000, 1, true, result},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			ids := c.unfinished(t, c.evilClient, tt.ids)
			method, message := tt.call(t, ids)
			s := c.begin(t, c.server)
			s.slow = rightfulWork
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			const perConnection = 500
			var peers []*peer
			for begin := 0; begin < tt.streams; begin += perConnection {
				p := dialPeer(t, c.api, c.evilClient, "127.0.0.3")
				peers = append(peers, p)
				for range min(perConnection, tt.streams-begin) {
					wg.Go(func() {
						if w, err := p.watch(ctx, "/treadle.v1.FabricService/"+method, message); err == nil {
							_, _ = w.recv() // until it is refused, or cancelled
						}
					})
				}
			}
			pause(scale(2*time.Second, 4*time.Second))
			if tt.torn {
				for _, p := range peers {
					p.conn.Close()
				}
			}
			cancel() // all at once
			wg.Wait()
			pause(time.Second)
			s.end()
		})
	}
}

// TestAbandonedRequests: the same over REST.
func TestAbandonedRequests(t *testing.T) {
	c := target(t, false)
	ids := c.unfinished(t, c.evilClient, 1)
	s := c.begin(t, c.server)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.3")}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for range scale(400, 2000) {
		wg.Go(func() {
			for _, path := range []string{"/result?wait=5m", ":watch"} {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.http+"/v1/tasks/"+ids[0]+path, http.NoBody)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+c.evilClient)
				if body, err := do(client, req); err == nil && !strings.Contains(string(body), "QUEUED") {
					t.Errorf("%.200s", body)
				}
			}
		})
	}
	wg.Wait()
	s.end()
}
