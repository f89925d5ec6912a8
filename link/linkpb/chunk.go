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
		chunk := &treadlev1.Chunk{Value: c.last, Data: rest[:n]}
		if len(rest) == len(b) {
			chunk.Size = uint64(len(b))
		}
		c.pending = append(c.pending, chunk)
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
	parts map[uint64]partial
	// size is the room that parts take or have announced, in bytes.
	size int
}

// partial is a value of which some chunks are there.
type partial struct {
	data []byte
	// room is its share of assembler.size.
	room int
}

func (a *assembler) add(c *treadlev1.Chunk) error {
	if c.GetValue() == 0 || len(c.GetData()) == 0 || len(c.GetData()) > chunkSize {
		return fmt.Errorf("chunk of value %d has %d bytes: want 1 to %d", c.GetValue(), len(c.GetData()), chunkSize)
	}
	p, begun := a.parts[c.GetValue()]
	room := p.room
	if !begun {
		room = int(min(c.GetSize(), maxPartial+1))
	}
	room = max(room, len(p.data)+len(c.GetData()))
	a.size += room - p.room
	if a.size > maxPartial || !begun && len(a.parts) >= maxPartialCount {
		return fmt.Errorf("%d values with %d bytes in chunks that no frame named", len(a.parts), a.size)
	}
	if !begun {
		// A value that announces its length gets its memory at once, and no more than it needs.
		p.data = make([]byte, 0, room)
	}
	p.data, p.room = append(p.data, c.GetData()...), room
	if a.parts == nil {
		a.parts = map[uint64]partial{}
	}
	a.parts[c.GetValue()] = p
	return nil
}

// value resolves a Value; nil stands for an empty one.
func (a *assembler) value(v *treadlev1.Value) ([]byte, error) {
	if v.GetChunked() == 0 {
		return v.GetInline(), nil
	}
	p := a.parts[v.GetChunked()]
	if len(p.data) == 0 || uint64(len(p.data)) != v.GetSize() {
		return nil, fmt.Errorf("value %d has %d bytes in chunks, the frame says %d", v.GetChunked(), len(p.data), v.GetSize())
	}
	delete(a.parts, v.GetChunked())
	a.size -= p.room
	return p.data, nil
}
