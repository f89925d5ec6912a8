package check

import (
	"slices"

	"github.com/treadle-dev/treadle/chaos/history"
)

// early checks that no lease ends before its time: I9. A task is claimed anew when its
// holder said how it ended, when somebody cancelled it, or when nobody renewed the lease
// for three quarters of its length (it is counted from when a dispatcher heard the worker,
// which may be a while before the store is told).
//
// Where the end of a claim may be missing in the history nothing is said: a call that got
// no answer, a fault of another process than a worker. Tasks with a time limit have leases
// that are shorter.
func early(byTask map[string][]move, e *Evidence, f *Findings) {
	if e.Lease == 0 || e.MayLose {
		return
	}
	asked, keyOf := intents(e), keys(e)
	var doubts []span
	for _, x := range e.Faults {
		if len(x.Agents) == 0 {
			doubts = append(doubts, span{x.At, x.At})
		}
	}
	for i := range e.Store {
		if s := &e.Store[i]; s.Err != "" || s.Op == "resume" {
			doubts = append(doubts, span{s.Start, s.End})
		}
	}
	for id, list := range byTask {
		in, known := asked[keyOf[id]]
		if !known || in.cancelled || in.deadline || in.plan == history.Overruns {
			continue
		}
		for i := range list {
			m := &list[i]
			if m.op != "claim" {
				continue
			}
			last := renewedLast(list, m)
			if last == nil || m.end-last.start >= e.Lease.Nanoseconds()*3/4 {
				continue
			}
			settled := slices.ContainsFunc(list, func(o move) bool {
				return o.op == "settle" && recorded(&o) && o.item.Claim == last.item.Claim
			})
			if !settled && !slices.ContainsFunc(doubts, span{last.start, m.end}.meets) {
				f.failf("I9: task %s was claimed as epoch %d %d ms after the lease of epoch %d was renewed, and its worker had not let go",
					id, m.item.Epoch, (m.end-last.start)/1e6, last.item.Epoch)
			}
		}
	}
}

// renewedLast is the last renewal, by a worker that runs the task, of a claim before m.
func renewedLast(list []move, m *move) (last *move) {
	for i := range list {
		o := &list[i]
		if o.op == "renew" && recorded(o) && o.item.Outcome == "started" && o.item.Epoch < m.item.Epoch && o.end < m.start &&
			(last == nil || o.start > last.start) {
			last = o
		}
	}
	return last
}

// span is a time with both its ends.
type span struct{ from, to int64 }

func (s span) meets(o span) bool { return s.from <= o.to && o.from <= s.to }
