package server

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/collector"
	"github.com/treadle-dev/treadle/task"
)

const (
	// freeBody is the size up to which bodies, messages and answers do not count.
	freeBody = 64 << 10
	// budgetWait is how long a large body or answer waits for room.
	budgetWait = 20 * time.Second
	// maxWaiting and maxWaitingOwner bound those who wait: a message that waits has up to
	// streamWindow bytes here already.
	maxWaiting, maxWaitingOwner = 256, 64
	// busyDelay is when to come back.
	busyDelay = time.Second
)

// budget bounds the bytes of large requests and answers that a server holds at one time,
// over gRPC and REST together, and what one token has of them.
type budget struct {
	total, share int64
	// core is where results are read; nil for a budget of other messages.
	core *fabric.Fabric
	// wait is budgetWait.
	wait time.Duration

	mu     sync.Mutex
	used   int64
	owners map[string]*allowance
	// queue has *claim values in the order in which they came.
	queue   list.List
	refused int64
}

// allowance is what one owner holds and how many of his claims wait.
type allowance struct {
	used    int64
	waiting int
}

// claim waits for room.
type claim struct {
	owner string
	size  int64
	ready chan struct{} // closed when the room was given
}

func newBudget(total, share int64) *budget {
	return &budget{total: total, share: min(share, total), wait: budgetWait, owners: make(map[string]*allowance)}
}

// acquire takes room for size bytes, or for as many as a share has. It waits for at most
// budgetWait, and returns what was taken.
func (b *budget) acquire(ctx context.Context, owner string, size int64) (int64, error) {
	size = min(size, b.share)
	b.mu.Lock()
	o := b.owner(owner)
	if b.queue.Len() >= maxWaiting || o.waiting >= maxWaitingOwner {
		b.refused++
		b.forget(owner, o)
		b.mu.Unlock()
		return 0, errBusy{}
	}
	c := &claim{owner: owner, size: size, ready: make(chan struct{})}
	at := b.queue.PushBack(c)
	o.waiting++
	b.grant()
	b.mu.Unlock()
	select {
	case <-c.ready: // without a timer when there is room
		return size, nil
	default:
	}
	timer := time.NewTimer(b.wait)
	defer timer.Stop()
	var err error
	select {
	case <-c.ready:
		return size, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = errBusy{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.ready:
		return size, nil // at the last moment
	default:
	}
	b.queue.Remove(at)
	o.waiting--
	b.forget(owner, o)
	b.grant() // those behind may have waited for this one alone
	if errors.Is(err, errBusy{}) {
		b.refused++
	}
	return 0, err
}

// try takes room for exactly size bytes if there is, and nobody waits for it.
func (b *budget) try(owner string, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue.Len() > 0 || b.used+size > b.total {
		return false
	}
	o := b.owner(owner)
	if o.used+size > b.share {
		b.forget(owner, o)
		return false
	}
	o.used += size
	b.used += size
	return true
}

// release gives room back.
func (b *budget) release(owner string, size int64) {
	if size == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.owner(owner)
	o.used -= size
	b.used -= size
	b.forget(owner, o)
	b.grant()
}

// grant gives room to those who wait, in their order. Whoever waits for his own share lets others
// pass; whoever waits for the total does not, or a large claim would wait for ever. b.mu
// is held.
func (b *budget) grant() {
	var next *list.Element
	for at := b.queue.Front(); at != nil; at = next {
		next = at.Next()
		c := at.Value.(*claim)
		o := b.owners[c.owner]
		if o.used+c.size > b.share {
			continue
		}
		if b.used+c.size > b.total {
			return
		}
		o.used += c.size
		b.used += c.size
		o.waiting--
		b.queue.Remove(at)
		close(c.ready)
	}
}

func (b *budget) owner(name string) *allowance {
	o := b.owners[name]
	if o == nil {
		o = &allowance{}
		b.owners[name] = o
	}
	return o
}

// forget drops an owner that has nothing. b.mu is held.
func (b *budget) forget(name string, o *allowance) {
	if o.used == 0 && o.waiting == 0 {
		delete(b.owners, name)
	}
}

// held returns the bytes that are held, how many claims wait and how many were refused.
func (b *budget) held() (used int64, waiting int, refused int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.queue.Len(), b.refused
}

// errBusy is a claim that found no room.
type errBusy struct{}

func (errBusy) Error() string {
	return fmt.Sprintf("the server holds as many large requests and results as it may, or this caller has his share of them: try again in %s", busyDelay)
}

// GRPCStatus is the error as a status, with ErrorInfo and RetryInfo.
func (e errBusy) GRPCStatus() *status.Status {
	st, err := status.New(codes.Unavailable, e.Error()).WithDetails(
		&errdetails.ErrorInfo{Reason: reasonBusy, Domain: errorDomain}, &errdetails.RetryInfo{RetryDelay: durationpb.New(busyDelay)})
	if err != nil {
		return status.New(codes.Internal, "an error could not be described: "+err.Error())
	}
	return st
}

// holding is what one call has of the budget: for its request until that is recorded, and
// for its answer until that is written. It never waits for one while it has the other, so
// calls cannot wait for each other in a ring. Its methods do nothing on nil.
type holding struct {
	b     *budget
	owner string

	mu              sync.Mutex
	request, answer int64
}

// takeRequest waits for room for a request.
func (h *holding) takeRequest(ctx context.Context, size int64) error {
	return h.take(ctx, size, &h.request)
}

// takeAnswer waits for room for an answer.
func (h *holding) takeAnswer(ctx context.Context, size int64) error {
	return h.take(ctx, size, &h.answer)
}

func (h *holding) take(ctx context.Context, size int64, into *int64) error {
	if size <= freeBody {
		return nil
	}
	h.dropRequest()
	h.dropAnswer()
	n, err := h.b.acquire(ctx, h.owner, size)
	if err != nil {
		return err
	}
	h.mu.Lock()
	*into = n
	h.mu.Unlock()
	collector.Passing(int(size))
	return nil
}

// dropRequest gives the room of the request back.
func (h *holding) dropRequest() {
	if h != nil {
		h.drop(&h.request)
	}
}

// dropAnswer gives the room of the answer back.
func (h *holding) dropAnswer() {
	if h != nil {
		h.drop(&h.answer)
	}
}

func (h *holding) drop(from *int64) {
	h.mu.Lock()
	n := *from
	*from = 0
	h.mu.Unlock()
	h.b.release(h.owner, n)
}

// forAnswer is how much of the budget the answer has.
func (h *holding) forAnswer() int64 {
	if h == nil {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answer
}

type holdingKey struct{}

// holdingOf returns what the call of a context has of the budget; nil where nothing counts.
func holdingOf(ctx context.Context) *holding {
	if h, ok := ctx.Value(holdingKey{}).(*holding); ok {
		return h
	}
	if ex := exchangeOf(ctx); ex != nil && ex.body != nil {
		return &ex.body.held
	}
	return nil
}

// Result is [fabric.Fabric.Result] within the budget: the call holds room for a large result until it
// is written. How large a result is says only its record. While there is room for the
// largest it is read at once, and only otherwise is the record looked at before.
func (h *holding) Result(ctx context.Context, id task.ID) (*task.Task, []byte, error) {
	h.dropRequest()
	h.dropAnswer()
	core := h.b.core
	largest := int64(core.MaxPayload())
	if h.b.try(h.owner, largest) {
		t, result, err := core.Result(ctx, id)
		keep := min(int64(len(result)), largest)
		if keep <= freeBody {
			keep = 0
		}
		h.mu.Lock()
		h.answer = keep
		h.mu.Unlock()
		h.b.release(h.owner, largest-keep)
		if keep > 0 {
			collector.Passing(int(keep))
		}
		return t, result, err
	}
	if t, result, err := core.SmallResult(ctx, id); err != nil || t != nil {
		return t, result, err
	}
	t, err := core.Task(ctx, fabric.Caller{}, id)
	if err != nil || t.Status != task.Completed {
		return t, nil, err
	}
	if err := h.takeAnswer(ctx, int64(t.ResultSize)); err != nil {
		return nil, nil, err
	}
	return core.Result(ctx, id)
}

// Recorded implements [fabric.ResultReader].
func (h *holding) Recorded() { h.dropRequest() }

// reader reads the results of a call within the budget; all of them where nothing counts.
func (s *Server) reader(ctx context.Context) fabric.ResultReader {
	if h := holdingOf(ctx); h != nil {
		return h
	}
	return s.core.Reader()
}
