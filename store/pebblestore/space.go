package pebblestore

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/task"
)

// freeSpace keeps the store alive on a disk that fills up. New work is refused while
// there is still room for running work to be claimed and settled, and for what Pebble
// has taken on and not written yet. Where others fill the disk, a ballast file is given
// up for the write that found no room; after that, writes wait for space (patientFS).
type freeSpace struct {
	mu      sync.Mutex
	checked time.Time
	free    uint64
	unknown bool
	// pending are bytes that were admitted and that the disk does not show yet.
	pending int64

	// unflushed are bytes in logs that have to be written once more, as tables, before
	// the logs can go; flushing, those of them that are being written.
	unflushed, flushing atomic.Int64

	// spent says that the ballast is gone.
	spent atomic.Bool
	// flush has the one flush at a time that is asked for here, and who waits for it.
	flush     sync.WaitGroup
	flushAsks atomic.Bool
}

const (
	// spaceCheckEvery is how old an answer of the file system may be while the disk is
	// far from full. It is wall time, as the disk knows no other.
	spaceCheckEvery = time.Second
	// spaceNear is how much more than what is needed makes every submission look: asking
	// takes two microseconds.
	spaceNear   = 256 << 20
	ballastSize = 16 << 20
	ballastName = "ballast"
)

func (s *Store) ballastPath() string { return s.opts.FS.PathJoin(s.opts.Dir, ballastName) }

// guarded reports whether the disk is watched at all.
func (s *Store) guarded() bool { return s.opts.Durability != Memory && s.opts.MinFree >= 0 }

// layBallast reserves the space. Without it the store works as well, only without
// the second chance.
func (s *Store) layBallast() {
	if !s.guarded() {
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
		s.log.Warn("cannot create the ballast file: no space is reserved for a full disk", "dir", s.opts.Dir, "error", err)
	}
}

// giveBallast removes the ballast and reports whether there was one.
func (s *Store) giveBallast() bool {
	if s.space.spent.Swap(true) {
		return false
	}
	err := s.opts.FS.Remove(s.ballastPath())
	s.log.Error("the disk is full: the ballast file was removed, and new tasks are refused until there is space", "dir", s.opts.Dir, "error", err)
	return err == nil
}

// flushEvents keeps count of what Pebble still has to write.
func (f *freeSpace) flushEvents() *pebble.EventListener {
	return &pebble.EventListener{
		FlushBegin: func(pebble.FlushInfo) { f.flushing.Store(f.unflushed.Load()) },
		FlushEnd: func(info pebble.FlushInfo) {
			if done := f.flushing.Swap(0); info.Err == nil {
				f.unflushed.Add(-done)
			}
		},
	}
}

// admit answers CodeExhausted when new work of that many bytes must wait for space.
// written must be called when the work is written, or was given up.
func (f *freeSpace) admit(s *Store, op string, bytes int) (written func(), err error) {
	if !s.guarded() {
		return func() {}, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// Everything is written twice, to the log and to a table, before the log goes.
	need := uint64(s.opts.MinFree + f.unflushed.Load() + 2*(f.pending+int64(bytes)))
	if f.checked.IsZero() || time.Since(f.checked) >= spaceCheckEvery || f.free < need+spaceNear {
		f.look(s)
	}
	if !f.unknown && f.free < need {
		f.askFlush(s)
		return nil, task.Errorf(task.CodeExhausted, op,
			"the disk of %s has %d MiB free; %d MiB are kept for work that is running and %d MiB are needed for what was accepted: "+
				"free some space or lower the retention",
			s.opts.Dir, f.free>>20, s.opts.MinFree>>20, (need-uint64(s.opts.MinFree))>>20)
	}
	f.pending += int64(bytes)
	return func() {
		f.mu.Lock()
		f.pending -= int64(bytes)
		f.mu.Unlock()
	}, nil
}

// flushWorth is how much a flush must give back to be asked for.
const flushWorth = 4 << 20

// askFlush has Pebble write its tables now: the logs behind them are room that a quiet
// store would keep for as long as it is quiet.
func (f *freeSpace) askFlush(s *Store) {
	if f.unflushed.Load() < flushWorth || !f.flushAsks.CompareAndSwap(false, true) {
		return
	}
	f.flush.Go(func() {
		defer f.flushAsks.Store(false)
		if err := s.db.Flush(); err != nil {
			s.log.Warn("could not shrink the logs", "dir", s.opts.Dir, "error", err)
		}
	})
}

// look asks the file system; f.mu is held.
func (f *freeSpace) look(s *Store) {
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

// tellSpace says at open that new work will be refused.
func (s *Store) tellSpace() {
	written, err := s.space.admit(s, "open store", 0)
	if err != nil {
		s.log.Warn("new tasks are refused until there is space", "error", err)
		return
	}
	written()
}
