//go:build chaos

package seededbug

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"
)

var chosen = choose(Bug(os.Getenv(Env)))

func choose(b Bug) Bug {
	if b != "" && !slices.Contains(Bugs(), b) {
		fmt.Fprintf(os.Stderr, "%s: no bug is called %q: want one of %v\n", Env, b, Bugs())
		os.Exit(2)
	}
	return b
}

// Any says whether this process makes a mistake at all.
func Any() bool { return chosen != "" }

// Choose changes which mistake this process makes, for tests of one goroutine.
func Choose(b Bug) { chosen = choose(b) }

// On says whether this process makes that mistake.
func On(b Bug) bool { return b == chosen }

var asked atomic.Int64

// Every says yes each nth time that this process asks.
func Every(n int) bool { return asked.Add(1)%int64(n) == 0 }
