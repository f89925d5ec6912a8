package dispatcher_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/link"
)

// TestEndingsAreNamed: whoever ends a worker's stream says why, and the log repeats that, not
// that the link was closed.
func TestEndingsAreNamed(t *testing.T) {
	t.Parallel()
	lines := make(chan string, 16)
	d, _ := newFabric(t).dispatcher(func(c *dispatcher.Config) {
		c.Logger = slog.New(slog.NewTextHandler(lineWriter(lines), nil))
	})
	ctx, end := context.WithCancelCause(t.Context())
	there, here := link.Pipe()
	attached := make(chan error, 1)
	go func() { attached <- d.Attach(ctx, there, link.Push) }()
	if err := here.Send(&link.Hello{Version: link.Version, Worker: newID().String(), Slots: 1, Queues: []string{"q"}, Runtimes: []string{"python"}}); err != nil {
		t.Fatal(err)
	}
	if f, err := here.Recv(); err != nil {
		t.Fatalf("%v, %v instead of a Welcome", f, err)
	}
	end(errors.New("the token was revoked"))
	<-attached
	patience := time.After(20 * time.Second)
	for {
		select {
		case line := <-lines:
			if !strings.Contains(line, "worker detached") {
				continue
			}
			if !strings.Contains(line, `reason="the token was revoked"`) {
				t.Errorf("the log says %s", line)
			}
			return
		case <-patience:
			t.Fatal("the log does not say that the worker is gone")
		}
	}
}

type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}
