package pebblestore

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// registered is what deletion must know of functions: it is rebuilt at open from their rows,
// some hundred bytes for each.
type registered struct {
	// names lists the registrations of each name, oldest first. blobs counts those of each
	// hash, tasks the unfinished tasks of each function.
	names map[string][]task.ID
	blobs map[[32]byte]int
	tasks map[task.ID]int
	// twins finds transient functions by what makes them one, used says when they were used
	// last, as it is written. look is when to see again which of them are to go.
	twins map[[32]byte]task.ID
	used  map[task.ID]time.Time
	look  time.Time
	// gone are those deleted since the store was opened: a submission that looked its
	// function up before must not be recorded after.
	gone recentIDs
}

func newRegistered() registered {
	return registered{
		names: make(map[string][]task.ID), blobs: make(map[[32]byte]int), tasks: make(map[task.ID]int),
		twins: make(map[[32]byte]task.ID), used: make(map[task.ID]time.Time),
	}
}

func (r *registered) add(f *functionRow) {
	r.names[f.Name] = append(r.names[f.Name], f.ID)
	r.blobs[f.Hash]++
	if f.Transient {
		r.twins[store.Twin(&f.Function)] = f.ID
		r.used[f.ID] = f.used
	}
}

// remove takes a function out. It returns the newest one left of its name, zero for none, and
// whether another one has its bytes.
func (r *registered) remove(f *functionRow) (newest task.ID, shared bool) {
	left := slices.DeleteFunc(r.names[f.Name], func(id task.ID) bool { return id == f.ID })
	if r.names[f.Name] = left; len(left) > 0 {
		newest = left[len(left)-1]
	} else {
		delete(r.names, f.Name)
	}
	if r.blobs[f.Hash]--; r.blobs[f.Hash] == 0 {
		delete(r.blobs, f.Hash)
	}
	if f.Transient {
		delete(r.twins, store.Twin(&f.Function))
		delete(r.used, f.ID)
	}
	r.gone.add(f.ID)
	return newest, r.blobs[f.Hash] > 0
}

// finished takes an unfinished task of a function out.
func (r *registered) finished(function task.ID) {
	if r.tasks[function]--; r.tasks[function] == 0 {
		delete(r.tasks, function)
	}
}

// recentIDs remembers the last ids that were added.
type recentIDs struct {
	ids  map[task.ID]struct{}
	ring []task.ID
	next int
}

// maxGone is how many deleted functions are remembered: more than are deleted while one
// submission is on its way.
const maxGone = 10_000

func (r *recentIDs) has(id task.ID) bool {
	_, ok := r.ids[id]
	return ok
}

func (r *recentIDs) add(id task.ID) {
	if r.ids == nil {
		r.ids = make(map[task.ID]struct{})
	}
	if len(r.ring) < maxGone {
		r.ring = append(r.ring, id)
	} else {
		delete(r.ids, r.ring[r.next])
		r.ring[r.next] = id
		r.next = (r.next + 1) % maxGone
	}
	r.ids[id] = struct{}{}
}

// changesFunctions says whether the commit writes or removes registrations.
func (x *txn) changesFunctions() bool { return len(x.functions) > 0 || x.deleted }

// use notes that a transient function is used, no more often than it is kept.
func (x *txn) use(id task.ID, now time.Time) {
	s := x.s
	last, ok := s.ix.functions.used[id]
	if !ok || now.Sub(last) < store.UseGranularity(s.opts.Retention) {
		return
	}
	row, err := x.knownFunction(id)
	if err != nil {
		s.fail(err)
		return
	}
	row.used = now
	s.ix.functions.used[id] = now
	x.functions = append(x.functions, row)
	x.set(idKey(spaceFunction, id), encodeFunction(&row))
}

// DeleteFunction implements [store.Functions].
func (s *Store) DeleteFunction(ctx context.Context, id task.ID) error {
	const op = "delete function"
	if err := s.enter(op); err != nil {
		return err
	}
	defer s.leave()
	var refused error
	if err := s.commit(ctx, op, 512, func(x *txn) { refused = x.deleteFunction(id) }); err != nil {
		return err
	}
	return refused
}

func (x *txn) deleteFunction(id task.ID) error {
	s := x.s
	row, err := x.knownFunction(id)
	if err != nil {
		return err
	}
	if n := s.ix.functions.tasks[id]; n > 0 {
		return &store.InUse{Function: id, Tasks: n}
	}
	newest, shared := s.ix.functions.remove(&row)
	s.ix.owners.add(row.CreatedBy, row.Queue, owned{functions: -1, bytes: -int64(row.Size)})
	x.deleted = true
	x.functions = slices.DeleteFunc(x.functions, func(f functionRow) bool { return f.ID == id })
	x.del(idKey(spaceFunction, id))
	if newest.IsZero() {
		x.del(textKey(spaceName, row.Name))
	} else {
		x.set(textKey(spaceName, row.Name), newest[:])
	}
	if row.key != "" {
		x.del(textKey(spaceFuncKey, row.key))
		delete(x.funcKeys, row.key)
	}
	if row.Size > 0 && !shared {
		if x.blobsGone == nil {
			x.blobsGone = make(map[[32]byte]struct{})
		}
		x.blobsGone[row.Hash] = struct{}{}
		x.delValue(hashKey(row.Hash), furtherParts(row.Size))
	}
	return nil
}

// collectFunctions deletes transient functions that nothing used for a retention, at most
// limit, and returns how many.
func (s *Store) collectFunctions(ctx context.Context, now time.Time, limit int) (n int, err error) {
	r := &s.ix.functions
	s.mu.Lock()
	due := s.ago(now, s.opts.Retention+store.UseGranularity(s.opts.Retention))
	var old []task.ID
	if len(r.used) > 0 && !now.Before(r.look) {
		r.look = now.Add(max(time.Second, min(time.Hour, s.opts.Retention/8)))
		for id, used := range r.used {
			if !used.After(due) && r.tasks[id] == 0 {
				old = append(old, id)
			}
		}
		if len(old) > limit {
			old = old[:limit]
			r.look = now
		}
	}
	s.mu.Unlock()
	if len(old) == 0 {
		return 0, nil
	}
	slices.SortFunc(old, func(a, b task.ID) int { return bytes.Compare(a[:], b[:]) })
	err = s.commit(ctx, "reap", 256*len(old), func(x *txn) {
		for _, id := range old {
			// It may have been used since.
			if used, ok := r.used[id]; ok && !used.After(due) && x.deleteFunction(id) == nil {
				n++
			}
		}
	})
	return n, err
}
