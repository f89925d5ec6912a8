package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// Bounds of what workers may have read for them. A request for a function has 36 bytes and its
// answer up to a payload: so it is the answers that are counted, from before they are read
// until they are written to the link.
const (
	// maxNeeds is how many functions a session may have asked for and not been sent. Honest
	// workers ask for those of the offers that they hold.
	maxNeeds = 1024
	// loadAhead is how many bytes of functions may wait at a session's link before the next one
	// is read for it. So a session has one function over this size at a time, and slow
	// readers no more than twice this of small ones.
	loadAhead = 256 << 10
	// loadRoom bounds the bytes that all sessions have on their way, where twice the payload
	// limit is not more: a function that is being read counts as large as one may be.
	loadRoom = 256 << 20
	// loadReaders is how many functions are read from the store at one time.
	loadReaders = 4
	// A function that a session was sent before is sent again while its allowance lasts:
	// agents keep what they have, and those that forget it get so many bytes a second, and so
	// many payloads at once. A small one counts as againLeast bytes.
	againRate, againPayloads, againLeast = 8 << 20, 4, 64 << 10
	// maxFetched bounds what is remembered of what a session was sent.
	maxFetched = 4096
	// loadStall is how often the links of those who hold room are looked at while others
	// wait for it: who has taken nothing between two looks is sent away.
	loadStall = 5 * time.Second
)

// loads reads functions for sessions: one after another for each, in turn among all that
// wait, within a bound of bytes. Its readers are owned by whoever calls run.
type loads struct {
	read func(ctx context.Context, hash [32]byte) ([]byte, error)
	// answer takes what was read; false means that nobody listens any more.
	answer func(event) bool
	// largest is what one function may have, room what all may have on their way, share what
	// those of one owner may.
	largest, room, share int64
	now                  func() time.Time

	mu       sync.Mutex
	free     sync.Cond
	sessions map[task.ID]*loading
	// turn has the sessions with something to read, in the order in which they are served.
	turn   []*loading
	used   int64
	owners map[string]int64
	closed bool
}

// loading is what one session has asked for.
type loading struct {
	session task.ID
	conn    link.Conn
	owner   string
	// needs is everything asked for and not yet written, with the bytes that it takes.
	needs map[[32]byte]int64
	// waiting is what of it is not read yet, in order.
	waiting [][32]byte
	// taken is the sum of needs.
	taken   int64
	reading bool
	// fetched is what the session was sent, and its size; again its allowance for that, in bytes.
	fetched map[[32]byte]int64
	again   bucket
	// seen is what the link had sent at the last look, when looked is set.
	seen   uint64
	looked bool
	gone   bool
}

func newLoads(maxPayload int, read func(context.Context, [32]byte) ([]byte, error), answer func(event) bool) *loads {
	room := max(loadRoom, 2*int64(maxPayload))
	l := &loads{
		read: read, answer: answer, largest: int64(maxPayload), room: room, share: max(room/2, int64(maxPayload)), now: time.Now,
		sessions: map[task.ID]*loading{}, owners: map[string]int64{},
	}
	l.free.L = &l.mu
	return l
}

// errNeeds is why a session ends that asks for more than it may.
var errNeeds = fmt.Errorf("the worker has %d outstanding requests for functions, which is the limit: request only the functions of tasks that it holds", maxNeeds)

// add notes that a session asks for a function. It never blocks. What it has asked for
// already is answered once; what it was sent already, and asks for again and again, is left
// out: a worker asks again. An error ends the session.
func (l *loads) add(session task.ID, conn link.Conn, hash [32]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[session]
	if s == nil {
		s = &loading{session: session, conn: conn, needs: map[[32]byte]int64{}, fetched: map[[32]byte]int64{}}
		s.again.fill(l.now(), float64(againPayloads*l.largest))
		if g, ok := conn.(link.Gauge); ok {
			s.owner = g.Owner()
		}
		l.sessions[session] = s
	}
	if _, asked := s.needs[hash]; asked {
		return nil
	}
	if len(s.needs) >= maxNeeds {
		return errNeeds
	}
	if size, fetched := s.fetched[hash]; fetched {
		most := float64(againPayloads * l.largest)
		if !s.again.takeN(l.now(), min(float64(max(size, againLeast)), most), againRate, most) {
			return nil
		}
	}
	s.needs[hash] = 0
	if s.waiting = append(s.waiting, hash); len(s.waiting) == 1 {
		l.turn = append(l.turn, s)
		l.free.Signal()
	}
	return nil
}

// drop forgets a session whose link has ended.
func (l *loads) drop(session task.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[session]
	if s == nil {
		return
	}
	delete(l.sessions, session)
	s.gone = true
	l.count(s, -s.taken)
	for i, o := range l.turn {
		if o == s {
			l.turn = append(l.turn[:i], l.turn[i+1:]...)
			break
		}
	}
	s.waiting = nil
	l.free.Broadcast()
}

// count changes what a session has of the room. l.mu is held.
func (l *loads) count(s *loading, by int64) {
	s.taken += by
	l.used += by
	if l.owners[s.owner] += by; l.owners[s.owner] == 0 {
		delete(l.owners, s.owner)
	}
}

// written notes that a function has left, or will not any more.
func (l *loads) written(session task.ID, hash [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[session]
	if s == nil {
		return
	}
	size := s.needs[hash]
	if len(s.fetched) >= maxFetched {
		clear(s.fetched)
	}
	s.fetched[hash] = size
	l.settle(s, hash)
}

// settle ends one request. l.mu is held.
func (l *loads) settle(s *loading, hash [32]byte) {
	l.count(s, -s.needs[hash])
	delete(s.needs, hash)
	l.free.Broadcast()
}

// next waits for a function that may be read, and takes room for the largest there can be.
// One owner's share is his own matter: others pass him. Nobody passes a session that waits
// for the room of all, or large functions would wait for ever.
func (l *loads) next() (*loading, [32]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed {
		for i, s := range l.turn {
			if s.reading || s.taken > loadAhead || s.owner != "" && l.owners[s.owner]+l.largest > l.share {
				continue
			}
			if l.used+l.largest > l.room {
				break
			}
			hash := s.waiting[0]
			s.waiting = s.waiting[1:]
			l.turn = append(l.turn[:i], l.turn[i+1:]...)
			if len(s.waiting) > 0 {
				l.turn = append(l.turn, s) // behind all others
			}
			s.reading, s.looked = true, false
			s.needs[hash] = l.largest
			l.count(s, l.largest)
			return s, hash, true
		}
		l.free.Wait()
	}
	return nil, [32]byte{}, false
}

// run reads until close; ctx bounds the reading itself. Several may run.
func (l *loads) run(ctx context.Context) {
	for {
		s, hash, ok := l.next()
		if !ok {
			return
		}
		b, err := l.read(ctx, hash)
		l.mu.Lock()
		s.reading = false
		live := !s.gone
		if live {
			l.count(s, int64(len(b))-s.needs[hash])
			s.needs[hash] = int64(len(b))
			if err != nil && task.CodeOf(err) != task.CodeNotFound {
				l.settle(s, hash) // there is no answer
			}
			l.free.Broadcast()
		}
		l.mu.Unlock()
		if live {
			l.answer(loaded{session: s.session, hash: hash, bytes: b, err: err})
		}
	}
}

// close lets run return, with what waits unread.
func (l *loads) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.free.Broadcast()
}

// stalled returns the links that hold room, of which nothing was written since the last
// look, while others wait for room.
func (l *loads) stalled() (out []link.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waits := false
	for _, s := range l.turn {
		waits = waits || !s.reading && s.taken <= loadAhead
	}
	for _, s := range l.sessions {
		g, ok := s.conn.(link.Gauge)
		if !ok || !waits || s.taken == 0 || s.reading {
			s.looked = false
			continue
		}
		sent := g.Sent()
		if s.looked && s.seen == sent {
			out = append(out, s.conn)
		}
		s.looked, s.seen = true, sent
	}
	return out
}

// errStalled is why a link ends whose peer holds room for functions and takes none.
var errStalled = errors.New("the worker does not read a function that it requested, and other workers wait for theirs")

// watch ends stalled links until ctx ends.
func (l *loads) watch(ctx context.Context, end func(link.Conn)) {
	ticker := time.NewTicker(loadStall)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for _, conn := range l.stalled() {
				end(conn)
			}
		case <-ctx.Done():
			return
		}
	}
}

// held returns the bytes of functions that are on their way to workers.
func (l *loads) held() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}
