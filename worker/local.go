package worker

import (
	"context"

	"github.com/treadle-dev/treadle/link"
)

// Attacher is the dispatcher's end of an attachment.
type Attacher interface {
	Attach(ctx context.Context, conn link.Conn, mode link.Mode) error
}

// DialLocal returns a Dial for an agent in the dispatcher's own process: the same
// agent and the same frames, on a pipe. report gets the errors of the dispatcher's
// end. The pipe ends with the agent's end of it.
func DialLocal(d Attacher, report func(error)) func(context.Context) (link.Conn, error) {
	return func(ctx context.Context) (link.Conn, error) {
		there, here := link.Pipe()
		go func() {
			// It ends when either end of the pipe is closed, which the agent waits for.
			if err := d.Attach(context.WithoutCancel(ctx), there, link.Local); err != nil {
				report(err)
			}
		}()
		return here, nil
	}
}
