package storetest

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

var functionTests = []test{
	{"PutAndGet", testFunctionPut},
	{"NewestNameWins", testFunctionNames},
	{"SameBytesOnce", testFunctionHash},
	{"WithoutBytes", testFunctionNoBytes},
	{"Key", testFunctionKey},
	{"List", testFunctionList},
	{"AnyName", testFunctionAnyName},
	{"RefusesWrongHash", testFunctionWrongHash},
}

func newFunction(name, payload string) task.Function {
	return task.Function{
		ID: newID(), Name: name, Queue: task.DefaultQueue, Runtime: task.RuntimePython, Form: task.FormPickle,
		Hash: sha256.Sum256([]byte(payload)), Size: len(payload),
	}
}

func (e *env) put(f task.Function, payload string) task.Function {
	e.Helper()
	f.CreatedAt = e.Now()
	got, err := e.Store.PutFunction(e.Context(), f, []byte(payload), store.Key{})
	e.must(err)
	return got
}

func testFunctionPut(e *env) {
	in := newFunction("double", "code")
	in.Queue, in.Form, in.Python = "gpu", task.FormSource, "3.12"
	if got := e.put(in, "code"); got.ID != in.ID {
		e.Fatalf("recorded as %s", got.ID)
	}
	e.reopenIfAble()
	got, err := e.Store.Function(e.Context(), in.ID)
	e.must(err)
	if got.Name != in.Name || got.Queue != in.Queue || got.Runtime != in.Runtime || got.Form != in.Form || got.Hash != in.Hash || got.Python != "3.12" ||
		got.Size != in.Size || got.CreatedAt.IsZero() {
		e.Fatalf("got %+v, want %+v", got, in)
	}
	code, err := e.Store.FunctionPayload(e.Context(), in.Hash)
	if e.must(err); string(code) != "code" {
		e.Fatalf("payload %q", code)
	}
	code[0] = 'x'
	if again, err := e.Store.FunctionPayload(e.Context(), in.Hash); err != nil || string(again) != "code" {
		e.Fatalf("payload %q, %v", again, err)
	}
	_, err = e.Store.Function(e.Context(), newID())
	e.wantCode(err, task.CodeNotFound)
	_, err = e.Store.FunctionNamed(e.Context(), "triple")
	e.wantCode(err, task.CodeNotFound)
	_, err = e.Store.FunctionPayload(e.Context(), [32]byte{1})
	e.wantCode(err, task.CodeNotFound)
}

func testFunctionNames(e *env) {
	first, second := newFunction("double", "one"), newFunction("double", "two")
	e.put(first, "one")
	e.put(second, "two")
	got, err := e.Store.FunctionNamed(e.Context(), "double")
	if e.must(err); got.ID != second.ID {
		e.Fatalf("the name means %s, want the newest registration %s", got.ID, second.ID)
	}
	for f, want := range map[task.Function]string{first: "one", second: "two"} {
		got, err := e.Store.Function(e.Context(), f.ID)
		e.must(err)
		code, err := e.Store.FunctionPayload(e.Context(), got.Hash)
		if e.must(err); string(code) != want {
			e.Fatalf("%s has the payload %q, want %q", f.ID, code, want)
		}
	}
}

func testFunctionHash(e *env) {
	payload := string(bytes.Repeat([]byte("x"), 100<<10))
	before := e.keyCount()
	for range 3 {
		e.put(newFunction("same", payload), payload)
	}
	if e.Keys != nil {
		// Three records, one name, one payload.
		if got := e.keyCount() - before; got > 3+1+1+1 {
			e.Fatalf("%d keys for three registrations of the same bytes", got)
		}
	}
	code, err := e.Store.FunctionPayload(e.Context(), sha256.Sum256([]byte(payload)))
	if e.must(err); string(code) != payload {
		e.Fatalf("payload of %d bytes", len(code))
	}
}

func (e *env) keyCount() int {
	e.Helper()
	if e.Keys == nil {
		return 0
	}
	n, err := e.Keys()
	e.must(err)
	return n
}

func testFunctionNoBytes(e *env) {
	f := newFunction("resize", "")
	f.Runtime, f.Form, f.Hash = task.GoRuntime("resize"), task.FormNone, [32]byte{}
	e.put(f, "")
	got, err := e.Store.FunctionNamed(e.Context(), "resize")
	if e.must(err); got.ID != f.ID || got.Runtime != f.Runtime || got.Hash != f.Hash {
		e.Fatalf("got %+v", got)
	}
}

func testFunctionKey(e *env) {
	key := store.Key{ID: "request", Digest: [32]byte{1}}
	first := newFunction("a", "a")
	got, err := e.Store.PutFunction(e.Context(), first, []byte("a"), key)
	e.must(err)
	again, err := e.Store.PutFunction(e.Context(), newFunction("a", "a"), []byte("a"), key)
	if e.must(err); again.ID != got.ID || got.ID != first.ID {
		e.Fatalf("the same request gave %s, want %s", again.ID, got.ID)
	}
	e.reopenIfAble()
	again, err = e.Store.PutFunction(e.Context(), newFunction("a", "a"), []byte("a"), key)
	if e.must(err); again.ID != first.ID {
		e.Fatalf("the same request gave %s, want %s", again.ID, first.ID)
	}
	_, err = e.Store.PutFunction(e.Context(), newFunction("b", "b"), []byte("b"), store.Key{ID: "request", Digest: [32]byte{2}})
	e.wantCode(err, task.CodeConflict)
	_, err = e.Store.FunctionNamed(e.Context(), "b")
	e.wantCode(err, task.CodeNotFound)
	// Keys of functions and of tasks are apart.
	it := item(newTask(), "")
	it.Key = store.Key{ID: "request", Digest: [32]byte{3}}
	e.submitItem(it)
	// Without a key each registration is new.
	if a, b := e.put(newFunction("c", "c"), "c"), e.put(newFunction("c", "c"), "c"); a.ID == b.ID {
		e.Fatal("two registrations without a key gave one id")
	}
}

func testFunctionList(e *env) {
	var want []task.ID
	for i := range 7 {
		want = append([]task.ID{e.put(newFunction(fmt.Sprint("f", i), "x"), "x").ID}, want...)
	}
	var got []task.ID
	before := task.ID{}
	for {
		page, err := e.Store.ListFunctions(e.Context(), before, 3)
		e.must(err)
		if len(page) > 3 {
			e.Fatalf("a page of %d", len(page))
		}
		if len(page) == 0 {
			break
		}
		for _, f := range page {
			got = append(got, f.ID)
		}
		before = got[len(got)-1]
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		e.Fatalf("listed %v, want newest first %v", got, want)
	}
}

func testFunctionAnyName(e *env) {
	for _, name := range []string{"<lambda>", "emoji 🧵", "a/b", "", "ü:call", "a\x00b"} {
		f := newFunction(name, "x")
		e.put(f, "x")
		got, err := e.Store.FunctionNamed(e.Context(), name)
		if err != nil || got.ID != f.ID || got.Name != name {
			e.Errorf("name %q: %+v, %v", name, got, err)
		}
	}
}

func testFunctionWrongHash(e *env) {
	f := newFunction("double", "code")
	f.Size = 5
	_, err := e.Store.PutFunction(e.Context(), f, []byte("other"), store.Key{})
	e.wantCode(err, task.CodeInvalidPayload)
	_, err = e.Store.Function(e.Context(), f.ID)
	e.wantCode(err, task.CodeNotFound)
}
