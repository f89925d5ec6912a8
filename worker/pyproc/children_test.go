//go:build unix

package pyproc

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

// TestProcessesOfAFunction: what pickle names in the caller's script, or in a source text, is found by
// pickle in the function itself and by its children, however they start.
func TestProcessesOfAFunction(t *testing.T) {
	e := start(t, 1)
	p := pickled(t, e, `
import cloudpickle, functools, pickle
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is Point and self.x == other.x
scale = 10
def helper(x): return Point(scale * x.x)
def other(x): return "other"
def pools(how, work=None):
    from multiprocessing import get_context
    from concurrent.futures import ProcessPoolExecutor
    context, points = get_context(how), [Point(1), Point(2)]
    with context.Pool(2) as pool:
        first = pool.map(work or helper, points)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        second = list(pool.map(work or helper, points))
    return [[type(p).__name__, type(p) is Point, p.x] for p in first + second]
def plain():
    import __main__
    loaded = pickle.loads(pickle.dumps(Point(3)))
    return [type(loaded) is Point, loaded.x, hasattr(__main__, "other"), hasattr(__main__, "plain")]
show(cloudpickle.dumps(pools, protocol=4))
for how in ("fork", "spawn", "forkserver"):
    show(pickle.dumps(((how,), {})))
show(cloudpickle.dumps(functools.partial(pools, "spawn"), protocol=4))
show(cloudpickle.dumps((lambda how, points, work: __import__("multiprocessing").get_context(how).Pool(1).map(work, points)[0].x), protocol=4))
show(cloudpickle.dumps((("spawn", [Point(4)], helper), {}), protocol=4))
show(cloudpickle.dumps(plain, protocol=4))
show(cloudpickle.dumps(lambda: Point(5), protocol=4))
`)
	const all = `[["Point",true,10],["Point",true,20],["Point",true,10],["Point",true,20]]`
	for i, how := range []string{"fork", "spawn", "forkserver"} {
		t.Run(how, func(t *testing.T) {
			a := fromPickle(p[0], p[1+i])
			a.Timeout = 60 * second
			want(t, run(t, e, 0, a), all)
		})
	}
	want(t, run(t, e, 0, fromPickle(p[4], nil)), all)
	// The helper is an argument of the call.
	want(t, run(t, e, 0, fromPickle(p[5], p[6])), "40")
	// And what the function has not brought along is not there.
	want(t, run(t, e, 0, fromPickle(p[7], nil)), "[true,3,false,true]")
	// Results go by value as ever: another program may read them.
	out := run(t, e, 0, fromPickle(p[8], nil))
	if got := python(t, e, "import sys, pickle; print(pickle.loads(sys.stdin.buffer.read()).x)", out.Result); got != "5" {
		t.Fatalf("%s came back as %s", describe(out), got)
	}
	// Attempts leave at most one pair of files for each runner that lives.
	if left, err := os.ReadDir(filepath.Join(e.dir, "children")); err != nil || len(left) > 2*2 {
		t.Fatalf("left: %v, %v", left, err)
	}
}

func TestProcessesOfASourceFunction(t *testing.T) {
	e := start(t, 1)
	const source = `
import treadle
class Point:
    def __init__(self, x): self.x = x
def helper(x):
    if x < 0: raise ValueError("below zero")
    return Point(10 * x)
def f(how, *values):
    from multiprocessing import get_context
    with get_context(how).Pool(2) as pool:
        return [[type(p) is Point, p.x] for p in pool.map(helper, values)]
`
	for _, how := range []string{"fork", "spawn", "forkserver"} {
		a := fromSource(source, `{"args":["`+how+`",1,2]}`)
		a.Timeout = 60 * second
		want(t, run(t, e, 0, a), "[[true,10],[true,20]]")
	}
	a := fromSource(source, `{"args":["spawn",-1]}`)
	a.Timeout = 60 * second
	wantEnd(t, run(t, e, 0, a), task.EndRaised, "below zero")
}
