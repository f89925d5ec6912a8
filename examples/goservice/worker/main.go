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
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/worker"
)

// Visitor is the argument of greet, as JSON.
type Visitor struct {
	Name string `json:"name"`
	// Late is a visitor who is not there yet at the first attempt.
	Late bool `json:"late"`
}

// Greeting is its result.
type Greeting struct {
	Text    string `json:"text"`
	Attempt int    `json:"attempt"`
}

func greet(ctx context.Context, v Visitor) (Greeting, error) {
	if v.Name == "" {
		// No further attempt would mend that, whatever the caller's function_retries says.
		return Greeting{}, worker.NoRetry(errors.New("the visitor has no name"))
	}
	info, _ := worker.TaskFrom(ctx)
	// The id is the same in each attempt: use it as the idempotency key of side effects.
	fmt.Fprintln(worker.Output(ctx), "task", info.ID)
	if v.Late && info.Attempt == 1 {
		// Runs again after that time, if the caller asked for function_retries.
		return Greeting{}, worker.RetryAfter(errors.New("the visitor is not there yet"), time.Second)
	}
	return Greeting{Text: "Hello, " + v.Name + "!", Attempt: info.Attempt}, nil
}

func main() {
	dispatcher := flag.String("dispatcher", "127.0.0.1:50051", "address of the dispatcher")
	mode := flag.String("mode", "push", "push or pull: who chooses the worker of a task")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	worker.Handle("greet", greet)
	if err := worker.Serve(ctx, worker.Options{Dispatchers: []string{*dispatcher}, Mode: link.Mode(*mode)}); err != nil {
		log.Fatal(err) //nolint:gocritic // The process ends here: there is nothing left for stop to do.
	}
}
