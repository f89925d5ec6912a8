// Package jsonscan reads JSON text (RFC 8259) in place: it finds where a value
// ends, decodes strings and walks objects and arrays without building anything.
// Values that are only carried, such as the arguments of a call, keep every byte
// that the sender wrote, so integers of any size and the exact text of a number
// survive.
package jsonscan

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may be nested. Python's own reader stops
// near 1000.
const MaxDepth = 512

// SyntaxError says where a text stops being JSON.
type SyntaxError struct {
	// Offset counts bytes from the start of the text.
	Offset int
	Msg    string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s at byte %d", e.Msg, e.Offset) }

// Kind is the kind of a JSON value.
type Kind int

// Kinds of JSON values.
const (
	Invalid Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

func (k Kind) String() string {
	return [...]string{"nothing", "null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// Scanner walks one JSON text. It is used by one goroutine.
type Scanner struct {
	data  []byte
	pos   int
	depth int
}

// New returns a scanner at the start of data, which must not change while it is used.
func New(data []byte) *Scanner { return &Scanner{data: data} }

// Check reports whether data is exactly one JSON value in valid UTF-8, nested no
// deeper than [MaxDepth], and of which kind it is.
func Check(data []byte) (Kind, error) {
	if i := invalidUTF8(data); i >= 0 {
		return Invalid, &SyntaxError{i, "invalid UTF-8"}
	}
	s := New(data)
	kind, err := s.Kind()
	if err != nil {
		return Invalid, err
	}
	if _, err := s.Skip(); err != nil {
		return Invalid, err
	}
	return kind, s.End()
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return -1
}

// CheckUTF8 returns an error at the first byte of data that is not UTF-8.
func CheckUTF8(data []byte) error {
	if i := invalidUTF8(data); i >= 0 {
		return &SyntaxError{i, "invalid UTF-8"}
	}
	return nil
}

func (s *Scanner) fail(format string, args ...any) error {
	return &SyntaxError{s.pos, fmt.Sprintf(format, args...)}
}

func (s *Scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// End returns an error unless only white space is left.
func (s *Scanner) End() error {
	s.space()
	if s.pos < len(s.data) {
		return s.fail("unexpected data after the JSON value")
	}
	return nil
}

// Kind returns the kind of the next value without reading it.
func (s *Scanner) Kind() (Kind, error) {
	s.space()
	if s.pos >= len(s.data) {
		return Invalid, s.fail("unexpected end of the JSON text")
	}
	switch c := s.data[s.pos]; {
	case c == '{':
		return Object, nil
	case c == '[':
		return Array, nil
	case c == '"':
		return String, nil
	case c == '-' || '0' <= c && c <= '9':
		return Number, nil
	case c == 't' || c == 'f':
		return Bool, nil
	case c == 'n':
		return Null, nil
	default:
		return Invalid, s.fail("unexpected %q: want a JSON value", rune(c))
	}
}

// Skip reads the next value whatever it is and returns its text.
func (s *Scanner) Skip() ([]byte, error) {
	kind, err := s.Kind()
	if err != nil {
		return nil, err
	}
	start := s.pos
	switch kind {
	case Object:
		err = s.Object(func([]byte) error { _, err := s.Skip(); return err })
	case Array:
		err = s.Array(func() error { _, err := s.Skip(); return err })
	case String:
		_, err = s.RawString()
	case Number:
		_, err = s.Number()
	case Bool:
		_, err = s.Bool()
	default:
		err = s.Null()
	}
	if err != nil {
		return nil, err
	}
	return s.data[start:s.pos], nil
}

// Null reads null.
func (s *Scanner) Null() error { return s.literal("null") }

// Bool reads true or false.
func (s *Scanner) Bool() (bool, error) {
	s.space()
	if s.pos < len(s.data) && s.data[s.pos] == 't' {
		return true, s.literal("true")
	}
	return false, s.literal("false")
}

func (s *Scanner) literal(word string) error {
	s.space()
	if len(s.data)-s.pos < len(word) || string(s.data[s.pos:s.pos+len(word)]) != word {
		return s.fail("want %s", word)
	}
	s.pos += len(word)
	return nil
}

// Number reads a number and returns its text.
func (s *Scanner) Number() ([]byte, error) {
	s.space()
	start := s.pos
	if s.peek() == '-' {
		s.pos++
	}
	switch c := s.peek(); {
	case c == '0':
		s.pos++
	case '1' <= c && c <= '9':
		s.digits()
	default:
		return nil, s.fail("want a digit")
	}
	if s.peek() == '.' {
		s.pos++
		if s.digits() == 0 {
			return nil, s.fail("want a digit after the decimal point")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if s.digits() == 0 {
			return nil, s.fail("want a digit in the exponent")
		}
	}
	return s.data[start:s.pos], nil
}

// peek returns the next byte, 0 at the end.
func (s *Scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

func (s *Scanner) digits() int {
	n := 0
	for s.pos < len(s.data) && '0' <= s.data[s.pos] && s.data[s.pos] <= '9' {
		s.pos++
		n++
	}
	return n
}

// RawString reads a string and returns what stands between the quotes, escapes
// checked but not decoded; see [Unquote].
func (s *Scanner) RawString() ([]byte, error) {
	s.space()
	if s.peek() != '"' {
		return nil, s.fail("want a string")
	}
	s.pos++
	start := s.pos
	for {
		i := s.pos
		for i < len(s.data) && plain[s.data[i]] {
			i++
		}
		s.pos = i
		if i == len(s.data) {
			return nil, s.fail("unexpected end of the JSON text in a string")
		}
		switch s.data[i] {
		case '"':
			s.pos++
			return s.data[start:i], nil
		case '\\':
			if err := s.escape(); err != nil {
				return nil, err
			}
		default:
			return nil, s.fail("control character in a string")
		}
	}
}

// plain tells the bytes that stand for themselves in a string.
var plain = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return t
}()

func (s *Scanner) escape() error {
	s.pos++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos++
		return nil
	case 'u':
		s.pos++
		for range 4 {
			if hexDigit(s.peek()) < 0 {
				return s.fail("want four hexadecimal digits after \\u")
			}
			s.pos++
		}
		return nil
	default:
		return s.fail("unknown escape in a string")
	}
}

// Array reads an array, calling element before each element; element reads it.
func (s *Scanner) Array(element func() error) error {
	if err := s.open('['); err != nil {
		return err
	}
	if s.space(); s.peek() == ']' {
		return s.close()
	}
	for {
		if err := element(); err != nil {
			return err
		}
		switch s.space(); s.peek() {
		case ',':
			s.pos++
		case ']':
			return s.close()
		default:
			return s.fail("want , or ] in an array")
		}
	}
}

// Object reads an object, calling member with the raw text of each key (see
// [Unquote]); member reads the value.
func (s *Scanner) Object(member func(key []byte) error) error {
	if err := s.open('{'); err != nil {
		return err
	}
	if s.space(); s.peek() == '}' {
		return s.close()
	}
	for {
		key, err := s.RawString()
		if err != nil {
			return err
		}
		if s.space(); s.peek() != ':' {
			return s.fail("want : after a key")
		}
		s.pos++
		if err := member(key); err != nil {
			return err
		}
		switch s.space(); s.peek() {
		case ',':
			s.pos++
		case '}':
			return s.close()
		default:
			return s.fail("want , or } in an object")
		}
	}
}

func (s *Scanner) open(c byte) error {
	s.space()
	if s.peek() != c {
		return s.fail("want %c", c)
	}
	if s.depth++; s.depth > MaxDepth {
		return s.fail("nested deeper than %d", MaxDepth)
	}
	s.pos++
	return nil
}

func (s *Scanner) close() error {
	s.pos++
	s.depth--
	return nil
}

func hexDigit(c byte) rune {
	switch {
	case '0' <= c && c <= '9':
		return rune(c - '0')
	case 'a' <= c && c <= 'f':
		return rune(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return rune(c-'A') + 10
	default:
		return -1
	}
}

// Unquote appends the decoded text of what [Scanner.RawString] returned. A lone
// surrogate (an escape such as \ud800 without its partner) has no UTF-8 form: it is
// written in the three bytes that Python calls "surrogatepass", and lone is true.
func Unquote(dst, raw []byte) (text []byte, lone bool) {
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			n := bytes.IndexByte(raw[i:], '\\')
			if n < 0 {
				return append(dst, raw[i:]...), lone
			}
			dst = append(dst, raw[i:i+n]...)
			i += n
			continue
		}
		if raw[i+1] != 'u' {
			dst = append(dst, short(raw[i+1]))
			i += 2
			continue
		}
		r := unit(raw[i+2:])
		i += 6
		if isHigh(r) && i+6 <= len(raw) && raw[i] == '\\' && raw[i+1] == 'u' {
			if low := unit(raw[i+2:]); isLow(low) {
				r = (r-0xD800)<<10 | (low - 0xDC00) + 0x10000
				i += 6
			}
		}
		if isHigh(r) || isLow(r) {
			lone = true
			dst = append(dst, 0xE0|byte(r>>12), 0x80|byte(r>>6)&0xBF, 0x80|byte(r)&0xBF)
			continue
		}
		dst = utf8.AppendRune(dst, r)
	}
	return dst, lone
}

func isHigh(r rune) bool { return 0xD800 <= r && r < 0xDC00 }
func isLow(r rune) bool  { return 0xDC00 <= r && r < 0xE000 }

func unit(hex []byte) rune {
	var r rune
	for _, c := range hex[:4] {
		r = r<<4 | hexDigit(c)
	}
	return r
}

func short(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	default:
		return c
	}
}

// AppendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = appendEscaped(dst, c)
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			dst = append(dst, s[start:i]...)
			dst = append(dst, "\uFFFD"...)
			i++
			start = i
			continue
		}
		i += n
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func appendEscaped(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	default:
		dst = append(dst, '\\', 'u', '0', '0')
		if c < 0x10 {
			dst = append(dst, '0')
		}
		return strconv.AppendInt(dst, int64(c), 16)
	}
}
