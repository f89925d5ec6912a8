package pebblestore

import (
	"slices"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// maxDrift is how far store time and the wall clock may be apart before store time
// follows in one step. It is longer than what slewing gathers between two looks and
// shorter than anything that a user would see in a record.
const maxDrift = time.Second

// clock makes store time of the readings that callers bring. While the process lives,
// store time passes as the monotonic clock does: a wall clock that is set, or a machine
// that was suspended, neither ends a lease nor keeps a delay from ending. When the wall
// clock has stepped, store time takes the new wall time, so that records show what
// clocks on the wall show, and everything that has a length keeps what is left of it.
//
// It is guarded by Store.mu.
type clock struct {
	// anchor is a reading with its monotonic part, at is store time at that moment.
	anchor, at time.Time
	// began is store time after the last step, zero when there was none since the store was
	// opened: until then the wall clock is believed. stretches are the times before it,
	// oldest first.
	began     time.Time
	stretches []stretch
	// delaysMoved: the records of delayed tasks on disk lag behind those in memory.
	// rewound: finished tasks may stand before the place where the last removal ended.
	delaysMoved, rewound bool
}

// stretch is a time in which the wall clock was not set: its first and last moment, as
// records show them.
type stretch struct {
	from, to time.Time
	// least is the earliest beginning of this one and of those that were forgotten for it.
	least time.Time
}

// maxStretches bounds what is remembered of a clock that is set again and again. What is
// forgotten counts for nothing, so that finished tasks are kept longer.
const maxStretches = 256

// moment is one caller's now: what the caller computed from its own clock is brought
// into store time by of.
type moment struct{ caller, at time.Time }

// of brings a moment near the caller's now into store time. The difference of two
// readings of one process goes by the monotonic clock, so a step between them is no harm.
func (m moment) of(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return m.at.Add(t.Sub(m.caller))
}

// storeTime brings a caller's now into store time. Two calls that overtake each other
// are put right: apart from a step, store time never goes back.
func (s *Store) storeTime(now time.Time) moment {
	at := s.clock.at.Add(now.Sub(s.clock.anchor))
	if step := plain(now).Sub(at); step > maxDrift || step < -maxDrift {
		s.stepTime(step)
		at = at.Add(step)
	}
	if at.Before(s.now) {
		at = s.now
	}
	s.now = at
	return moment{caller: now, at: at}
}

// stepTime moves store time, and with it every lease and delay.
func (s *Store) stepTime(step time.Duration) {
	s.endStretch()
	s.clock.at = s.clock.at.Add(step)
	s.now = s.now.Add(step)
	s.clock.began = s.now
	say := s.log.Info
	if step > s.opts.Lease || step < -s.opts.Lease {
		say = s.log.Warn
	}
	say("the wall clock was set: store time follows it, leases, delays and retention keep their length", "step", step.String(), "now", s.now)
	for _, h := range []*timeHeap{&s.ix.leases, &s.ix.delayed} {
		for i := range h.items {
			it := &h.items[i]
			it.at += int64(step)
			if it.e.t != nil {
				it.e.t.Shift(step)
			}
		}
	}
	s.clock.delaysMoved = len(s.ix.delayed.items) > 0
	if step < 0 {
		s.clock.rewound = true
	}
}

// endStretch notes the time that a step ends.
func (s *Store) endStretch() {
	c := &s.clock
	c.stretches = append(c.stretches, stretch{from: c.began, to: s.now, least: c.began})
	if len(c.stretches) > maxStretches {
		// The oldest one stays: it says what was before all steps.
		c.stretches[2].least = earlier(c.stretches[2].least, c.stretches[1].least)
		c.stretches = slices.Delete(c.stretches, 1, 2)
	}
}

// ago returns the moment, as records show it, from which a length of time has passed until at,
// by the monotonic clock: what finished then or before is older. Records of two times may look
// alike after the wall clock was set back; then it is the earlier moment, and what finished under
// a clock that was ahead is kept longer by as much.
func (s *Store) ago(at time.Time, length time.Duration) time.Time {
	c := &s.clock
	since := at.Add(-length)
	if !since.Before(c.began) {
		return since
	}
	left, least := length-at.Sub(c.began), c.began
	for _, st := range slices.Backward(c.stretches) {
		if since = st.to.Add(-left); !since.Before(st.from) {
			break
		}
		left -= st.to.Sub(st.from)
		least = earlier(least, st.least)
	}
	return earlier(since, least.Add(-1))
}

// held returns by how much longer than by the wall clock finished tasks are kept at a moment.
func (s *Store) held(at time.Time) time.Duration {
	return at.Add(-s.opts.Retention).Sub(s.ago(at, s.opts.Retention))
}

// dueAt returns when a finished task is due for removal whose time would be over at t by the
// wall clock; it may be early.
func (s *Store) dueAt(t, now time.Time) time.Time {
	due := t.Add(s.held(now))
	if all := s.clock.began.Add(s.opts.Retention); all.After(now) && due.After(all) {
		// From then on records tell by themselves.
		due = later(all, t)
	}
	return due
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// undelay puts a record right that was read from disk after its delay was over: the disk
// may hold a moment from before a step.
func (s *Store) undelay(e *entry) {
	if late := e.t.NotBefore.Sub(s.now); e.where == whereReady && late > 0 {
		e.t.Shift(-late)
	}
}

// resave writes delayed tasks again whose delays a step has moved.
func (x *txn) resave() {
	for _, it := range x.s.ix.delayed.items {
		if !x.s.load(it.e) {
			return
		}
		it.e.t.Shift(time.Unix(0, it.at).Sub(it.e.t.NotBefore))
		x.touch(it.e)
		x.save(it.e, nil)
	}
}

// readClock reads the clock row; it is zero in a new store.
func (s *Store) readClock() (clockRow, error) {
	v, err := s.read(keyClock)
	if err != nil || v == nil {
		return clockRow{}, err
	}
	return decodeClockRow(v)
}

// recoverClock finds store time at open. A store that was written under a clock far
// ahead of this one goes back to this one; what is left of a delay is then what was left
// when the last change was written.
func (s *Store) recoverClock() (back time.Duration, err error) {
	const op = "open store"
	now := s.opts.Now()
	s.now = plain(now)
	s.clock = clock{anchor: now, at: s.now}
	row, err := s.readClock()
	if err != nil {
		return 0, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	s.seq, s.commits = row.seq, row.commits
	ahead := row.now.Sub(s.now)
	switch {
	case ahead > maxDrift:
		s.log.Warn("the clock was set back since the store was last written: store time follows it, leases and delays keep their length",
			"clock", s.now, "store_time", row.now)
		return ahead, nil
	case ahead > 0:
		s.now, s.clock.at = row.now, row.now
	}
	return 0, nil
}
