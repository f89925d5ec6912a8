package restjson

import (
	"encoding/base64"
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// largeFrom is the size from which a [Document] leaves values out of its text.
const largeFrom = 1 << 20

// Document is a JSON document whose large values are written straight from where they
// are: a value of 64 MiB is never there a second time as text.
type Document struct {
	text  []byte
	holes []hole
}

// hole is a value that belongs at an offset of the text.
type hole struct {
	at    int
	value Value
}

// Value is a part of a document that is made while it is written.
type Value interface {
	// JSONLen returns how many bytes WriteJSON writes.
	JSONLen() int
	// WriteJSON writes a JSON value, without the quotes of a string.
	WriteJSON(w io.Writer) error
}

// Prepare returns the document of msg as [Encode] writes it, except that text fields
// named in instead have those values.
func Prepare(msg proto.Message, instead map[protoreflect.FullName]Value) (Document, error) {
	e := encoder{prepares: true, instead: instead}
	err := e.message(msg.ProtoReflect())
	return Document{text: e.text, holes: e.holes}, err
}

// Len returns the length of the document in bytes.
func (d Document) Len() int {
	n := len(d.text)
	for _, h := range d.holes {
		n += h.value.JSONLen()
	}
	return n
}

// Write writes the document.
func (d Document) Write(w io.Writer) error {
	from := 0
	for _, h := range d.holes {
		if _, err := w.Write(d.text[from:h.at]); err != nil {
			return err
		}
		if err := h.value.WriteJSON(w); err != nil {
			return err
		}
		from = h.at
	}
	_, err := w.Write(d.text[from:])
	return err
}

func (e *encoder) hole(v Value, quoted bool) {
	if quoted {
		e.text = append(e.text, '"')
	}
	e.holes = append(e.holes, hole{len(e.text), v})
	if quoted {
		e.text = append(e.text, '"')
	}
}

// rawValue is JSON already.
type rawValue []byte

func (v rawValue) JSONLen() int { return len(v) }

func (v rawValue) WriteJSON(w io.Writer) error {
	_, err := w.Write(v)
	return err
}

// base64Value is written as plain base64.
type base64Value []byte

func (v base64Value) JSONLen() int { return base64.StdEncoding.EncodedLen(len(v)) }

func (v base64Value) WriteJSON(w io.Writer) error {
	const at = 48 << 10 // a multiple of three, so that only the end is padded
	var text []byte
	for rest := []byte(v); len(rest) > 0; {
		n := min(len(rest), at)
		text = base64.StdEncoding.AppendEncode(text[:0], rest[:n])
		if _, err := w.Write(text); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
