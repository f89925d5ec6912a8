package pyproc

import (
	"context"
	"errors"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

var errWindows = errors.New("workers run on Linux and macOS; on Windows clients and the command line work")

// Executor does not exist on Windows: New always fails.
type Executor struct{}

var _ worker.Executor = (*Executor)(nil)

// New fails: workers run on Linux and macOS.
func New(Config) (*Executor, error) { return nil, errWindows }

// Probe fails: workers run on Linux and macOS.
func Probe(context.Context, Config) (Interpreter, error) { return Interpreter{}, errWindows }

// ProbeLimits says that nothing is enforced.
func ProbeLimits() Limits { return Limits{Mechanism: "none", Detail: errWindows.Error()} }

// Runtimes returns the one runtime key of Python functions.
func (*Executor) Runtimes() []string { return []string{task.RuntimePython} }

// Start fails.
func (*Executor) Start(context.Context, int) error { return errWindows }

// Run fails.
func (*Executor) Run(context.Context, int, *worker.Attempt) task.Outcome {
	return task.Fail(task.EndLost, errWindows.Error())
}

// Close does nothing.
func (*Executor) Close() error { return nil }
