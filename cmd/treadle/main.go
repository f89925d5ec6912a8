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
	"syscall"
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
	// exitInterrupted: a second Ctrl-C ended the program on the spot.
	exitInterrupted = 130
)

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
	ctx, cancel := context.WithCancelCause(parent)
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
	fmt.Fprintf(stderr, "treadle: %s\n", explain(ctx, err))
	return exitFailed
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
