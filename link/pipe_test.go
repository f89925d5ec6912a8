package link_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/treadle-dev/treadle/link"
)

func TestPipeKeepsOrder(t *testing.T) {
	t.Parallel()
	dispatcher, worker := link.Pipe()
	const n = 10_000
	var sender sync.WaitGroup
	sender.Go(func() {
		for i := range n {
			if err := worker.Send(&link.Want{N: i}); err != nil {
				t.Errorf("send %d: %v", i, err)
				return
			}
		}
	})
	for i := range n {
		f, err := dispatcher.Recv()
		if err != nil {
			t.Fatalf("receive %d: %v", i, err)
		}
		if got := f.(*link.Want).N; got != i {
			t.Fatalf("frame %d arrived as number %d", got, i)
		}
	}
	sender.Wait()
}

func TestPipeCloseLetsThePeerReadWhatWasSent(t *testing.T) {
	t.Parallel()
	dispatcher, worker := link.Pipe()
	if err := dispatcher.Send(&link.Bye{Reason: "end"}); err != nil {
		t.Fatal(err)
	}
	dispatcher.Close(nil)
	dispatcher.Close(errors.New("twice is fine"))
	f, err := worker.Recv()
	if err != nil {
		t.Fatalf("the last frame is lost: %v", err)
	}
	if _, ok := f.(*link.Bye); !ok {
		t.Fatalf("received %T, want Bye", f)
	}
	if _, err := worker.Recv(); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("after the end: %v, want ErrClosed", err)
	}
	if err := worker.Send(&link.Want{N: 1}); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("send after the end: %v, want ErrClosed", err)
	}
}

// A peer that does not read ends the link; its sender never waits.
func TestPipeOverrun(t *testing.T) {
	t.Parallel()
	_, worker := link.Pipe()
	var err error
	sent := 0
	for ; sent < 1<<20 && err == nil; sent++ {
		err = worker.Send(&link.Want{N: 1})
	}
	if !errors.Is(err, link.ErrOverrun) {
		t.Fatalf("after %d frames: %v, want ErrOverrun", sent, err)
	}
	if err := worker.Send(&link.Want{N: 1}); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("after the overrun: %v, want ErrClosed", err)
	}
}

// Written is called once for each frame, however it ends.
func TestPipeWritten(t *testing.T) {
	t.Parallel()
	dispatcher, worker := link.Pipe()
	calls := map[string]int{}
	frame := func(name string) *link.FunctionBytes {
		return &link.FunctionBytes{Written: func() { calls[name]++ }}
	}
	check := func(when string, want map[string]int) {
		t.Helper()
		for name, n := range want {
			if calls[name] != n {
				t.Errorf("%s: %q was called %d times, want %d", when, name, calls[name], n)
			}
		}
	}
	for _, name := range []string{"taken", "left"} {
		if err := dispatcher.Send(frame(name)); err != nil {
			t.Fatal(err)
		}
	}
	check("sent", map[string]int{"taken": 0, "left": 0})
	if _, err := worker.Recv(); err != nil {
		t.Fatal(err)
	}
	check("one is taken", map[string]int{"taken": 1, "left": 0})
	dispatcher.Close(nil)
	worker.Close(nil)
	check("closed", map[string]int{"taken": 1, "left": 1})
	if _, err := worker.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := dispatcher.Send(frame("late")); !errors.Is(err, link.ErrClosed) {
		t.Fatal(err)
	}
	check("after the end", map[string]int{"taken": 1, "left": 1, "late": 1})
	dispatcher, _ = link.Pipe()
	n := 0
	for dispatcher.Send(frame("queued")) == nil {
		if n++; n > 1<<20 {
			t.Fatalf("%d frames are queued that nobody reads", n)
		}
	}
	check("overrun", map[string]int{"queued": 1}) // the one that was refused
	dispatcher.Close(nil)
	check("overrun and closed", map[string]int{"queued": n + 1})
}
