//go:build unix

package pyproc

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// encodeReply builds a reply's frame as the runner does.
func encodeReply(seq uint32, end ending, encoding uint8, flags uint16, parts [5]string, result string, took time.Duration) []byte {
	body := []byte{byte(end), encoding, byte(flags), byte(flags >> 8)}
	for _, p := range parts {
		body = append(body, byte(len(p)), byte(len(p)>>8), byte(len(p)>>16), byte(len(p)>>24))
	}
	body = binary.LittleEndian.AppendUint64(body, uint64(took))
	body = append(body, strings.Join(parts[:], "")...)
	body = append(body, result...)
	return append(appendHead(nil, seq, kindReply, len(body)), body...)
}

// word is what a function says of its next attempt, as it stands in a reply.
func word(v int64) string { return string(binary.LittleEndian.AppendUint64(nil, uint64(v))) }

func TestFrames(t *testing.T) {
	frame := encodeReply(7, endRaised, encodingPickle, replyRecycle, [5]string{"T", "message", "trace", "p", "f"}, word(int64(task.MaxRetryAfter)), time.Second)
	read := func(b []byte, seq uint32, limit int) (reply, error) {
		body, err := readFrame(bufio.NewReader(iotest.OneByteReader(bytes.NewReader(b))), kindReply, seq, limit)
		if err != nil {
			return reply{}, err
		}
		return parseReply(body)
	}
	p, err := read(frame, 7, 1<<10)
	if err != nil || p.end != endRaised || p.flags != replyRecycle || p.took != time.Second || p.label+p.message+p.traceback != "Tmessagetrace" ||
		string(p.pickle)+string(p.foreign) != "pf" || p.noRetry || p.retryAfter != task.MaxRetryAfter {
		t.Fatalf("%+v, %v", p, err)
	}
	for name, c := range map[string]struct {
		frame []byte
		seq   uint32
		limit int
		want  error
	}{
		"another sequence number": {frame, 8, 1 << 10, errJunk},
		"over the limit":          {frame, 7, 10, errJunk},
		"no magic":                {append([]byte("JUNK"), frame[4:]...), 7, 1 << 10, errJunk},
		"another kind":            {appendHead(nil, 7, kindHello, 0), 7, 1 << 10, errJunk},
		"nothing":                 {nil, 7, 1 << 10, io.EOF},
		"half a header":           {frame[:9], 7, 1 << 10, io.ErrUnexpectedEOF},
		"half a body":             {frame[:headSize+9], 7, 1 << 10, io.ErrUnexpectedEOF},
		"no body":                 {frame[:headSize], 7, 1 << 10, io.ErrUnexpectedEOF},
		"empty body":              {appendHead(nil, 7, kindReply, 0), 7, 1 << 10, errJunk},
		"unknown end":             {encodeReply(7, 99, 0, 0, [5]string{}, "", 0), 7, 1 << 10, errJunk},
		"negative run time":       {encodeReply(7, 0, 0, 0, [5]string{}, "", -1), 7, 1 << 10, errJunk},
		"unknown encoding":        {encodeReply(7, 0, 9, 0, [5]string{}, "", 0), 7, 1 << 10, errJunk},
		"half a word":             {encodeReply(7, endRaised, 0, 0, [5]string{}, "rest", 0), 7, 1 << 10, errJunk},
		"no wait":                 {encodeReply(7, endRaised, 0, 0, [5]string{}, word(0), 0), 7, 1 << 10, errJunk},
		"a negative wait":         {encodeReply(7, endRaised, 0, 0, [5]string{}, word(-2), 0), 7, 1 << 10, errJunk},
		"more than a day":         {encodeReply(7, endRaised, 0, 0, [5]string{}, word(int64(task.MaxRetryAfter)+1), 0), 7, 1 << 10, errJunk},
	} {
		if _, err := read(c.frame, c.seq, c.limit); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// FuzzReply: no bytes of a runner make the agent panic or allocate beyond the limit, and
// what is accepted is read back as it was written.
func FuzzReply(f *testing.F) {
	f.Add(encodeReply(1, endSucceeded, encodingJSON, replyCached, [5]string{}, "42", 1))
	f.Add(encodeReply(1, endRaised, encodingPickle, 0, [5]string{"ValueError", "x", "Traceback", "\x80\x04.", ""}, "", 0))
	f.Add(encodeReply(1, endRaised, encodingPickle, 0, [5]string{"ValueError"}, word(-1), 0))
	f.Add([]byte("TRDL junk"))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := readFrame(bufio.NewReader(bytes.NewReader(data)), kindReply, 1, 1<<16)
		if err != nil {
			return
		}
		p, err := parseReply(body)
		if err != nil {
			if !errors.Is(err, errJunk) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		again := encodeReply(1, p.end, p.encoding, p.flags, [5]string{p.label, p.message, p.traceback, string(p.pickle), string(p.foreign)}, string(p.result), p.took)
		if !bytes.Equal(again, data[:headSize+len(body)]) {
			t.Fatalf("%q was read as %+v", data, p)
		}
		_ = p.outcome(1 << 10)
	})
}
