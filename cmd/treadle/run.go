package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/task"
)

// taskFlags are the options of tasks, as flags of run and map.
type taskFlags struct {
	priority, maxRetries, functionRetries int
	timeout, within                       time.Duration
	memoryLimit                           byteSize
}

func (f *taskFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.IntVar(&f.priority, "priority", 5, "0 to 9, higher first")
	fl.DurationVar(&f.timeout, "timeout", 0, "limit on one attempt's run time, for example 30s (default: the server's)")
	fl.DurationVar(&f.within, "deadline", 0, "give up when the task is not finished within this time, waiting included")
	fl.IntVar(&f.maxRetries, "max-retries", 3, "how often the task is retried after its worker was lost (default: the server's)")
	fl.IntVar(&f.functionRetries, "function-retries", 0, "how often a raised exception is tried again (default 0)")
	fl.Var(&f.memoryLimit, "memory-limit", "memory of one attempt, at least 1MiB, for example 512MiB (default: the worker's)")
	fl.Lookup("max-retries").DefValue = "0" // hides it in the help: the default is the server's
}

// options leaves to the server what was not given.
func (f *taskFlags) options(cmd *cobra.Command) (treadle.Options, error) {
	given := cmd.Flags().Changed
	o := treadle.Options{Timeout: f.timeout, MemoryLimit: int64(f.memoryLimit)}
	switch {
	case f.priority < 0 || f.priority > 9:
		return o, misuse("--priority %d: want 0 to 9", f.priority)
	case f.timeout < 0:
		return o, misuse("--timeout %s: want more than 0s, or 0s for the server's own limit", f.timeout)
	case f.within < 0:
		return o, misuse("--deadline %s: want more than 0s, or 0s for none", f.within)
	case f.maxRetries < 0 || f.maxRetries > task.MaxRetriesLimit:
		return o, misuse("--max-retries %d: want 0 to %d", f.maxRetries, task.MaxRetriesLimit)
	case f.functionRetries < 0 || f.functionRetries > task.MaxRetriesLimit:
		return o, misuse("--function-retries %d: want 0 to %d", f.functionRetries, task.MaxRetriesLimit)
	}
	if given("priority") {
		o.Priority = &f.priority
	}
	if given("max-retries") {
		o.MaxRetries = &f.maxRetries
	}
	if given("function-retries") {
		o.FunctionRetries = &f.functionRetries
	}
	if f.within > 0 {
		o.Deadline = time.Now().Add(f.within)
	}
	return o, nil
}

const wordsHelp = `An argument that is JSON (21, true, null, [1, 2], {"a": 1}, "text") is that value; any
other word is a string. To pass the string 21 write '"21"'. What starts with [, { or " and
is not valid JSON is an error.`

func newRunCommand() *cobra.Command {
	var kwargs, requestID string
	var pairs []string
	var detach bool
	var task taskFlags
	cmd := &cobra.Command{
		Use:   "run FUNCTION [ARG...]",
		Short: "Execute a function, wait and print its result as JSON",
		Long: `Execute a function, by id or name, wait for the result and print it as JSON. When the
task fails its traceback goes to standard error and the exit code is 1. Ctrl-C ends the
wait, not the task, and the exit code is 130. While no worker can run the task standard
error says why.

` + wordsHelp,
		Example: `  treadle run double 21
  treadle run greet Ada -k greeting=Hello
  treadle run train '{"layers": [64, 64]}' --timeout 1h --kwargs '{"epochs": 10}'
  id=$(treadle run --detach double 21); treadle result "$id" --wait 30s`,
		Args:              arguments(1, -1, "a FUNCTION, by id or name"),
		ValidArgsFunction: completeFunction,
	}
	cmd.Flags().StringVar(&kwargs, "kwargs", "", "keyword arguments, one JSON object")
	cmd.Flags().StringArrayVarP(&pairs, "kwarg", "k", nil, "one keyword argument, key=value; may be repeated")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait: print the task's id")
	cmd.Flags().StringVar(&requestID, "request-id", "", "text of at most 128 bytes that makes the execution idempotent: repeat a command with the same one")
	task.register(cmd)
	return clientCommand(cmd, "print the result with its task id and status as one JSON object",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			args = plainArgs(args)
			req := treadle.Request{Function: args[0], RequestID: requestID}
			var err error
			if req.Kwargs, err = keywords(kwargs, pairs); err != nil {
				return err
			}
			if req.Options, err = task.options(cmd); err != nil {
				return err
			}
			for _, a := range args[1:] {
				word, err := argumentWord(a)
				if err != nil {
					return err
				}
				req.Args = append(req.Args, word)
			}
			id, err := c.Execute(cmd.Context(), req)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if detach && o.json {
				return printJSON(out, map[string]string{"task_id": id})
			}
			if detach {
				_, err = fmt.Fprintln(out, id)
				return err
			}
			result, err := awaitTold(cmd.Context(), c, id, cmd.ErrOrStderr())
			if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "treadle: %s\nThe task %s continues: see 'treadle result %s --wait 30s', or 'treadle cancel %s'\n",
					explain(cmd.Context(), atAddress(c.Address(), err)), id, id, id)
				return &silentError{exitCode(cmd.Context(), err)}
			}
			return printResult(cmd, result, o.json)
		})
}

// keywords joins --kwargs and -k, which goes first.
func keywords(object string, pairs []string) (map[string]any, error) {
	var raw map[string]json.RawMessage
	if object != "" {
		if err := json.Unmarshal([]byte(object), &raw); err != nil || raw == nil {
			return nil, misuse("--kwargs %s: want one JSON object, for example '{\"key\": 1}'", object)
		}
	}
	out := make(map[string]any, len(raw)+len(pairs))
	for k, v := range raw {
		out[k] = v
	}
	for _, p := range pairs {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" {
			return nil, misuse("-k %s: want key=value", p)
		}
		word, err := argumentWord(value)
		if err != nil {
			return nil, err
		}
		out[key] = word
	}
	return out, nil
}

// printResult prints what a task ended in. A task without a value ends the program
// with code 1, an unfinished one with code 4, and standard error says why.
func printResult(cmd *cobra.Command, r *treadle.Result, asJSON bool) error {
	err := r.Err()
	switch {
	case asJSON:
		if e := printJSON(cmd.OutOrStdout(), r); e != nil {
			return e
		}
	case err == nil && r.JSON != nil:
		if _, e := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", harmless(cmd.OutOrStdout(), string(r.JSON))); e != nil {
			return e
		}
	case err == nil && r.Repr != "":
		if _, e := fmt.Fprintln(cmd.OutOrStdout(), harmless(cmd.OutOrStdout(), r.Repr)); e != nil {
			return e
		}
	case err == nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "The result is a pickle of %s: --json prints it in base64.\n",
			formatBytes(int64(len(r.Pickle))))
	default:
		printFailure(cmd.ErrOrStderr(), r, err)
	}
	switch {
	case errors.Is(err, treadle.ErrUnfinished):
		return &silentError{exitUnfinished}
	case err != nil:
		return &silentError{exitFailed}
	}
	return nil
}

// printFailure writes the traceback, then one line that says it all.
func printFailure(w io.Writer, r *treadle.Result, err error) {
	var failed *treadle.TaskError
	if errors.As(err, &failed) {
		if failed.Traceback != "" {
			fmt.Fprintln(w, harmless(w, strings.TrimRight(failed.Traceback, "\n")))
		}
		fmt.Fprintf(w, "treadle: task %s %s: %s\n", r.TaskID, r.Status, harmless(w, err.Error()))
		return
	}
	fmt.Fprintf(w, "treadle: task %s is %s: wait for it with 'treadle result %s --wait 30s'\n", r.TaskID, r.Status, r.TaskID)
}
