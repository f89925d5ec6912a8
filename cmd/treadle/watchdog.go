package main

import (
	"cmp"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Times of the end of a process.
const (
	// apiDrain is what a server gives calls under way: the default of
	// server.Config.ShutdownTimeout.
	apiDrain = 10 * time.Second
	// drainMargin is what all parts together get beyond their drain times.
	drainMargin = 5 * time.Second
	// lastWords bounds how long the log may take: standard error may be a pipe that
	// nobody reads.
	lastWords = time.Second
)

// watchdog ends a process that was told to stop and does not: a part that is stuck must
// not keep it from being restarted.
type watchdog struct {
	// limit is how long an orderly end may take.
	limit time.Duration
	log   *slog.Logger
	// exit ends the process.
	exit func(code int)

	mu    sync.Mutex
	begun bool
	ended bool
	done  chan struct{}
	group sync.WaitGroup
}

func newWatchdog(limit time.Duration, log *slog.Logger, exit func(code int)) *watchdog {
	return &watchdog{limit: limit, log: log, exit: exit, done: make(chan struct{})}
}

// begin says that the process stops now; running names the parts that have not ended yet.
// The first call counts, and none after end.
func (w *watchdog) begin(running func() []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun || w.ended {
		return
	}
	w.begun = true
	w.group.Go(func() {
		timer := time.NewTimer(w.limit)
		defer timer.Stop()
		select {
		case <-w.done:
			return
		case <-timer.C:
		}
		said := make(chan struct{})
		go func() { // not waited for: the process ends
			defer close(said)
			w.log.Error("the process was told to stop and some of it did not: it ends now; what was acknowledged is in the store",
				"parts", strings.Join(running(), ","), "after", w.limit, "goroutines", strings.Join(ownGoroutines(), "; "))
		}()
		select {
		case <-said:
		case <-time.After(lastWords):
		}
		w.exit(exitStuck)
	})
}

// end says that the process has stopped in order. It waits for the watchdog.
func (w *watchdog) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	close(w.done)
	w.group.Wait()
}

// Bounds of [ownGoroutines].
const (
	stackBytes    = 1 << 20
	stackFamilies = 20
)

// ownGoroutines says where goroutines of this module are, "N in function", most first: as
// many as fit into stackBytes of stacks, and stackFamilies lines.
func ownGoroutines() []string {
	buf := make([]byte, stackBytes)
	buf = buf[:runtime.Stack(buf, true)]
	const module = "github.com/treadle-dev/treadle/"
	counts := make(map[string]int)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		for line := range strings.SplitSeq(stack, "\n") {
			name, ours := strings.CutPrefix(line, module)
			if ours || strings.HasPrefix(line, "main.") {
				if i := strings.LastIndexByte(name, '('); i > 0 {
					name = name[:i]
				}
				counts[name]++
				break
			}
		}
	}
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
	})
	var out []string
	for _, name := range names[:min(len(names), stackFamilies)] {
		out = append(out, strconv.Itoa(counts[name])+" in "+name)
	}
	return out
}
