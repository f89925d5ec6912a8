package pebblestore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// stands is a store and the order in which requests by name were served.
type stands struct {
	*testing.T
	f      *fixture
	claims map[string]task.ID
	served []string
}

func newStands(t *testing.T) *stands {
	return &stands{T: t, f: newFixture(t, func(o *Options) { o.FS = vfs.NewMem() }), claims: map[string]task.ID{}}
}

func (v *stands) stand(name string, queues, runtimes []string) {
	v.Helper()
	r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: name, Queues: queues, Runtimes: runtimes}
	v.claims[name] = r.Claim
	err := v.f.s.Stand(context.Background(), v.f.clock.Now(), r, time.Minute, func(tasks []store.Claimed) {
		for _, c := range tasks {
			v.served = append(v.served, name+" "+c.Task.Queue+" "+c.Task.Runtime)
		}
	})
	if err != nil {
		v.Fatal(err)
	}
}

func (v *stands) submit(lanes ...laneKey) {
	v.Helper()
	subs := make([]store.Submission, len(lanes))
	for i, k := range lanes {
		subs[i] = store.Submission{Task: sampleTask([]byte("args")), Args: []byte("args")}
		subs[i].Task.Queue, subs[i].Task.Runtime = k.queue, k.runtime
	}
	if _, err := v.f.s.Submit(context.Background(), v.f.clock.Now(), subs); err != nil {
		v.Fatal(err)
	}
}

func (v *stands) want(served ...string) {
	v.Helper()
	if !slices.Equal(v.served, served) {
		v.Fatalf("served %q, want %q", v.served, served)
	}
	v.served = nil
	v.check()
}

func (v *stands) check() {
	v.Helper()
	if err := v.f.s.CheckInvariants(context.Background()); err != nil {
		v.Fatal(err)
	}
}

// inside runs fn while nobody else is in the store.
func (v *stands) inside(fn func(w *waiting)) {
	v.f.s.mu.Lock()
	defer v.f.s.mu.Unlock()
	fn(&v.f.s.waiting)
}

// steps returns how many groups and lanes fn made the store look at.
func (v *stands) steps(fn func()) (n uint64) {
	v.inside(func(w *waiting) { n = w.steps })
	fn()
	v.inside(func(w *waiting) { n = w.steps - n })
	return n
}

var py = []string{task.RuntimePython}

// TestStandingByAgeAcrossGroups: requests of several groups share lanes, and who waits
// longest is served first, with the best of what it takes.
func TestStandingByAgeAcrossGroups(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	v.stand("ab", []string{"a", "b"}, py)
	v.stand("b", []string{"b"}, py)
	v.stand("ba", []string{"b", "a"}, py) // the same lanes in another order
	v.stand("ab again", []string{"a", "b"}, py)
	v.stand("a", []string{"a"}, py)
	v.stand("all", []string{"a", "b", "c"}, []string{"go/f", task.RuntimePython})
	v.submit(laneKey{"c", "go/f"})
	v.want("all c go/f")
	v.submit(laneKey{"a", task.RuntimePython})
	v.want("ab a python")
	v.submit(laneKey{"b", task.RuntimePython})
	v.want("b b python")
	// In one commit: the older of the two takes what came first, though of another lane.
	v.submit(laneKey{"b", task.RuntimePython}, laneKey{"a", task.RuntimePython}, laneKey{"a", task.RuntimePython}, laneKey{"c", "go/g"})
	v.want("ba b python", "ab again a python", "a a python")
	// All have left: each stands in every lane of its own again with its next request.
	v.stand("a", []string{"a"}, py)
	v.stand("ab", []string{"a", "b"}, py)
	v.submit(laneKey{"b", task.RuntimePython}, laneKey{"a", task.RuntimePython}, laneKey{"a", task.RuntimePython})
	v.want("a a python", "ab b python")
	// One is left over: it goes to who asks for it, once.
	v.stand("last", []string{"z", "a"}, py)
	v.want("last a python")
	// A group that was served waits for its turn with its next request.
	v.submit(laneKey{"b", task.RuntimePython})
	v.want()
	v.stand("b takes it", []string{"b"}, py)
	v.want("b takes it b python")
	v.stand("1", []string{"a", "b"}, py)
	v.stand("2", []string{"b"}, py)
	v.stand("3", []string{"a", "b"}, py)
	v.stand("4", []string{"b"}, py)
	v.submit(laneKey{"b", task.RuntimePython}, laneKey{"a", task.RuntimePython}, laneKey{"b", task.RuntimePython})
	v.want("1 b python", "2 b python", "3 a python")
	v.submit(laneKey{"a", task.RuntimePython}, laneKey{"b", task.RuntimePython})
	v.want("4 b python")
	v.stand("who takes the rest", []string{"a"}, py)
	v.want("who takes the rest a python")
	v.stand("empty", []string{"z", "a"}, py)
	v.want()
}

// TestStandingWithdrawnInTheMiddle: the others keep their order, also after a request
// that was withdrawn stands again.
func TestStandingWithdrawnInTheMiddle(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	k := laneKey{"a", task.RuntimePython}
	for i := range 6 {
		v.stand(fmt.Sprint(i), []string{"a"}, py)
	}
	v.stand("other", []string{"a", "b"}, py)
	v.stand("7", []string{"a"}, py)
	for _, name := range []string{"0", "3", "5"} {
		v.f.s.Withdraw(v.claims[name])
	}
	v.stand("3", []string{"a"}, py)
	v.check()
	v.submit(k, k, k)
	v.want("1 a python", "2 a python", "4 a python")
	v.f.s.Withdraw(v.claims["7"])
	v.submit(k, k, k)
	v.want("other a python", "3 a python")
}

// TestStandingUnderOneClaim: requests with the same claim id are one claim: what the first
// was served with answers the second.
func TestStandingUnderOneClaim(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	var got []task.ID
	r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: py}
	stand := func() {
		err := v.f.s.Stand(context.Background(), v.f.clock.Now(), r, time.Minute, func(tasks []store.Claimed) {
			for _, c := range tasks {
				got = append(got, c.Token.Task)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		stand()
	}
	v.check()
	first := submitOne(t, v.f)
	if want := []task.ID{first}; !slices.Equal(got, want) {
		t.Fatalf("served %v, want %v", got, want)
	}
	v.check()
	second := submitOne(t, v.f)
	if want := []task.ID{first, first, first}; !slices.Equal(got, want) {
		t.Fatalf("served %v, want %v", got, want)
	}
	if c := claimOne(t, v.f); c.Token.Task != second {
		t.Fatalf("claimed %v, want %v, which nobody got", c.Token.Task, second)
	}
	r.Claim = randomID()
	for range 3 {
		stand()
	}
	v.f.s.Withdraw(r.Claim)
	v.check()
	third := submitOne(t, v.f)
	if c := claimOne(t, v.f); len(got) != 3 || c.Token.Task != third {
		t.Fatalf("a withdrawn request was served: %v", got)
	}
}

// TestStandingCostsWhatChanged: what a submission looks at does not depend on how many
// stand, nor what a request costs on how many lanes it lists. It counts, as times differ.
func TestStandingCostsWhatChanged(t *testing.T) {
	t.Parallel()
	const rounds = 200
	own := func(i int) []string { return []string{fmt.Sprint("own", i)} }
	for name, c := range map[string]struct {
		queues   func(i int) []string
		most     uint64 // steps of a submission
		standing []int
	}{
		"another queue": {func(int) []string { return []string{"other"} }, 1, []int{0, 1000, 10_000}},
		"its own queue": {own, 1, []int{0, 1000, 10_000}},
		// A lane that is looked at, its group, and once more after it was served.
		"the same queue": {func(int) []string { return []string{"default"} }, 4, []int{1000, 10_000}},
		"many groups":    {func(i int) []string { return append(own(i), "default") }, 6, []int{1000, 10_000}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, n := range c.standing {
				v := newStands(t)
				for i := range n {
					v.stand("w", c.queues(i), py)
				}
				steps := v.steps(func() {
					for range rounds {
						v.submit(laneKey{"default", task.RuntimePython})
					}
				})
				if steps > c.most*rounds {
					t.Errorf("with %d standing a submission looks at %d groups and lanes, want at most %d", n, steps/rounds, c.most)
				}
				// One of them works: it stands, is served, and stands again.
				steps = v.steps(func() {
					for range rounds {
						v.stand("worker", []string{"worker", "more"}, py)
						v.submit(laneKey{"worker", task.RuntimePython})
					}
				})
				if steps > 10*rounds {
					t.Errorf("with %d standing a task of a worker that waits looks at %d groups and lanes, want at most 10", n, steps/rounds)
				}
			}
		})
	}
}

// TestStandingOfManyPairs: a request that lists 4,096 lanes is entered into all of them
// once, and not again after each task; nor does a submission look at them.
func TestStandingOfManyPairs(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	queues, runtimes := names("q", 64), names("go/f", 64)
	once := v.steps(func() { v.stand("w", queues, runtimes) })
	if once < 4096 {
		t.Errorf("the first request takes %d steps: they are not counted", once)
	}
	const rounds = 100
	steps := v.steps(func() {
		for i := range rounds {
			v.submit(laneKey{queues[i%64], runtimes[i*7%64]})
			v.stand("w", queues, runtimes)
		}
	})
	if len(v.served) != rounds {
		t.Fatalf("served %d times, want %d", len(v.served), rounds)
	}
	if steps > 10*rounds {
		t.Errorf("a task of a request for 4,096 lanes takes %d steps, want at most 10", steps/rounds)
	}
	// Many tasks of many lanes in one commit, for as many requests.
	for range 500 {
		v.stand("w", queues, runtimes)
	}
	lanes := make([]laneKey, 501)
	for i := range lanes {
		lanes[i] = laneKey{queues[i%64], runtimes[i/64]}
	}
	v.served = nil
	steps = v.steps(func() { v.submit(lanes...) })
	if len(v.served) != len(lanes) || steps > 10*501 {
		t.Errorf("served %d of %d in %d steps, want at most 10 for each", len(v.served), len(lanes), steps)
	}
	v.check()
}

// TestStandingGroupsAreBounded: groups that come and go leave no more behind than the
// bounds say, in lanes that are looked at and in lanes that are not.
func TestStandingGroupsAreBounded(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	const size, idle = 2000, 400
	v.f.bound(size, idle)
	v.stand("stays", []string{"shared", "forgotten"}, py)
	for i := range 20_000 {
		v.stand("w", []string{fmt.Sprint("q", i), "shared", "default"}, py)
		if i%10 == 0 {
			v.submit(laneKey{"default", task.RuntimePython})
		}
		v.f.s.Withdraw(v.claims["w"])
	}
	if len(v.served) != 2000 {
		t.Fatalf("%d were served, want 2000", len(v.served))
	}
	v.check()
	v.inside(func(w *waiting) {
		entered := 0
		for _, p := range w.posts {
			entered += len(p.groups)
		}
		if w.count != 1 || len(w.claims) != 1 || len(w.groups) > idle || len(w.posts) > idle || entered > 2*idle || w.size > idle+10 {
			t.Errorf("%d requests, %d claims, %d groups of size %d, %d posts with %d entries stay; want one request and at most %d",
				w.count, len(w.claims), len(w.groups), w.size, len(w.posts), entered, idle)
		}
		if cap(w.fresh)+cap(w.woken)+cap(w.lanes)+cap(w.open)+cap(w.turns)+cap(w.aside) > 6*maxScratch {
			t.Errorf("a round keeps room for %d, %d, %d, %d and %d", cap(w.fresh), cap(w.woken), cap(w.lanes), cap(w.open), cap(w.turns))
		}
	})
}

// TestStandingBeyondTheBound: at the bound a group is found by its lanes, one more is
// not; it is served in its turn all the same, and leaves nothing behind.
func TestStandingBeyondTheBound(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	v.f.bound(3*6, 6) // a group of two queues and one runtime has size 6
	wide := func() (n int) {
		v.inside(func(w *waiting) { n = len(w.wide) })
		return n
	}
	for i := range 3 {
		v.stand(fmt.Sprint(i), []string{fmt.Sprint("q", i), "a"}, py)
	}
	if n := wide(); n != 0 {
		t.Fatalf("%d groups are wide within the bound", n)
	}
	v.stand("3", []string{"q3", "a"}, py)
	v.stand("4", []string{"q4", "a"}, py)
	v.stand("3 again", []string{"q3", "a"}, py)
	if n := wide(); n != 2 {
		t.Fatalf("%d groups are wide, want 2", n)
	}
	a := laneKey{"a", task.RuntimePython}
	v.submit(laneKey{"q4", task.RuntimePython}, a)
	v.want("0 a python", "4 q4 python")
	// There is room again: that of the group where nobody waits.
	v.stand("4", []string{"q4", "a"}, py)
	if n := wide(); n != 1 {
		t.Fatalf("%d groups are wide, want 1", n)
	}
	v.submit(a, a, a, a, a)
	v.want("1 a python", "2 a python", "3 a python", "3 again a python", "4 a python")
	if n := wide(); n != 0 {
		t.Fatalf("%d wide groups are left", n)
	}
}

// TestStandingConcurrently: many stand, give up, stand again and submit at once; every
// task is served or is there to be claimed, once.
func TestStandingConcurrently(t *testing.T) {
	t.Parallel()
	v := newStands(t)
	v.f.bound(300, 60)
	const workers, rounds = 8, 150
	ctx, s, now := context.Background(), v.f.s, v.f.clock.Now()
	var mu sync.Mutex
	got := map[task.ID]int{}
	count := func(tasks []store.Claimed) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range tasks {
			got[c.Token.Task]++
		}
	}
	var submitted atomic.Int64
	var wg sync.WaitGroup
	for n := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 8))
			for range rounds {
				r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: names("q", 1+rng.IntN(4)), Runtimes: py}
				if rng.IntN(3) == 0 {
					r.Queues = append(r.Queues, fmt.Sprint("own", rng.IntN(100)))
				}
				if err := s.Stand(ctx, now, r, time.Hour, count); err != nil {
					t.Error(err)
				}
				tk := sampleTask([]byte("args"))
				tk.Queue = fmt.Sprint("q", rng.IntN(4))
				if _, err := s.Submit(ctx, now, []store.Submission{{Task: tk, Args: []byte("args")}}); err != nil {
					t.Error(err)
				}
				submitted.Add(1)
				if rng.IntN(3) == 0 {
					s.Withdraw(r.Claim)
				}
			}
		})
	}
	wg.Wait()
	v.check()
	rest, err := s.Claim(ctx, now, []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: names("q", 4), Runtimes: py,
		Max: workers * rounds, Until: now.Add(time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	served := len(got)
	count(rest[0])
	for id, n := range got {
		if n != 1 {
			t.Errorf("task %s was handed out %d times", id, n)
		}
	}
	if len(got) != int(submitted.Load()) || served == 0 {
		t.Fatalf("%d tasks were served and %d left, want %d in all", served, len(rest[0]), submitted.Load())
	}
}

// TestStandingFewAreTold: a task that only Claim can hand out, as its arguments are large,
// does not send all who stand for it to claim; what is behind it is served when it was
// claimed, and when nobody comes others are told.
func TestStandingFewAreTold(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own=%t", own), func(t *testing.T) {
			t.Parallel()
			v := newStands(t)
			told, served := 0, 0
			ctx, s := context.Background(), v.f.s
			for i := range 1000 {
				r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: py}
				if own {
					r.Queues = append(r.Queues, fmt.Sprint("own", i))
				}
				err := s.Stand(ctx, v.f.clock.Now(), r, time.Minute, func(tasks []store.Claimed) {
					if served += len(tasks); len(tasks) == 0 {
						told++
					}
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			args := make([]byte, maxArgsKept+1)
			large := store.Submission{Task: sampleTask(args), Args: args}
			small := store.Submission{Task: sampleTask([]byte("args")), Args: []byte("args")}
			steps := v.steps(func() {
				if _, err := s.Submit(ctx, v.f.clock.Now(), []store.Submission{large, small}); err != nil {
					t.Fatal(err)
				}
			})
			if told != maxTold || served != 0 || steps > 10*maxTold {
				t.Fatalf("%d requests were told of the large task and %d served in %d steps, want %d and none", told, served, steps, maxTold)
			}
			v.check()
			// Nobody comes: a look for what is due tells others.
			if _, err := s.Reap(ctx, v.f.clock.Now(), 10); err != nil {
				t.Fatal(err)
			}
			if told == maxTold || told > 4*maxTold {
				t.Fatalf("%d requests were told, want some more than %d after nobody came", told, maxTold)
			}
			before := told
			r := store.ClaimRequest{Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: py, Max: 1,
				Until: v.f.clock.Now().Add(time.Minute)}
			if got, err := s.Claim(ctx, v.f.clock.Now(), []store.ClaimRequest{r}); err != nil || len(got[0]) != 1 {
				t.Fatalf("claimed %v, %v", got, err)
			}
			if told != before || served != 1 {
				t.Fatalf("%d were told and %d served, want %d and the one behind the large task", told, served, before)
			}
			v.check()
		})
	}
}
