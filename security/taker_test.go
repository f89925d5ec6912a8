//go:build linux

package security

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	treadle "github.com/treadle-dev/treadle/clients/go"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// taker is a hostile worker that gets real offers.
type taker struct {
	*hostileStream
	id     string
	queue  string
	offers chan *treadlev1.Offer

	mu      sync.Mutex
	acks    map[string]string // verdicts by claim
	revoked int
}

// take attaches a worker of the attacker to a queue and keeps its session alive.
func (c *cluster) take(t *testing.T, id, queue string, slots int, more ...[]byte) *taker {
	t.Helper()
	p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.6")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	s, err := p.attach(ctx, methodPush, hello(id, queue, "python", slots, more...))
	if err != nil {
		t.Fatal(err)
	}
	w := &taker{hostileStream: s, id: id, queue: queue, offers: make(chan *treadlev1.Offer, 10_000), acks: map[string]string{}}
	w.read(w.frame)
	go beats(ctx, s)
	return w
}

func (w *taker) frame(message []byte) {
	f := dispatched(message)
	for _, o := range f.GetOffers().GetItems() {
		w.offers <- o
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range f.GetAcks().GetItems() {
		w.acks[string(a.GetToken().GetClaimId())] = a.GetVerdict()
	}
	w.revoked += len(f.GetRevoke().GetTokens())
}

// offer waits for the next offer.
func (w *taker) offer(t *testing.T) *treadlev1.Offer {
	t.Helper()
	select {
	case o := <-w.offers:
		return o
	case <-w.over:
		t.Fatalf("the session ended before there was an offer: %v", w.err)
	case <-time.After(10 * time.Second):
		t.Fatal("no offer within 10 s")
	}
	return nil
}

// started says that an offer was started.
func (w *taker) started(o *treadlev1.Offer) {
	_ = w.send(text(kindAccepts, text(1, text(1, tokenOf(o))))) // a session that is over says so elsewhere
}

// report sends an outcome of an offer, with whatever fields follow its token.
func (w *taker) report(o *treadlev1.Offer, fields ...[]byte) {
	_ = w.send(text(kindOutcomes, text(1, cat(text(1, tokenOf(o)), cat(fields...)))))
}

// succeeded is a result that nobody objects to.
func succeeded() []byte {
	return cat(text(2, "succeeded"), text(3, cat(text(1, "1"), num(3, 1))), text(4, "json"))
}

// succeed runs every further offer well until the session ends.
func (w *taker) succeed() {
	for {
		select {
		case o := <-w.offers:
			w.started(o)
			w.report(o, succeeded())
		case <-w.over:
			return
		}
	}
}

func tokenOf(o *treadlev1.Offer) []byte {
	b, err := proto.Marshal(o.GetToken())
	if err != nil {
		panic(err)
	}
	return b
}

// submit records tasks of a function that the attacker's workers run, and returns their ids.
func (c *cluster) submit(t *testing.T, queue string, n int, o treadle.Options) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err := treadle.Dial(c.api, treadle.WithToken(c.evilClient))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fn, err := client.Register(ctx, treadle.Registration{Name: "hostile", Source: "def f(): pass", Queue: queue})
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]treadle.Request, n)
	for i := range requests {
		requests[i] = treadle.Request{Function: fn.ID, Args: []any{}, Options: o}
	}
	done, err := client.ExecuteBatch(ctx, requests)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, n)
	for i, d := range done {
		if d.Err != nil {
			t.Fatal(d.Err)
		}
		ids[i] = d.TaskID
	}
	return ids
}

// ended waits for the end of a task and returns its record.
func (c *cluster) ended(t *testing.T, id string, limit time.Duration) *treadle.Task {
	t.Helper()
	client, err := c.evil()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var found *treadle.Task
	until(t, limit, "the end of a task", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		task, err := client.Task(ctx, id)
		switch {
		case err != nil:
			return err
		case !task.Status.Terminal():
			return fmt.Errorf("it is %s after %d attempts", task.Status, task.AttemptCount)
		}
		found = task
		return nil
	})
	return found
}

// evil is a client of the attacker, who may read his own tasks.
func (c *cluster) evil() (*treadle.Client, error) {
	return treadle.Dial(c.api, treadle.WithToken(c.evilClient), treadle.WithRetry(0))
}

// beats keeps a session alive until it or ctx ends.
func beats(ctx context.Context, w *hostileStream) {
	w.read(nil)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for seq := 1; ; seq++ {
		select {
		case <-ctx.Done():
			return
		case <-w.over:
			return
		case <-tick.C:
			if w.send(beat(seq)) != nil {
				return
			}
		}
	}
}
