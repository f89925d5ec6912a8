package redisstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// head is what the scripts read and write of a task: one value of fixed numbers and short
// text, as headFormat and headNames say. Numbers are doubles, as Lua's are, and whole;
// times are in microseconds and 0 for none. Without a claim in force its fields are zero.
type head struct {
	localPool, logs bool
	// birth and move name the operations that made the record and changed it last.
	birth, move    [8]byte
	claim, session task.ID
	// place is the score in the lane: priority and sequence number.
	place uint64
	epoch uint64
	// attempts counts the attempts that were started before the claim in force.
	attempts                    uint64
	claimedAt, until, startedAt int64
	// heard is the generation in which the holder was last heard of.
	heard    int64
	deadline int64
	argsSize uint64
	worker   string
	lane     string
	// request is the idempotency key; argsIn and resultIn say where large values are.
	request, argsIn, resultIn string
}

// Sizes of a head: up to the place, and up to the texts.
const (
	headFront = 3 + 8 + 8 + 16 + 16
	headFixed = headFront + 9*8
)

// headVersion is the first byte of a head.
const headVersion = 1

// frontOfHead is the head of new tasks up to the place, which the script gives.
func frontOfHead(operation []byte) []byte {
	b := make([]byte, headFront)
	b[0] = headVersion
	copy(b[3:11], operation)
	return b
}

// backOfHead is the head of a new task after the place.
func backOfHead(t *task.Task, key, argsIn string) []byte {
	b := make([]byte, 8*8, 8*8+16+len(t.Queue)+len(t.Runtime)+len(key)+len(argsIn))
	// Epoch, attempts, claimed, until, started and heard are zero.
	binary.BigEndian.PutUint64(b[6*8:], double(microsOrZero(t.Deadline)))
	binary.BigEndian.PutUint64(b[7*8:], double(int64(t.ArgsSize)))
	for _, text := range []string{"", laneOf(t.Queue, t.Runtime), key, argsIn, ""} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	}
	return b
}

func double(v int64) uint64 { return math.Float64bits(float64(v)) }

// microsOrZero is a time in a head.
func microsOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return micros(t)
}

func decodeHead(s string) (h head, err error) {
	b := []byte(s)
	if len(b) < headFixed {
		return h, errDamaged
	}
	if b[0] != headVersion {
		return h, fmt.Errorf("format %d, this build reads %d", b[0], headVersion)
	}
	h.localPool, h.logs = b[1] != 0, b[2] != 0
	copy(h.birth[:], b[3:])
	copy(h.move[:], b[11:])
	copy(h.claim[:], b[19:])
	copy(h.session[:], b[35:])
	var n [9]int64
	for i := range n {
		v := math.Float64frombits(binary.BigEndian.Uint64(b[headFront+8*i:]))
		if n[i] = int64(v); float64(n[i]) != v || v < 0 || v > 1<<53 {
			return h, errors.New("a number is out of range")
		}
	}
	h.place, h.epoch, h.attempts = uint64(n[0]), uint64(n[1]), uint64(n[2])
	h.claimedAt, h.until, h.startedAt, h.heard = n[3], n[4], n[5], n[6]
	h.deadline, h.argsSize = n[7], uint64(n[8])
	b = b[headFixed:]
	for _, text := range []*string{&h.worker, &h.lane, &h.request, &h.argsIn, &h.resultIn} {
		if len(b) < 2 {
			return h, errDamaged
		}
		size := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; len(b) < size {
			return h, errDamaged
		}
		*text, b = string(b[:size]), b[size:]
	}
	return h, nil
}
