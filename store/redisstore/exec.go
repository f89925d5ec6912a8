package redisstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/task"
)

// call is one script or one plain command for one tag.
type call struct {
	shard  int
	script *script
	// args are those of the script after identity and time, or the whole command.
	args []any
	cmd  *redis.Cmd
}

// values is the script's answer without the time at its head.
func (c *call) values() ([]any, error) {
	v, err := c.cmd.Slice()
	if err != nil {
		return nil, err
	}
	if len(v) == 0 {
		return nil, errors.New("an empty answer")
	}
	return v[1:], nil
}

// change runs calls that may write: all in one pipeline for each node, which is one
// connection. In the replicated mode it returns once a replica has them; too few
// replicas in time mean that the outcome is unknown.
//
// Every script recognises a call that it has seen, so the client library may send one
// again when the connection breaks.
func (s *Store) change(ctx context.Context, op string, calls ...*call) error {
	if len(calls) == 0 {
		return nil
	}
	if s.cluster == nil {
		return s.pipeline(ctx, op, s.writes, s.cfg.replicated, calls)
	}
	if !s.cfg.replicated {
		return s.follow(ctx, op, func() error { return s.pipeline(ctx, op, s.cluster, false, calls) })
	}
	// WAIT counts for its own connection, so each shard goes to its own node.
	byShard := make(map[int][]*call)
	for _, c := range calls {
		byShard[c.shard] = append(byShard[c.shard], c)
	}
	errs := make(chan error, len(byShard))
	for shard, part := range byShard {
		go func() {
			errs <- s.follow(ctx, op, func() error {
				node, err := s.cluster.MasterForKey(ctx, s.keys(shard).named(keyMeta))
				if err != nil {
					return s.failure(op, err)
				}
				return s.pipeline(ctx, op, node, true, part)
			})
		}()
	}
	var err error
	for range byShard {
		err = errors.Join(err, <-errs)
	}
	return err
}

// follow runs do again while a Cluster moves what it asks for to another node.
func (s *Store) follow(ctx context.Context, op string, do func() error) error {
	for attempt := 0; ; attempt++ {
		err := do()
		if err == nil || attempt == maxMoves || !movedAway(err) {
			return err
		}
		s.cluster.ReloadState(ctx)
		if err := sleep(ctx, time.Duration(attempt+1)*50*time.Millisecond); err != nil {
			return task.Errorf(task.CodeUnavailable, op, "given up while the cluster moved: %w", err)
		}
	}
}

// maxMoves is how often a call follows a slot to another node.
const maxMoves = 5

// movedAway says that another node may serve what this one refused.
func movedAway(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	for _, prefix := range []string{"MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN"} {
		if strings.HasPrefix(reply.Error(), prefix) {
			return true
		}
	}
	// A script that met a key which has left for another node while its slot is moved.
	return strings.Contains(reply.Error(), "attempted to access a non local key")
}

// pipeline sends calls over one connection, once more with their source where the server
// does not know a script yet.
func (s *Store) pipeline(ctx context.Context, op string, node redis.Cmdable, wait bool, calls []*call) error {
	todo := calls
	for round := 0; len(todo) > 0; round++ {
		pipe := node.Pipeline()
		for _, c := range todo {
			s.queue(ctx, pipe, c, round > 0)
		}
		var replicas *redis.Cmd
		if wait && !seededbug.On(seededbug.ReplyBeforeWait) {
			timeout := s.cfg.waitTimeout
			if end, ok := ctx.Deadline(); ok {
				timeout = max(time.Millisecond, min(timeout, time.Until(end)))
			}
			// WAIT promises what the connection wrote. A call that found its work done wrote
			// nothing, so there is always one write.
			pipe.Incr(ctx, s.keys(todo[0].shard).named(keySync))
			replicas = pipe.Do(ctx, "WAIT", 1, timeout.Milliseconds())
		}
		_, execErr := pipe.Exec(ctx)
		unknown, err := s.outcome(op, todo, execErr)
		if err != nil {
			return err
		}
		if replicas != nil {
			if n, err := replicas.Int(); err != nil {
				return s.failure(op, err)
			} else if n < 1 && len(unknown) == 0 {
				return task.Errorf(task.CodeUnavailable, op,
					"no replica confirmed it within %s: the outcome is unknown, retry with the same key", s.cfg.waitTimeout)
			}
		}
		if todo = unknown; round == 2 && len(todo) > 0 {
			return s.failure(op, todo[0].cmd.Err())
		}
	}
	return nil
}

// queue adds one call to a pipeline.
func (s *Store) queue(ctx context.Context, pipe redis.Pipeliner, c *call, withSource bool) {
	if c.script == nil {
		c.cmd = pipe.Do(ctx, c.args...)
		return
	}
	key := []string{s.keys(c.shard).named(keyMeta)}
	if withSource {
		c.cmd = pipe.Eval(ctx, c.script.source, key, c.args...)
		return
	}
	c.cmd = pipe.EvalSha(ctx, c.script.hash, key, c.args...)
}

// outcome looks at the answers: which scripts the server did not know, and the first error
// that is another one.
func (s *Store) outcome(op string, calls []*call, execErr error) (unknown []*call, err error) {
	received := time.Now()
	for _, c := range calls {
		switch err := c.cmd.Err(); {
		case err == nil:
			if c.script != nil {
				s.clock.observe(c.cmd, received)
			}
		case errors.Is(err, redis.Nil):
		case c.script != nil && redis.HasErrorPrefix(err, "NOSCRIPT"):
			unknown = append(unknown, c)
		default:
			return nil, s.failure(op, err)
		}
	}
	if execErr != nil && len(unknown) == 0 && !errors.Is(execErr, redis.Nil) {
		return nil, s.failure(op, execErr)
	}
	return unknown, nil
}

// read runs commands that change nothing, after a look at the identity of each tag.
func (s *Store) read(ctx context.Context, op string, calls ...*call) error {
	if len(calls) == 0 {
		return nil
	}
	pipe := s.reads.Pipeline()
	identity := make(map[int]*redis.StringCmd)
	for _, c := range calls {
		if identity[c.shard] == nil {
			identity[c.shard] = pipe.HGet(ctx, s.keys(c.shard).named(keyMeta), metaIdentity)
		}
		s.queue(ctx, pipe, c, false)
	}
	_, execErr := pipe.Exec(ctx)
	for _, id := range identity {
		have, err := id.Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return s.failure(op, err)
		}
		if have != s.identity {
			return s.replaced(op)
		}
	}
	_, err := s.outcome(op, calls, execErr)
	return err
}

// sure reads what callers are told of tasks. In the replicated mode it returns once a
// replica has all that was read, and that over the connection which read it: a primary
// that was replaced and does not know it yet has changes that nobody will keep, lacks
// those that others made since, and finds no replica that confirms.
func (s *Store) sure(ctx context.Context, op string, calls ...*call) error {
	if !s.cfg.replicated || len(calls) == 0 {
		return s.read(ctx, op, calls...)
	}
	var identity []*call
	for _, c := range calls {
		if !slices.ContainsFunc(identity, func(other *call) bool { return other.shard == c.shard }) {
			identity = append(identity, &call{shard: c.shard, args: []any{"HGET", s.keys(c.shard).named(keyMeta), metaIdentity}})
		}
	}
	if err := s.change(ctx, op, append(identity, calls...)...); err != nil {
		return err
	}
	for _, c := range identity {
		if have, _ := c.cmd.Val().(string); have != s.identity {
			return s.replaced(op)
		}
	}
	return nil
}

// confirm returns once a replica has everything that was written before it was called. It
// does nothing in the asynchronous mode.
func (s *Store) confirm(ctx context.Context, op string, shards ...int) error {
	if !s.cfg.replicated {
		return nil
	}
	calls := make([]*call, len(shards))
	for i, shard := range shards {
		calls[i] = &call{shard: shard, args: []any{"EXISTS", s.keys(shard).named(keySync)}}
	}
	return s.change(ctx, op, calls...)
}

func (s *Store) replaced(op string) error {
	return task.Errorf(task.CodeUnavailable, op,
		"the store identity changed: the Redis behind %s was flushed or replaced by another one; restart to use it as it is now", s.cfg.location)
}

// failure turns an error of the client library into one of the domain.
func (s *Store) failure(op string, err error) error {
	var known *task.Error
	if errors.As(err, &known) {
		return err
	}
	switch {
	case redis.HasErrorPrefix(err, "TREADLEIDENTITY"):
		return s.replaced(op)
	case redis.HasErrorPrefix(err, "OOM"), strings.Contains(err.Error(), "OOM command not allowed"):
		return task.Errorf(task.CodeExhausted, op, "Redis has reached its maxmemory: %w", err)
	case redis.HasErrorPrefix(err, "MISCONF"), strings.Contains(err.Error(), "MISCONF"):
		return task.Errorf(task.CodeExhausted, op, "Redis cannot write to its disk: %w", err)
	case notPermitted(err):
		// No outage: callers need not try again, and the server's log has it as an error.
		return task.Errorf(task.CodeUnknown, op,
			"Redis does not let the user of the store URL run a command, see the list in docs/security.md: %w", err)
	}
	s.lookForPrimaries(err)
	return task.Errorf(task.CodeUnavailable, op, "Redis does not answer as it should: %w", err)
}

// lookForPrimaries lets both pools ask a Cluster who its primaries are when one of them
// cannot be reached. By itself the client library asks once a minute, and when a node says
// that it has become a replica, which a dead one does not.
func (s *Store) lookForPrimaries(err error) {
	var broken net.Error
	if s.cluster == nil || !errors.As(err, &broken) && !errors.Is(err, io.EOF) {
		return
	}
	for _, pool := range []redis.UniversalClient{s.reads, s.writes} {
		if c, ok := pool.(*redis.ClusterClient); ok {
			c.ReloadState(context.Background()) // in the background, at most five times a second
		}
	}
}

// scriptCall makes a call of a script at the caller's time.
func (s *Store) scriptCall(shard int, sc *script, now time.Time, args ...any) *call {
	return &call{shard: shard, script: sc, args: append([]any{s.identity, s.clock.argument(now)}, args...)}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// storeClock estimates the server's clock from the last answer and the time since. The
// estimate is late by at most the way of that answer and never early, so what was
// computed with it is never early either.
type storeClock struct {
	// trust takes the caller's time for store time.
	trust bool

	mu   sync.Mutex
	base time.Time
	at   time.Time
}

// observe takes the time at the head of a script's answer.
func (c *storeClock) observe(cmd *redis.Cmd, received time.Time) {
	v, ok := cmd.Val().([]any)
	if !ok || len(v) == 0 {
		return
	}
	if us, ok := v[0].(int64); ok {
		c.set(us, received)
	}
}

// set takes the server's time as a script tells it.
func (c *storeClock) set(us int64, received time.Time) {
	c.mu.Lock()
	c.base, c.at = time.UnixMicro(us).UTC(), received
	c.mu.Unlock()
}

// now is the store's time, to the microsecond, given the caller's.
func (c *storeClock) now(caller time.Time) time.Time {
	if c.trust || seededbug.On(seededbug.LocalDeadline) {
		return caller.Truncate(time.Microsecond).UTC()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base.Add(time.Since(c.at)).Truncate(time.Microsecond).UTC()
}

// argument is what tells a script the time.
func (c *storeClock) argument(caller time.Time) string {
	if c.trust || seededbug.On(seededbug.LocalDeadline) {
		return fmt.Sprint(caller.UnixMicro())
	}
	return ""
}
