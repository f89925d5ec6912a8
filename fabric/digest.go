package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// digest hashes what a request asks for, so that the same request id with other
// content is noticed. Every part is preceded by its length.
type digest struct{ h hash.Hash }

func newDigest(what string) digest { return digest{sha256.New()}.text(what) }

func (d digest) bytes(b []byte) digest {
	d.number(uint64(len(b)))
	d.h.Write(b)
	return d
}

func (d digest) text(s string) digest { return d.bytes([]byte(s)) }

func (d digest) number(n uint64) digest {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	d.h.Write(b[:])
	return d
}

func (d digest) sum() (sum [32]byte) {
	d.h.Sum(sum[:0])
	return sum
}
