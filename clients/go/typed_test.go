package treadle_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/clients/go/treadletest"
)

// The typed functions of a worker run in the test server, and what they return is typed.
func TestTypedCalls(t *testing.T) {
	t.Parallel()
	srv := treadletest.Start(t)
	type visitor struct{ Name string }
	treadletest.Handle(srv, "greet", func(_ context.Context, v visitor) (string, error) { return "hello " + v.Name, nil })
	treadletest.Handle(srv, "double", func(_ context.Context, x int) (int, error) {
		if x < 0 {
			return 0, errors.New("too small")
		}
		return 2 * x, nil
	})
	client, err := treadle.Dial(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := t.Context()
	if got, err := treadle.Call[int](ctx, client, "double", 21); got != 42 || err != nil {
		t.Errorf("double: %d, %v", got, err)
	}
	if got, err := treadle.Call[int](ctx, client, "double"); got != 0 || err != nil {
		t.Errorf("without an argument: %d, %v", got, err)
	}
	r, err := client.Run(ctx, treadle.Request{Function: "greet", Kwargs: map[string]any{"name": "you"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := treadle.Value[string](r); got != "hello you" || err != nil {
		t.Errorf("greet: %q, %v", got, err)
	}
	if _, err := treadle.Call[int](ctx, client, "double", "x"); !errors.Is(err, treadle.ErrTaskFailed) || !strings.Contains(err.Error(), "does not fit int") {
		t.Errorf("an argument of another type: %v", err)
	}
	if _, err := treadle.Call[int](ctx, client, "double", 1, 2); !errors.Is(err, treadle.ErrTaskFailed) {
		t.Errorf("two arguments: %v", err)
	}
	if _, err := treadle.Call[bool](ctx, client, "double", 1); err == nil || errors.Is(err, treadle.ErrTaskFailed) {
		t.Errorf("a value of another type: %v", err)
	}
	if _, err := treadle.Call[int](ctx, client, "nobody"); !errors.Is(err, treadle.ErrNotFound) {
		t.Errorf("no such function: %v", err)
	}
	sum, failed := 0, 0
	for m, err := range treadle.Map[int](ctx, client, "double", []int{1, -1, 3}) {
		if err != nil {
			t.Fatal(err)
		}
		if m.Err != nil {
			failed += m.Index
		}
		sum += m.Value
	}
	if sum != 8 || failed != 1 {
		t.Errorf("map: sum %d, failed index %d; want 8, 1", sum, failed)
	}
}

// The client takes what the largest --max-payload allows; 129 MiB were its limit.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	srv := treadletest.Start(t)
	treadletest.Handle(srv, "large", func(_ context.Context, n int) (string, error) { return string(bytes.Repeat([]byte("x"), n)), nil })
	client, err := treadle.Dial(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const size = 140 << 20
	if got, err := treadle.Call[string](t.Context(), client, "large", size); err != nil || len(got) != size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}
