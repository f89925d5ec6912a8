package task_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

// TestIDInLogs: both forms of a log show an id as people write it.
func TestIDInLogs(t *testing.T) {
	t.Parallel()
	id := task.ID{0x01, 0x97, 15: 0xff}
	const want = "01970000-0000-0000-0000-0000000000ff"
	var text, json strings.Builder
	slog.New(slog.NewTextHandler(&text, nil)).Info("m", "id", id)
	slog.New(slog.NewJSONHandler(&json, nil)).Info("m", "id", id)
	if !strings.Contains(text.String(), "id="+want) || !strings.Contains(json.String(), `"id":"`+want+`"`) {
		t.Errorf("logged as %s and %s, want %s", text.String(), json.String(), want)
	}
}
