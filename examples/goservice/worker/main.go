// Command worker serves one Go function, "greet", to the clients of a fabric.
//
// To run it, start a fabric in one terminal and the worker in another one:
//
//	make run
//	go run ./examples/goservice/worker
//
// Ctrl-C lets running calls finish and ends the worker.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/treadle-dev/treadle/worker"
)

// Visitor is the argument of greet, as JSON.
type Visitor struct {
	Name string `json:"name"`
}

// Greeting is its result.
type Greeting struct {
	Text    string `json:"text"`
	Attempt int    `json:"attempt"`
}

func greet(ctx context.Context, v Visitor) (Greeting, error) {
	if v.Name == "" {
		return Greeting{}, errors.New("the visitor has no name")
	}
	info, _ := worker.TaskFrom(ctx)
	// The id is the same in each attempt: use it as the idempotency key of side effects.
	fmt.Fprintln(worker.Output(ctx), "task", info.ID)
	return Greeting{Text: "Hello, " + v.Name + "!", Attempt: info.Attempt}, nil
}

func main() {
	dispatcher := flag.String("dispatcher", "127.0.0.1:50051", "address of the dispatcher")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	worker.Handle("greet", greet)
	if err := worker.Serve(ctx, worker.Options{Dispatchers: []string{*dispatcher}}); err != nil {
		log.Fatal(err) //nolint:gocritic // The process ends here: there is nothing left for stop to do.
	}
}
