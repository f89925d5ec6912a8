package dispatcher_test

import (
	"bytes"
	"testing"

	"github.com/treadle-dev/treadle/dispatcher"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// TestKeysForTaskTokens: a worker gets the key of its own session, where it asks and the
// dispatcher has one to give.
func TestKeysForTaskTokens(t *testing.T) {
	f := newFabric(t)
	key := func(session task.ID) []byte { return append([]byte("key of "), session[:]...) }
	for _, has := range []bool{true, false} {
		d, stop := f.dispatcher(func(c *dispatcher.Config) {
			if has {
				c.TaskKey = key
			}
		})
		for _, asks := range []bool{true, false} {
			there, here := link.Pipe()
			ended := make(chan error, 1)
			go func() { ended <- d.Attach(t.Context(), there, link.Push) }()
			err := here.Send(&link.Hello{
				Version: link.Version, Worker: newID().String(), Slots: 1, Queues: []string{task.DefaultQueue}, Runtimes: []string{"none"}, TaskTokens: asks,
			})
			if err != nil {
				t.Fatal(err)
			}
			frame, err := here.Recv()
			if err != nil {
				t.Fatal(err)
			}
			w, ok := frame.(*link.Welcome)
			if !ok {
				t.Fatalf("%T, want Welcome", frame)
			}
			if want := has && asks; want != bytes.Equal(w.TaskKey, key(w.Session)) || !want && w.TaskKey != nil {
				t.Errorf("has %v, asks %v: key %q", has, asks, w.TaskKey)
			}
			here.Close(nil)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		stop()
	}
}
