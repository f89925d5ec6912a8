package worker_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/internal/tasktoken"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// leading is a link that knows where it leads.
type leading struct {
	link.Conn
	address, authority string
}

func (l leading) Endpoint() (string, string) { return l.address, l.authority }

// TestAttemptsReachTheirDispatcher: with a token that its issuer knows, at the dispatcher
// that the worker came to last.
func TestAttemptsReachTheirDispatcher(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, links: make(chan link.Conn, 16), ended: make(chan error, 1)}
	g := newGate()
	addresses := make(chan leading, 2)
	addresses <- leading{nil, "127.0.0.1:1", "one.test:1"}
	addresses <- leading{nil, "127.0.0.1:2", "two.test:2"}
	a, err := worker.New(worker.Config{
		ID: "w", Mode: link.Push, Slots: 1, Executors: []worker.Executor{g}, DrainTimeout: -1,
		API: func() (worker.API, error) {
			return worker.API{TLS: &tls.Config{MinVersion: tls.VersionTLS13}, CA: []byte("ca"), Token: "ignored"}, nil
		},
		Dial: func(context.Context) (link.Conn, error) {
			there, here := link.Pipe()
			at := <-addresses
			at.Conn = here
			b.links <- there
			return at, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.ended <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-b.ended; err != nil {
			t.Error(err)
		}
	}()
	issuers := []*tasktoken.Issuer{tasktoken.New(), tasktoken.New()}
	e := b.next()
	if !e.hello.TaskTokens {
		t.Error("the worker does not want the key for tokens")
	}
	w := terms
	w.TaskKey = issuers[0].SessionKey(w.Session)
	e.send(&w)
	o := offers(1)
	o.Items[0].Parent = task.ID{77}
	e.send(o)
	attempt := g.awaitStart(t)
	if attempt.Parent != (task.ID{77}) {
		t.Errorf("parent %s", attempt.Parent)
	}
	check := func(issuer *tasktoken.Issuer, address, name string) {
		t.Helper()
		api, err := attempt.API(attempt.Token)
		if err != nil {
			t.Fatal(err)
		}
		gotTask, claim, ok := issuer.Verify(api.Token)
		if !ok || gotTask != attempt.Token.Task || claim != attempt.Token.Claim {
			t.Errorf("the token %s is for %x %x, %v", api.Token, gotTask, claim, ok)
		}
		if api.Address != address || api.TLS.ServerName != name || string(api.CA) != "ca" {
			t.Errorf("%+v, want %s and certificates for %s", api, address, name)
		}
	}
	check(issuers[0], "127.0.0.1:1", "one.test")
	e.conn.Close(nil)
	next := b.next()
	check(issuers[0], "127.0.0.1:1", "one.test") // the claim stands there
	w = terms
	w.Session = task.ID{2}
	w.TaskKey = issuers[1].SessionKey(w.Session)
	next.send(&w)
	expect[*link.Beat](next)
	check(issuers[1], "127.0.0.1:2", "two.test")
	g.release <- success
	next.report(token(1))
	next.ack(token(1))
}

// A dispatcher of an earlier release gives no key, and says nothing of it.
func TestNoKeyForTokens(t *testing.T) {
	t.Parallel()
	g := newGate()
	e := newBench(t, link.Push, 1, g).attach()
	if e.hello.TaskTokens {
		t.Error("a worker that tells of no API wants a key")
	}
	e.send(offers(1))
	attempt := g.awaitStart(t)
	if _, err := attempt.API(attempt.Token); err == nil || !strings.Contains(err.Error(), "does not say how") {
		t.Error(err)
	}
	g.release <- success
}

func TestCertificatesWithoutKeys(t *testing.T) {
	t.Parallel()
	var text []byte
	for _, kind := range []string{"PRIVATE KEY", "CERTIFICATE", "EC PRIVATE KEY", "CERTIFICATE"} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Headers: map[string]string{"A": "b"}, Bytes: []byte(kind)})...)
	}
	got := worker.Certificates(append([]byte("comment\n"), text...))
	if bytes.Contains(got, []byte("KEY")) || bytes.Count(got, []byte("BEGIN CERTIFICATE")) != 2 || bytes.Contains(got, []byte("comment")) {
		t.Errorf("%s", got)
	}
}
