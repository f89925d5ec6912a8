package task

import "time"

// Limits and defaults that are part of the contract.
const (
	DefaultQueue      = "default"
	DefaultPriority   = 5
	MinPriority       = 0
	MaxPriority       = 9
	DefaultMaxRetries = 3
	// MaxRetriesLimit bounds both retry budgets of one task.
	MaxRetriesLimit = 1000
	// MaxNameLength is counted in characters (Unicode code points).
	MaxNameLength = 256
	// MaxQueueLength bounds the name of a queue, in bytes.
	MaxQueueLength = 128
	// MaxLapses is how many offers in a row may lapse before a lapse is counted
	// as a loss, so that a task no worker ever accepts cannot circulate for ever.
	MaxLapses = 5
	// MaxRetryAfter bounds how long a function may have its next attempt wait.
	MaxRetryAfter = 24 * time.Hour
	// MaxReturns is how many of the attempts in a record may have been handed back by their
	// workers, at a drain or by one that came back without it; each one more is a loss. A
	// loss ends the task sooner or later, so it runs max_retries + 1 + MaxReturns times at most
	// however its workers behave, and function_retries times more.
	MaxReturns = 8
	// MaxErrorText bounds message and traceback in a record, each, in bytes.
	MaxErrorText = 64 << 10
	// MaxTypeText bounds the name of an exception's class, MaxRepr the short text of a result
	// that JSON cannot hold, in bytes.
	MaxTypeText = 1 << 10
	MaxRepr     = 4 << 10
	// MaxLog is how much of an attempt's output is kept: its last bytes.
	MaxLog = 64 << 10
	// MaxAttemptsKept bounds the history in a record: the first ones are dropped.
	MaxAttemptsKept = 16
	// DefaultMaxPayload is the one limit on a payload or a result, decoded, in bytes.
	// It may be set from MinPayloadLimit to MaxPayloadLimit: a gRPC message holds twice
	// a payload and 1 MiB, and its length has to stay below 2 GiB.
	DefaultMaxPayload = 64 << 20
	MinPayloadLimit   = 1 << 10
	MaxPayloadLimit   = 900 << 20
	// MaxSlots bounds the slots of one worker.
	MaxSlots = 4096
	// MaxHeld bounds the claims that one frame lists, and so what a worker may say that it
	// holds: slots and window, and reports that a slow store has not acknowledged yet.
	MaxHeld = 16 << 10
	// MaxListed bounds the queues, the runtimes and the handlers of one worker, each.
	MaxListed = 1024
	// MaxWorkerID bounds the id of a worker, MaxWorkerText each text that it says of
	// itself, in bytes.
	MaxWorkerID   = 128
	MaxWorkerText = 256
)

// Task is the record of one execution asked for by a client. The arguments and
// the result are kept beside it by the store, never in it.
//
// A Task is a plain value: who holds one may read it freely; only the methods of
// this package change it.
type Task struct {
	ID       ID
	Function ID
	// FunctionName, Queue, Runtime, Form, Python and Hash are copied from the function, so
	// that a claim needs no second look-up.
	FunctionName string
	Queue        string
	Runtime      string
	Form         Form
	Python       string
	Hash         [32]byte
	// CreatedBy is the id of the token that submitted the task; empty where no tokens are
	// asked for. It counts towards that owner's quotas.
	CreatedBy string
	// Parent is the task whose attempt submitted this one; zero for a client's.
	Parent ID

	// Spec is what was asked for; it never changes.
	Spec
	// Args and Returns say how the arguments are encoded and how the caller wants
	// the result. Returns falls back to pickle when JSON cannot hold the value.
	Args    Encoding
	Returns Encoding
	// ArgsSize is the size of the arguments in bytes.
	ArgsSize int

	CreatedAt time.Time
	// NotBefore delays a requeued task; zero means ready now.
	NotBefore  time.Time
	FinishedAt time.Time

	Status Status
	// Epoch rises on every claim and on every forced exit, so that every claim of a
	// task has its own. See [Token].
	Epoch uint64
	// Losses, Failures and Lapses count what was spent of the budgets.
	Losses   int
	Failures int
	Lapses   int

	// Seq is the order of arrival, given by the store. A requeue keeps it, so a
	// requeued task stands at the head of its priority again.
	Seq uint64

	// Lease is the claim in force, or nil.
	Lease *Lease
	// LastClaim is the claim whose report ended the last attempt: the same report
	// sent again is answered like the first time.
	LastClaim ID
	// Attempts is the history, oldest first, the last [MaxAttemptsKept] of them. The
	// attempt in force is its last element while Lease is set and Started.
	Attempts []Attempt
	// AttemptCount counts the attempts that were started.
	AttemptCount int

	// Result describes the stored result of a COMPLETED task.
	ResultSize     int
	ResultEncoding Encoding
	// ResultRepr is a short text of a result that JSON cannot hold, at most [MaxRepr] bytes.
	ResultRepr string
	// Failure is set when the task is FAILED or CANCELLED.
	Failure *Failure
}

// Spec is what a submission may ask for: the options of a task. It travels whole, from the
// submission to the record and to the offer. docs/architecture.md says how one is added.
type Spec struct {
	// Priority is from MinPriority to MaxPriority, higher first.
	Priority int
	// Timeout limits one attempt's run time from its start; 0 means none.
	Timeout time.Duration
	// Deadline is absolute and counts waiting too; zero means none.
	Deadline time.Time
	// MaxRetries is how many lost workers the task survives.
	MaxRetries int
	// FunctionRetries is how often a raised exception is tried again.
	FunctionRetries int
	// MemoryLimit bounds one attempt's memory in bytes; 0 means the worker's own limit.
	MemoryLimit int64
}

// ForWorker is s as an offer has it: without what only the store and its dispatchers go by.
// What it leaves, the link carries over gRPC as well as inside of a process.
func (s Spec) ForWorker() Spec {
	s.Priority, s.FunctionRetries = 0, 0
	return s
}

// Lease is a session's right to one attempt until a moment of store time.
type Lease struct {
	Claim   ID
	Session ID
	Worker  string
	// Local marks a lease of the pool inside the store owner's process: it cannot
	// come back after a restart.
	Local     bool
	ClaimedAt time.Time
	Until     time.Time
	// StartedAt is zero while the claim is only offered.
	StartedAt time.Time
}

// Token fences one attempt: a report is accepted only with the token of the claim
// in force. The stored record is the authority, never the token.
type Token struct {
	Task  ID
	Epoch uint64
	// Claim is random: after a store failover that rolled the epoch back two claims
	// may share a number, never an id.
	Claim ID
	// Attempt is the number that this attempt has when it starts, from 1.
	Attempt int
}

// Attempt is one started try of a task.
type Attempt struct {
	Number     int
	Worker     string
	StartedAt  time.Time
	FinishedAt time.Time
	// End is what the attempt ended in; EndNone while it runs.
	End End
	// Reason is a one-line text of an end other than EndSucceeded.
	Reason string
}

// ReadyAt says whether the task may be claimed at now.
func (t *Task) ReadyAt(now time.Time) bool {
	return t.Status == Queued && t.Lease == nil && !t.NotBefore.After(now)
}

// Token returns the token of the claim in force; ok is false when there is none.
func (t *Task) Token() (tok Token, ok bool) {
	if t.Lease == nil {
		return Token{}, false
	}
	return Token{Task: t.ID, Epoch: t.Epoch, Claim: t.Lease.Claim, Attempt: t.attemptNumber()}, true
}

// attemptNumber is the number of the attempt that is running or would start next.
func (t *Task) attemptNumber() int {
	if t.Lease != nil && !t.Lease.StartedAt.IsZero() {
		return t.AttemptCount
	}
	return t.AttemptCount + 1
}

// RetriesLeft is how often the task runs again if its function raises.
func (t *Task) RetriesLeft() int { return max(t.FunctionRetries-t.Failures, 0) }

// Clone returns a deep copy, for those who hand a record out of a shared index.
func (t *Task) Clone() *Task {
	c := *t
	if t.Lease != nil {
		l := *t.Lease
		c.Lease = &l
	}
	if t.Failure != nil {
		f := *t.Failure
		c.Failure = &f
	}
	c.Attempts = append([]Attempt(nil), t.Attempts...)
	return &c
}
