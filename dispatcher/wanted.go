package dispatcher

import (
	"cmp"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// A session with an idle slot says so, and offers that wait at others are asked back for
// it, here and at the other dispatchers of the store. Who serves many queues and runtimes
// must not make that dear: a word is one entry however many they are, there are at most
// maxWanted of them, and between two batches of effects the engine looks at maxLooks
// sessions for them; what is left over is looked at a moment later.
const (
	// wantEvery is the shortest time between two words of one session that it has an
	// idle slot, and between two recalls of one session.
	wantEvery = 50 * time.Millisecond
	// wantLasts is how long a word of an idle slot holds for offers that the engine does
	// not know of yet, or may not ask back yet.
	wantLasts = 2 * wantEvery
	// maxWanted bounds the words that are remembered.
	maxWanted = 4096
	// maxLooks bounds the work for them, in comparisons: about a millisecond.
	maxLooks = 1 << 14
	// lookAgain is when work goes on that was left over.
	lookAgain = time.Millisecond
	// maxRings bounds the pairs of queue and runtime that one word of a session tells the
	// other dispatchers; the next word goes on with the others.
	maxRings = 256
)

// wants are words of idle slots that could not be followed at once.
type wants struct {
	words map[wantKey]*wanted
	// queue lists them in the order in which they are looked at.
	queue []wantKey
	// crowded lists the crews with sessions that have more claims than slots: only those have
	// something to give. changed says that one of them has had another claim since the words were looked at.
	crowded chain[*crew]
	changed bool
	// spent is the work since the last batch of effects, total that of all time.
	spent, total int
	// next is when to look again though nothing happens, zero for never.
	next time.Time
}

// wantKey names a word. A session here wants what it serves, and leaves queue and runtime
// empty; a dispatcher elsewhere names both.
type wantKey struct {
	// from is the session here, or the dispatcher elsewhere, that has the slots.
	from           task.ID
	queue, runtime string
}

// wanted is what is left of one word of idle slots.
type wanted struct {
	n     int
	until time.Time
}

// spend takes n units of work and reports whether there were any left.
func (w *wants) spend(n int) bool {
	if w.spent >= maxLooks {
		return false
	}
	w.spent += n
	w.total += n
	return true
}

// later has the engine look again at that time.
func (w *wants) later(at time.Time) {
	if w.next.IsZero() || at.Before(w.next) {
		w.next = at
	}
}

// follow keeps the lists of crowded sessions after a change of claims or slots.
func (w *wants) follow(s *session) {
	crowded := len(s.held) > s.slots
	w.changed = w.changed || crowded
	if crowded == s.crowded {
		return
	}
	c := s.crew
	i := c.crowdedAt(s)
	if s.crowded = crowded; !crowded {
		w.uncrowd(c, i)
		return
	}
	if len(c.crowded) == 0 {
		w.crowded.add(&c.crowding)
	}
	c.crowded = slices.Insert(c.crowded, i, s)
}

// crowdedAt is the place of a session among the crowded ones, or where it belongs.
func (c *crew) crowdedAt(s *session) int {
	i, _ := slices.BinarySearchFunc(c.crowded, s, func(a, b *session) int { return cmp.Compare(a.seq, b.seq) })
	return i
}

// uncrowd takes the session at place i off the crowded ones of a crew.
func (w *wants) uncrowd(c *crew, i int) {
	if c.crowded = slices.Delete(c.crowded, i, i+1); len(c.crowded) == 0 {
		c.crowding.leave()
	}
}

// drop forgets a session that ends.
func (w *wants) drop(s *session) {
	if s.crowded {
		w.uncrowd(s.crew, s.crew.crowdedAt(s))
		s.crowded = false
	}
}

// unsay takes the word of a session back that asks the store again.
func (w *wants) unsay(s *session) {
	if s.idle || len(w.words) == 0 {
		return
	}
	if word := w.words[wantKey{from: s.id}]; word != nil {
		word.n = 0 // remember forgets it
	}
}

// want says that s has idle slots and found nothing: offers that wait at other
// workers are asked back, here and at the other dispatchers of the store.
func (e *Engine) want(s *session) {
	slots := s.credit().free
	s.wanting = slots > 0
	if slots == 0 || e.now.Sub(s.wantedAt) < wantEvery {
		return
	}
	s.wantedAt = e.now
	e.recall(wantKey{from: s.id}, slots)
	queues, runtimes := s.hello.Queues, s.hello.Runtimes
	pairs := len(queues) * len(runtimes)
	for range min(pairs-s.rung, maxRings) {
		e.out.rings = append(e.out.rings, store.Signal{
			Kind: store.Wanted, Queue: queues[s.rung/len(runtimes)], Runtime: runtimes[s.rung%len(runtimes)], From: e.cfg.ID, Count: slots,
		})
		s.rung++
	}
	if s.rung >= pairs {
		s.rung = 0
	}
	s.wanting = s.rung > 0
}

// recall asks for up to n offers back that were not started. What cannot be had now is
// remembered for a moment: an offer may be on its way here while the word of the slot
// that it passed over has arrived.
func (e *Engine) recall(key wantKey, n int) {
	ws := &e.wants
	w := ws.words[key]
	known := w != nil
	if !known {
		w = &wanted{}
	}
	w.n, w.until = n, e.now.Add(wantLasts)
	e.ask(key, w)
	if known || w.n <= 0 || len(ws.words) >= maxWanted {
		return // remember drops what is done
	}
	if ws.words == nil {
		ws.words = map[wantKey]*wanted{}
	}
	ws.words[key] = w
	ws.queue = append(ws.queue, key)
	ws.later(w.until.Add(1))
}

// ask sends recalls for w and takes what they ask for off it.
func (e *Engine) ask(key wantKey, w *wanted) {
	ws := &e.wants
	from := e.sessions[key.from]
	for p := ws.crowded.first; p != nil; p = p.next {
		c := p.of
		if !ws.spend(1) {
			ws.later(e.now.Add(lookAgain))
			return
		}
		if !e.concerns(c, from, key) {
			continue
		}
		for _, s := range c.crowded {
			if w.n <= 0 {
				return
			}
			if !ws.spend(1) {
				ws.later(e.now.Add(lookAgain))
				return
			}
			e.askBack(s, key, w)
		}
	}
}

// concerns reports whether sessions of a crew may hold what a word is about.
func (e *Engine) concerns(c *crew, from *session, key wantKey) bool {
	if from == nil || from.crew == nil {
		return c.serves(key.queue, key.runtime)
	}
	o := from.crew
	if c != o {
		e.wants.spend(min(len(c.queues)+len(c.runtimes), len(o.queues)+len(o.runtimes)))
	}
	return c.shares(o)
}

// askBack sends one session a recall for w, if it has something to give and was not asked just now.
// What waits for a slot that is about to be filled is not asked back.
func (e *Engine) askBack(s *session, key wantKey, w *wanted) {
	k := min(w.n, len(s.held)-s.slots)
	if k <= 0 || s.id == key.from || s.state == lost {
		return
	}
	if again := s.recalledAt.Add(wantEvery); again.After(e.now) {
		e.wants.later(again)
		return
	}
	w.n -= k
	s.recalledAt = e.now
	s.owe(k)
	s.window.Close()
	e.touch(s)
	e.send(s, &link.Recall{N: k})
}

// remember follows words of idle slots that could not be followed before, and forgets
// those that are old, or of sessions that have no use for them any more.
func (e *Engine) remember() {
	ws := &e.wants
	if len(ws.queue) > 0 && !ws.changed && ws.next.After(e.now) {
		return // there is nothing more to be had than before
	}
	ws.next, ws.changed = time.Time{}, false
	keep := ws.queue[:0] // what is kept moves up in place
	for i, key := range ws.queue {
		if !ws.spend(1) {
			ws.later(e.now.Add(lookAgain))
			// Those that were not looked at come first the next time.
			ws.queue = slices.Concat(ws.queue[i:], keep)
			return
		}
		w := ws.words[key]
		s := e.sessions[key.from]
		here := key.queue == "" && key.runtime == ""
		if w.n > 0 && !w.until.Before(e.now) && (s == nil || s.idle) && (s != nil || !here) {
			if e.ask(key, w); w.n > 0 {
				keep = append(keep, key)
				ws.later(w.until.Add(1))
				continue
			}
		}
		delete(ws.words, key)
	}
	clear(ws.queue[len(keep):])
	ws.queue = keep
}
