package worker

import (
	"context"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// phase of a claim at the worker.
type phase int

const (
	waiting phase = iota // offered, no slot yet
	ahead                // handed to an executor before its turn, not started
	running              // in a slot
	ended                // reported, not acknowledged
)

// claim is one offer from its arrival until its report is acknowledged. All fields
// but output are guarded by the agent's mutex.
type claim struct {
	token task.Token
	offer *link.Offer // nil for a claim that has ended
	phase phase
	// queuedAt is when it began to wait for a slot.
	queuedAt time.Time
	// startedAt is when it was started.
	startedAt time.Time
	// leaseFrom is when the last word that renewed the lease was sent: the lease is
	// counted from there.
	leaseFrom time.Time
	// stop ends the attempt while an executor has it; stopped says why it was ended.
	stop    context.CancelFunc
	stopped stopReason
	// report is kept until it is acknowledged.
	report *link.Report
	// replaced: the report is the word that another could not be delivered.
	replaced bool
	output   output
}

// stopReason says why the agent ended an attempt itself.
type stopReason int

const (
	notStopped   stopReason = iota
	stopRevoked             // the claim is no longer in force
	stopLease               // the lease ran out while no dispatcher answered
	stopHandBack            // the agent drains and its time is over
)

// end returns the outcome of an attempt that the agent stopped.
func (r stopReason) end() task.Outcome {
	switch r {
	case stopLease:
		return task.Fail(task.EndLost, "the worker stopped the attempt: its lease expired while no dispatcher could be reached")
	case stopHandBack:
		return task.Fail(task.EndReturned, "the worker shut down and handed the task back")
	case notStopped, stopRevoked:
		return task.Fail(task.EndCancelled, "the attempt was stopped because its claim is no longer in force")
	default:
		return task.Fail(task.EndCancelled, "the attempt was stopped")
	}
}

// output keeps the last bytes that an attempt printed and that were not sent yet.
type output struct {
	mu  sync.Mutex
	buf []byte
}

func (o *output) add(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(b) > task.MaxLog {
		b = b[len(b)-task.MaxLog:]
	}
	o.buf = append(o.buf, b...)
	// Cut now and then, not at every byte beyond the limit.
	if len(o.buf) > 2*task.MaxLog {
		o.buf = append(o.buf[:0], o.buf[len(o.buf)-task.MaxLog:]...)
	}
}

// take returns the unsent output, at most its last [task.MaxLog] bytes.
func (o *output) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.buf
	o.buf = nil
	if len(b) > task.MaxLog {
		b = b[len(b)-task.MaxLog:]
	}
	return b
}
