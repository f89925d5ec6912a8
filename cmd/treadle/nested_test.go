package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/worker"
)

// A Go handler submits tasks as a client of its worker's dispatcher.
func TestHandlersSubmitTasks(t *testing.T) {
	up(t, "--store", "memory:", "--slots", "2")
	file := filepath.Join(t.TempDir(), "square.py")
	if err := os.WriteFile(file, []byte("def square(x):\n    return x * x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(t, "", "register", file+":square").wantOK(t)

	type answer struct {
		Sum          int    `json:"sum"`
		Task, Parent string // of a child, as it was recorded
	}
	var handlers worker.Handlers
	worker.HandleIn(&handlers, "sum of squares", func(ctx context.Context, n int) (a answer, err error) {
		api, err := worker.APIFrom(ctx)
		if err != nil {
			return a, err
		}
		client, err := treadle.Dial(api.Address, treadle.WithToken(api.Token), treadle.WithTLS(api.TLS))
		if err != nil {
			return a, err
		}
		defer client.Close()
		for x := range n {
			var square int
			if err := client.Call(ctx, "square", &square, x); err != nil {
				return a, err
			}
			a.Sum += square
		}
		id, err := client.Execute(ctx, treadle.Request{Function: "square", Args: []any{1}})
		if err != nil {
			return a, err
		}
		child, err := client.Task(ctx, id)
		if err != nil {
			return a, err
		}
		info, _ := worker.TaskFrom(ctx)
		a.Task, a.Parent = info.ID.String(), child.ParentID
		return a, nil
	})
	if _, err := worker.APIFrom(t.Context()); err == nil {
		t.Error("outside of a handler there is an API")
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- worker.Serve(ctx, worker.Options{Dispatchers: []string{os.Getenv(treadle.EnvAddress)}, Handlers: &handlers, Slots: 1})
	}()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	client, err := treadle.Dial(os.Getenv(treadle.EnvAddress))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	callCtx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	var got answer
	for {
		// The handler is a function when its worker is attached.
		err := client.Call(callCtx, "sum of squares", &got, 4)
		if err == nil {
			break
		}
		if !errors.Is(err, treadle.ErrNotFound) || callCtx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got.Sum != 14 || got.Parent != got.Task || got.Task == "" {
		t.Errorf("%+v", got)
	}
}
