package pickle

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"unsafe"
)

// Lines of MIME base64 as Python writes them: 57 bytes in, 76 characters and a
// newline out.
const (
	lineBytes = 57
	lineChars = 76
)

// EncodedLen returns the length of the MIME base64 of n bytes.
func EncodedLen(n int) int {
	return base64.StdEncoding.EncodedLen(n) + (n+lineBytes-1)/lineBytes
}

// AppendBase64 appends the MIME base64 of data, exactly as Python's
// codecs.encode(data, "base64"): a newline after every 76 characters and at the
// end, nothing at all for no data.
func AppendBase64(dst, data []byte) []byte { return appendLines(dst, data, "\n") }

func appendLines(dst, data []byte, newline string) []byte {
	for len(data) > 0 {
		n := min(lineBytes, len(data))
		dst = base64.StdEncoding.AppendEncode(dst, data[:n])
		dst = append(dst, newline...)
		data = data[n:]
	}
	return dst
}

// Base64 returns the MIME base64 of data; see [AppendBase64].
func Base64(data []byte) string {
	return shared(AppendBase64(make([]byte, 0, EncodedLen(len(data))), data))
}

// shared makes a string of a buffer that is never touched again: results have up to
// 64 MiB, so a copy matters.
func shared(text []byte) string { return unsafe.String(unsafe.SliceData(text), len(text)) }

// Encoded is a value in MIME base64, wrapped any number of times: each further time the
// text becomes the pickle of a str and is encoded again. It is written in pieces, so
// that a large value is never there a second time.
type Encoded struct {
	// Value is the pickle inside.
	Value []byte
	// Wraps counts the wrappings beyond the first encoding.
	Wraps int
}

// Len returns the length of the text.
func (e Encoded) Len() int {
	n, _ := e.size()
	return n
}

// JSONLen returns the length of the text inside a JSON string, where every newline is
// an escape of two characters.
func (e Encoded) JSONLen() int {
	n, lines := e.size()
	return n + lines
}

func (e Encoded) size() (n, lines int) {
	n = len(e.Value)
	if e.Wraps > 0 {
		inner := e.inner().Len()
		n = len(textHead(inner)) + inner + len(textEnd)
	}
	return EncodedLen(n), (n + lineBytes - 1) / lineBytes
}

func (e Encoded) inner() Encoded { return Encoded{Value: e.Value, Wraps: e.Wraps - 1} }

// String returns the text.
func (e Encoded) String() string {
	text := bytes.NewBuffer(make([]byte, 0, e.Len()))
	_ = e.write(text, "\n") // a buffer takes everything
	return shared(text.Bytes())
}

// WriteJSON writes the text as it stands between the quotes of a JSON string.
func (e Encoded) WriteJSON(w io.Writer) error { return e.write(w, `\n`) }

func (e Encoded) write(w io.Writer, newline string) error {
	l := &lineWriter{w: w, newline: newline}
	if e.Wraps == 0 {
		return errors.Join(l.write(e.Value), l.flush())
	}
	inner := e.inner()
	if err := l.write(textHead(inner.Len())); err != nil {
		return err
	}
	if err := inner.write(l, "\n"); err != nil {
		return err
	}
	return errors.Join(l.write([]byte(textEnd)), l.flush())
}

// lineWriter writes MIME base64 of what is written to it; flush ends it.
type lineWriter struct {
	w       io.Writer
	newline string
	rest    []byte // less than a line
	text    []byte
}

// linesAtOnce is how many lines are encoded before they are written.
const linesAtOnce = 512

func (l *lineWriter) Write(p []byte) (int, error) {
	if err := l.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *lineWriter) write(p []byte) error {
	if len(l.rest) > 0 {
		n := min(lineBytes-len(l.rest), len(p))
		l.rest, p = append(l.rest, p[:n]...), p[n:]
		if len(l.rest) < lineBytes {
			return nil
		}
		if err := l.encode(l.rest); err != nil {
			return err
		}
		l.rest = l.rest[:0]
	}
	for len(p) >= lineBytes {
		n := min(len(p)/lineBytes, linesAtOnce) * lineBytes
		if err := l.encode(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	l.rest = append(l.rest, p...)
	return nil
}

func (l *lineWriter) encode(p []byte) error {
	l.text = appendLines(l.text[:0], p, l.newline)
	_, err := l.w.Write(l.text)
	return err
}

func (l *lineWriter) flush() error {
	if len(l.rest) == 0 {
		return nil
	}
	return l.encode(l.rest)
}

// DecodeBase64 reads base64 with or without line breaks. All ASCII white space is
// ignored; everything else must be the standard alphabet, padded to a multiple of
// four characters.
func DecodeBase64(text string) ([]byte, error) {
	chars, err := countChars(text)
	if err != nil {
		return nil, err
	}
	if chars%4 != 0 {
		return nil, fmt.Errorf("base64 text of %d characters is truncated: padded base64 has a multiple of 4", chars)
	}
	d := base64Decoder{out: make([]byte, base64.StdEncoding.DecodedLen(chars))}
	for start := 0; start < len(text); {
		for start < len(text) && isSpace(text[start]) {
			start++
		}
		end := start
		for end < len(text) && !isSpace(text[end]) {
			end++
		}
		if err := d.add(text[start:end]); err != nil {
			return nil, err
		}
		start = end
	}
	return d.out[:d.n:d.n], nil
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// countChars counts what is not white space.
func countChars(text string) (n int, err error) {
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 0x80:
			return 0, errors.New("not base64: a character outside ASCII")
		case !isSpace(c):
			n++
		}
	}
	return n, nil
}

// base64Decoder decodes text that comes in runs between white space.
type base64Decoder struct {
	out []byte
	n   int
	// chars counts the characters decoded; quad holds up to three that wait.
	chars int
	quad  []byte
	// padded says that padding was seen, which ends the text.
	padded bool
}

func (d *base64Decoder) add(run string) error {
	if len(d.quad) > 0 {
		n := min(4-len(d.quad), len(run))
		d.quad, run = append(d.quad, run[:n]...), run[n:]
		if len(d.quad) < 4 {
			return nil
		}
		if err := d.decode(d.quad); err != nil {
			return err
		}
		d.quad = d.quad[:0]
	}
	// The decoder only reads what it gets, so it may look at the string's memory.
	whole := len(run) &^ 3
	if err := d.decode(unsafe.Slice(unsafe.StringData(run), len(run))[:whole]); err != nil {
		return err
	}
	d.quad = append(d.quad, run[whole:]...)
	return nil
}

func (d *base64Decoder) decode(quads []byte) error {
	if len(quads) == 0 {
		return nil
	}
	if d.padded {
		return corrupt(d.chars)
	}
	n, err := base64.StdEncoding.Decode(d.out[d.n:], quads)
	if err != nil {
		var at base64.CorruptInputError
		if errors.As(err, &at) {
			return corrupt(d.chars + int(at))
		}
		return fmt.Errorf("not base64: %w", err)
	}
	d.n += n
	d.chars += len(quads)
	d.padded = quads[len(quads)-1] == '='
	return nil
}

func corrupt(chars int) error {
	return fmt.Errorf("not base64: unexpected character after %d characters (white space not counted)", chars)
}
