package redisstore

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// fullTask has something in every field that a record keeps.
func fullTask() *task.Task {
	at := time.Date(2030, 1, 2, 3, 4, 5, 6789, time.UTC)
	return &task.Task{
		ID: task.ID{1}, Function: task.ID{2}, FunctionName: "f\x00ü", Queue: "q", Runtime: "go/x", Form: task.FormSource, Python: "3.12", CreatedBy: "0123456789abcdef", Parent: task.ID{0, 7},
		Hash: [32]byte{3}, Spec: task.Spec{Priority: 7, Timeout: time.Minute, Deadline: at.Add(time.Hour), MaxRetries: 2, FunctionRetries: 4, MemoryLimit: 1 << 40}, Args: task.EncodingJSON, Returns: task.EncodingPickle, ArgsSize: 5, CreatedAt: at,
		NotBefore: at.Add(time.Second), Status: task.Failed, Losses: 1, Failures: 2, Lapses: 3, LastClaim: task.ID{9},
		Attempts: []task.Attempt{
			{Number: 1, Worker: "w", StartedAt: at, FinishedAt: at.Add(1), End: task.EndRaised, Reason: "r"},
			{Number: 2, Worker: "v", StartedAt: at.Add(time.Second)},
		},
		AttemptCount: 2, ResultSize: 8, ResultEncoding: task.EncodingJSON, ResultRepr: "repr", FinishedAt: at.Add(time.Minute),
		Failure: &task.Failure{
			Class: task.ClassFunction, Type: "T", Message: "m", Traceback: "t", Worker: "w", Pickle: []byte{1}, ForeignPickle: []byte{2, 0},
		},
	}
}

// wholeHead is a whole head for a task of that place.
func wholeHead(t *task.Task, place, epoch uint64) string {
	b := frontOfHead([]byte("birthday"))
	var number [8]byte
	put := func(v uint64) {
		for i, c := 0, double(int64(v)); i < 8; i++ {
			number[i] = byte(c >> (56 - 8*i))
		}
	}
	put(place)
	b = append(b, number[:]...)
	b = append(b, backOfHead(t, "key", "writer:3")...)
	put(epoch)
	copy(b[atEpoch:], number[:])
	return string(b)
}

func TestRecordKeepsEverything(t *testing.T) {
	in := fullTask()
	in.Seq, in.Epoch = 12345, 6
	rec, err := assemble(in.ID, wholeHead(in, 2<<placeBits+12345, 6), string(encodeSpec(in)), string(encodeState(in)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(rec.Task, in) {
		t.Errorf("read  %+v\nwrote %+v", rec.Task, in)
	}
	want := head{
		birth: [8]byte([]byte("birthday")), place: 2<<placeBits + 12345, epoch: 6, deadline: micros(in.Deadline), argsSize: 5,
		lane: laneOf("q", "go/x"), request: "key", argsIn: "writer:3",
	}
	if rec.head != want {
		t.Errorf("head %+v, want %+v", rec.head, want)
	}
}

// A fresh task has no state, and reads as queued.
func TestFreshRecord(t *testing.T) {
	in := sampleTask(nil)
	in.Status = task.Queued
	if b := encodeState(in); b != nil {
		t.Errorf("a fresh task has the state %x", b)
	}
	rec, err := assemble(in.ID, wholeHead(in, 0, 0), string(encodeSpec(in)), "")
	if err != nil || !reflect.DeepEqual(rec.Task, in) {
		t.Errorf("read %+v, %v; want %+v", rec, err, in)
	}
}

func TestFunctionRecord(t *testing.T) {
	plain := task.Function{ID: task.ID{1}, Name: "a\x00b", Queue: "q", Runtime: "python", Form: task.FormPickle, Hash: [32]byte{4}, Size: 9, CreatedAt: time.Unix(5, 6).UTC()}
	for _, change := range []func(*task.Function){
		func(*task.Function) {},
		func(f *task.Function) { f.Python = "3.12" },
		func(f *task.Function) { f.CreatedBy = "0123456789abcdef" },
		func(f *task.Function) { f.Python, f.CreatedBy = "3.12", "0123456789abcdef" },
		func(f *task.Function) { f.Transient = true },
	} {
		in := plain
		change(&in)
		for _, key := range []string{"", "request"} {
			if got, gotKey, err := decodeFunction(in.ID, string(encodeFunction(&in, key))); err != nil || got != in || gotKey != key {
				t.Errorf("read %+v, %q, %v; wrote %+v, %q", got, gotKey, err, in, key)
			}
		}
	}
}

// Texts that were added to the end of a record over time: each is found in its place,
// whichever of them are empty, and without any of them a record is the bytes that it was
// before there were any.
func TestTextsAddedLater(t *testing.T) {
	for _, in := range [][3]string{{}, {"a"}, {"", "b"}, {"", "", "c"}, {"a", "", "c"}, {"a", "b", "c"}} {
		w := newWriter(16)
		w.int(5)
		before := len(w.b)
		w.last(in[:]...)
		if in == [3]string{} && len(w.b) != before {
			t.Errorf("nothing was added, and %d bytes are written", len(w.b)-before)
		}
		r := newReader(string(w.b))
		n := r.int()
		if got := [3]string{r.last(), r.last(), r.last()}; got != in || n != 5 || r.err != nil {
			t.Errorf("read %q, %v; wrote %q", got, r.err, in)
		}
	}
}

// Records of builds before owners were recorded, byte by byte as those wrote them: with
// and without the text that was the last one then.
func TestRecordsOfOlderBuilds(t *testing.T) {
	in := sampleTask(nil)
	in.Status = task.Queued
	for python, tail := range map[string]string{"": "", "3.12": "\x043.12"} {
		in.Python = ""
		old := string(encodeSpec(in)) + tail
		got := &task.Task{ID: in.ID, Status: task.Queued}
		if err := decodeSpec(old, got); err != nil {
			t.Fatal(err)
		}
		if in.Python = python; !reflect.DeepEqual(got, in) {
			t.Errorf("read  %+v\nwrote %+v", got, in)
		}
		if now := string(encodeSpec(in)); now != old {
			t.Errorf("without an owner the record is\n%q, was\n%q", now, old)
		}
	}
	f, _, err := decodeFunction(task.ID{1}, "\x01\x01f\x01q\x06python\x06pickle"+strings.Repeat("\x04", 32)+"\x12\x0c\x06\x043.12")
	if err != nil || f.Name != "f" || f.Size != 9 || f.Python != "3.12" || f.CreatedBy != "" || !f.CreatedAt.Equal(time.Unix(5, 6)) {
		t.Errorf("read %+v, %v", f, err)
	}
}

// Times keep their nanoseconds, and zero stays zero; what is due is never due early.
func TestTimes(t *testing.T) {
	for _, at := range []time.Time{{}, time.Unix(0, 0).UTC(), time.Unix(-1, 5).UTC(), time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), time.Unix(1, 1).UTC()} {
		w := newWriter(16)
		w.time(at)
		r := newReader(string(w.b))
		if got := r.time(); !got.Equal(at) || r.err != nil {
			t.Errorf("%s reads as %s, %v", at, got, r.err)
		}
	}
	if got := micros(time.Unix(1, 1)); got != 1_000_001 {
		t.Errorf("one nanosecond past the second is due at %d", got)
	}
}

func TestSignals(t *testing.T) {
	from := randomID()
	in := []store.Signal{{Kind: store.Ready, Queue: "q", Runtime: "r"}, {Kind: store.Done, Task: newID()},
		{Kind: store.Revoked, Task: newID(), Claim: randomID()}, {Kind: store.Wanted, Queue: "", Runtime: "x", From: randomID(), Count: -1}}
	gotFrom, got, err := decodeSignals(string(encodeSignals(from, in)))
	if err != nil || gotFrom != from || !reflect.DeepEqual(got, in) {
		t.Errorf("heard %+v from %s, %v", got, gotFrom, err)
	}
}

// Whatever stands in Redis, reading it ends with a record or an error, and what is read
// is written the same way again.
func FuzzRecord(f *testing.F) {
	in := fullTask()
	f.Add(wholeHead(in, 7, 1), string(encodeSpec(in)), string(encodeState(in)))
	held := []byte(wholeHead(in, 7, 1))
	held[atClaim] = 1
	f.Add(string(held), string(encodeSpec(in)), "")
	f.Fuzz(func(t *testing.T, h, spec, state string) {
		rec, err := assemble(task.ID{1}, h, spec, state)
		if err != nil || rec.Lease != nil {
			return
		}
		again, err := assemble(task.ID{1}, h, string(encodeSpec(rec.Task)), string(encodeState(rec.Task)))
		if err != nil || !reflect.DeepEqual(again.Task, rec.Task) {
			t.Errorf("read %+v, then %+v, %v", rec.Task, again, err)
		}
	})
}

func FuzzSignals(f *testing.F) {
	f.Add(string(encodeSignals(task.ID{1}, []store.Signal{{Kind: store.Done, Task: task.ID{2}}})))
	f.Fuzz(func(t *testing.T, b string) {
		if _, signals, err := decodeSignals(b); err == nil && len(signals) > maxMessage {
			t.Errorf("%d signals", len(signals))
		}
	})
}
