package worker

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
)

func TestServeSecurity(t *testing.T) {
	check := func(o Options) error { return o.secure() }
	remote := Options{Dispatchers: []string{"192.0.2.1:1"}}
	if err := check(remote); err != nil {
		t.Errorf("without a token: %v", err)
	}
	t.Setenv("TREADLE_TOKEN", "secret")
	if err := check(remote); err == nil || !strings.Contains(err.Error(), "without TLS") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a token in plain text: %v", err)
	}
	remote.Insecure = true
	if err := check(remote); err != nil {
		t.Errorf("when that is meant: %v", err)
	}
	remote.Insecure = false
	t.Setenv("TREADLE_TLS_CA", "system")
	if err := check(remote); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	t.Setenv("TREADLE_TLS_CA", filepath.Join(t.TempDir(), "none.pem"))
	if err := check(remote); err == nil || !strings.Contains(err.Error(), "none.pem") {
		t.Errorf("no CA: %v", err)
	}
}

// MaxSlots reaches the agent, which holds it to its limits.
func TestServeMaxSlots(t *testing.T) {
	var h Handlers
	HandleIn(&h, "f", func(_ context.Context, n int) (int, error) { return n, nil })
	for most, want := range map[int]string{2: "at least 4 slots and at most 2", 4097: "at least 4 slots and at most 4097"} {
		err := Serve(t.Context(), Options{Slots: 4, MaxSlots: most, Handlers: &h, Dispatchers: []string{"127.0.0.1:1"}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("MaxSlots %d: %v, want %q", most, err, want)
		}
	}
}
