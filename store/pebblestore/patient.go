package pebblestore

import (
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// patientFS is the file system that Pebble gets on disk. Pebble ends the process when
// its log cannot be written, and tries a failed flush again without a pause; so what
// finds the disk full gets the ballast first, and then waits for space. Nothing is
// lost meanwhile: commits wait, reads go on, new work is refused.
//
// A sync that fails is passed on: the kernel may have dropped what it could not write.
type patientFS struct {
	vfs.FS
	s *Store
}

const (
	// fullPause is the time between two tries on a full disk: nothing tells when there is
	// space again. fullTellEvery keeps the log from filling the disk as well.
	fullPause     = time.Second
	fullTellEvery = time.Minute
	// preallocateStep is how much of a log is reserved at a time. Pebble asks for 70 MiB
	// for each, also for the small first ones; four of them stood in the way of everybody
	// on a small disk.
	preallocateStep = 4 << 20
)

// patience wraps the file system of a store on disk.
func (s *Store) patience() vfs.FS {
	if !s.guarded() {
		return s.opts.FS
	}
	return &patientFS{s.opts.FS, s}
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// insist repeats what found the disk full until it finds space, or the store closes.
func (s *Store) insist(name string, op func() error) error {
	err := op()
	if !isFull(err) {
		return err
	}
	if s.giveBallast() {
		if err = op(); !isFull(err) {
			return err
		}
	}
	began, told := time.Now(), time.Time{}
	ticker := time.NewTicker(fullPause)
	defer ticker.Stop()
	for isFull(err) {
		if told.IsZero() || time.Since(told) >= fullTellEvery {
			told = time.Now()
			s.log.Error("the disk is full: writes wait for space, and nothing is lost", "file", name,
				"waited", time.Since(began).Round(time.Second).String())
		}
		select {
		case <-ticker.C:
		case <-s.closing:
			return err
		}
		err = op()
	}
	if err == nil {
		s.log.Warn("there is space on the disk again", "file", name, "waited", time.Since(began).Round(time.Second).String())
	}
	return err
}

// file wraps a file that was opened for writing.
func (p *patientFS) file(name string, open func() (vfs.File, error)) (f vfs.File, err error) {
	err = p.s.insist(name, func() error {
		f, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &patientFile{File: f, name: name, s: p.s}, nil
}

// Create implements [vfs.FS].
func (p *patientFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return p.file(name, func() (vfs.File, error) { return p.FS.Create(name, c) })
}

// OpenReadWrite implements [vfs.FS].
func (p *patientFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return p.file(name, func() (vfs.File, error) { return p.FS.OpenReadWrite(name, c, opts...) })
}

// ReuseForWrite implements [vfs.FS].
func (p *patientFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return p.file(to, func() (vfs.File, error) { return p.FS.ReuseForWrite(from, to, c) })
}

// Link implements [vfs.FS].
func (p *patientFS) Link(from, to string) error {
	return p.s.insist(to, func() error { return p.FS.Link(from, to) })
}

// Rename implements [vfs.FS].
func (p *patientFS) Rename(from, to string) error {
	return p.s.insist(to, func() error { return p.FS.Rename(from, to) })
}

// Unwrap implements [vfs.FS].
func (p *patientFS) Unwrap() vfs.FS { return p.FS }

// patientFile is a file that is written by one goroutine at a time, as Pebble does.
type patientFile struct {
	vfs.File
	name string
	s    *Store
	// at is how much was written; reserved, up to where space was asked for; wanted, up to
	// where Pebble would have it.
	at, reserved, wanted int64
}

// Write implements [vfs.File]. What a full disk took of p is not written twice.
func (f *patientFile) Write(p []byte) (n int, err error) {
	f.reserve(int64(len(p)))
	err = f.s.insist(f.name, func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	f.at += int64(n)
	return n, err
}

// WriteAt implements [vfs.File].
func (f *patientFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.s.insist(f.name, func() error {
		m, err := f.File.WriteAt(p[n:], off+int64(n))
		n += m
		return err
	})
	return n, err
}

// Preallocate implements [vfs.File]: it notes what is wanted, and Write asks for it
// little by little.
func (f *patientFile) Preallocate(offset, length int64) error {
	f.wanted = max(f.wanted, offset+length)
	return nil
}

// reserve asks for the next step before it is needed. A refusal is no error: the write
// finds its own space, or waits for it.
func (f *patientFile) reserve(n int64) {
	if end := min(f.at+n, f.wanted); end > f.reserved {
		to := min((end/preallocateStep+1)*preallocateStep, f.wanted)
		_ = f.File.Preallocate(f.reserved, to-f.reserved)
		f.reserved = to
	}
}

var _ io.WriterAt = (*patientFile)(nil)
