package linkpb

import (
	"crypto/tls"
	"strings"
	"testing"
)

func TestTokenStaysOnThisMachine(t *testing.T) {
	for _, x := range []struct {
		token    string
		tls      *tls.Config
		insecure bool
		address  string
		refused  bool
	}{
		{"", nil, false, "192.0.2.1:1", false},
		{"t", nil, false, "127.0.0.1:1", false},
		{"t", nil, false, "[::1]:1", false},
		{"t", nil, false, "localhost:1", false},
		{"t", nil, false, "192.0.2.1:1", true},
		{"t", nil, false, "localhost.evil.test:1", true},
		{"t", nil, false, "nonsense", true},
		{"t", nil, true, "192.0.2.1:1", false},
		{"t", &tls.Config{MinVersion: tls.VersionTLS13}, false, "192.0.2.1:1", false},
	} {
		_, err := Security(x.tls, x.token, x.insecure, []string{"127.0.0.1:2", x.address})
		if (err != nil) != x.refused || err != nil && !strings.Contains(err.Error(), x.address) {
			t.Errorf("%+v: %v", x, err)
		}
	}
}
