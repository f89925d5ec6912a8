// Package redisstore is Treadle's store for many machines: everything in Redis 6.2 or
// newer, alone, behind Sentinel or as a Cluster, shared by any number of servers and
// dispatchers.
//
// What a move may do is written in package task and nowhere else. Submit, claim and
// renewal only add to a record, so their scripts do that by themselves. Every other move
// is computed here from the record and written by one script that first compares epoch,
// claim and start with those that it was computed from; when somebody was faster, it
// answers with the record as it is now and the move is computed again.
//
// Every script recognises a call that it has carried out before, as the client library
// sends calls again when a connection breaks. All keys of a task share the hash tag of
// its shard, so a script never crosses slots.
//
// Time is that of the Redis server: leases, delays and retention are compared with it
// inside the scripts. Of the times that callers pass only the distance to "now" counts.
package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/fnv"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Options configure [Open].
type Options struct {
	// URL says where the store is: redis://, rediss:// (TLS), redis+sentinel:// or
	// redis+cluster://, with ?durability=async|replicated and ?namespace=NAME.
	URL string
	// Namespace keeps several stores apart on one Redis. Default that of the URL, else
	// "treadle".
	Namespace string
	// Shards is how many hash slots the tasks of a new store are spread over; first in
	// first out holds within a shard. A store keeps the number it was made with. Default 1.
	Shards int
	// Retention is how long finished tasks are kept. Default 24 hours.
	Retention time.Duration
	// Lease is what leases found by [Store.Attend], and after the store was away, are
	// granted anew. Default 10 seconds.
	Lease time.Duration
	// OfferLease bounds the lease of a claim until its first renewal: an offer that no
	// worker acknowledges goes back after it. Default 3 seconds, negative for no bound.
	OfferLease time.Duration
	// Absence is how long nobody may have called Reap before every lease is granted anew.
	// Default half of Lease.
	Absence time.Duration
	// WaitTimeout is how long a change waits for its replica in the replicated mode.
	// Default 1 second, at most 2.
	WaitTimeout time.Duration
	// OpenTimeout is how long Open tries to reach the server. Default 30 seconds.
	OpenTimeout time.Duration
	// ClientName is what CLIENT LIST calls the connections. Default none.
	ClientName string
	// PoolSize bounds the connections of this process to one node. Default 16.
	PoolSize int
	// TrustCallerTime takes the callers' time for store time, instead of the server's:
	// for tests with simulated time.
	TrustCallerTime bool
	// Logger takes what connecting, watching and recovery have to say. Default slog.Default().
	Logger *slog.Logger

	// watchEvery is how often the server's settings are looked at again. Default 5 seconds.
	watchEvery time.Duration
}

// Defaults.
const (
	defaultNamespace = "treadle"
	// maxShards bounds [Options.Shards]: an empty claim asks them all.
	maxShards = 64
)

func (o *Options) fill() error {
	const op = "open store"
	setDefault(&o.Namespace, defaultNamespace)
	if err := checkNamespace(o.Namespace); err != nil {
		return task.Errorf(task.CodeInvalid, op, "%w", err)
	}
	setDefault(&o.Shards, 1)
	if o.Shards < 1 || o.Shards > maxShards {
		return task.Errorf(task.CodeInvalid, op, "%d shards: want 1 to %d", o.Shards, maxShards)
	}
	if o.Retention < 0 || o.Lease < 0 || o.Absence < 0 || o.WaitTimeout < 0 || o.OpenTimeout < 0 || o.PoolSize < 0 {
		return task.Errorf(task.CodeInvalid, op, "durations and sizes must not be negative")
	}
	setDefault(&o.Retention, 24*time.Hour)
	setDefault(&o.Lease, 10*time.Second)
	setDefault(&o.OfferLease, 3*time.Second)
	setDefault(&o.Absence, o.Lease/2)
	setDefault(&o.WaitTimeout, time.Second)
	o.WaitTimeout = min(o.WaitTimeout, 2*time.Second)
	setDefault(&o.OpenTimeout, 30*time.Second)
	setDefault(&o.PoolSize, 16)
	setDefault(&o.watchEvery, 5*time.Second)
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

// settings are what calls need of URL and options.
type settings struct {
	replicated  bool
	location    string
	waitTimeout time.Duration
}

// Store implements [store.Store]. Use [Open].
type Store struct {
	// probe tells the keys of this process apart while it tries its permissions.
	probe uint64
	opts  Options
	cfg   settings
	log   *slog.Logger
	clock storeClock
	tags  []keys
	any   keys

	// identity names the data: it is written once, when the store is new.
	identity string
	// reads is the pool for reads; writes is the same, except in the replicated mode,
	// where a connection that waits for a replica must not keep reads out. cluster is set
	// when writes is a cluster.
	reads   redis.UniversalClient
	writes  redis.UniversalClient
	cluster *redis.ClusterClient

	// generation is how often all leases were granted anew, as last heard.
	generation atomic.Int64
	// unheard: the last Reap of this process failed. patient is until when it ends no lease for
	// that, in microseconds of the store's time.
	unheard atomic.Bool
	patient atomic.Int64

	bell  *bell
	cache recordCache
	uses  functionUses
	// recount is this process's part in counting anew what owners have.
	recount recounting
	// nextSweep is when this process looks for unused transient functions, in Unix nanoseconds
	// of the store's time.
	nextSweep atomic.Int64

	// refused is set while the server's settings would lose tasks.
	refused atomic.Pointer[task.Error]
	// crowded is why nothing new is taken: what is left of Redis's memory is for results.
	crowded atomic.Pointer[task.Error]

	// life is held for reading by every call and for writing by Close.
	life   sync.RWMutex
	closed bool
	// stop ends the goroutines that tasks counts.
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Results = (*Store)(nil)
)

// keys are the names of a shard's keys, or of those in common.
func (s *Store) keys(shard int) keys {
	if shard == common {
		return s.any
	}
	return s.tags[shard]
}

// shardOf says where a task lives. It must never change.
func (s *Store) shardOf(id task.ID) int { return s.shardOfBytes(id[:]) }

func (s *Store) shardOfBytes(b []byte) int {
	if len(s.tags) == 1 {
		return 0
	}
	h := fnv.New64a()
	h.Write(b)
	return int(h.Sum64() % uint64(len(s.tags)))
}

// enter begins a call; leave ends it.
func (s *Store) enter(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return task.Errorf(task.CodeUnavailable, op, "given up before it began: %w", err)
	}
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return task.Errorf(task.CodeUnavailable, op, "the store is closed")
	}
	if err := s.refused.Load(); err != nil {
		s.life.RUnlock()
		return err
	}
	return nil
}

func (s *Store) leave() { s.life.RUnlock() }

// Info implements [store.Store].
func (s *Store) Info() store.Info {
	info := store.Info{Durability: Async, Location: s.cfg.location}
	if s.cfg.replicated {
		info.Durability = Replicated
	}
	return info
}

// Bell implements [store.Store].
func (s *Store) Bell() store.Bell { return s.bell }

// Close implements [store.Store].
func (s *Store) Close() error {
	s.life.Lock()
	if s.closed {
		s.life.Unlock()
		return task.Errorf(task.CodeUnavailable, "close store", "the store is closed")
	}
	s.closed = true
	s.life.Unlock()
	s.stop()
	s.tasks.Wait()
	return s.disconnect()
}

func (s *Store) disconnect() error {
	err := s.reads.Close()
	if s.writes != s.reads {
		err = errors.Join(err, s.writes.Close())
	}
	return err
}

// newOperation names one call, so that a script knows it when it comes again.
func newOperation() []byte {
	b := make([]byte, 8)
	rand.Read(b)
	return b
}
