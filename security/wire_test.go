//go:build linux

package security

import (
	"bytes"
	"crypto/rand"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// Messages are made by hand here: the generated code would refuse some of them.

type protoNumber = protowire.Number

// cat puts fields together.
func cat(fields ...[]byte) []byte { return bytes.Join(fields, nil) }

// text is a field of type string, bytes or message.
func text[T ~string | ~[]byte](field protowire.Number, v T) []byte {
	b := protowire.AppendTag(make([]byte, 0, len(v)+12), field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

// num is a field of a number type.
func num(field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, field, protowire.VarintType), v)
}

// times repeats a field.
func times(n int, field func(i int) []byte) []byte {
	var b []byte
	for i := range n {
		b = append(b, field(i)...)
	}
	return b
}

// Fields of WorkerFrame.kind.
const (
	kindHello    = 1
	kindAccepts  = 2
	kindOutcomes = 3
	kindBeat     = 4
	kindWant     = 5
	kindNeed     = 6
	kindOutput   = 7
	kindDrain    = 8
	kindBye      = 9
	kindChunk    = 10
)

// hello is a frame; more fields may follow and override.
func hello(worker, queue, runtime string, slots int, more ...[]byte) []byte {
	return text(kindHello, cat(num(1, 1), text(2, worker), text(7, queue), text(8, runtime), num(10, uint64(slots)), cat(more...)))
}

// helloOf is a frame with these fields and no queue or runtime of its own.
func helloOf(worker string, slots int, more ...[]byte) []byte {
	return text(kindHello, cat(num(1, 1), text(2, worker), num(10, uint64(slots)), cat(more...)))
}

// beat is a frame.
func beat(seq int, held ...[]byte) []byte {
	return text(kindBeat, cat(num(1, uint64(seq)), cat(held...)))
}

// wireToken is a token message.
func wireToken(taskID, claim []byte, epoch, attempt int) []byte {
	return cat(text(1, taskID), num(2, uint64(epoch)), text(3, claim), num(4, uint64(attempt)))
}

// forged is a token of a task that there is not.
func forged() []byte { return wireToken(random(16), random(16), 1, 1) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // it never fails
	return b
}

// filler is n bytes of text.
func filler(n int) []byte { return bytes.Repeat([]byte("x"), n) }

// TestWire checks the hand-made frames against the contract.
func TestWire(t *testing.T) {
	var f treadlev1.WorkerFrame
	if err := proto.Unmarshal(hello("w", "q", "r", 3, text(7, "q2"), text(9, "h")), &f); err != nil {
		t.Fatal(err)
	}
	h := f.GetHello()
	if h.GetVersion() != 1 || h.GetWorker() != "w" || len(h.GetQueues()) != 2 || h.GetRuntimes()[0] != "r" || h.GetSlots() != 3 || h.GetHandlers()[0] != "h" {
		t.Errorf("%v", h)
	}
	if err := proto.Unmarshal(beat(7, text(2, text(1, forged()))), &f); err != nil || f.GetBeat().GetSeq() != 7 ||
		len(f.GetBeat().GetHeld()[0].GetToken().GetClaimId()) != 16 {
		t.Errorf("%v, %v", &f, err)
	}
	for kind, want := range map[protowire.Number]any{
		kindAccepts: &treadlev1.WorkerFrame_Accepts{}, kindOutcomes: &treadlev1.WorkerFrame_Outcomes{}, kindWant: &treadlev1.WorkerFrame_Want{},
		kindNeed: &treadlev1.WorkerFrame_NeedFunction{}, kindOutput: &treadlev1.WorkerFrame_Output{}, kindDrain: &treadlev1.WorkerFrame_Drain{},
		kindBye: &treadlev1.WorkerFrame_Bye{}, kindChunk: &treadlev1.WorkerFrame_Chunk{},
	} {
		if err := proto.Unmarshal(text(kind, ""), &f); err != nil {
			t.Fatal(err)
		}
		if got := f.GetKind(); typeName(got) != typeName(want) {
			t.Errorf("kind %d is %T, want %T", kind, got, want)
		}
	}
}
