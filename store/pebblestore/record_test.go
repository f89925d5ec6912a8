package pebblestore

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
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

// claimedRecord is a record as it stands on disk with a claim behind it, and what that says.
func claimedRecord() (b []byte, at int, want record) {
	n := 0
	rec := record{task: new(task.Task), key: "key", logs: []int{1}, args: []byte("args")}
	fill(reflect.ValueOf(rec.task).Elem(), &n)
	rec.task.Status, rec.task.Priority, rec.task.Lease = task.Queued, 7, nil
	b = appendRecord(nil, &rec)
	at = len(b)
	rec.task.Epoch++
	rec.task.Lease = &task.Lease{Claim: task.ID{1}, Session: task.ID{2}, Worker: "worker", Local: true,
		ClaimedAt: time.Unix(1_800_000_000, 1).UTC(), Until: time.Unix(1_800_000_010, 2).UTC()}
	return appendClaim(b, rec.task), at, rec
}

func TestClaimBehindItsRecord(t *testing.T) {
	t.Parallel()
	b, at, want := claimedRecord()
	id := want.task.ID
	got, err := decodeRecord(spaceLive, id, b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %+v, %v, want %+v %+v", got, got.task, err, want, want.task)
	}
	claim := b[at:]
	newer := append([]byte{0x99}, claim[1:]...)
	newer = append(newer, 0x81, 1, 0xa1, 'a', 0xc0)
	if got, err := decodeRecord(spaceLive, id, append(bytes.Clone(b[:at]), newer...)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("a claim with more fields: %+v, %v", got.task, err)
	}
	refused := map[string][]byte{
		"a claim without its record": claim,
		"two claims":                 append(bytes.Clone(b), claim...),
		"another record":             append(bytes.Clone(b[:at]), b[:at]...),
		"a claim of too few fields":  append(bytes.Clone(b[:at]), 0x91, 9),
	}
	for n := at + 1; n < len(b); n++ {
		refused[fmt.Sprintf("cut at %d of %d", n, len(b))] = b[:n]
	}
	rec := want
	rec.task = want.task.Clone()
	rec.task.Epoch += 2
	rec.task.Lease = nil
	refused["a claim of an epoch that was over"] = append(appendRecord(nil, &rec), claim...)
	for what, b := range refused {
		if _, err := decodeRecord(spaceLive, id, b); err == nil || !strings.Contains(err.Error(), id.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	rec.task.Status = task.Completed
	if _, err := decodeRecord(spaceFinished, id, append(appendRecord(nil, &rec), claim...)); err == nil {
		t.Error("a finished record was accepted with a claim behind it")
	}
}

// TestWordsKeepTheirNumbers: the numbers are on disk.
func TestWordsKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	want := []string{
		"", "QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "pickle", "source", "none", "json", "default", "python", "go",
		"succeeded", "raised", "lost", "lapsed", "returned", "timed_out", "exhausted", "unreadable", "cancelled",
	}
	if !slices.Equal(words[:], want) {
		t.Errorf("the words are %q, want %q", words, want)
	}
	if len(words) > 128 {
		t.Errorf("%d words, a number of one byte names 128", len(words))
	}
	for _, w := range append(want, "another") {
		r := &reader{b: appendWord(nil, w)}
		if got := r.word(); got != w || r.err != nil || len(r.b) != 0 {
			t.Errorf("%q read back as %q, %v", w, got, r.err)
		}
	}
	if r := (&reader{b: []byte{byte(len(words))}}); r.word() != "" || r.err == nil {
		t.Error("a word without a text was read")
	}
}

func TestNamesAreReadBackAsWritten(t *testing.T) {
	t.Parallel()
	const id = "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"
	for name, size := range map[string]int{
		id: 18, "": 1, "worker": 7, strings.ToUpper(id): 38, id[:35]: 37, id + "0": 39, id[:35] + "g": 38, id[:35] + "\x00": 38,
		strings.ReplaceAll(id, "-", "_"): 38, "0197c3a25-e1c-7cc1-9d1a-3f6b0f9d2c11": 38, "{197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c1}": 38,
		strings.Repeat("ü", 18): 38,
	} {
		b := appendName(nil, name)
		r := &reader{b: b}
		if got := r.name(); got != name || r.err != nil || len(r.b) != 0 || len(b) != size {
			t.Errorf("%q read back as %q of %d bytes, want %d; %v", name, got, len(b), size, r.err)
		}
	}
}

func TestTimesSinceAnother(t *testing.T) {
	t.Parallel()
	times := []time.Time{
		{}, time.Unix(0, 0).UTC(), time.Unix(1_800_000_000, 5).UTC(), time.Unix(1_800_000_000, 6).UTC(), time.Unix(1_800_000_003, 0).UTC(),
		time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	for _, base := range times {
		for _, want := range times {
			m := openSmallMap(nil)
			m.since(1, want, base)
			r, got := &reader{b: m.done()}, time.Time{}
			r.eachField(func(int) bool { got = r.since(base); return true })
			if got != want || r.err != nil || len(r.b) != 0 {
				t.Errorf("%s since %s read back as %s, %v", want, base, got, r.err)
			}
		}
	}
}

// FuzzRecord: whatever the bytes are, the decoder answers with a record that it can
// encode again or with an error that names the key, and never panics.
func FuzzRecord(f *testing.F) {
	for _, s := range []task.Status{task.Queued, task.Running, task.Failed} {
		rec := fullRecord(s)
		f.Add(appendRecord(nil, &rec))
	}
	claimed, _, _ := claimedRecord()
	f.Add(claimed)
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
