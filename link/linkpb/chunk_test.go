package linkpb

import (
	"bytes"
	"testing"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/task"
)

func TestChunks(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize, chunkSize + 1, 3 * chunkSize, 3*chunkSize + 5} {
		for _, announced := range []bool{true, false} {
			value := bytes.Repeat([]byte{1, 2, 3, 5, 7}, size/5+1)[:size]
			var c chunker
			var a assembler
			v := c.value(value)
			for _, chunk := range c.take() {
				if !announced {
					chunk.Size = 0 // as a peer from before
				}
				if err := a.add(chunk); err != nil {
					t.Fatal(err)
				}
			}
			got, err := a.value(v)
			if err != nil || !bytes.Equal(got, value) {
				t.Fatalf("%d bytes came back as %d: %v", size, len(got), err)
			}
			if announced && size > chunkSize && cap(got) != size {
				t.Errorf("%d bytes take room for %d", size, cap(got))
			}
			if a.size != 0 || len(a.parts) != 0 {
				t.Errorf("%d bytes of %d values are left", a.size, len(a.parts))
			}
		}
	}
}

func TestChunksRefuse(t *testing.T) {
	one := func(value, size uint64, n int) *treadlev1.Chunk {
		return &treadlev1.Chunk{Value: value, Size: size, Data: make([]byte, n)}
	}
	for name, chunks := range map[string][]*treadlev1.Chunk{
		"no number":         {one(0, 0, 1)},
		"no bytes":          {one(1, 0, 0)},
		"too many bytes":    {one(1, 0, chunkSize+1)},
		"announces all":     {one(1, 1<<63, 1)},
		"announce too much": {one(1, maxPartial/2, 1), one(2, maxPartial/2, 1), one(3, 1, 1)},
	} {
		var a assembler
		var err error
		for _, c := range chunks {
			err = a.add(c)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var a assembler
	for i := range uint64(maxPartialCount) {
		if err := a.add(one(i+1, 0, 1)); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := a.add(one(1, 0, 1)); err != nil {
		t.Errorf("one of the values cannot go on: %v", err)
	}
	if err := a.add(one(maxPartialCount+1, 0, 1)); err == nil {
		t.Error("one value too many is accepted")
	}
	// The frame's word is checked.
	for _, v := range []*treadlev1.Value{{Chunked: 1, Size: 3}, {Chunked: 9999, Size: 1}, {Chunked: 9999}} {
		if _, err := a.value(v); err == nil {
			t.Errorf("%v is resolved", v)
		}
	}
}

// A result over the payload limit is not kept, whatever its chunks announce, and fails its
// task alone; one at the limit passes. Nothing is kept before Hello.
func TestResultsAreHeldToThePayloadLimit(t *testing.T) {
	const limit = 3 * chunkSize
	for _, size := range []int{limit, limit + 1} {
		for _, announced := range []bool{true, false} {
			var c chunker
			a := newAssembler(limit)
			v := c.value(make([]byte, size))
			chunks := c.take()
			if err := a.add(chunks[0]); err == nil {
				t.Fatal("a chunk before Hello is kept")
			}
			a.waits = false
			for _, chunk := range chunks {
				if !announced {
					chunk.Size = 0
				}
				if err := a.add(chunk); err != nil {
					t.Fatal(err)
				}
				if a.size > limit {
					t.Fatalf("%d bytes are kept", a.size)
				}
			}
			id := make([]byte, 16)
			r, err := a.reportIn(&treadlev1.Report{Token: &treadlev1.Token{TaskId: id, ClaimId: id}, End: "succeeded", Result: v})
			if err != nil {
				t.Fatal(err)
			}
			want := task.EndSucceeded
			if size > limit {
				want = task.EndExhausted
			}
			if r.Outcome.End != want || want == task.EndSucceeded && len(r.Outcome.Result) != size {
				t.Errorf("%d bytes, announced %v: reported as %s with %d bytes", size, announced, r.Outcome.End, len(r.Outcome.Result))
			}
			if a.size != 0 || len(a.parts) != 0 {
				t.Errorf("%d bytes of %d values are left", a.size, len(a.parts))
			}
		}
	}
	// What is under way in all is bounded, too.
	a := newAssembler(limit)
	a.waits = false
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = a.add(&treadlev1.Chunk{Value: uint64(i + 1), Size: limit, Data: make([]byte, 1)})
	}
	if err == nil || a.size > 2*limit+16<<20+limit {
		t.Errorf("%d bytes are under way: %v", a.size, err)
	}
}
