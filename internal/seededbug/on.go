//go:build chaos

package seededbug

import (
	"fmt"
	"os"
	"slices"
)

var chosen = choose(Bug(os.Getenv(Env)))

func choose(b Bug) Bug {
	if b != "" && !slices.Contains(Bugs(), b) {
		fmt.Fprintf(os.Stderr, "%s: no bug is called %q: want one of %v\n", Env, b, Bugs())
		os.Exit(2)
	}
	return b
}

// On says whether this process makes that mistake.
func On(b Bug) bool { return b == chosen }
