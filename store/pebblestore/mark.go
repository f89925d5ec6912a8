package pebblestore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// marker keeps a mark beside the store: how many commits are durable. A log that lost
// its end looks like one whose last write was cut off by a crash, which is no fault; the
// mark tells them apart, as it was synced after the commits that it counts.
//
// It is behind by markEvery at most, so it costs ten small syncs a second under load and
// none when nothing is written. What was damaged among the commits of that last moment
// before a crash cannot be told from a torn write.
type marker struct {
	file vfs.File
	// slot is where the next mark goes: two places in turn, so that a torn one leaves the
	// other.
	slot int64

	mu      sync.Mutex
	commits uint64
	// wake has room for one token: "there is something to mark".
	wake chan struct{}
	// stop ends the goroutine that writes, ended is closed by it.
	stop, ended chan struct{}
}

const (
	markName  = "mark"
	markEvery = 100 * time.Millisecond
	// markSlot keeps the two marks in different sectors. A mark is a magic number, the
	// count and a checksum of both.
	markSlot  = 4096
	markSize  = 20
	markMagic = 0x74726561646c6501 // "treadle", format 1
)

func appendMark(b []byte, commits uint64) []byte {
	b = binary.BigEndian.AppendUint64(b, markMagic)
	b = binary.BigEndian.AppendUint64(b, commits)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[len(b)-16:]))
}

// decodeMark returns the count of a mark; ok is false where none is, or a torn one.
func decodeMark(b []byte) (commits uint64, ok bool) {
	if len(b) < markSize || binary.BigEndian.Uint64(b) != markMagic ||
		binary.BigEndian.Uint32(b[16:]) != crc32.ChecksumIEEE(b[:16]) {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[8:]), true
}

// readMark returns the newest mark in a folder; ok is false where there is none.
func readMark(fs vfs.FS, dir string) (commits uint64, ok bool, err error) {
	f, err := fs.Open(fs.PathJoin(dir, markName))
	if err != nil {
		if isNotExist(err) {
			return 0, false, nil
		}
		return 0, false, fmt.Errorf("read the mark of durable commits: %w", err)
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, false, fmt.Errorf("read the mark of durable commits: %w", err)
	}
	for at := 0; at < len(b); at += markSlot {
		if n, whole := decodeMark(b[at:]); whole {
			commits, ok = max(commits, n), true
		}
	}
	return commits, ok, nil
}

// startMarker opens the mark's file, writes what holds now, and keeps it up to date
// until close.
func (s *Store) startMarker() error {
	fs := s.opts.FS
	m := &marker{commits: s.commits, wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	path := fs.PathJoin(s.opts.Dir, markName)
	var err error
	if m.file, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return fmt.Errorf("open the mark of durable commits: %w", err)
	}
	if err := errors.Join(m.write(), m.write(), syncDir(fs, s.opts.Dir)); err != nil {
		return errors.Join(fmt.Errorf("write the mark of durable commits: %w", err), m.file.Close())
	}
	s.marker = m
	go m.run(s)
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// durable notes that so many commits are synced.
func (m *marker) durable(commits uint64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	m.commits = commits
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *marker) write() error {
	m.mu.Lock()
	b := appendMark(make([]byte, 0, markSize), m.commits)
	m.mu.Unlock()
	_, err := m.file.WriteAt(b, m.slot*markSlot)
	m.slot = 1 - m.slot
	return errors.Join(err, m.file.SyncData())
}

// run writes the mark after commits, no more often than markEvery.
func (m *marker) run(s *Store) {
	defer close(m.ended)
	pause := time.NewTimer(0)
	defer pause.Stop()
	failed := false
	for {
		select {
		case <-m.wake:
		case <-m.stop:
			return
		}
		if err := m.write(); err != nil && !failed {
			// The mark stays behind: less is noticed, and nothing is lost.
			failed = true
			s.log.Warn("the mark of durable commits cannot be written: damage to the newest log may go unnoticed", "error", err)
		}
		pause.Reset(markEvery)
		select {
		case <-pause.C:
		case <-m.stop:
			return
		}
	}
}

// close writes the last mark.
func (m *marker) close() error {
	if m == nil {
		return nil
	}
	close(m.stop)
	<-m.ended
	return errors.Join(m.write(), m.file.Close())
}
