package pebblestore

import (
	"bytes"

	"github.com/treadle-dev/treadle/task"
)

const (
	// maxRecent is how many tasks that ended last are kept in memory: a result is
	// mostly asked for as soon as it is there.
	maxRecent = 4096
	// maxRecentRecord bounds the record of such a task, so that all of them take some 20 MiB
	// at most.
	maxRecentRecord = 4 << 10
)

// recent remembers tasks that ended last, as they stand on the disk.
type recent struct {
	tasks map[task.ID]finished
	// ring names them in the order in which they ended; next is the oldest.
	ring []task.ID
	next int
}

// finished is a task that has ended with its result. Neither is ever changed.
type finished struct {
	task   *task.Task
	result []byte
}

func (r *recent) add(f finished) {
	if r.tasks == nil {
		r.tasks = make(map[task.ID]finished, maxRecent)
	}
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, f.task.ID)
	} else {
		delete(r.tasks, r.ring[r.next])
		r.ring[r.next] = f.task.ID
		r.next = (r.next + 1) % maxRecent
	}
	r.tasks[f.task.ID] = f
}

// drop forgets a task that is removed. Its place in the ring is taken in its turn.
func (r *recent) drop(id task.ID) { delete(r.tasks, id) }

// find returns copies for a reader.
func (r *recent) find(id task.ID) (view, bool) {
	f, ok := r.tasks[id]
	if !ok {
		return view{}, false
	}
	return view{task: f.task.Clone(), result: bytes.Clone(f.result)}, true
}
