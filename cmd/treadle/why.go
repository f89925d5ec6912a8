package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

const (
	// firstWord is how long a task may wait before people are told why, laterWord how
	// long until they are told again.
	firstWord = 2 * time.Second
	laterWord = 30 * time.Second
	// whyTime bounds the look at workers.
	whyTime = 3 * time.Second
)

// awaitTold waits for a task's end like [treadle.Client.Result] without limit, and says
// on w why it waits while nobody can run it.
func awaitTold(ctx context.Context, c *treadle.Client, id string, w io.Writer) (*treadle.Result, error) {
	told := ""
	for step := firstWord; ; step = laterWord {
		r, err := c.Result(ctx, id, step)
		if err != nil || r.Status.Terminal() {
			return r, err
		}
		if r.Status != treadle.Queued {
			told = ""
			continue
		}
		if why := whyQueued(ctx, c, id); why != "" {
			again := ""
			if why == told {
				again = "still "
			}
			told = why
			fmt.Fprintf(w, "treadle: task %s is %sQUEUED: %s\n", id, again, why)
		}
	}
}

// whyQueued says why a task waits, where the workers that there are tell; "" when it is
// not QUEUED, or there is no reason to be seen.
func whyQueued(ctx context.Context, c *treadle.Client, id string) string {
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	t, err := c.Task(ctx, id)
	if err != nil || t.Status != treadle.Queued {
		return ""
	}
	workers, err := c.Workers(ctx)
	if err != nil {
		return ""
	}
	return whyWaits(t, workers, time.Now())
}

// whyWaits judges a QUEUED task by the workers that are attached.
func whyWaits(t *treadle.Task, workers []treadle.Worker, now time.Time) string {
	if t.NotBefore.After(now) {
		return "it may not start before " + stamp(t.NotBefore)
	}
	able := slices.DeleteFunc(slices.Clone(workers), func(w treadle.Worker) bool { return w.State == "draining" || w.State == "lost" })
	if len(able) == 0 {
		return "no worker is attached: start one with 'treadle worker'"
	}
	able = slices.DeleteFunc(able, func(w treadle.Worker) bool { return !slices.Contains(w.Queues, t.Queue) })
	if len(able) == 0 {
		return fmt.Sprintf("no worker serves the queue %q: start one with 'treadle worker --queues %s'", printable(t.Queue), printable(t.Queue))
	}
	able = slices.DeleteFunc(able, func(w treadle.Worker) bool { return !slices.Contains(w.Runtimes, t.Runtime) })
	if name, isHandler := strings.CutPrefix(t.Runtime, "go/"); len(able) == 0 && isHandler {
		return fmt.Sprintf("no worker that serves the queue %q has the Go handler %q", printable(t.Queue), printable(name))
	}
	if len(able) == 0 {
		return fmt.Sprintf("no worker that serves the queue %q has the runtime %s", printable(t.Queue), printable(t.Runtime))
	}
	slots, busy := 0, 0
	for _, w := range able {
		slots, busy = slots+w.Slots, busy+w.Running
	}
	if busy >= slots {
		return busySlots(slots)
	}
	return ""
}

// busySlots says that every slot that could run a task runs another one.
func busySlots(n int) string {
	if n == 1 {
		return "the only slot that could run it is busy"
	}
	return fmt.Sprintf("all %d slots that could run it are busy", n)
}

// countedTasks writes a number of tasks.
func countedTasks(n int) string {
	if n == 1 {
		return "1 task"
	}
	return fmt.Sprintf("%d tasks", n)
}
