package worker

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestServeSecurity(t *testing.T) {
	remote := Options{Dispatchers: []string{"192.0.2.1:1"}}
	if _, err := remote.security(); err != nil {
		t.Errorf("without a token: %v", err)
	}
	t.Setenv("TREADLE_TOKEN", "secret")
	if _, err := remote.security(); err == nil || !strings.Contains(err.Error(), "without TLS") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a token in plain text: %v", err)
	}
	remote.Insecure = true
	if _, err := remote.security(); err != nil {
		t.Errorf("when that is meant: %v", err)
	}
	remote.Insecure = false
	t.Setenv("TREADLE_TLS_CA", "system")
	if _, err := remote.security(); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	t.Setenv("TREADLE_TLS_CA", filepath.Join(t.TempDir(), "none.pem"))
	if _, err := remote.security(); err == nil || !strings.Contains(err.Error(), "none.pem") {
		t.Errorf("no CA: %v", err)
	}
}
