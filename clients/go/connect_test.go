package treadle_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// What no waiting mends is told at once, although calls are retried for half a minute.
func TestWhatCanNeverBeReached(t *testing.T) {
	rest := httptest.NewServer(http.NotFoundHandler())
	defer rest.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	for name, test := range map[string]struct {
		address string
		options []treadle.Option
		want    string
	}{
		"the port of REST": {rest.Listener.Addr().String(), nil, "8000 is the REST port; gRPC is 50051"},
		"another CA":       {secure.Listener.Addr().String(), []treadle.Option{treadle.WithCA("system")}, "its certificate is refused"},
		"plain text":       {rest.Listener.Addr().String(), []treadle.Option{treadle.WithCA("system")}, "the server speaks plain text and this client TLS"},
	} {
		c, err := treadle.Dial(test.address, test.options...)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.Info(t.Context())
		if !errors.Is(err, treadle.ErrUnavailable) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.address) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("%s: told after %s", name, took)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A server that is not there yet is waited for, and so is one that was there before.
func TestWhatTimeMends(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := treadle.Dial(address, treadle.WithRetry(500*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	begin := time.Now()
	if _, err := c.Info(t.Context()); !errors.Is(err, treadle.ErrUnavailable) || time.Since(begin) < 100*time.Millisecond {
		t.Errorf("%v after %s, want retries", err, time.Since(begin))
	}
}

func TestAddresses(t *testing.T) {
	for _, address := range []string{"http://127.0.0.1:8000", "h:99999", "a b", ":1"} {
		if _, err := treadle.Dial(address); !errors.Is(err, treadle.ErrInvalid) || !strings.Contains(err.Error(), "want HOST:PORT") {
			t.Errorf("Dial(%q): %v", address, err)
		}
	}
	for address, want := range map[string]string{"localhost": "localhost:50051", "::1": "[::1]:50051", "dns:///h:1": "dns:///h:1"} {
		c, err := treadle.Dial(address)
		if err != nil || c.Address() != want {
			t.Errorf("Dial(%q): %v", address, err)
			continue
		}
		_ = c.Close()
	}
}
