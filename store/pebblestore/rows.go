package pebblestore

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/task"
)

func durationOf(r *reader) time.Duration { return time.Duration(r.int()) }

// Numbers of the fields of a function record. The id is in the key.
const (
	fnName = iota + 1
	fnQueue
	fnRuntime
	fnForm
	fnHash
	fnSize
	fnCreatedAt
	fnPython
	fnCreatedBy
	fnTransient
	fnUsed
	fnKey
)

// functionRow is what is stored of a function beside it.
type functionRow struct {
	task.Function
	// used is when a transient one was used last, kept to the hour.
	used time.Time
	// key is the idempotency key of the registration, deleted with it.
	key string
}

func encodeFunction(f *functionRow) []byte {
	m := openMap(nil)
	m.text(fnName, f.Name)
	m.text(fnQueue, f.Queue)
	m.text(fnRuntime, f.Runtime)
	m.text(fnForm, string(f.Form))
	m.array(fnHash, f.Hash[:])
	m.int(fnSize, int64(f.Size))
	m.time(fnCreatedAt, f.CreatedAt)
	m.text(fnPython, f.Python)
	m.text(fnCreatedBy, f.CreatedBy)
	m.bool(fnTransient, f.Transient)
	m.time(fnUsed, f.used)
	m.text(fnKey, f.key)
	return m.done()
}

func decodeFunction(id task.ID, b []byte) (functionRow, error) {
	f := functionRow{Function: task.Function{ID: id}}
	r := &reader{b: b}
	r.eachField(func(num int) bool {
		switch num {
		case fnName:
			f.Name = r.text()
		case fnQueue:
			f.Queue = r.text()
		case fnRuntime:
			f.Runtime = r.text()
		case fnForm:
			f.Form = task.Form(r.text())
		case fnHash:
			r.array(f.Hash[:])
		case fnSize:
			f.Size = r.count()
		case fnCreatedAt:
			f.CreatedAt = r.time()
		case fnPython:
			f.Python = r.text()
		case fnCreatedBy:
			f.CreatedBy = r.text()
		case fnTransient:
			f.Transient = r.bool()
		case fnUsed:
			f.used = r.time()
		case fnKey:
			f.key = r.text()
		default:
			return false
		}
		return true
	})
	if r.err == nil && len(r.b) > 0 {
		r.fail(fmt.Errorf("%d bytes after the end of the record", len(r.b)))
	}
	if r.err != nil {
		return functionRow{}, fmt.Errorf("the record under key %c/%s is damaged: %w", spaceFunction, id, r.err)
	}
	return f, nil
}

// retained is what retention must know to remove a finished task without reading its
// record. One row of the retention index holds those that finished in one commit.
type retained struct {
	id     task.ID
	key    string
	result bool
	// parts counts the further parts of the result.
	parts int
	logs  []int
	// owner is who submitted it, with the size of its result; empty and 0 without an owner.
	owner string
	size  int
}

// Numbers of the fields of a retained task.
const (
	fxID = iota + 1
	fxKey
	fxResult
	fxLogs
	fxParts
	fxOwner
	fxSize
)

func appendRetained(b []byte, row []retained) []byte {
	b = appendArrayLen(b, len(row))
	for i := range row {
		m := openSmallMap(b)
		m.array(fxID, row[i].id[:])
		m.name(fxKey, row[i].key)
		m.bool(fxResult, row[i].result)
		if len(row[i].logs) > 0 {
			m.tag(fxLogs)
			m.b = appendInts(m.b, row[i].logs)
		}
		if row[i].parts > 0 {
			m.int(fxParts, int64(row[i].parts))
		}
		m.name(fxOwner, row[i].owner)
		m.int(fxSize, int64(row[i].size))
		b = m.done()
	}
	return b
}

func decodeRetained(key, b []byte) ([]retained, error) {
	r := &reader{b: b}
	n := r.arrayLen()
	row := make([]retained, 0, min(n, maxRetainedRow))
	for ; n > 0 && r.err == nil; n-- {
		var t retained
		r.eachField(func(num int) bool {
			switch num {
			case fxID:
				r.array(t.id[:])
			case fxKey:
				t.key = r.name()
			case fxResult:
				t.result = r.bool()
			case fxLogs:
				t.logs = readInts(r)
			case fxParts:
				t.parts = r.count()
			case fxOwner:
				t.owner = r.name()
			case fxSize:
				t.size = r.count()
			default:
				return false
			}
			return true
		})
		row = append(row, t)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail(fmt.Errorf("%d bytes after the end of the row", len(r.b)))
	}
	if r.err != nil {
		return nil, fmt.Errorf("the retention row under key %q is damaged: %w", key, r.err)
	}
	return row, nil
}

// keyRow is the value of an idempotency key: what it was used for.
type keyRow struct {
	id     task.ID
	digest [32]byte
}

const keyRowLen = 16 + 32

func (k *keyRow) encode() []byte {
	return append(append(make([]byte, 0, keyRowLen), k.id[:]...), k.digest[:]...)
}

func decodeKeyRow(key string, b []byte) (keyRow, error) {
	var k keyRow
	if len(b) != keyRowLen {
		return k, fmt.Errorf("the row of idempotency key %q is damaged: it has %d bytes, want %d", key, len(b), keyRowLen)
	}
	copy(k.id[:], b)
	copy(k.digest[:], b[16:])
	return k, nil
}

// clockRow is the value of keyClock.
type clockRow struct {
	// now is the newest store time that anything stored was decided at.
	now time.Time
	// seq is the last sequence number given.
	seq uint64
	// commits counts the commits up to this one; stores of format 1 did not count.
	commits uint64
}

func (c *clockRow) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(c.now.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, c.seq)
	return binary.BigEndian.AppendUint64(b, c.commits)
}

func decodeClockRow(b []byte) (clockRow, error) {
	if len(b) != 16 && len(b) != 24 {
		return clockRow{}, fmt.Errorf("the clock row is damaged: it has %d bytes, want 16 or 24", len(b))
	}
	c := clockRow{now: time.Unix(0, int64(binary.BigEndian.Uint64(b))).UTC(), seq: binary.BigEndian.Uint64(b[8:])}
	if len(b) == 24 {
		c.commits = binary.BigEndian.Uint64(b[16:])
	}
	return c, nil
}
