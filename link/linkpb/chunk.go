package linkpb

import (
	"fmt"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// chunker cuts large values into chunks on the sending side.
type chunker struct {
	last    uint64
	pending []*treadlev1.Chunk
}

// value returns b inside the frame when it is small, otherwise the number of the
// chunks that it queued.
func (c *chunker) value(b []byte) *treadlev1.Value {
	if len(b) <= chunkSize {
		return &treadlev1.Value{Inline: b, Size: uint64(len(b))}
	}
	c.last++
	for rest := b; len(rest) > 0; {
		n := min(len(rest), chunkSize)
		c.pending = append(c.pending, &treadlev1.Chunk{Value: c.last, Data: rest[:n]})
		rest = rest[n:]
	}
	return &treadlev1.Value{Chunked: c.last, Size: uint64(len(b))}
}

func (c *chunker) take() []*treadlev1.Chunk {
	out := c.pending
	c.pending = nil
	return out
}

// Bounds of what a peer may leave half sent.
const (
	maxPartial      = 1 << 30
	maxPartialCount = 4096
)

// assembler puts chunks together on the receiving side.
type assembler struct {
	parts map[uint64][]byte
	size  int
}

func (a *assembler) add(c *treadlev1.Chunk) error {
	if c.GetValue() == 0 || len(c.GetData()) == 0 || len(c.GetData()) > chunkSize {
		return fmt.Errorf("chunk of value %d has %d bytes: want 1 to %d", c.GetValue(), len(c.GetData()), chunkSize)
	}
	if a.parts == nil {
		a.parts = map[uint64][]byte{}
	}
	a.size += len(c.GetData())
	if a.size > maxPartial || len(a.parts) >= maxPartialCount {
		return fmt.Errorf("%d values with %d bytes in chunks that no frame named", len(a.parts), a.size)
	}
	a.parts[c.GetValue()] = append(a.parts[c.GetValue()], c.GetData()...)
	return nil
}

// value resolves a Value; nil stands for an empty one.
func (a *assembler) value(v *treadlev1.Value) ([]byte, error) {
	if v.GetChunked() == 0 {
		return v.GetInline(), nil
	}
	b, ok := a.parts[v.GetChunked()]
	if !ok || uint64(len(b)) != v.GetSize() {
		return nil, fmt.Errorf("value %d has %d bytes in chunks, the frame says %d", v.GetChunked(), len(b), v.GetSize())
	}
	delete(a.parts, v.GetChunked())
	a.size -= len(b)
	return b, nil
}
