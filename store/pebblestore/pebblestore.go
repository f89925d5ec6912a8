// Package pebblestore is Treadle's embedded store: everything on Pebble in one
// folder, owned by one process.
//
// One goroutine, the committer, makes all changes. It takes everything that callers
// have queued, applies it to the index in memory and to one Pebble batch, syncs that
// batch once and then answers all. So writes need no locks among each other, a
// busy store shares each sync between many callers, and nothing is answered that
// a power cut could take back. Readers wait only for a commit under way that
// touches what they ask for.
//
// Submit, claim, settle and requeue are written. Starts, renewals and output of
// running attempts are memory of the one owner: after a restart every lease that is
// found gets one fresh lease length, in which its worker returns and says what runs.
package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/localbell"
	"github.com/treadle-dev/treadle/task"
)

// Durability modes.
const (
	// Embedded: acknowledged means synced to disk.
	Embedded = "embedded"
	// Memory: acknowledged means accepted; everything is lost on exit.
	Memory = "memory"
)

// Options configure [Open].
type Options struct {
	// Dir is the store's folder; it is made when missing. Required on disk.
	Dir string
	// FS holds the folder. Nil means the disk for [Embedded] and a fresh file system
	// in memory for [Memory].
	FS vfs.FS
	// Durability is [Embedded] or [Memory]. Default [Embedded].
	Durability string
	// Retention is how long finished tasks are kept. Default 24 hours.
	Retention time.Duration
	// Lease is what every remote lease found at open is granted anew. Default 10 seconds.
	Lease time.Duration
	// MinFree is the free disk space in bytes below which new functions and tasks are
	// refused with CodeExhausted, so that running work can still finish. Default 64
	// MiB; negative means no check and no ballast file, 16 MiB that are given up for
	// the first write that finds the disk full.
	MinFree int64
	// Now is the clock at open; afterwards time is an argument. Default time.Now.
	Now func() time.Time
	// Logger takes what Pebble and recovery have to say. Default slog.Default().
	Logger *slog.Logger
	// OpenDamaged opens a store whose logs are damaged, or lost commits that were durable,
	// with what is left; a copy of the logs is kept. Without it such a store is refused.
	OpenDamaged bool

	// maxResident bounds the records of unfinished tasks kept in memory; those beyond
	// are read from disk when their turn comes. Default 100,000.
	maxResident int
}

func (o *Options) fill() error {
	const op = "open store"
	switch o.Durability {
	case "":
		o.Durability = Embedded
	case Embedded, Memory:
	default:
		return task.Errorf(task.CodeInvalid, op, "durability %q: want %q or %q", o.Durability, Embedded, Memory)
	}
	if o.FS == nil {
		if o.Durability == Memory {
			o.FS = vfs.NewMem()
		} else {
			o.FS = vfs.Default
		}
	}
	if o.Dir == "" {
		if o.Durability == Embedded {
			return task.Errorf(task.CodeInvalid, op, "Options.Dir is empty: name the store's folder")
		}
		o.Dir = "store"
	}
	if o.Retention < 0 || o.Lease < 0 {
		return task.Errorf(task.CodeInvalid, op, "retention %s and lease %s must not be negative", o.Retention, o.Lease)
	}
	setDefault(&o.Retention, 24*time.Hour)
	setDefault(&o.Lease, 10*time.Second)
	setDefault(&o.MinFree, 64<<20)
	setDefault(&o.maxResident, 100_000)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Store implements [store.Store]. Use [Open].
type Store struct {
	opts Options
	log  *slog.Logger
	db   *pebble.DB
	lock *pebble.Lock
	sync *pebble.WriteOptions
	bell localbell.Bell

	fleet fleet
	space freeSpace

	// life is held for reading by every call and for writing by Close.
	life   sync.RWMutex
	closed bool

	// broken holds the error that ended the store; failed is closed with it.
	broken atomic.Pointer[task.Error]
	failed chan struct{}

	queue   queue
	stopped chan struct{}
	// marker notes what is durable; nil in memory.
	marker *marker
	// closing ends what waits for space on a full disk.
	closing chan struct{}

	// gc is held while finished tasks are being removed.
	gc sync.Mutex
	// cursor is where the next removal starts to look; guarded by gc.
	cursor []byte

	// mu guards the fields below. The committer holds it while it applies, not while
	// it syncs.
	mu sync.Mutex
	ix index
	// now is store time: the newest that was told.
	now   time.Time
	clock clock
	seq   uint64
	// commits counts the commits since the store was made.
	commits uint64
	// taskIDs and requestIDs know which ids are new without a look at the disk.
	taskIDs    unseen
	requestIDs requestIDs
	// flight is the commit under way.
	flight *txn
	// waiting are the requests that wait for work.
	waiting waiting
	recent  recent
	// counted is set once an owner has something: keyCounted is written from then on.
	counted bool
	// registrations counts commits with functions in them.
	registrations uint64
	// nextGC is when the oldest finished task is due for removal; zero means none.
	nextGC time.Time
}

var _ store.Store = (*Store)(nil)

// Open opens the store in a folder, recovers what is in it and starts serving. It
// fails with CodeUnavailable when another process holds the folder.
func Open(ctx context.Context, opts Options) (*Store, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, log: opts.Logger, sync: pebble.Sync, ix: newIndex(), waiting: newWaiting(),
		failed: make(chan struct{}), stopped: make(chan struct{}), closing: make(chan struct{}),
	}
	s.queue.init()
	if opts.Durability == Memory {
		s.sync = pebble.NoSync
	}
	if err := s.openDB(); err != nil {
		return nil, s.blame(err)
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(s.blame(err), s.closeDB())
	}
	if opts.Durability != Memory {
		if err := s.startMarker(); err != nil {
			return nil, errors.Join(task.Errorf(task.CodeUnavailable, "open store", "%w", err), s.closeDB())
		}
	}
	s.tellSpace()
	go s.committer()
	return s, nil
}

func (s *Store) openDB() error {
	const op = "open store"
	fs, dir := s.opts.FS, s.opts.Dir
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return task.Errorf(task.CodeUnavailable, op, "the folder %s cannot be made: %w", dir, err)
	}
	lock, err := pebble.LockDirectory(dir, fs)
	if err != nil {
		if !isLocked(err) {
			return task.Errorf(task.CodeUnavailable, op, "the folder %s cannot be locked: %w", dir, err)
		}
		return task.Errorf(task.CodeUnavailable, op,
			"the folder %s is in use: another treadle process holds it; stop that one or choose another data directory (%w)", dir, err)
	}
	s.lock = lock
	s.layBallast()
	if err := s.prepare(); err != nil {
		return errors.Join(err, lock.Close())
	}
	s.db, err = pebble.Open(dir, s.pebbleOptions())
	if err != nil {
		return errors.Join(task.Errorf(task.CodeUnavailable, op, "the store in %s cannot be opened: %w", dir, err), lock.Close())
	}
	return nil
}

// prepare looks at what is in the folder before it is opened for writing.
func (s *Store) prepare() error {
	if s.opts.Durability == Memory {
		return nil
	}
	names, err := s.opts.FS.List(s.opts.Dir)
	if err != nil {
		return task.Errorf(task.CodeUnavailable, "open store", "the folder %s cannot be read: %w", s.opts.Dir, err)
	}
	if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "MANIFEST-") || n == markName }) {
		// A new store. Pebble notes in its logs how far they were synced, but not in the
		// one that it makes before the format is raised: this one stays empty.
		db, err := pebble.Open(s.opts.Dir, s.pebbleOptions())
		if err != nil {
			return task.Errorf(task.CodeUnavailable, "open store", "the store in %s cannot be made: %w", s.opts.Dir, err)
		}
		return db.Close()
	}
	if err = s.inspect(); err != nil && s.opts.OpenDamaged {
		return s.salvage(err)
	}
	return err
}

const (
	memTableSize = 64 << 20
	memTables    = 4
)

func (s *Store) pebbleOptions() *pebble.Options {
	events := s.space.flushEvents()
	events.DataCorruption = s.corrupted
	o := &pebble.Options{
		FS:            s.patience(),
		EventListener: events,
		Lock:          s.lock,
		Logger:        pebbleLog{s.log},
		// A large memtable: most tasks begin and end within one, so that their records
		// never reach a table before they are superseded.
		MemTableSize:                memTableSize,
		MemTableStopWritesThreshold: memTables,
		// Pebble takes the memtables out of the cache's size: with a smaller one every
		// look-up of a key would read its filter from disk.
		CacheSize:             memTables*memTableSize + 64<<20,
		LBaseMaxBytes:         256 << 20,
		L0StopWritesThreshold: 1000,
		MaxOpenFiles:          1000,
		DisableWAL:            s.opts.Durability == Memory,
		FormatMajorVersion:    pebble.FormatNewest,
		// Claims are merged to records (record.go): their bytes are appended. The name of
		// the merger is on disk.
		Merger: pebble.DefaultMerger,
	}
	for i := range o.Levels {
		// Look-ups of idempotency keys are mostly for keys that do not exist.
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// Info implements [store.Store].
func (s *Store) Info() store.Info {
	info := store.Info{Durability: s.opts.Durability, Location: s.opts.Dir}
	if s.opts.Durability == Memory {
		info.Location = "memory:"
	}
	return info
}

// Bell implements [store.Store].
func (s *Store) Bell() store.Bell { return &s.bell }

// Failed is closed when the store broke, for example because the disk refused a
// write: every call is then answered CodeUnavailable, and only a new process can go on
// from what is durable. [Store.Err] says why.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err returns why the store broke, or nil.
func (s *Store) Err() error {
	if err := s.broken.Load(); err != nil {
		return err
	}
	return nil
}

// fail ends the store: what is in memory may be ahead of the disk from here on.
func (s *Store) fail(cause error) *task.Error {
	s.end(task.Errorf(task.CodeUnavailable, "store", "the store in %s is broken, restart the process: %w", s.opts.Dir, cause))
	return s.broken.Load()
}

func (s *Store) end(err *task.Error) {
	if s.broken.CompareAndSwap(nil, err) {
		s.log.Error("the store failed", "dir", s.opts.Dir, "error", err)
		close(s.failed)
	}
}

// corrupted ends the store when Pebble has found a damaged table: what it would answer may be
// wrong, and Pebble's own way is to end the process with its stack.
func (s *Store) corrupted(info pebble.DataCorruptionInfo) {
	what, _, _ := strings.Cut(info.Details.Error(), "\n") // Pebble repeats itself
	s.end(task.Errorf(task.CodeUnavailable, "store", "the file %s of the store is damaged, and a restart does not mend it: restore a backup: %s",
		info.Path, what))
}

// blame returns why the store has ended, if it has, and else err.
func (s *Store) blame(err error) error {
	if why := s.broken.Load(); why != nil {
		return why
	}
	return err
}

// enter begins a call; leave ends it.
func (s *Store) enter(op string) error {
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return task.Errorf(task.CodeUnavailable, op, "the store is closed")
	}
	if err := s.broken.Load(); err != nil {
		s.life.RUnlock()
		return err
	}
	return nil
}

func (s *Store) leave() { s.life.RUnlock() }

// Close implements [store.Store].
func (s *Store) Close() error {
	s.life.Lock()
	if s.closed {
		s.life.Unlock()
		return task.Errorf(task.CodeUnavailable, "close store", "the store is closed")
	}
	s.closed = true
	s.life.Unlock()
	close(s.closing)
	s.queue.close()
	<-s.stopped
	s.space.flush.Wait()
	marked := s.marker.close()
	if err := s.broken.Load(); err != nil {
		// A broken Pebble may hold its own locks for ever; the folder stays locked until
		// the process ends, which is what must happen next.
		return err
	}
	if marked != nil {
		s.log.Warn("the last mark of durable commits was not written", "error", marked)
	}
	return s.closeDB()
}

func (s *Store) closeDB() error {
	if err := errors.Join(s.db.Close(), s.lock.Close()); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// fatal is what Pebble's fatal errors become: a panic that the committer turns into a
// broken store. In Pebble's own goroutines it ends the process, as Pebble demands.
type fatal struct {
	text  string
	cause error
}

func (f *fatal) Error() string { return f.text }
func (f *fatal) Unwrap() error { return f.cause }

// pebbleLog passes Pebble's words on.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(format string, args ...any) {
	l.log.Debug("pebble", "text", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Warn("pebble", "text", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Fatalf(format string, args ...any) {
	f := &fatal{text: fmt.Sprintf(format, args...)}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			f.cause = err
		}
	}
	l.log.Error("pebble", "error", f)
	panic(f)
}
