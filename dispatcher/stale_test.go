package dispatcher

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// TestStaleLevel: refused outcomes are told where somebody may miss their result.
func TestStaleLevel(t *testing.T) {
	for end, want := range map[task.End]slog.Level{
		task.EndCancelled: slog.LevelDebug, task.EndReturned: slog.LevelDebug,
		task.EndSucceeded: slog.LevelInfo, task.EndRaised: slog.LevelInfo, task.EndLost: slog.LevelInfo,
	} {
		if got := staleLevel(end); got != want {
			t.Errorf("%s is told at %s, want %s", end, got, want)
		}
	}
}

// TestNotesNameMachines: people know workers by name and host, and what was lost is a warning.
func TestNotesNameMachines(t *testing.T) {
	for hello, want := range map[*link.Hello]string{
		{Worker: "id"}:                               "worker id",
		{Worker: "id", Name: "box2"}:                 "worker id (box2)",
		{Worker: "id", Host: "h"}:                    "worker id (h)",
		{Worker: "id", Name: "h", Host: "h"}:         "worker id (h)",
		{Worker: "id", Name: "box2", Host: "rack-7"}: "worker id (box2 on rack-7)",
	} {
		if got := (&session{hello: hello}).called(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	e := newEngine(Config{Grace: time.Second, Jitter: func() float64 { return 0 }})
	e.now = time.Now()
	tok := task.Token{Task: task.ID{1}, Attempt: 1}
	s := &session{id: task.ID{2}, state: active, hello: &link.Hello{Worker: "id", Name: "box2", Host: "rack-7"}, held: map[task.Token]bool{tok: true}}
	e.linkEnded(s, errors.New("gone"))
	e.abandon(s)
	if len(e.out.settles) != 1 || !strings.HasPrefix(e.out.settles[0].settlement.Outcome.Failure.Message, "worker id (box2 on rack-7) was lost") {
		t.Errorf("the attempt's record: %+v", e.out.settles)
	}
	var log bytes.Buffer
	d := &Dispatcher{log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, n := range e.out.notes {
		d.logNote(n)
	}
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "name=box2 host=rack-7 tasks=1") {
			t.Errorf("%s", line)
		}
	}
	if strings.Count(log.String(), "\n") != 2 {
		t.Errorf("want two lines:\n%s", log.String())
	}
}
