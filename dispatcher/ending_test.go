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
	for _, tt := range []struct {
		name, reason string
		end          func(end context.CancelCauseFunc, here link.Conn) error
	}{
		{"context", "the token was revoked", func(end context.CancelCauseFunc, _ link.Conn) error {
			end(errors.New("the token was revoked"))
			return nil
		}},
		{"worker", "the worker closed its session: it drained", func(_ context.CancelCauseFunc, here link.Conn) error {
			return here.Send(&link.Bye{Reason: "it drained"})
		}},
		{"line", "link closed", func(_ context.CancelCauseFunc, here link.Conn) error {
			here.Close(nil)
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			lines := make(chan string, 16)
			d, _ := newFabric(t).dispatcher(func(c *dispatcher.Config) {
				c.Logger = slog.New(slog.NewTextHandler(lineWriter(lines), nil))
			})
			ctx, end := context.WithCancelCause(t.Context())
			defer end(nil)
			there, here := link.Pipe()
			attached := make(chan error, 1)
			go func() { attached <- d.Attach(ctx, there, link.Push) }()
			hello := &link.Hello{Version: link.Version, Worker: newID().String(), Slots: 1, Queues: []string{"q"}, Runtimes: []string{"python"}}
			if err := here.Send(hello); err != nil {
				t.Fatal(err)
			}
			if f, err := here.Recv(); err != nil {
				t.Fatalf("%v, %v instead of a Welcome", f, err)
			}
			if err := tt.end(end, here); err != nil {
				t.Fatal(err)
			}
			<-attached
			patience := time.After(20 * time.Second)
			for {
				select {
				case line := <-lines:
					// It is lost and not detached when the claim that follows its Welcome is still under way.
					if !strings.Contains(line, "worker detached") && !strings.Contains(line, "worker lost") {
						continue
					}
					if !strings.Contains(line, "reason=\""+tt.reason+"\"") {
						t.Errorf("the log says %s, want the reason %q", line, tt.reason)
					}
					return
				case <-patience:
					t.Fatal("the log does not say that the worker is gone")
				}
			}
		})
	}
}

type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}
