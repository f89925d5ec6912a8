package pebblestore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/task"
)

// unseen knows ids that cannot be on disk, so that nobody looks for them there: those above
// floor that are not among the last ones added. Task ids and the request ids of most clients
// are UUIDs of version 7, which grow with time; the last ones are remembered because
// callers overtake each other between making an id and recording it.
//
// It errs to one side. Ids are remembered by 20 of their random bits, so 2 to 3 % of the new
// ones are looked for in vain: a map of them costs more than it saves, half a microsecond an id.
// An id that is far ahead of the others raises the floor when its turn to be forgotten comes,
// and until time has caught up with it every id is looked for.
type unseen struct {
	// floor is the largest id that may be on disk and is not remembered.
	floor task.ID
	// last and before hold the last ids, between maxUnseen and twice as many.
	last, before generation
}

// generation is a number of ids that are forgotten together.
type generation struct {
	// bits has a bit for each value of the 20 bits, 128 KiB; nil while there are no ids.
	bits []uint64
	n    int
	// newest is the largest id.
	newest task.ID
}

const (
	// maxUnseen is how many ids are forgotten together: half a second of the fastest store.
	maxUnseen  = 16 << 10
	unseenBits = 20
)

// place returns where an id stands in the bits of a generation.
func (g *generation) place(id task.ID) (word int, bit uint64) {
	h := binary.BigEndian.Uint32(id[12:]) & (1<<unseenBits - 1)
	return int(h / 64), 1 << (h % 64)
}

func (g *generation) maybe(id task.ID) bool {
	word, bit := g.place(id)
	return g.bits != nil && g.bits[word]&bit != 0
}

// maybe says whether an id may be on disk.
func (u *unseen) maybe(id task.ID) bool {
	return bytes.Compare(id[:], u.floor[:]) <= 0 || u.last.maybe(id) || u.before.maybe(id)
}

// add notes an id that is recorded now.
func (u *unseen) add(id task.ID) {
	if bytes.Compare(id[:], u.floor[:]) <= 0 {
		return
	}
	if u.last.n == maxUnseen {
		u.raise(u.before.newest)
		u.last, u.before = generation{bits: u.before.bits}, u.last
		clear(u.last.bits)
	}
	g := &u.last
	if g.bits == nil {
		g.bits = make([]uint64, 1<<unseenBits/64)
	}
	word, bit := g.place(id)
	g.bits[word] |= bit
	g.n++
	if bytes.Compare(id[:], g.newest[:]) > 0 {
		g.newest = id
	}
}

// raise has all ids up to id be looked for.
func (u *unseen) raise(id task.ID) {
	if bytes.Compare(id[:], u.floor[:]) > 0 {
		u.floor = id
	}
}

// requestIDs is [unseen] for request ids, of which those that are no UUIDs of version 7 are
// always looked for.
type requestIDs struct {
	unseen
	// ceiling bounds what the floor was looked for at open: ids above it are always looked for.
	ceiling task.ID
}

// Bounds of what is looked through at open for the newest request id.
const (
	requestIDAhead = 366 * 24 * time.Hour
	requestIDRows  = 10_000
)

// timed returns the id in a request id that may be unseen.
func (r *requestIDs) timed(key string) (id task.ID, ok bool) {
	id, ok = canonical(key)
	return id, ok && isTimed(id) && bytes.Compare(id[:], r.ceiling[:]) < 0
}

// isTimed says whether an id is a UUID of version 7.
func isTimed(id task.ID) bool { return id[6]>>4 == 7 }

func (r *requestIDs) maybe(key string) bool {
	id, ok := r.timed(key)
	return !ok || r.unseen.maybe(id)
}

func (r *requestIDs) add(key string) {
	if id, ok := r.timed(key); ok {
		r.unseen.add(id)
	}
}

// recoverRequestIDs finds the newest request id of version 7 on disk. Other UUIDs are in
// the way, few of them within a year; where there are many all are looked for.
func (s *Store) recoverRequestIDs() (err error) {
	r := &s.requestIDs
	ms := s.now.Add(requestIDAhead).UnixMilli()
	r.ceiling = task.ID{byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)}
	lower, upper := bounds(spaceTaskKey)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	n := 0
	for ok := it.SeekLT(textKey(spaceTaskKey, r.ceiling.String())); ok; ok = it.Prev() {
		if id, is := canonical(string(it.Key()[1:])); is && isTimed(id) {
			r.floor = id
			return nil
		}
		if n++; n == requestIDRows {
			r.floor = r.ceiling
			return nil
		}
	}
	return nil
}
