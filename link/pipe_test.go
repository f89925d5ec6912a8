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
