package dispatcher

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// laneKey is a queue and a runtime: what a Ready signal names.
type laneKey struct{ queue, runtime string }

// The classes of idle sessions, in the order in which they are woken.
const (
	// freeSlots: it has an empty slot, or may open one.
	freeSlots = iota
	// windowRoom: it has room in the window alone.
	windowRoom
	classes
)

// crew is the sessions whose Hello named the same queues and runtimes. What the store answers to one of
// them holds for all.
type crew struct {
	key              [sha256.Size]byte
	queues, runtimes []string // in the order of its first Hello
	hasQueue, has    map[string]bool
	sessions         int

	// idle are the idle sessions that could be given work at once, by class. Who is idle for longest
	// comes first.
	idle [classes]chain[*session]
	// bells are those of its lanes; a crew of many lanes has one of its own. seats are its places among
	// those that each bell wakes.
	bells []*laneBell
	seats [][classes]place[*crew]
	// polls counts how often the poll has reached it.
	polls uint64
	// crowded lists those with more claims than slots, in the order in which they opened.
	crowded []*session
	// listed is its place among all crews, wide among those of many lanes, crowding among those with
	// crowded sessions.
	listed, wide, crowding place[*crew]
}

// laneBell is what a signal rings that there is work in a lane: for all crews that serve it, as one
// signal must not wake more because the workers differ in other queues.
type laneBell struct {
	// rings counts the signals, crews those that hear them.
	rings uint64
	crews int
	// idle are the crews with idle sessions of each class.
	idle [classes]chain[*crew]
	// more says that the last signal woke only a part of the idle sessions.
	more bool
}

// serves reports whether the crew takes from a lane.
func (c *crew) serves(queue, runtime string) bool { return c.hasQueue[queue] && c.has[runtime] }

// rings counts the signals that there is work for the crew: a claim that was made before the last one
// says nothing.
func (c *crew) rings() (n uint64) {
	for _, b := range c.bells {
		n += b.rings
	}
	return n
}

// calls counts the polls as well: a session that dozed off before the last one looks again.
func (c *crew) calls() uint64 { return c.rings() + c.polls }

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

// list puts an idle session where its bells find it.
func (c *crew) list(s *session, class int) {
	c.idle[class].add(&s.idling)
	if c.idle[class].n > 1 {
		return // the bells have the crew
	}
	for i, b := range c.bells {
		b.idle[class].add(&c.seats[i][class])
	}
}

// unlist takes a session out of the idle ones, if it is one.
func (s *session) unlist() {
	l := s.idling.in
	if l == nil {
		return
	}
	if s.idling.leave(); l.n > 0 {
		return
	}
	class := freeSlots
	if l == &s.crew.idle[windowRoom] {
		class = windowRoom
	}
	for i := range s.crew.seats {
		s.crew.seats[i][class].leave()
	}
}

// fewLanes is up to how many pairs of queue and runtime a crew hears the bell of each.
const fewLanes = 64

// crews finds crews by what they serve.
type crews struct {
	byKey map[[sha256.Size]byte]*crew
	// byLane has the bells of the lanes that crews of few lanes serve; wide are the other crews, which
	// are asked one by one.
	byLane map[laneKey]*laneBell
	wide   chain[*crew]
	// all lists them for the poll, in the order in which they came to be.
	all chain[*crew]
	// polling is the next one for the poll to reach, nil when it is through.
	polling *place[*crew]
}

func newCrews() crews {
	return crews{byKey: map[[sha256.Size]byte]*crew{}, byLane: map[laneKey]*laneBell{}}
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
		cs.enter(c)
	}
	c.sessions++
	return c
}

// enter lists a new crew.
func (cs *crews) enter(c *crew) {
	c.listed.of, c.wide.of, c.crowding.of = c, c, c
	cs.all.add(&c.listed)
	if len(c.queues)*len(c.runtimes) > fewLanes {
		cs.wide.add(&c.wide)
		c.bells = []*laneBell{{crews: 1}}
	} else {
		for _, q := range c.queues {
			for _, r := range c.runtimes {
				k := laneKey{q, r}
				b := cs.byLane[k]
				if b == nil {
					b = &laneBell{}
					cs.byLane[k] = b
				}
				b.crews++
				c.bells = append(c.bells, b)
			}
		}
	}
	c.seats = make([][classes]place[*crew], len(c.bells))
	for i := range c.seats {
		for class := range c.seats[i] {
			c.seats[i][class].of = c
		}
	}
}

// leave takes a session, which is in no list, off its crew, which ends with its last one.
func (cs *crews) leave(c *crew) {
	if c.sessions--; c.sessions > 0 {
		return
	}
	delete(cs.byKey, c.key)
	if cs.polling == &c.listed {
		cs.polling = c.listed.next
	}
	c.listed.leave()
	if c.wide.in != nil {
		c.wide.leave()
		return
	}
	i := 0
	for _, q := range c.queues {
		for _, r := range c.runtimes {
			b := c.bells[i]
			i++
			if b.crews--; b.crews == 0 {
				delete(cs.byLane, laneKey{q, r})
			}
		}
	}
}
