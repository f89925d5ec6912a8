// Package moves is what every store decides alike about the moves of a task, whatever it
// keeps its records in. It is pure: a record comes in, and what becomes of it goes out.
package moves

import "github.com/treadle-dev/treadle/task"

// Jitter spreads the delays of requeues that a store decides by itself, as those of tasks that
// lost their worker together; it is in [0,1). It depends on the claim alone, so that a history
// can be replayed, and every process that makes the same move comes to the same delay.
func Jitter(t *task.Task) float64 {
	// FNV-1a over id and epoch.
	h := uint64(14695981039346656037)
	for _, c := range t.ID {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ t.Epoch) * 1099511628211
	h ^= h >> 32
	return float64(h>>11) / (1 << 53)
}

// Missing is the outcome of a claim whose worker came back and does not hold it.
func Missing() task.Outcome {
	return task.Fail(task.EndReturned, "the worker reconnected without it")
}

// LostWithOwner is the outcome of a claim of the pool inside the process that owned the store,
// when that process has ended. The pool may have been killed by what it ran: the loss counts.
func LostWithOwner() task.Outcome {
	return task.Fail(task.EndLost, "the process that ran it ended")
}
