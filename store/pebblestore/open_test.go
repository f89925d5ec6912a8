package pebblestore

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

func submitOne(t *testing.T, f *fixture, change ...func(*task.Task)) task.ID {
	t.Helper()
	tk := sampleTask([]byte("args"))
	for _, c := range change {
		c(tk)
	}
	got, err := f.s.Submit(context.Background(), f.clock.Now(), []store.Submission{{Task: tk, Args: []byte("args")}})
	if err != nil || got[0].Err != nil {
		t.Fatal(got, err)
	}
	return tk.ID
}

func claimOne(t *testing.T, f *fixture) store.Claimed {
	t.Helper()
	now := f.clock.Now()
	got, err := f.s.Claim(context.Background(), now, []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
		Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(10 * time.Second)}})
	if err != nil || len(got[0]) != 1 {
		t.Fatal(got, err)
	}
	return got[0][0]
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"no folder":          {},
		"unknown durability": {Dir: "x", Durability: "replicated"},
		"negative retention": {Dir: "x", Retention: -1},
		"negative lease":     {Dir: "x", Lease: -1},
	} {
		if _, err := Open(context.Background(), o); task.CodeOf(err) != task.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenTwice(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.Dir = t.TempDir() })
	_, err := Open(context.Background(), f.opts)
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), f.opts.Dir) ||
		!strings.Contains(err.Error(), "another treadle process holds it") {
		t.Fatalf("the second opener is told: %v", err)
	}
	submitOne(t, f)
}

func TestOpenUnwritable(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), Options{Dir: filepath.Join(file, "store"), Logger: quiet})
	if task.CodeOf(err) != task.CodeUnavailable || strings.Contains(err.Error(), "another treadle") || !strings.Contains(err.Error(), file) {
		t.Fatalf("a folder that cannot be made: %v", err)
	}
}

// put writes a raw key into a closed store.
func put(t *testing.T, f *fixture, key, value []byte) {
	t.Helper()
	if err := f.s.db.Set(key, value, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenNewerFormat(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	put(t, f, keyFormat, []byte{formatVersion + 1})
	_, err := Open(context.Background(), f.opts)
	if task.CodeOf(err) != task.CodeInvalid || !strings.Contains(err.Error(), "newer treadle") {
		t.Fatalf("a newer format: %v", err)
	}
}

func TestOpenDamagedRecord(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	id := submitOne(t, f)
	put(t, f, idKey(spaceLive, id), []byte{0xde, 0xff})
	_, err := Open(context.Background(), f.opts)
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), id.String()) {
		t.Fatalf("a damaged record: %v", err)
	}
}

// TestLapseAfterReopen: whether the attempt of a lease found at open was started is
// not written, so its loss counts; one whose worker came back with it unstarted lapses.
func TestLapseAfterReopen(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	lost, lapsed := submitOne(t, f), submitOne(t, f)
	claimOne(t, f)
	c := claimOne(t, f)
	f.reopen(t)
	now := f.clock.Now()
	if _, err := f.s.Renew(context.Background(), now, []store.Renewal{{Token: c.Token, Until: now.Add(time.Second)}}); err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(11 * time.Second)
	if _, err := f.s.Reap(context.Background(), f.clock.Now(), 10); err != nil {
		t.Fatal(err)
	}
	got, err := f.s.Tasks(context.Background(), []task.ID{lost, lapsed})
	if err != nil || got[0].Losses != 1 || got[0].Lapses != 0 || got[1].Losses != 0 || got[1].Lapses != 1 {
		t.Fatalf("lost %+v, lapsed %+v, %v", got[0], got[1], err)
	}
}

func TestLittleSpace(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	f := newFixture(t, func(o *Options) { o.FS = fs })
	submitOne(t, f)
	free := func(n uint64) {
		fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: 1 << 40, UsedBytes: 1})
		f.s.space.mu.Lock()
		f.s.space.checked = time.Time{}
		f.s.space.mu.Unlock()
	}
	free(10 << 20)
	ctx := context.Background()
	tk := sampleTask(nil)
	_, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: tk}})
	if task.CodeOf(err) != task.CodeExhausted || !strings.Contains(err.Error(), "10 MiB free") {
		t.Fatalf("submit on a full disk: %v", err)
	}
	_, err = f.s.PutFunction(ctx, task.Function{ID: newID(), Name: "f"}, nil, store.Key{})
	if task.CodeOf(err) != task.CodeExhausted {
		t.Fatalf("put function on a full disk: %v", err)
	}
	// What is there goes on.
	c := claimOne(t, f)
	if v, err := f.s.Settle(ctx, f.clock.Now(), []store.Settlement{{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded}}}); err != nil ||
		v[0] != task.VerdictRecorded {
		t.Fatal(v, err)
	}
	free(10 << 30)
	submitOne(t, f)
}

// TestFailedSync: when the log cannot be synced, the caller is not told that its
// change counts, nobody sees it, and the store answers Unavailable from then on.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	disk := vfs.NewCrashableMem()
	toggle := &errorfs.Toggle{Injector: errorfs.ErrInjected.If(errorfs.And(errorfs.Writes, errorfs.PathMatch("store/*.log")))}
	f := newFixture(t, func(o *Options) { o.FS = errorfs.Wrap(disk, toggle) })
	ctx := context.Background()
	kept := submitOne(t, f)
	toggle.On()
	tk := sampleTask(nil)
	_, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: tk}})
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "injected error") {
		t.Fatalf("a submit that could not be synced: %v", err)
	}
	select {
	case <-f.s.Failed():
	default:
		t.Fatal("the store does not say that it broke")
	}
	if f.s.Err() == nil {
		t.Fatal("the store does not say why it broke")
	}
	toggle.Off()
	if _, err := f.s.Task(ctx, tk.ID); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("a read of a broken store: %v", err)
	}
	if _, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: sampleTask(nil)}}); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("a write to a broken store: %v", err)
	}
	if err := f.s.Close(); task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("close of a broken store: %v", err)
	}
	f.opts.FS = disk.CrashClone(vfs.CrashCloneCfg{})
	f.open(t)
	if _, err := f.s.Task(ctx, kept); err != nil {
		t.Fatal(err)
	}
	if _, err := f.s.Task(ctx, tk.ID); task.CodeOf(err) != task.CodeNotFound {
		t.Fatalf("what was refused is there: %v", err)
	}
}

// TestFullDisk: the write that finds no room gets that of the ballast, and nothing
// that was acknowledged is lost.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := vfs.NewCrashableMem()
	var full, failed atomic.Bool
	noSpace := errorfs.InjectorFunc(func(op errorfs.Op) error {
		// The disk stays full until something is removed.
		switch {
		case op.Kind == errorfs.OpRemove && strings.HasSuffix(op.Path, ballastName):
			full.Store(false)
		case full.Load() && op.Kind == errorfs.OpFileWrite:
			failed.Store(true)
			return syscall.ENOSPC
		}
		return nil
	})
	f := newFixture(t, func(o *Options) { o.FS = errorfs.Wrap(disk, noSpace) })
	if _, err := disk.Stat("store/" + ballastName); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	id := submitOne(t, f)
	if !failed.Load() || f.s.Err() != nil {
		t.Fatalf("the disk was never full, or the store broke: %v", f.s.Err())
	}
	if _, err := disk.Stat("store/" + ballastName); err == nil {
		t.Fatal("the ballast is still there")
	}
	f.opts.FS = disk.CrashClone(vfs.CrashCloneCfg{})
	old := f.s
	f.open(t)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.s.Task(context.Background(), id); err != nil {
		t.Fatal(err)
	}
}
