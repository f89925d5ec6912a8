package redisstore

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/task"
)

// An eviction policy that is set later stops the store until it is undone.
func TestPolicyChangesLater(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	s := live(t, srv.URL(""), func(o *Options) { o.watchEvery = 50 * time.Millisecond })
	c := srv.Client()
	defer c.Close()
	for _, policy := range []string{"allkeys-lru", "noeviction"} {
		if err := c.ConfigSet(t.Context(), "maxmemory-policy", policy).Err(); err != nil {
			t.Fatal(err)
		}
		redistest.Poll(t, policy+" is noticed", func(ctx context.Context) bool {
			_, err := s.QueueStats(ctx)
			if err != nil && (task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "noeviction")) {
				t.Fatal(err)
			}
			return (err == nil) == (policy == "noeviction")
		})
	}
}

// A server without memory refuses new work as exhausted and goes on afterwards.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	s := live(t, srv.URL(""), nil)
	submitOne(t, s, submission(nil))
	c := srv.Client()
	defer c.Close()
	if err := c.ConfigSet(t.Context(), "maxmemory", "1mb").Err(); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, 3 << 20} {
		_, err := s.Submit(t.Context(), time.Now(), []store.Submission{submission(make([]byte, size))})
		if task.CodeOf(err) != task.CodeExhausted {
			t.Fatalf("%d bytes: %v, want exhausted", size, err)
		}
	}
	if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	submitOne(t, s, submission(make([]byte, 3<<20)))
	if n := len(claimSome(t, s, request(10))); n != 2 {
		t.Fatalf("%d tasks, want the two that were acknowledged", n)
	}
	mustCheck(t, s)
}

// Near the limit nothing new is taken, and what runs still finds room for its result.
func TestReserveForResults(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	// What decides is the store's own look at the server, and the log tells of it.
	tells := make(chan string, 16)
	logger := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) { tells <- string(b) }), nil))
	s := live(t, srv.URL(""), func(o *Options) { o.watchEvery, o.Logger = 20*time.Millisecond, logger })
	submitOne(t, s, submission(nil))
	claims := claimSome(t, s, request(1))
	c := srv.Client()
	defer c.Close()
	// A server that is as full as that, to the percent, whatever it needs for itself.
	limitTo := func(percent int) {
		t.Helper()
		if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
			t.Fatal(err)
		}
		if percent == 0 {
			return
		}
		info, err := c.Info(t.Context(), "memory").Result()
		if err != nil {
			t.Fatal(err)
		}
		used, err := strconv.Atoi(parseInfo(info)["used_memory"])
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ConfigSet(t.Context(), "maxmemory", strconv.Itoa(used*100/percent)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	awaitLine := func(text string) {
		t.Helper()
		patience := time.After(20 * time.Second)
		for {
			select {
			case line := <-tells:
				if strings.Contains(line, text) {
					return
				}
			case <-patience:
				t.Fatalf("no line in the log says %q", text)
			}
		}
	}
	limitTo(97)
	awaitLine("new tasks are refused")
	_, err := s.Submit(t.Context(), time.Now(), []store.Submission{submission(nil)})
	if task.CodeOf(err) != task.CodeExhausted || !strings.Contains(err.Error(), "maxmemory") {
		t.Fatalf("near the limit: %v, want exhausted with maxmemory in the text", err)
	}
	out := task.Outcome{End: task.EndSucceeded, Result: make([]byte, 1000), Encoding: task.EncodingPickle}
	got, err := s.Settle(t.Context(), time.Now(), []store.Settlement{{Token: claims[0].Token, Outcome: out}})
	if err != nil || got[0] != task.VerdictRecorded {
		t.Fatalf("a result near the limit: %v %v, want recorded", got, err)
	}
	limitTo(0)
	awaitLine("new tasks are accepted again")
	submitOne(t, s, submission(nil))
}

// TestFullness checks the percentage at its edges.
func TestFullness(t *testing.T) {
	for _, tt := range []struct {
		used, limit string
		want        int
	}{{"94", "100", 94}, {"95", "100", 95}, {"949999", "1000000", 94}, {"5", "0", 0}, {"", "", 0}, {"120", "100", 120}} {
		if got := fullness(map[string]string{"used_memory": tt.used, "maxmemory": tt.limit}); got != tt.want {
			t.Errorf("%s of %s: %d %%, want %d", tt.used, tt.limit, got, tt.want)
		}
	}
}
