package worker

import (
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
