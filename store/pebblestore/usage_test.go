package pebblestore

import (
	"reflect"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// A build that does not count results may have removed some: the next one that does reads
// them all once, and from then on trusts what is written again.
func TestUsageAfterAnotherBuild(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	ctx := t.Context()
	for range 3 {
		tk := &task.Task{ID: newID(), Queue: "default", Runtime: task.RuntimePython, CreatedBy: "owner"}
		if _, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: tk}}); err != nil {
			t.Fatal(err)
		}
		got, err := f.s.Claim(ctx, f.clock.Now(), []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
			Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: 1, Until: f.clock.Now().Add(time.Minute)}})
		if err != nil || len(got[0]) != 1 {
			t.Fatalf("claimed %v, %v", got, err)
		}
		if _, err := f.s.Settle(ctx, f.clock.Now(), []store.Settlement{{Token: got[0][0].Token,
			Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1234567"), Encoding: task.EncodingJSON}}}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(bytes int64) {
		t.Helper()
		u, err := f.s.Usage(ctx, "owner")
		if err != nil || u.Bytes != bytes {
			t.Fatalf("the owner has %+v, %v, want %d bytes", u, err, bytes)
		}
		if err := f.s.CheckInvariants(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want(21)
	f.reopen(t)
	want(21)

	// What such a build does: the rows of one task go, time passes, and nothing is counted.
	b := f.s.db.NewBatch()
	if err := f.s.eachRow(ctx, spaceRetain, func(key, value []byte) error {
		row, err := decodeRetained(key, value)
		if err != nil || b.Count() > 0 {
			return err
		}
		for _, tk := range row {
			if err := b.Delete(idKey(spaceFinished, tk.id), nil); err != nil {
				return err
			}
		}
		return b.Delete(key, nil)
	}); err != nil {
		t.Fatal(err)
	}
	clock := clockRow{now: f.clock.Now().Add(time.Second), seq: 1000, commits: f.s.commits + 1}
	if err := b.Set(keyClock, clock.append(nil), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		t.Fatal(err)
	}
	f.reopen(t)
	want(14)
	f.reopen(t)
	want(14)
}

// Rows of builds before owners were recorded, byte by byte as those wrote them.
func TestRowsOfOlderBuilds(t *testing.T) {
	t.Parallel()
	rec, err := decodeRecord(spaceLive, task.ID{1}, []byte("\xde\x00\x06"+
		"\x02\xa6double"+"\x03\xa7default"+"\x04\xa6python"+"\x07\x05"+"\x13\xa6QUEUED"+"\x25\xa43.12"))
	want := &task.Task{ID: task.ID{1}, FunctionName: "double", Queue: "default", Runtime: "python", Spec: task.Spec{Priority: 5}, Status: task.Queued, Python: "3.12"}
	if err != nil || !reflect.DeepEqual(rec.task, want) {
		t.Errorf("read %+v, %v, want %+v", rec.task, err, want)
	}
	if now := appendRecord(nil, &record{task: want}); len(now) != 3+1+7+1+1+1+1+2+1+1+1+5 {
		t.Errorf("without an owner a record has %d bytes: %q", len(now), now)
	}
	f, err := decodeFunction(task.ID{1}, []byte("\xde\x00\x04"+"\x01\xa6double"+"\x02\xa7default"+"\x06\x09"+"\x08\xa43.12"))
	if err != nil || f.Function != (task.Function{ID: task.ID{1}, Name: "double", Queue: "default", Size: 9, Python: "3.12"}) {
		t.Errorf("read %+v, %v", f, err)
	}
	row, err := decodeRetained(nil, []byte("\x91\xde\x00\x02"+"\x01\xc4\x10\x01"+string(make([]byte, 15))+"\x02\xa3key"))
	if err != nil || !reflect.DeepEqual(row, []retained{{id: task.ID{1}, key: "key"}}) {
		t.Errorf("read %+v, %v", row, err)
	}
}
