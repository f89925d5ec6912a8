package linkpb

import (
	"sync/atomic"

	"github.com/treadle-dev/treadle/link"
)

// What a worker has sent waits decoded until the dispatcher looks at it, up to
// unreadFrames of each link. Most frames are small; but one may carry a result that is as
// large as a payload may be, and a worker decides how many it sends. So those of a link that come
// to more than freeUnread count for all links, and the link is read on when there is room: gRPC's
// flow control makes the worker wait.
const (
	unreadFrames = 16
	freeUnread   = 64 << 10
)

// unreadFrame is a frame that waits for Recv.
type unreadFrame struct {
	frame link.Frame
	// weight is its part of unread.waiting, charged what it has of the budget.
	weight, charged int64
}

// unread counts what of one link waits for Recv.
type unread struct {
	quota   *Quota // nil counts nothing
	waiting atomic.Int64
}

// enter waits for room for a frame; false says that stop was closed before.
func (u *unread) enter(f link.Frame, stop <-chan struct{}) (unreadFrame, bool) {
	w := unreadFrame{frame: f}
	if u.quota == nil {
		return w, true
	}
	w.weight = weighReceived(f)
	if u.waiting.Add(w.weight) <= freeUnread {
		return w, true
	}
	p := &u.quota.budget.unread
	w.charged = min(w.weight, p.share)
	if !p.take(u.quota.owner, w.charged, 0, stop) {
		u.waiting.Add(-w.weight)
		return w, false
	}
	return w, true
}

// leave gives back what a frame has, once.
func (u *unread) leave(w unreadFrame) {
	if u.quota == nil {
		return
	}
	u.waiting.Add(-w.weight)
	u.quota.budget.unread.give(u.quota.owner, w.charged)
}

// weighReceived estimates the memory that a worker's frame takes while it waits, in bytes.
func weighReceived(f link.Frame) int64 {
	n := frameCost
	switch f := f.(type) {
	case *link.Outcomes:
		for i := range f.Items {
			r := &f.Items[i]
			n += itemCost + len(r.Log) + len(r.Outcome.Result) + len(r.Outcome.Repr)
			if fail := r.Outcome.Failure; fail != nil {
				n += len(fail.Message) + len(fail.Traceback) + len(fail.Pickle) + len(fail.ForeignPickle)
			}
		}
	case *link.Output:
		n += len(f.Bytes)
	case *link.Accepts:
		n += itemCost * len(f.Items)
	case *link.Beat:
		n += itemCost * len(f.Held)
	case *link.Hello:
		n += itemCost * (len(f.Queues) + len(f.Runtimes) + len(f.Handlers) + len(f.Held))
	}
	return int64(n)
}
