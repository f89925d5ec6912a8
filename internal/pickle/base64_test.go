package pickle

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestEncoded holds the encoding in pieces against the one at once, over sizes around
// lines, pieces and the forms of a str's header.
func TestEncoded(t *testing.T) {
	sizes := []int{0, 1, 56, 57, 58, 113, 114, 115, 183, 184, 185, 190, lineBytes * linesAtOnce, lineBytes*linesAtOnce + 1, 3*lineBytes*linesAtOnce + 100}
	for _, size := range sizes {
		value := pattern(size)
		want := Base64(value)
		for wraps := range 3 {
			if wraps > 0 {
				want = Base64(Text(want))
			}
			e := Encoded{Value: value, Wraps: wraps}
			if got := e.String(); got != want || e.Len() != len(want) {
				t.Fatalf("%d bytes, %d wraps: %d characters, Len says %d, want %d", size, wraps, len(got), e.Len(), len(want))
			}
			var doc bytes.Buffer
			if err := e.WriteJSON(&doc); err != nil {
				t.Fatal(err)
			}
			if escaped := strings.ReplaceAll(want, "\n", `\n`); doc.String() != escaped || e.JSONLen() != len(escaped) {
				t.Fatalf("%d bytes, %d wraps: %d bytes of JSON, JSONLen says %d, want %d", size, wraps, doc.Len(), e.JSONLen(), len(escaped))
			}
		}
	}
}

// brokenWriter fails after some bytes.
type brokenWriter struct{ left int }

var errBroken = errors.New("broken")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestEncodedFails(t *testing.T) {
	for wraps := range 3 {
		e := Encoded{Value: pattern(200_000), Wraps: wraps}
		for _, room := range []int{0, 1000, e.JSONLen() / 2, e.JSONLen() - 1} {
			if err := e.WriteJSON(&brokenWriter{left: room}); !errors.Is(err, errBroken) {
				t.Errorf("%d wraps, room for %d bytes: %v", wraps, room, err)
			}
		}
		if err := e.WriteJSON(io.Discard); err != nil {
			t.Error(err)
		}
	}
}

// plainDecode is DecodeBase64 in the obvious way.
func plainDecode(text string) ([]byte, bool) {
	compact := strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\n\v\f\r", r) {
			return -1
		}
		return r
	}, text)
	data, err := base64.StdEncoding.DecodeString(compact)
	return data, err == nil
}

func FuzzDecodeBase64(f *testing.F) {
	for _, text := range []string{"gASVAgAAAAAAAABOLg==\n", "a b\nc\td", "ab==\nab==", "YWJj\nYWI=\n", "YWJj YW\nI=", "====", "YQ==YQ==", "Y*==", "\u00e9aaa"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := DecodeBase64(text)
		want, ok := plainDecode(text)
		if ok != (err == nil) || ok && !bytes.Equal(got, want) {
			t.Fatalf("%q: %q, %v; want %q, %v", text, got, err, want, ok)
		}
	})
}
