package pebblestore

import (
	"encoding/binary"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// The keyspaces. A key is one letter, then what is named; ids grow with time, so
// the tables of a keyspace are written in order and rarely meet in a compaction.
//
//	l<id>            record of an unfinished task, with the claim in force merged to it
//	f<id>            record of a finished task
//	a<id>[part]      arguments of an unfinished task, unless they are small
//	r<id>[part]      result of a COMPLETED task, unless it is small
//	o<id><attempt>   what is kept of an attempt's output
//	x<finish><id>    tasks that finished in one commit, for retention
//	k<request id>    idempotency key of a task
//	F<id>            function
//	b<hash>[part]    bytes of functions
//	n<name>          newest function of a name
//	K<request id>    idempotency key of a registration
//	u<owner>         bytes of the results that an owner has
//	m<name>          the store's own facts
const (
	spaceLive     = 'l'
	spaceFinished = 'f'
	spaceArgs     = 'a'
	spaceResult   = 'r'
	spaceOutput   = 'o'
	spaceRetain   = 'x'
	spaceTaskKey  = 'k'
	spaceFunction = 'F'
	spaceBlob     = 'b'
	spaceName     = 'n'
	spaceFuncKey  = 'K'
	spaceOwner    = 'u'
	spaceMeta     = 'm'
)

// Facts about the store.
var (
	// keyFormat holds the version of everything above, as one byte.
	keyFormat = []byte("mformat")
	// keyClock holds the high-water mark of store time and of the sequence.
	keyClock = []byte("mclock")
	// keyCounted is a copy of keyClock, written with it by builds that count what owners
	// have. Where the two differ another build has written since, and did not count.
	keyCounted = []byte("mcounted")
)

// formatVersion is what this build writes and the newest that it reads. Records are
// maps of numbered fields, so a new field needs no new version; a changed meaning does.
// Format 2 counts commits in the clock row. Format 3 writes a claim as a few bytes behind
// the record, and words, UUIDs and times in a record shorter.
const formatVersion = 3

func idKey(space byte, id task.ID) []byte {
	return appendIDKey(make([]byte, 0, 1+len(id)), space, id)
}

func appendIDKey(b []byte, space byte, id task.ID) []byte {
	return append(append(b, space), id[:]...)
}

func appendOutputKey(b []byte, id task.ID, attempt int) []byte {
	return binary.BigEndian.AppendUint32(appendIDKey(b, spaceOutput, id), uint32(attempt))
}

func hashKey(h [32]byte) []byte { return append([]byte{spaceBlob}, h[:]...) }

func textKey(space byte, text string) []byte {
	return append(append(make([]byte, 0, 1+len(text)), space), text...)
}

// appendRetainKey names a row by the last finish time in it and the first of its ids.
func appendRetainKey(b []byte, finished time.Time, id task.ID) []byte {
	b = append(b, spaceRetain)
	// Store time is after 1970, so the unsigned form sorts like the time.
	b = binary.BigEndian.AppendUint64(b, uint64(max(finished.UnixNano(), 0)))
	return append(b, id[:]...)
}

const retainKeyLen = 1 + 8 + 16

// finishOf reads the time of a key of the retention index.
func finishOf(key []byte) (finished time.Time, ok bool) {
	if len(key) != retainKeyLen || key[0] != spaceRetain {
		return time.Time{}, false
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(key[1:9]))).UTC(), true
}

// idOfKey reads the id of an id key.
func idOfKey(key []byte) (id task.ID, ok bool) {
	if len(key) != 1+len(id) {
		return task.ID{}, false
	}
	copy(id[:], key[1:])
	return id, true
}

// bounds returns the limits of a keyspace.
func bounds(space byte) (lower, upper []byte) { return []byte{space}, []byte{space + 1} }
