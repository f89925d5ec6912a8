package linkpb

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// What waits for a peer to be read, and what a peer has sent half, is memory that the peer
// decides on: a small frame of a worker may ask for a large one, and offers carry arguments.
// So it is counted in bytes: for each link by itself, and for all links of a dispatcher
// together, of which those of one owner have a share.
//
// A plain limit for a link would be wrong. Offers of slots times the payload limit are
// within a worker's rights, and one on a slow line would lose them again and again. What
// an honest worker notices is that it gets no more work while much waits for it
// ([link.Gauge]); what ends a link is that it does not read, or that the bytes of all are used
// up and it reads slowest.
const (
	// freeQueue is what may wait for a peer and does not count for the bytes of all: most links
	// never have more, and touch nothing that is shared.
	freeQueue = 16 << 10
	// queueStep is the unit in which more than that is counted.
	queueStep = 64 << 10
	// frameCost is what a frame takes beside its texts and values, itemCost each item of it;
	// the messages in memory are several times as large as on the wire.
	frameCost, itemCost = 256, 320
	// stallAfter is for how long nothing may be written of a queue over the soft limit.
	stallAfter = 5 * time.Second
	// partWait is how long a chunk waits for room. Frames that renew leases wait behind it, so
	// it is shorter than the silence that makes a worker suspect.
	partWait = 2 * time.Second
	// partIdle is for how long nothing may come of values that are sent half.
	partIdle = time.Minute
)

// Budget is what the links of one dispatcher may hold. All methods may be called by anyone.
type Budget struct {
	// soft is where a link is behind: its worker gets no more, and must read. At hard it
	// ends at once.
	soft, hard int64
	stallAfter time.Duration
	partWait   time.Duration
	partIdle   time.Duration
	queues     queues
	parts      pool
	unread     pool
	ended      atomic.Int64
}

// NewBudget returns the budget that goes with a payload limit in bytes. A link is behind with
// twice the limit (at least 64 MiB) and 16 MiB unwritten, and ends with four times that. All
// links together have 16 times the limit (at least 256 MiB) of unwritten frames, and half of
// that of values that are sent half; what workers have sent and the dispatcher has not looked at has
// four times the limit (at least 64 MiB). An owner has half of each.
func NewBudget(maxPayload int) *Budget {
	payload := int64(maxPayload)
	soft := max(64<<20, 2*payload) + 16<<20
	total := max(256<<20, 16*payload)
	b := &Budget{soft: soft, hard: 4 * soft, stallAfter: stallAfter, partWait: partWait, partIdle: partIdle}
	b.queues = queues{total: total, share: max(total/2, soft), owners: map[string]int64{}, members: map[*member]struct{}{}}
	one := int64(2*maxPayload + 16<<20) // what newAssembler allows one link
	b.parts = pool{total: max(total/2, one), share: max(total/4, one), owners: map[string]int64{}}
	all := max(64<<20, 4*payload)
	b.unread = pool{total: all, share: all / 2, owners: map[string]int64{}}
	return b
}

// Quota is the part of a budget that belongs to the links of one owner.
type Quota struct {
	budget *Budget
	owner  string
}

// For returns the quota of an owner; an empty name is nobody's, who has no share but all.
func (b *Budget) For(owner string) *Quota { return &Quota{budget: b, owner: owner} }

// Unwritten returns the bytes that wait for peers, as far as they count.
func (b *Budget) Unwritten() int64 {
	b.queues.mu.Lock()
	defer b.queues.mu.Unlock()
	return b.queues.used
}

// Unfinished returns the bytes of values that are sent half.
func (b *Budget) Unfinished() int64 {
	b.parts.mu.Lock()
	defer b.parts.mu.Unlock()
	return b.parts.used
}

// Unread returns the bytes that workers have sent and nobody has looked at, as far as they count.
func (b *Budget) Unread() int64 {
	b.unread.mu.Lock()
	defer b.unread.mu.Unlock()
	return b.unread.used
}

// Ended counts the links that ended because of what they held.
func (b *Budget) Ended() int64 { return b.ended.Load() }

// queues counts what waits for the peers of all links.
type queues struct {
	total, share int64

	mu      sync.Mutex
	used    int64
	owners  map[string]int64
	members map[*member]struct{} // those with something charged
}

// member is a link in the sight of queues.
type member struct {
	owner string
	// end ends the link; it must be called without locks.
	end func(reason error)
	// charged and out (it was ended for the room of others) are guarded by queues.mu.
	charged int64
	out     bool
	// since is when something of the link was written last, or had to wait first, in ns.
	since atomic.Int64
}

// charge sets what a link has. It returns whether there is little left for it, and the
// links that have to end, slowest first, as there is too much: their bytes are given back already.
func (q *queues) charge(m *member, want int64) (tight bool, slowest []*member) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.out {
		return false, nil
	}
	if m.charged == 0 {
		m.since.Store(time.Now().UnixNano())
	}
	grows := want > m.charged
	q.set(m, want)
	owns := func() int64 {
		if m.owner == "" {
			return 0 // no share
		}
		return q.owners[m.owner]
	}
	for grows && (q.used > q.total || owns() > q.share) {
		var s *member
		own := owns() > q.share // is paid for by the owner, whoever is slower
		for o := range q.members {
			if (!own || o.owner == m.owner) && (s == nil || o.since.Load() < s.since.Load()) {
				s = o
			}
		}
		q.set(s, 0)
		s.out = true
		slowest = append(slowest, s)
	}
	return 2*q.used > q.total || 2*owns() > q.share, slowest
}

func (q *queues) set(m *member, want int64) {
	by := want - m.charged
	m.charged = want
	q.used += by
	if q.owners[m.owner] += by; q.owners[m.owner] == 0 {
		delete(q.owners, m.owner)
	}
	if want == 0 {
		delete(q.members, m)
	} else {
		q.members[m] = struct{}{}
	}
}

// pool counts what peers have sent, half or whole.
type pool struct {
	total, share int64

	mu     sync.Mutex
	used   int64
	owners map[string]int64
	// freed is closed when bytes come back, where somebody waits for that.
	freed chan struct{}
}

// take takes n bytes for an owner, and waits for them until the time is over, where there is one, or stop is closed.
func (p *pool) take(owner string, n int64, wait time.Duration, stop <-chan struct{}) bool {
	ok, freed := p.try(owner, n)
	if ok {
		return true
	}
	var over <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	for {
		select {
		case <-freed:
			if ok, freed = p.try(owner, n); ok {
				return true
			}
		case <-over:
			return false
		case <-stop:
			return false
		}
	}
}

func (p *pool) try(owner string, n int64) (ok bool, freed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used+n > p.total || owner != "" && p.owners[owner]+n > p.share {
		if p.freed == nil {
			p.freed = make(chan struct{})
		}
		return false, p.freed
	}
	p.used += n
	p.owners[owner] += n
	return true, nil
}

// give gives n bytes back.
func (p *pool) give(owner string, n int64) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= n
	if p.owners[owner] -= n; p.owners[owner] == 0 {
		delete(p.owners, owner)
	}
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// takeParts takes room for a value that is being sent; nil quotas have no bounds.
func (q *Quota) takeParts(n int64, stop <-chan struct{}) error {
	if q == nil {
		return nil
	}
	b := q.budget
	if n <= 0 {
		b.parts.give(q.owner, -n)
		return nil
	}
	if b.parts.take(q.owner, n, b.partWait, stop) {
		return nil
	}
	return errEnded{fmt.Sprintf("no room for %d more bytes of a value in chunks within %s: workers may have %d bytes of values that are sent half, "+
		"those of one token %d (8 and 4 times --max-payload): send it again", n, b.partWait, b.parts.total, b.parts.share)}
}

// errEnded is the reason of a link that ended for what it held; the same may be sent again.
type errEnded struct{ reason string }

func (e errEnded) Error() string { return e.reason }

// overrun is the error of a link whose peer reads too slowly.
func overrun(format string, args ...any) error {
	return task.Errorf(task.CodeUnavailable, "", "%w: %s", link.ErrOverrun, fmt.Sprintf(format, args...))
}

// weigh estimates the memory that a frame takes while it waits, in bytes.
func weigh(f link.Frame) int64 {
	switch f := f.(type) {
	case *link.Offers:
		n := frameCost
		for i := range f.Items {
			o := &f.Items[i]
			n += 2*itemCost + len(o.Args) + len(o.FunctionName) + len(o.Runtime) + len(o.Python)
		}
		return int64(n)
	case *link.FunctionBytes:
		return int64(frameCost + len(f.Bytes))
	case *link.Acks:
		return int64(frameCost + itemCost*len(f.Items))
	case *link.BeatAck:
		return int64(frameCost + itemCost*len(f.Stale))
	case *link.Revoke:
		return int64(frameCost + itemCost*len(f.Tokens))
	case *link.Welcome:
		return int64(frameCost + itemCost*len(f.Stale))
	default:
		return frameCost
	}
}
