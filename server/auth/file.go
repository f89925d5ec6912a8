package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/task"
)

const (
	fileVersion = 1
	// maxFile bounds a token file, in bytes: some ten thousand tokens.
	maxFile = 4 << 20
	// lookEvery is how often a file in use is looked at for a change.
	lookEvery = time.Second
)

type document struct {
	Version int      `json:"version"`
	Tokens  []Record `json:"tokens"`
}

// Read returns the records of a token file in the order of their creation. A file that
// others may read, or the group may write, is refused.
func Read(path string) ([]Record, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	// A group may read: that is how secrets are mounted for a service's own user.
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o037 != 0 {
		return nil, fmt.Errorf("token file %s has mode %04o: others must not reach it (chmod 600 %s)", path, mode, path)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("token file %s has %d bytes: want at most %d", path, info.Size(), maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	records, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("token file %s: %w", path, err)
	}
	return records, nil
}

func parse(data []byte) ([]Record, error) {
	var doc document
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("not what 'treadle token create' writes: %w", err)
	}
	if doc.Version != fileVersion {
		return nil, fmt.Errorf("version %d: this program reads version %d", doc.Version, fileVersion)
	}
	seen := make(map[string]bool, len(doc.Tokens))
	for _, r := range doc.Tokens {
		if err := r.check(); err != nil {
			return nil, err
		}
		if seen[r.ID] {
			return nil, fmt.Errorf("token %s is there twice", r.ID)
		}
		seen[r.ID] = true
	}
	return doc.Tokens, nil
}

// Add puts a record into a token file, which is made when there is none. Servers that
// use the file accept the token within about a second.
func Add(path string, rec Record) error {
	return change(path, func(records []Record, err error) ([]Record, error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return append(records, rec), nil
	})
}

// Remove takes the token of that id out of a token file. Servers that use the file refuse
// it within about a second and end the streams that it opened.
func Remove(path, id string) error {
	return change(path, func(records []Record, err error) ([]Record, error) {
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("no token %s in %s", task.ClipText(id, 40), path)
		}
		return slices.Delete(records, i, i+1), nil
	})
}

// change rewrites a token file as a whole: a reader sees the old one or the new one, and
// of two programs that change it at once the second waits.
func change(path string, edit func([]Record, error) ([]Record, error)) error {
	unlock, err := lock(path + ".lock")
	if err != nil {
		return fmt.Errorf("lock the token file: %w", err)
	}
	defer unlock()
	records, err := edit(Read(path))
	if err != nil {
		return err
	}
	if records == nil {
		records = []Record{}
	}
	data, err := json.MarshalIndent(document{Version: fileVersion, Tokens: records}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the token file: %w", err)
	}
	return replace(path, append(data, '\n'))
}

// replace writes a file beside path and renames it.
func replace(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the token file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write the token file: %w", err)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// File is a token file in use: changes are taken over while it is used, without a
// restart. Any number of goroutines may use it.
type File struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	records atomic.Pointer[map[string]Record]
	// looked is when the file was looked at last, in nanoseconds.
	looked atomic.Int64
	mu     sync.Mutex
	seen   fs.FileInfo
	broken string
}

// Open reads a token file for use. now is the clock.
func Open(path string, log *slog.Logger, now func() time.Time) (*File, error) {
	f := &File{path: path, log: log, now: now}
	if err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reload reads the file now. When that fails, what was known stays in force.
func (f *File) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.load()
}

func (f *File) load() error {
	info, _ := os.Stat(f.path) // Read says what is wrong
	records, err := Read(f.path)
	if err != nil {
		return err
	}
	byID := make(map[string]Record, len(records))
	for _, r := range records {
		byID[r.ID] = r
	}
	f.records.Store(&byID)
	f.seen, f.broken = info, ""
	f.looked.Store(f.now().UnixNano())
	f.log.Info("tokens loaded", "file", f.path, "tokens", len(byID))
	return nil
}

// refresh looks once in a while whether the file was changed. One caller looks, the
// others go on with what is known.
func (f *File) refresh() {
	now, last := f.now().UnixNano(), f.looked.Load()
	if now-last < int64(lookEvery) || !f.looked.CompareAndSwap(last, now) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err == nil && f.seen != nil && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) &&
		info.Size() == f.seen.Size() && info.Mode() == f.seen.Mode() {
		return
	}
	if err := f.load(); err != nil && err.Error() != f.broken {
		f.broken = err.Error()
		f.log.Error("cannot read the token file: the previous tokens stay in use", "error", err)
	}
}

// Verify finds whose token it is. Errors are of [task.CodeUnauthenticated].
func (f *File) Verify(token string) (Principal, error) {
	f.refresh()
	return verify(*f.records.Load(), token, f.now())
}

// Check says why who was authenticated before would be no more: the token was revoked,
// replaced by one of another role, or has expired. nil means that it stands.
func (f *File) Check(p Principal) error {
	f.refresh()
	rec, ok := (*f.records.Load())[p.ID]
	if !ok || rec.Role != p.Role {
		return errUnknown()
	}
	if p := rec.principal(); !p.Expires.IsZero() && !f.now().Before(p.Expires) {
		return errExpired(p.ID, p.Expires)
	}
	return nil
}
