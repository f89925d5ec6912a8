package server

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// A bell that never rings: the safety net finds the end.
type deafStore struct{ store.Store }

func (d deafStore) Bell() store.Bell { return deafBell{d.Store.Bell()} }

type deafBell struct{ store.Bell }

func (deafBell) Listen(func([]store.Signal)) func() { return func() {} }

func TestSafetyNet(t *testing.T) {
	e := start(t, func(c *Config) { c.Store, c.SafetyNet = deafStore{c.Store}, 20*time.Millisecond })
	e.source("f")
	done := make(chan *treadlev1.TaskResult)
	go func() {
		res, err := e.fabric.Call(t.Context(), &treadlev1.CallRequest{Function: "f", Timeout: durationpb.New(time.Minute)})
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	e.settle(e.await(), succeed([]byte("1"), task.EncodingJSON))
	if res := <-done; string(res.GetResult()) != "1" {
		t.Errorf("%v", res)
	}
}

// slowStore records a submission only after a sweep has looked for its task.
type slowStore struct {
	store.Store
	swept chan struct{}
}

func (s slowStore) Tasks(ctx context.Context, ids []task.ID) ([]*task.Task, error) {
	found, err := s.Store.Tasks(ctx, ids)
	select {
	case s.swept <- struct{}{}:
	default:
	}
	return found, err
}

func (s slowStore) Submit(ctx context.Context, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	<-s.swept
	return s.Store.Submit(ctx, now, items)
}

// The sweep does not find a task that is being submitted: that is no end.
func TestCallWaitsThroughAFalseRing(t *testing.T) {
	swept := make(chan struct{})
	e := start(t, func(c *Config) {
		c.Store, c.SafetyNet = slowStore{c.Store, swept}, 20*time.Millisecond
	})
	e.source("f")
	done := make(chan *treadlev1.TaskResult)
	go func() {
		res, err := e.fabric.Call(t.Context(), &treadlev1.CallRequest{Function: "f", Timeout: durationpb.New(time.Minute)})
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	c := e.await()
	for range 2 { // it is waited for again
		select {
		case res := <-done:
			t.Fatalf("answered before the end: %v", res)
		case <-swept:
		}
	}
	e.settle(c, succeed([]byte("1"), task.EncodingJSON))
	if res := <-done; string(res.GetResult()) != "1" {
		t.Errorf("%v", res)
	}
}
