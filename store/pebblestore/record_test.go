package pebblestore

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// fill sets every field of a struct to something other than zero, so that a field
// that the encoder does not know of cannot hide.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(*n), 123_456_789+int64(*n)).UTC()))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.String:
		v.SetString(fmt.Sprint("text ", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n) * 1000)
	case reflect.Uint64:
		v.SetUint(1<<63 + uint64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n%255 + 1))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			fill(v.Index(i), n)
		}
	default:
		panic("the test does not know " + v.Kind().String())
	}
}

func fullRecord(status task.Status) record {
	t, n := new(task.Task), 0
	fill(reflect.ValueOf(t).Elem(), &n)
	t.Status, t.Priority = status, 7
	if status.Terminal() {
		t.Lease = nil
	}
	return record{task: t, key: "key", logs: []int{1, 2, 300}, args: []byte("args"), result: []byte("result")}
}

func TestRecordKeepsEveryField(t *testing.T) {
	t.Parallel()
	for _, status := range []task.Status{task.Queued, task.Running, task.Completed, task.Failed, task.Cancelled} {
		want := fullRecord(status)
		space := byte(spaceLive)
		if status.Terminal() {
			space = spaceFinished
		}
		got, err := decodeRecord(space, want.task.ID, appendRecord(nil, &want))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("read back\n%+v\n%+v\nwant\n%+v\n%+v", got, got.task, want, want.task)
		}
	}
}

func TestRecordZeroFieldsStayZero(t *testing.T) {
	t.Parallel()
	want := record{task: &task.Task{ID: task.ID{1}, Status: task.Queued}}
	got, err := decodeRecord(spaceLive, want.task.ID, appendRecord(nil, &want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got.task, err)
	}
}

func TestRecordOfANewerBuild(t *testing.T) {
	t.Parallel()
	want := record{task: &task.Task{ID: task.ID{1}, Status: task.Queued, Queue: "q"}}
	m := openMap(nil)
	m.tag(1000)
	m.b = append(m.b, 0x82, 0xa1, 'a', 0x93, 1, 2, 3, 0xa1, 'b', 0xcb, 0, 0, 0, 0, 0, 0, 0, 0)
	m.text(fQueue, "q")
	m.tag(1001)
	m.b = appendTime(m.b, time.Unix(-1, 0))
	m.text(fStatus, "QUEUED")
	got, err := decodeRecord(spaceLive, want.task.ID, m.done())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got.task, err)
	}
}

func TestTimesOfAnyYear(t *testing.T) {
	t.Parallel()
	for _, want := range []time.Time{
		time.Unix(0, 1).UTC(), time.Date(2500, 1, 1, 0, 0, 0, 999_999_999, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
		time.Date(1, 1, 2, 0, 0, 0, 5, time.UTC),
	} {
		r := &reader{b: appendTime(nil, want)}
		if got := r.time(); r.err != nil || got != want || len(r.b) != 0 {
			t.Errorf("%s read back as %s, %v", want, got, r.err)
		}
	}
}

func TestNumbersOfAnySize(t *testing.T) {
	t.Parallel()
	for shift := range 63 {
		for _, want := range []int64{1 << shift, 1<<shift - 1, -1 << shift, -(1 << shift) + 1} {
			r := &reader{b: appendInt(nil, want)}
			if got := r.int(); r.err != nil || got != want || len(r.b) != 0 {
				t.Errorf("%d read back as %d, %v", want, got, r.err)
			}
		}
	}
	for _, want := range []uint64{0, 127, 128, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, 1<<64 - 1} {
		r := &reader{b: appendUint(nil, want)}
		if got := r.uint(); r.err != nil || got != want || len(r.b) != 0 {
			t.Errorf("%d read back as %d, %v", want, got, r.err)
		}
	}
}

// TestTruncatedRecord cuts a record at every byte: it must be refused, by a message
// that names the key.
func TestTruncatedRecord(t *testing.T) {
	t.Parallel()
	rec := fullRecord(task.Failed)
	b := appendRecord(nil, &rec)
	for n := range b {
		if _, err := decodeRecord(spaceFinished, rec.task.ID, b[:n]); err == nil || !strings.Contains(err.Error(), rec.task.ID.String()) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
	}
	if _, err := decodeRecord(spaceFinished, rec.task.ID, append(b, 0)); err == nil {
		t.Fatal("a byte too many was accepted")
	}
	if _, err := decodeRecord(spaceLive, rec.task.ID, b); err == nil {
		t.Fatal("a finished record was accepted among the unfinished ones")
	}
}

// FuzzRecord: whatever the bytes are, the decoder answers with a record that it can
// encode again or with an error that names the key, and never panics.
func FuzzRecord(f *testing.F) {
	for _, s := range []task.Status{task.Queued, task.Running, task.Failed} {
		rec := fullRecord(s)
		f.Add(appendRecord(nil, &rec))
	}
	f.Add([]byte{0xde, 0xff, 0xff, 0xcd})
	f.Add([]byte{0x81, 0x7f, 0xdd, 0xff, 0xff, 0xff, 0xff})
	id := task.ID{1, 2, 3}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, space := range []byte{spaceLive, spaceFinished} {
			rec, err := decodeRecord(space, id, b)
			if err != nil {
				if !strings.Contains(err.Error(), id.String()) {
					t.Fatalf("the error does not name the key: %v", err)
				}
				continue
			}
			first := appendRecord(nil, &rec)
			again, err := decodeRecord(space, id, first)
			if err != nil {
				t.Fatalf("encoded again: %v", err)
			}
			if second := appendRecord(nil, &again); !bytes.Equal(first, second) {
				t.Fatalf("unstable:\n%x\n%x", first, second)
			}
		}
		if _, err := decodeFunction(id, b); err != nil && !strings.Contains(err.Error(), id.String()) {
			t.Fatal(err)
		}
		if _, err := decodeRetained([]byte("x-key"), b); err != nil && !strings.Contains(err.Error(), "x-key") {
			t.Fatal(err)
		}
	})
}
