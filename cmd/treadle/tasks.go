package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status TASK_ID",
		Short: "Show a task's record: status, times, attempts, error",
		Example: `  treadle status 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11
  treadle status --json 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11 | jq -r .status`,
		Args: arguments(1, 1, "one TASK_ID"),
	}
	return clientCommand(cmd, "print the record as one JSON object",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			t, err := c.Task(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), t)
			}
			workers, err := c.Workers(cmd.Context())
			if err != nil {
				workers = nil // the record says what it can
			}
			why := ""
			if t.Status == treadle.Queued && err == nil {
				why = whyWaits(t, workers, time.Now())
			}
			return printTask(cmd.OutOrStdout(), t, why, workers)
		})
}

// printTask writes a task's record for people; why says what it waits for, workers are
// those that are attached, whose names and machines are known.
func printTask(w io.Writer, t *treadle.Task, why string, workers []treadle.Worker) error {
	called := func(id string) string {
		i := slices.IndexFunc(workers, func(w treadle.Worker) bool { return w.ID == id })
		if i < 0 {
			return id
		}
		names := slices.DeleteFunc(slices.Compact([]string{workers[i].Name, workers[i].Host}), func(s string) bool { return s == "" })
		return strings.TrimSuffix(fmt.Sprintf("%s (%s)", id, strings.Join(names, " on ")), " ()")
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(key, value string) {
		if value != "" {
			_, _ = fmt.Fprintf(tw, "%s\t%s\n", key, printable(value)) // Flush returns the error
		}
	}
	line("task", t.ID)
	line("status", string(t.Status))
	line("waits because", why)
	line("function", fmt.Sprintf("%s (%s, %s)", t.FunctionName, t.FunctionID, t.Runtime))
	line("queue", fmt.Sprintf("%s, priority %d", t.Queue, t.Priority))
	line("created", stamp(t.CreatedAt))
	line("created by", t.CreatedBy)
	line("parent", t.ParentID)
	line("started", stamp(t.StartedAt))
	line("finished", stamp(t.FinishedAt))
	if !t.FinishedAt.IsZero() && !t.StartedAt.IsZero() {
		line("took", span(t.FinishedAt.Sub(t.StartedAt)))
	}
	line("worker", called(t.Worker))
	if t.LostWorkers > 0 || t.Raised > 0 {
		line("spent", fmt.Sprintf("lost workers: %d, raised exceptions: %d", t.LostWorkers, t.Raised))
	}
	for _, a := range t.Attempts {
		text := a.End
		if text == "" {
			text = "runs"
		}
		if a.Reason != "" {
			text += ": " + firstLine(a.Reason, 200)
		}
		line("attempt "+strconv.Itoa(a.Number), fmt.Sprintf("%s on %s, %s", stamp(a.StartedAt), called(a.Worker), text))
	}
	if t.Error != nil {
		line("error", firstLine(t.Error.Error(), 500))
	}
	return tw.Flush()
}

func newResultCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "result TASK_ID",
		Short: "Print a task's result as JSON",
		Long: `Print a task's result as JSON. When the task failed or was cancelled standard error says
so and the exit code is 1; while it is unfinished the exit code is 4, and standard error
says why it waits where that can be seen.`,
		Example: `  treadle result 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11
  treadle result 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11 --wait 30s`,
		Args: arguments(1, 1, "one TASK_ID"),
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for the end of the task; -1s waits without limit")
	return clientCommand(cmd, "print the result with its task id and status as one JSON object",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			r, err := c.Result(cmd.Context(), args[0], wait)
			if err != nil {
				return err
			}
			err = printResult(cmd, r, o.json)
			if !o.json && r.Status == treadle.Queued {
				if why := whyQueued(cmd.Context(), c, r.TaskID); why != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "It waits: %s\n", why)
				}
			}
			return err
		})
}

func newWatchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch TASK_ID",
		Short: "Show each change of a task's status until it is finished",
		Long: `Show a task's status now and after each change, until it is finished. The exit code is
0 when it ends COMPLETED, else 1.`,
		Example: `  treadle watch 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11
  treadle watch "$id" && treadle result "$id"`,
		Args: arguments(1, 1, "one TASK_ID"),
	}
	return clientCommand(cmd, "print the record at each change, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			last := treadle.Status("")
			for t, err := range c.Watch(cmd.Context(), args[0]) {
				if err != nil {
					return err
				}
				last = t.Status
				if o.json {
					err = printJSON(cmd.OutOrStdout(), t)
				} else {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), watchLine(t))
				}
				if err != nil {
					return err
				}
			}
			if last != treadle.Completed {
				return &silentError{exitFailed}
			}
			return nil
		})
}

func watchLine(t *treadle.Task) string {
	when, detail := t.CreatedAt, ""
	switch {
	case t.Status.Terminal():
		when = t.FinishedAt
		if t.Error != nil {
			detail = firstLine(t.Error.Error(), 200)
		}
	case t.Status == treadle.Running:
		when, detail = t.StartedAt, fmt.Sprintf("attempt %d on %s", t.AttemptCount, t.Worker)
	case t.AttemptCount > 0:
		when, detail = time.Now(), fmt.Sprintf("back after %d attempts", t.AttemptCount)
	}
	return strings.TrimSpace(fmt.Sprintf("%s  %-9s  %s", stamp(when), t.Status, printable(detail)))
}

func newLogsCommand() *cobra.Command {
	var attempt int
	cmd := &cobra.Command{
		Use:   "logs TASK_ID",
		Short: "Print what an attempt of a task wrote to stdout and stderr",
		Long:  `Print what an attempt wrote to standard output and standard error: its last 64 KiB.`,
		Example: `  treadle logs 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11
  treadle logs 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11 --attempt 1`,
		Args: arguments(1, 1, "one TASK_ID"),
	}
	cmd.Flags().IntVar(&attempt, "attempt", 0, "number of the attempt (default the latest)")
	return clientCommand(cmd, "print task id, attempt and text as one JSON object",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			if attempt < 0 {
				return misuse("--attempt %d: attempts count from 1", attempt)
			}
			logs, err := c.Logs(cmd.Context(), args[0], attempt)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), logs)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), harmless(cmd.OutOrStdout(), logs.Text))
			return err
		})
}

func newCancelCommand() *cobra.Command {
	var onlyQueued bool
	cmd := &cobra.Command{
		Use:   "cancel TASK_ID...",
		Short: "Cancel tasks: they never complete, and running attempts are stopped",
		Long: `Cancel tasks and print the status of each. A task that is finished already stays as it
is. The exit code is 5 when one of them is unknown.`,
		Example: `  treadle cancel 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11
  treadle tasks --status QUEUED --json | jq -r .task_id | xargs treadle cancel`,
		Args: arguments(1, -1, "at least one TASK_ID"),
	}
	cmd.Flags().BoolVar(&onlyQueued, "only-queued", false, "leave tasks alone whose attempt has started")
	return clientCommand(cmd, "print each task's record, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			var failed []error
			for _, id := range args {
				cancel := c.Cancel
				if onlyQueued {
					cancel = c.CancelQueued
				}
				t, err := cancel(cmd.Context(), id)
				if errors.Is(err, treadle.ErrUnavailable) || cmd.Context().Err() != nil {
					return errors.Join(append(failed, err)...)
				}
				if err != nil {
					failed = append(failed, err)
					continue
				}
				if o.json {
					err = printJSON(cmd.OutOrStdout(), t)
				} else {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", t.ID, t.Status)
				}
				if err != nil {
					return err
				}
			}
			return errors.Join(failed...)
		})
}

func newTasksCommand() *cobra.Command {
	var filter, status, function, worker, view string
	var limit int
	cmd := &cobra.Command{
		Use:   "tasks",
		Short: "List tasks, newest first",
		Long: `List tasks, newest first. A filter joins conditions by AND: status = X, function = ID or
NAME, worker = ID, parent = ID, create_time > T, create_time < T (RFC 3339).

Errors are listed without traceback and with at most 1 KiB of their message, unless --view
full asks for the whole; 'treadle status --json' always has it.`,
		Example: `  treadle tasks
  treadle tasks --status FAILED --limit 1000
  treadle tasks --filter 'function = double AND create_time > 2026-11-01T00:00:00Z'
  treadle tasks --limit 0 --json | jq -r .task_id`,
		Args: arguments(0, 0, ""),
	}
	cmd.Flags().StringVar(&filter, "filter", "", "which tasks (default all)")
	cmd.Flags().Var(newChoice(&status, "", "QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"), "status", "only tasks of that status")
	cmd.Flags().StringVar(&function, "function", "", "only tasks of that function, by id or name")
	cmd.Flags().StringVar(&worker, "worker", "", "only tasks whose latest attempt that worker has or had")
	cmd.Flags().IntVar(&limit, "limit", 100, "how many at most; 0 means all")
	cmd.Flags().Var(newChoice(&view, "basic", "basic", "full"), "view", "how much of each error --json has")
	return clientCommand(cmd, "print each task's record, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, _ []string) error {
			if limit < 0 {
				return misuse("--limit %d: want 0 (all) or more", limit)
			}
			var options []treadle.ListOption
			if view == "full" {
				options = append(options, treadle.WithFullErrors())
			}
			now, n := time.Now(), 0
			out := newTable(cmd.OutOrStdout(), "TASK", "STATUS", "FUNCTION", "AGE", "TOOK", "ATTEMPTS", "WORKER", "ERROR")
			for t, err := range c.Tasks(cmd.Context(), conditions(filter, status, function, worker), options...) {
				if err != nil {
					return err
				}
				if o.json {
					if err := printJSON(cmd.OutOrStdout(), t); err != nil {
						return err
					}
				} else {
					out.row(taskRow(t, now)...)
				}
				if n++; n == limit {
					break
				}
			}
			if o.json {
				return nil
			}
			return out.flush()
		})
}

// quoteFilter makes text fit between the double quotes of a filter.
var quoteFilter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// conditions joins the filter and its short forms.
func conditions(filter, status, function, worker string) string {
	var terms []string
	add := func(format string, value string) {
		if value != "" {
			terms = append(terms, fmt.Sprintf(format, value))
		}
	}
	add("%s", filter)
	add("status = %s", status)
	add(`function = "%s"`, quoteFilter.Replace(function))
	add(`worker = "%s"`, quoteFilter.Replace(worker))
	return strings.Join(terms, " AND ")
}

func taskRow(t *treadle.Task, now time.Time) []string {
	took, problem := "", ""
	if !t.StartedAt.IsZero() && !t.FinishedAt.IsZero() {
		took = span(t.FinishedAt.Sub(t.StartedAt))
	}
	if t.Error != nil {
		problem = firstLine(t.Error.Error(), 60)
	}
	return []string{
		t.ID, string(t.Status), firstLine(t.FunctionName, 40), age(t.CreatedAt, now), took,
		strconv.Itoa(t.AttemptCount), t.Worker, problem,
	}
}
