package check

import (
	"slices"

	"github.com/treadle-dev/treadle/chaos/history"
)

// Ends of attempts as the API spells them.
const (
	endRaised     = "raised"
	endTimedOut   = "timed_out"
	endExhausted  = "exhausted"
	endUnreadable = "unreadable"
	endCancelled  = "cancelled"
)

// intent is what the clients asked of a task.
type intent struct {
	plan                history.Plan
	deadline, cancelled bool
}

// intents says of each key what was asked. A cancel counts whatever it was answered.
func intents(e *Evidence) map[string]intent {
	m := map[string]intent{}
	for i := range e.Operations {
		op := &e.Operations[i].Invoke
		in := m[op.Key]
		switch op.Op {
		case history.Submit:
			in.plan, in.deadline = op.Plan, op.Deadline
		case history.Cancel:
			in.cancelled = true
		}
		m[op.Key] = in
	}
	return m
}

// mayEnd says whether the attempts of a task may end so: those that everything may end in
// (it succeeded, was handed back, was lost) are counted elsewhere.
func (in *intent) mayEnd(end string) bool {
	switch end {
	case endRaised:
		return in.plan == history.Raises
	case endTimedOut:
		return in.plan == history.Overruns || in.deadline
	case endExhausted:
		return in.plan == history.Exhausts
	case endCancelled:
		return in.cancelled || in.deadline
	case endUnreadable:
		return false
	default:
		return true
	}
}

// fates checks that each task ended as it could: its function, its clients and the faults
// of the run are the only reasons there are. I7, I10, I13, I14.
func fates(e *Evidence, f *Findings) {
	asked, keyOf := intents(e), keys(e)
	raised := map[string]string{} // execution to key
	for _, r := range e.Runs {
		if r.What == history.Raised {
			raised[r.Run] = r.Key
		}
	}
	losable := 0
	for _, x := range e.Faults {
		if len(x.Agents) > 0 || e.Strands {
			losable++
		}
	}
	for i := range e.Final {
		r := &e.Final[i]
		key := keyOf[r.ID]
		in, known := asked[key]
		switch r.Status {
		case failed:
			f.Failed++
		case cancelled:
			f.Cancelled++
		}
		if r.Lost > losable {
			f.failf("I7: task %s (key %s) lost %d workers, and the run struck workers %d times: its attempts ended as %v", r.ID, key, r.Lost, losable, r.Ends)
		}
		if !known {
			continue // it was never confirmed: there is no telling what it was
		}
		for _, end := range r.Ends {
			if !in.mayEnd(end) {
				f.failf("I10: an attempt of task %s (key %s) ended as %s, which neither its function (plan %q) nor its clients can have caused", r.ID, key, end, in.plan)
			}
		}
		if why := in.wrong(r, key, raised); why != "" {
			f.failf("%s: task %s (key %s, plan %q) is %s %s: %s", rule(r), r.ID, key, in.plan, r.Status, r.Class, why)
		}
	}
}

// rule is the invariant that a wrong end breaks.
func rule(r *Record) string {
	switch {
	case r.Status == cancelled:
		return "I13"
	case r.Class == classWorker:
		return "I7"
	case r.Class == classDeadline:
		return "I14"
	default:
		return "I10"
	}
}

// wrong says why a task cannot have ended as it did; it is empty when it can.
func (in *intent) wrong(r *Record, key string, raised map[string]string) string {
	switch r.Status {
	case completed:
		if in.plan != history.Returns {
			return "its function never returns"
		}
	case cancelled:
		if !in.cancelled {
			return "nobody cancelled it"
		}
	case failed:
		return in.wrongClass(r, key, raised)
	}
	return ""
}

func (in *intent) wrongClass(r *Record, key string, raised map[string]string) string {
	switch r.Class {
	case classFunction:
		switch {
		case in.plan != history.Raises:
			return "its function does not raise"
		case r.Run == "" || raised[r.Run] != key:
			return "no execution of it raised that exception"
		}
	case classDeadline:
		if in.plan != history.Overruns && !in.deadline {
			return "it has no deadline, and its function does not overrun its timeout"
		}
	case classResource:
		if in.plan != history.Exhausts {
			return "its function takes no more than it may"
		}
	case classWorker: // as often as workers were struck: records and fates count
	default:
		return "its function gives no reason for this class"
	}
	return ""
}

// outcomesThatWereLost says of each key when the first outcome of its task was recorded, where
// the store may lose it: the task runs again then.
func outcomesThatWereLost(e *Evidence) map[string]int64 {
	first := map[string]int64{}
	if !e.MayLose {
		return first
	}
	keyOf := keys(e)
	for i := range e.Store {
		s := &e.Store[i]
		for _, it := range s.Items {
			if s.Op != "settle" || it.Verdict != "recorded" {
				continue
			}
			key := keyOf[it.Task]
			if at, ok := first[key]; !ok || s.End < at {
				first[key] = s.End
			}
		}
	}
	return first
}

// extras bounds the executions beyond the first of each task by the faults: I11. One that
// follows an execution on a worker that was struck in between is explained by that; of the
// others each fault explains a worker's load, and one of each task. Where the store may lose
// an outcome, that explains those that follow it.
func extras(e *Evidence, f *Findings) {
	type start struct {
		at    int64
		agent int
	}
	byKey := map[string][]start{}
	for _, r := range e.Runs {
		if r.What == history.Started {
			byKey[r.Key] = append(byKey[r.Key], start{r.At, r.Agent})
		}
	}
	var general []int64
	for _, x := range e.Faults {
		if len(x.Agents) == 0 {
			general = append(general, x.At)
		}
	}
	f.Allowed = len(general) * e.Capacity
	forgotten := outcomesThatWereLost(e)
	loose, example := 0, ""
	for key, list := range byKey {
		slices.SortFunc(list, func(a, b start) int { return int(a.at - b.at) })
		unexplained, used := 0, map[int]bool{}
		for i := 1; i < len(list); i++ {
			// One fault takes an execution from a worker once, or has a worker that was frozen begin
			// what it was offered before, until it hears that another one has it.
			struck := -1
			for k, x := range e.Faults {
				if !used[k] && x.At < list[i].at && slices.ContainsFunc(list[:i+1], func(s start) bool { return slices.Contains(x.Agents, s.agent) }) {
					struck = k
					break
				}
			}
			if struck >= 0 {
				used[struck] = true
				f.Struck++
				continue
			}
			if at, ok := forgotten[key]; ok && at < list[i].at {
				continue
			}
			unexplained++
		}
		if unexplained > len(general) {
			f.failf("I11: key %s ran %d times, and %d of them no fault explains", key, len(list), unexplained-len(general))
		}
		if loose += unexplained; unexplained > 0 {
			example = key
		}
	}
	if loose > f.Allowed {
		f.failf("I11: %d executions more than tasks are not those of struck workers, and the %d other faults explain %d (one is of key %s)",
			loose, len(general), f.Allowed, example)
	}
}
