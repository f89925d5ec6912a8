package server

import (
	"testing"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/filltest"
	"github.com/treadle-dev/treadle/task"
)

// TestEveryOptionOnTheWire: each option of a task is read from a submission, recorded, and shown,
// also one that this test has never heard of.
func TestEveryOptionOnTheWire(t *testing.T) {
	e := start(t)
	e.source("f")
	var want task.Spec
	filltest.Struct(&want)
	want.MemoryLimit = 1 << 30 // less than 1 MiB is refused
	options, err := optionsOf(specProto(&want))
	if err != nil {
		t.Fatal(err)
	}
	made, err := e.srv.core.Submit(t.Context(), fabric.Caller{}, &fabric.Submission{Function: "f", Options: options})
	if err != nil {
		t.Fatal(err)
	}
	if got := made.Spec; got != want {
		t.Errorf("submitted with %+v, recorded %+v", want, got)
	}
}
