package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

const (
	// mapBatch is how many lines travel in one request at most: what is there already.
	mapBatch = 500
	// mapBatches bounds the batches whose results are awaited or not yet printed, and
	// by that the memory of a map of any length.
	mapBatches = 8
	// maxMapLine bounds one line, in bytes.
	maxMapLine = 64 << 20
	// barThrottle is how often a progress bar is drawn at most.
	barThrottle = 100 * time.Millisecond
	// sendGrace is how long Ctrl-C waits for a request that has left, whose tasks could not
	// be cancelled else; cancelTime bounds the cancelling, cancelsAtOnce its calls in flight.
	sendGrace     = 5 * time.Second
	cancelTime    = 30 * time.Second
	cancelsAtOnce = 64
)

func newMapCommand() *cobra.Command {
	var file string
	var progress, text bool
	var task taskFlags
	cmd := &cobra.Command{
		Use:   "map FUNCTION [VALUE...]",
		Short: "Execute a function for each value and print the results in order",
		Long: `Execute a function once for each value and print the results in the order of the values,
one line of JSON each. Values are the arguments, else the lines of --file or of standard
input; blank lines are skipped. A JSON array is the positional arguments of one
execution, any other value its one argument.

A task that fails prints null and its error goes to standard error; the others go on, and
the exit code is 1. Memory stays bounded however many values there are.

A line of malformed JSON ends the map once the values before it are done, and the
exit code is 2; lines of a --file are all checked before the first one is sent. --text
takes each line as a string, whatever it looks like.

Ctrl-C cancels the tasks that have not finished; a second Ctrl-C exits at once.

` + wordsHelp,
		Example: `  treadle map double 1 2 3
  seq 1 100000 | treadle map double > results.txt
  printf '[1, 2]\n[3, 4]\n' | treadle map add
  treadle map resize --file photos.txt --json | jq -r 'select(.error) | .task_id'`,
		Args:              arguments(1, -1, "a FUNCTION, by id or name"),
		ValidArgsFunction: completeFunction,
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", `file with one value a line; "-" is standard input`)
	cmd.Flags().BoolVar(&text, "text", false, "each value is a string, not JSON")
	cmd.Flags().BoolVar(&progress, "progress", false, "show progress on standard error (default: when only that is a terminal)")
	task.register(cmd)
	return clientCommand(cmd, "print each result with its task id and status, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			args = plainArgs(args)
			options, err := task.options(cmd)
			if err != nil {
				return err
			}
			values, total, err := mapValues(cmd, file, args[1:], text)
			if err != nil {
				return err
			}
			defer func() { _ = values.Close() }()
			m := &mapper{client: c, function: args[0], options: options, json: o.json, text: text && len(args) == 1,
				out: bufio.NewWriter(cmd.OutOrStdout()), errOut: cmd.ErrOrStderr(), under: map[string]bool{}, began: time.Now()}
			if progress || !cmd.Flags().Changed("progress") && isTerminal(cmd.ErrOrStderr()) && !isTerminal(cmd.OutOrStdout()) {
				m.bar = newBar(cmd.ErrOrStderr(), total, "map")
			}
			ctx, stop := endAtHangup(cmd.Context())
			defer stop()
			if err = m.run(ctx, values); err != nil && errors.Is(context.Cause(ctx), errHangup) {
				return &silentError{exitInterrupted} // there is nobody to tell
			}
			return err
		})
}

// mapValues opens the source of the values: lines, and how many where that is known (-1).
func mapValues(cmd *cobra.Command, file string, args []string, text bool) (io.ReadCloser, int64, error) {
	switch {
	case len(args) > 0 && file != "":
		return nil, 0, misuse("values are either arguments or lines of --file, not both")
	case len(args) > 0:
		var lines bytes.Buffer
		word := argumentWord
		if text {
			word = textWord
		}
		for _, a := range args {
			v, err := word(a)
			if err != nil {
				return nil, 0, &usageError{err}
			}
			// An argument may hold a line break; as compact JSON it has none.
			if err := json.Compact(&lines, v); err != nil {
				return nil, 0, err
			}
			lines.WriteByte('\n')
		}
		return io.NopCloser(&lines), int64(len(args)), nil
	case file != "" && file != "-":
		f, err := os.Open(file)
		if err != nil {
			return nil, 0, err
		}
		total, err := checkFile(cmd.Context(), f, text)
		if err != nil {
			return nil, 0, errors.Join(fmt.Errorf("%s: %w", file, err), f.Close())
		}
		return f, total, nil
	default:
		return io.NopCloser(cmd.InOrStdin()), -1, nil
	}
}

// checkFile reads a file of values once, so that nothing is started for one with a broken
// line, and returns how many there are; -1 for what cannot be read twice.
func checkFile(ctx context.Context, f *os.File, text bool) (int64, error) {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return -1, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan mapLine, mapBatch)
	go readLines(ctx, f, text, lines)
	var total int64
	for l := range lines {
		if l.err != nil {
			return 0, l.err
		}
		total++
	}
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	_, err := f.Seek(0, io.SeekStart)
	return total, err
}

func newBar(w io.Writer, total int64, what string) *progressbar.ProgressBar {
	bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("tasks"),
		progressbar.OptionThrottle(barThrottle), progressbar.OptionClearOnFinish())
	// Its clock starts here, not with the first result: a batch of them would look like a
	// rate of hundreds of thousands a second.
	_ = bar.RenderBlank()
	return bar
}

// mapper carries one map: a reader, a submitter, and a printer that takes the batches
// in order while each batch's results arrive in any.
type mapper struct {
	client   *treadle.Client
	function string
	options  treadle.Options
	json     bool
	// text: each value is a string.
	text   bool
	out    *bufio.Writer
	errOut io.Writer
	bar    *progressbar.ProgressBar // nil for none

	failed int
	began  time.Time

	mu sync.Mutex
	// under are the tasks that were started and are not known to have ended.
	under map[string]bool
	// bad is the line that ended the input early.
	bad error
}

// mapLine is one value, or why there are no more.
type mapLine struct {
	number int // from 1
	value  json.RawMessage
	err    error
}

// mapped is some consecutive values on their way.
type mapped struct {
	lines []mapLine
	ids   []string
	// index says which line a task is for.
	index map[string]int
	// results has one channel for each line, with room for its result.
	results []chan *treadle.Result
}

func (m *mapper) run(parent context.Context, values io.Reader) error {
	g, ctx := errgroup.WithContext(parent)
	lines := make(chan mapLine, mapBatch)
	batches := make(chan *mapped, mapBatches)
	// The reader may sit in a Read that nothing interrupts (a terminal), so nobody
	// waits for it: it ends with its input, with ctx or with the program.
	go readLines(ctx, values, m.text, lines)
	g.Go(func() error {
		defer close(batches)
		return m.submit(ctx, g, lines, batches)
	})
	g.Go(func() error { return m.print(ctx, batches) })
	err := g.Wait()
	if m.bar != nil {
		_ = m.bar.Finish() // it only draws
	}
	if err = errors.Join(err, m.out.Flush()); err != nil {
		m.cancelRest(parent)
		return err
	}
	if m.failed > 0 {
		fmt.Fprintf(m.errOut, "treadle: %s no result\n", countedTasks(m.failed)+map[bool]string{true: " has", false: " have"}[m.failed == 1])
	}
	if m.bad != nil {
		return m.bad
	}
	if m.failed > 0 {
		return &silentError{exitFailed}
	}
	return nil
}

// readLines sends the lines that are not blank, then closes the channel.
func readLines(ctx context.Context, r io.Reader, text bool, lines chan<- mapLine) {
	defer close(lines)
	send := func(l mapLine) bool {
		select {
		case lines <- l:
			return l.err == nil
		case <-ctx.Done():
			return false
		}
	}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 64<<10), maxMapLine)
	number := 0
	for scanner.Scan() {
		number++
		line, err := scanner.Bytes(), error(nil)
		if number == 1 {
			line, err = withoutBOM(line)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 && err == nil {
			continue
		}
		l := mapLine{number: number}
		switch {
		case err != nil:
		case text:
			l.value, err = textWord(string(line))
		default:
			if l.value, err = jsonWord(string(line)); err != nil {
				err = fmt.Errorf("%w; --text takes lines as strings", err)
			}
		}
		if err != nil {
			l.err = misuse("line %d: %w", number, err)
		}
		if !send(l) {
			return
		}
	}
	if err := scanner.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = misuse("line %d is longer than %s", number+1, formatBytes(maxMapLine))
		}
		send(mapLine{err: err})
	}
}

// submit records what lines are there in one request each time, and leaves the
// batches in order. A line that cannot be read ends it; what was started goes on.
func (m *mapper) submit(ctx context.Context, g *errgroup.Group, lines <-chan mapLine, batches chan<- *mapped) error {
	for m.bad == nil {
		batch, err := takeLines(ctx, lines)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m.bad = err
		if len(batch.lines) == 0 {
			return nil
		}
		if err := m.send(ctx, batch); err != nil {
			return err
		}
		g.Go(func() error {
			for r, err := range m.client.Await(ctx, batch.ids) {
				if err != nil {
					return err
				}
				m.mu.Lock()
				delete(m.under, r.TaskID)
				m.mu.Unlock()
				batch.results[batch.index[r.TaskID]] <- r
				if m.bar != nil {
					_ = m.bar.Add(1)
				}
			}
			return nil
		})
		select {
		case batches <- batch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// send submits a batch. A request that has left is waited for a while longer than ctx, so
// that what it started can be cancelled.
func (m *mapper) send(ctx context.Context, batch *mapped) error {
	requests := make([]treadle.Request, len(batch.lines))
	for i, l := range batch.lines {
		requests[i] = treadle.Request{Function: m.function, Args: mapArgs(l.value, m.text), Options: m.options}
	}
	sendCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(sendGrace, cancel) })
	defer stop()
	submitted, err := m.client.ExecuteBatch(sendCtx, requests)
	if err != nil {
		return err
	}
	batch.index = make(map[string]int, len(submitted))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, s := range submitted {
		if s.Err != nil {
			err = errors.Join(err, fmt.Errorf("value %d: %w", batch.lines[i].number, s.Err))
			continue
		}
		m.under[s.TaskID] = true
		batch.ids, batch.index[s.TaskID] = append(batch.ids, s.TaskID), i
	}
	for range batch.lines {
		batch.results = append(batch.results, make(chan *treadle.Result, 1))
	}
	if err != nil {
		return parted(err)[0] // the rest says the same
	}
	return ctx.Err()
}

// cancelRest cancels what was started and has not ended, and says so. parent is the
// context of the command, which may have ended.
func (m *mapper) cancelRest(parent context.Context) {
	rest := slices.Collect(maps.Keys(m.under)) // everybody who used it has ended
	if len(rest) == 0 {
		return
	}
	find := fmt.Sprintf("treadle tasks --function %s --filter 'create_time > %s'", quoted(m.function), m.began.UTC().Format(time.RFC3339))
	fmt.Fprintf(m.errOut, "treadle: cancelling %s that were started; Ctrl-C again leaves the rest\n", countedTasks(len(rest)))
	partingWords(parent, fmt.Sprintf("treadle: left at once; find the rest with\n  %s\n", find))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), cancelTime)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(cancelsAtOnce)
	var failed atomic.Int64
	for _, id := range rest {
		g.Go(func() error {
			if _, err := m.client.Cancel(ctx, id); err != nil {
				failed.Add(1)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are counted
	if n := int(failed.Load()); n > 0 {
		fmt.Fprintf(m.errOut, "treadle: %s could not be cancelled and may go on: find them with\n  %s\n", countedTasks(n), find)
		return
	}
	fmt.Fprintf(m.errOut, "treadle: cancelled %s\n", countedTasks(len(rest)))
}

// quoted is a word for a shell.
func quoted(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[\w.:/-]+$`)

// takeLines waits for one line and takes those that are there with it. No lines and
// no error mean the end.
func takeLines(ctx context.Context, lines <-chan mapLine) (*mapped, error) {
	batch := &mapped{}
	take := func(l mapLine, ok bool) (more bool, err error) {
		if !ok || l.err != nil {
			return false, l.err
		}
		batch.lines = append(batch.lines, l)
		return len(batch.lines) < mapBatch, nil
	}
	var more bool
	var err error
	select {
	case l, ok := <-lines:
		more, err = take(l, ok)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for more {
		select {
		case l, ok := <-lines:
			more, err = take(l, ok)
		default:
			more = false
		}
	}
	return batch, err
}

// mapArgs are the arguments that one value stands for: a JSON array is all of them,
// anything else is one.
func mapArgs(value json.RawMessage, text bool) []any {
	if text || value[0] != '[' {
		return []any{value}
	}
	var list []json.RawMessage
	if err := json.Unmarshal(value, &list); err != nil {
		return []any{value} // cannot be: it was checked when it was read
	}
	args := make([]any, len(list))
	for i, v := range list {
		args[i] = v
	}
	return args
}

// print writes the results in the order of the values.
func (m *mapper) print(ctx context.Context, batches <-chan *mapped) error {
	for {
		batch, ok, err := next(ctx, m.out, batches)
		if !ok {
			return err
		}
		for i, results := range batch.results {
			r, _, err := next(ctx, m.out, results)
			if err != nil {
				return err
			}
			if err := m.printOne(batch.lines[i].number, r); err != nil {
				return err
			}
		}
	}
}

// next receives, and shows what was printed before it waits.
func next[T any](ctx context.Context, out *bufio.Writer, from <-chan T) (v T, ok bool, err error) {
	select {
	case v, ok = <-from:
		return v, ok, nil
	default:
	}
	if err := out.Flush(); err != nil {
		return v, false, err
	}
	select {
	case v, ok = <-from:
		return v, ok, nil
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	}
}

func (m *mapper) printOne(number int, r *treadle.Result) error {
	err := r.Err()
	if err != nil {
		m.failed++
	}
	if m.json {
		return printJSON(m.out, r)
	}
	line := []byte("null")
	switch {
	case err != nil:
		fmt.Fprintf(m.errOut, "treadle: value %d: task %s %s: %s\n", number, r.TaskID, r.Status, printable(firstLine(err.Error(), 500)))
	case r.JSON != nil:
		line = r.JSON
	case r.Repr != "":
		if line, err = json.Marshal(r.Repr); err != nil {
			return err
		}
	}
	_, err = m.out.Write(append(line, '\n'))
	return err
}
