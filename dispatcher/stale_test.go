package dispatcher

import (
	"log/slog"
	"testing"

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
