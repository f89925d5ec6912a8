package dispatcher

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// The dispatchers of a store tell each other on its bell how many workers they have.
// Who has too many asks some of its own to go elsewhere: a few at a time, only after the
// surplus was seen twice, and nobody twice within a while, so that nothing flaps.
const (
	// settledLooks is how often in a row a surplus must be seen. Between two moves every
	// dispatcher has rung again, so no worker under way is counted nowhere.
	settledLooks = 2
	// maxMoves bounds the workers that are asked to move at a time.
	maxMoves = 16
	// heardFor is how many periods a dispatcher that is not heard again is counted.
	heardFor = 4
	// moveAgain is the shortest time between two requests to one worker: it may have no
	// way to where there is room.
	moveAgain = 5 * time.Minute
	// mayMoveLooks bounds the sessions that are looked at to find those that are asked, from the newest on.
	// The bound is met only where that many are all busy; then the least busy one of them is as good as any.
	mayMoveLooks = 1024
)

// balance is what an engine knows of the other dispatchers on its store.
type balance struct {
	peers map[attendance]peer
	// at is when the own count is rung next; looks is how often in a row too many workers
	// of a mode were here.
	at    time.Time
	looks map[link.Mode]int
	// asked are the workers that were asked to move less than moveAgain ago, askedFirst the same in the
	// order in which they were asked, and when.
	asked      map[string]bool
	askedFirst []asked
}

// asked is a worker that was asked to move.
type asked struct {
	worker string
	at     time.Time
}

// attendance names a dispatcher and a mode of workers that it takes.
type attendance struct {
	dispatcher task.ID
	mode       link.Mode
}

// peer is the last that was heard of an attendance.
type peer struct {
	workers int
	heardAt time.Time
}

func newBalance() balance {
	return balance{peers: map[attendance]peer{}, looks: map[link.Mode]int{}, asked: map[string]bool{}}
}

// attending takes the word of another dispatcher.
func (e *Engine) attending(sig store.Signal) {
	key := attendance{sig.From, link.Mode(sig.Runtime)}
	switch {
	case sig.From == e.cfg.ID:
	case sig.Count < 0:
		delete(e.balance.peers, key)
	default:
		e.balance.peers[key] = peer{workers: sig.Count, heardAt: e.now}
	}
}

// level rings how many workers are here and, where these are too many, asks some to go.
func (e *Engine) level() {
	b := &e.balance
	b.at = e.now.Add(time.Duration(float64(e.cfg.MoveEvery) * (0.75 + e.cfg.Jitter()/2)))
	for key, p := range b.peers {
		if e.now.Sub(p.heardAt) > heardFor*e.cfg.MoveEvery {
			delete(b.peers, key)
		}
	}
	for len(b.askedFirst) > 0 && e.now.Sub(b.askedFirst[0].at) >= moveAgain {
		worker := b.askedFirst[0].worker
		b.askedFirst = b.askedFirst[1:]
		delete(b.asked, worker)
		for _, s := range e.byWorker[worker] {
			e.mayMove(s)
		}
	}
	for _, mode := range e.cfg.Modes {
		n := e.attached[mode]
		e.out.rings = append(e.out.rings, e.attendingHere(mode, n))
		surplus := e.tooMany(mode, n)
		if surplus == 0 {
			b.looks[mode] = 0
			continue
		}
		if b.looks[mode]++; b.looks[mode] >= settledLooks {
			b.looks[mode] = 0
			e.sendAway(mode, surplus)
		}
	}
}

func (e *Engine) attendingHere(mode link.Mode, n int) store.Signal {
	return store.Signal{Kind: store.Attending, Runtime: string(mode), From: e.cfg.ID, Count: n}
}

// tooMany is how many of n workers should go now. What is above a fair share goes by
// quarters. When no dispatcher is above it, one worker of the fullest goes, if the emptiest
// has at least two fewer: of the fullest ones that with the smallest id lets it go.
func (e *Engine) tooMany(mode link.Mode, n int) int {
	all, dispatchers, least, fullest := n, 1, n, true
	for key, p := range e.balance.peers {
		if key.mode != mode {
			continue
		}
		dispatchers++
		all += p.workers
		least = min(least, p.workers)
		if p.workers > n || p.workers == n && slices.Compare(key.dispatcher[:], e.cfg.ID[:]) < 0 {
			fullest = false
		}
	}
	fair := (all + dispatchers - 1) / dispatchers
	switch {
	case n > fair:
		return min((n-fair+3)/4, maxMoves)
	case fullest && n-least >= 2:
		return 1
	}
	return 0
}

// mayMove lists a session among those that may be asked to move, if it is one.
func (e *Engine) mayMove(s *session) {
	if !s.stays() || !s.hello.Moves || e.balance.asked[s.hello.Worker] || s.movable.in != nil {
		return
	}
	c := e.movable[s.mode]
	if c == nil {
		c = &chain[*session]{}
		e.movable[s.mode] = c
	}
	c.add(&s.movable)
}

// sendAway asks up to n workers to go elsewhere: those first that hold least, and of
// these the ones that came last.
func (e *Engine) sendAway(mode link.Mode, n int) {
	c := e.movable[mode]
	if c == nil {
		return
	}
	var able []*session
	idle := 0 // nobody holds less
	for p, looks := c.last, 0; p != nil && idle < n && looks < mayMoveLooks; p, looks = p.prev, looks+1 {
		e.looked++
		if s := p.of; s.state == active {
			able = append(able, s)
			if len(s.held) == 0 {
				idle++
			}
		}
	}
	slices.SortStableFunc(able, func(a, b *session) int { return cmp.Compare(len(a.held), len(b.held)) })
	for _, s := range able[:min(n, len(able))] {
		e.balance.asked[s.hello.Worker] = true
		e.balance.askedFirst = append(e.balance.askedFirst, asked{s.hello.Worker, e.now})
		s.movable.leave()
		e.send(s, &link.Move{Reason: "another dispatcher has fewer workers", Elsewhere: true})
		e.note(s, "worker asked to move to another dispatcher", nil, len(s.held))
	}
}

// age ends a stream that has stood for long, so that balancers, names and certificates
// are looked at again; who understands it opens the next one first.
func (e *Engine) age(s *session) {
	reason := fmt.Sprintf("the stream is %s old: reconnect; leases are kept", e.now.Sub(s.openedAt).Round(time.Second))
	if s.hello.Moves && !s.aged {
		s.aged, s.endsAt = true, e.now.Add(e.cfg.Lease)
		e.send(s, &link.Move{Reason: reason})
		return
	}
	e.note(s, "worker told to reconnect: its stream has reached --stream-age", nil, len(s.held))
	e.dismiss(s, reason)
}
