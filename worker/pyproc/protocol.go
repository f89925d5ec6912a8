package pyproc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// The wire between agent and runner; script/treadle_runner/wire.py is its other half.
// A frame is a header of 16 bytes (magic, sequence number, kind, length of the body) and a
// body. The runner answers each frame of the agent, in order, with one of the same
// sequence number. Integers are little-endian.
const (
	magic       = "TRDL"
	headSize    = 16
	callSize    = 128
	replySize   = 32
	replySlack  = 1 << 20 // what a reply may hold beside the result
	wireBuffer  = 64 << 10
	maxMessage  = wireBuffer // the runner reads that much at once
	maxCallBody = 1<<32 - 1
)

type kind uint32

const (
	kindSetup kind = 1 + iota
	kindHello
	kindCall
	kindReply
)

const (
	formPickle = 0
	formSource = 1

	callArgsJSON    = 1
	callReturnsJSON = 2
	callHasCode     = 4
	callRlimit      = 8
	callAhead       = 16 // nobody reads the runner's output while this call runs
)

type ending uint8

const (
	endSucceeded ending = iota
	endRaised
	endUnreadable
	endExhausted
	endMissing // the runner has dropped the function: send its bytes again
)

const (
	encodingPickle = 0
	encodingJSON   = 1

	replyCached  = 1
	replyRecycle = 2 // the runner waits for its end
	replyOutput  = 4 // there is output, and the runner waits for leave to go on
	replySpent   = 8 // beside replyRecycle: the runner has run as many attempts as it may
)

// errJunk is returned for bytes that are no frame: a function wrote on descriptors
// that are not its own.
var errJunk = errors.New("the runner sent data that is not a frame")

// call is one attempt on the wire.
type call struct {
	form      uint8
	flags     uint8
	name      string
	code      []byte
	memory    int64
	maxResult int
	task      [16]byte
	hash      [32]byte
	// What the function may know of its task: deadline in nanoseconds of Unix time and timeout
	// in nanoseconds, both 0 for none.
	function   [16]byte
	deadline   int64
	timeout    int64
	attempt    uint32
	maxRetries uint32
	parent     [16]byte // zero for none
	args       []byte
}

// size is the length of the call's frame.
func (c *call) size() int { return headSize + callSize + len(c.name) + len(c.code) + len(c.args) }

// appendHead appends a frame header.
func appendHead(b []byte, seq uint32, k kind, length int) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, seq)
	b = binary.LittleEndian.AppendUint32(b, uint32(k))
	return binary.LittleEndian.AppendUint32(b, uint32(length))
}

// appendCall appends everything of a call but code and arguments, which follow it on the
// wire in that order.
func appendCall(b []byte, seq uint32, c *call) ([]byte, error) {
	length := c.size() - headSize
	if length > maxCallBody || len(c.name) > 1<<16-1 {
		return b, fmt.Errorf("a call of %d bytes does not fit in a frame", length)
	}
	b = appendHead(b, seq, kindCall, length)
	b = append(b, c.form, c.flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(c.name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.code)))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.memory))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.maxResult))
	b = append(b, c.task[:]...)
	b = append(b, c.hash[:]...)
	b = append(b, c.function[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.deadline))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.timeout))
	b = binary.LittleEndian.AppendUint32(b, c.attempt)
	b = binary.LittleEndian.AppendUint32(b, c.maxRetries)
	b = append(b, c.parent[:]...)
	return append(b, c.name...), nil
}

// reply is the runner's answer to a call.
type reply struct {
	end      ending
	encoding uint8
	flags    uint16
	// label is the repr of a result that JSON cannot hold, or the class of an exception.
	label, message, traceback string
	pickle, foreign, result   []byte
	took                      time.Duration // run time
	// What the function says of its next attempt, by treadle.NoRetry and treadle.RetryAfter.
	noRetry    bool
	retryAfter time.Duration
}

// readFrame reads one frame of at most limit bytes of body. The body is the caller's.
func readFrame(r io.Reader, want kind, seq uint32, limit int) ([]byte, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	body, err := checkHead(head[:], want, seq, limit)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, body); errors.Is(err, io.EOF) {
		return nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return nil, err
	}
	return body, nil
}

// checkHead returns room for the body that a frame's header announces.
func checkHead(head []byte, want kind, seq uint32, limit int) ([]byte, error) {
	gotSeq := binary.LittleEndian.Uint32(head[4:])
	got := kind(binary.LittleEndian.Uint32(head[8:]))
	length := binary.LittleEndian.Uint32(head[12:])
	if string(head[:4]) != magic || gotSeq != seq || got != want {
		return nil, errJunk
	}
	if uint64(length) > uint64(limit) {
		return nil, fmt.Errorf("%w: it announces %d bytes, more than %d", errJunk, length, limit)
	}
	return make([]byte, length), nil
}

// parseReply splits the body of a reply; the slices of the answer share it.
func parseReply(body []byte) (reply, error) {
	if len(body) < replySize {
		return reply{}, fmt.Errorf("%w: a reply of %d bytes", errJunk, len(body))
	}
	p := reply{
		end:      ending(body[0]),
		encoding: body[1],
		flags:    binary.LittleEndian.Uint16(body[2:]),
		took:     time.Duration(binary.LittleEndian.Uint64(body[24:])),
	}
	if p.took < 0 {
		return reply{}, fmt.Errorf("%w: a reply with a run time of %d ns", errJunk, p.took)
	}
	if p.end > endMissing || p.encoding > encodingJSON {
		return reply{}, fmt.Errorf("%w: a reply of unknown end %d or encoding %d", errJunk, p.end, p.encoding)
	}
	rest := body[replySize:]
	var parts [5][]byte
	for i := range parts {
		n := binary.LittleEndian.Uint32(body[4+4*i:])
		if uint64(n) > uint64(len(rest)) {
			return reply{}, fmt.Errorf("%w: part %d of a reply has %d bytes, %d are left", errJunk, i, n, len(rest))
		}
		parts[i], rest = rest[:n:n], rest[n:]
	}
	p.label, p.message, p.traceback = string(parts[0]), string(parts[1]), string(parts[2])
	p.pickle, p.foreign, p.result = parts[3], parts[4], rest
	if p.end == endRaised && len(rest) > 0 {
		if err := p.parseWord(); err != nil {
			return reply{}, err
		}
	}
	return p, nil
}

// parseWord reads the function's word on its next attempt, which takes the place of a result:
// the nanoseconds to wait, or -1 for no further attempt.
func (p *reply) parseWord() error {
	if len(p.result) != 8 {
		return fmt.Errorf("%w: %d bytes say when the function is to run again; want 8", errJunk, len(p.result))
	}
	word := int64(binary.LittleEndian.Uint64(p.result))
	if word != -1 && (word <= 0 || word > int64(task.MaxRetryAfter)) {
		return fmt.Errorf("%w: the function is to run again after %d ns; want 1 to %d", errJunk, word, int64(task.MaxRetryAfter))
	}
	p.noRetry, p.retryAfter = word == -1, time.Duration(max(word, 0))
	return nil
}

// hello is what a runner says of itself when it is ready.
type hello struct {
	PID         int    `json:"pid"`
	Python      string `json:"python"`
	Dill        string `json:"dill"`
	Cloudpickle string `json:"cloudpickle"`
	Subreaper   bool   `json:"subreaper"`
}

// setup is the first frame that a runner gets.
type setup struct {
	Paths []string `json:"paths"`
	Libs  string   `json:"libs,omitempty"`
	// LibsFirst puts Libs before the interpreter's own packages, which are too old.
	LibsFirst bool `json:"libs_first,omitempty"`
	// MaxAttempts is how many attempts the runner runs before it asks to be replaced; 0 is no limit.
	MaxAttempts int `json:"max_attempts,omitempty"`
}
