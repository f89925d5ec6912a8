package redisstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// head is what the scripts read and write of a task: one value with everything at a fixed
// position, so that a script cuts out what it needs and puts in what it changes. Numbers
// are doubles, as Lua's are, and whole; times are in microseconds and 0 for none. Without
// a claim in force its fields are zero.
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
	lane     string
	// request is the idempotency key; argsIn and resultIn say where large values are.
	request, argsIn, resultIn string
	worker                    string
}

// Positions in a head.
const (
	atVersion = 0
	// atLocal is 1 for a claim of a local pool, atLogs once output is kept.
	atLocal    = 1
	atLogs     = 2
	atBirth    = 3
	atMove     = atBirth + 8
	atClaim    = atMove + 8
	atSession  = atClaim + 16
	atPlace    = atSession + 16
	atEpoch    = atPlace + 8
	atAttempts = atEpoch + 8
	atClaimed  = atAttempts + 8
	atUntil    = atClaimed + 8
	atStarted  = atUntil + 8
	atHeard    = atStarted + 8
	atDeadline = atHeard + 8
	atArgsSize = atDeadline + 8
	// atTail says where the tail begins, counted from 1, in two bytes.
	atTail = atArgsSize + 8
	// atTexts is where lane, idempotency key and place of large arguments stand, each
	// behind its length in two bytes. The tail follows to the end: the worker of the claim
	// in force, or the place of a large result.
	atTexts = atTail + 2
)

// headPositions are the names of the positions in scripts.
var headPositions = map[string]int{
	"P.local": atLocal, "P.logs": atLogs, "P.birth": atBirth, "P.move": atMove, "P.claim": atClaim, "P.session": atSession,
	"P.place": atPlace, "P.epoch": atEpoch, "P.attempts": atAttempts, "P.claimed": atClaimed, "P.till": atUntil,
	"P.started": atStarted, "P.heard": atHeard, "P.deadline": atDeadline, "P.argssize": atArgsSize, "P.tail": atTail,
	"P.texts": atTexts,
}

// headVersion is the first byte of a head.
const headVersion = 1

// frontOfHead is the head of new tasks up to the place, which the script gives.
func frontOfHead(operation []byte) []byte {
	b := make([]byte, atPlace)
	b[atVersion] = headVersion
	copy(b[atBirth:atMove], operation)
	return b
}

// backOfHead is the head of a new task after the place.
func backOfHead(t *task.Task, key, argsIn string) []byte {
	const cut = atPlace + 8
	texts := []string{laneOf(t.Queue, t.Runtime), key, argsIn}
	tail := atTexts
	for _, text := range texts {
		tail += 2 + len(text)
	}
	b := make([]byte, atTexts-cut, tail-cut)
	// Epoch, attempts, claimed, until, started and heard are zero.
	binary.BigEndian.PutUint64(b[atDeadline-cut:], double(microsOrZero(t.Deadline)))
	binary.BigEndian.PutUint64(b[atArgsSize-cut:], double(int64(t.ArgsSize)))
	binary.BigEndian.PutUint16(b[atTail-cut:], uint16(tail+1))
	for _, text := range texts {
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
	if len(b) < atTexts {
		return h, errDamaged
	}
	if b[atVersion] != headVersion {
		return h, fmt.Errorf("format %d, this build reads %d", b[atVersion], headVersion)
	}
	h.localPool, h.logs = b[atLocal] != 0, b[atLogs] != 0
	copy(h.birth[:], b[atBirth:])
	copy(h.move[:], b[atMove:])
	copy(h.claim[:], b[atClaim:])
	copy(h.session[:], b[atSession:])
	number := func(at int) int64 {
		f := math.Float64frombits(binary.BigEndian.Uint64(b[at:]))
		v := int64(f)
		if float64(v) != f || f < 0 || f > 1<<53 {
			err = errors.New("a number is out of range")
		}
		return v
	}
	h.place, h.epoch, h.attempts = uint64(number(atPlace)), uint64(number(atEpoch)), uint64(number(atAttempts))
	h.claimedAt, h.until, h.startedAt = number(atClaimed), number(atUntil), number(atStarted)
	h.heard, h.deadline, h.argsSize = number(atHeard), number(atDeadline), uint64(number(atArgsSize))
	rest := b[atTexts:]
	for _, text := range []*string{&h.lane, &h.request, &h.argsIn} {
		if len(rest) < 2 || len(rest) < 2+int(binary.BigEndian.Uint16(rest)) {
			return h, errDamaged
		}
		size := 2 + int(binary.BigEndian.Uint16(rest))
		*text, rest = string(rest[2:size]), rest[size:]
	}
	if h.claim.IsZero() {
		h.resultIn = string(rest)
	} else {
		h.worker = string(rest)
	}
	return h, err
}
