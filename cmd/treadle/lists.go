package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

func newFunctionsCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "functions",
		Short: "List registered functions, newest first",
		Example: `  treadle functions
  treadle functions --limit 0 --json | jq -r .name | sort -u
  treadle functions rm 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11`,
		Args: arguments(0, 0, ""),
	}
	cmd.AddCommand(newFunctionsRemoveCommand())
	cmd.Flags().IntVar(&limit, "limit", 100, "how many at most; 0 means all")
	return clientCommand(cmd, "print each registration, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, _ []string) error {
			if limit < 0 {
				return misuse("--limit %d: want 0 (all) or more", limit)
			}
			now, n := time.Now(), 0
			out := newTable(cmd.OutOrStdout(), "FUNCTION", "NAME", "RUNTIME", "FORM", "QUEUE", "SIZE", "AGE")
			for fn, err := range c.Functions(cmd.Context()) {
				if err != nil {
					return err
				}
				if o.json {
					if err := printJSON(cmd.OutOrStdout(), fn); err != nil {
						return err
					}
				} else {
					out.row(fn.ID, firstLine(fn.Name, 40), fn.Runtime, fn.Form, fn.Queue,
						formatBytes(int64(fn.PayloadSize)), age(fn.CreatedAt, now))
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

func newFunctionsRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rm FUNCTION_ID...",
		Short: "Delete registered functions",
		Long: `Delete registrations by id and print the ids of those that are gone. A name then means
the newest one left of that name; bytes go when no registration has them. A function with
unfinished tasks stays, and finished tasks keep their records. The exit code is 1 when one
of them is unknown or in use.`,
		Example: `  treadle functions rm 0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11
  treadle functions --limit 0 --json | jq -r 'select(.name == "old").function_id' | xargs treadle functions rm`,
		Args: arguments(1, -1, "at least one FUNCTION_ID"),
	}
	return clientCommand(cmd, "print each id, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			var failed []error
			for _, id := range args {
				err := c.DeleteFunction(cmd.Context(), id)
				if errors.Is(err, treadle.ErrUnavailable) {
					return errors.Join(append(failed, err)...)
				}
				if err != nil {
					failed = append(failed, err)
					continue
				}
				if o.json {
					err = printJSON(cmd.OutOrStdout(), map[string]string{"function_id": id})
				} else {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), id)
				}
				if err != nil {
					return err
				}
			}
			return errors.Join(failed...)
		})
}

func newWorkersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "workers",
		Short: "List the workers that are attached now",
		Example: `  treadle workers
  treadle workers --json | jq -s 'map(.slots) | add'`,
		Args: arguments(0, 0, ""),
	}
	return clientCommand(cmd, "print each worker, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, _ []string) error {
			workers, err := c.Workers(cmd.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			out := newTable(cmd.OutOrStdout(), "WORKER", "NAME", "HOST", "PID", "MODE", "STATE", "SLOTS", "RUNNING",
				"OFFERED", "RUNTIMES", "QUEUES", "SEEN")
			for _, w := range workers {
				if o.json {
					if err := printJSON(cmd.OutOrStdout(), w); err != nil {
						return err
					}
					continue
				}
				out.row(w.ID, w.Name, w.Host, strconv.Itoa(w.PID), w.Mode, w.State, strconv.Itoa(w.Slots),
					strconv.Itoa(w.Running), strconv.Itoa(w.Offered), firstLine(strings.Join(w.Runtimes, ","), 40),
					strings.Join(w.Queues, ","), age(w.LastSeenAt, now))
			}
			if o.json {
				return nil
			}
			return out.flush()
		})
}

func newQueuesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queues",
		Short: "List the queues that have unfinished tasks",
		Example: `  treadle queues
  treadle queues --json | jq 'select(.queued > 1000)'`,
		Args: arguments(0, 0, ""),
	}
	return clientCommand(cmd, "print each queue, one JSON object a line",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, _ []string) error {
			queues, err := c.Queues(cmd.Context())
			if err != nil {
				return err
			}
			out := newTable(cmd.OutOrStdout(), "QUEUE", "RUNTIME", "QUEUED", "RUNNING")
			for _, q := range queues {
				if o.json {
					if err := printJSON(cmd.OutOrStdout(), q); err != nil {
						return err
					}
					continue
				}
				out.row(q.Name, q.Runtime, strconv.Itoa(q.Queued), strconv.Itoa(q.Running))
			}
			if o.json {
				return nil
			}
			return out.flush()
		})
}
