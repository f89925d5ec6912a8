package worker

import (
	"context"
	"time"

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
	// Timeout limits the run time from the start of Run; 0 means none.
	Timeout time.Duration
	// MemoryLimit is in bytes; 0 means the executor's default.
	MemoryLimit int64
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
// tells them apart, so that an executor can keep one process for each.
type Executor interface {
	// Runtimes lists the runtime keys that this executor runs.
	Runtimes() []string
	// Start gets the executor ready for that many slots and returns when Run may be called.
	Start(ctx context.Context, slots int) error
	Run(ctx context.Context, slot int, a *Attempt) task.Outcome
	// Close stops everything that is left and waits for it.
	Close() error
}
