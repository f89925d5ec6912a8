package server

import (
	"context"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/worker"
)

// ownFrame is a frame of what serves sessions; that of a worker's agent is not one.
var ownFrame = regexp.MustCompile(`(?m)^github\.com/treadle-dev/treadle/(dispatcher|server|link)[./]`)

// ownGoroutines counts the goroutines that serve sessions, those of gRPC that run our handlers included,
// by where they wait.
func ownGoroutines() (n int, where map[string]int) {
	buf := make([]byte, 1<<20)
	for {
		m := runtime.Stack(buf, true)
		if m < len(buf) {
			buf = buf[:m]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	where = map[string]int{}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if first := ownFrame.FindStringIndex(stack); first != nil {
			n++
			line, _, _ := strings.Cut(stack[first[0]:], "\n")
			where[line[:strings.LastIndex(line, "(")]]++
		}
	}
	return n, where
}

// An idle session keeps two goroutines: the one of its handler, which waits for frames, and the one that reads
// them. What is written has one while it is written.
func TestGoroutinesOfAnIdleSession(t *testing.T) {
	const sessions, each = 50, 2
	var h worker.Handlers
	worker.HandleIn(&h, "noop", func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
	e := startWhole(t, link.Push, &h)
	before, _ := ownGoroutines()
	client := treadlev1.NewWorkerServiceClient(e.conn)
	for i := range sessions {
		stream, err := client.Push(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		hello := &treadlev1.Hello{Version: link.Version, Worker: fmt.Sprint("w", i), Slots: 1, Queues: []string{"default"}, Runtimes: []string{"python"}}
		beat := &treadlev1.Beat{Seq: 1}
		for _, f := range []*treadlev1.WorkerFrame{
			{Kind: &treadlev1.WorkerFrame_Hello{Hello: hello}}, {Kind: &treadlev1.WorkerFrame_Beat{Beat: beat}},
		} {
			if err := stream.Send(f); err != nil {
				t.Fatal(err)
			}
		}
		for acked := false; !acked; {
			f, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			acked = f.GetBeatAck() != nil
		}
	}
	// What wrote the acknowledgements is about to end.
	deadline := time.Now().Add(10 * time.Second)
	for {
		n, where := ownGoroutines()
		if n -= before; n <= each*sessions+sessions/2 { // and some of the worker that may just attach
			if n < sessions {
				t.Errorf("%d goroutines for %d sessions: they are not counted: %v", n, sessions, where)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines for %d idle sessions, want at most %d each: %v", n, sessions, each, where)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
