//go:build linux

package security

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// TestListsOfLongErrors: a page has a size that fits, whatever the tasks on it hold, and many
// pages at once take no more memory than a server has.
func TestListsOfLongErrors(t *testing.T) {
	c := ownCluster(t, setup{})
	client, err := c.evil()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	requests := make([]treadle.Request, scale(500, 2000))
	for i := range requests {
		requests[i] = treadle.Request{Function: fnFail, Args: []any{60 << 10}}
	}
	done, err := client.ExecuteBatch(ctx, requests)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(done))
	for i, d := range done {
		if ids[i] = d.TaskID; d.Err != nil {
			t.Fatal(d.Err)
		}
	}
	for r, err := range client.Await(ctx, ids) {
		if err != nil || r.Status != treadle.Failed {
			t.Fatalf("%v, %v", r, err)
		}
	}
	for _, tt := range []struct {
		name string
		path string
		most int // bytes of a page
	}{
		{"largest page", "/v1/tasks?page_size=1000", 16 << 20},
		{"failed ones", "/v1/tasks?page_size=1000&filter=status%3DFAILED", 16 << 20},
		{"functions (long)", "/v1/functions?page_size=1000", 16 << 20},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			s := c.begin(t, c.server)
			s.slow = rightfulWork
			ctx, cancel := context.WithTimeout(context.Background(), scale(3*time.Second, 20*time.Second))
			defer cancel()
			hostile := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.7")}}).DialContext}}
			defer hostile.CloseIdleConnections()
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for ctx.Err() == nil {
						if n := c.pageBytes(ctx, t, hostile, tt.path); n > tt.most {
							t.Errorf("a page of %d bytes: want at most %d", n, tt.most)
							return
						}
					}
				})
			}
			for range 4 {
				p := dialPeer(t, c.api, c.evilClient, "127.0.0.7")
				wg.Go(func() {
					for ctx.Err() == nil {
						list, err := p.call(ctx, "/treadle.v1.FabricService/ListTasks", wire(t, &treadlev1.ListTasksRequest{PageSize: 1000}))
						if err == nil && len(list) > tt.most {
							t.Errorf("a page of %d bytes over gRPC: want at most %d", len(list), tt.most)
							return
						}
					}
				})
			}
			wg.Wait()
			s.end()
		})
	}
}

// pageBytes reads a page as a slow client does and returns its length; pages that are refused
// for now have none.
func (c *cluster) pageBytes(ctx context.Context, t *testing.T, client *http.Client, path string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.http+path, http.NoBody)
	if err != nil {
		t.Error(err)
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+c.evilClient)
	answer, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return 0
	}
	return int(n)
}

// TestLargeRequestsAtOnce: requests that are large, each within its limit or over it, share
// what the server has for them.
func TestLargeRequestsAtOnce(t *testing.T) {
	const mib = 1 << 20
	source := func(n int) []byte {
		return cat(text(1, "big"), text(4, append([]byte("def f(): pass\n#"), filler(n)...)))
	}
	payload := func(n int) []byte { return cat(text(1, "big"), text(3, filler(n))) }
	batch := func(n int) []byte {
		return times(64, func(int) []byte {
			return text(1, cat(text(1, fnDouble), text(3, append(append([]byte(`["`), filler(n/64)...), `"]`...))))
		})
	}
	for _, tt := range []struct {
		name, method string
		calls        int
		message      []byte
		token        bool
	}{
		{"registrations of source within the limit", "FabricService/RegisterFunction", 24, source(60 * mib), true},
		{"registrations over the limit (long)", "FabricService/RegisterFunction", 24, source(110 * mib), true},
		{"payloads that are no pickle (long)", "FabricService/RegisterFunction", 24, payload(60 * mib), true},
		{"batches (long)", "FabricService/ExecuteBatch", 24, batch(60 * mib), true},
		{"ids that are far too long", "FabricService/GetTask", 24, text(1, filler(60*mib)), true},
		{"filters that are far too long", "FabricService/ListTasks", 24, text(1, filler(60*mib)), true},
		{"waits for ids that are far too long (long)", "FabricService/AwaitResults", 24, text(1, filler(60*mib)), true},
		{"requests for nothing with much in them (long)", "FabricService/GetServerInfo", 24, text(9, filler(60*mib)), true},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.server)
			s.slow = rightfulWork
			ctx, cancel := context.WithTimeout(context.Background(), scale(3*time.Second, 20*time.Second))
			defer cancel()
			var wg sync.WaitGroup
			for i := range tt.calls {
				p := dialPeer(t, c.api, c.evilClient, fmt.Sprintf("127.0.0.%d", 10+i%4))
				wg.Go(func() {
					for ctx.Err() == nil {
						w, err := p.watch(ctx, "/treadle.v1."+tt.method, tt.message)
						if err == nil {
							_, _ = w.recv() // whatever it is
							w.cancel()
						}
						select {
						case <-ctx.Done():
						case <-time.After(200 * time.Millisecond):
						}
					}
				})
			}
			wg.Wait()
			s.end()
		})
	}
}

// TestLargeBodiesAtOnce: the same over REST, with bodies that arrive and bodies that do not.
func TestLargeBodiesAtOnce(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name, path  string
		size, sends int
	}{
		{"calls", "/v1/functions/double:call", 60 * mib, 60 * mib},
		{"registrations (long)", "/v1/functions", 80 * mib, 80 * mib},
		{"bodies that stop half way", "/v1/functions", 60 * mib, 30 * mib},
		{"bodies over the limit (long)", "/v1/tasks:batch", 200 * mib, 200 * mib},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.server)
			s.slow = rightfulWork
			ctx, cancel := context.WithTimeout(context.Background(), scale(3*time.Second, 20*time.Second))
			defer cancel()
			hostile := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.8")}}).DialContext}}
			defer hostile.CloseIdleConnections()
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					begin := `{"name":"f","args":["`
					body := io.MultiReader(strings.NewReader(begin), io.LimitReader(letters{}, int64(tt.sends-len(begin))), held{ctx, tt.sends < tt.size})
					req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.http+tt.path, body)
					if err != nil {
						t.Error(err)
						return
					}
					req.ContentLength = int64(tt.size)
					req.Header.Set("Authorization", "Bearer "+c.evilClient)
					req.Header.Set("Content-Type", "application/json")
					if answer, err := hostile.Do(req); err == nil {
						_, _ = io.Copy(io.Discard, answer.Body)
						answer.Body.Close()
					}
				})
			}
			wg.Wait()
			s.end()
		})
	}
}

// letters is text without end.
type letters struct{}

func (letters) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'a'
	}
	return len(b), nil
}

// held ends a body, or keeps it open until ctx ends.
type held struct {
	ctx  context.Context
	hold bool
}

func (h held) Read([]byte) (int, error) {
	if h.hold {
		<-h.ctx.Done()
		return 0, h.ctx.Err()
	}
	return 0, io.EOF
}

// TestNamesOfQueues: one client's names do not fill pages that are for everybody.
func TestNamesOfQueues(t *testing.T) {
	c := ownCluster(t, setup{})
	s := c.begin(t, c.server)
	ctx, cancel := context.WithTimeout(context.Background(), scale(6*time.Second, 30*time.Second))
	defer cancel()
	made := 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 16 {
		p := dialPeer(t, c.api, c.evilClient, "127.0.0.9")
		wg.Go(func() {
			for n := 0; ctx.Err() == nil && n < scale(1200, 6000); n++ {
				f, err := callAs[treadlev1.Function](ctx, p, "/treadle.v1.FabricService/RegisterFunction", &treadlev1.RegisterFunctionRequest{
					Name: "queued", Source: "def f(): pass", Queue: fmt.Sprintf("%s-%d-%d", strings.Repeat("q", 100), i, n),
				})
				if err != nil {
					return // refused
				}
				if _, err := callAs[treadlev1.Task](ctx, p, "/treadle.v1.FabricService/Execute", &treadlev1.ExecuteRequest{Function: f.GetFunctionId()}); err != nil {
					return
				}
				mu.Lock()
				made++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d queues were made", made)
	for path, most := range map[string]int{"/metrics": 1 << 20, "/v1/queues": 1 << 20} {
		body, err := c.get(c.http, path)
		if err != nil || len(body) > most {
			t.Errorf("%s: %d bytes, %v; want at most %d", path, len(body), err, most)
		}
	}
	s.end()
}
