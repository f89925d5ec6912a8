package pebblestore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	pebblerecord "github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/task"
)

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

// logFiles lists the store's logs, the oldest first.
func (s *Store) logFiles() ([]string, error) {
	names, err := s.opts.FS.List(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return logNumber(n) < 0 })
	slices.SortFunc(names, func(a, b string) int { return logNumber(a) - logNumber(b) })
	return names, nil
}

// logNumber is the number in the name of a log, -1 for other files.
func logNumber(name string) int {
	number, ok := strings.CutSuffix(name, ".log")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return -1
	}
	return n
}

// inspect opens what is in the folder for reading, which changes nothing, and compares
// it with the mark. Opening it for writing would remove the logs that it has read, and
// with them whatever could be saved.
func (s *Store) inspect() error {
	mark, marked, err := readMark(s.opts.FS, s.opts.Dir)
	if err != nil {
		return task.Errorf(task.CodeUnavailable, "open store", "%w", err)
	}
	o := s.pebbleOptions()
	o.ReadOnly, o.FS = true, s.opts.FS
	db, err := pebble.Open(s.opts.Dir, o)
	if err != nil {
		return s.damaged(err)
	}
	s.db = db
	row, err := s.readClock()
	if err = errors.Join(err, db.Close()); err != nil {
		return task.Errorf(task.CodeUnavailable, "open store", "%w", err)
	}
	s.db = nil
	if marked && row.commits < mark {
		return s.damaged(fmt.Errorf("%d commits were durable and %d are there: the last %d are missing",
			mark, row.commits, mark-row.commits))
	}
	return nil
}

// damaged describes what keeps the store from opening, with the remedy.
func (s *Store) damaged(cause error) error {
	newest := "a log is missing"
	if logs, err := s.logFiles(); err == nil && len(logs) > 0 {
		newest = "the newest log is " + logs[len(logs)-1]
	}
	return task.Errorf(task.CodeUnavailable, "open store",
		"the store in %s is damaged (%s): %w; nothing was changed. Restore a backup, or go on with what is left by --open-damaged, "+
			"which keeps a copy of the logs", s.opts.Dir, newest, cause)
}

// salvage makes a damaged store open with what precedes the damage: the logs are copied
// aside, the damaged one ends before the damage, and those after it go, as changes
// without the ones before them would contradict themselves.
func (s *Store) salvage(cause error) error {
	fs := s.opts.FS
	logs, err := s.logFiles()
	if err != nil {
		return err
	}
	aside := fs.PathJoin(s.opts.Dir, "damaged-"+s.opts.Now().UTC().Format("20060102T150405.000Z"))
	if err := fs.MkdirAll(aside, 0o700); err != nil {
		return fmt.Errorf("make a folder for the damaged logs: %w", err)
	}
	for _, name := range logs {
		if err := vfs.Copy(fs, fs.PathJoin(s.opts.Dir, name), fs.PathJoin(aside, name)); err != nil {
			return fmt.Errorf("copy the log %s aside: %w", name, err)
		}
	}
	var cut string
	for i, name := range logs {
		end, whole, err := s.readable(name)
		if err != nil {
			return fmt.Errorf("read the log %s: %w", name, err)
		}
		if whole {
			continue
		}
		cut = fmt.Sprintf("%s ends at byte %d now, %d logs after it were removed", name, end, len(logs)-i-1)
		if err := s.truncate(name, end); err != nil {
			return fmt.Errorf("cut the log %s: %w", name, err)
		}
		for _, later := range logs[i+1:] {
			if err := fs.Remove(fs.PathJoin(s.opts.Dir, later)); err != nil {
				return fmt.Errorf("remove the log %s: %w", later, err)
			}
		}
		break
	}
	s.log.Error("opening a damaged store on request: tasks acknowledged after the damage are lost",
		"dir", s.opts.Dir, "damage", cause, "logs", cut, "copy", aside)
	return nil
}

// newLogReader calls Pebble's constructor, whose number has a type without a public name.
func newLogReader[N ~uint64](open func(io.Reader, N) *pebblerecord.Reader, f io.Reader, number int) *pebblerecord.Reader {
	return open(f, N(number))
}

// readable returns where the last whole record of a log ends, and whether that is the
// end of the log.
func (s *Store) readable(name string) (end int64, whole bool, err error) {
	f, err := s.opts.FS.Open(s.opts.FS.PathJoin(s.opts.Dir, name))
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := newLogReader(pebblerecord.NewReader, f, logNumber(name))
	for {
		end = r.Offset()
		rec, err := r.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, rec)
		}
		switch {
		case errors.Is(err, io.EOF):
			return end, true, nil
		case err != nil:
			return end, false, nil
		}
	}
}

// truncate keeps the first n bytes of a log.
func (s *Store) truncate(name string, n int64) error {
	fs, path := s.opts.FS, s.opts.FS.PathJoin(s.opts.Dir, name)
	from, err := fs.Open(path)
	if err != nil {
		return err
	}
	to, err := fs.Create(path+".cut", vfs.WriteCategoryUnspecified)
	if err != nil {
		return errors.Join(err, from.Close())
	}
	_, err = io.CopyN(to, from, n)
	if err = errors.Join(err, to.Sync(), to.Close(), from.Close()); err != nil {
		return err
	}
	return errors.Join(fs.Rename(path+".cut", path), syncDir(fs, s.opts.Dir))
}
