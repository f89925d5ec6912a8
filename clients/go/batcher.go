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
	// maxCalls is how many batches may be under way at once. While one is waited for
	// the next fills; a few hide the round trip, many would make batches small.
	maxCalls = 4
	// maxCallItems keeps one batch from delaying its first item for its last.
	maxCallItems = 1000
)

// batcher sends the requests of concurrent callers of Execute together. While fewer than
// maxCalls are under way a request is sent at once, alone. Further ones queue up, and the next
// call takes all of them. No timer is involved and nothing runs while nobody calls.
type batcher struct {
	life context.Context
	rpc  treadlev1.FabricServiceClient
	met  *atomic.Bool
	// recorded, when set, takes the waiters of the requests that a call has recorded.
	recorded func([]*waiter)

	mu     sync.Mutex
	queue  []*pending
	calls  int
	closed bool
	wg     sync.WaitGroup
}

// pending is one request that waits for its answer.
type pending struct {
	ctx    context.Context
	req    *treadlev1.ExecuteRequest
	size   int // of req, in bytes
	waiter *waiter
	// answer has room for one, so that a call never waits for a caller who left.
	answer chan submitted
	// call is set under the batcher's lock when the request leaves the queue.
	call *batchCall
}

type submitted struct {
	id  string
	err error
}

// batchCall is one call of ExecuteBatch. It is cancelled when nobody waits for it any more.
type batchCall struct {
	cancel context.CancelFunc
	left   int // requests whose callers still wait; guarded by the batcher's lock
}

func newBatcher(life context.Context, rpc treadlev1.FabricServiceClient, met *atomic.Bool) *batcher {
	return &batcher{life: life, rpc: rpc, met: met}
}

// submit records one task, in one call with others that wait.
func (b *batcher) submit(ctx context.Context, req *treadlev1.ExecuteRequest, w *waiter) (string, error) {
	p := &pending{ctx: ctx, req: req, size: proto.Size(req), waiter: w, answer: make(chan submitted, 1)}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return "", fmt.Errorf("Execute: %w", ErrClosed)
	}
	b.queue = append(b.queue, p)
	if b.calls < maxCalls {
		b.calls++
		b.wg.Go(b.run)
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

func (b *batcher) leave(p *pending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.call == nil {
		return // still queued: take skips it
	}
	if p.call.left--; p.call.left == 0 {
		p.call.cancel()
	}
}

// run makes calls until the queue is empty.
func (b *batcher) run() {
	for {
		ctx, cancel := context.WithCancel(b.life)
		taken := b.take(cancel)
		if taken == nil {
			cancel()
			return
		}
		b.send(ctx, taken)
		cancel()
	}
}

// take removes from the queue what fits into one batch. With nothing there it counts its caller
// out and returns nil.
func (b *batcher) take(cancel context.CancelFunc) []*pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &batchCall{cancel: cancel}
	var taken []*pending
	seen, size := 0, 0
	for _, p := range b.queue {
		if len(taken) == maxCallItems || len(taken) > 0 && size+p.size > maxBatchBytes {
			break
		}
		seen++
		if p.ctx.Err() != nil {
			continue // the caller has left
		}
		p.call = f
		taken, size = append(taken, p), size+p.size
	}
	clear(b.queue[:seen])
	if b.queue = b.queue[seen:]; len(b.queue) == 0 {
		b.queue = nil
	}
	f.left = len(taken)
	if len(taken) == 0 {
		b.calls--
	}
	return taken
}

// refusedWhole reports whether a batch was refused for what it holds, before any of it was
// recorded: a field over its limit, text that is not UTF-8, more bytes than the server takes.
func refusedWhole(err error) bool { return errors.Is(err, ErrInvalid) || errors.Is(err, ErrTooLarge) }

// send makes one call. A batch that is refused as a whole goes again in halves, which
// finds the request to blame among n in 2 log n calls.
func (b *batcher) send(ctx context.Context, taken []*pending) {
	batch := &treadlev1.ExecuteBatchRequest{Requests: make([]*treadlev1.ExecuteRequest, len(taken))}
	for i, p := range taken {
		batch.Requests[i] = p.req
	}
	resp, err := b.rpc.ExecuteBatch(ctx, batch)
	if err == nil {
		b.met.Store(true)
		err = checkItems(resp, len(taken))
	}
	if err != nil {
		err = requestError("Execute", batch, err)
		if len(taken) > 1 && refusedWhole(err) {
			// Nothing of it was recorded, and those that one request is to blame for do not know it.
			half := len(taken) / 2
			b.send(ctx, taken[:half])
			b.send(ctx, taken[half:])
			return
		}
		for _, p := range taken {
			p.answer <- submitted{err: err}
		}
		return
	}
	var waiters []*waiter
	for i, it := range resp.GetItems() {
		if w := taken[i].waiter; w != nil && it.GetError() == nil && taken[i].ctx.Err() == nil {
			w.id = it.GetTaskId()
			waiters = append(waiters, w)
		}
	}
	if len(waiters) > 0 {
		b.recorded(waiters)
	}
	for i, it := range resp.GetItems() {
		a := submitted{id: it.GetTaskId()}
		if it.GetError() != nil {
			a.err = itemError("Execute", it.GetError())
		}
		taken[i].answer <- a
	}
}

// close refuses new requests and waits for the calls, which end with life.
func (b *batcher) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}
