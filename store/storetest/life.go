package storetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var lifeTests = []test{
	{"Info", testInfo},
	{"ClosedIsUnavailable", testClosed},
	{"EndedContext", testEndedContext},
}

func testInfo(e *env) {
	switch info := e.Store.Info(); info.Durability {
	case "memory", "embedded", "redis-async", "redis-replicated":
		if info.Location == "" {
			e.Fatal("no location")
		}
	default:
		e.Fatalf("durability %q", info.Durability)
	}
}

func testClosed(e *env) {
	id := e.submit()
	e.must(e.Store.Close())
	e.closed = true
	ctx, s, now := e.Context(), e.Store, e.Now()
	calls := map[string]func() error{
		"PutFunction": func() error {
			_, err := s.PutFunction(ctx, newFunction("f", "x"), []byte("x"), store.Key{})
			return err
		},
		"Function":        func() error { _, err := s.Function(ctx, id); return err },
		"FunctionNamed":   func() error { _, err := s.FunctionNamed(ctx, "f"); return err },
		"FunctionPayload": func() error { _, err := s.FunctionPayload(ctx, [32]byte{}); return err },
		"ListFunctions":   func() error { _, err := s.ListFunctions(ctx, task.ID{}, 1); return err },
		"Submit":          func() error { _, err := s.Submit(ctx, now, []store.Submission{item(newTask(), "")}); return err },
		"Task":            func() error { _, err := s.Task(ctx, id); return err },
		"Tasks":           func() error { _, err := s.Tasks(ctx, []task.ID{id}); return err },
		"Result":          func() error { _, _, err := s.Result(ctx, id); return err },
		"ListTasks":       func() error { _, _, err := s.ListTasks(ctx, store.ListQuery{Limit: 1}); return err },
		"Cancel":          func() error { _, err := s.Cancel(ctx, now, []task.ID{id}, false); return err },
		"Log":             func() error { _, err := s.Log(ctx, id, 0); return err },
		"QueueStats":      func() error { _, err := s.QueueStats(ctx); return err },
		"Claim":           func() error { _, err := s.Claim(ctx, now, []store.ClaimRequest{e.request(1)}); return err },
		"Renew":           func() error { _, err := s.Renew(ctx, now, []store.Renewal{{}}); return err },
		"Resume":          func() error { _, err := s.Resume(ctx, now, store.Resumption{Worker: "w"}); return err },
		"Settle":          func() error { _, err := s.Settle(ctx, now, []store.Settlement{{}}); return err },
		"Reap":            func() error { _, err := s.Reap(ctx, now, 1); return err },
		"Announce":        func() error { return s.Announce(ctx, now, nil) },
		"Workers":         func() error { _, err := s.Workers(ctx, now); return err },
	}
	for name, call := range calls {
		if err := call(); task.CodeOf(err) != task.CodeUnavailable {
			e.Errorf("%s on a closed store: %v, want unavailable", name, err)
		}
	}
}

func testEndedContext(e *env) {
	ctx, cancel := context.WithCancelCause(e.Context())
	cancel(errStop)
	_, err := e.Store.Submit(ctx, e.Now(), []store.Submission{item(newTask(), "")})
	e.wantCode(err, task.CodeUnavailable)
	if !errors.Is(err, context.Canceled) {
		e.Fatalf("%v does not name its cause", err)
	}
	// The store goes on for everyone else.
	e.wantStatus(e.submit(), task.Queued)
}

var fleetTests = []test{
	{"AnnounceAndExpire", testFleet},
}

func testFleet(e *env) {
	workers := func() []string {
		e.Helper()
		got, err := e.Store.Workers(e.Context(), e.Now())
		e.must(err)
		var names []string
		for _, p := range got {
			names = append(names, fmt.Sprintf("%s:%d", p.Worker, p.Running))
		}
		return names
	}
	check := func(want ...string) {
		e.Helper()
		if got := workers(); fmt.Sprint(got) != fmt.Sprint(want) {
			e.Fatalf("workers %v, want %v", got, want)
		}
	}
	check()
	full := store.Presence{
		Worker: "b", Name: "name", Host: "host", PID: 7, Mode: "push", State: "active", Queues: []string{"q"}, Runtimes: []string{"python"},
		Version: "1", Slots: 4, Running: 1, Offered: 2, ConnectedAt: e.Now(), LastSeen: e.Now(),
	}
	e.must(e.Store.Announce(e.Context(), e.Now().Add(5*time.Second), []store.Presence{full, {Worker: "a"}, {Worker: "c", Running: 3}}))
	check("a:0", "b:1", "c:3")
	got, err := e.Store.Workers(e.Context(), e.Now())
	e.must(err)
	if p := got[1]; p.Name != "name" || p.Host != "host" || p.PID != 7 || p.Mode != "push" || p.State != "active" || p.Queues[0] != "q" ||
		p.Runtimes[0] != "python" || p.Version != "1" || p.Slots != 4 || p.Offered != 2 || !p.ConnectedAt.Equal(full.ConnectedAt) ||
		!p.LastSeen.Equal(full.LastSeen) {
		e.Fatalf("announced %+v, got %+v", full, p)
	}
	// Only the named workers are replaced.
	e.must(e.Store.Announce(e.Context(), e.Now().Add(15*time.Second), []store.Presence{{Worker: "b", Running: 9}, {Worker: "a", Gone: true}}))
	check("b:9", "c:3")
	e.Advance(6 * time.Second)
	check("b:9")
	e.Advance(10 * time.Second)
	check()
}
