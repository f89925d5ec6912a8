// Package pickle checks Python pickles without executing them and writes the few
// pickles that a Go process has to write itself.
//
// Nothing here ever loads a pickle: a pickle is a program. [Check] walks its
// opcodes, follows the height of the stack and the memo, and so tells a whole
// pickle from text, from a truncated one and from one that would make a reader
// allocate without measure; what the pickle means stays unknown.
package pickle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
)

// maxMarks bounds how many marks are open at once. Marks nest as deep as tuples of
// four and more elements do, which Python's own limits keep far below this.
const maxMarks = 1 << 20

// Check returns nil when data is one whole pickle of protocol 2 to 5: the first
// byte is 0x80, the opcodes walk to exactly one STOP, which is the last byte, no
// length leaves the data, frames hold whole opcodes, the stack never runs empty and
// the memo stays smaller than the number of opcodes. Time and memory are bounded by
// the size of data, about an eighth of it in the worst case.
func Check(data []byte) error {
	if len(data) == 0 {
		return errors.New("empty: not a pickle")
	}
	if data[0] != 0x80 {
		return fmt.Errorf("not a pickle of protocol 2 to 5: the first byte is 0x%02x, want 0x80", data[0])
	}
	if len(data) < 2 {
		return errors.New("truncated pickle: it ends after its first byte")
	}
	if data[1] < 2 || data[1] > 5 {
		return fmt.Errorf("pickle protocol %d: want 2 to 5", data[1])
	}
	w := walker{data: data, frameEnd: -1}
	for !w.stopped {
		if err := w.step(); err != nil {
			return err
		}
	}
	if w.pos != len(data) {
		return fmt.Errorf("%d bytes after the pickle's end", len(data)-w.pos)
	}
	return nil
}

// walker is the state of one walk.
type walker struct {
	data []byte
	pos  int
	// ops counts the opcodes seen: no honest memo index reaches it.
	ops int
	// height is the number of objects above the innermost mark; marks holds the
	// heights below the open ones.
	height int
	marks  []int32
	// memo has one bit for each index that was written; next is MEMOIZE's index.
	memo []uint64
	next int
	// frameEnd is where the frame in force ends, -1 outside frames.
	frameEnd int
	stopped  bool
}

func (w *walker) fail(at int, format string, args ...any) error {
	return fmt.Errorf("not a whole pickle: %s at byte %d", fmt.Sprintf(format, args...), at)
}

func (w *walker) step() error {
	at := w.pos
	if at >= len(w.data) {
		return errors.New("truncated pickle: it ends without a STOP")
	}
	if at == w.frameEnd {
		w.frameEnd = -1
	}
	code := w.data[at]
	op := opcodes[code]
	if op.does == effectUnknown {
		return w.fail(at, "unknown opcode 0x%02x", code)
	}
	w.pos++
	w.ops++
	arg, text, err := w.operand(op.arg)
	if err != nil {
		return err
	}
	if w.frameEnd >= 0 && w.pos > w.frameEnd {
		return w.fail(at, "an opcode reaches over the end of its frame")
	}
	if op.does == effectFrame {
		return w.frame(at, arg)
	}
	return w.apply(at, code, op.does, arg, text)
}

// operand reads what follows an opcode: a number, or one line of text.
func (w *walker) operand(kind operand) (uint64, []byte, error) {
	switch kind {
	case operandNone:
		return 0, nil, nil
	case operand1:
		n, err := w.number(1)
		return n, nil, err
	case operand2:
		n, err := w.number(2)
		return n, nil, err
	case operand4:
		n, err := w.number(4)
		return n, nil, err
	case operand8:
		n, err := w.number(8)
		return n, nil, err
	case operandLine:
		text, err := w.line()
		return 0, text, err
	case operandTwoLines:
		if _, err := w.line(); err != nil {
			return 0, nil, err
		}
		text, err := w.line()
		return 0, text, err
	case operandBytes1:
		return 0, nil, w.counted(1)
	case operandBytes4:
		return 0, nil, w.counted(4)
	default:
		return 0, nil, w.counted(8)
	}
}

func (w *walker) number(size int) (uint64, error) {
	if len(w.data)-w.pos < size {
		return 0, fmt.Errorf("truncated pickle: it ends inside an opcode at byte %d", w.pos)
	}
	var b [8]byte
	copy(b[:], w.data[w.pos:w.pos+size])
	w.pos += size
	return binary.LittleEndian.Uint64(b[:]), nil
}

func (w *walker) line() ([]byte, error) {
	i := bytes.IndexByte(w.data[w.pos:], '\n')
	if i < 0 {
		return nil, fmt.Errorf("truncated pickle: a line that starts at byte %d has no end", w.pos)
	}
	text := w.data[w.pos : w.pos+i]
	w.pos += i + 1
	return text, nil
}

func (w *walker) counted(size int) error {
	at := w.pos
	n, err := w.number(size)
	if err != nil {
		return err
	}
	if left := len(w.data) - w.pos; n > uint64(left) {
		return fmt.Errorf("truncated pickle: a value of %d bytes at byte %d where %d are left", n, at, left)
	}
	w.pos += int(n)
	return nil
}

// frame starts a frame of size bytes after this opcode.
func (w *walker) frame(at int, size uint64) error {
	if w.frameEnd >= 0 && w.pos != w.frameEnd {
		return w.fail(at, "a frame inside a frame")
	}
	if left := len(w.data) - w.pos; size > uint64(left) {
		return fmt.Errorf("truncated pickle: a frame of %d bytes at byte %d where %d are left", size, at, left)
	}
	w.frameEnd = w.pos + int(size)
	return nil
}

// apply follows what the opcode does to stack and memo.
func (w *walker) apply(at int, code byte, does effect, arg uint64, text []byte) error {
	switch does {
	case effectPush:
		w.height++
	case effectReplace1:
		return w.replace(at, 1, 1)
	case effectReplace2:
		return w.replace(at, 2, 1)
	case effectReplace3:
		return w.replace(at, 3, 1)
	case effectDup:
		return w.replace(at, 1, 2)
	case effectPop:
		if w.height == 0 && len(w.marks) > 0 {
			return w.popMark(at, 0)
		}
		return w.replace(at, 1, 0)
	case effectMark:
		if len(w.marks) == maxMarks {
			return w.fail(at, "more than %d open marks", maxMarks)
		}
		if w.height > math.MaxInt32 {
			return w.fail(at, "a stack of %d objects", w.height)
		}
		w.marks = append(w.marks, int32(w.height))
		w.height = 0
	case effectPopMark:
		return w.popMark(at, 0)
	case effectCollect:
		if code == 'd' && w.height%2 != 0 {
			return w.fail(at, "a dict of %d keys and values", w.height)
		}
		return w.popMark(at, 1)
	case effectClass:
		if w.height == 0 {
			return w.fail(at, "an object without its class")
		}
		return w.popMark(at, 1)
	case effectExtend, effectExtend2:
		if does == effectExtend2 && w.height%2 != 0 {
			return w.fail(at, "a dict of %d keys and values", w.height)
		}
		if err := w.popMark(at, 0); err != nil {
			return err
		}
		return w.replace(at, 1, 1)
	case effectPut:
		return w.put(at, code, arg, text)
	case effectGet:
		return w.get(at, code, arg, text)
	case effectStop:
		w.stopped = true
		return w.stop(at)
	case effectProto:
		if arg > 5 {
			return w.fail(at, "protocol %d", arg)
		}
	}
	return nil
}

// replace takes objects off the stack and pushes others.
func (w *walker) replace(at, pop, push int) error {
	if w.height < pop {
		return w.fail(at, "an opcode needs %d objects where the stack has %d", pop, w.height)
	}
	w.height += push - pop
	return nil
}

// popMark drops everything down to the innermost mark and pushes objects.
func (w *walker) popMark(at, push int) error {
	if len(w.marks) == 0 {
		return w.fail(at, "an opcode needs a mark and there is none")
	}
	last := len(w.marks) - 1
	w.height = int(w.marks[last]) + push
	w.marks = w.marks[:last]
	return nil
}

func (w *walker) put(at int, code byte, arg uint64, text []byte) error {
	if err := w.replace(at, 1, 1); err != nil {
		return err
	}
	if code == 0x94 {
		arg = uint64(w.next)
	} else if code == 'p' {
		var err error
		if arg, err = strconv.ParseUint(string(clip(text)), 10, 64); err != nil {
			return w.fail(at, "memo index %q", clip(text))
		}
	}
	if arg >= uint64(w.ops) {
		return w.fail(at, "memo index %d in a pickle of so far %d opcodes", arg, w.ops)
	}
	word := int(arg / 64)
	for len(w.memo) <= word {
		w.memo = append(w.memo, 0)
	}
	if bit := uint64(1) << (arg % 64); w.memo[word]&bit == 0 {
		w.memo[word] |= bit
		// MEMOIZE writes to the index that equals the number of entries.
		w.next++
	}
	return nil
}

func (w *walker) get(at int, code byte, arg uint64, text []byte) error {
	if code == 'g' {
		var err error
		if arg, err = strconv.ParseUint(string(clip(text)), 10, 64); err != nil {
			return w.fail(at, "memo index %q", clip(text))
		}
	}
	word := arg / 64
	if word >= uint64(len(w.memo)) || w.memo[word]&(1<<(arg%64)) == 0 {
		return w.fail(at, "memo index %d was never written", arg)
	}
	w.height++
	return nil
}

func (w *walker) stop(at int) error {
	if w.height == 0 {
		return w.fail(at, "STOP on an empty stack")
	}
	if len(w.marks) > 0 {
		return w.fail(at, "STOP inside an open mark")
	}
	if w.frameEnd >= 0 && w.pos != w.frameEnd {
		return w.fail(at, "STOP before the end of its frame")
	}
	return nil
}

func clip(text []byte) []byte { return text[:min(len(text), 24)] }
