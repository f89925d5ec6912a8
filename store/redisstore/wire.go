package redisstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Records are a version byte followed by fields in a fixed order: numbers as varints,
// text and bytes behind their length. A field that is added comes last and reads as zero
// where it is missing, so old records stay readable; what follows the known fields was
// written by a newer build and is left alone.

// wireVersion is the first byte of everything encoded here.
const wireVersion = 1

type writer struct{ b []byte }

func newWriter(size int) *writer {
	w := &writer{b: make([]byte, 1, size)}
	w.b[0] = wireVersion
	return w
}

func (w *writer) int(v int64)   { w.b = binary.AppendVarint(w.b, v) }
func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) raw(v []byte)  { w.b = append(w.b, v...) }

func (w *writer) text(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

// last writes the texts that were added to the end of a record later, in the order in which
// they were added. Empty ones at the end are left out, as builds before them do; one that
// something follows is written though it is empty, or what follows would be read in its
// place. So a record has one call of last, and a new text joins it. See [reader.last].
func (w *writer) last(texts ...string) {
	for len(texts) > 0 && texts[len(texts)-1] == "" {
		texts = texts[:len(texts)-1]
	}
	for _, s := range texts {
		w.text(s)
	}
}

func (w *writer) bytes(v []byte) {
	w.uint(uint64(len(v)))
	w.b = append(w.b, v...)
}

func (w *writer) bool(v bool) {
	if v {
		w.b = append(w.b, 1)
		return
	}
	w.b = append(w.b, 0)
}

// time writes seconds plus one and nanoseconds; a zero first number is the zero time.
func (w *writer) time(t time.Time) {
	if t.IsZero() {
		w.int(0)
		return
	}
	sec := t.Unix()
	if sec >= 0 {
		sec++
	}
	w.int(sec)
	w.uint(uint64(t.Nanosecond()))
}

// reader reads what writer wrote. The first error sticks and everything after it reads
// as zero, so that callers check once.
type reader struct {
	b   []byte
	err error
}

var errDamaged = errors.New("the bytes end within a value")

func newReader(b string) *reader {
	r := &reader{b: []byte(b)}
	if len(b) == 0 {
		r.err = errDamaged
		return r
	}
	if r.b[0] != wireVersion {
		r.err = fmt.Errorf("format %d, this build reads %d", r.b[0], wireVersion)
		return r
	}
	r.b = r.b[1:]
	return r
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) int() int64 {
	if len(r.b) == 0 {
		return 0
	}
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail(errDamaged)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint() uint64 {
	if len(r.b) == 0 {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(errDamaged)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads a number of things.
func (r *reader) count() int {
	v := r.int()
	if v < 0 || v > math.MaxInt32*1024 {
		r.fail(fmt.Errorf("the count %d is out of range", v))
		return 0
	}
	return int(v)
}

// take returns the next n bytes.
func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail(errDamaged)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) raw(dst []byte) {
	if len(r.b) > 0 {
		copy(dst, r.take(uint64(len(dst))))
	}
}

// last reads the next of the texts that [writer.last] wrote.
func (r *reader) last() string {
	if r.err != nil || len(r.b) == 0 {
		return ""
	}
	return r.text()
}

func (r *reader) text() string { return string(r.take(r.uint())) }

// bytes returns nil for an empty value. The reader owns its input, so no copy is needed.
func (r *reader) bytes() []byte {
	if v := r.take(r.uint()); len(v) > 0 {
		return v
	}
	return nil
}

func (r *reader) bool() bool {
	v := r.take(min(1, uint64(len(r.b))))
	return len(v) == 1 && v[0] == 1
}

func (r *reader) time() time.Time {
	sec := r.int()
	if sec == 0 {
		return time.Time{}
	}
	if sec > 0 {
		sec--
	}
	nsec := r.uint()
	if nsec >= 1e9 {
		r.fail(fmt.Errorf("%d nanoseconds in a second", nsec))
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}
