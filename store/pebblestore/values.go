package pebblestore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// partSize is how much of a large value one key holds. Pebble makes several copies of
// a value on its way into a table and again whenever it moves to another: those of a
// part are small. Further parts follow the first under its key and their number.
const partSize = 1 << 20

// furtherParts counts the parts of a value of that size after the first.
func furtherParts(size int) int { return max(size-1, 0) / partSize }

func appendPartKey(b, key []byte, part int) []byte {
	return binary.BigEndian.AppendUint32(append(b, key...), uint32(part))
}

// partOfKey splits the key of a further part; base is the length of the value's key.
func partOfKey(key []byte, base int) (part int, ok bool) {
	if len(key) != base+4 {
		return 0, false
	}
	return int(binary.BigEndian.Uint32(key[base:])), true
}

// partLen is the length of one part of a value of that size.
func partLen(size, part int) int { return min(partSize, max(size-part*partSize, 0)) }

// setValue stores a value of any size.
func (x *txn) setValue(key, value []byte) {
	x.set(key, value[:partLen(len(value), 0)])
	var buf [64]byte
	for i := range furtherParts(len(value)) {
		rest := value[(i+1)*partSize:]
		x.set(appendPartKey(buf[:0], key, i+1), rest[:partLen(len(rest), 0)])
	}
}

// delValue removes a value that has further parts.
func (x *txn) delValue(key []byte, further int) {
	x.del(key)
	var buf [64]byte
	for i := range further {
		x.del(appendPartKey(buf[:0], key, i+1))
	}
}

// readValue returns a copy of a value of that size, nil when it is not there, or not any more.
func (s *Store) readValue(key []byte, size int) ([]byte, error) {
	if size <= partSize {
		return s.read(key)
	}
	value := make([]byte, 0, size)
	for i := range furtherParts(size) + 1 {
		k := key
		if i > 0 {
			k = appendPartKey(nil, key, i)
		}
		v, closer, err := s.db.Get(k)
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read key %q: %w", k, err)
		}
		value = append(value, v...)
		if err := closer.Close(); err != nil {
			return nil, fmt.Errorf("read key %q: %w", k, err)
		}
		if len(value) == size {
			return value, nil // in as many parts as it takes: builds before parts wrote one
		}
	}
	return nil, fmt.Errorf("the value under key %q has %d bytes, want %d", key, len(value), size)
}

// sizeOf returns the size of a value, 0 when it is not there.
func (s *Store) sizeOf(key []byte) (size int, err error) {
	upper := append(append([]byte(nil), key...), 0xff, 0xff, 0xff, 0xff, 0xff)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: key, UpperBound: upper})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.Last() {
		return 0, it.Error()
	}
	last, err := it.ValueAndErr()
	if err != nil {
		return 0, err
	}
	part, _ := partOfKey(it.Key(), len(key))
	return part*partSize + len(last), nil
}
