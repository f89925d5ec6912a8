// Package check reads the histories of a run and says what was broken: a ledger that
// counts (lost, unexpected, duplicated, recovered), the store's moves with their tokens,
// and Porcupine on what clients saw of each task. All but the last are linear in the
// length of the histories.
package check

import (
	"fmt"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/store/storetap"
)

// Statuses and failure classes as the API spells them.
const (
	completed = "COMPLETED"
	failed    = "FAILED"
	cancelled = "CANCELLED"

	classWorker   = "WorkerFailureError"
	classDeadline = "DeadlineExceededError"
	classFunction = "FunctionExecutionFailure"
	classResource = "ResourceLimitExceeded"
)

// Record is a task as it stands when everything is over.
type Record struct {
	// Run is the execution that the result or the exception names.
	ID, Key, Status, Class, Run string
	CreatedAt, FinishedAt       time.Time
	Deadline                    time.Time
	Lost, MaxRetries, Attempts  int
	// Ends are how its attempts ended, oldest first.
	Ends []string
}

// Evidence is everything that a run left.
type Evidence struct {
	Operations []history.Operation
	Runs       []history.Run
	Store      []storetap.Entry
	Final      []Record
	// Faults are those of the run. Each that struck no worker explains at most Capacity
	// executions more than tasks: what the workers may have run and been offered at once.
	Faults   []Fault
	Capacity int
	// Strands: the faults of the run keep sound workers from their leases, so each of them
	// may cost a task a worker.
	Strands bool
	// MayLose: the store's mode does not promise to keep what it acknowledged through the
	// fault of this run. Losses are counted and are no violation.
	MayLose bool
	// Expires: the retention is shorter than the run, so a task that was there may be gone.
	Expires bool
	// Lease is how long a lease lasts after each renewal; 0 is not looked at.
	Lease time.Duration
}

// Fault is one that was made.
type Fault struct {
	At   int64  `json:"at"`
	What string `json:"what"`
	// Agents are the process ids of the workers that it struck.
	Agents []int `json:"agents,omitempty"`
}

// Findings are the numbers of a run and what it violated.
type Findings struct {
	// Attempted counts the keys that clients tried to submit, Acknowledged those that a
	// server confirmed.
	Attempted    int `json:"attempted"`
	Acknowledged int `json:"acknowledged"`
	// Lost were acknowledged and did not end; Unexpected ran or are stored though nobody
	// asked for them; Duplicated have two results or two tasks under one key; Recovered
	// were never confirmed and ended all the same.
	Lost       int `json:"lost"`
	Unexpected int `json:"unexpected"`
	Duplicated int `json:"duplicated"`
	// Forgotten counts, among the lost, results that a client had seen.
	Forgotten int `json:"forgotten,omitempty"`
	Recovered int `json:"recovered"`
	// Executions counts the starts, Extra those beyond the first of their task.
	Executions int `json:"executions"`
	Extra      int `json:"extra_executions"`
	// Struck counts, among the extra, those of tasks that had begun on a worker before it was
	// struck; Allowed is how many of the others the faults can explain.
	Struck  int `json:"struck_executions"`
	Allowed int `json:"allowed_executions"`
	// Overlaps counts outcomes that were refused while a newer attempt ran.
	Overlaps int `json:"stale_refused_while_running"`
	// Failed and Cancelled count the tasks that ended so, each for a reason of its own.
	Failed    int `json:"failed"`
	Cancelled int `json:"cancelled"`
	// Stale counts refused outcomes, but for those of attempts that were told to stop; Claims and Moves what the store recorded.
	Stale  int `json:"stale_refused"`
	Claims int `json:"claims"`
	Moves  int `json:"moves"`
	// Checked counts the operations that Porcupine looked at.
	Checked    int      `json:"checked_operations"`
	Violations []string `json:"violations,omitempty"`

	more int
}

// maxViolations bounds the list: the first ones tell the story.
const maxViolations = 20

func (f *Findings) failf(format string, args ...any) {
	if len(f.Violations) >= maxViolations {
		f.more++
		return
	}
	f.Violations = append(f.Violations, fmt.Sprintf(format, args...))
}

// Run checks everything.
func Run(e *Evidence) *Findings {
	f := &Findings{}
	ledger(e, f)
	records(e, f)
	fates(e, f)
	extras(e, f)
	if len(e.Store) > 0 {
		moves(e, f)
	}
	if !e.MayLose {
		linearizable(e, f)
	}
	if f.more > 0 {
		f.Violations = append(f.Violations, fmt.Sprintf("and %d more", f.more))
	}
	return f
}

// ledger counts what became of each key: I1, I3, I10, I11, I12.
func ledger(e *Evidence, f *Findings) {
	attempted := map[string]bool{}
	acked := map[string]string{}            // key to task id
	results := map[string]map[string]bool{} // key to executions that were seen as its result
	see := func(key, run string) {
		if run == "" {
			return
		}
		if results[key] == nil {
			results[key] = map[string]bool{}
		}
		results[key][run] = true
	}
	for _, op := range e.Operations {
		switch op.Invoke.Op {
		case history.Submit:
			attempted[op.Invoke.Key] = true
			if op.Return.Type != history.OK {
				continue
			}
			if id, ok := acked[op.Invoke.Key]; ok && id != op.Return.Task {
				f.Duplicated++
				f.failf("I12: key %s was confirmed as task %s and as task %s", op.Invoke.Key, id, op.Return.Task)
			}
			acked[op.Invoke.Key] = op.Return.Task
		case history.Result:
			see(op.Invoke.Key, op.Return.Run)
		}
	}
	f.Attempted, f.Acknowledged = len(attempted), len(acked)
	keyOf := keys(e)

	starts, ends, runKey := map[string]bool{}, map[string]bool{}, map[string]string{}
	perKey := map[string]int{}
	for _, r := range e.Runs {
		runKey[r.Run] = r.Key
		switch r.What {
		case history.Started:
			starts[r.Run] = true
			perKey[r.Key]++
			f.Executions++
		case history.Ended:
			ends[r.Run] = true
		}
	}
	for key, n := range perKey {
		f.Extra += n - 1
		if !attempted[key] {
			f.Unexpected++
			f.failf("I3: key %s ran %d times and nobody submitted it", key, n)
		}
	}

	final := map[string]*Record{}
	tasksOf := map[string]string{}
	for i := range e.Final {
		r := &e.Final[i]
		final[r.ID] = r
		key := keyOf[r.ID]
		if key == "" {
			continue // it ended without a result and was never confirmed: there is no telling which it was
		}
		if other, ok := tasksOf[key]; ok {
			f.Duplicated++
			f.failf("I12: key %s has the tasks %s and %s", key, other, r.ID)
		}
		tasksOf[key] = r.ID
		switch {
		case !attempted[key]:
			f.Unexpected++
			f.failf("I3: task %s has the key %s, which nobody submitted", r.ID, key)
		case acked[key] == "":
			f.Recovered++
		}
		if r.Status != completed {
			continue
		}
		see(key, r.Run)
		if !starts[r.Run] || !ends[r.Run] || runKey[r.Run] != key {
			f.failf("I10: task %s is COMPLETED by execution %q, which no worker ran to its end for key %s", r.ID, r.Run, key)
		}
	}
	for key, id := range acked {
		if r := final[id]; r == nil || !terminal(r.Status) {
			f.Lost++
			if !e.MayLose && !e.Expires {
				status := "gone"
				if r != nil {
					status = r.Status
				}
				f.failf("I1: task %s (key %s) was acknowledged and is %s", id, key, status)
			}
		}
	}
	for key, runs := range results {
		if len(runs) > 1 && e.MayLose {
			// A client saw a result that the store then lost; it was computed again.
			f.Lost++
			f.Forgotten++
			continue
		}
		if len(runs) > 1 {
			f.Duplicated++
			f.failf("I11: key %s has the results of %d executions: %v", key, len(runs), sorted(runs))
		}
	}
	if e.Expires {
		f.Lost = 0 // what is gone has expired, as far as this check can see
	}
}

// keys says which key each task was submitted under, as far as anybody was told.
func keys(e *Evidence) map[string]string {
	keyOf := map[string]string{}
	for i := range e.Operations {
		if op := &e.Operations[i]; op.Invoke.Op == history.Submit && op.Return.Type == history.OK {
			keyOf[op.Return.Task] = op.Invoke.Key
		}
	}
	for i := range e.Store {
		if e.Store[i].Op != "submit" {
			continue
		}
		for _, it := range e.Store[i].Items {
			if it.Key != "" {
				keyOf[it.Task] = it.Key
			}
		}
	}
	for i := range e.Final {
		if r := &e.Final[i]; r.Key != "" && keyOf[r.ID] == "" {
			keyOf[r.ID] = r.Key
		}
	}
	return keyOf
}

func sorted(set map[string]bool) []string {
	var list []string
	for v := range set {
		list = append(list, v)
	}
	slices.Sort(list)
	return list
}

func terminal(status string) bool {
	return status == completed || status == failed || status == cancelled
}

// records looks at each task as it ended: I7, I13, I14.
func records(e *Evidence, f *Findings) {
	cancelledBy := map[string]bool{}
	for _, op := range e.Operations {
		if op.Invoke.Op == history.Cancel && op.Return.Type == history.OK && op.Return.Status == cancelled {
			cancelledBy[op.Invoke.Task] = true
		}
	}
	for i := range e.Final {
		r := &e.Final[i]
		switch {
		case !cancelledBy[r.ID] || r.Status == cancelled:
		case e.MayLose:
			f.Lost++ // what was lost is the cancel
		default:
			f.failf("I13: task %s was cancelled and is %s", r.ID, r.Status)
		}
		if r.Lost > r.MaxRetries+1 {
			f.failf("I7: task %s lost %d workers and max_retries is %d", r.ID, r.Lost, r.MaxRetries)
		}
		if r.Status == failed && r.Class == classWorker && r.Lost != r.MaxRetries+1 {
			f.failf("I7: task %s failed for lost workers after %d of %d", r.ID, r.Lost, r.MaxRetries+1)
		}
		if r.Class == classDeadline && r.FinishedAt.Before(r.Deadline) {
			f.failf("I14: task %s failed %s before its deadline", r.ID, r.Deadline.Sub(r.FinishedAt))
		}
	}
}

// move is one change of a task that the store recorded.
type move struct {
	start, end int64
	item       *storetap.Item
	op         string
}

// moves looks at what the store was asked and answered: I4, I5, I6, I8, I9, I11.
func moves(e *Evidence, f *Findings) {
	byTask := map[string][]move{}
	for i := range e.Store {
		s := &e.Store[i]
		for k := range s.Items {
			it := &s.Items[k]
			byTask[it.Task] = append(byTask[it.Task], move{s.Start, s.End, it, s.Op})
			f.Moves++
			switch {
			case s.Op == "claim":
				f.Claims++
			case s.Op == "settle" && it.Verdict == "stale" && it.Outcome != "cancelled":
				// An attempt that was told to stop says so under its old token: that is no late
				// result.
				f.Stale++
			}
		}
	}
	repeats(e, f)
	early(byTask, e, f)
	for id, list := range byTask {
		slices.SortFunc(list, func(a, b move) int { return int(a.start - b.start) })
		taskMoves(id, list, e, f)
	}
}

func taskMoves(id string, list []move, e *Evidence, f *Findings) {
	claims := map[uint64]string{}
	succeeded := map[string]bool{}
	var ended *move // the first recorded end, by when its call had returned
	for i := range list {
		m := &list[i]
		switch {
		case m.op == "claim":
			if other, ok := claims[m.item.Epoch]; ok && other != m.item.Claim && !e.MayLose {
				f.failf("I5: task %s was claimed twice under epoch %d, by %s and %s", id, m.item.Epoch, other, m.item.Claim)
			}
			claims[m.item.Epoch] = m.item.Claim
			if m.item.Epoch == 0 {
				f.failf("I5: task %s was claimed by %s under the epoch of a task that nobody has claimed", id, m.item.Claim)
			}
			if m.item.Status != "QUEUED" {
				f.failf("I4: task %s was claimed while %s", id, m.item.Status)
			}
			if m.item.Losses > m.item.Retries || m.item.Lapses > 5 {
				f.failf("I7: task %s was claimed after %d losses of %d and %d lapses", id, m.item.Losses, m.item.Retries, m.item.Lapses)
			}
		case m.op == "settle" && m.item.Verdict == "recorded" && m.item.Outcome == "succeeded":
			succeeded[m.item.Claim] = true
		}
		if final := m.op == "cancel" && m.item.Outcome == cancelled || succeeds(m); final && (ended == nil || m.end < ended.end) {
			ended = m
		}
	}
	f.Overlaps += overlaps(list)
	if len(succeeded) > 1 && !e.MayLose {
		f.failf("I11: task %s recorded %d successes", id, len(succeeded))
	}
	if e.MayLose {
		return // a store that fell back repeats itself
	}
	for i := range list {
		m := &list[i]
		if ended != nil && m.start > ended.end && (m.op == "claim" || recorded(m)) {
			f.failf("I4: task %s had a %s recorded after its end", id, m.op)
		}
		if m.op != "claim" {
			continue
		}
		for k := range list {
			o := &list[k]
			switch {
			// A claim raises the epoch, and so does its end.
			case o.op == "claim" && o.start > m.end && o.item.Epoch < m.item.Epoch+2 && o.item.Claim != m.item.Claim:
				f.failf("I5: task %s was claimed under epoch %d after epoch %d", id, o.item.Epoch, m.item.Epoch)
			case recorded(o) && o.op == "settle" && o.start > m.end && o.item.Epoch < m.item.Epoch:
				f.failf("I6, I8: task %s recorded an outcome of epoch %d after the claim of epoch %d", id, o.item.Epoch, m.item.Epoch)
			case recorded(o) && o.op != "settle" && o.start > m.end && o.item.Epoch < m.item.Epoch:
				f.failf("I9: task %s had the lease of epoch %d renewed after the claim of epoch %d", id, o.item.Epoch, m.item.Epoch)
			}
		}
	}
}

// offerHolds is shorter than an offer that nobody accepts is kept.
const offerHolds = int64(time.Second)

// repeats checks that a claim whose answer was lost is answered with what it was given
// when it is made again: I5. What it was given and has ended since is no longer its own, so
// a task that somebody cancelled or that has a deadline proves nothing.
func repeats(e *Evidence, f *Findings) {
	type grant struct {
		at int64
		t  string
	}
	asked, keyOf := intents(e), keys(e)
	given := map[string][]grant{}
	settled := map[string]int64{}
	entries := slices.Clone(e.Store)
	slices.SortStableFunc(entries, func(a, b storetap.Entry) int { return int(a.Start - b.Start) })
	for i := range entries {
		s := &entries[i]
		if s.Op == "settle" {
			for _, it := range s.Items {
				settled[it.Task] = s.Start
			}
		}
		if s.Op != "claim" {
			continue
		}
		before := map[string][]grant{}
		for _, it := range s.Items {
			old, seen := before[it.Claim]
			if !seen {
				old = slices.Clone(given[it.Claim])
				before[it.Claim] = old
			}
			if slices.ContainsFunc(old, func(g grant) bool { return g.t == it.Task }) {
				continue
			}
			given[it.Claim] = append(given[it.Claim], grant{s.Start, it.Task})
			inForce := slices.ContainsFunc(old, func(g grant) bool {
				in := asked[keyOf[g.t]]
				return settled[g.t] == 0 && !in.cancelled && !in.deadline && s.End-g.at < offerHolds
			})
			if inForce && !e.MayLose {
				f.failf("I5: claim %s was answered with task %s when it was repeated, and not before", it.Claim, it.Task)
			}
		}
	}
}

// overlaps counts the outcomes that were refused while a newer attempt was under way. What
// was taken from its worker by a reaper is refused as known already.
func overlaps(list []move) (n int) {
	for i := range list {
		m := &list[i]
		if m.op != "settle" || recorded(m) || m.item.Outcome == "cancelled" {
			continue
		}
		newer := map[string]bool{}
		for k := range list {
			o := &list[k]
			switch {
			case o.op == "claim" && o.end <= m.start && o.item.Epoch > m.item.Epoch:
				newer[o.item.Claim] = true
			case o.op == "settle" && recorded(o) && o.start < m.start:
				delete(newer, o.item.Claim)
			case o.op == "cancel" && o.start < m.start && o.item.Outcome == cancelled:
				clear(newer)
			}
		}
		if len(newer) > 0 {
			n++
		}
	}
	return n
}

func recorded(m *move) bool { return m.item.Verdict == "recorded" }

func succeeds(m *move) bool {
	return m.op == "settle" && recorded(m) && m.item.Outcome == "succeeded"
}
