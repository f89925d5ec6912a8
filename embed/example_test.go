package embed_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/embed"
	"github.com/treadle-dev/treadle/worker"
)

func Example() {
	var handlers worker.Handlers
	worker.HandleIn(&handlers, "double", func(_ context.Context, x int) (int, error) { return 2 * x, nil })

	ctx := context.Background()
	fabric, err := embed.Start(ctx, embed.Options{Handlers: &handlers, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer fabric.Close()

	answer, err := treadle.Call[int](ctx, fabric.Client(), "double", 21)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer)
	// Output: 42
}
