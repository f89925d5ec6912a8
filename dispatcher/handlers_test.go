package dispatcher_test

import (
	"context"
	"crypto/sha256"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// TestHandlersHaveKeysOfTheirOwn: what clients and earlier builds have in the store keeps
// no worker out, and a handler keeps the id that it has.
func TestHandlersHaveKeysOfTheirOwn(t *testing.T) {
	f := newFabric(t)
	put := func(name, runtime, key string, digest [32]byte) task.Function {
		t.Helper()
		got, err := f.store.PutFunction(t.Context(), task.Function{
			ID: newTimeID(), Name: name, Queue: task.DefaultQueue, Runtime: runtime, Form: task.FormNone, Hash: sha256.Sum256(nil), CreatedAt: time.Now(),
		}, nil, store.Key{ID: key, Digest: digest})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	// A client has used the key of earlier builds for something else.
	put("squatter", task.RuntimePython, "handler/double", [32]byte{1})
	long := strings.Repeat("n", 200)
	kept := put("kept", task.GoRuntime("kept"), "handler/kept", sha256.Sum256([]byte(task.GoRuntime("kept"))))
	d, stop := f.dispatcher(nil)
	defer stop()
	var runs atomic.Int64
	for range 2 {
		h := doubling(&runs)
		worker.HandleIn(h, "kept", func(context.Context, int) (int, error) { return 1, nil })
		worker.HandleIn(h, long, func(context.Context, int) (int, error) { return 1, nil })
		stopAgent := f.agent(d, link.Push, 1, h)
		_, ends := f.submit("double", 1, nil)
		f.wait(ends, 30*time.Second)
		stopAgent()
	}
	names := map[string]int{}
	functions, err := f.store.ListFunctions(t.Context(), task.ID{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, fn := range functions {
		names[fn.Name]++
	}
	if got, err := f.store.FunctionNamed(t.Context(), "kept"); err != nil || got.ID != kept.ID || names["kept"] != 1 || names["double"] != 1 || names[long] != 1 {
		t.Errorf("functions %v, %q is %s (%v), it was %s", names, "kept", got.ID, err, kept.ID)
	}
}

// TestHandlersOfImpossibleNames: a worker with a handler that nobody could submit to is told so,
// and does not come again and again.
func TestHandlersOfImpossibleNames(t *testing.T) {
	f := newFabric(t)
	d, stop := f.dispatcher(nil)
	defer stop()
	far, near := link.Pipe()
	attached := make(chan error, 1)
	go func() { attached <- d.Attach(t.Context(), far, link.Push) }()
	name := strings.Repeat("n", task.MaxNameLength+1)
	if err := near.Send(&link.Hello{Version: link.Version, Worker: "w", Slots: 1, Queues: []string{"default"}, Handlers: []string{name}}); err != nil {
		t.Fatal(err)
	}
	got, err := near.Recv()
	if bye, ok := got.(*link.Bye); err != nil || !ok || bye.Retry || !strings.Contains(bye.Reason, "want 1 to 256") {
		t.Errorf("%+v, %v, want a Bye for good", got, err)
	}
	near.Close(nil)
	<-attached
}
