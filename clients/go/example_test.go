package treadle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"strings"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/clients/go/treadletest"
)

// exampleServer stands in for `treadle up` with a worker that serves two functions.
func exampleServer() (address string, stop func()) {
	srv, stop, err := treadletest.New()
	if err != nil {
		log.Fatal(err)
	}
	srv.Handle("upper", func(_ context.Context, args []json.RawMessage) (any, error) {
		var text string
		if err := json.Unmarshal(args[0], &text); err != nil {
			return nil, err
		}
		if text == "" {
			return nil, errors.New("there is nothing to raise")
		}
		return strings.ToUpper(text), nil
	})
	return srv.Addr(), stop
}

func ExampleClient_Call() {
	address, stop := exampleServer()
	defer stop()
	client, err := treadle.Dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	var text string
	if err := client.Call(context.Background(), "upper", &text, "treadle"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(text)
	// Output: TREADLE
}

func ExampleCall() {
	address, stop := exampleServer()
	defer stop()
	client, err := treadle.Dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	text, err := treadle.Call[string](context.Background(), client, "upper", "treadle")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(text)
	// Output: TREADLE
}

func ExampleMap() {
	address, stop := exampleServer()
	defer stop()
	client, err := treadle.Dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for m, err := range treadle.Map[string](context.Background(), client, "upper", []string{"warp", "", "weft"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(m.Index, m.Value, errors.Is(m.Err, treadle.ErrTaskFailed))
	}
	// Unordered output:
	// 0 WARP false
	// 1  true
	// 2 WEFT false
}

func ExampleTaskError() {
	address, stop := exampleServer()
	defer stop()
	client, err := treadle.Dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	err = client.Call(context.Background(), "upper", nil, "")
	var failed *treadle.TaskError
	fmt.Println(errors.As(err, &failed), errors.Is(err, treadle.ErrTaskFailed))
	fmt.Println(failed.Type)
	fmt.Println(failed.Message)
	// Output:
	// true true
	// FunctionExecutionFailure
	// there is nothing to raise
}

func ExampleClient_Execute() {
	address, stop := exampleServer()
	defer stop()
	client, err := treadle.Dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	id, err := client.Execute(ctx, treadle.Request{
		Function: "upper",
		Args:     []any{"later"},
		Options:  treadle.Options{Priority: new(9)},
	})
	if err != nil {
		log.Fatal(err)
	}
	result, err := client.Result(ctx, id, -1) // until it is finished
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Status, string(result.JSON))
	// Output: COMPLETED "LATER"
}

func ExampleClient_ExecuteBatch() {
	address, stop := exampleServer()
	defer stop()
	client, err := treadle.Dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	submitted, err := client.ExecuteBatch(ctx, []treadle.Request{
		{Function: "upper", Args: []any{"warp"}},
		{Function: "upper", Args: []any{"weft"}},
		{Function: "nobody"},
	})
	if err != nil {
		log.Fatal(err)
	}
	var ids []string
	for _, s := range submitted {
		if s.Err != nil {
			fmt.Println("refused:", s.Err)
			continue
		}
		ids = append(ids, s.TaskID)
	}
	for result, err := range client.Await(ctx, ids) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(result.Status, string(result.JSON))
	}
	// Unordered output:
	// refused: Execute: no function "nobody" (NOT_FOUND)
	// COMPLETED "WARP"
	// COMPLETED "WEFT"
}
