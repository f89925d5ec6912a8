package treadle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

const (
	// maxFlights is how many batches may be under way at once. While one is waited for
	// the next fills; a few hide the round trip, many would make batches small.
	maxFlights = 4
	// maxFlightItems keeps one batch from delaying its first item for its last.
	maxFlightItems = 1000
)

// batcher lets concurrent callers of Execute travel together. A request that finds
// a free flight leaves at once, alone; while all flights are under way requests queue
// up, and the next flight takes all of them. No timer is involved and nothing runs
// while nobody calls.
type batcher struct {
	life context.Context
	rpc  treadlev1.FabricServiceClient
	met  *atomic.Bool
	// landed, when set, takes the waiters of a flight's recorded requests.
	landed func([]*waiter)

	mu      sync.Mutex
	queue   []*passenger
	flights int
	closed  bool
	wg      sync.WaitGroup
}

// passenger is one request that waits for its answer.
type passenger struct {
	ctx    context.Context
	req    *treadlev1.ExecuteRequest
	size   int // of req, in bytes
	waiter *waiter
	// answer has room for one, so that a flight never waits for who left.
	answer chan submitted
	// flight is set under the batcher's lock when the request leaves the queue.
	flight *flight
}

type submitted struct {
	id  string
	err error
}

// flight is one ExecuteBatch call. It is given up when nobody waits for it any more.
type flight struct {
	cancel context.CancelFunc
	left   int // passengers that still wait; guarded by the batcher's lock
}

func newBatcher(life context.Context, rpc treadlev1.FabricServiceClient, met *atomic.Bool) *batcher {
	return &batcher{life: life, rpc: rpc, met: met}
}

// submit records one task, in company where there is some.
func (b *batcher) submit(ctx context.Context, req *treadlev1.ExecuteRequest, w *waiter) (string, error) {
	p := &passenger{ctx: ctx, req: req, size: proto.Size(req), waiter: w, answer: make(chan submitted, 1)}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return "", fmt.Errorf("Execute: %w", ErrClosed)
	}
	b.queue = append(b.queue, p)
	if b.flights < maxFlights {
		b.flights++
		b.wg.Go(b.fly)
	}
	b.mu.Unlock()
	select {
	case a := <-p.answer:
		return a.id, a.err
	case <-ctx.Done():
		b.leave(p)
		return "", ctxError(ctx, "Execute", "request "+req.GetRequestId()+" may have been recorded")
	}
}

func (b *batcher) leave(p *passenger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.flight == nil {
		return // still queued: board skips it
	}
	if p.flight.left--; p.flight.left == 0 {
		p.flight.cancel()
	}
}

// fly makes flights until the queue is empty.
func (b *batcher) fly() {
	for {
		ctx, cancel := context.WithCancel(b.life)
		aboard := b.board(cancel)
		if aboard == nil {
			cancel()
			return
		}
		b.send(ctx, aboard)
		cancel()
	}
}

// board takes what has queued up, up to the limits of one batch. With nothing there
// it ends the flight slot and returns nil.
func (b *batcher) board(cancel context.CancelFunc) []*passenger {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &flight{cancel: cancel}
	var aboard []*passenger
	taken, size := 0, 0
	for _, p := range b.queue {
		if len(aboard) == maxFlightItems || len(aboard) > 0 && size+p.size > maxBatchBytes {
			break
		}
		taken++
		if p.ctx.Err() != nil {
			continue // the caller has left
		}
		p.flight = f
		aboard, size = append(aboard, p), size+p.size
	}
	clear(b.queue[:taken])
	if b.queue = b.queue[taken:]; len(b.queue) == 0 {
		b.queue = nil
	}
	f.left = len(aboard)
	if len(aboard) == 0 {
		b.flights--
	}
	return aboard
}

// refusedWhole reports whether a batch was refused for what it holds, before any of it was
// recorded: a field over its limit, text that is not UTF-8, more bytes than the server takes.
func refusedWhole(err error) bool { return errors.Is(err, ErrInvalid) || errors.Is(err, ErrTooLarge) }

// send makes one flight's call. A batch that is refused as a whole goes again in halves, which
// finds the request to blame among n in 2 log n calls.
func (b *batcher) send(ctx context.Context, aboard []*passenger) {
	batch := &treadlev1.ExecuteBatchRequest{Requests: make([]*treadlev1.ExecuteRequest, len(aboard))}
	for i, p := range aboard {
		batch.Requests[i] = p.req
	}
	resp, err := b.rpc.ExecuteBatch(ctx, batch)
	if err == nil {
		b.met.Store(true)
		err = checkItems(resp, len(aboard))
	}
	if err != nil {
		err = requestError("Execute", batch, err)
		if len(aboard) > 1 && refusedWhole(err) {
			// Nothing of it was recorded, and those that one request is to blame for do not know it.
			half := len(aboard) / 2
			b.send(ctx, aboard[:half])
			b.send(ctx, aboard[half:])
			return
		}
		for _, p := range aboard {
			p.answer <- submitted{err: err}
		}
		return
	}
	var waiters []*waiter
	for i, it := range resp.GetItems() {
		if w := aboard[i].waiter; w != nil && it.GetError() == nil && aboard[i].ctx.Err() == nil {
			w.id = it.GetTaskId()
			waiters = append(waiters, w)
		}
	}
	if len(waiters) > 0 {
		b.landed(waiters)
	}
	for i, it := range resp.GetItems() {
		a := submitted{id: it.GetTaskId()}
		if it.GetError() != nil {
			a.err = itemError("Execute", it.GetError())
		}
		aboard[i].answer <- a
	}
}

// close refuses new requests and waits for the flights, which end with life.
func (b *batcher) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}
