package pebblestore

import (
	"math/bits"
	"slices"

	"github.com/treadle-dev/treadle/task"
)

// laneKey names a lane: the tasks that a claim can tell apart.
type laneKey struct{ queue, runtime string }

// lane holds the ready tasks of one queue and runtime key, by priority and then by
// sequence, and counts all unfinished ones.
type lane struct {
	key laneKey
	// mask has bit p set while level p holds something, so that a claim over many
	// lanes looks at one word of each.
	mask   uint16
	levels [task.MaxPriority + 1]level
	ready  int
	// queued and running count unfinished tasks by their public status.
	queued, running int
	// rung is the commit that last rang Ready for this lane.
	rung *txn
	// filled says that the lane is in index.filled; round is the round of serving that
	// last looked at it, told how many requests it has sent to claim there.
	filled bool
	round  uint64
	told   int
}

func (l *lane) push(e *entry) {
	l.levels[e.priority].push(e)
	l.mask |= 1 << e.priority
	l.ready++
}

// head returns the next ready entry without taking it, or nil.
func (l *lane) head() *entry {
	for l.mask != 0 {
		p := bits.Len16(l.mask) - 1
		if e := l.levels[p].head(); e != nil {
			return e
		}
		l.mask &^= 1 << p
	}
	return nil
}

// pop takes the entry that head returned.
func (l *lane) pop() {
	l.levels[bits.Len16(l.mask)-1].pop()
	l.ready--
}

// drop says that an entry left the lane from wherever it stood: it is passed over
// when its turn comes, and swept out when such entries are the larger part.
func (l *lane) drop(e *entry) {
	l.ready--
	lv := &l.levels[e.priority]
	lv.dead++
	if lv.dead > 64 && lv.dead > lv.len()/2 {
		lv.sweep()
	}
}

// level is a line ordered by sequence. Tasks arrive in that order, so the line is a
// slice that is appended to; those that come back are few and stand in a heap.
type level struct {
	line []*entry
	// first is the index of the head of the line.
	first int
	back  []*entry
	dead  int
}

func (lv *level) len() int { return len(lv.line) - lv.first + len(lv.back) }

func (lv *level) push(e *entry) {
	if n := len(lv.line); n == lv.first || lv.line[n-1].seq < e.seq {
		lv.line = append(lv.line, e)
		return
	}
	lv.back = append(lv.back, e)
	i := len(lv.back) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if lv.back[parent].seq <= e.seq {
			break
		}
		lv.back[i] = lv.back[parent]
		i = parent
	}
	lv.back[i] = e
}

// fromBack says whether the head of the level is that of the heap.
func (lv *level) fromBack() bool {
	if len(lv.back) == 0 {
		return false
	}
	return lv.first == len(lv.line) || lv.back[0].seq < lv.line[lv.first].seq
}

func (lv *level) head() *entry {
	for lv.len() > 0 {
		var e *entry
		if lv.fromBack() {
			e = lv.back[0]
		} else {
			e = lv.line[lv.first]
		}
		if e.where == whereReady {
			return e
		}
		lv.dead--
		lv.pop()
	}
	return nil
}

func (lv *level) pop() {
	if lv.fromBack() {
		lv.popBack()
		return
	}
	lv.line[lv.first] = nil
	lv.first++
	switch {
	case lv.first == len(lv.line):
		lv.first = 0
		// An emptied line gives a large array back.
		if cap(lv.line) > 1024 {
			lv.line = nil
		} else {
			lv.line = lv.line[:0]
		}
	case lv.first > 1024 && lv.first > len(lv.line)/2:
		n := copy(lv.line, lv.line[lv.first:])
		clear(lv.line[n:])
		lv.line, lv.first = lv.line[:n], 0
	}
}

func (lv *level) popBack() {
	last := len(lv.back) - 1
	e := lv.back[last]
	lv.back[last] = nil
	lv.back = lv.back[:last]
	if last == 0 {
		return
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= last {
			break
		}
		if r := child + 1; r < last && lv.back[r].seq < lv.back[child].seq {
			child = r
		}
		if e.seq <= lv.back[child].seq {
			break
		}
		lv.back[i] = lv.back[child]
		i = child
	}
	lv.back[i] = e
}

// sweep rebuilds the level without the entries that left it.
func (lv *level) sweep() {
	keep := make([]*entry, 0, lv.len()-lv.dead)
	for _, e := range lv.line[lv.first:] {
		if e.where == whereReady {
			keep = append(keep, e)
		}
	}
	for _, e := range lv.back {
		if e.where == whereReady {
			keep = append(keep, e)
		}
	}
	slices.SortFunc(keep, func(a, b *entry) int {
		if a.seq < b.seq {
			return -1
		}
		return 1
	})
	*lv = level{line: keep}
}
