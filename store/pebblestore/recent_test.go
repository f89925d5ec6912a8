package pebblestore

import (
	"encoding/binary"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

func numbered(n int) task.ID {
	var id task.ID
	binary.BigEndian.PutUint32(id[:], uint32(n+1))
	return id
}

// TestRecentIsBounded: the tasks that ended last are there, those before them are not.
func TestRecentIsBounded(t *testing.T) {
	t.Parallel()
	var r recent
	const tasks = 3*maxRecent + 7
	for n := range tasks {
		r.add(finished{task: &task.Task{ID: numbered(n)}, result: []byte{byte(n)}})
	}
	if len(r.tasks) != maxRecent || len(r.ring) != maxRecent {
		t.Fatalf("%d tasks in a ring of %d, want %d", len(r.tasks), len(r.ring), maxRecent)
	}
	for n := range tasks {
		v, ok := r.find(numbered(n))
		if want := n >= tasks-maxRecent; ok != want {
			t.Fatalf("task %d of %d is there: %v, want %v", n, tasks, ok, want)
		}
		if ok && (v.task.ID != numbered(n) || v.result[0] != byte(n)) {
			t.Fatalf("task %d has the id %s and the result %v", n, v.task.ID, v.result)
		}
	}
}

// TestRecentForgets: a task that is removed is gone at once, and its place is used again.
func TestRecentForgets(t *testing.T) {
	t.Parallel()
	var r recent
	for n := range maxRecent {
		r.add(finished{task: &task.Task{ID: numbered(n)}})
	}
	r.drop(numbered(0))
	r.drop(numbered(9))
	if _, ok := r.find(numbered(9)); ok {
		t.Fatal("a task that was removed is found")
	}
	for n := range maxRecent {
		r.add(finished{task: &task.Task{ID: numbered(maxRecent + n)}})
	}
	if len(r.tasks) != maxRecent {
		t.Fatalf("%d tasks after a whole round, want %d", len(r.tasks), maxRecent)
	}
}

// TestRecentHandsOutCopies: what a reader does with an answer is its own business.
func TestRecentHandsOutCopies(t *testing.T) {
	t.Parallel()
	var r recent
	r.add(finished{task: &task.Task{ID: numbered(0), FunctionName: "f"}, result: []byte("result")})
	v, _ := r.find(numbered(0))
	v.task.FunctionName, v.result[0] = "g", 'R'
	if again, _ := r.find(numbered(0)); again.task.FunctionName != "f" || string(again.result) != "result" {
		t.Fatalf("after a reader's change: %s, %q", again.task.FunctionName, again.result)
	}
}
