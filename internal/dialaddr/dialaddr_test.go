package dialaddr

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, test := range [][2]string{
		{"localhost", "localhost:50051"}, {"127.0.0.1:1", "127.0.0.1:1"}, {"[::1]", "[::1]:50051"}, {"::1", "[::1]:50051"},
		{"[::1]:7", "[::1]:7"}, {"a.b-c_d", "a.b-c_d:50051"}, {"fe80::1%eth0", "[fe80::1%eth0]:50051"}, {"h:65535", "h:65535"},
	} {
		if got, err := Check(test[0]); err != nil || got != test[1] {
			t.Errorf("Check(%q) = %q, %v; want %q", test[0], got, err, test[1])
		}
	}
	for address, word := range map[string]string{
		"http://127.0.0.1:8000": "8000 is the REST port", "https://x": "URL", "grpc://x:1": "URL", "x/y": "URL", "": "empty",
		"a b:1": "space", ":50051": "no host", "h:": "port", "h:0": "port", "h:65536": "port", "h:x": "port", "[::1": "malformed",
		"[::1]7": "malformed", "a:b:c": "malformed",
	} {
		got, err := Check(address)
		if err == nil {
			t.Errorf("Check(%q) = %q", address, got)
		} else if !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "want HOST:PORT") {
			t.Errorf("Check(%q): %v, want %q", address, err, word)
		}
	}
	for address, want := range map[string]bool{"dns:///a:1": true, "unix:/x": true, "passthrough:///bufnet": true, "localhost:1": false} {
		if Resolved(address) != want {
			t.Errorf("Resolved(%q) is not %v", address, want)
		}
	}
}

func TestHopeless(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"connection error: desc = \"error reading server preface: http2: frame too large, note that the frame header looked like an HTTP/1.1 header\"": "REST port",
		"authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority\"":                          "its certificate is refused: certificate signed by unknown authority; check the CA",
		"error reading server preface: remote error: tls: certificate required\"":                                                                      "(remote error: tls: certificate required)",
		"authentication handshake failed: the server speaks plain text and this client TLS: leave":                                                     "the server speaks plain text",
	} {
		if got := Hopeless(text); !strings.Contains(got, want) {
			t.Errorf("Hopeless(%q) = %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{
		"", "dial tcp 127.0.0.1:1: connect: connection refused", "lookup x: no such host", "authentication handshake failed: EOF",
		"authentication handshake failed: read tcp: connection reset by peer", "context deadline exceeded",
		"remote error: tls: internal error", "unexpected HTTP status code received from server: 503 (Service Unavailable)",
	} {
		if got := Hopeless(text); got != "" {
			t.Errorf("time may mend %q, and it is told as %q", text, got)
		}
	}
}
