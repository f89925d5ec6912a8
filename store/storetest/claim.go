package storetest

import (
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var claimTests = []test{
	{"OffersWithoutStarting", testClaimOffers},
	{"PriorityThenArrival", testClaimOrder},
	{"QueueAndRuntime", testClaimLanes},
	{"OrderAcrossLanes", testClaimAcrossLanes},
	{"MaxAndMaxBytes", testClaimBounds},
	{"RequestsInOrder", testClaimRequests},
	{"SameClaimAgain", testClaimAgain},
	{"EmptyAnswers", testClaimEmpty},
	{"RequeueStandsAtTheHead", testClaimRequeueHead},
	{"EpochRises", testClaimEpoch},
	{"DelayedWaits", testClaimDelayed},
}

func testClaimOffers(e *env) {
	id := e.submit()
	r := e.request(1)
	got := e.claimReq(r)
	if len(got) != 1 {
		e.Fatalf("claimed %d tasks", len(got))
	}
	c := got[0]
	if c.Token.Task != id || c.Token.Claim != r.Claim || c.Token.Attempt != 1 || c.Token.Epoch == 0 || string(c.Args) != "args" {
		e.Fatalf("claimed %+v with %q", c.Token, c.Args)
	}
	if l := c.Task.Lease; l == nil || l.Worker != "w" || l.Session != r.Session || l.Claim != r.Claim || !l.StartedAt.IsZero() {
		e.Fatalf("lease %+v", c.Task.Lease)
	}
	// An offer reads QUEUED and burns no attempt.
	if t := e.wantStatus(id, task.Queued); t.AttemptCount != 0 || t.Lease == nil {
		e.Fatalf("an offered task has %d attempts and the lease %v", t.AttemptCount, t.Lease)
	}
	if again := e.claim(1); len(again) != 0 {
		e.Fatal("an offered task was claimed again")
	}
	e.start(c.Token)
	t := e.wantStatus(id, task.Running)
	if t.AttemptCount != 1 || len(t.Attempts) != 1 || t.Attempts[0].Worker != "w" || t.Attempts[0].Number != 1 {
		e.Fatalf("a started task has the attempts %+v", t.Attempts)
	}
}

func testClaimOrder(e *env) {
	var want []task.ID
	byPriority := map[int][]task.ID{}
	for i := range 30 {
		p := i * 7 % 10
		byPriority[p] = append(byPriority[p], e.submit(func(t *task.Task) { t.Priority = p }))
	}
	for p := 9; p >= 0; p-- {
		want = append(want, byPriority[p]...)
	}
	var got []task.ID
	for len(got) < len(want) {
		c := e.claim(4)
		if len(c) == 0 {
			break
		}
		got = append(got, ids(c)...)
	}
	if !slices.Equal(got, want) {
		e.Fatalf("claimed\n%v, want higher priority first, then by arrival\n%v", got, want)
	}
}

func testClaimLanes(e *env) {
	lane := func(queue, runtime string) task.ID {
		return e.submit(func(t *task.Task) { t.Queue, t.Runtime = queue, runtime })
	}
	a := lane("a", "python")
	b := lane("b", "python")
	resize := lane("a", task.GoRuntime("resize"))
	check := func(queues, runtimes []string, want ...task.ID) {
		e.Helper()
		r := e.request(10)
		r.Queues, r.Runtimes = queues, runtimes
		if got := ids(e.claimReq(r)); !slices.Equal(got, want) {
			e.Fatalf("queues %v, runtimes %v: claimed %v, want %v", queues, runtimes, got, want)
		}
	}
	check([]string{"c"}, []string{"python"})
	check([]string{"a"}, []string{"other"})
	check(nil, []string{"python"})
	check([]string{"a"}, nil)
	check([]string{"a"}, []string{task.GoRuntime("other")})
	check([]string{"a"}, []string{"python"}, a)
	check([]string{"b", "a"}, []string{task.GoRuntime("resize"), "python"}, b, resize)
}

func testClaimAcrossLanes(e *env) {
	in := func(queue string, priority int) task.ID {
		return e.submit(func(t *task.Task) { t.Queue, t.Priority = queue, priority })
	}
	a5, b5, a5b, b9 := in("a", 5), in("b", 5), in("a", 5), in("b", 9)
	r := e.request(10)
	r.Queues = []string{"a", "b"}
	if got, want := ids(e.claimReq(r)), []task.ID{b9, a5, b5, a5b}; !slices.Equal(got, want) {
		e.Fatalf("claimed %v, want %v", got, want)
	}
}

func testClaimBounds(e *env) {
	for _, n := range []int{100, 60, 50, 10} {
		e.submitItem(item(newTask(), string(make([]byte, n))))
	}
	r := e.request(10)
	r.MaxBytes = 50
	if got := e.claimReq(r); len(got) != 1 || len(got[0].Args) != 100 {
		e.Fatalf("claimed %d tasks, want the first whatever its size", len(got))
	}
	r = e.request(10)
	r.MaxBytes = 110
	if got := e.claimReq(r); len(got) != 2 {
		e.Fatalf("claimed %d tasks, want the two that fit into 110 bytes", len(got))
	}
	e.submit()
	if got := e.claim(1); len(got) != 1 {
		e.Fatalf("claimed %d tasks, want at most one", len(got))
	}
	if got := e.claim(0); len(got) != 0 {
		e.Fatalf("claimed %d tasks, want none", len(got))
	}
	if got := e.claim(10); len(got) != 1 {
		e.Fatalf("claimed %d tasks, want the last one", len(got))
	}
}

func testClaimRequests(e *env) {
	var want []task.ID
	for range 5 {
		want = append(want, e.submit())
	}
	got, err := e.Store.Claim(e.Context(), e.Now(), []store.ClaimRequest{e.request(2), e.request(2), e.request(2), e.request(2)})
	e.must(err)
	if len(got) != 4 || len(got[0]) != 2 || len(got[1]) != 2 || len(got[2]) != 1 || len(got[3]) != 0 {
		e.Fatalf("claimed %d, %d, %d, %d", len(got[0]), len(got[1]), len(got[2]), len(got[3]))
	}
	if all := slices.Concat(ids(got[0]), ids(got[1]), ids(got[2])); !slices.Equal(all, want) {
		e.Fatalf("claimed %v, want %v", all, want)
	}
}

func testClaimAgain(e *env) {
	for range 5 {
		e.submit()
	}
	r := e.request(3)
	first := e.claimReq(r)
	second := e.claimReq(r)
	if len(first) != 3 || !slices.Equal(ids(first), ids(second)) {
		e.Fatalf("the same claim again gave %v, want %v", ids(second), ids(first))
	}
	for i := range first {
		if first[i].Token != second[i].Token || string(second[i].Args) != "args" {
			e.Fatalf("the same claim again gave the token %+v with %q, want %+v", second[i].Token, second[i].Args, first[i].Token)
		}
	}
	e.settle(first[0].Token, success("1"), task.VerdictRecorded)
	e.settle(first[1].Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	if third := e.claimReq(r); len(third) != 1 || third[0].Token != first[2].Token {
		e.Fatalf("the same claim again gave %v, want what is still in force under it", ids(third))
	}
	if other := e.claim(10); len(other) != 3 {
		e.Fatalf("another claim got %d tasks, want the 3 that are ready", len(other))
	}
}

func testClaimEmpty(e *env) {
	got, err := e.Store.Claim(e.Context(), e.Now(), []store.ClaimRequest{e.request(1), e.request(5)})
	e.must(err)
	if len(got) != 2 || len(got[0]) != 0 || len(got[1]) != 0 {
		e.Fatalf("an empty store gave %v", got)
	}
	got, err = e.Store.Claim(e.Context(), e.Now(), nil)
	if e.must(err); len(got) != 0 {
		e.Fatalf("no requests gave %v", got)
	}
}

func testClaimRequeueHead(e *env) {
	first := e.submit()
	for range 3 {
		e.submit()
	}
	c := e.claimOne()
	e.start(c.Token)
	e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	if again := e.claimOne(); again.Token.Task != first {
		e.Fatal("a requeued task does not stand at the head")
	}
}

func testClaimEpoch(e *env) {
	id := e.submit()
	seen := map[uint64]bool{}
	last := uint64(0)
	for i := range 8 {
		c := e.claimOne()
		if c.Token.Epoch <= last || seen[c.Token.Epoch] {
			e.Fatalf("epoch %d after %d", c.Token.Epoch, last)
		}
		last, seen[c.Token.Epoch] = c.Token.Epoch, true
		if i%2 == 0 {
			e.start(c.Token)
		}
		e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	}
	// Handing back is uncounted, whether the attempt had been started or not.
	if t := e.wantStatus(id, task.Queued); t.AttemptCount != 4 || t.Losses != 0 || t.Failures != 0 {
		e.Fatalf("attempts %d, losses %d, failures %d; want 4, 0, 0", t.AttemptCount, t.Losses, t.Failures)
	}
}

func testClaimDelayed(e *env) {
	id := e.submit(func(t *task.Task) { t.FunctionRetries = 1 })
	c := e.claimOne()
	e.settleItem(store.Settlement{Token: c.Token, Outcome: task.Fail(task.EndRaised, "no"), Jitter: 0.5}, task.VerdictRecorded)
	delay := task.RetryDelay(1, 0.5)
	if t := e.wantStatus(id, task.Queued); t.NotBefore.Sub(e.Now()) > delay || t.Failures != 1 {
		e.Fatalf("delayed until %s at %s after %d failures", t.NotBefore, e.Now(), t.Failures)
	}
	if got := e.claim(1); len(got) != 0 {
		e.Fatal("a delayed task was claimed before its time")
	}
	if next := e.reap(); next.IsZero() || next.Sub(e.Now()) > delay {
		e.Fatalf("reap wants to be called at %s, want within %s", next, delay)
	}
	e.Advance(delay + time.Millisecond)
	if got := e.claimOne(); got.Token.Task != id {
		e.Fatal("claimed another task")
	}
}
