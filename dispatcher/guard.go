package dispatcher

import (
	"errors"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// What a session may say that nobody asked for, how often a worker may say Hello, and what
// becomes of one that gives back what it is offered. Honest workers stay far below these
// numbers: they report each claim once, and again after a reconnect, dial again after
// pauses of up to a second, and return offers when they are asked, drain, or have no slot.
const (
	// spareBase is what a session may say about claims that it does not hold, beside what it
	// held at Hello and has room for; spareRate is what it may say again each second.
	spareBase, spareRate = 256, 16
	// helloBurst is how many sessions one worker may open in a row, helloRate how many each
	// second after that.
	helloBurst, helloRate = 16, 2
	// doorFirst is the first pause of a worker that did too much of either; each one that
	// follows is twice as long, up to half of a lease: it must not lose what it holds.
	doorFirst = 250 * time.Millisecond
	// maxDoors bounds the workers that are remembered.
	maxDoors = 4096
	// pauseFirst and pauseLast are for how long a session gets no work whose offers come
	// back unasked; each pause is twice as long as the one before.
	pauseFirst, pauseLast = 50 * time.Millisecond, 5 * time.Second
	// noteEvery is the shortest time between two lines of the log on the same cause.
	noteEvery = 5 * time.Second
)

// bucket is a store of permissions that fills by itself.
type bucket struct {
	n  float64
	at time.Time
}

func (b *bucket) fill(now time.Time, n float64) { b.n, b.at = n, now }

// take uses one permission up. rate is what is added each second while there are fewer
// than burst.
func (b *bucket) take(now time.Time, rate, burst float64) bool { return b.takeN(now, 1, rate, burst) }

// takeN uses n permissions up, or none where there are fewer.
func (b *bucket) takeN(now time.Time, n, rate, burst float64) bool {
	if b.n < burst {
		b.n = min(burst, b.n+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.n < n {
		return false
	}
	b.n -= n
	return true
}

// spareRoom is what a session may say about claims that it does not hold.
func (s *session) spareRoom() float64 { return float64(spareBase + 2*s.maxSlots) }

// unasked takes a word about a claim that the session does not hold: it was settled, or
// taken away, before its worker came back. One that says more of them than it can have
// is sent away for a while, and false is returned.
func (e *Engine) unasked(s *session) bool {
	if s.spare.take(e.now, spareRate, s.spareRoom()) {
		return true
	}
	d := e.doors.of(s.hello.Worker, e.now)
	wait := d.shut(e.now, e.doorLast())
	reason := fmt.Sprintf("the worker keeps reporting claims that it does not hold; it may reconnect in %s", wait)
	e.note(s, "session refused", errors.New(reason), len(s.held))
	e.dismiss(s, reason)
	return false
}

// doors are how the workers knocked lately, by their ids.
type doors struct {
	byWorker map[string]*door
	order    []string
}

type door struct {
	hellos bucket
	pause  time.Duration
	until  time.Time
	// refused counts the Hellos since the worker was told to wait.
	refused int
}

// of returns the door of a worker. The oldest ones are forgotten.
func (ds *doors) of(worker string, now time.Time) *door {
	if d := ds.byWorker[worker]; d != nil {
		return d
	}
	if ds.byWorker == nil {
		ds.byWorker = map[string]*door{}
	}
	for len(ds.order) > 0 && (len(ds.order) >= maxDoors || ds.byWorker[ds.order[0]].calm(now)) {
		delete(ds.byWorker, ds.order[0])
		ds.order = ds.order[1:]
	}
	d := &door{}
	d.hellos.fill(now, helloBurst)
	ds.byWorker[worker] = d
	ds.order = append(ds.order, worker)
	return d
}

// calm says that nothing is left of what a worker did.
func (d *door) calm(now time.Time) bool {
	return !d.until.After(now) && d.hellos.n+helloRate*now.Sub(d.hellos.at).Seconds() >= helloBurst
}

// shut keeps a worker out for longer than the last time, and returns for how long.
func (d *door) shut(now time.Time, last time.Duration) time.Duration {
	d.pause = min(max(2*d.pause, doorFirst), last)
	d.until = now.Add(d.pause)
	d.refused = 0
	// After the pause it is heard once.
	d.hellos.fill(d.until, 1)
	return d.pause
}

func (e *Engine) doorLast() time.Duration { return e.cfg.Lease / 2 }

// admit lets a worker open a session, unless it has opened too many lately.
func (e *Engine) admit(s *session, worker string) bool {
	d := e.doors.of(worker, e.now)
	wait := d.until.Sub(e.now)
	if wait <= 0 {
		if d.calm(e.now) {
			d.pause = 0
		}
		if d.hellos.take(e.now, helloRate, helloBurst) {
			return true
		}
		before := d.refused
		wait = d.shut(e.now, e.doorLast())
		e.note(s, "worker opens too many sessions and has to wait", fmt.Errorf(
			"worker %q opened more than %d sessions at once and %d a second; it may reconnect in %s; %d were refused since the last message",
			worker, helloBurst, helloRate, wait, before), 0)
	}
	d.refused++
	e.dismiss(s, fmt.Sprintf("worker %q opens too many sessions: it may reconnect in %s", worker, wait))
	return false
}

// readmit takes a Hello back that came to nothing through no fault of the worker.
func (e *Engine) readmit(worker string) {
	d := e.doors.of(worker, e.now)
	d.hellos.n = min(d.hellos.n+1, helloBurst)
}

// cameBack says whether an attempt or an offer ended because its worker gave it back.
func cameBack(end task.End) bool { return end == task.EndReturned || end == task.EndCancelled }

// returning counts the claims of the session that come back by these reports.
func (s *session) returning(items []link.Report) (n int) {
	for i := range items {
		if _, holds := s.held[items[i].Token]; holds && cameBack(items[i].Outcome.End) {
			n++
		}
	}
	return n
}

// returned takes an offer back and reports whether nobody asked for it. A session that
// gives back what it is offered gets no more for a while. busy says that what it keeps
// fills its slots: what waits behind attempts longer than expected comes back by itself,
// and makes no room for more.
func (e *Engine) returned(s *session, busy bool) bool {
	if s.owed > 0 {
		s.owed--
		return false
	}
	if s.state != active || busy {
		return false
	}
	s.returned++
	if s.paused {
		return true // sent before the pause
	}
	s.pause = min(max(2*s.pause, pauseFirst), pauseLast)
	s.paused, s.pausedUntil = true, e.now.Add(s.pause)
	if s.notedAt.IsZero() || e.now.Sub(s.notedAt) >= noteEvery {
		s.notedAt = e.now
		e.note(s, "worker returns tasks that nobody recalled: it gets no new work for a while", fmt.Errorf(
			"%d tasks returned; paused for %s", s.returned, s.pause), len(s.held))
		s.returned = 0
	}
	return true
}

// relax shortens the next pause of a session that does what it is offered.
func (s *session) relax() {
	if s.pause /= 2; s.pause < pauseFirst {
		s.pause = 0
	}
}
