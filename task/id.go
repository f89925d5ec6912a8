package task

import (
	"encoding/hex"
	"fmt"
	"log/slog"
)

// ID is a UUID (RFC 9562) in its binary form. Function and task ids are version
// 7, so they grow with creation time; claim and session ids are random.
//
// The zero ID means "none" and is never handed out.
type ID [16]byte

// IsZero reports whether the id is the zero value.
func (id ID) IsZero() bool { return id == ID{} }

// LogValue is the text of String: a JSON log would hold the bytes as numbers.
func (id ID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// String returns the canonical lower-case form, for example
// "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11".
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return string(b[:])
}

// ParseID reads the 36-character UUID form in any case. It refuses braces, URN
// prefixes and the form without dashes, so that one id has one spelling up to case.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, fmt.Errorf("%q is not a UUID: want 8-4-4-4-12 hexadecimal digits", clip(s, 64))
	}
	compact := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(id[:], []byte(compact)); err != nil {
		return ID{}, fmt.Errorf("%q is not a UUID: %w", s, err)
	}
	return id, nil
}

// IDFromBytes reads the 16-byte form used on the wire.
func IDFromBytes(b []byte) (ID, error) {
	var id ID
	if len(b) != len(id) {
		return ID{}, fmt.Errorf("an id has %d bytes, want 16", len(b))
	}
	copy(id[:], b)
	return id, nil
}

// clip bounds text that came from outside before it enters an error message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "..."
}
