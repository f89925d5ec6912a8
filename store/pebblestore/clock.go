package pebblestore

import (
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
	// held is by how much finished tasks seem older than they are since the wall clock
	// went forward, until holdEnds: by then those that it concerns have been kept for the
	// whole retention.
	held     time.Duration
	holdEnds time.Time
	// delaysMoved: the records of delayed tasks on disk lag behind those in memory.
	// rewound: finished tasks may stand before the place where the last removal ended.
	delaysMoved, rewound bool
}

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
	s.clock.at = s.clock.at.Add(step)
	s.now = s.now.Add(step)
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
	if step > 0 {
		s.clock.held += step
		s.clock.holdEnds = s.now.Add(s.opts.Retention)
		return
	}
	s.clock.rewound = true
}

// held returns by how much the retention lags behind at.
func (s *Store) held(at time.Time) time.Duration {
	if s.clock.held > 0 && at.After(s.clock.holdEnds) {
		s.clock.held = 0
	}
	return s.clock.held
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
