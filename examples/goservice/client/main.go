// Command client calls the function "greet" of the worker beside it.
//
// To run it, start a fabric and the worker as worker/main.go says, and then:
//
//	go run ./examples/goservice/client Ada
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

func main() {
	if err := run(strings.Join(os.Args[1:], " ")); err != nil {
		log.Fatal(err)
	}
}

func run(name string) error {
	// The address is TREADLE_ADDRESS, else 127.0.0.1:50051.
	client, err := treadle.Dial("")
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	var greeting struct {
		Text    string `json:"text"`
		Attempt int    `json:"attempt"`
	}
	err = client.Call(ctx, "greet", &greeting, map[string]string{"name": name})
	if failed := (*treadle.TaskError)(nil); errors.As(err, &failed) {
		fmt.Println("the function failed:", failed.Message)
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s (attempt %d)\n", greeting.Text, greeting.Attempt)
	return nil
}
