package pickle

import (
	"encoding/base64"
	"errors"
	"fmt"
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
func AppendBase64(dst, data []byte) []byte {
	for len(data) > 0 {
		n := min(lineBytes, len(data))
		dst = base64.StdEncoding.AppendEncode(dst, data[:n])
		dst = append(dst, '\n')
		data = data[n:]
	}
	return dst
}

// Base64 returns the MIME base64 of data; see [AppendBase64].
func Base64(data []byte) string {
	text := AppendBase64(make([]byte, 0, EncodedLen(len(data))), data)
	// The buffer is never touched again, so the string may share it: results have up
	// to 64 MiB.
	return unsafe.String(unsafe.SliceData(text), len(text))
}

// DecodeBase64 reads base64 with or without line breaks. All ASCII white space is
// ignored; everything else must be the standard alphabet, padded to a multiple of
// four characters.
func DecodeBase64(text string) ([]byte, error) {
	compact, err := stripSpace(text)
	if err != nil {
		return nil, err
	}
	if len(compact)%4 != 0 {
		return nil, fmt.Errorf("base64 text of %d characters is truncated: padded base64 has a multiple of 4", len(compact))
	}
	// Decoding in place: the output never overtakes the input.
	n, err := base64.StdEncoding.Decode(compact, compact)
	if err != nil {
		var at base64.CorruptInputError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("not base64: unexpected character after %d characters (white space not counted)", int64(at))
		}
		return nil, fmt.Errorf("not base64: %w", err)
	}
	return compact[:n:n], nil
}

// stripSpace copies text without its ASCII white space.
func stripSpace(text string) ([]byte, error) {
	out := make([]byte, 0, len(text))
	start := 0
	for i := range len(text) {
		switch c := text[i]; c {
		case ' ', '\t', '\n', '\v', '\f', '\r':
			out = append(out, text[start:i]...)
			start = i + 1
		default:
			if c >= 0x80 {
				return nil, errors.New("not base64: a character outside ASCII")
			}
		}
	}
	return append(out, text[start:]...), nil
}
