package dispatcher

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
)

var (
	exploreStates = flag.Int("explore-states", 1_000, "how many states TestExplore visits at most in each of its worlds")
	exploreDelays = flag.Int("explore-delays", 1, "how many frames, calls, answers and rings TestExplore delays in a world with an order")
	exploreDepth  = flag.Int("explore-depth", 200, "how many actions from the start TestExplore goes at most")
)

// worlds are what the explorer looks at: two dispatchers, two workers and up to three tasks,
// which survive one lost worker each, with a few faults. All orders of all faults make too many states, so there are two kinds
// of world: in AnyOrder a few steps are looked at in every order. In the others what is under way comes in
// one order but for a few delays, and faults strike at every point of it, so that the search gets far.
var worlds = []struct {
	name string
	limits
}{
	{"AnyOrder", limits{tasks: 2, crashes: 1, expiries: 1, cancels: 1, repeats: 1, ticks: 1}},
	{"Crash", limits{tasks: 3, crashes: 1, ordered: true}},
	{"CrashAndExpiry", limits{tasks: 1, crashes: 1, expiries: 1, ordered: true}},
	{"Expiry", limits{tasks: 2, expiries: 2, ordered: true}},
	{"Cancel", limits{tasks: 2, cancels: 1, expiries: 1, ordered: true}},
	{"LostAnswer", limits{tasks: 2, repeats: 1, expiries: 1, ordered: true}},
	{"Time", limits{tasks: 1, crashes: 1, ticks: 2, ordered: true}},
}

// TestExplore visits the states of small worlds, breadth first, by the orders in which frames,
// calls, answers and rings may come and faults may strike: engines and moves of tasks are real.
// Links and calls of a kind keep their order, a ring of the bell may be doubled, a lease may run out at any
// moment. The invariants hold in each state. From each sixteenth state, and from each that only faults can
// follow, the faults end and everything goes on: then every task ends, and no session keeps a claim.
// The dispatchers find work as they do on Redis, by the bell; the store holds no requests.
//
// The shortest way to a state that breaks an invariant is printed. A state is remembered by a hash of 64
// bits of all fields of engines, records, calls and frames. An engine cannot be copied, so a state is made again from
// the start for each action. On two busy cores 20,000 states of each world, 145,000 in all by 216,000 actions,
// took 92 s and 49 s of CPU.
func TestExplore(t *testing.T) {
	for _, c := range worlds {
		t.Run(c.name, func(t *testing.T) {
			c.delays = *exploreDelays
			x := explore(c.limits, *exploreStates, *exploreDepth, func(s store.Store) store.Store { return s })
			t.Log(x)
			if x.bad != "" {
				t.Errorf("%s\n%s", x.bad, strings.Join(x.trace, "\n"))
			}
			if x.states < min(*exploreStates, 300) || x.drained == 0 {
				t.Errorf("%s: too little to say anything", x)
			}
		})
	}
}

// exploration is a search and what came of it.
type exploration struct {
	limits limits
	wrap   func(store.Store) store.Store

	mu            sync.Mutex
	seen          map[uint64]struct{}
	nodes         []node
	states, moves int
	drained       int
	depth         int
	whole         bool // nothing was left to visit
	took          time.Duration
	bad           string
	trace         []string
}

// node is a state: the action that leads there from its parent.
type node struct {
	parent int32
	action uint8
}

func (x *exploration) String() string {
	return fmt.Sprintf("%d states by %d actions, depth %d, whole %t, %d were let end, %s", x.states, x.moves, x.depth, x.whole, x.drained, x.took.Round(time.Millisecond))
}

// explore visits at most so many states, to that depth.
func explore(l limits, states, depth int, wrap func(store.Store) store.Store) *exploration {
	x := &exploration{limits: l, wrap: wrap, seen: map[uint64]struct{}{}, nodes: []node{{parent: -1}}}
	began := time.Now()
	told := began
	level := []int32{0}
	for x.depth < depth && len(level) > 0 && len(x.nodes) < states && x.bad == "" {
		x.depth++
		start := int32(len(x.nodes))
		var group sync.WaitGroup
		next := make(chan int32)
		for range runtime.GOMAXPROCS(0) {
			group.Go(func() {
				for n := range next {
					x.expand(n)
				}
			})
		}
		for _, n := range level {
			next <- n
			if time.Since(told) > 10*time.Second {
				told = time.Now()
				x.mu.Lock()
				fmt.Fprintf(os.Stderr, "explore: depth %d, %d states, %d actions\n", x.depth, len(x.nodes), x.moves)
				over := len(x.nodes) >= states || x.bad != ""
				x.mu.Unlock()
				if over {
					break
				}
			}
		}
		close(next)
		group.Wait()
		level = level[:0]
		for n := start; n < int32(len(x.nodes)); n++ {
			level = append(level, n)
		}
	}
	x.states, x.whole, x.took = len(x.nodes), len(level) == 0, time.Since(began)
	return x
}

// replay makes a state anew; with trace it tells how.
func (x *exploration) replay(n int32, trace *[]string) *world {
	var path []uint8
	for ; x.nodes[n].parent >= 0; n = x.nodes[n].parent {
		path = append(path, x.nodes[n].action)
	}
	w := newWorld(x.limits, x.wrap)
	for i := len(path) - 1; i >= 0; i-- {
		a := w.actions()[path[i]]
		if trace != nil {
			*trace = append(*trace, a.name)
		}
		a.do()
		w.observe()
	}
	return w
}

// expand takes every action that a state has.
func (x *exploration) expand(n int32) {
	x.mu.Lock()
	path := &exploration{limits: x.limits, wrap: x.wrap, nodes: x.nodes} // nodes only grow
	bad := x.bad != ""
	x.mu.Unlock()
	if bad {
		return
	}
	w := path.replay(n, nil)
	count, quiet := len(w.actions()), true
	for i := range count {
		if i > 0 {
			w = path.replay(n, nil)
		}
		a := w.actions()[i]
		quiet = quiet && a.fault
		a.do()
		w.observe()
		x.add(n, i, a.name, w, false)
	}
	if quiet || n%16 == 0 {
		w = path.replay(n, nil)
		w.drain()
		x.add(n, 0, "and everything goes on", w, true)
	}
}

// add takes a state that was reached.
func (x *exploration) add(from int32, i int, name string, w *world, drained bool) {
	var print uint64
	if !drained {
		print = w.fingerprint()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if w.bad != "" && x.bad == "" {
		x.bad = w.bad
		x.replay(from, &x.trace)
		x.trace = append(x.trace, name)
	}
	if drained {
		x.drained++
		return
	}
	x.moves++
	if _, ok := x.seen[print]; !ok {
		x.seen[print] = struct{}{}
		x.nodes = append(x.nodes, node{parent: from, action: uint8(i)})
	}
}

// fingerprint is the same for states that nothing tells apart.
func (w *world) fingerprint() uint64 {
	values := []any{&w.left, &w.late, &w.store, &w.memory.tasks}
	for _, e := range w.engines {
		values = append(values, e.Engine, &e.calls, &e.answers, &e.rung)
	}
	for _, x := range w.workers {
		values = append(values, &x.claims, &x.ready, &x.life)
	}
	for _, l := range w.links {
		attached := l.worker.at == l
		at := [3]int{l.engine.n, l.engine.life, l.worker.n}
		values = append(values, &l.session, &at, &attached, &l.up, &l.down, &l.upEnd)
	}
	return fingerprint(w.now, append(values, &w.seen)...)
}
