package linkpb

import (
	"errors"
	"fmt"
	"time"

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

// Bounds of what a peer may leave half sent, where a payload limit does not say less.
const (
	maxPartial      = 1 << 30
	maxPartialCount = 4096
)

// assembler puts chunks together on the receiving side.
type assembler struct {
	// maxValue bounds one value and maxTotal all that are under way, in bytes; 0 for
	// [maxPartial]. A value over it is counted and not kept.
	maxValue, maxTotal int
	// waits refuses chunks until the peer has said Hello.
	waits bool

	// quota bounds what is under way together with other links, nil for alone; stop ends a
	// wait for it.
	quota *Quota
	stop  <-chan struct{}
	// at is when the last chunk came.
	at time.Time

	parts map[uint64]partial
	// size is the room that parts take or have announced, in bytes.
	size int
}

// partial is a value of which some chunks are there.
type partial struct {
	data []byte
	// room is its share of assembler.size.
	room int
	// dropped: the value is too large, its bytes are not kept.
	dropped bool
	// length is how much of it has arrived.
	length int
}

// newAssembler is the assembler for the dispatcher's end: a worker's values are results.
func newAssembler(maxPayload int) assembler {
	return assembler{maxValue: maxPayload, maxTotal: 2*maxPayload + 16<<20, waits: true}
}

// errTooLarge is the error of a value that was not kept.
type errTooLarge struct {
	size  uint64
	limit int
}

func (e errTooLarge) Error() string {
	return fmt.Sprintf("a value of %d bytes: the limit is %d (--max-payload)", e.size, e.limit)
}

// limits are maxValue and maxTotal with their defaults.
func (a *assembler) limits() (value, total int) {
	value, total = a.maxValue, a.maxTotal
	if value == 0 {
		value = maxPartial
	}
	if total == 0 {
		total = maxPartial
	}
	return value, total
}

func (a *assembler) add(c *treadlev1.Chunk) error {
	if c.GetValue() == 0 || len(c.GetData()) == 0 || len(c.GetData()) > chunkSize {
		return fmt.Errorf("chunk of value %d has %d bytes: want 1 to %d", c.GetValue(), len(c.GetData()), chunkSize)
	}
	if a.waits {
		return errors.New("chunk: the first frame must be Hello")
	}
	maxValue, maxTotal := a.limits()
	p, begun := a.parts[c.GetValue()]
	room := p.room
	if !begun {
		room = int(min(c.GetSize(), maxPartial+1))
	}
	p.length += len(c.GetData())
	room = max(room, p.length)
	if p.dropped = p.dropped || a.maxValue > 0 && room > maxValue; p.dropped {
		room, p.data = 0, nil
	}
	if size := a.size + room - p.room; size > maxTotal || !begun && len(a.parts) >= maxPartialCount {
		return fmt.Errorf("%d values with %d bytes in chunks that no frame named", len(a.parts), size)
	}
	if err := a.quota.takeParts(int64(room-p.room), a.stop); err != nil {
		return err
	}
	a.size += room - p.room
	a.at = time.Now()
	if !begun && !p.dropped {
		// A value that announces its length gets its memory at once, and no more than it needs.
		p.data = make([]byte, 0, room)
	}
	if !p.dropped {
		p.data = append(p.data, c.GetData()...)
	}
	p.room = room
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
	if p.dropped {
		delete(a.parts, v.GetChunked())
		return nil, errTooLarge{v.GetSize(), a.maxValue}
	}
	if len(p.data) == 0 || uint64(len(p.data)) != v.GetSize() {
		return nil, fmt.Errorf("value %d has %d bytes in chunks, the frame says %d", v.GetChunked(), len(p.data), v.GetSize())
	}
	delete(a.parts, v.GetChunked())
	a.size -= p.room
	return p.data, a.quota.takeParts(-int64(p.room), nil)
}

// idle is the error of a peer that has sent values half and does not go on. Beats and reports
// pass values, so any frame is an occasion to look.
func (a *assembler) idle() error {
	if a.quota == nil || len(a.parts) == 0 || time.Since(a.at) < a.quota.budget.partIdle {
		return nil
	}
	return errEnded{fmt.Sprintf("%d values with %d bytes are sent half, and nothing came of them for %s", len(a.parts), a.size, a.quota.budget.partIdle)}
}

// drop gives everything back when the link ends.
func (a *assembler) drop() {
	_ = a.quota.takeParts(-int64(a.size), nil) // giving back does not fail
	a.parts, a.size = nil, 0
}
