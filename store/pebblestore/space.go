package pebblestore

import (
	"errors"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/task"
)

// freeSpace refuses new work on a disk that is nearly full. Pebble ends the process
// when it cannot write its log, so the refusal comes while there is still room for
// running work to be claimed and settled.
type freeSpace struct {
	mu      sync.Mutex
	checked time.Time
	free    uint64
	unknown bool
}

// spaceCheckEvery is how old an answer of the file system may be. It is wall time,
// as the disk knows no other.
const spaceCheckEvery = time.Second

func (f *freeSpace) check(s *Store, op string) error {
	if s.opts.MinFree < 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if since := time.Since(f.checked); since >= spaceCheckEvery || f.checked.IsZero() {
		usage, err := s.opts.FS.GetDiskUsage(s.opts.Dir)
		f.checked = time.Now()
		f.free, f.unknown = usage.AvailBytes, err != nil
		if err != nil && !errors.Is(err, vfs.ErrUnsupported) {
			s.log.Warn("the free disk space is unknown", "dir", s.opts.Dir, "error", err)
		}
	}
	if !f.unknown && f.free < uint64(s.opts.MinFree) {
		return task.Errorf(task.CodeExhausted, op,
			"the disk of %s has %d MiB free and %d MiB are kept for work that is running: free some space or lower the retention",
			s.opts.Dir, f.free>>20, s.opts.MinFree>>20)
	}
	return nil
}
