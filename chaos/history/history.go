// Package history is what the processes of a run write down while it goes on, and what
// the checks read afterwards: JSON lines, with the time of one clock that all processes
// of the machine share.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Now is the machine's monotonic clock in nanoseconds. It does not leap when the wall
// clock is set, and Python's time.monotonic_ns is the same one.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // the clock is there on every Linux
	}
	return ts.Nano()
}

// Kinds of events. An operation is invoked and then ends in one of the other three: Info
// means that its outcome is unknown.
const (
	Invoke = "invoke"
	OK     = "ok"
	Fail   = "fail"
	Info   = "info"
)

// Operations of clients.
const (
	Submit = "submit"
	Get    = "get"
	Result = "result"
	Cancel = "cancel"
)

// Event is one line of a client's history, or of the harness's (a fault).
type Event struct {
	At      int64  `json:"at"`
	Process string `json:"process"`
	// ID ties the end of an operation to its beginning, within one process.
	ID   int64  `json:"id,omitempty"`
	Type string `json:"type"`
	Op   string `json:"op"`
	// Key is the request id of the task, Task the id that the server gave it.
	Key  string `json:"key,omitempty"`
	Task string `json:"task,omitempty"`
	// Status, Run (which execution the result came from) and Class are what was read.
	Status string `json:"status,omitempty"`
	Run    string `json:"run,omitempty"`
	Class  string `json:"class,omitempty"`
	Err    string `json:"err,omitempty"`
	// Plan is what the function of a submission does, Deadline says that it has one.
	Plan     Plan `json:"plan,omitempty"`
	Deadline bool `json:"deadline,omitempty"`
}

// Plan is what the function of a task does when it runs to its end.
type Plan string

// Plans.
const (
	// Returns: it returns a result that names its execution.
	Returns Plan = ""
	// Raises: it raises an exception that names its execution.
	Raises Plan = "raises"
	// Overruns: it runs longer than the timeout of its task.
	Overruns Plan = "overruns"
	// Exhausts: it takes more memory than its task may have.
	Exhausts Plan = "exhausts"
)

// Run is one line of the ledger that the executed functions write.
type Run struct {
	At   int64  `json:"at"`
	Key  string `json:"key"`
	Run  string `json:"run"`
	What string `json:"what"`
	// PID is that of the runner, Agent that of its parent.
	PID   int `json:"pid"`
	Agent int `json:"agent"`
}

// What a function writes into the ledger.
const (
	Started = "start"
	Ticked  = "tick"
	Ended   = "end"
	// Raised is written before the exception of a task that raises.
	Raised = "raise"
)

// Writer appends events to a file.
type Writer struct {
	process string
	mu      sync.Mutex
	file    *os.File
	next    int64
}

// Create opens the history of a process.
func Create(path, process string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create a history: %w", err)
	}
	return &Writer{process: process, file: f}, nil
}

// Begin writes the invocation of an operation and returns its id.
func (w *Writer) Begin(e Event) (int64, error) {
	w.mu.Lock()
	w.next++
	e.ID = w.next
	w.mu.Unlock()
	e.Type = Invoke
	return e.ID, w.Write(e)
}

// Write appends an event; the time and the process are filled in. Every line is one write,
// so that a kill cuts at most the last one.
func (w *Writer) Write(e Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	e.At, e.Process = Now(), w.process
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := w.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write a history: %w", err)
	}
	return nil
}

// Close ends the history.
func (w *Writer) Close() error { return w.file.Close() }

// Read reads the lines of a file into values of T. A last line that was cut short by a
// kill is left out; a missing file has no lines.
func Read[T any](path string) ([]T, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []T
	r := bufio.NewReaderSize(f, 1<<16)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		list = append(list, v)
	}
}

// Operation is an invocation with its end. Return is zero when there is none.
type Operation struct {
	Invoke Event
	Return Event
}

// Unknown says that the operation may or may not have had an effect.
func (o *Operation) Unknown() bool { return o.Return.Type == "" || o.Return.Type == Info }

// Operations pairs the events of one or more processes.
func Operations(events []Event) ([]Operation, error) {
	type name struct {
		process string
		id      int64
	}
	var list []Operation
	open := map[name]int{}
	for _, e := range events {
		n := name{e.Process, e.ID}
		if e.Type == Invoke {
			open[n] = len(list)
			list = append(list, Operation{Invoke: e})
			continue
		}
		i, ok := open[n]
		if !ok {
			return nil, fmt.Errorf("%s: the end of operation %d has no beginning", e.Process, e.ID)
		}
		list[i].Return = e
		delete(open, n)
	}
	return list, nil
}
