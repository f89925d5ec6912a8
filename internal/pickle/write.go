package pickle

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/internal/jsonscan"
)

// MaxIntDigits bounds the integers that [JSON] converts, as conversion
// to binary takes more than linear time. Python itself refuses to print or to
// read integers of more than 4300 digits unless told otherwise.
const MaxIntDigits = 100_000

// Attr is one attribute of a pickled exception, or one entry of a pickled dict.
// Every value is text.
type Attr struct{ Name, Value string }

// Exception returns the pickle of an instance of a class of Python's builtins,
// made from its text, with attributes set on it. Equal arguments give equal bytes.
func Exception(class, text string, attrs []Attr) []byte {
	w := newWriter(64 + len(text))
	w.text("builtins")
	w.text(class)
	w.op(0x93) // STACK_GLOBAL
	w.text(text)
	w.op(0x85) // TUPLE1
	w.op('R')  // REDUCE
	w.dict(attrs)
	w.op('b') // BUILD: the dict becomes the attributes
	return w.end()
}

// Dict returns the pickle of a dict of text, in the order of its entries.
func Dict(entries []Attr) []byte {
	w := newWriter(64)
	w.dict(entries)
	return w.end()
}

// Text returns the pickle of a str. Bytes that are not UTF-8 become U+FFFD.
func Text(s string) []byte {
	w := newWriter(len(s))
	w.text(s)
	return w.end()
}

// JSON returns the pickle of what Python's json.loads gives for the text: dict,
// list, str, int of any size, float, bool or None. An error means that the text is
// not JSON or holds an integer of more than [MaxIntDigits] digits.
func JSON(text []byte) ([]byte, error) {
	if err := jsonscan.CheckUTF8(text); err != nil {
		return nil, fmt.Errorf("JSON to pickle: %w", err)
	}
	w := newWriter(len(text))
	s := jsonscan.New(text)
	if err := w.json(s); err != nil {
		return nil, fmt.Errorf("JSON to pickle: %w", err)
	}
	if err := s.End(); err != nil {
		return nil, fmt.Errorf("JSON to pickle: %w", err)
	}
	return w.end(), nil
}

// writer appends opcodes of protocol 4, which every Python 3.4 and later reads. It
// writes no frames and no memo: both are optional.
type writer struct {
	buf []byte
	// scratch decodes strings.
	scratch []byte
}

// textEnd ends the pickle of a str that [textHead] began.
const textEnd = "."

// textHead begins the pickle of a str of n bytes of ASCII.
func textHead(n int) []byte {
	w := newWriter(16)
	w.textHeader(n)
	return w.buf
}

func newWriter(size int) *writer {
	return &writer{buf: append(make([]byte, 0, size+16), 0x80, 4)}
}

func (w *writer) op(code byte) { w.buf = append(w.buf, code) }

func (w *writer) end() []byte { return append(w.buf, '.') }

func (w *writer) dict(entries []Attr) {
	w.op('}')
	w.op('(')
	for _, e := range entries {
		w.text(e.Name)
		w.text(e.Value)
	}
	w.op('u') // SETITEMS
}

func (w *writer) text(s string) {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	w.textHeader(len(s))
	w.buf = append(w.buf, s...)
}

// textHeader starts a str of n bytes of UTF-8. Lone surrogates may stand there in
// their three bytes: that is how Python itself writes them.
func (w *writer) textHeader(size int) {
	switch n := uint64(size); {
	case n <= math.MaxUint8:
		w.buf = append(w.buf, 0x8c, byte(n)) // SHORT_BINUNICODE
	case n <= math.MaxUint32:
		w.op('X') // BINUNICODE
		w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(n))
	default:
		w.op(0x8d) // BINUNICODE8
		w.buf = binary.LittleEndian.AppendUint64(w.buf, n)
	}
}

func (w *writer) json(s *jsonscan.Scanner) error {
	kind, err := s.Kind()
	if err != nil {
		return err
	}
	switch kind {
	case jsonscan.Object:
		w.op('}')
		w.op('(')
		err = s.Object(func(key []byte) error {
			w.jsonString(key)
			return w.json(s)
		})
		w.op('u') // SETITEMS
	case jsonscan.Array:
		w.op(']')
		w.op('(')
		err = s.Array(func() error { return w.json(s) })
		w.op('e') // APPENDS
	case jsonscan.String:
		var raw []byte
		if raw, err = s.RawString(); err == nil {
			w.jsonString(raw)
		}
	case jsonscan.Number:
		var text []byte
		if text, err = s.Number(); err == nil {
			err = w.number(text)
		}
	case jsonscan.Bool:
		var b bool
		b, err = s.Bool()
		if b {
			w.op(0x88)
		} else {
			w.op(0x89)
		}
	default:
		err = s.Null()
		w.op('N')
	}
	return err
}

func (w *writer) jsonString(raw []byte) {
	w.scratch, _ = jsonscan.Unquote(w.scratch[:0], raw)
	w.textHeader(len(w.scratch))
	w.buf = append(w.buf, w.scratch...)
}

// number writes an int where the text has neither point nor exponent, else a float,
// as Python's json does; a float beyond the range becomes an infinity there too.
func (w *writer) number(text []byte) error {
	for _, c := range text {
		if c == '.' || c == 'e' || c == 'E' {
			f, _ := strconv.ParseFloat(string(text), 64)
			w.op('G')
			w.buf = binary.BigEndian.AppendUint64(w.buf, math.Float64bits(f))
			return nil
		}
	}
	if len(text) <= 18 {
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			return fmt.Errorf("integer %s: %w", text, err)
		}
		if n >= math.MinInt32 && n <= math.MaxInt32 {
			w.op('J')
			w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(int32(n)))
			return nil
		}
	}
	if len(text) > MaxIntDigits {
		return fmt.Errorf("an integer of %d digits; at most %d can be converted", len(text), MaxIntDigits)
	}
	n, ok := new(big.Int).SetString(string(text), 10)
	if !ok {
		return fmt.Errorf("integer %.24s is malformed", text)
	}
	w.bigInt(n)
	return nil
}

// bigInt writes an int in two's complement, little endian, with room for the sign.
func (w *writer) bigInt(n *big.Int) {
	size := n.BitLen()/8 + 1
	v := n
	if n.Sign() < 0 {
		v = new(big.Int).Lsh(big.NewInt(1), uint(size)*8)
		v.Add(v, n)
	}
	b := v.FillBytes(make([]byte, size))
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	if size <= math.MaxUint8 {
		w.buf = append(w.buf, 0x8a, byte(size)) // LONG1
	} else {
		w.op(0x8b) // LONG4
		w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(size))
	}
	w.buf = append(w.buf, b...)
}
