package dispatcher

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// deadlines is the one heap of what falls due at sessions. Each session is in it at most once, at a
// time that is never later than its real one ([Engine.dueAt]). Most deadlines only move away, a heartbeat at a
// time, so the place in the heap is corrected when its time comes and not before: a beat costs nothing here,
// however many sessions there are.
type deadlines []*session

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].dueAt.Before(d[j].dueAt) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i+1, j+1
}

func (d *deadlines) Push(x any) {
	s := x.(*session)
	*d = append(*d, s)
	s.place = len(*d)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	s := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	s.place = 0
	return s
}

// set puts a session where at belongs; the zero time takes it out.
func (d *deadlines) set(s *session, at time.Time) {
	switch {
	case at.IsZero():
		d.drop(s)
	case s.place == 0:
		s.dueAt = at
		heap.Push(d, s)
	default:
		s.dueAt = at
		heap.Fix(d, s.place-1)
	}
}

// drop takes a session out.
func (d *deadlines) drop(s *session) {
	if s.place != 0 {
		heap.Remove(d, s.place-1)
	}
}

// duesAtMost bounds the sessions that are looked at for what is due between two batches of effects: many
// that attached at once must not hold up the frames of others. The rest is due at once again.
const duesAtMost = 256

// first returns a time that is not later than the earliest deadline, zero when there is none. To find out
// whether it moved away is for [deadlines.past], when it comes.
func (d deadlines) first() time.Time {
	if len(d) == 0 {
		return time.Time{}
	}
	return d[0].dueAt
}

// past takes out the sessions whose deadline has come, in the order in which they opened. due tells the real
// one of a session.
func (d *deadlines) past(now time.Time, due func(*session) time.Time) (out []*session) {
	for n := 0; n < duesAtMost && len(*d) > 0; n++ {
		s := (*d)[0]
		if s.dueAt.After(now) {
			break
		}
		if at := due(s); at.IsZero() || at.After(now) {
			d.set(s, at)
			continue
		}
		d.drop(s)
		out = append(out, s)
	}
	bySeq(out)
	return out
}

func bySeq(sessions []*session) {
	slices.SortFunc(sessions, func(a, b *session) int { return cmp.Compare(a.seq, b.seq) })
}
