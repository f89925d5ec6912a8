// Command treadle is the whole of Treadle in one binary: servers, workers, the
// client's verbs, a load generator and checks of the installation.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// Exit codes.
const (
	exitOK = 0
	// exitFailed: what was asked for failed, a task included.
	exitFailed = 1
	// exitMisuse: an unknown command or flag, a wrong number of arguments, a value
	// that cannot be.
	exitMisuse = 2
	// exitStuck: the process was told to stop, and a part of it did not in its time.
	exitStuck = 3
	// exitUnfinished: the wait was over before the task was.
	exitUnfinished = 4
	// exitUnknown: there is no task, function or worker of that id or name.
	exitUnknown = 5
	// exitNoServer: no server answered, or not one that can be spoken to.
	exitNoServer = 6
	// exitRefused: the server does not let this caller do it.
	exitRefused = 7
	// exitInterrupted: Ctrl-C or SIGTERM ended what was asked for. Servers and workers
	// end with 0 after the first, as they do what they were told.
	exitInterrupted = 130
)

// exitCodesHelp goes into the help of the root; docs/cli.md says more.
const exitCodesHelp = `Exit codes: 0 fine, 1 failed, 2 misuse, 3 a part did not stop in time, 4 unfinished when
the wait was over, 5 unknown id or name, 6 no server, 7 refused, 130 interrupted.`

func main() {
	ctx, stop := withSignals(context.Background())
	code := Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errInterrupted is the cause of the context that a signal ended.
var errInterrupted = errors.New("interrupted")

// withSignals ends the context at the first SIGINT or SIGTERM, so that everything
// stops in order, and the program at the second.
func withSignals(parent context.Context) (ctx context.Context, stop func()) {
	var last atomic.Pointer[string]
	ctx, cancel := context.WithCancelCause(context.WithValue(parent, lastWordsKey{}, &last))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-done:
			return
		}
		select {
		case <-signals:
			if words := last.Load(); words != nil {
				fmt.Fprint(os.Stderr, *words)
			}
			os.Exit(exitInterrupted)
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		<-stopped
		cancel(nil)
	}
}

type lastWordsKey struct{}

// partingWords sets what a second Ctrl-C says before it ends the program.
func partingWords(ctx context.Context, words string) {
	if last, ok := ctx.Value(lastWordsKey{}).(*atomic.Pointer[string]); ok {
		last.Store(&words)
	}
}

// Run runs one command line, without the program's name, and returns the exit code.
// Everything that the program reads and writes goes through the arguments, the
// environment and the file system excepted.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(append([]string{}, protectArgs(root, args)...)) // nil would mean those of the process
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var silent *silentError
	if errors.As(err, &silent) {
		return silent.code
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "treadle: %v\nRun '%s --help' for usage.\n", err, cmd.CommandPath())
		return exitMisuse
	}
	for _, part := range parted(err) {
		fmt.Fprintf(stderr, "treadle: %s\n", explain(ctx, part))
	}
	return exitCode(ctx, err)
}

// parted takes errors that were joined apart, so that each has a line of its own.
func parted(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && err.Error() == errors.Join(joined.Unwrap()...).Error() {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, parted(e)...)
		}
		return out
	}
	return []error{err}
}

// exitCode tells scripts apart what an error means.
func exitCode(ctx context.Context, err error) int {
	switch {
	case interrupted(ctx, err):
		return exitInterrupted
	case errors.Is(err, treadle.ErrUnavailable):
		return exitNoServer
	case errors.Is(err, treadle.ErrUnauthenticated), errors.Is(err, treadle.ErrDenied):
		return exitRefused
	case errors.Is(err, treadle.ErrNotFound):
		return exitUnknown
	case errors.Is(err, treadle.ErrInvalid):
		return exitMisuse
	case needsTLS(err):
		return exitNoServer
	}
	return exitFailed
}

// interrupted says that a signal is why there is an error.
func interrupted(ctx context.Context, err error) bool {
	return errors.Is(context.Cause(ctx), errInterrupted) && (errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted))
}

// usageError is a command line that cannot be carried out.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// misuse builds a [usageError].
func misuse(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// silentError ends the program with a code; what there is to say was said.
type silentError struct{ code int }

func (e *silentError) Error() string { return fmt.Sprintf("exit code %d", e.code) }
