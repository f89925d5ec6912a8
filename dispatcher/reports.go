package dispatcher

import (
	"context"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/link"
)

// Bounds of what workers have reported and the store has not recorded yet.
const (
	// smallReports is what a frame may carry without being counted: most frames carry less,
	// and touch nothing that is shared.
	smallReports = 64 << 10
	// reportPayloads is how many payloads of results may wait for the store in all; the
	// workers of one owner may have half of that.
	reportPayloads = 8
)

// reports bounds the results that wait for the store. A worker may hold thousands of claims
// and report a payload for each, faster than any store writes; so the next frame of results of a session is
// read when there is room for it. What it holds waits with it, as the store is what everybody waits for.
type reports struct {
	room, share int64

	mu     sync.Mutex
	free   sync.Cond
	used   int64
	owners map[string]int64
}

func newReports(maxPayload int) *reports {
	r := &reports{room: reportPayloads * int64(maxPayload), owners: map[string]int64{}}
	r.share = r.room / 2
	r.free.L = &r.mu
	return r
}

// reportHold is the room that one frame of results has, until the last of them is recorded.
type reportHold struct {
	r     *reports
	owner string
	bytes int64
}

// reportBytes is what the values of a frame take.
func reportBytes(f link.Frame) (n int64) {
	if outcomes, ok := f.(*link.Outcomes); ok {
		for i := range outcomes.Items {
			n += int64(len(outcomes.Items[i].Outcome.Result) + len(outcomes.Items[i].Log))
		}
	}
	return n
}

// take waits for room for a frame; nil without an error is a frame that needs none. A frame
// that is larger than all room passes when it is the only one.
func (r *reports) take(ctx context.Context, owner string, f link.Frame) (*reportHold, error) {
	n := reportBytes(f)
	if n <= smallReports {
		return nil, nil
	}
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.free.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.fits(owner, n) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r.free.Wait()
	}
	r.used += n
	r.owners[owner] += n
	return &reportHold{r, owner, n}, nil
}

// fits reports whether there is room; r.mu is held. Nobody in particular has no share but all.
func (r *reports) fits(owner string, n int64) bool {
	own := r.owners[owner]
	return (r.used == 0 || r.used+n <= r.room) && (owner == "" || own == 0 || own+n <= r.share)
}

// release gives the room back, once.
func (h *reportHold) release() {
	r := h.r
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used -= h.bytes
	if r.owners[h.owner] -= h.bytes; r.owners[h.owner] == 0 {
		delete(r.owners, h.owner)
	}
	r.free.Broadcast()
}

// unheld gives back what an event holds that nobody will look at.
func unheld(ev event) {
	if got, ok := ev.(received); ok && got.hold != nil {
		got.hold.release()
	}
}

// held returns the bytes that wait for the store.
func (r *reports) held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}

// step gives an event to the engine. The room of a frame of results goes with the last of
// its settlements, as these are recorded in order; what led to none gives it back at once.
func (d *Dispatcher) step(e *Engine, ev event) {
	before := len(e.out.settles)
	e.step(time.Now(), ev)
	got, ok := ev.(received)
	if !ok || got.hold == nil {
		return
	}
	if n := len(e.out.settles); n > before {
		e.out.settles[n-1].hold = got.hold
		return
	}
	got.hold.release()
}
