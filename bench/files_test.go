package bench

import (
	"strings"
	"testing"
)

// TestEnoughFiles: the limit on open files is told before anything starts.
func TestEnoughFiles(t *testing.T) {
	for _, test := range []struct {
		sessions, streams int
		limit             uint64
		ok                bool
	}{
		{10_000, 1, 10_512, true},
		{10_000, 1, 10_511, false},
		{10_000, 100, 1024, true},
		{10_000, 100, 611, false},
		{10_000, 1, 0, true}, // unknown
	} {
		cfg := SessionsConfig{Sessions: test.sessions, Streams: test.streams, Layout: LayoutOwn}
		err := cfg.enoughFiles(test.limit)
		if (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
		if !test.ok && !strings.Contains(err.Error(), "ulimit -n") {
			t.Errorf("%v names no fix", err)
		}
	}
}
