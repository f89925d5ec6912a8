package pebblestore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// Records are MessagePack maps from field numbers to values, written and read by
// hand: a record is encoded twice in the life of a task, on the one goroutine
// that everybody waits for. Any MessagePack tool can show them.

func appendUint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<7:
		return append(b, byte(v))
	case v <= math.MaxUint8:
		return append(b, 0xcc, byte(v))
	case v <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(v))
	case v <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v))
	default:
		return binary.BigEndian.AppendUint64(append(b, 0xcf), v)
	}
}

func appendInt(b []byte, v int64) []byte {
	if v >= 0 {
		return appendUint(b, uint64(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 0xc3)
	}
	return append(b, 0xc2)
}

func appendText(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n <= math.MaxUint8:
		b = append(b, 0xd9, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

func appendBytes(b, v []byte) []byte {
	switch n := len(v); {
	case n <= math.MaxUint8:
		b = append(b, 0xc4, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, 0xc5), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(n))
	}
	return append(b, v...)
}

func appendArrayLen(b []byte, n int) []byte {
	if n < 16 {
		return append(b, 0x90|byte(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n))
}

// appendTime writes the timestamp extension (type -1) in its 8 or 12 byte form.
func appendTime(b []byte, t time.Time) []byte {
	sec, nsec := t.Unix(), uint64(t.Nanosecond())
	if sec >= 0 && sec < 1<<34 {
		b = append(b, 0xd7, 0xff)
		return binary.BigEndian.AppendUint64(b, nsec<<34|uint64(sec))
	}
	b = append(b, 0xc7, 12, 0xff)
	b = binary.BigEndian.AppendUint32(b, uint32(nsec))
	return binary.BigEndian.AppendUint64(b, uint64(sec))
}

// fields writes one map. Zero values are left out, so that a field costs nothing
// where it is not used and an old record reads as zero.
type fields struct {
	b     []byte
	start int
	n     int
	small bool
}

// openMap starts a map at the end of b; close it with [fields.done].
func openMap(b []byte) fields {
	return fields{b: append(b, 0xde, 0, 0), start: len(b)}
}

// openSmallMap starts a map of at most 15 fields, whose head is one byte.
func openSmallMap(b []byte) fields {
	return fields{b: append(b, 0x80), start: len(b), small: true}
}

// done fills in the count and returns the buffer.
func (f *fields) done() []byte {
	if f.small {
		f.b[f.start] |= byte(f.n)
		return f.b
	}
	binary.BigEndian.PutUint16(f.b[f.start+1:], uint16(f.n))
	return f.b
}

func (f *fields) tag(num int) {
	f.n++
	f.b = appendUint(f.b, uint64(num))
}

func (f *fields) text(num int, s string) {
	if s != "" {
		f.tag(num)
		f.b = appendText(f.b, s)
	}
}

// word writes one of [words] as its number and any other text as it is.
func (f *fields) word(num int, s string) {
	if s != "" {
		f.tag(num)
		f.b = appendWord(f.b, s)
	}
}

// name writes a text that is mostly a UUID, see [appendName].
func (f *fields) name(num int, s string) {
	if s != "" {
		f.tag(num)
		f.b = appendName(f.b, s)
	}
}

// since writes a time by what has passed since an earlier one, see [appendSince].
func (f *fields) since(num int, t, base time.Time) {
	if !t.IsZero() {
		f.tag(num)
		f.b = appendSince(f.b, t, base)
	}
}

func (f *fields) bytes(num int, v []byte) {
	if len(v) > 0 {
		f.tag(num)
		f.b = appendBytes(f.b, v)
	}
}

// array writes a fixed-size array as bytes unless it is all zero.
func (f *fields) array(num int, v []byte) {
	for _, c := range v {
		if c != 0 {
			f.bytes(num, v)
			return
		}
	}
}

func (f *fields) int(num int, v int64) {
	if v != 0 {
		f.tag(num)
		f.b = appendInt(f.b, v)
	}
}

func (f *fields) uint(num int, v uint64) {
	if v != 0 {
		f.tag(num)
		f.b = appendUint(f.b, v)
	}
}

func (f *fields) bool(num int, v bool) {
	if v {
		f.tag(num)
		f.b = appendBool(f.b, v)
	}
}

func (f *fields) time(num int, t time.Time) {
	if !t.IsZero() {
		f.tag(num)
		f.b = appendTime(f.b, t)
	}
}

// words are texts that nearly every record has. Their numbers are on disk: the list only
// grows at its end, and with a new format, as older builds do not know the new number.
var words = [...]string{
	"", string(task.Queued), string(task.Running), string(task.Completed), string(task.Failed), string(task.Cancelled),
	string(task.FormPickle), string(task.FormSource), string(task.FormNone), string(task.EncodingJSON),
	task.DefaultQueue, task.RuntimePython, "go",
	string(task.EndSucceeded), string(task.EndRaised), string(task.EndLost), string(task.EndLapsed), string(task.EndReturned),
	string(task.EndTimedOut), string(task.EndExhausted), string(task.EndUnreadable), string(task.EndCancelled),
}

// numbers are the places in words.
var numbers = func() map[string]uint64 {
	m := make(map[string]uint64, len(words))
	for i, w := range words {
		m[w] = uint64(i)
	}
	return m
}()

func appendWord(b []byte, s string) []byte {
	if n, ok := numbers[s]; ok {
		return appendUint(b, n)
	}
	return appendText(b, s)
}

// appendName writes a UUID in its canonical form as its 16 bytes and any other text as it
// is. Ids of workers and request ids are UUIDs unless somebody chose them.
func appendName(b []byte, s string) []byte {
	if id, ok := canonical(s); ok {
		return appendBytes(b, id[:])
	}
	return appendText(b, s)
}

// canonical reads a UUID that is written as [task.ID.String] writes it. Unlike
// [task.ParseID] it takes no capitals, as the text must be the same when it is read back,
// and makes no garbage.
func canonical(s string) (id task.ID, ok bool) {
	if len(s) != 36 {
		return id, false
	}
	at := 0
	for i := 0; i < len(s); {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return id, false
			}
			i++
		}
		high, low := nibble(s[i]), nibble(s[i+1])
		if high|low > 0xf {
			return id, false
		}
		id[at] = high<<4 | low
		at, i = at+1, i+2
	}
	return id, true
}

// nibble is the value of a small hexadecimal digit, 0xff for other characters.
func nibble(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// appendSince writes the nanoseconds from base to t, which mostly take half the room, or t
// as it is where it is before base or far from it.
func appendSince(b []byte, t, base time.Time) []byte {
	if d := t.Sub(base); !base.IsZero() && d >= 0 && d < math.MaxInt64 {
		return appendInt(b, int64(d))
	}
	return appendTime(b, t)
}

// reader reads MessagePack. The first error sticks and everything after it reads
// as zero, so that callers check once.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("the bytes end within a value")

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

// take returns the next n bytes, without copying them.
func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.fail(errShort)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

// number reads a big-endian unsigned integer of n bytes.
func (r *reader) number(n int) uint64 {
	var v uint64
	for _, c := range r.take(n) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (r *reader) unexpected(want string, c byte) {
	r.fail(fmt.Errorf("want %s, found a value of kind 0x%02x", want, c))
}

func (r *reader) int() int64 {
	c := r.byte()
	switch {
	case c < 0x80:
		return int64(c)
	case c >= 0xe0:
		return int64(int8(c))
	}
	switch c {
	case 0xcc, 0xcd, 0xce, 0xcf:
		v := r.number(1 << (c - 0xcc))
		if v > math.MaxInt64 {
			r.fail(fmt.Errorf("%d does not fit a signed integer", v))
			return 0
		}
		return int64(v)
	case 0xd0:
		return int64(int8(r.number(1)))
	case 0xd1:
		return int64(int16(r.number(2)))
	case 0xd2:
		return int64(int32(r.number(4)))
	case 0xd3:
		return int64(r.number(8))
	}
	r.unexpected("an integer", c)
	return 0
}

func (r *reader) uint() uint64 {
	if r.err == nil && len(r.b) > 0 && r.b[0] == 0xcf {
		r.byte()
		return r.number(8)
	}
	v := r.int()
	if v < 0 {
		r.fail(fmt.Errorf("want an unsigned integer, found %d", v))
		return 0
	}
	return uint64(v)
}

// count reads an integer that counts things in a record.
func (r *reader) count() int {
	v := r.int()
	if v < 0 || v > math.MaxInt32*1024 {
		r.fail(fmt.Errorf("the count %d is out of range", v))
		return 0
	}
	return int(v)
}

func (r *reader) bool() bool {
	switch c := r.byte(); c {
	case 0xc3:
		return true
	case 0xc2:
	default:
		r.unexpected("a boolean", c)
	}
	return false
}

func (r *reader) text() string {
	c := r.byte()
	switch {
	case c&0xe0 == 0xa0:
		return string(r.take(int(c & 0x1f)))
	case c == 0xd9, c == 0xda, c == 0xdb:
		return string(r.take(int(r.number(1 << (c - 0xd9)))))
	}
	r.unexpected("text", c)
	return ""
}

// kind returns the first byte of the next value without reading it.
func (r *reader) kind() byte {
	if len(r.b) == 0 {
		return 0xc1 // never used: whoever reads the value fails
	}
	return r.b[0]
}

// word reads what [appendWord] wrote.
func (r *reader) word() string {
	if r.kind() >= 0x80 {
		return r.text()
	}
	n := int(r.byte())
	if n >= len(words) {
		r.fail(fmt.Errorf("word %d is not known", n))
		return ""
	}
	return words[n]
}

// name reads what [appendName] wrote.
func (r *reader) name() string {
	if r.kind() != 0xc4 {
		return r.text()
	}
	var id task.ID
	r.array(id[:])
	if r.err != nil {
		return ""
	}
	return id.String()
}

// since reads what [appendSince] wrote.
func (r *reader) since(base time.Time) time.Time {
	switch r.kind() {
	case 0xd7, 0xc7:
		return r.time()
	}
	return base.Add(time.Duration(r.int()))
}

// bytes returns a slice of the input.
func (r *reader) bytes() []byte {
	c := r.byte()
	switch c {
	case 0xc4, 0xc5, 0xc6:
		return r.take(int(r.number(1 << (c - 0xc4))))
	}
	r.unexpected("bytes", c)
	return nil
}

// array fills a fixed-size array.
func (r *reader) array(dst []byte) {
	v := r.bytes()
	if r.err == nil && len(v) != len(dst) {
		r.fail(fmt.Errorf("want %d bytes, found %d", len(dst), len(v)))
		return
	}
	copy(dst, v)
}

func (r *reader) time() time.Time {
	switch c := r.byte(); c {
	case 0xd7:
		if r.byte() != 0xff {
			r.fail(errors.New("want a timestamp, found another extension"))
			return time.Time{}
		}
		v := r.number(8)
		return time.Unix(int64(v&(1<<34-1)), int64(v>>34)).UTC()
	case 0xc7:
		if r.byte() != 12 || r.byte() != 0xff {
			r.fail(errors.New("want a timestamp, found another extension"))
			return time.Time{}
		}
		nsec := r.number(4)
		return time.Unix(int64(r.number(8)), int64(nsec)).UTC()
	default:
		r.unexpected("a timestamp", c)
		return time.Time{}
	}
}

func (r *reader) mapLen() int {
	switch c := r.byte(); {
	case c&0xf0 == 0x80:
		return int(c & 0x0f)
	case c == 0xde:
		return int(r.number(2))
	default:
		r.unexpected("a map", c)
		return 0
	}
}

// arrayLen reads an array header and refuses one with more elements than bytes are left.
func (r *reader) arrayLen() int {
	n := 0
	switch c := r.byte(); {
	case c&0xf0 == 0x90:
		n = int(c & 0x0f)
	case c == 0xdc:
		n = int(r.number(2))
	case c == 0xdd:
		n = int(r.number(4))
	default:
		r.unexpected("an array", c)
	}
	if n > len(r.b) {
		r.fail(errShort)
		return 0
	}
	return n
}

// skip passes over one value of any kind: a field of a newer build.
func (r *reader) skip() {
	for left := 1; left > 0 && r.err == nil; left-- {
		c := r.byte()
		switch {
		case c < 0x80, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3:
		case c&0xf0 == 0x80:
			left += 2 * int(c&0x0f)
		case c&0xf0 == 0x90:
			left += int(c & 0x0f)
		case c&0xe0 == 0xa0:
			r.take(int(c & 0x1f))
		default:
			left += r.skipSized(c)
		}
	}
}

// skipSized passes over a value whose kind byte is followed by a size or by a
// payload of fixed size, and returns how many values are nested in it.
func (r *reader) skipSized(c byte) int {
	switch c {
	case 0xc4, 0xc5, 0xc6:
		r.take(int(r.number(1 << (c - 0xc4))))
	case 0xc7, 0xc8, 0xc9:
		r.take(int(r.number(1<<(c-0xc7))) + 1)
	case 0xca:
		r.take(4)
	case 0xcb:
		r.take(8)
	case 0xcc, 0xcd, 0xce, 0xcf:
		r.take(1 << (c - 0xcc))
	case 0xd0, 0xd1, 0xd2, 0xd3:
		r.take(1 << (c - 0xd0))
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8:
		r.take(1<<(c-0xd4) + 1)
	case 0xd9, 0xda, 0xdb:
		r.take(int(r.number(1 << (c - 0xd9))))
	case 0xdc, 0xdd:
		return int(r.number(2 << (c - 0xdc)))
	case 0xde, 0xdf:
		return 2 * int(r.number(2<<(c-0xde)))
	default:
		r.unexpected("a value", c)
	}
	return 0
}

// eachField calls read with the number of every field of a map; read must consume
// the value and reports false for a number that it does not know.
func (r *reader) eachField(read func(num int) bool) {
	for n := r.mapLen(); n > 0 && r.err == nil; n-- {
		num := r.count()
		if r.err == nil && !read(num) {
			r.skip()
		}
	}
}
