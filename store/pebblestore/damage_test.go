package pebblestore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// acknowledged fills a store and returns the tasks in the order of their answers.
type acknowledged func(t *testing.T, f *fixture) []task.ID

func inBatches(batches, size int) acknowledged {
	return func(t *testing.T, f *fixture) (ids []task.ID) {
		for range batches {
			items := make([]store.Submission, size)
			for i := range items {
				items[i] = store.Submission{Task: sampleTask([]byte("args")), Args: []byte("args")}
				ids = append(ids, items[i].Task.ID)
			}
			if _, err := f.s.Submit(context.Background(), f.clock.Now(), items); err != nil {
				t.Fatal(err)
			}
		}
		return ids
	}
}

// awaitMark waits until everything that was answered is in the mark.
func awaitMark(t *testing.T, f *fixture) {
	t.Helper()
	f.s.mu.Lock()
	want := f.s.commits
	f.s.mu.Unlock()
	deadline := time.After(20 * time.Second)
	for ticker := time.NewTicker(5 * time.Millisecond); ; {
		got, _, err := readMark(f.opts.FS, f.opts.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("the mark says %d commits, want %d", got, want)
		}
	}
}

func newestLog(t *testing.T, fs vfs.FS) string {
	t.Helper()
	s := Store{opts: Options{FS: fs, Dir: "store"}}
	logs, err := s.logFiles()
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	return "store/" + logs[len(logs)-1]
}

func fileBytes(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(b)); err != nil { // a file may change what it is given
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// damages are what a disk does to a log, by name.
func damages() map[string]func(t *testing.T, fs vfs.FS, log string) {
	out := map[string]func(t *testing.T, fs vfs.FS, log string){
		"emptied": func(t *testing.T, fs vfs.FS, log string) { t.Helper(); writeFile(t, fs, log, nil) },
		"deleted": func(t *testing.T, fs vfs.FS, log string) {
			t.Helper()
			if err := fs.Remove(log); err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, percent := range []int{0, 10, 25, 30, 50, 90, 97} {
		out[fmt.Sprintf("a bit at %d %%", percent)] = func(t *testing.T, fs vfs.FS, log string) {
			t.Helper()
			b := fileBytes(t, fs, log)
			b[len(b)*percent/100] ^= 0x10
			writeFile(t, fs, log, b)
		}
		out[fmt.Sprintf("cut at %d %%", percent)] = func(t *testing.T, fs vfs.FS, log string) {
			t.Helper()
			b := fileBytes(t, fs, log)
			writeFile(t, fs, log, b[:len(b)*percent/100])
		}
	}
	return out
}

// TestDamageIsNeverSilent: whatever happens to the newest log after a SIGKILL, the store
// is refused or whole; on request it opens with what precedes the damage, says so, and
// keeps a copy.
func TestDamageIsNeverSilent(t *testing.T) {
	t.Parallel()
	for name, fill := range map[string]acknowledged{
		"single tasks": inBatches(300, 1),
		"batches":      inBatches(100, 20),
		"one large batch, then few": func(t *testing.T, f *fixture) []task.ID {
			return append(inBatches(1, 2000)(t, f), inBatches(3, 5)(t, f)...)
		},
	} {
		for _, reopened := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reopened %v", name, reopened), func(t *testing.T) {
				t.Parallel()
				mem := vfs.NewCrashableMem()
				f := newFixture(t, func(o *Options) { o.FS = mem; o.MinFree = -1 })
				if reopened {
					inBatches(3, 1)(t, f)
					f.reopen(t)
				}
				ids := fill(t, f)
				awaitMark(t, f)
				for what, damage := range damages() {
					disk := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
					damage(t, disk, newestLog(t, disk))
					openDamaged(t, what, disk, f.opts, ids)
				}
			})
		}
	}
}

func openDamaged(t *testing.T, what string, disk *vfs.MemFS, opts Options, ids []task.ID) {
	t.Helper()
	log := &lockedLog{}
	opts.FS, opts.Logger = disk, slog.New(slog.NewTextHandler(log, nil))
	s, err := Open(context.Background(), opts)
	if err == nil {
		if n := thereOf(t, s, ids); n != len(ids) {
			t.Errorf("%s: opened with %d of %d tasks without a word", what, n, len(ids))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "--open-damaged") {
		t.Errorf("%s: refused without a remedy: %v", what, err)
	}
	opts.OpenDamaged = true
	s, err = Open(context.Background(), opts)
	if err != nil {
		t.Errorf("%s: not to be opened on request: %v", what, err)
		return
	}
	if log.count("opening a damaged store on request") != 1 {
		t.Errorf("%s: the log does not tell of the request", what)
	}
	n := thereOf(t, s, ids)
	for _, id := range ids[n:] {
		if _, err := s.Task(context.Background(), id); err == nil {
			t.Errorf("%s: what is left is not what precedes the damage", what)
			break
		}
	}
	if err := s.CheckInvariants(context.Background()); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	opts.OpenDamaged = false
	if s, err = Open(context.Background(), opts); err != nil {
		t.Errorf("%s: refused again after it was opened on request: %v", what, err)
	} else if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// thereOf counts the tasks that are there, up to the first that is not.
func thereOf(t *testing.T, s *Store, ids []task.ID) int {
	t.Helper()
	for i, id := range ids {
		if _, err := s.Task(context.Background(), id); task.CodeOf(err) == task.CodeNotFound {
			return i
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return len(ids)
}

// TestMarkTorn: a mark that was torn while it was written leaves the one before it.
func TestMarkTorn(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	b := make([]byte, markSlot+markSize)
	copy(b, appendMark(nil, 7))
	copy(b[markSlot:], appendMark(nil, 8))
	for cut, want := range map[int]uint64{len(b): 8, len(b) - 1: 7, markSlot: 7, markSize: 7} {
		writeFile(t, fs, markName, b[:cut])
		if got, ok, err := readMark(fs, ""); err != nil || !ok || got != want {
			t.Errorf("%d bytes: %d, %v, %v, want %d", cut, got, ok, err, want)
		}
	}
	b[3] ^= 1
	b[markSlot+9] ^= 1
	writeFile(t, fs, markName, b)
	if _, ok, err := readMark(fs, ""); ok || err != nil {
		t.Errorf("two damaged marks: %v, %v", ok, err)
	}
}

// TestFormatOneIsRead: a store of the format before commits were counted opens, and is
// of this format then.
func TestFormatOneIsRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	id := submitOne(t, f)
	row, err := f.s.readClock()
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, keyFormat, []byte{1}) // closes the store
	f.open(t)
	put(t, f, keyClock, row.append(nil)[:16])
	if err := f.opts.FS.Remove("store/" + markName); err != nil {
		t.Fatal(err)
	}
	f.open(t)
	if _, err := f.s.Task(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	submitOne(t, f)
	f.reopen(t)
	if v, err := f.s.read(keyFormat); err != nil || len(v) != 1 || v[0] != formatVersion {
		t.Fatalf("format %v, %v", v, err)
	}
}
