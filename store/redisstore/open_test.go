package redisstore

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/task"
)

// refused opens a store that must be refused, at once and with that text.
func refused(t *testing.T, o Options, text string) {
	t.Helper()
	o.Logger = quiet
	begin := time.Now()
	s, err := Open(t.Context(), o)
	if err == nil {
		s.Close()
		t.Fatalf("%s was not refused", o.URL)
	}
	if !strings.Contains(err.Error(), text) || task.CodeOf(err) != task.CodeInvalid {
		t.Fatalf("refused with %v, want %q", err, text)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Fatalf("refused after %s, want at once", d)
	}
}

// A server that would lose tasks is refused.
func TestRefusals(t *testing.T) {
	t.Parallel()
	evicting := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	refused(t, Options{URL: evicting.URL("")}, "noeviction")
	secret := redistest.Start(t)
	admin := secret.Client()
	defer admin.Close()
	if err := admin.ConfigSet(t.Context(), "requirepass", "pw").Err(); err != nil {
		t.Fatal(err)
	}
	refused(t, Options{URL: "redis://:wrong@" + secret.Addr}, "WRONGPASS")
	refused(t, Options{URL: secret.URL("")}, "NOAUTH")
	refused(t, Options{URL: "redis+cluster://" + server.Addr, Namespace: freshNamespace()}, "not a node of a Redis Cluster")
	primary := redistest.Start(t)
	replica := redistest.StartReplica(t, primary)
	refused(t, Options{URL: replica.URL("")}, "is a replica")
	node := redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(freePort(t)))
	refused(t, Options{URL: node.URL("")}, "redis+cluster://")

	// The data of another build, and a shard that lost its own.
	s := live(t, primary.URL(""), func(o *Options) { o.Namespace = "old"; o.Shards = 3 })
	c := primary.Client()
	defer c.Close()
	if err := c.Del(t.Context(), s.keys(1).named(keyMeta)).Err(); err != nil {
		t.Fatal(err)
	}
	refused(t, Options{URL: primary.URL(""), Namespace: "old"}, "shard 1 has lost its data")
	if err := c.HSet(t.Context(), s.any.named(keyMeta), metaFormat, "99").Err(); err != nil {
		t.Fatal(err)
	}
	refused(t, Options{URL: primary.URL(""), Namespace: "old"}, `format "99"`)
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := redistest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// The version is compared as numbers.
func TestVersion(t *testing.T) {
	for version, want := range map[string]bool{"6.2.0": true, "7.0.15": true, "10.0.0": true, "6.0.16": false, "5.0.7": false, "6": false, "": false} {
		if got := atLeast(version, 6, 2); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

// Open waits for a server that is not there yet, and says so.
func TestOpenWaits(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	srv.Kill()
	said := make(chan struct{}, 1000)
	logger := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) {
		if strings.Contains(string(b), "trying again") {
			said <- struct{}{}
		}
	}), nil))
	var wg sync.WaitGroup
	wg.Go(func() {
		s, err := Open(t.Context(), Options{URL: srv.URL(""), Logger: logger})
		if err != nil {
			t.Error(err)
			return
		}
		s.Close()
	})
	<-said
	if err := srv.Run(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	srv.Kill()
	_, err := Open(t.Context(), Options{URL: srv.URL(""), Logger: quiet, OpenTimeout: 200 * time.Millisecond})
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), srv.Addr) {
		t.Fatalf("without a server: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = Open(ctx, Options{URL: srv.URL(""), Logger: quiet}); err == nil {
		t.Fatal("opened with an ended context")
	}
}

// A replica that is late is waited for with one line in the log, and one that does not come
// is named in the end.
func TestOpenWaitsForItsReplica(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	var lines atomic.Int64
	said := make(chan struct{}, 1)
	logger := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) {
		if strings.Contains(string(b), "needs a replica") {
			lines.Add(1)
			said <- struct{}{}
		}
	}), nil))
	opened := make(chan error, 1)
	go func() {
		s, err := Open(t.Context(), Options{URL: primary.URL("durability=replicated"), Logger: logger})
		if err == nil {
			s.Close()
		}
		opened <- err
	}()
	<-said
	replica := redistest.StartReplica(t, primary)
	if err := <-opened; err != nil || lines.Load() != 1 {
		t.Fatalf("%v after %d lines in the log, want 1", err, lines.Load())
	}
	replica.Kill()
	redistest.Poll(t, "the replica is gone", func(ctx context.Context) bool {
		c := primary.Client()
		defer c.Close()
		text, err := c.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(text, "connected_slaves:0")
	})
	_, err := Open(t.Context(), Options{URL: primary.URL("durability=replicated"), Logger: quiet, OpenTimeout: 2 * time.Second})
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "needs a replica") || !strings.Contains(err.Error(), "was not ready within") {
		t.Fatalf("without a replica: %v", err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestParseURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]address{
		"redis://localhost":                        {addrs: []string{"localhost:6379"}, location: "redis://localhost:6379"},
		"redis://":                                 {addrs: []string{"localhost:6379"}, location: "redis://localhost:6379"},
		"redis://u:p%40w@h:7/3":                    {addrs: []string{"h:7"}, user: "u", password: "p@w", db: 3, location: "redis://h:7/3"},
		"redis://:pw@h?durability=replicated":      {addrs: []string{"h:6379"}, password: "pw", replicated: true, location: "redis://h:6379?durability=replicated"},
		"redis://[::1]:7?namespace=n":              {addrs: []string{"[::1]:7"}, namespace: "n", location: "redis://[::1]:7"},
		"redis+cluster://a:1,b:2?durability=async": {kind: cluster, addrs: []string{"a:1", "b:2"}, location: "redis+cluster://a:1,b:2"},
		"redis+sentinel://u:p@a,b:2/m/4?sentinel_username=x&sentinel_password=y": {
			kind: sentinel, addrs: []string{"a:26379", "b:2"}, master: "m", db: 4, user: "u", password: "p", sentinelUser: "x",
			sentinelPassword: "y", location: "redis+sentinel://a:26379,b:2/m/4",
		},
	} {
		got, err := parseURL(text)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
		if !IsURL(text) {
			t.Errorf("%s is not taken for a URL", text)
		}
	}
	if a, err := parseURL("redis+sentinel://h/m?sentinel_password=p@w"); err != nil || a.sentinelPassword != "p@w" {
		t.Errorf("an @ in a value: %+v, %v", a, err)
	}
	if a, err := parseURL("rediss://h:1"); err != nil || a.tls == nil || a.tls.ServerName != "h" {
		t.Errorf("rediss: %+v, %v", a, err)
	}
	for _, text := range []string{
		"", "redis", "http://h", "redis://a,b", "redis://h:0", "redis://h:x", "redis://h/x", "redis://h/1/2", "redis+sentinel://h",
		"redis+cluster://h/1", "redis://h?durability=sync", "redis://h?x=y", "redis://u:secret%zz@h",
		"redis://:secret/x@h", "redis://u:p@ss/secret#rd%:@h", "redis://:a?secret=1@h", "redis://:a?b=secret@h", "redis://:#/secret@h",
		"redis://user:secret", "redis://h/secret", "redis://h?secret=1", "redis://h?namespace=%secret",
	} {
		_, err := parseURL(text)
		if err == nil {
			t.Errorf("%q was accepted", text)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the password: %v", text, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("redis+sentinel://u:secretpassword@a,b:2/m/4?durability=replicated")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseURL(text)
		if err == nil && len(a.password) > 8 && strings.Contains(a.location, url.QueryEscape(a.password)) && !strings.Contains(a.addrs[0]+a.master, a.password) {
			t.Errorf("%q: the location %q shows the password", text, a.location)
		}
	})
}
