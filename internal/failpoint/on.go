//go:build chaos

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

var actions = []string{"kill", "kill-soon", "hang", "pause"}

const (
	// pause is how long the action of that name lasts.
	pause = 5 * time.Second
	// soon is enough for what was given to a link to leave the process.
	soon = 20 * time.Millisecond
)

// armed is what happens at one point.
type armed struct {
	action string
	at     int64
	count  atomic.Int64
}

var points = mustParse(os.Getenv(Env))

func mustParse(text string) map[Point]*armed {
	m, err := parse(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", Env, err)
		os.Exit(2)
	}
	return m
}

func parse(text string) (map[Point]*armed, error) {
	m := map[Point]*armed{}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		name, what, ok := strings.Cut(part, "=")
		action, count, ok2 := strings.Cut(what, "@")
		n, err := strconv.ParseInt(count, 10, 64)
		switch {
		case !ok || !ok2 || err != nil || n < 1:
			return nil, fmt.Errorf("%q: want POINT=ACTION@N", part)
		case !slices.Contains(Points(), Point(name)):
			return nil, fmt.Errorf("no point is called %q: want one of %v", name, Points())
		case !slices.Contains(actions, action):
			return nil, fmt.Errorf("action %q: want one of %v", action, actions)
		}
		m[Point(name)] = &armed{action: action, at: n}
	}
	return m, nil
}

// Hit says that a point was reached.
func Hit(p Point) { Seen(p, 1) }

// Seen says that a point was reached with n things; none is no hit.
func Seen(p Point, n int) {
	a := points[p]
	if a == nil || n == 0 {
		return
	}
	if a.count.Add(1) != a.at {
		return
	}
	fmt.Fprintf(os.Stderr, `{"level":"WARN","msg":"failpoint","point":%q,"action":%q}`+"\n", p, a.action)
	switch a.action {
	case "kill":
		kill()
		select {} // the signal is on its way
	case "kill-soon":
		time.AfterFunc(soon, kill)
	case "hang":
		select {}
	case "pause":
		time.Sleep(pause)
	}
}

func kill() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(fmt.Sprintf("cannot kill this process: %v", err))
	}
}

// lag is how long [Lag] takes, in nanoseconds.
var lag = mustParseLag(os.Getenv(LagEnv))

func mustParseLag(text string) *atomic.Int64 {
	var ns atomic.Int64
	if text == "" {
		return &ns
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		fmt.Fprintf(os.Stderr, "%s: %q: want a duration such as 300ms\n", LagEnv, text)
		os.Exit(2)
	}
	ns.Store(int64(d))
	return &ns
}

// SetLag changes how long [Lag] takes from now on, for tests.
func SetLag(d time.Duration) { lag.Store(int64(d)) }

// Lag holds its caller up: a dispatcher's loop calls it before each batch of effects.
func Lag() {
	if d := time.Duration(lag.Load()); d > 0 {
		time.Sleep(d)
	}
}
