package linkpb

import (
	"bytes"
	"testing"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
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
