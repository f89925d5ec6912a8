package storetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// seedVariable names the environment variable that replays one random history.
const seedVariable = "STORETEST_SEED"

var randomTests = []test{
	{"History", testRandomHistory},
	{"HistoryWithReopen", testRandomReopen},
}

// histories is how many random histories one run walks, each of so many steps.
const (
	histories = 8
	steps     = 200
)

func testRandomHistory(e *env) { e.histories(false) }

func testRandomReopen(e *env) {
	if e.Reopen == nil {
		e.Skip("the store cannot be reopened")
	}
	e.histories(true)
}

// histories walks random histories on the one store, each in a queue of its own.
func (e *env) histories(reopen bool) {
	seed, n := rand.Uint64(), histories
	if text := os.Getenv(seedVariable); text != "" {
		replay, err := strconv.ParseUint(text, 10, 64)
		e.must(err)
		seed, n = replay, 1
	}
	for i := range n {
		h := &history{env: e, m: newModel(e.Retention), reopens: reopen, queue: fmt.Sprint("q", i)}
		h.seed = seed + uint64(i)
		h.rng = rand.New(rand.NewPCG(h.seed, 1))
		h.walk()
		if e.Failed() {
			return
		}
	}
}

// history is one random sequence of calls, made on the store and on the model alike.
type history struct {
	*env
	m       *model
	rng     *rand.Rand
	seed    uint64
	queue   string
	reopens bool
	// tokens are all ever given, for stale reports.
	tokens []task.Token
	claims []store.ClaimRequest
	step   int
	did    string
}

func (h *history) fatal(format string, args ...any) {
	h.Helper()
	h.Fatalf("replay with %s=%d: step %d (%s): %s", seedVariable, h.seed, h.step, h.did, fmt.Sprintf(format, args...))
}

func (h *history) walk() {
	for h.step = range steps {
		type action struct {
			weight int
			name   string
			do     func()
		}
		actions := []action{
			{10, "submit", h.submitSome}, {10, "claim", h.claimSome}, {8, "renew", h.renewSome}, {12, "settle", h.settleSome},
			{3, "cancel", h.cancelSome}, {3, "resume", h.resume}, {4, "pass time", h.pass}, {4, "reap", h.reapAll}, {2, "claim again", h.claimAgain},
		}
		if h.reopens {
			actions = append(actions, action{1, "reopen", h.reopenStore})
		}
		total := 0
		for _, a := range actions {
			total += a.weight
		}
		pick := h.rng.IntN(total)
		for _, a := range actions {
			if pick -= a.weight; pick < 0 {
				h.did = a.name
				a.do()
				break
			}
		}
		h.compare()
		if h.Failed() {
			return
		}
	}
	// Leave nothing behind that another history could meet.
	h.did = "clean up"
	got, err := h.Store.Cancel(h.Context(), h.Now(), h.m.ids, false)
	if err != nil || len(got) != len(h.m.ids) {
		h.fatal("cancel: %v", err)
	}
}

func (h *history) submitSome() {
	var items []store.Submission
	for range 1 + h.rng.IntN(4) {
		t := newTask(func(t *task.Task) {
			t.Queue, t.Priority = h.queue, 4+h.rng.IntN(3)
			t.MaxRetries, t.FunctionRetries = h.rng.IntN(4), h.rng.IntN(3)
			if h.rng.IntN(3) == 0 {
				t.Timeout = time.Duration(1+h.rng.IntN(5000)) * time.Millisecond
			}
			t.CreatedBy = []string{"", alice, bob}[h.rng.IntN(3)]
			if h.rng.IntN(6) == 0 {
				t.Deadline = h.Now().Add(time.Duration(1+h.rng.IntN(20)) * time.Second)
			}
		})
		items = append(items, item(t, "args"))
	}
	now := h.Now()
	got, err := h.Store.Submit(h.Context(), now, items)
	if err != nil {
		h.fatal("%v", err)
	}
	for i := range items {
		if got[i].Err != nil || got[i].Duplicate || got[i].ID != items[i].Task.ID {
			h.fatal("answered %+v", got[i])
		}
		h.m.submit(now, items[i].Task)
	}
}

func (h *history) claimSome() {
	r := h.request(1 + h.rng.IntN(4))
	r.Queues = []string{h.queue}
	r.Worker = fmt.Sprint("w", h.rng.IntN(3))
	r.Local = h.rng.IntN(4) == 0
	h.claims = append(h.claims, r)
	h.claimWith(r)
}

func (h *history) claimAgain() {
	if len(h.claims) == 0 {
		return
	}
	h.claimWith(h.claims[h.rng.IntN(len(h.claims))])
}

func (h *history) claimWith(r store.ClaimRequest) {
	now := h.Now()
	got, err := h.Store.Claim(h.Context(), now, []store.ClaimRequest{r})
	if err != nil {
		h.fatal("%v", err)
	}
	want := h.m.claim(now, r)
	if len(got[0]) != len(want) {
		h.fatal("claimed %d tasks, want %d", len(got[0]), len(want))
	}
	for i, c := range got[0] {
		if c.Token != want[i] || string(c.Args) != "args" {
			h.fatal("claimed %+v with %q, want %+v", c.Token, c.Args, want[i])
		}
		h.tokens = append(h.tokens, c.Token)
	}
}

// someToken is mostly one in force and now and then an old or a forged one.
func (h *history) someToken() (tok task.Token, ok bool) {
	if held := h.m.held(); len(held) > 0 && h.rng.IntN(8) > 0 {
		tok, _ = h.m.tasks[held[h.rng.IntN(len(held))]].Token()
		return tok, true
	}
	if len(h.tokens) == 0 {
		return tok, false
	}
	tok = h.tokens[h.rng.IntN(len(h.tokens))]
	if h.rng.IntN(4) == 0 {
		tok.Epoch++
	}
	return tok, true
}

func (h *history) renewSome() {
	tok, ok := h.someToken()
	if !ok {
		return
	}
	now := h.Now()
	r := store.Renewal{Token: tok, Until: now.Add(h.Lease)}
	if h.rng.IntN(2) == 0 {
		// Some workers are wrong about the time.
		r.StartedAt = now.Add(time.Duration(h.rng.IntN(3)-1) * time.Duration(h.rng.IntN(3)) * time.Minute)
	}
	got, err := h.Store.Renew(h.Context(), now, []store.Renewal{r})
	if err != nil {
		h.fatal("%v", err)
	}
	if want := h.m.renew(now, r); got[0] != want {
		h.fatal("%+v answered %s, want %s", tok, got[0], want)
	}
}

func (h *history) settleSome() {
	tok, ok := h.someToken()
	if !ok {
		return
	}
	ends := []task.End{
		task.EndSucceeded, task.EndSucceeded, task.EndRaised, task.EndLost, task.EndLapsed, task.EndReturned, task.EndTimedOut,
		task.EndExhausted, task.EndUnreadable, task.EndCancelled,
	}
	out := task.Outcome{End: ends[h.rng.IntN(len(ends))]}
	if out.End == task.EndSucceeded {
		out.Result = []byte("result")
	}
	out.Unasked = out.End == task.EndReturned && h.rng.IntN(2) == 0
	now := h.Now()
	it := store.Settlement{Token: tok, Outcome: out, Jitter: h.rng.Float64()}
	got, err := h.Store.Settle(h.Context(), now, []store.Settlement{it})
	if err != nil {
		h.fatal("%v", err)
	}
	if want := h.m.settle(now, it); got[0] != want {
		h.fatal("%s of %+v answered %s, want %s", out.End, tok, got[0], want)
	}
}

func (h *history) cancelSome() {
	if len(h.m.ids) == 0 {
		return
	}
	id := h.m.ids[h.rng.IntN(len(h.m.ids))]
	now := h.Now()
	got, err := h.Store.Cancel(h.Context(), now, []task.ID{id}, false)
	if err != nil {
		h.fatal("%v", err)
	}
	h.m.cancel(now, id)
	if want := h.m.tasks[id]; (got[0] == nil) != (want == nil) || want != nil && got[0].Status != want.Status {
		h.fatal("answered %+v, want %+v", got[0], want)
	}
}

func (h *history) resume() {
	now := h.Now()
	r := store.Resumption{Worker: fmt.Sprint("w", h.rng.IntN(3)), Session: randomID(), Until: now.Add(h.Lease)}
	for _, id := range h.m.held() {
		if t := h.m.tasks[id]; t.Lease.Worker == r.Worker && h.rng.IntN(3) > 0 {
			tok, _ := t.Token()
			held := store.Renewal{Token: tok, Until: r.Until}
			if h.rng.IntN(2) == 0 {
				held.StartedAt = now
			}
			r.Held = append(r.Held, held)
		}
	}
	if tok, ok := h.someToken(); ok && h.rng.IntN(3) == 0 && !h.m.holds(tok) {
		r.Held = append(r.Held, store.Renewal{Token: tok, Until: r.Until, StartedAt: now})
	}
	got, err := h.Store.Resume(h.Context(), now, r)
	if err != nil {
		h.fatal("%v", err)
	}
	for i, want := range h.m.resume(now, r) {
		if got[i] != want {
			h.fatal("%+v answered %s, want %s", r.Held[i].Token, got[i], want)
		}
	}
	h.m.adoptDelays(h)
}

func (h *history) pass() {
	h.Advance(time.Duration(h.rng.IntN(int(h.Lease))))
	if h.rng.IntN(10) == 0 {
		h.Advance(h.Lease)
	}
}

func (h *history) reapAll() {
	now := h.Now()
	next, err := h.Store.Reap(h.Context(), now, 1_000_000)
	if err != nil {
		h.fatal("%v", err)
	}
	h.m.reap(now)
	// Other histories on this store may want an earlier call.
	if want := h.m.next(); !want.IsZero() && (next.IsZero() || next.After(want.Add(time.Second))) {
		h.fatal("wants to be called at %s, something is due at %s", next, want)
	}
	h.m.adoptDelays(h)
}

func (h *history) reopenStore() {
	h.Store = h.Reopen(h.T)
	h.m.reopen(h.Now(), h.Lease, h.OwnerMemory)
	h.m.adoptDelays(h)
}
