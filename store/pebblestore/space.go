package pebblestore

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/task"
)

// freeSpace keeps the store alive on a disk that fills up. Pebble cannot go on once
// its log cannot be written. So new work is refused while there is still room for
// running work to be claimed and settled; and where others fill the disk, a ballast
// file is given up for the write that found no room.
type freeSpace struct {
	mu      sync.Mutex
	checked time.Time
	free    uint64
	unknown bool

	// spent says that the ballast is gone.
	spent atomic.Bool
}

const (
	// spaceCheckEvery is how old an answer of the file system may be. It is wall time,
	// as the disk knows no other.
	spaceCheckEvery = time.Second
	ballastSize     = 16 << 20
	ballastName     = "ballast"
)

func (s *Store) ballastPath() string { return s.opts.FS.PathJoin(s.opts.Dir, ballastName) }

// guardedFS is the file system that Pebble gets: a write that finds the disk full is
// tried once more without the ballast.
func (s *Store) guardedFS() vfs.FS {
	if s.opts.Durability == Memory || s.opts.MinFree < 0 {
		return s.opts.FS
	}
	return vfs.OnDiskFull(s.opts.FS, func() {
		if s.space.spent.Swap(true) {
			return
		}
		err := s.opts.FS.Remove(s.ballastPath())
		s.log.Error("the disk is full: the ballast was given up, new work is refused until there is space", "dir", s.opts.Dir, "error", err)
	})
}

// layBallast reserves the space. Without it the store works as well, only without
// the second chance.
func (s *Store) layBallast() {
	if s.opts.Durability == Memory || s.opts.MinFree < 0 {
		return
	}
	if _, err := s.opts.FS.Stat(s.ballastPath()); err == nil {
		return
	}
	usage, err := s.opts.FS.GetDiskUsage(s.opts.Dir)
	if err == nil && usage.AvailBytes < uint64(s.opts.MinFree)+ballastSize {
		s.space.spent.Store(true)
		return
	}
	f, err := s.opts.FS.Create(s.ballastPath(), vfs.WriteCategoryUnspecified)
	if err == nil {
		err = errors.Join(f.Preallocate(0, ballastSize), f.Sync(), f.Close())
	}
	s.space.spent.Store(err != nil)
	if err != nil {
		s.log.Warn("no ballast file: the store ends if the disk fills up", "dir", s.opts.Dir, "error", err)
	}
}

// check answers CodeExhausted when new work must wait for space.
func (f *freeSpace) check(s *Store, op string) error {
	if s.opts.MinFree < 0 || s.opts.Durability == Memory {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.checked.IsZero() || time.Since(f.checked) >= spaceCheckEvery {
		usage, err := s.opts.FS.GetDiskUsage(s.opts.Dir)
		f.checked = time.Now()
		f.free, f.unknown = usage.AvailBytes, err != nil
		if err != nil && !errors.Is(err, vfs.ErrUnsupported) {
			s.log.Warn("the free disk space is unknown", "dir", s.opts.Dir, "error", err)
		}
		if f.spent.Load() {
			s.layBallast()
		}
	}
	if f.unknown || f.free >= uint64(s.opts.MinFree) {
		return nil
	}
	return task.Errorf(task.CodeExhausted, op,
		"the disk of %s has %d MiB free and %d MiB are kept for work that is running: free some space or lower the retention",
		s.opts.Dir, f.free>>20, s.opts.MinFree>>20)
}
