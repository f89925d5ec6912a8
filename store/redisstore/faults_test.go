package redisstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/task"
)

// live is a store on the server's own time.
func live(t *testing.T, url string, change func(*Options)) *Store {
	t.Helper()
	o := Options{URL: url, Namespace: freshNamespace(), Lease: 10 * time.Second, Logger: quiet, OpenTimeout: 5 * time.Second}
	if change != nil {
		change(&o)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !s.closed {
			t.Error(err)
		}
	})
	return s
}

func submission(args []byte) store.Submission {
	return store.Submission{Task: sampleTask(args), Args: args}
}

func keyed(key string, args []byte) store.Submission {
	it := submission(args)
	it.Key = store.Key{ID: key, Digest: sha256.Sum256(args)}
	return it
}

func submitOne(t *testing.T, s *Store, it store.Submission) store.Submitted {
	t.Helper()
	got, err := s.Submit(t.Context(), time.Now(), []store.Submission{it})
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func request(n int) store.ClaimRequest {
	return store.ClaimRequest{
		Claim: randomID(), Session: task.ID{7}, Worker: "w", Queues: []string{task.DefaultQueue},
		Runtimes: []string{task.RuntimePython}, Max: n, Until: time.Now().Add(10 * time.Second),
	}
}

func claimSome(t *testing.T, s *Store, r store.ClaimRequest) []store.Claimed {
	t.Helper()
	got, err := s.Claim(t.Context(), time.Now(), []store.ClaimRequest{r})
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func succeed(t *testing.T, s *Store, tok task.Token, result []byte) task.Verdict {
	t.Helper()
	got, err := s.Settle(t.Context(), time.Now(), []store.Settlement{{Token: tok, Outcome: task.Outcome{End: task.EndSucceeded, Result: result}}})
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func mustCheck(t *testing.T, s *Store) {
	t.Helper()
	if err := s.CheckInvariants(context.Background()); err != nil {
		t.Errorf("the store is inconsistent: %v", err)
	}
}

// Every operation is carried out by the server, its answer is lost, and the client
// library sends it again: the effect is single and the answer that of the first time.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	p := newProxy(t, server.Addr)
	s := live(t, "redis://"+p.addr, nil)
	ctx := t.Context()
	// lose runs an operation whose first answer is lost.
	lose := func(what string, do func() error) {
		t.Helper()
		p.loseNext(1)
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if p.lost.Load() != 1 {
			t.Fatalf("%s: %d answers were lost, want 1", what, p.lost.Load())
		}
	}
	warm := func(s *Store) {
		t.Helper()
		it := submission(nil)
		submitOne(t, s, it)
		c := claimSome(t, s, request(1))
		succeed(t, s, c[0].Token, nil)
	}
	warm(s)
	for i := range 5 {
		plain, withKey := submission([]byte("x")), keyed(fmt.Sprint("key", i), []byte("y"))
		lose("submit", func() error {
			got, err := s.Submit(ctx, time.Now(), []store.Submission{plain, withKey})
			if err == nil && (got[0].Err != nil || got[0].Duplicate || got[1].Err != nil || got[1].Duplicate || got[1].ID != withKey.Task.ID) {
				t.Errorf("submit: %+v", got)
			}
			return err
		})
		r := request(2)
		var claims []store.Claimed
		lose("claim", func() error {
			got, err := s.Claim(ctx, time.Now(), []store.ClaimRequest{r})
			if err == nil {
				claims = got[0]
			}
			return err
		})
		if len(claims) != 2 || claims[0].Token.Task != plain.Task.ID || claims[0].Token.Epoch != 1 || string(claims[1].Args) != "y" {
			t.Fatalf("claimed %+v", claims)
		}
		lose("renew", func() error {
			got, err := s.Renew(ctx, time.Now(), []store.Renewal{{
				Token: claims[0].Token, Until: time.Now().Add(time.Minute), StartedAt: time.Now(), Log: []byte("once"),
			}})
			if err == nil && got[0] != task.VerdictRecorded {
				t.Errorf("renew: %v", got)
			}
			return err
		})
		lose("settle", func() error {
			got, err := s.Settle(ctx, time.Now(), []store.Settlement{
				{Token: claims[0].Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}, Log: []byte(" more")},
				{Token: claims[1].Token, Outcome: task.Fail(task.EndLost, "gone")},
			})
			if err == nil && (got[0] != task.VerdictRecorded || got[1] != task.VerdictRecorded) {
				t.Errorf("settle: %v", got)
			}
			return err
		})
		if log, err := s.Log(ctx, plain.Task.ID, 0); err != nil || string(log) != "once more" {
			t.Fatalf("output %q, %v", log, err)
		}
		if got, err := s.Task(ctx, withKey.Task.ID); err != nil || got.Losses != 1 || got.AttemptCount != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		lose("cancel", func() error {
			got, err := s.Cancel(ctx, time.Now(), []task.ID{withKey.Task.ID}, false)
			if err == nil && got[0].Status != task.Cancelled {
				t.Errorf("cancel: %+v", got[0])
			}
			return err
		})
		f := task.Function{ID: newID(), Name: "f", Queue: "q", Runtime: "python", Size: 4, Hash: sha256.Sum256([]byte{1, 2, 3, byte(i)})}
		lose("put function", func() error {
			got, err := s.PutFunction(ctx, f, []byte{1, 2, 3, byte(i)}, store.Key{ID: fmt.Sprint("f", i)})
			if err == nil && got.ID != f.ID {
				t.Errorf("put function: %+v", got)
			}
			return err
		})
		lose("reap", func() error { _, err := s.Reap(ctx, time.Now(), 10); return err })
		mustCheck(t, s)
	}
}

// The server forgets its scripts (a restart, a failover, SCRIPT FLUSH) between any two calls.
func TestForgottenScripts(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	s := live(t, srv.URL(""), nil)
	c := srv.Client()
	defer c.Close()
	flush := func() {
		t.Helper()
		if err := c.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		flush()
		submitOne(t, s, submission(nil))
		flush()
		got := claimSome(t, s, request(1))
		flush()
		if v := succeed(t, s, got[0].Token, []byte("1")); v != task.VerdictRecorded {
			t.Fatal(v)
		}
		flush()
		if _, err := s.Reap(t.Context(), time.Now(), 10); err != nil {
			t.Fatal(err)
		}
	}
	mustCheck(t, s)
}

// A flushed or replaced server is not taken for the store, by reads and writes alike.
func TestIdentityChanged(t *testing.T) {
	t.Parallel()
	for name, wreck := range map[string]func(t *testing.T, srv *redistest.Server){
		"flushed": func(t *testing.T, srv *redistest.Server) {
			c := srv.Client()
			defer c.Close()
			if err := c.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"restarted empty": func(t *testing.T, srv *redistest.Server) {
			srv.Kill()
			if err := srv.Run(); err != nil {
				t.Fatal(err)
			}
		},
		"another store in its place": func(t *testing.T, srv *redistest.Server) {
			c := srv.Client()
			defer c.Close()
			if err := c.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			live(t, srv.URL(""), func(o *Options) { o.Namespace = "same" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := redistest.Start(t)
			s := live(t, srv.URL(""), func(o *Options) { o.Namespace = "same" })
			it := submission(nil)
			submitOne(t, s, it)
			wreck(t, srv)
			ctx, now := t.Context(), time.Now()
			calls := map[string]func() error{
				"Submit": func() error { _, err := s.Submit(ctx, now, []store.Submission{submission(nil)}); return err },
				"Task":   func() error { _, err := s.Task(ctx, it.Task.ID); return err },
				"Claim":  func() error { _, err := s.Claim(ctx, now, []store.ClaimRequest{request(1)}); return err },
				"Settle": func() error {
					_, err := s.Settle(ctx, now, []store.Settlement{{Token: task.Token{Task: it.Task.ID}}})
					return err
				},
				"Reap": func() error { _, err := s.Reap(ctx, now, 1); return err },
				"Announce": func() error {
					return s.Announce(ctx, now.Add(time.Minute), []store.Presence{{Worker: "w"}, {Worker: "left", Gone: true}})
				},
				"Workers": func() error { _, err := s.Workers(ctx, now); return err },
				"List":    func() error { _, _, err := s.ListTasks(ctx, store.ListQuery{Limit: 1}); return err },
			}
			for what, call := range calls {
				// Connections that broke with the server may take a try to be replaced.
				err := call()
				if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "identity changed") {
					t.Errorf("%s: %v, want that the store identity changed", what, err)
				}
			}
			if name == "another store in its place" {
				return
			}
			c := srv.Client()
			defer c.Close()
			if keys, err := c.Keys(ctx, "*").Result(); err != nil || len(keys) > 0 {
				t.Errorf("the server has got the keys %v, %v: want none", keys, err)
			}
		})
	}
}

// What was acknowledged survives SIGKILL of a server that syncs always; calls fail as
// unavailable meanwhile and work again afterwards.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s := live(t, srv.URL(""), func(o *Options) { o.OfferLease = -1 })
	var ids []task.ID
	for range 200 {
		it := submission([]byte("args"))
		submitOne(t, s, it)
		ids = append(ids, it.Task.ID)
	}
	claims := claimSome(t, s, request(50))
	for _, c := range claims[:25] {
		succeed(t, s, c.Token, []byte("1"))
	}
	srv.Kill()
	if _, err := s.Task(t.Context(), ids[0]); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("without a server: %v", err)
	}
	if err := srv.Run(); err != nil {
		t.Fatal(err)
	}
	got, err := s.Tasks(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, tk := range got {
		switch {
		case tk == nil:
			t.Fatalf("task %d was lost", i)
		case i < 25 && tk.Status != task.Completed, i >= 25 && i < 50 && tk.Lease == nil, i >= 50 && tk.Lease != nil:
			t.Fatalf("task %d is %+v", i, tk)
		}
	}
	for _, c := range claims[25:] {
		if v := succeed(t, s, c.Token, []byte("2")); v != task.VerdictRecorded {
			t.Fatal(v)
		}
	}
	mustCheck(t, s)
}

// A change that no replica confirms is of unknown outcome; the same request later finds
// what it did. Readers are not told of an end that may be lost again.
func TestReplicated(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	replica := redistest.StartReplica(t, primary)
	s := live(t, primary.URL("durability=replicated"), func(o *Options) { o.WaitTimeout = 2 * time.Second; o.OfferLease = -1 })
	other := live(t, primary.URL("durability=replicated"), func(o *Options) { o.Namespace = s.opts.Namespace; o.WaitTimeout = 2 * time.Second })
	if got := s.Info().Durability; got != Replicated {
		t.Fatalf("durability %q", got)
	}
	first := submission(nil)
	submitOne(t, s, first)
	claims := claimSome(t, s, request(1))
	if err := replica.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	it := keyed("once", []byte("x"))
	_, err := s.Submit(t.Context(), time.Now(), []store.Submission{it})
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "outcome is unknown") {
		t.Fatalf("without a replica: %v", err)
	}
	// The retry, on a connection that wrote nothing of it, must not be answered either.
	if _, err = other.Submit(t.Context(), time.Now(), []store.Submission{it}); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("the retry without a replica: %v", err)
	}
	settle := []store.Settlement{{Token: claims[0].Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}}}
	if _, err = s.Settle(t.Context(), time.Now(), settle); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("settle without a replica: %v", err)
	}
	if got, _, err := s.Result(t.Context(), first.Task.ID); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("a result that no replica has was shown: %+v, %v", got, err)
	}
	// What changes nothing tells of a change that no replica has, too.
	if got, err := other.Settle(t.Context(), time.Now(), settle); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("the report again without a replica: %v, %v", got, err)
	}
	if got, err := other.Cancel(t.Context(), time.Now(), []task.ID{first.Task.ID}, false); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("the cancel of a task whose end no replica has: %+v, %v", got, err)
	}
	if got, err := other.Task(t.Context(), task.ID{1}); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("that there is no such task, without a replica: %+v, %v", got, err)
	}
	if err := replica.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var got []store.Submitted
	redistest.Poll(t, "the replica is back", func(ctx context.Context) bool {
		got, err = s.Submit(ctx, time.Now(), []store.Submission{it})
		return err == nil
	})
	if got[0].ID != it.Task.ID || got[0].Err != nil {
		t.Fatalf("the retry: %+v", got)
	}
	verdicts, err := s.Settle(t.Context(), time.Now(), settle)
	if err != nil || verdicts[0] != task.VerdictDuplicate {
		t.Fatalf("the report again: %v, %v", verdicts, err)
	}
	if _, result, err := s.Result(t.Context(), first.Task.ID); err != nil || string(result) != "1" {
		t.Fatalf("result %q, %v", result, err)
	}
	if n := len(claimSome(t, s, request(10))); n != 1 {
		t.Fatalf("%d tasks of one key", n)
	}
	mustCheck(t, s)
}

// Two processes reap, settle and cancel the same tasks: each task is ended once.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	ns := freshNamespace()
	open := func() *Store {
		return live(t, server.URL(""), func(o *Options) {
			o.Namespace = ns
			o.Lease = 300 * time.Millisecond
			o.OfferLease = -1
			o.Absence = time.Hour
		})
	}
	a, b := open(), open()
	const n = 100
	var ids []task.ID
	for range n {
		it := submission(nil)
		submitOne(t, a, it)
		ids = append(ids, it.Task.ID)
	}
	r := request(n)
	r.Until = time.Now().Add(300 * time.Millisecond)
	claims := claimSome(t, a, r)
	var starts []store.Renewal
	for _, c := range claims {
		starts = append(starts, store.Renewal{Token: c.Token, Until: r.Until, StartedAt: time.Now()})
	}
	if _, err := b.Renew(t.Context(), time.Now(), starts); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, "all leases have run out", func(ctx context.Context) bool {
		var wg sync.WaitGroup
		for _, s := range []*Store{a, b, a, b} {
			wg.Go(func() {
				if _, err := s.Reap(ctx, time.Now(), 1000); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got, err := a.Tasks(ctx, ids)
		if err != nil {
			t.Fatal(err)
		}
		for _, tk := range got {
			if tk.Lease != nil {
				return false
			}
			if tk.Losses != 1 {
				t.Fatalf("%d losses after one", tk.Losses)
			}
		}
		return true
	})
	// A process whose records are out of date computes the move again.
	again := claimSome(t, a, request(n))
	if len(again) != n {
		t.Fatalf("claimed %d", len(again))
	}
	for i, c := range again {
		if _, err := b.Renew(t.Context(), time.Now(), []store.Renewal{{Token: c.Token, Until: time.Now().Add(time.Minute), StartedAt: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := b.Cancel(t.Context(), time.Now(), []task.ID{c.Token.Task}, false); err != nil {
				t.Fatal(err)
			}
		}
		want := task.VerdictRecorded
		if i%2 == 0 {
			want = task.VerdictStale
		}
		if v := succeed(t, a, c.Token, []byte("1")); v != want {
			t.Fatalf("answered %s, want %s", v, want)
		}
		got, err := b.Task(t.Context(), c.Token.Task)
		if err != nil || got.AttemptCount != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	// The word that an attempt started came through the other process; the one that hands
	// it back does not know and must not forget it.
	it := submission(nil)
	submitOne(t, a, it)
	c := claimSome(t, a, request(1))[0]
	if _, err := b.Renew(t.Context(), time.Now(), []store.Renewal{{Token: c.Token, Until: time.Now().Add(time.Minute), StartedAt: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	verdicts, err := a.Settle(t.Context(), time.Now(), []store.Settlement{{Token: c.Token, Outcome: task.Outcome{End: task.EndReturned}}})
	if err != nil || verdicts[0] != task.VerdictRecorded {
		t.Fatal(verdicts, err)
	}
	if got, err := a.Task(t.Context(), it.Task.ID); err != nil || got.AttemptCount != 1 || got.Attempts[0].End != task.EndReturned {
		t.Fatalf("%+v, %v", got, err)
	}
	mustCheck(t, a)
}

// Rings reach other processes, also after their connection broke.
func TestBellAcrossProcesses(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a := live(t, srv.URL(""), func(o *Options) { o.Namespace = "bell" })
	b := live(t, srv.URL(""), func(o *Options) { o.Namespace = "bell" })
	heard := make(chan store.Signal, 1000)
	defer b.Bell().Listen(func(batch []store.Signal) {
		for _, s := range batch {
			heard <- s
		}
	})()
	wanted := store.Signal{Kind: store.Wanted, Queue: "q", Runtime: "r", From: randomID(), Count: 3, Task: newID(), Claim: randomID()}
	a.Bell().Ring(t.Context(), []store.Signal{wanted})
	select {
	case got := <-heard:
		if got != wanted {
			t.Fatalf("heard %+v, want %+v", got, wanted)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was heard")
	}
	c := srv.Client()
	defer c.Close()
	if err := c.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	redistest.Poll(t, "the bell is heard again", func(context.Context) bool {
		a.Bell().Ring(t.Context(), []store.Signal{wanted})
		select {
		case <-heard:
			return true
		case <-time.After(100 * time.Millisecond):
			return false
		}
	})
	// One's own rings are not heard twice.
	own := make(chan store.Signal, 1000)
	defer a.Bell().Listen(func(batch []store.Signal) { own <- batch[0] })()
	submitOne(t, a, submission(nil))
	<-heard
	if n := len(own); n != 1 {
		t.Fatalf("heard %d rings of its own, want 1", n)
	}
}

// A start that one process records is heard in another that watches, and only then.
func TestWatchAcrossProcesses(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	server := live(t, srv.URL(""), func(o *Options) { o.Namespace = "watch" })
	dispatcher := live(t, srv.URL(""), func(o *Options) { o.Namespace = "watch" })
	changed := make(chan task.ID, 100)
	defer server.Bell().Listen(func(batch []store.Signal) {
		for _, s := range batch {
			switch s.Kind {
			case store.Ready, store.Wanted, store.Revoked, store.Done:
			case store.Changed:
				changed <- s.Task
			default:
				t.Errorf("a listener heard %+v", s)
			}
		}
	})()
	begin := func() task.ID {
		t.Helper()
		it := submission(nil)
		submitOne(t, server, it)
		claims, err := dispatcher.Claim(t.Context(), time.Now(), []store.ClaimRequest{request(1)})
		if err != nil || len(claims[0]) != 1 {
			t.Fatal(claims, err)
		}
		return it.Task.ID
	}
	start := func(id task.ID) {
		t.Helper()
		tk, err := dispatcher.Task(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		tok, _ := tk.Token()
		now := time.Now()
		v, err := dispatcher.Renew(t.Context(), now, []store.Renewal{{Token: tok, Until: now.Add(10 * time.Second), StartedAt: now}})
		if err != nil || v[0] != task.VerdictRecorded {
			t.Fatal(v, err)
		}
	}
	start(begin()) // nobody watches it
	watched := begin()
	server.Bell().Watch(watched, time.Minute)
	redistest.Poll(t, "the dispatcher knows who is watched", func(context.Context) bool {
		return dispatcher.bell.local.Watched(watched)
	})
	start(watched)
	select {
	case id := <-changed:
		if id != watched {
			t.Fatalf("heard of %s, which nobody watches", id)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the start was not heard")
	}
	if tk, err := server.Task(t.Context(), watched); err != nil || tk.Status != task.Running {
		t.Fatal(tk, err)
	}
}

// Values of many chunks come back whole, and leave nothing behind.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	s, clock := f.s, f.clock
	before, err := f.keys()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{maxInline, maxInline + 1, chunkSize - 1, chunkSize, chunkSize + 1, 5*chunkSize + 7} {
		args := bytes.Repeat([]byte("argument"), size/8+1)[:size]
		it := submission(args)
		if _, err := s.Submit(t.Context(), clock.Now(), []store.Submission{it}); err != nil {
			t.Fatal(err)
		}
		var c store.Claimed
		for range 2 { // Claimed, handed back, claimed again.
			r := request(1)
			r.Until = clock.Now().Add(10 * time.Second)
			got, err := s.Claim(t.Context(), clock.Now(), []store.ClaimRequest{r})
			if err != nil || len(got[0]) != 1 || !bytes.Equal(got[0][0].Args, args) {
				t.Fatalf("size %d: %v, %d claimed", size, err, len(got[0]))
			}
			old := c
			c = got[0][0]
			if old.Token.Task == (task.ID{}) {
				settle(t, f, c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
				continue
			}
			// A stale report of a large result overwrites nothing.
			settle(t, f, task.Token{Task: c.Token.Task, Epoch: 9, Claim: randomID()},
				task.Outcome{End: task.EndSucceeded, Result: bytes.Repeat([]byte("x"), size)}, task.VerdictStale)
		}
		result := bytes.Repeat([]byte("resultat"), size/8+1)[:size]
		settle(t, f, c.Token, task.Outcome{End: task.EndSucceeded, Result: result}, task.VerdictRecorded)
		settle(t, f, c.Token, task.Outcome{End: task.EndSucceeded, Result: args}, task.VerdictDuplicate)
		if _, got, err := s.Result(t.Context(), it.Task.ID); err != nil || !bytes.Equal(got, result) {
			t.Fatalf("size %d: result of %d bytes, %v", size, len(got), err)
		}
		// Read with others, it comes where it stands in the record.
		many, err := s.Results(t.Context(), []task.ID{it.Task.ID, randomID()})
		if err != nil || len(many) != 2 || many[1].Task != nil {
			t.Fatalf("size %d: %d answers of which one has no task, %v", size, len(many), err)
		}
		if small := size <= maxInline; small != (many[0].Task != nil) || small && !bytes.Equal(many[0].Result, result) {
			t.Fatalf("size %d: read with others: %v, %d bytes", size, many[0].Task, len(many[0].Result))
		}
	}
	clock.Advance(f.opts.Retention + time.Second)
	if _, err := s.Reap(t.Context(), clock.Now(), 1000); err != nil {
		t.Fatal(err)
	}
	if after, err := f.keys(); err != nil || after > before {
		t.Fatalf("%d keys, there were %d before; %v", after, before, err)
	}
}

func settle(t *testing.T, f *fixture, tok task.Token, out task.Outcome, want task.Verdict) {
	t.Helper()
	got, err := f.s.Settle(t.Context(), f.clock.Now(), []store.Settlement{{Token: tok, Outcome: out}})
	if err != nil || got[0] != want {
		t.Fatalf("answered %v, %v; want %s", got, err, want)
	}
}

// A renewal that comes between a reaper's look and its move wins.
func TestRenewalBeatsReaper(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	it := submission(nil)
	if _, err := f.s.Submit(t.Context(), f.clock.Now(), []store.Submission{it}); err != nil {
		t.Fatal(err)
	}
	r := request(1)
	r.Until = f.clock.Now().Add(f.opts.Lease)
	claims, err := f.s.Claim(t.Context(), f.clock.Now(), []store.ClaimRequest{r})
	if err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(f.opts.Lease)
	reap := f.s.lapsing(it.Task.ID, nil)
	reap.apply = func(rec *record, tk *task.Task, at time.Time) bool {
		got, err := f.s.Renew(t.Context(), f.clock.Now(), []store.Renewal{{Token: claims[0][0].Token, Until: f.clock.Now().Add(f.opts.Lease)}})
		if err != nil || got[0] != task.VerdictRecorded {
			t.Errorf("renew: %v, %v", got, err)
		}
		return f.s.lapse(rec, tk, at, nil)
	}
	if err := f.s.perform(t.Context(), "test", f.clock.Now(), []*move{reap}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.s.Task(t.Context(), it.Task.ID); err != nil || got.Lease == nil || got.Lapses != 0 || reap.changed {
		t.Fatalf("%+v, %v", got, err)
	}
	mustCheck(t, f.s)
}

// A large value whose chunks did not arrive is not taken for whole.
func TestMissingChunks(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	big := make([]byte, 3*chunkSize)
	it := submission(big)
	x := &submitting{s: f.s, now: f.clock.Now(), operation: newOperation(), items: []store.Submission{it}, ids: []task.ID{it.Task.ID}, reserved: make([]bool, 1)}
	args, chunks := x.arguments([]any{x.operation, f.clock.Now().UnixMicro(), frontOfHead(x.operation)}, 0, 0, f.clock.Now())
	c := f.s.scriptCall(0, scriptSubmit, f.clock.Now(), args...)
	if err := f.s.change(t.Context(), "test", append(chunks[:2], c)...); err != nil {
		t.Fatal(err)
	}
	values, err := c.values()
	if err != nil || values[0] != int64(submitIncomplete) {
		t.Fatalf("answered %v, %v", values, err)
	}
	if _, err := f.s.Task(t.Context(), it.Task.ID); task.CodeOf(err) != task.CodeNotFound {
		t.Fatalf("recorded without its arguments: %v", err)
	}
	mustCheck(t, f.s)
}
