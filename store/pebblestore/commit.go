package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/treadle-dev/treadle/internal/collector"
	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// change is one caller's request to the committer.
type change struct {
	// apply runs on the committer with Store.mu held. It changes the index and adds to
	// the batch; it must not fail half way.
	apply func(*txn)
	// bytes is about how much it adds to the batch.
	bytes int
	state atomic.Int32
	done  chan error
}

const (
	changeQueued = iota
	changeTaken
	changeAbandoned
)

// queue holds the changes that wait for the committer.
type queue struct {
	mu      sync.Mutex
	changes []*change
	closed  bool
	// wake has room for one token: "look at the queue".
	wake chan struct{}
}

func (q *queue) init() { q.wake = make(chan struct{}, 1) }

func (q *queue) push(c *change) {
	q.mu.Lock()
	q.changes = append(q.changes, c)
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

// maxGroupBytes ends a group early, so that a few large payloads do not hold up
// everybody who queued behind them.
const maxGroupBytes = 8 << 20

// take moves what is queued into group, up to maxGroupBytes.
func (q *queue) take(group []*change) (_ []*change, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	total, n := 0, 0
	for _, c := range q.changes {
		if n > 0 && total+c.bytes > maxGroupBytes {
			break
		}
		total += c.bytes
		n++
	}
	group = append(group, q.changes[:n]...)
	rest := copy(q.changes, q.changes[n:])
	clear(q.changes[rest:])
	q.changes = q.changes[:rest]
	return group, q.closed
}

// txn is one group commit.
type txn struct {
	s *Store
	b *pebble.Batch
	// live gathers what concerns unfinished records and joins b at the end: Pebble's
	// memtable takes neighbours in a row much faster than keys that jump about.
	live *pebble.Batch
	// buf is scratch for encoding.
	buf []byte
	// done is closed when the commit is durable and visible.
	done chan struct{}
	// recent are the tasks that ended here and are small.
	recent []finished
	// touched lists the entries changed, gone the finished tasks removed, keys the
	// idempotency keys written.
	touched []*entry
	gone    map[task.ID]struct{}
	keys    map[string]keyRow
	// dropped lists the idempotency keys removed with their tasks.
	dropped map[string]struct{}
	// functions lists the registrations written, funcKeys their idempotency keys.
	functions []functionRow
	funcKeys  map[string]keyRow
	// deleted says that registrations were removed, blobsGone whose bytes.
	deleted   bool
	blobsGone map[[32]byte]struct{}
	ready     []*lane
	signals   []store.Signal
	// served are the standing requests that are at an end.
	served []served
	// ended are the tasks that finished and are in no retention row yet; the last of
	// them finished at endedAt.
	ended   []retained
	endedAt time.Time
	// owners lists those whose results came or went.
	owners map[string]struct{}
}

// newTxn begins a commit of about that many bytes.
func (s *Store) newTxn(bytes int) *txn {
	collector.Passing(bytes)
	x := &txn{s: s, live: s.db.NewBatch()}
	if bytes > 16*partSize {
		// A batch that grows by doubling leaves as much again behind.
		x.b = s.db.NewBatchWithSize(bytes + bytes/64)
	} else {
		x.b = s.db.NewBatch()
	}
	return x
}

func (x *txn) empty() bool { return x.b.Empty() && x.live.Empty() }

// seal completes the batch.
func (x *txn) seal() {
	x.retain()
	x.s.commits++
	clock := clockRow{now: x.s.now, seq: x.s.seq, commits: x.s.commits}
	x.buf = clock.append(x.buf[:0])
	x.set(keyClock, x.buf)
	x.saveOwners()
	if err := x.b.Apply(x.live, nil); err != nil {
		x.s.fail(err)
	}
}

func (x *txn) close() error { return errors.Join(x.b.Close(), x.live.Close()) }

// commit queues a change and waits until it is durable. When ctx ends first, the
// change may or may not take effect, but nothing of the caller's is read any more.
func (s *Store) commit(ctx context.Context, op string, bytes int, apply func(*txn)) error {
	if err := ctx.Err(); err != nil {
		return task.Errorf(task.CodeUnavailable, op, "the call was given up before it began: %w", err)
	}
	c := &change{apply: apply, bytes: bytes, done: make(chan error, 1)}
	s.queue.push(c)
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
	}
	if !c.state.CompareAndSwap(changeQueued, changeAbandoned) {
		// The committer has it: it applies under mu, so after mu it has let go of the
		// caller's slices.
		s.mu.Lock()
		broken := s.broken.Load()
		s.mu.Unlock()
		if broken != nil {
			return broken
		}
	}
	return task.Errorf(task.CodeUnavailable, op, "the call was given up while the store worked on it, its outcome is unknown: %w",
		ctx.Err())
}

// committer is the one goroutine that changes anything. It ends after Close, when
// the queue is empty.
func (s *Store) committer() {
	defer close(s.stopped)
	var group []*change
	for range s.queue.wake {
		for {
			var closed bool
			// Those who were just answered are about to ask for the next thing: letting
			// them run first makes groups larger by half and costs a lone caller nothing.
			runtime.Gosched()
			group, closed = s.queue.take(group[:0])
			if len(group) == 0 {
				if closed {
					return
				}
				break
			}
			err := s.commitGroup(group)
			for i, c := range group {
				c.done <- err
				group[i] = nil
			}
		}
	}
}

// commitGroup applies a group, makes it durable and rings the bell.
func (s *Store) commitGroup(group []*change) error {
	if err := s.broken.Load(); err != nil {
		return err
	}
	bytes := 0
	for _, c := range group {
		bytes += c.bytes
	}
	x := s.newTxn(bytes)
	s.mu.Lock()
	for _, c := range group {
		if c.state.CompareAndSwap(changeQueued, changeTaken) {
			c.apply(x)
		}
	}
	x.serveStanding()
	x.ready = slices.DeleteFunc(x.ready, func(l *lane) bool { return l.ready == 0 })
	for _, l := range x.ready {
		sig := readySignal(l)
		sig.Count = l.ready
		x.signals = append(x.signals, sig)
	}
	changed := !x.empty()
	if changed {
		x.seal()
	}
	if err := s.broken.Load(); err != nil {
		s.mu.Unlock()
		return err
	}
	if !changed {
		s.finish(x)
		s.mu.Unlock()
		x.tell()
		return x.close()
	}
	x.done = make(chan struct{})
	s.flight = x
	if x.changesFunctions() {
		s.registrations++
	}
	s.mu.Unlock()

	err := s.sealed(x.b)

	s.mu.Lock()
	if err != nil {
		err = s.fail(err)
	} else {
		s.finish(x)
	}
	s.flight = nil
	close(x.done)
	commits := s.commits
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.marker.durable(commits)
	x.tell()
	return x.close()
}

// sealed commits the batch; Pebble's panic on a failed write comes back as an error.
func (s *Store) sealed(b *pebble.Batch) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = r
		default:
			err = fmt.Errorf("pebble: %v", r)
		}
	}()
	s.space.unflushed.Add(int64(b.Len()))
	if seededbug.On(seededbug.AckBeforeSync) {
		return b.Commit(pebble.NoSync)
	}
	return b.Commit(s.sync)
}

// finish updates the index after a commit: what ended is forgotten, what is beyond
// the bound on memory is left to the disk.
func (s *Store) finish(x *txn) {
	for _, f := range x.recent {
		s.recent.add(f)
	}
	for id := range x.gone {
		s.recent.drop(id)
	}
	for _, e := range x.touched {
		e.flight = nil
		switch {
		case e.where == whereEnded:
			if s.ix.entries[e.id] == e {
				s.ix.forget(e)
			}
		case s.ix.resident > s.opts.maxResident && e.t != nil && (e.where == whereReady || e.where == whereDelayed):
			s.ix.evict(e)
		}
	}
}

// tell serves the standing requests and rings for the rest, each lane once.
func (x *txn) tell() {
	for _, st := range x.served {
		st.deliver(st.claimed)
	}
	x.s.bell.Ring(context.Background(), x.signals)
}

func readySignal(l *lane) store.Signal {
	return store.Signal{Kind: store.Ready, Queue: l.key.queue, Runtime: l.key.runtime}
}

// set and del add to the batch. Adding to a batch in memory cannot fail.
func (x *txn) set(key, value []byte) {
	if err := x.batchOf(key).Set(key, value, nil); err != nil {
		x.s.fail(err)
	}
}

func (x *txn) del(key []byte) {
	if err := x.batchOf(key).Delete(key, nil); err != nil {
		x.s.fail(err)
	}
}

func (x *txn) batchOf(key []byte) *pebble.Batch {
	if key[0] == spaceLive {
		return x.live
	}
	return x.b
}

// touch notes that the commit changes an entry.
func (x *txn) touch(e *entry) {
	if e.flight != x {
		e.flight = x
		x.touched = append(x.touched, e)
	}
}

// wake notes that a lane has something ready.
func (x *txn) wake(l *lane) {
	if l.rung != x {
		l.rung = x
		x.ready = append(x.ready, l)
	}
}

// plain strips the monotonic reading and the zone, so that a record in memory equals
// the one read back.
func plain(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.Round(0).UTC()
}

// load makes sure that an entry's record is in memory. When the disk does not
// give it back the store is broken.
func (s *Store) load(e *entry) bool {
	if e.t != nil {
		return true
	}
	rec, err := s.readRecord(spaceLive, e.id)
	if err == nil && rec.task == nil {
		err = fmt.Errorf("the record under key %c/%s is missing", spaceLive, e.id)
	}
	if err != nil {
		s.fail(err)
		return false
	}
	e.t = rec.task
	s.undelay(e)
	s.ix.resident++
	s.ix.setArgs(e, rec.args)
	return true
}

// read returns a copy of a value, nil when there is none.
func (s *Store) read(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key %q: %w", key, err)
	}
	v = append(make([]byte, 0, len(v)), v...)
	return v, closer.Close()
}

// readRecord reads a record; its task is nil when there is none.
func (s *Store) readRecord(space byte, id task.ID) (rec record, err error) {
	v, closer, err := s.db.Get(idKey(space, id))
	if errors.Is(err, pebble.ErrNotFound) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("read key %c/%s: %w", space, id, err)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	return decodeRecord(space, id, v)
}
