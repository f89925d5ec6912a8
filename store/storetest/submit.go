package storetest

import (
	"bytes"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/internal/filltest"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var submitTests = []test{
	{"RecordsQueued", testSubmitRecords},
	{"KeepsEveryOption", testSubmitOptions},
	{"KeyIsIdempotent", testSubmitKey},
	{"KeyTwiceInOneBatch", testSubmitKeyInBatch},
	{"KeyConflictHurtsNobodyElse", testSubmitConflict},
	{"IDInUse", testSubmitIDInUse},
	{"CallerMayReuseSlices", testSubmitReuse},
	{"ReadYourWrites", testReadYourWrites},
	{"RefusesMalformed", testSubmitMalformed},
	{"LargeArguments", testSubmitLarge},
}

func testSubmitRecords(e *env) {
	deadline, parent := e.Now().Add(time.Hour), newID()
	in := newTask(func(t *task.Task) {
		t.Deadline, t.Timeout, t.MemoryLimit, t.FunctionRetries, t.Priority = deadline, time.Minute, 1<<30, 2, 9
		t.Python, t.Parent = "3.12", parent
	})
	before := e.Now()
	id := e.submitItem(item(in, "args"))
	if id != in.ID {
		e.Fatalf("submitted as %s, want %s", id, in.ID)
	}
	if in.Status != "" {
		e.Fatal("the caller's task was changed")
	}
	got := e.wantStatus(id, task.Queued)
	if got.Function != in.Function || got.FunctionName != in.FunctionName || got.Queue != in.Queue || got.Runtime != in.Runtime ||
		got.Form != in.Form || got.Hash != in.Hash || got.Priority != 9 || got.Args != in.Args || got.Returns != in.Returns ||
		got.ArgsSize != 4 || got.Timeout != time.Minute || !got.Deadline.Equal(deadline) || got.MaxRetries != in.MaxRetries ||
		got.FunctionRetries != 2 || got.MemoryLimit != 1<<30 || got.Python != "3.12" || got.Parent != parent {
		e.Fatalf("recorded %+v, want what was submitted: %+v", got, in)
	}
	if got.CreatedAt.Before(before.Add(-time.Second)) || got.CreatedAt.After(e.Now().Add(time.Second)) || got.Epoch != 0 ||
		got.AttemptCount != 0 || got.Lease != nil || !got.FinishedAt.IsZero() {
		e.Fatalf("a fresh record must have only its creation time: %+v", got)
	}
}

// testSubmitOptions: what was asked for is in the record, in what a claim hands out, and in the
// record of the finished task, also of an option that this test has never heard of.
func testSubmitOptions(e *env) {
	var spec task.Spec
	filltest.Struct(&spec)
	spec.Deadline = e.Now().Add(time.Hour).UTC() // it must not have passed
	in := newTask(func(t *task.Task) { t.Spec = spec })
	id := e.submitItem(item(in, "args"))
	check := func(where string, got task.Spec) {
		e.Helper()
		if got.Deadline = got.Deadline.UTC(); got != spec {
			e.Errorf("%s has the options %+v, want %+v", where, got, spec)
		}
	}
	check("the record", e.wantStatus(id, task.Queued).Spec)
	c := e.claim(1)
	if len(c) != 1 {
		e.Fatalf("%d tasks to claim, want the one", len(c))
	}
	check("the claim", c[0].Task.Spec)
	e.start(c[0].Token)
	e.settle(c[0].Token, success("1"), task.VerdictRecorded)
	check("the finished record", e.wantStatus(id, task.Completed).Spec)
}

func testSubmitKey(e *env) {
	key := store.Key{ID: "once", Digest: [32]byte{1}}
	first := item(newTask(), "a")
	first.Key = key
	id := e.submitItem(first)
	again := item(newTask(), "a")
	again.Key = key
	got := e.submitAll(again)[0]
	if got.Err != nil || !got.Duplicate || got.ID != id {
		e.Fatalf("second submission answered %+v, want the duplicate %s", got, id)
	}
	if c := e.claim(10); len(c) != 1 || c[0].Token.Task != id {
		e.Fatalf("%d tasks to claim, want the one", len(c))
	}
	other := item(newTask(), "b")
	other.Key = store.Key{ID: "once", Digest: [32]byte{2}}
	e.wantCode(e.submitAll(other)[0].Err, task.CodeConflict)
	// A key belongs to its task in every state.
	e.settle(e.mustToken(id), success("1"), task.VerdictRecorded)
	got = e.submitAll(again)[0]
	if got.Err != nil || !got.Duplicate || got.ID != id {
		e.Fatalf("submission after the end answered %+v, want the duplicate %s", got, id)
	}
}

// mustToken returns the token of the claim in force.
func (e *env) mustToken(id task.ID) task.Token {
	e.Helper()
	tok, ok := e.task(id).Token()
	if !ok {
		e.Fatal("nobody holds the task")
	}
	return tok
}

func testSubmitKeyInBatch(e *env) {
	a, b, c := item(newTask(), "a"), item(newTask(), "a"), item(newTask(), "c")
	a.Key = store.Key{ID: "k", Digest: [32]byte{1}}
	b.Key = a.Key
	c.Key = store.Key{ID: "k", Digest: [32]byte{9}}
	got := e.submitAll(a, b, c)
	if got[0].Err != nil || got[0].Duplicate || !got[1].Duplicate || got[1].ID != got[0].ID {
		e.Fatalf("answered %+v", got)
	}
	e.wantCode(got[2].Err, task.CodeConflict)
}

func testSubmitConflict(e *env) {
	a := item(newTask(), "a")
	a.Key = store.Key{ID: "k", Digest: [32]byte{1}}
	e.submitItem(a)
	bad := item(newTask(), "b")
	bad.Key = store.Key{ID: "k", Digest: [32]byte{2}}
	good := item(newTask(), "c")
	got := e.submitAll(bad, good)
	e.wantCode(got[0].Err, task.CodeConflict)
	e.must(got[1].Err)
	e.wantStatus(got[1].ID, task.Queued)
	_, err := e.Store.Task(e.Context(), bad.Task.ID)
	e.wantCode(err, task.CodeNotFound)
}

func testSubmitIDInUse(e *env) {
	it := item(newTask(), "a")
	id := e.submitItem(it)
	e.wantCode(e.submitAll(it)[0].Err, task.CodeConflict)
	c := e.claimOne()
	e.settle(c.Token, success("1"), task.VerdictRecorded)
	e.wantCode(e.submitAll(it)[0].Err, task.CodeConflict)
	e.wantStatus(id, task.Completed)
}

func testSubmitReuse(e *env) {
	args := []byte("first")
	t := newTask()
	t.ArgsSize = len(args)
	e.submitItem(store.Submission{Task: t, Args: args})
	copy(args, "xxxxx")
	t.Queue = "elsewhere"
	c := e.claimOne()
	if string(c.Args) != "first" || c.Task.Queue != task.DefaultQueue {
		e.Fatalf("claimed %q of queue %q: the store kept the caller's memory", c.Args, c.Task.Queue)
	}
	// What is handed out belongs to the caller.
	id := c.Token.Task
	copy(c.Args, "yyyyy")
	c.Task.Queue, c.Task.Lease.Worker = "changed", "changed"
	if got := e.task(id); got.Queue != task.DefaultQueue || got.Lease.Worker != "w" {
		e.Fatal("a change of what was handed out reached the store")
	}
	e.settle(c.Token, task.Outcome{End: task.EndReturned}, task.VerdictRecorded)
	if c = e.claimOne(); string(c.Args) != "first" {
		e.Fatalf("claimed again with %q", c.Args)
	}
}

func testReadYourWrites(e *env) {
	for range 50 {
		id := e.submit()
		e.wantStatus(id, task.Queued)
		c := e.claimOne()
		if c.Token.Task != id {
			e.Fatal("claimed another task")
		}
		e.start(c.Token)
		e.wantStatus(id, task.Running)
		e.settle(c.Token, success("42"), task.VerdictRecorded)
		t, result, err := e.Store.Result(e.Context(), id)
		e.must(err)
		if t.Status != task.Completed || string(result) != "42" {
			e.Fatalf("%s with result %q", t.Status, result)
		}
		page, _, err := e.Store.ListTasks(e.Context(), store.ListQuery{Limit: 1})
		e.must(err)
		if len(page) != 1 || page[0].ID != id || page[0].Status != task.Completed {
			e.Fatal("the list does not show the newest task as it is")
		}
	}
}

func testSubmitMalformed(e *env) {
	for name, it := range map[string]store.Submission{
		"no task":  {},
		"no id":    item(newTask(func(t *task.Task) { t.ID = task.ID{} }), ""),
		"priority": item(newTask(func(t *task.Task) { t.Priority = 10 }), ""),
		"key":      {Task: newTask(), Key: store.Key{ID: string(bytes.Repeat([]byte("k"), 129))}},
	} {
		got, err := e.Store.Submit(e.Context(), e.Now(), []store.Submission{it})
		if err == nil {
			err = got[0].Err
		}
		if task.CodeOf(err) != task.CodeInvalid {
			e.Errorf("%s: %v, want code invalid", name, err)
		}
	}
	if got, err := e.Store.Submit(e.Context(), e.Now(), nil); err != nil || len(got) != 0 {
		e.Errorf("no submissions: %v, %v", got, err)
	}
}

func testSubmitLarge(e *env) {
	args := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	t := newTask()
	t.ArgsSize = len(args)
	id := e.submitItem(store.Submission{Task: t, Args: args})
	c := e.claimOne()
	if !bytes.Equal(c.Args, args) {
		e.Fatalf("claimed with %d bytes of arguments, want %d", len(c.Args), len(args))
	}
	slices.Reverse(args)
	e.settle(c.Token, task.Outcome{End: task.EndSucceeded, Result: args}, task.VerdictRecorded)
	got, result, err := e.Store.Result(e.Context(), id)
	e.must(err)
	if !bytes.Equal(result, args) || got.ResultSize != len(args) {
		e.Fatalf("result of %d bytes (recorded: %d), want %d", len(result), got.ResultSize, len(args))
	}
}
