package storetest

import (
	"crypto/sha256"
	"errors"
	"strings"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var deletionTests = []test{
	{"RemovesEverything", testDelete},
	{"NamesMeanTheNewestLeft", testDeleteNames},
	{"SharedBytesStay", testDeleteShared},
	{"BytesComeBack", testDeleteAndPutAgain},
	{"RefusedWhileInUse", testDeleteInUse},
	{"KeyIsFreeAgain", testDeleteKey},
	{"TwinsAreOne", testTwins},
	{"UnusedTransientsGo", testTransientsGo},
	{"UseKeepsTransients", testTransientsUsed},
	{"UnfinishedTasksKeepTransients", testTransientsBusy},
}

func (e *env) wantNoFunction(id task.ID) {
	e.Helper()
	_, err := e.Store.Function(e.Context(), id)
	e.wantCode(err, task.CodeNotFound)
}

func testDelete(e *env) {
	e.wantCode(e.Store.DeleteFunction(e.Context(), newID()), task.CodeNotFound)
	before := e.keyCount()
	payload := strings.Repeat("x", 2<<20+7)
	f := newFunction("double", payload)
	f.CreatedBy = alice
	e.put(f, payload)
	e.reopenIfAble()
	e.must(e.Store.DeleteFunction(e.Context(), f.ID))
	for range 2 {
		e.wantNoFunction(f.ID)
		_, err := e.Store.FunctionNamed(e.Context(), "double")
		e.wantCode(err, task.CodeNotFound)
		list, err := e.Store.ListFunctions(e.Context(), task.ID{}, 10)
		if e.must(err); len(list) != 0 {
			e.Fatalf("the list still has %+v", list)
		}
		e.wantCode(e.Store.DeleteFunction(e.Context(), f.ID), task.CodeNotFound)
		e.wantUsage(alice, usage{})
		e.reopenIfAble()
	}
	// The bytes may stay for a while, in three keys; the store may keep some for itself.
	if after := e.keyCount(); e.Keys != nil && after > before+3+2 {
		e.Fatalf("%d keys, there were %d before the function", after, before)
	}
}

func testDeleteNames(e *env) {
	var all []task.Function
	for _, payload := range []string{"one", "two", "three"} {
		all = append(all, e.put(newFunction("double", payload), payload))
	}
	other := e.put(newFunction("doubles", "four"), "four")
	for _, step := range []struct{ gone, want int }{{2, 1}, {0, 1}, {1, -1}} {
		e.must(e.Store.DeleteFunction(e.Context(), all[step.gone].ID))
		e.reopenIfAble()
		got, err := e.Store.FunctionNamed(e.Context(), "double")
		if step.want < 0 {
			e.wantCode(err, task.CodeNotFound)
		} else if e.must(err); got.ID != all[step.want].ID {
			e.Fatalf("the name means %s, want %s", got.ID, all[step.want].ID)
		}
	}
	if got, err := e.Store.FunctionNamed(e.Context(), "doubles"); err != nil || got.ID != other.ID {
		e.Fatalf("another name means %+v, %v", got, err)
	}
}

func testDeleteShared(e *env) {
	first, second := e.put(newFunction("a", "code"), "code"), e.put(newFunction("b", "code"), "code")
	e.must(e.Store.DeleteFunction(e.Context(), first.ID))
	e.reopenIfAble()
	if code, err := e.Store.FunctionPayload(e.Context(), second.Hash); err != nil || string(code) != "code" {
		e.Fatalf("the bytes of another function are %q, %v", code, err)
	}
}

func testDeleteAndPutAgain(e *env) {
	payload := strings.Repeat("x", 1<<20+3)
	for range 3 {
		f := e.put(newFunction("f", payload), payload)
		e.must(e.Store.DeleteFunction(e.Context(), f.ID))
	}
	f := e.put(newFunction("f", payload), payload)
	e.reopenIfAble()
	if code, err := e.Store.FunctionPayload(e.Context(), f.Hash); err != nil || sha256.Sum256(code) != f.Hash {
		e.Fatalf("%d bytes, %v", len(code), err)
	}
}

func testDeleteInUse(e *env) {
	f := e.put(newFunction("double", "code"), "code")
	other := e.put(newFunction("other", "code"), "code")
	of := func(f task.Function) func(*task.Task) { return func(t *task.Task) { t.Function = f.ID } }
	wantInUse := func(n int) {
		e.Helper()
		var used *store.InUse
		err := e.Store.DeleteFunction(e.Context(), f.ID)
		if !errors.As(err, &used) || used.Tasks != n || used.Function != f.ID {
			e.Fatalf("deleting a function with %d unfinished tasks: %v", n, err)
		}
		e.wantCode(err, task.CodeState)
	}
	delayed := e.submit(of(f), func(t *task.Task) { t.NotBefore = e.Now().Add(e.Lease); t.Priority = 9 })
	first := e.submit(of(f))
	wantInUse(2)
	e.reopenIfAble()
	wantInUse(2)
	c := e.claimOne() // of the first
	if c.Token.Task != first {
		e.Fatalf("claimed %s, want %s", c.Token.Task, first)
	}
	wantInUse(2)
	e.submit(of(other))
	e.start(c.Token)
	wantInUse(2)
	e.settle(c.Token, success("1"), task.VerdictRecorded)
	wantInUse(1)
	e.cancel(delayed)
	e.must(e.Store.DeleteFunction(e.Context(), f.ID))
	e.wantNoFunction(f.ID)
	if t := e.wantStatus(first, task.Completed); t.FunctionName != "double" || t.Function != f.ID {
		e.Fatalf("the finished task reads %+v", t)
	}
	e.must(e.Store.DeleteFunction(e.Context(), e.put(newFunction("third", "3"), "3").ID))
}

func testDeleteKey(e *env) {
	key := store.Key{ID: "request", Digest: [32]byte{1}}
	put := func(digest byte) task.Function {
		e.Helper()
		f := newFunction("f", "code")
		f.CreatedAt, key.Digest = e.Now(), [32]byte{digest}
		got, err := e.Store.PutFunction(e.Context(), f, []byte("code"), key)
		e.must(err)
		return got
	}
	first := put(1)
	e.must(e.Store.DeleteFunction(e.Context(), first.ID))
	e.reopenIfAble()
	second := put(2)
	if second.ID == first.ID || put(2).ID != second.ID {
		e.Fatalf("the request id of a function that was deleted answered %s", second.ID)
	}
}

func newTransient(name string) task.Function {
	f := newFunction(name, "code")
	f.Transient = true
	return f
}

func testTwins(e *env) {
	first := e.put(newTransient("f"), "code")
	if !first.Transient {
		e.Fatal("a transient function was recorded as another one")
	}
	e.reopenIfAble()
	if again := e.put(newTransient("f"), "code"); again.ID != first.ID || !again.Transient {
		e.Fatalf("the same again is %+v, want %s", again, first.ID)
	}
	different := map[string]func(*task.Function){
		"name": func(f *task.Function) { f.Name = "g" }, "queue": func(f *task.Function) { f.Queue = "gpu" },
		"owner": func(f *task.Function) { f.CreatedBy = alice }, "python": func(f *task.Function) { f.Python = "3.12" },
		"form": func(f *task.Function) { f.Form = task.FormSource }, "kind": func(f *task.Function) { f.Transient = false },
		"bytes": func(f *task.Function) { f.Hash = sha256.Sum256([]byte("edoc")) },
	}
	for what, change := range different {
		f := newTransient("f")
		change(&f)
		payload := "code"
		if what == "bytes" {
			payload = "edoc"
		}
		if got := e.put(f, payload); got.ID == first.ID {
			e.Errorf("another %s gives the same function", what)
		}
	}
	full := errors.New("full")
	f := newTransient("f")
	f.CreatedAt = e.Now()
	if again, err := e.Store.PutFunction(e.Context(), f, []byte("code"), store.Key{Refused: full}); err != nil || again.ID != first.ID {
		e.Errorf("over a quota the same again is %+v, %v, want %s", again, err, first.ID)
	}
	f.Name = "new"
	if _, err := e.Store.PutFunction(e.Context(), f, []byte("code"), store.Key{Refused: full}); !errors.Is(err, full) {
		e.Errorf("over a quota a new one is answered %v", err)
	}
	e.must(e.Store.DeleteFunction(e.Context(), first.ID))
	if again := e.put(newTransient("f"), "code"); again.ID == first.ID {
		e.Error("a function that was deleted is answered")
	}
}

// unused is how long a transient function stays that nothing uses.
func (e *env) unusedFor() {
	e.Advance(e.Retention + store.UseGranularity(e.Retention) + e.Retention/4)
}

func (e *env) wantGone(id task.ID) {
	e.Helper()
	e.eventually("the transient function is removed", func() bool {
		e.reap()
		_, err := e.Store.Function(e.Context(), id)
		return task.CodeOf(err) == task.CodeNotFound
	})
}

func (e *env) wantThere(id task.ID) {
	e.Helper()
	e.reap()
	if _, err := e.Store.Function(e.Context(), id); err != nil {
		e.Fatalf("a function that is used is gone: %v", err)
	}
}

func testTransientsGo(e *env) {
	transient, kept := e.put(newTransient("f"), "code"), e.put(newFunction("g", "code"), "code")
	e.Advance(e.Retention - 2)
	e.reopenIfAble()
	e.wantThere(transient.ID)
	e.unusedFor()
	e.wantGone(transient.ID)
	e.wantThere(kept.ID)
	_, err := e.Store.FunctionNamed(e.Context(), "f")
	e.wantCode(err, task.CodeNotFound)
}

func testTransientsUsed(e *env) {
	registered, submitted := e.put(newTransient("f"), "code"), e.put(newTransient("g"), "code")
	for range 4 {
		e.Advance(e.Retention / 2)
		if again := e.put(newTransient("f"), "code"); again.ID != registered.ID {
			e.Fatalf("registered again as %s, want %s", again.ID, registered.ID)
		}
		it := item(newTask(func(t *task.Task) { t.Function = submitted.ID }), "args")
		it.Transient = true
		e.submitItem(it)
		e.settle(e.claimOne().Token, success("1"), task.VerdictRecorded)
		e.reopenIfAble()
		e.wantThere(registered.ID)
		e.wantThere(submitted.ID)
	}
	e.unusedFor()
	e.wantGone(registered.ID)
	e.wantGone(submitted.ID)
}

func testTransientsBusy(e *env) {
	f := e.put(newTransient("f"), "code")
	it := item(newTask(func(t *task.Task) { t.Function = f.ID }), "args")
	it.Transient = true
	id := e.submitItem(it)
	for range 2 {
		e.unusedFor()
		e.wantThere(f.ID)
		e.reopenIfAble()
	}
	e.cancel(id)
	e.unusedFor()
	e.wantGone(f.ID)
}
