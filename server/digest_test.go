package server

import (
	"context"
	"encoding/hex"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// digests notes the digests of what is recorded.
type digests struct {
	store.Store
	seen *[]string
}

func (d digests) note(k store.Key) { *d.seen = append(*d.seen, hex.EncodeToString(k.Digest[:6])) }

func (d digests) PutFunction(ctx context.Context, f task.Function, payload []byte, k store.Key) (task.Function, error) {
	d.note(k)
	return d.Store.PutFunction(ctx, f, payload, k)
}

func (d digests) Submit(ctx context.Context, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	for _, item := range items {
		d.note(item.Key)
	}
	return d.Store.Submit(ctx, now, items)
}

// TestDigestsStay: the digests of requests are stored with their ids, so a request that is
// repeated after an upgrade has to have the one that it had.
func TestDigestsStay(t *testing.T) {
	var seen []string
	e := start(t, func(c *Config) { c.Store = digests{c.Store, &seen} })
	for _, req := range []*treadlev1.RegisterFunctionRequest{
		{Name: "f", RequestId: "1", Source: "def f(): pass"},
		{Name: "f", RequestId: "2", Payload: anyPickle, Queue: "gpu", Python: "3.12"},
	} {
		if _, err := e.fabric.RegisterFunction(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for _, req := range []*treadlev1.ExecuteRequest{
		{RequestId: "3"},
		{RequestId: "4", Payload: anyPickle},
		{RequestId: "5", Options: &treadlev1.ExecuteOptions{}},
		{RequestId: "6", Args: []byte("[1]"), Kwargs: []byte(`{"a":2}`), Options: &treadlev1.ExecuteOptions{
			Priority: proto.Int32(0), Timeout: durationpb.New(1500 * time.Millisecond), Deadline: timestamppb.New(time.Unix(1900000000, 123456789)),
			MaxRetries: proto.Int32(7), FunctionRetries: proto.Int32(2), MemoryLimit: 1 << 30,
		}},
	} {
		req.Function = "f"
		if _, err := e.fabric.Execute(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"276248b7f27d", "d2d303a71104", "08920bd089cb", "2802bab94358", "fe2120519518", "a412d9ce4dfe"}
	if !slices.Equal(seen, want) {
		t.Errorf("digests %q, want %q", seen, want)
	}
}
