package pebblestore

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// TestWaitsForSpace: on a disk that stays full, what has to be written waits, reads go
// on, the log says so once, and with space everything goes on.
func TestWaitsForSpace(t *testing.T) {
	t.Parallel()
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpCreate} {
		t.Run(kind.ReadOrWrite().String()+" "+map[errorfs.OpKind]string{errorfs.OpFileWrite: "write", errorfs.OpCreate: "create"}[kind], func(t *testing.T) {
			t.Parallel()
			disk := vfs.NewCrashableMem()
			var full atomic.Bool
			refused := make(chan struct{}, 1)
			log := &lockedLog{}
			f := newFixture(t, func(o *Options) {
				o.Logger = slog.New(slog.NewTextHandler(log, nil))
				o.FS = errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if full.Load() && op.Kind == kind {
						select {
						case refused <- struct{}{}:
						default:
						}
						return syscall.ENOSPC
					}
					return nil
				}))
			})
			before := submitOne(t, f)
			full.Store(true)
			answered := make(chan error, 1)
			tk := sampleTask([]byte("args"))
			go func() {
				_, err := f.s.Submit(context.Background(), f.clock.Now(), []store.Submission{{Task: tk, Args: []byte("args")}})
				if err == nil && kind == errorfs.OpCreate {
					err = f.s.db.Flush() // makes a new log and a table
				}
				answered <- err
			}()
			for range 3 { // the ballast is given up, then it waits
				select {
				case <-refused:
				case err := <-answered:
					t.Fatalf("answered on a full disk: %v", err)
				case <-time.After(20 * time.Second):
					t.Fatal("the disk was not tried again")
				}
			}
			if _, err := f.s.Task(context.Background(), before); err != nil {
				t.Fatalf("a read while the disk is full: %v", err)
			}
			full.Store(false)
			select {
			case err := <-answered:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("nothing goes on with space on the disk")
			}
			if err := f.s.Err(); err != nil {
				t.Fatal(err)
			}
			if n := log.count("writes wait for space"); n < 1 || n > 2 {
				t.Errorf("the log tells of the wait %d times, want once for each writer", n)
			}
			f.opts.FS = disk.CrashClone(vfs.CrashCloneCfg{})
			old := f.s
			f.open(t)
			if err := old.Close(); err != nil {
				t.Error(err)
			}
			if _, err := f.s.Task(context.Background(), tk.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCloseOnFullDisk: a store that waits for space can be closed.
func TestCloseOnFullDisk(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	refused := make(chan struct{}, 1)
	f := newFixture(t, func(o *Options) {
		o.FS = errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpFileWrite {
				select {
				case refused <- struct{}{}:
				default:
				}
				return syscall.ENOSPC
			}
			return nil
		}))
	})
	full.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: sampleTask(nil)}})
		answered <- err
	}()
	<-refused
	<-refused
	cancel()
	if err := <-answered; task.CodeOf(err) != task.CodeUnavailable {
		t.Fatalf("a call that was given up: %v", err)
	}
	if err := f.s.Close(); task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "no space") {
		t.Fatalf("close: %v", err)
	}
}

// TestRefusesBeforeFull fills real, small disks with values of several sizes: the store
// refuses in time, goes on with what runs, and is whole after a restart.
func TestRefusesBeforeFull(t *testing.T) {
	for _, size := range []int{10, 100 << 10, 900 << 10, 8 << 20} {
		for _, disk := range []int64{128 << 20, 220 << 20, 400 << 20} {
			if size == 10 && disk > 128<<20 {
				continue // a hundred thousand small tasks say what ten thousand say
			}
			fillDisk(t, size, disk)
		}
	}
}

// TestStartOnFullDisk: a store that is opened while its disk is full says so, rests, and
// opens when there is space.
func TestStartOnFullDisk(t *testing.T) {
	dir := smallDisk(t, 96<<20)
	log := &lockedLog{}
	opts := Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(log, nil)), MinFree: 16 << 20}
	s, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	tk := sampleTask([]byte("args"))
	if _, err := s.Submit(context.Background(), time.Now(), []store.Submission{{Task: tk, Args: []byte("args")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/" + ballastName); err != nil { // it would be the way out
		t.Fatal(err)
	}
	hog := dir + "/../hog"
	f, err := os.Create(hog)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	for err = nil; err == nil; {
		_, err = f.Write([]byte{1})
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	var again *Store
	go func() {
		var err error
		again, err = Open(context.Background(), opts)
		opened <- err
	}()
	deadline := time.After(20 * time.Second)
	for ticker := time.NewTicker(20 * time.Millisecond); log.count("the disk is full") == 0; {
		select {
		case err := <-opened:
			t.Fatalf("opened on a full disk without a word: %v", err)
		case <-ticker.C:
		case <-deadline:
			t.Fatal("the log says nothing of the full disk")
		}
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-opened:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("not open though there is space")
	}
	if _, err := again.Task(context.Background(), tk.ID); err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func fillDisk(t *testing.T, size int, disk int64) {
	t.Helper()
	dir := smallDisk(t, disk)
	opts := Options{Dir: dir, Logger: quiet, MinFree: 64 << 20}
	s, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	args := make([]byte, size)
	if _, err := rand.Read(args); err != nil { // nothing that compresses
		t.Fatal(err)
	}
	batch := max(1, min(1000, (1<<20)/size))
	var ids []task.ID
	for {
		items := make([]store.Submission, batch)
		for i := range items {
			tk := sampleTask(args)
			items[i] = store.Submission{Task: tk, Args: args}
		}
		_, err := s.Submit(context.Background(), time.Now(), items)
		if task.CodeOf(err) == task.CodeExhausted {
			break
		}
		if err != nil {
			t.Fatalf("%d bytes on a disk of %d MiB, after %d tasks: %v", size, disk>>20, len(ids), err)
		}
		for _, it := range items {
			ids = append(ids, it.Task.ID)
		}
		if int64(len(ids)*size) > disk {
			t.Fatal("more was accepted than the disk has room for")
		}
	}
	free, err := vfs.Default.GetDiskUsage(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes on a disk of %d MiB: %d tasks, %d MiB free at the refusal", size, disk>>20, len(ids), free.AvailBytes>>20)
	if free.AvailBytes < 32<<20 {
		t.Errorf("refused with %d MiB free: too late", free.AvailBytes>>20)
	}
	if len(ids) == 0 && disk >= 400<<20 {
		t.Error("nothing was accepted on a disk with room")
	}
	// A refusal has the logs made smaller, which is room for more.
	s.space.flush.Wait()
	if n := s.space.unflushed.Load(); n >= flushWorth {
		t.Errorf("%d MiB are still to be flushed after the refusal", n>>20)
	}
	// What runs can end.
	now := time.Now()
	got, err := s.Claim(context.Background(), now, []store.ClaimRequest{{Claim: randomID(), Session: task.ID{1}, Worker: "w",
		Queues: []string{"default"}, Runtimes: []string{task.RuntimePython}, Max: 8, Until: now.Add(10 * time.Second)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got[0] {
		if _, err := s.Settle(context.Background(), time.Now(), []store.Settlement{{Token: c.Token,
			Outcome: task.Outcome{End: task.EndSucceeded, Result: args[:min(size, 1<<20)]}}}); err != nil {
			t.Fatalf("a result on a disk that is nearly full: %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(context.Background(), opts); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if _, err := s.Task(context.Background(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
