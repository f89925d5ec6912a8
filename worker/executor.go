package worker

import (
	"context"

	"github.com/treadle-dev/treadle/task"
)

// Attempt is what an [Executor] runs.
type Attempt struct {
	Token        task.Token
	Function     task.ID
	FunctionName string
	Runtime      string
	Form         task.Form
	// Hash is the SHA-256 of the function's bytes and the key of every cache.
	Hash [32]byte
	// Code returns the function's bytes; it may wait for the network, at most once
	// per hash and agent. Runtimes without bytes never call it.
	Code         func(ctx context.Context) ([]byte, error)
	ArgsEncoding task.Encoding
	Returns      task.Encoding
	Args         []byte
	// Spec is what was asked for, as far as workers see it, see [task.Spec.ForWorker]. Timeout
	// limits the run time from the start of Run, 0 is none; a MemoryLimit of 0 is the executor's
	// default. The rest is for the function to know; nobody here acts on it.
	task.Spec
	// RetriesLeft is what is left of function_retries, for the function to know.
	RetriesLeft int
	// Parent is the task that submitted this one, zero for a client's.
	Parent task.ID
	// API returns how the attempt of that token submits tasks itself, at any time while it
	// runs, from any goroutine; nil where it cannot.
	API func(task.Token) (API, error)
	// MaxResult is the largest result in bytes that may be reported.
	MaxResult int
	// Output takes what the attempt prints, from any goroutine, until Run returns. It
	// keeps what it is given no longer than the call.
	Output func([]byte)
}

// Executor runs attempts of some runtime keys.
//
// Run always returns an outcome, never an error: whatever happens to the attempt
// is a way for it to end. When ctx ends the attempt is stopped at once and Run
// returns [task.EndCancelled]; the caller knows why it stopped. When Run has
// returned nothing of the attempt is left: no process, no thread, no open file.
// Run is called by at most as many goroutines as the agent has slots; slot, from 0,
// tells them apart, so that an executor can keep one process for each; see [Elastic].
type Executor interface {
	// Runtimes lists the runtime keys that this executor runs.
	Runtimes() []string
	// Start gets the executor ready for that many slots and returns when Run may be called.
	Start(ctx context.Context, slots int) error
	Run(ctx context.Context, slot int, a *Attempt) task.Outcome
	// Close stops everything that is left and waits for it.
	Close() error
}

// Elastic is an [Executor] that keeps something for each slot and can be told when their
// number changes. Others need not know: they are run in more slots than they were started for.
type Elastic interface {
	Executor
	// Open gets one more slot ready and returns when Run may be called in it. Slots are
	// opened side by side.
	Open(ctx context.Context, slot int) error
	// Shut lets go of what is kept for a slot, whose last Run has returned, and waits for it.
	Shut(slot int)
}

// Preparer is an [Executor] whose slots may be out of order for a while.
type Preparer interface {
	Executor
	// Prepared says whether Run would begin at once in a slot.
	Prepared(slot int) bool
	// Prepare waits until it would, or until ctx ends. Unless patient it gives up when the
	// slot turns out to be out of order; the error says why.
	Prepare(ctx context.Context, slot int, patient bool) error
}

// Pipeliner is an [Executor] that can be handed attempts ahead of their turn, so that
// a slot goes from one short attempt to the next without waiting for the agent.
type Pipeliner interface {
	Executor
	// RunAhead runs first and then what feed gives, one at a time and in the order
	// given, and returns when nothing of that is left; a slot is in RunAhead or in Run,
	// never in both. It returns false, and has done nothing, when first does not suit:
	// Run is to be called for it.
	RunAhead(slot int, first *Attempt, feed Feed) bool
}

// Feed is the agent's side of one RunAhead. Its methods are called by the goroutine
// that called RunAhead.
type Feed interface {
	// Bind is called first: wake may be called by any goroutine until RunAhead returns,
	// when an attempt has to be stopped.
	Bind(wake func())
	// Next gives up to n more attempts as long as they fit. Given is not started.
	Next(n int, fits func(*Attempt) bool) []*Attempt
	// Started is called when an attempt has begun, Slow when it turns out not to be a
	// short one.
	Started(a *Attempt)
	Slow(a *Attempt)
	// Stopped tells whether an attempt has to be stopped.
	Stopped(a *Attempt) bool
	// Ended reports attempts; each one that was given is reported or given back.
	Ended(done []Done)
	// Back gives back attempts that have not started and will not, in their order.
	Back(attempts []*Attempt)
}

// Done is an attempt that has ended.
type Done struct {
	Attempt *Attempt
	// Outcome has its RunTime set.
	Outcome task.Outcome
}
