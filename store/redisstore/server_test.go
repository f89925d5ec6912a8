package redisstore

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/store/storetest"
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
	s := live(t, srv.URL(""), func(o *Options) { o.watchEvery = 20 * time.Millisecond })
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
	// The look that decides is the store's own: wait until it has seen what is there now.
	until := func(full bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); (s.crowded.Load() != nil) != full; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("full is %v after 10 s, want %v", !full, full)
			}
		}
	}
	limitTo(97)
	until(true)
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
	until(false)
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
	_, err := Open(t.Context(), Options{URL: primary.URL("durability=replicated"), Logger: quiet, OpenTimeout: 300 * time.Millisecond})
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "needs a replica") || !strings.Contains(err.Error(), "was not ready within") {
		t.Fatalf("without a replica: %v", err)
	}
}

// least is what docs/security.md lists.
var least = strings.Fields("+evalsha +eval +info +config|get +hello +ping +subscribe +publish +exists +get +set +del +rename +incr +hget +hset +hmget " +
	"+hdel +hlen +hvals +hexists +hgetall +hincrby +pexpire +persist +unlink +time +sadd +srem +smembers +zadd +zrem +zcard +zscore +zrange " +
	"+zrangebyscore +zrangebylex +zrevrangebylex +zremrangebyscore")

// TestPermissions: the documented set is enough, and one less is refused at the start, by name.
func TestPermissions(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	admin := srv.Client()
	defer admin.Close()
	grant := func(rules []string) {
		args := []any{"ACL", "SETUSER", "app", "reset", "on", ">pw", "~{n*", "&{n*"}
		for _, r := range rules {
			args = append(args, r)
		}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	url := "redis://app:pw@" + srv.Addr
	grant(least)
	s := live(t, url, func(o *Options) { o.Namespace, o.ClientName = "n", "treadle-test" })
	submitOne(t, s, submission([]byte("x")))
	held := claimSome(t, s, request(10))
	succeed(t, s, held[0].Token, []byte("y"))
	mustCheck(t, s)
	if keys, err := admin.Keys(t.Context(), "*"+keyProbe+"*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("the probe left %q, %v", keys, err)
	}
	for _, missing := range least {
		if missing == "+config|get" || missing == "+hello" || missing == "+ping" || missing == "+eval" || missing == "+incr" {
			continue // not needed on every way: a warning less, an older protocol, a cached script, another durability
		}
		grant(slices.DeleteFunc(slices.Clone(least), func(r string) bool { return r == missing }))
		begin := time.Now()
		s, err := Open(t.Context(), Options{URL: url, Namespace: "n", Logger: quiet})
		if err == nil {
			s.Close()
			t.Errorf("opened without %s", missing)
			continue
		}
		if !strings.Contains(err.Error(), "docs/security.md") || time.Since(begin) > 5*time.Second {
			t.Errorf("without %s: %v after %s", missing, err, time.Since(begin))
		}
		if word := strings.TrimPrefix(missing, "+"); !strings.Contains(strings.ToLower(err.Error()), word) {
			t.Errorf("without %s: %v does not name it", missing, err)
		}
	}
	// Later it is an error that no waiting mends, and no outage.
	grant(slices.DeleteFunc(slices.Clone(least), func(r string) bool { return r == "+zadd" }))
	_, err := s.Submit(t.Context(), time.Now(), []store.Submission{submission([]byte("x"))})
	if task.CodeOf(err) != task.CodeUnknown || !strings.Contains(err.Error(), "docs/security.md") {
		t.Errorf("a permission that was taken: %v", err)
	}
	grant(append(slices.Clone(least), "+client|setname"))
	named := live(t, url, func(o *Options) { o.Namespace, o.ClientName = "n", "treadle-test" })
	submitOne(t, named, submission([]byte("x")))
	if list, err := admin.ClientList(t.Context()).Result(); err != nil || !strings.Contains(list, "name=treadle-test") {
		t.Errorf("CLIENT LIST does not name the connections: %s, %v", list, err)
	}
}

// TestProbeIsComplete: every command of the scripts is tried at the start.
func TestProbeIsComplete(t *testing.T) {
	t.Parallel()
	tried := readScript("permissions")
	files, err := scriptFiles.ReadDir("scripts")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range least {
		if !strings.Contains(string(docs), rule) {
			t.Errorf("docs/security.md does not list %s", rule)
		}
	}
	command := regexp.MustCompile(`call\('([A-Z]+)'`)
	for _, f := range files {
		for _, m := range command.FindAllStringSubmatch(readScript(strings.TrimSuffix(f.Name(), ".lua")), -1) {
			if !strings.Contains(tried, "try('"+m[1]+"'") {
				t.Errorf("%s runs %s, which permissions.lua does not try", f.Name(), m[1])
			}
			if !slices.Contains(least, "+"+strings.ToLower(m[1])) {
				t.Errorf("%s runs %s, which docs/security.md does not list", f.Name(), m[1])
			}
		}
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// An offer that nobody acknowledges goes back after its own short lease; one whose holder
// was heard of keeps the full one.
func TestOfferLease(t *testing.T) {
	t.Parallel()
	s := live(t, server.URL(""), func(o *Options) { o.OfferLease = 300 * time.Millisecond; o.Absence = time.Hour })
	silent, heard := submission(nil), submission(nil)
	submitOne(t, s, silent)
	submitOne(t, s, heard)
	claims := claimSome(t, s, request(2))
	if got := claims[0].Task.Lease.Until.Sub(claims[0].Task.Lease.ClaimedAt); got != 300*time.Millisecond {
		t.Fatalf("an offer lasts %s", got)
	}
	until := time.Now().Add(10 * time.Second)
	if v, err := s.Renew(t.Context(), time.Now(), []store.Renewal{{Token: claims[1].Token, Until: until}}); err != nil || v[0] != task.VerdictRecorded {
		t.Fatal(v, err)
	}
	redistest.Poll(t, "the silent offer goes back", func(ctx context.Context) bool {
		next, err := s.Reap(ctx, time.Now(), 100)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Until(next); d > 11*time.Second {
			t.Fatalf("the next look is in %s", d)
		}
		got, err := s.Task(ctx, silent.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.Lease == nil && got.Lapses == 1 && got.AttemptCount == 0
	})
	if got, err := s.Task(t.Context(), heard.Task.ID); err != nil || got.Lease == nil || time.Until(got.Lease.Until) < 5*time.Second {
		t.Fatalf("%+v, %v", got, err)
	}
}

// The clock of a caller decides nothing: an hour off, leases last as long as they should.
func TestCallerClockIsOff(t *testing.T) {
	t.Parallel()
	s := live(t, server.URL(""), func(o *Options) { o.OfferLease = -1; o.Absence = time.Hour })
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		now := func() time.Time { return time.Now().Add(off) }
		it := submission(nil)
		if _, err := s.Submit(t.Context(), now(), []store.Submission{it}); err != nil {
			t.Fatal(err)
		}
		r := request(1)
		r.Until = now().Add(10 * time.Second)
		claims, err := s.Claim(t.Context(), now(), []store.ClaimRequest{r})
		if err != nil || len(claims[0]) != 1 {
			t.Fatal(claims, err)
		}
		if _, err := s.Renew(t.Context(), now(), []store.Renewal{{Token: claims[0][0].Token, Until: now().Add(20 * time.Second), StartedAt: now().Add(-time.Second)}}); err != nil {
			t.Fatal(err)
		}
		next, err := s.Reap(t.Context(), now(), 100)
		if d := next.Sub(now()); err != nil || d < 0 || d > 21*time.Second {
			t.Fatalf("off by %s: reap again in %s, %v", off, d, err)
		}
		got, err := s.Task(t.Context(), it.Task.ID)
		if err != nil || got.Lease == nil {
			t.Fatalf("off by %s: %+v, %v", off, got, err)
		}
		for what, d := range map[string]time.Duration{
			"created": time.Since(got.CreatedAt), "claimed": time.Since(got.Lease.ClaimedAt), "until": time.Until(got.Lease.Until) - 20*time.Second,
			"started": time.Since(got.Lease.StartedAt) - time.Second,
		} {
			if d.Abs() > 5*time.Second {
				t.Errorf("off by %s: %s is off by %s", off, what, d)
			}
		}
		succeed(t, s, claims[0][0].Token, nil)
	}
}

// After nobody looked after the store for a while, no lease is reaped for a lease length.
func TestAbsence(t *testing.T) {
	t.Parallel()
	const lease, absence = 700 * time.Millisecond, 200 * time.Millisecond
	s := live(t, server.URL(""), func(o *Options) { o.Lease, o.Absence, o.OfferLease = lease, absence, -1 })
	ctx := t.Context()
	reap := func() {
		t.Helper()
		if _, err := s.Reap(ctx, time.Now(), 100); err != nil {
			t.Fatal(err)
		}
	}
	reap()
	it := submission(nil)
	submitOne(t, s, it)
	r := request(1)
	r.Until = time.Now().Add(absence / 2)
	claimSome(t, s, r)
	time.Sleep(2 * absence) // The absence itself: there is nothing to wait for.
	back := time.Now()
	reap()
	if got, err := s.Task(ctx, it.Task.ID); err != nil || got.Lease == nil {
		t.Fatalf("a lease that ran out while nobody watched was reaped: %+v, %v", got, err)
	}
	redistest.Poll(t, "it is reaped a lease length later", func(ctx context.Context) bool {
		reap()
		got, err := s.Task(ctx, it.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.Lease == nil
	})
	if d := time.Since(back); d < lease {
		t.Fatalf("reaped %s after the return, want %s at least", d, lease)
	}
}

// After a call that failed this process ends no lease for a lease length, and deadlines all
// the same.
func TestReapThatFailed(t *testing.T) {
	t.Parallel()
	const lease = 900 * time.Millisecond
	s := live(t, server.URL(""), func(o *Options) { o.Lease, o.Absence, o.OfferLease = lease, time.Hour, -1 })
	ctx := t.Context()
	it, timed := submission(nil), submission(nil)
	submitOne(t, s, it)
	r := request(1)
	r.Until = time.Now().Add(time.Millisecond)
	claimSome(t, s, r)
	timed.Task.Deadline = time.Now().Add(time.Millisecond)
	submitOne(t, s, timed)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Reap(gone, time.Now(), 100); err == nil {
		t.Fatal("a call without time was answered")
	}
	back := time.Now()
	var expired time.Time
	redistest.Poll(t, "the lease ends", func(ctx context.Context) bool {
		next, err := s.Reap(ctx, time.Now(), 100)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Task(ctx, it.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.Task(ctx, timed.Task.ID)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case expired.IsZero() && other.Status == task.Failed:
			expired = time.Now()
		case !expired.IsZero() && got.Lease != nil && next.Before(back.Add(lease/2)):
			t.Errorf("a lease that may not end yet is to be looked at again %s after the store was back", next.Sub(back))
		}
		return got.Lease == nil
	})
	if d := expired.Sub(back); expired.IsZero() || d > lease/2 {
		t.Errorf("a task ended %s after its deadline", d)
	}
	if d := time.Since(back); d < lease {
		t.Errorf("the lease ended %s after the store was back, want %s at least", d, lease)
	}
}

// The first dispatcher alive grants leases anew, one that joins prolongs nothing.
func TestAttend(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	ctx := t.Context()
	other := task.ID{2}
	if first, err := f.s.Attend(ctx, f.clock.Now(), other, 300*time.Millisecond); err != nil || first {
		t.Fatalf("the second is first: %v, %v", first, err)
	}
	if first, err := f.s.Attend(ctx, f.clock.Now(), f.me, 300*time.Millisecond); err != nil || first {
		t.Fatalf("one that is known is first: %v, %v", first, err)
	}
	it := submission(nil)
	if _, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{it}); err != nil {
		t.Fatal(err)
	}
	r := request(1)
	r.Local, r.Until = true, f.clock.Now().Add(time.Second)
	if got, err := f.s.Claim(ctx, f.clock.Now(), []store.ClaimRequest{r}); err != nil || len(got[0]) != 1 {
		t.Fatal(got, err)
	}
	if err := f.s.Depart(ctx, f.clock.Now(), f.me); err != nil {
		t.Fatal(err)
	}
	// The other one's presence ends by itself.
	redistest.Poll(t, "nobody is there", func(ctx context.Context) bool {
		n, known, err := f.s.attend(ctx, f.clock.Now(), task.ID{3}, 0)
		return err == nil && n == 0 && !known
	})
	if first, err := f.s.Attend(ctx, f.clock.Now(), task.ID{3}, time.Hour); err != nil || !first {
		t.Fatalf("alone and not first: %v, %v", first, err)
	}
	if got, err := f.s.Task(ctx, it.Task.ID); err != nil || got.Lease != nil || got.Losses != 1 {
		t.Fatalf("what a local pool held: %+v, %v", got, err)
	}
	if _, err := f.s.Attend(ctx, f.clock.Now(), other, 0); task.CodeOf(err) != task.CodeInvalid {
		t.Fatalf("for no time: %v", err)
	}
}

// With several shards nothing is lost, doubled or left, and keys are idempotent although
// they may live in another shard than their task.
func TestShards(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.Shards = 5 })
	walkShards(t, f.s, f.clock)
	if n, err := f.keys(); err != nil || n > 5+1+1 {
		t.Fatalf("%d keys are left, %v", n, err)
	}
}

func walkShards(t *testing.T, s *Store, clock *fakeClock) {
	t.Helper()
	ctx := t.Context()
	const n = 400
	var items, again []store.Submission
	for i := range n {
		it := keyed(fmt.Sprint("key", i), []byte("args"))
		items = append(items, it)
		it.Task = sampleTask(it.Args)
		again = append(again, it)
	}
	got, err := s.Submit(ctx, clock.Now(), items)
	if err != nil {
		t.Fatal(err)
	}
	dup, err := s.Submit(ctx, clock.Now(), again)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[task.ID]bool{}
	for i := range got {
		if got[i].Err != nil || got[i].Duplicate || got[i].ID != items[i].Task.ID || !dup[i].Duplicate || dup[i].ID != got[i].ID {
			t.Fatalf("item %d: %+v, then %+v", i, got[i], dup[i])
		}
		ids[got[i].ID] = true
	}
	bad := keyed("key0", []byte("other"))
	if got, err := s.Submit(ctx, clock.Now(), []store.Submission{bad}); err != nil || task.CodeOf(got[0].Err) != task.CodeConflict {
		t.Fatalf("a key with another digest: %+v, %v", got, err)
	}
	var listed int
	for q := (store.ListQuery{Limit: 33}); ; {
		page, next, err := s.ListTasks(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for i, tk := range page {
			if listed++; i > 0 && string(tk.ID[:]) >= string(page[i-1].ID[:]) {
				t.Fatal("the list is out of order")
			}
		}
		if listed > n {
			t.Fatalf("listed %d of %d tasks, and the pages go on", listed, n)
		}
		if q.Before = next; next.IsZero() {
			break
		}
	}
	if listed != n {
		t.Fatalf("listed %d", listed)
	}
	claimed := map[task.ID]bool{}
	for {
		r := request(60)
		r.Until = clock.Now().Add(10 * time.Second)
		first, err := s.Claim(ctx, clock.Now(), []store.ClaimRequest{r})
		if err != nil {
			t.Fatal(err)
		}
		same, err := s.Claim(ctx, clock.Now(), []store.ClaimRequest{r})
		if err != nil || len(same[0]) != len(first[0]) || len(first[0]) > 60 {
			t.Fatalf("claimed %d, again %d, %v", len(first[0]), len(same[0]), err)
		}
		var settles []store.Settlement
		for _, c := range first[0] {
			if claimed[c.Token.Task] || !ids[c.Token.Task] {
				t.Fatalf("task %s was given twice or never submitted", c.Token.Task)
			}
			claimed[c.Token.Task] = true
			settles = append(settles, store.Settlement{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}})
		}
		if len(settles) == 0 {
			break
		}
		if verdicts, err := s.Settle(ctx, clock.Now(), settles); err != nil || verdicts[0] != task.VerdictRecorded {
			t.Fatal(verdicts, err)
		}
	}
	if len(claimed) != n {
		t.Fatalf("claimed %d", len(claimed))
	}
	mustCheck(t, s)
	clock.Advance(s.opts.Retention + time.Second)
	for range n {
		if next, err := s.Reap(ctx, clock.Now(), 100); err != nil {
			t.Fatal(err)
		} else if next.After(clock.Now()) {
			break
		}
	}
	mustCheck(t, s)
	if got, err := s.Submit(ctx, clock.Now(), again[:1]); err != nil || got[0].Duplicate || got[0].Err != nil {
		t.Fatalf("a key after retention: %+v, %v", got, err)
	}
	if _, err := s.Cancel(ctx, clock.Now(), []task.ID{again[0].Task.ID}, false); err != nil {
		t.Fatal(err)
	}
	clock.Advance(s.opts.Retention + time.Second)
	if _, err := s.Reap(ctx, clock.Now(), 100); err != nil {
		t.Fatal(err)
	}
}

// A process that ends between reserving a key and recording its task loses nothing: the
// same request later records the task under the id that was reserved.
func TestReservedKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.Shards = 4 })
	it := keyed("reserved", []byte("x"))
	for f.s.shardOf(it.Task.ID) == f.s.shardOfBytes([]byte(it.Key.ID)) {
		it.Task.ID = newID()
	}
	c := f.s.requestCall("reserve", it.Key.ID, it.Key.Digest[:], it.Task.ID)
	if err := f.s.change(t.Context(), "test", c); err != nil {
		t.Fatal(err)
	}
	again := it
	again.Task = sampleTask(it.Args)
	got, err := f.s.Submit(t.Context(), f.clock.Now(), []store.Submission{again})
	if err != nil || got[0].Err != nil || got[0].ID != it.Task.ID {
		t.Fatalf("%+v, %v; want the reserved id", got, err)
	}
	if tk, err := f.s.Task(t.Context(), it.Task.ID); err != nil || tk.Status != task.Queued {
		t.Fatalf("%+v, %v", tk, err)
	}
}

// The suite again where every change waits for a replica.
func TestConformanceReplicated(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	redistest.StartReplica(t, primary)
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		h := newFixture(t, func(o *Options) { o.URL = primary.URL("durability=replicated") }).harness()
		h.Keys = nil
		return h
	})
}

// A Cluster of six nodes: no script crosses slots, each shard is on one node, and a node
// that dies or a slot that moves costs a retry.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	t.Run("Conformance", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.URL = c.URL("") }).harness()
			h.Keys = nil
			return h
		})
	})
	for _, mode := range []string{"async", "replicated"} {
		t.Run("Shards "+mode, func(t *testing.T) {
			f := newFixture(t, func(o *Options) { o.URL = c.URL("durability=" + mode); o.Shards = 16 })
			walkShards(t, f.s, f.clock)
		})
	}
	t.Run("DeletionInShards", func(t *testing.T) {
		storetest.RunDeletion(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.URL = c.URL(""); o.Shards = 16 }).harness()
			h.Keys = nil
			return h
		})
	})
	t.Run("UsageOfShards", func(t *testing.T) {
		storetest.RunUsage(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.URL = c.URL(""); o.Shards = 16 }).harness()
			h.Keys = nil
			return h
		})
	})
	for _, mode := range []string{"async", "replicated"} {
		t.Run("PrimaryKilled "+mode, func(t *testing.T) { killPrimary(t, c, mode) })
		t.Run("SlotMoved "+mode, func(t *testing.T) { moveSlot(t, c, mode) })
	}
}

// moveSlot moves the slot of a store's shard to another node, key by key, while tasks are
// submitted, claimed and settled. Calls may fail meanwhile; nothing may be done by halves.
func moveSlot(t *testing.T, c *redistest.Cluster, mode string) {
	s := live(t, c.URL("durability="+mode), func(o *Options) { o.OfferLease = -1 })
	done := make(chan struct{})
	var acked, settled []task.ID
	var failed int
	// Enough that the move takes a while.
	for range 15 {
		var items []store.Submission
		for range 100 {
			items = append(items, submission([]byte("x")))
			acked = append(acked, items[len(items)-1].Task.ID)
		}
		if _, err := s.Submit(t.Context(), time.Now(), items); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			it := keyed(fmt.Sprint("k", i), []byte("x"))
			if _, err := s.Submit(t.Context(), time.Now(), []store.Submission{it}); err != nil {
				failed++
			} else {
				acked = append(acked, it.Task.ID)
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			got, err := s.Claim(t.Context(), time.Now(), []store.ClaimRequest{request(3)})
			if err != nil {
				continue
			}
			for _, c := range got[0] {
				v, err := s.Settle(t.Context(), time.Now(), []store.Settlement{
					{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}, Log: []byte("out")},
				})
				if err == nil && v[0] == task.VerdictRecorded {
					settled = append(settled, c.Token.Task)
				}
			}
		}
	})
	for range 2 {
		if err := redistest.MoveSlot(t.Context(), c, s.keys(0).named(keyMeta)); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	t.Logf("%d submissions acknowledged, %d failed, %d results", len(acked), failed, len(settled))
	if len(acked) <= 1500 || len(settled) == 0 {
		t.Error("the move and the calls did not meet")
	}
	got, err := s.Tasks(t.Context(), acked)
	if err != nil {
		t.Fatal(err)
	}
	for i, tk := range got {
		if tk == nil {
			t.Errorf("the acknowledged task %d was lost", i)
		}
	}
	got, err = s.Tasks(t.Context(), settled)
	if err != nil {
		t.Fatal(err)
	}
	for i, tk := range got {
		if tk == nil || tk.Status != task.Completed {
			t.Errorf("the recorded result %d was lost: %+v", i, tk)
		}
	}
	mustCheck(t, s)
}

// killPrimary kills the node that owns a store's shard while tasks are submitted, and
// brings it back as a replica once another one has taken its place.
func killPrimary(t *testing.T, c *redistest.Cluster, mode string) {
	s := live(t, c.URL("durability="+mode), func(o *Options) { o.OfferLease = -1 })
	key := s.keys(0).named(keyMeta)
	owner, err := s.cluster.MasterForKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	node := c.Node(owner.Options().Addr)
	var wg sync.WaitGroup
	defer wg.Wait()
	submitMany(t, s, func() {
		node.Kill()
		wg.Go(func() {
			err := redistest.Await("both pools have found the replica that took over", func(ctx context.Context) bool {
				// Of themselves: whoever asked for it here would hide that nobody else does.
				for _, pool := range []redis.UniversalClient{s.reads, s.writes} {
					now, err := pool.(*redis.ClusterClient).MasterForKey(ctx, key)
					if err != nil || now.Options().Addr == node.Addr {
						_, _ = s.Function(ctx, task.ID{}) // what servers ask all the time
						return false
					}
				}
				return true
			})
			if err == nil {
				err = node.Run()
			}
			if err == nil {
				err = redistest.AwaitReplica(node)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}, mode == "replicated")
}

// submitMany submits tasks one by one with a fault in between, each until it is
// acknowledged, and counts what was lost.
func submitMany(t *testing.T, s *Store, fault func(), strict bool) {
	t.Helper()
	var acked []task.ID
	var gap time.Duration
	for i := range 600 {
		if i == 200 {
			fault()
		}
		it := keyed(fmt.Sprint("k", i), []byte("x"))
		begin := time.Now()
		redistest.Poll(t, fmt.Sprint("submission ", i), func(ctx context.Context) bool {
			got, err := s.Submit(ctx, time.Now(), []store.Submission{it})
			if err == nil && got[0].Err != nil {
				t.Fatal(got[0].Err)
			}
			return err == nil
		})
		gap = max(gap, time.Since(begin))
		acked = append(acked, it.Task.ID)
	}
	got, err := s.Tasks(t.Context(), acked)
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, tk := range got {
		if tk == nil {
			lost++
		}
	}
	t.Logf("%d of %d acknowledged tasks were lost, the longest gap was %s", lost, len(acked), gap)
	if lost > 0 && strict {
		t.Errorf("%d acknowledged tasks were lost", lost)
	}
	mustCheck(t, s)
}

// A Sentinel failover: submissions stop for a moment, and nothing acknowledged is lost in
// the replicated mode.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	g := redistest.StartGroup(t, time.Second)
	s := live(t, g.URL("durability=replicated"), func(o *Options) { o.OfferLease = -1 })
	submitMany(t, s, func() { g.Primary(t).Kill() }, true)
}

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
