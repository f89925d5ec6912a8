// Package storetest is the conformance suite of [store.Store]: one set of tests that
// every implementation must pass. What a store cannot do is declared in the
// [Harness], never guessed.
package storetest

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Harness is one fresh and empty store under test, with what the suite must know
// about it. The function that makes it closes it again by t.Cleanup.
type Harness struct {
	Store store.Store
	// Now is the clock that the store's time follows, and Advance moves it on: a fake
	// clock jumps, a real one waits.
	Now     func() time.Time
	Advance func(d time.Duration)
	// Retention is how long the store keeps finished tasks, Lease what it grants to
	// leases found at open.
	Retention time.Duration
	Lease     time.Duration

	// Reopen closes the store and opens the same data again. Nil: the suite skips
	// what needs it.
	Reopen func(t *testing.T) store.Store
	// Crash cuts the power: everything that is not synced is lost, and the store is
	// opened again. Nil: skipped.
	Crash func(t *testing.T) store.Store
	// OwnerMemory says that starts, renewals and output of attempts in force do not
	// survive Reopen and Crash.
	OwnerMemory bool
	// Check compares the store's indexes and counters with a full scan. Nil: skipped.
	Check func() error
	// Keys counts the raw keys of the store. Nil: skipped.
	Keys func() (int, error)
}

// test is one test of the suite.
type test struct {
	name string
	run  func(*env)
}

// Run runs the suite; open makes a fresh store for each test. Tests run in parallel.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"Submit", submitTests}, {"Claim", claimTests}, {"Settle", settleTests}, {"Lease", leaseTests},
		{"Cancel", cancelTests}, {"Read", readTests}, {"Functions", functionTests}, {"Bell", bellTests},
		{"Fleet", fleetTests}, {"Retention", retentionTests}, {"Life", lifeTests}, {"Concurrent", concurrentTests},
		{"Random", randomTests}, {"Bounds", boundTests}, {"Usage", usageTests},
		{"Deletion", deletionTests},
	} {
		t.Run(group.name, func(t *testing.T) { runGroup(t, group.tests, open) })
	}
}

// RunUsage runs the part of the suite that is about what owners have: it holds for stores
// in which other parts do not, as those that keep no order between their shards.
func RunUsage(t *testing.T, open func(t *testing.T) Harness) {
	t.Run("Usage", func(t *testing.T) { runGroup(t, usageTests, open) })
}

// RunDeletion is the same for what is about functions that go.
func RunDeletion(t *testing.T, open func(t *testing.T) Harness) {
	t.Run("Deletion", func(t *testing.T) { runGroup(t, deletionTests, open) })
}

func runGroup(t *testing.T, tests []test, open func(t *testing.T) Harness) {
	t.Parallel()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &env{T: t, Harness: open(t)}
			t.Cleanup(e.check)
			tt.run(e)
		})
	}
}

// env is what a test works with.
type env struct {
	*testing.T
	Harness
	// closed says that the test closed the store itself.
	closed bool
}

func (e *env) check() {
	if e.Check == nil || e.closed {
		return
	}
	if err := e.Check(); err != nil {
		e.Errorf("the store is inconsistent: %v", err)
	}
}

// must fails the test on an error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// wantCode fails the test unless err has that code.
func (e *env) wantCode(err error, code task.Code) {
	e.Helper()
	if task.CodeOf(err) != code || err == nil {
		e.Fatalf("error %v has the code %q, want %q", err, task.CodeOf(err), code)
	}
}

var lastID atomic.Uint64

// newID makes a version 7 id of the present; ids of one process grow.
func newID() (id task.ID) {
	n := lastID.Add(1)
	binary.BigEndian.PutUint64(id[:8], uint64(time.Now().UnixMilli())<<16|0x7000|n>>48&0xfff)
	binary.BigEndian.PutUint64(id[8:], 1<<63|n&(1<<62-1))
	return id
}

// randomID makes a claim or session id.
func randomID() (id task.ID) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// newTask is a task of the queue "default" and the runtime "python"; change may alter it.
func newTask(change ...func(*task.Task)) *task.Task {
	t := &task.Task{
		ID: newID(), Function: task.ID{1}, FunctionName: "double", Queue: task.DefaultQueue,
		Runtime: task.RuntimePython, Form: task.FormPickle, Hash: [32]byte{1, 2, 3}, Spec: task.Spec{Priority: task.DefaultPriority, MaxRetries: task.DefaultMaxRetries},
		Args: task.EncodingPickle, Returns: task.EncodingJSON,
	}
	for _, f := range change {
		f(t)
	}
	return t
}

// item wraps a task for submission.
func item(t *task.Task, args string) store.Submission {
	t.ArgsSize = len(args)
	return store.Submission{Task: t, Args: []byte(args)}
}

// submit records one task and returns its id.
func (e *env) submit(change ...func(*task.Task)) task.ID {
	e.Helper()
	return e.submitItem(item(newTask(change...), "args"))
}

func (e *env) submitItem(it store.Submission) task.ID {
	e.Helper()
	got := e.submitAll(it)
	e.must(got[0].Err)
	return got[0].ID
}

func (e *env) submitAll(items ...store.Submission) []store.Submitted {
	e.Helper()
	got, err := e.Store.Submit(e.Context(), e.Now(), items)
	e.must(err)
	if len(got) != len(items) {
		e.Fatalf("%d answers to %d submissions", len(got), len(items))
	}
	return got
}

// request asks for up to limit tasks of the default queue for worker "w".
func (e *env) request(limit int) store.ClaimRequest {
	return store.ClaimRequest{
		Claim: randomID(), Session: task.ID{7}, Worker: "w", Queues: []string{task.DefaultQueue},
		Runtimes: []string{task.RuntimePython}, Max: limit, Until: e.Now().Add(e.Lease),
	}
}

func (e *env) claimReq(r store.ClaimRequest) []store.Claimed {
	e.Helper()
	got, err := e.Store.Claim(e.Context(), e.Now(), []store.ClaimRequest{r})
	e.must(err)
	if len(got) != 1 {
		e.Fatalf("%d answers to one claim request", len(got))
	}
	return got[0]
}

func (e *env) claim(limit int) []store.Claimed {
	e.Helper()
	return e.claimReq(e.request(limit))
}

// claimOne claims exactly one task.
func (e *env) claimOne() store.Claimed {
	e.Helper()
	got := e.claim(1)
	if len(got) != 1 {
		e.Fatalf("claimed %d tasks, want 1", len(got))
	}
	return got[0]
}

// start says that the attempt of a token runs.
func (e *env) start(tok task.Token) {
	e.Helper()
	e.renew(store.Renewal{Token: tok, Until: e.Now().Add(e.Lease), StartedAt: e.Now()}, task.VerdictRecorded)
}

func (e *env) renew(r store.Renewal, want task.Verdict) {
	e.Helper()
	got, err := e.Store.Renew(e.Context(), e.Now(), []store.Renewal{r})
	e.must(err)
	if len(got) != 1 || got[0] != want {
		e.Fatalf("renew answered %q, want %q", got, want)
	}
}

// settle reports an outcome and checks the verdict.
func (e *env) settle(tok task.Token, out task.Outcome, want task.Verdict) {
	e.Helper()
	e.settleItem(store.Settlement{Token: tok, Outcome: out}, want)
}

func (e *env) settleItem(it store.Settlement, want task.Verdict) {
	e.Helper()
	got, err := e.Store.Settle(e.Context(), e.Now(), []store.Settlement{it})
	e.must(err)
	if len(got) != 1 || got[0] != want {
		e.Fatalf("settle answered %q, want %q", got, want)
	}
}

func (e *env) reap() time.Time {
	e.Helper()
	next, err := e.Store.Reap(e.Context(), e.Now(), 1000)
	e.must(err)
	return next
}

func (e *env) task(id task.ID) *task.Task {
	e.Helper()
	t, err := e.Store.Task(e.Context(), id)
	e.must(err)
	return t
}

// wantStatus reads a task and checks its status.
func (e *env) wantStatus(id task.ID, want task.Status) *task.Task {
	e.Helper()
	t := e.task(id)
	if t.Status != want {
		e.Fatalf("task is %s, want %s: %+v", t.Status, want, t.Failure)
	}
	return t
}

func (e *env) wantFailure(id task.ID, want task.Class) *task.Task {
	e.Helper()
	t := e.wantStatus(id, task.Failed)
	if t.Failure == nil || t.Failure.Class != want {
		e.Fatalf("failure %+v, want class %s", t.Failure, want)
	}
	return t
}

// reopen replaces the store, or skips the test.
func (e *env) reopen() {
	e.Helper()
	if e.Reopen == nil {
		e.Skip("the store cannot be reopened")
	}
	e.Store = e.Reopen(e.T)
}

func success(result string) task.Outcome {
	return task.Outcome{End: task.EndSucceeded, Result: []byte(result), Encoding: task.EncodingJSON}
}

func ids(claims []store.Claimed) []task.ID {
	out := make([]task.ID, len(claims))
	for i := range claims {
		out[i] = claims[i].Token.Task
	}
	return out
}

// eventually polls what no event announces, for stores that act by themselves. It
// goes on for longer than any delay between the attempts of a test.
func (e *env) eventually(what string, ok func() bool) {
	e.Helper()
	for range 500 {
		if ok() {
			return
		}
		e.Advance(10 * time.Millisecond)
		e.reap()
	}
	e.Fatalf("not in time: %s", what)
}

var errStop = errors.New("stop")
