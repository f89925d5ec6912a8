package redisstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/treadle-dev/treadle/task"
)

// formatVersion is what this build reads and writes.
const formatVersion = "1"

var quietClient sync.Once

// Open connects to the store, checks that the server can keep what it is given, and makes
// the store when it is new. What time may mend (a server, a name or a replica that is not
// there yet, one that loads its data, a Cluster without a quorum) is waited for until
// [Options.OpenTimeout] or ctx ends; what it cannot (a policy, a version, a permission, other data)
// is refused at once.
func Open(ctx context.Context, o Options) (*Store, error) {
	const op = "open store"
	a, err := parseURL(o.URL)
	if err != nil {
		return nil, task.Errorf(task.CodeInvalid, op, "%w", err)
	}
	setDefault(&o.Namespace, a.namespace)
	if err := o.fill(); err != nil {
		return nil, err
	}
	// The client library logs each lost connection by itself; callers get the errors.
	quietClient.Do(func() { redis.SetLogger(&logging.VoidLogger{}) })
	s := &Store{
		opts: o, log: o.Logger, clock: storeClock{trust: o.TrustCallerTime}, any: newKeys(o.Namespace, common),
		cfg: settings{replicated: a.replicated, location: a.location, waitTimeout: o.WaitTimeout},
	}
	var probe [8]byte
	rand.Read(probe[:])
	s.probe = binary.BigEndian.Uint64(probe[:])
	s.connect(&a)
	if err := s.prepare(ctx, &a); err != nil {
		return nil, errors.Join(err, s.disconnect())
	}
	running, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.bell = newBell(s)
	if err := s.bell.subscribe(ctx); err != nil {
		stop()
		return nil, errors.Join(s.failure(op, err), s.disconnect())
	}
	s.tasks.Go(func() { s.bell.hear(running) })
	s.tasks.Go(func() { s.bell.send(running) })
	s.tasks.Go(func() { s.watch(running, &a) })
	return s, nil
}

// connect makes the pools; nothing is dialled yet.
func (s *Store) connect(a *address) {
	dial := func() redis.UniversalClient {
		o := a.options(s.opts.PoolSize)
		o.ContextTimeoutEnabled = true
		o.DisableIdentity = true
		if name := s.opts.ClientName; name != "" {
			// Not go-redis' own ClientName: a user who may not set a name would be refused.
			o.OnConnect = func(ctx context.Context, conn *redis.Conn) error {
				_ = conn.ClientSetName(ctx, name).Err() // people look for it, nothing depends on it
				return nil
			}
		}
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		return redis.NewUniversalClient(o)
	}
	s.reads = dial()
	s.writes = s.reads
	if s.cfg.replicated {
		s.writes = dial()
	}
	s.cluster, _ = s.writes.(*redis.ClusterClient)
}

// prepare checks the server and reads or makes the identity.
func (s *Store) prepare(ctx context.Context, a *address) error {
	const op = "open store"
	ctx, cancel := context.WithTimeout(ctx, s.opts.OpenTimeout)
	defer cancel()
	begin := time.Now()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		warnings, err := s.inspect(ctx, a, true)
		if err == nil {
			err = s.permitted(ctx)
		}
		if err == nil {
			for _, w := range warnings {
				s.log.Warn(w, "store", s.cfg.location)
			}
			err = s.identify(ctx)
		}
		if err == nil {
			if wait > 100*time.Millisecond {
				s.log.Info("the store answers", "store", s.cfg.location, "after", time.Since(begin).Round(time.Millisecond))
			}
			return nil
		}
		if final := final(err); final != nil {
			return task.Errorf(task.CodeInvalid, op, "%s is refused: %w", s.cfg.location, final)
		}
		if code := task.CodeOf(err); code != task.CodeUnknown && code != task.CodeUnavailable {
			return err
		}
		level := slog.LevelDebug
		if wait == 100*time.Millisecond {
			level = slog.LevelWarn // once is enough: the end says what it was last
		}
		s.log.Log(ctx, level, "the store is not ready; trying again", "store", s.cfg.location, "error", err, "for", s.opts.OpenTimeout)
		if sleep(ctx, wait) != nil {
			return task.Errorf(task.CodeUnavailable, op, "%s was not ready within %s: %w", s.cfg.location, time.Since(begin).Round(time.Millisecond), err)
		}
	}
}

// final is what no waiting mends, in words; nil for everything else.
func final(err error) error {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return err
	case redis.HasErrorPrefix(err, "NOAUTH"), redis.HasErrorPrefix(err, "WRONGPASS"):
		return err
	case notPermitted(err):
		return fmt.Errorf("the user of the store URL lacks a permission, see the list in docs/security.md: %w", err)
	case strings.Contains(err.Error(), "unknown command"):
		return fmt.Errorf("the server lacks a required command, or has renamed it: %w", err)
	}
	return nil
}

// refusal is a setting under which tasks would be lost.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// inspect looks at every node that the store writes to. A replica that is missing is
// refused only at the start: later each change finds out for itself.
func (s *Store) inspect(ctx context.Context, a *address, starting bool) (warnings []string, err error) {
	var mu sync.Mutex
	used := 0
	look := func(ctx context.Context, node *redis.Client) error {
		text, err := node.Info(ctx).Result()
		if err != nil {
			return err
		}
		info := parseInfo(text)
		mu.Lock()
		defer mu.Unlock()
		if info["aof_enabled"] == "0" {
			w := "Redis keeps no append-only file (appendonly no): a restart loses what came since its last snapshot"
			if save, err := node.ConfigGet(ctx, "save").Result(); err == nil && save["save"] == "" {
				w = "Redis persists nothing (appendonly no, save \"\"): a restart loses every task"
			}
			warnings = append(warnings, w)
		}
		used = max(used, fullness(info))
		if err := s.judge(a, info); err != nil || !starting {
			return err
		}
		return s.checkReplica(info)
	}
	switch c := s.writes.(type) {
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, look)
		if err != nil && strings.Contains(err.Error(), "cluster support disabled") {
			err = refuse("the server is not a node of a Redis Cluster: use redis:// or redis+sentinel://")
		}
	case *redis.Client:
		err = look(ctx, c)
	default:
		err = fmt.Errorf("unexpected client %T", c)
	}
	if err == nil {
		s.keepReserve(used)
	}
	return warnings, err
}

// reserveFrom is the percentage of maxmemory above which nothing new is taken: the rest is
// for the results of what runs, which would stay RUNNING if they found no room.
const reserveFrom = 95

// fullness is how much of its maxmemory a server uses, in percent; 0 without a limit.
func fullness(info map[string]string) int {
	used, errUsed := strconv.ParseUint(info["used_memory"], 10, 64)
	limit, errLimit := strconv.ParseUint(info["maxmemory"], 10, 64)
	if errUsed != nil || errLimit != nil || limit == 0 {
		return 0
	}
	return int(float64(used) / float64(limit) * 100)
}

// keepReserve refuses new tasks while the fullest server is above the limit.
func (s *Store) keepReserve(used int) {
	var now *task.Error
	if used >= reserveFrom {
		now = task.Errorf(task.CodeExhausted, "store",
			"Redis uses %d %% of its maxmemory, and memory above %d %% is reserved for the results of running tasks: raise maxmemory or shorten --retention",
			used, reserveFrom)
	}
	was := s.crowded.Swap(now)
	switch {
	case was == nil && now != nil:
		s.log.LogAttrs(context.Background(), slog.LevelWarn, "new tasks are refused", slog.Any("error", now))
	case was != nil && now == nil:
		s.log.Info("new tasks are accepted again", "memory_used_percent", used)
	}
}

// judge refuses a server that would lose tasks or cannot run the scripts.
func (s *Store) judge(a *address, info map[string]string) error {
	if v := info["redis_version"]; !atLeast(v, 6, 2) {
		return refuse("Redis %s is too old: version 6.2 or newer is needed", v)
	}
	if p := info["maxmemory_policy"]; p != "" && p != "noeviction" {
		return refuse("maxmemory-policy is %s, under which Redis drops tasks when its memory is full: set it to noeviction", p)
	}
	if info["cluster_enabled"] == "1" && a.kind != cluster {
		return refuse("the server is a node of a Redis Cluster: use redis+cluster://")
	}
	if r := info["role"]; r == "slave" {
		if a.kind == single {
			return refuse("the server is a replica: name its primary, or use redis+sentinel://")
		}
		return errors.New("the server is a replica at present")
	}
	return nil
}

// checkReplica keeps a start with durability=replicated waiting for a replica: one that was
// restarted together with this process connects a moment later.
func (s *Store) checkReplica(info map[string]string) error {
	if !s.cfg.replicated || hasReplica(info) {
		return nil
	}
	if n := info["connected_slaves"]; n != "0" && n != "" {
		return errors.New("durability=replicated needs a replica and none is in step yet")
	}
	return errors.New("durability=replicated needs a replica and the server has none online")
}

// hasReplica says whether durability=replicated can be kept.
func hasReplica(info map[string]string) bool {
	for i := 0; ; i++ {
		line, ok := info["slave"+strconv.Itoa(i)]
		if !ok {
			return false
		}
		if strings.Contains(line, "state=online") {
			return true
		}
	}
}

func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.SplitSeq(text, "\n") {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r"), ":"); ok {
			info[name] = value
		}
	}
	return info
}

func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// identify reads what the store is, or makes it when there is none.
func (s *Store) identify(ctx context.Context) error {
	var fresh [16]byte
	rand.Read(fresh[:])
	about, err := s.setup(ctx, s.any, hex.EncodeToString(fresh[:]), strconv.Itoa(s.opts.Shards))
	if err != nil {
		return err
	}
	if about.format != formatVersion {
		return refuse("its data has the format %q, this build reads %q", about.format, formatVersion)
	}
	shards, err := strconv.Atoi(about.shards)
	if err != nil || shards < 1 || shards > maxShards {
		return refuse("its number of shards %q is damaged", about.shards)
	}
	if shards != s.opts.Shards && s.opts.Shards != 1 {
		s.log.Warn("the store keeps the number of shards that it was made with", "shards", shards, "asked for", s.opts.Shards)
	}
	s.identity, s.tags = about.identity, nil
	for i := range shards {
		s.tags = append(s.tags, newKeys(s.opts.Namespace, i))
	}
	for i, k := range s.tags {
		write := s.identity
		if about.complete {
			write = ""
		}
		got, err := s.setup(ctx, k, write, about.shards)
		if err != nil {
			return err
		}
		if got.identity != s.identity {
			return refuse("shard %d has lost its data: its node was flushed or replaced", i)
		}
	}
	if about.complete {
		return nil
	}
	if err := s.writes.HSet(ctx, s.any.named(keyMeta), metaComplete, "1").Err(); err != nil {
		return err
	}
	shardsAndCommon := []int{common}
	for i := range s.tags {
		shardsAndCommon = append(shardsAndCommon, i)
	}
	return s.confirm(ctx, "open store", shardsAndCommon...)
}

// about is what the meta key of a tag says.
type about struct {
	identity, format, shards string
	complete                 bool
}

func (s *Store) setup(ctx context.Context, k keys, identity, shards string) (a about, err error) {
	run := redis.NewScript(scriptSetup.source)
	v, err := run.Run(ctx, s.writes, []string{k.named(keyMeta)}, "", "", identity, formatVersion, shards).Slice()
	if err != nil {
		return a, err
	}
	if len(v) != 5 {
		return a, fmt.Errorf("an answer of %d values", len(v))
	}
	a.identity, _ = v[1].(string)
	a.format, _ = v[2].(string)
	a.shards, _ = v[3].(string)
	_, a.complete = v[4].(string)
	if at, ok := v[0].(int64); ok {
		s.clock.set(at, time.Now())
	}
	return a, nil
}

// watch looks at the server's settings now and then and refuses to serve while they
// would lose tasks.
func (s *Store) watch(ctx context.Context, a *address) {
	for sleep(ctx, s.opts.watchEvery) == nil {
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := s.inspect(look, a, false)
		cancel()
		var refused *refusal
		var now *task.Error
		switch {
		case errors.As(err, &refused):
			now = task.Errorf(task.CodeUnavailable, "store", "%s is refused: %w", s.cfg.location, err)
		case err != nil:
			continue // Calls notice for themselves that the server is away.
		}
		if was := s.refused.Load(); (was == nil) != (now == nil) {
			s.refused.Store(now)
			s.report(now)
		}
	}
}

func (s *Store) report(refused *task.Error) {
	if refused == nil {
		s.log.Info("the store answers again", "store", s.cfg.location)
		return
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, "the store is not served", slog.Any("error", refused))
}
