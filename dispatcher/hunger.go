package dispatcher

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/treadle-dev/treadle/store"
)

// What the store answers to one session holds for all that serve the same queues and
// runtimes. So these form a crew, and the cost of a signal is bounded by wakeAtMost for a crew, not by
// how many of it are idle: a few ask, and while they get something, a few more are woken. With 10,000
// idle workers a task cost as many claim requests as there were workers.
const (
	// wakeAtMost is how many sessions of a crew a signal wakes at once. A burst for thousands of
	// idle workers reaches all of them in a few rounds, as each claim that brings something wakes as many again.
	wakeAtMost = 16
	// pollAtMost bounds the sessions that are woken by the poll between two batches of effects.
	pollAtMost = 1024
	// fewLanes is up to how many pairs of queue and runtime a crew is listed by each of them.
	fewLanes = 64
)

// laneKey is a queue and a runtime: what a Ready signal names.
type laneKey struct{ queue, runtime string }

// crew is the sessions whose Hello named the same queues and runtimes.
type crew struct {
	key              [sha256.Size]byte
	queues, runtimes []string // in the order of its first Hello
	hasQueue, has    map[string]bool
	sessions         int

	// free and busy are the idle sessions that could be given work at once: those with an empty slot, and
	// those with room in the window alone. Who is idle for longest comes first.
	free, busy chain[*session]
	// crowded lists those with more claims than slots, in the order in which they opened.
	crowded []*session
	// listed is its place among all crews, crowding among those with crowded sessions.
	listed, crowding place[*crew]
	// rings counts the signals that there is work: a claim that was made before the last one says
	// nothing. calls counts the polls as well: a session that dozed off before the last one looks again.
	rings, calls uint64
	// more says that the last signal woke only a part of the idle ones.
	more bool
}

// lanes calls f for each pair of queue and runtime.
func (c *crew) lanes(f func(laneKey)) {
	for _, q := range c.queues {
		for _, r := range c.runtimes {
			f(laneKey{q, r})
		}
	}
}

func (c *crew) serves(queue, runtime string) bool { return c.hasQueue[queue] && c.has[runtime] }

func (c *crew) idle() int { return c.free.n + c.busy.n }

// shares reports whether there may be tasks that sessions of both crews could take.
func (c *crew) shares(o *crew) bool {
	if c == o {
		return true
	}
	if len(c.queues)+len(c.runtimes) > len(o.queues)+len(o.runtimes) {
		c, o = o, c
	}
	return slices.ContainsFunc(c.queues, func(q string) bool { return o.hasQueue[q] }) &&
		slices.ContainsFunc(c.runtimes, func(r string) bool { return o.has[r] })
}

// crews finds crews by what they serve.
type crews struct {
	byKey map[[sha256.Size]byte]*crew
	// byLane lists those with few lanes under each; wide are the others, which are asked one by one.
	byLane map[laneKey][]*crew
	wide   []*crew
	// all lists them for the poll, in the order in which they came to be.
	all chain[*crew]
	// polling is the next one for the poll to reach, nil when it is through.
	polling *place[*crew]
}

func newCrews() crews {
	return crews{byKey: map[[sha256.Size]byte]*crew{}, byLane: map[laneKey][]*crew{}}
}

func crewKey(queues, runtimes []string) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, list := range [][]string{queues, runtimes} {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(list)))
		h.Write(n[:])
		for _, name := range slices.Sorted(slices.Values(list)) {
			binary.LittleEndian.PutUint64(n[:], uint64(len(name)))
			h.Write(n[:])
			h.Write([]byte(name))
		}
	}
	h.Sum(key[:0])
	return key
}

// join returns the crew of what a session serves, one session larger.
func (cs *crews) join(queues, runtimes []string) *crew {
	key := crewKey(queues, runtimes)
	c := cs.byKey[key]
	if c == nil {
		c = &crew{key: key, queues: queues, runtimes: runtimes, hasQueue: set(queues), has: set(runtimes)}
		cs.byKey[key] = c
		c.listed.of, c.crowding.of = c, c
		cs.all.add(&c.listed)
		if c.few() {
			c.lanes(func(k laneKey) { cs.byLane[k] = append(cs.byLane[k], c) })
		} else {
			cs.wide = append(cs.wide, c)
		}
	}
	c.sessions++
	return c
}

func (c *crew) few() bool { return len(c.queues)*len(c.runtimes) <= fewLanes }

// leave takes a session off its crew, which ends with its last one.
func (cs *crews) leave(c *crew) {
	if c.sessions--; c.sessions > 0 {
		return
	}
	without := func(list []*crew) []*crew {
		return slices.DeleteFunc(list, func(o *crew) bool { return o == c })
	}
	delete(cs.byKey, c.key)
	if cs.polling == &c.listed {
		cs.polling = c.listed.next
	}
	c.listed.leave()
	if !c.few() {
		cs.wide = without(cs.wide)
		return
	}
	c.lanes(func(k laneKey) {
		if cs.byLane[k] = without(cs.byLane[k]); len(cs.byLane[k]) == 0 {
			delete(cs.byLane, k)
		}
	})
}

// ready takes the bell's word that there is work in a lane.
func (e *Engine) ready(sig store.Signal) {
	for _, c := range e.crews.byLane[laneKey{sig.Queue, sig.Runtime}] {
		e.ring(c)
	}
	for _, c := range e.crews.wide {
		if c.serves(sig.Queue, sig.Runtime) {
			e.ring(c)
		}
	}
}

func (e *Engine) ring(c *crew) {
	c.rings++
	c.calls++
	e.wake(c, wakeAtMost)
}

// goOn wakes more of a crew of which a signal woke only a part, after a claim for s. One that brought
// all that it asked for wakes as many again. One that brought less found the end, or a task that was too
// large to go along: one more session finds out which. One that brought nothing ends it.
func (e *Engine) goOn(s *session, got, most int) {
	switch c := s.crew; {
	case !c.more:
	case got >= most:
		e.wake(c, wakeAtMost)
	case got > 0:
		e.wake(c, 1)
	case s.idle:
		c.more = false
	}
}

// wake has up to so many idle sessions of a crew ask the store, those with an empty slot first. It
// returns how many.
func (e *Engine) wake(c *crew, most int) (n int) {
	for _, l := range [...]*chain[*session]{&c.free, &c.busy} {
		for ; n < most && l.first != nil; n++ {
			e.rouse(l.first.of)
		}
	}
	c.more = c.idle() > 0
	return n
}

// poll wakes sessions of every crew though nobody rang: the net under the bell.
func (e *Engine) poll() {
	cs := &e.crews
	if !e.pollAt.After(e.now) {
		e.pollAt = e.now.Add(e.cfg.PollEvery)
		cs.polling = cs.all.first
	}
	for n := 0; cs.polling != nil && n < pollAtMost; {
		c := cs.polling.of
		cs.polling = cs.polling.next
		e.looked++
		c.calls++
		n += 1 + e.wake(c, wakeAtMost)
	}
}

// rouse has an idle session ask the store again.
func (e *Engine) rouse(s *session) {
	s.idling.leave()
	s.idle = false
	e.touch(s)
}

// doze notes that the store has nothing for a session, by an answer to what was asked before
// the present state of the bell.
func (s *session) doze() {
	s.idle, s.dozedAt = true, s.crew.calls
}

// touch has the next batch of effects look at a session. Nothing else looks at sessions:
// what an event does not touch cannot have changed.
func (e *Engine) touch(s *session) {
	if !s.touched {
		s.touched = true
		e.touched = append(e.touched, s)
	}
}

// heed wakes a touched session that the bell passed over while it could not be given
// anything: it was full or gated, and stood in no list.
func (s *session) heed() {
	if s.idle && s.idling.in == nil && s.dozedAt != s.crew.calls {
		s.idle = false
	}
}

// relist puts a touched session into the list of idle ones in which it belongs.
func (s *session) relist() {
	var want *chain[*session]
	if s.idle {
		switch c := s.credit(); {
		case c.free > 0 || c.grow > 0:
			want = &s.crew.free
		case c.ahead > 0:
			want = &s.crew.busy
		}
	}
	if want != s.idling.in {
		s.idling.leave()
		if want != nil {
			want.add(&s.idling)
		}
	}
}
