package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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
)

func newMapCommand() *cobra.Command {
	var file string
	var progress bool
	var task taskFlags
	cmd := &cobra.Command{
		Use:   "map FUNCTION [VALUE...]",
		Short: "Execute a function for each value and print the results in order",
		Long: `Execute a function once for each value and print the results in the order of the values,
one line of JSON each. Values are the arguments, else the lines of --file or of standard
input; blank lines are left out. A JSON array is the positional arguments of one
execution, any other value its one argument.

A task that fails prints null and its error goes to standard error; the others go on, and
the exit code is 1. Memory stays bounded however many values there are.

` + wordsHelp,
		Example: `  treadle map double 1 2 3
  seq 1 100000 | treadle map double > results.txt
  printf '[1, 2]\n[3, 4]\n' | treadle map add
  treadle map resize --file photos.txt --json | jq -r 'select(.error) | .task_id'`,
		Args:              arguments(1, -1, "a FUNCTION, by id or name"),
		ValidArgsFunction: completeFunction,
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", `file with one value a line; "-" is standard input`)
	cmd.Flags().BoolVar(&progress, "progress", false, "show progress on standard error (default: when only that is a terminal)")
	task.register(cmd)
	return clientCommand(cmd, "print each result with its task id and status, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			args = plainArgs(args)
			options, err := task.options(cmd)
			if err != nil {
				return err
			}
			values, total, err := mapValues(cmd, file, args[1:])
			if err != nil {
				return err
			}
			defer func() { _ = values.Close() }()
			m := &mapper{client: c, function: args[0], options: options, json: o.json,
				out: bufio.NewWriter(cmd.OutOrStdout()), errOut: cmd.ErrOrStderr()}
			if progress || !cmd.Flags().Changed("progress") && isTerminal(cmd.ErrOrStderr()) && !isTerminal(cmd.OutOrStdout()) {
				m.bar = newBar(cmd.ErrOrStderr(), total, "map")
			}
			return m.run(cmd.Context(), values)
		})
}

// mapValues opens the source of the values: lines, and how many where that is known (-1).
func mapValues(cmd *cobra.Command, file string, args []string) (io.ReadCloser, int64, error) {
	switch {
	case len(args) > 0 && file != "":
		return nil, 0, misuse("values are either arguments or lines of --file, not both")
	case len(args) > 0:
		var lines bytes.Buffer
		for _, a := range args {
			// An argument may hold a line break; as compact JSON it has none.
			if err := json.Compact(&lines, jsonWord(a)); err != nil {
				return nil, 0, err
			}
			lines.WriteByte('\n')
		}
		return io.NopCloser(&lines), int64(len(args)), nil
	case file != "" && file != "-":
		f, err := os.Open(file)
		return f, -1, err
	default:
		return io.NopCloser(cmd.InOrStdin()), -1, nil
	}
}

func newBar(w io.Writer, total int64, what string) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("tasks"),
		progressbar.OptionThrottle(barThrottle), progressbar.OptionClearOnFinish())
}

// mapper carries one map: a reader, a submitter, and a printer that takes the batches
// in order while each batch's results arrive in any.
type mapper struct {
	client   *treadle.Client
	function string
	options  treadle.Options
	json     bool
	out      *bufio.Writer
	errOut   io.Writer
	bar      *progressbar.ProgressBar // nil for none

	failed int
}

// mapLine is one value, or why there are no more.
type mapLine struct {
	number int // from 1
	text   []byte
	err    error
}

// mapped is some consecutive values on their way.
type mapped struct {
	lines []mapLine
	// results has one channel for each line, with room for its result.
	results []chan *treadle.Result
}

func (m *mapper) run(ctx context.Context, values io.Reader) error {
	g, ctx := errgroup.WithContext(ctx)
	lines := make(chan mapLine, mapBatch)
	batches := make(chan *mapped, mapBatches)
	// The reader may sit in a Read that nothing interrupts (a terminal), so nobody
	// waits for it: it ends with its input, with ctx or with the program.
	go readLines(ctx, values, lines)
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
		return err
	}
	if m.failed > 0 {
		fmt.Fprintf(m.errOut, "treadle: %d tasks have no result\n", m.failed)
		return &silentError{exitFailed}
	}
	return nil
}

// readLines sends the lines that are not blank, then closes the channel.
func readLines(ctx context.Context, r io.Reader, lines chan<- mapLine) {
	defer close(lines)
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 64<<10), maxMapLine)
	number := 0
	for scanner.Scan() {
		number++
		text := bytes.TrimSpace(scanner.Bytes())
		if len(text) == 0 {
			continue
		}
		select {
		case lines <- mapLine{number: number, text: bytes.Clone(text)}:
		case <-ctx.Done():
			return
		}
	}
	if err := scanner.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("line %d is longer than %s", number+1, formatBytes(maxMapLine))
		}
		select {
		case lines <- mapLine{err: err}:
		case <-ctx.Done():
		}
	}
}

// submit records what lines are there in one request each time, and leaves the
// batches in order.
func (m *mapper) submit(ctx context.Context, g *errgroup.Group, lines <-chan mapLine, batches chan<- *mapped) error {
	for {
		batch, err := takeLines(ctx, lines)
		if err != nil || len(batch.lines) == 0 {
			return err
		}
		requests := make([]treadle.Request, len(batch.lines))
		for i, l := range batch.lines {
			requests[i] = treadle.Request{Function: m.function, Args: mapArgs(l.text), Options: m.options}
		}
		submitted, err := m.client.ExecuteBatch(ctx, requests)
		if err != nil {
			return err
		}
		ids := make([]string, len(submitted))
		index := make(map[string]int, len(submitted))
		for i, s := range submitted {
			if s.Err != nil {
				return fmt.Errorf("value %d: %w", batch.lines[i].number, s.Err)
			}
			ids[i], index[s.TaskID] = s.TaskID, i
			batch.results = append(batch.results, make(chan *treadle.Result, 1))
		}
		g.Go(func() error {
			for r, err := range m.client.Await(ctx, ids) {
				if err != nil {
					return err
				}
				batch.results[index[r.TaskID]] <- r
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
}

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

// mapArgs reads one line: a JSON array is the arguments, anything else is one.
func mapArgs(line []byte) []any {
	word := jsonWord(string(line))
	if word[0] != '[' {
		return []any{word}
	}
	var list []json.RawMessage
	if err := json.Unmarshal(word, &list); err != nil {
		return []any{word} // cannot be: jsonWord has checked it
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
		fmt.Fprintf(m.errOut, "treadle: value %d: task %s %s: %s\n", number, r.TaskID, r.Status, firstLine(err.Error(), 500))
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
