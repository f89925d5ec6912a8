package redisstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/task"
)

const (
	// maxInline is how large a value in a task's hash may be, in bytes: scripts pass it
	// on. Larger ones have keys of their own, which only plain reads and writes touch.
	maxInline = 4 << 10
	// chunkSize is how much of a large value one key holds: a server that moves one key
	// serves nobody else meanwhile.
	chunkSize = 1 << 20
	// orphanTTL removes chunks whose script never came.
	orphanTTL = time.Hour
)

// large is a value in keys of its own.
type large struct {
	// prefix is the key less base and number of the chunk, place what a record says of it.
	prefix, place string
	chunks        int
}

// newLarge names the chunks of a value of that size which this writer writes.
func newLarge(kind string, id task.ID, writer []byte, size int) large {
	name := hex.EncodeToString(writer)
	n := (size + chunkSize - 1) / chunkSize
	return large{prefix: kind + string(id[:]) + ":" + name, place: name + ":" + strconv.Itoa(n), chunks: n}
}

// placed reads what a record says of a large value.
func placed(kind string, id task.ID, place string) (large, error) {
	name, count, ok := strings.Cut(place, ":")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 1 {
		return large{}, fmt.Errorf("the place %q of a value of task %s is damaged", place, id)
	}
	return large{prefix: kind + string(id[:]) + ":" + name, place: place, chunks: n}, nil
}

// writes are the commands that store the value; it expires unless a script keeps it.
func (l large) writes(s *Store, shard int, value []byte) []*call {
	calls := make([]*call, l.chunks)
	for i := range calls {
		part := value[i*chunkSize : min(len(value), (i+1)*chunkSize)]
		calls[i] = &call{shard: shard, args: []any{
			"SET", s.keys(shard).chunk(l.prefix, i), part, "PX", orphanTTL.Milliseconds(),
		}}
	}
	return calls
}

// reads are the commands that fetch the value.
func (l large) reads(s *Store, shard int) []*call {
	calls := make([]*call, l.chunks)
	for i := range calls {
		calls[i] = &call{shard: shard, args: []any{"GET", s.keys(shard).chunk(l.prefix, i)}}
	}
	return calls
}

// joined puts the chunks together that reads fetched; nil when one is gone.
func joined(calls []*call, size int) []byte {
	value := make([]byte, 0, size)
	for _, c := range calls {
		part, err := c.cmd.Text()
		if err != nil {
			return nil
		}
		value = append(value, part...)
	}
	if len(value) != size {
		return nil
	}
	return value
}

// fetch reads one large value; nil when it is gone.
func (s *Store) fetch(ctx context.Context, op, kind string, id task.ID, place string, size int) ([]byte, error) {
	l, err := placed(kind, id, place)
	if err != nil {
		return nil, task.Errorf(task.CodeUnavailable, op, "%w", err)
	}
	calls := l.reads(s, s.shardOf(id))
	if err := s.read(ctx, op, calls...); err != nil {
		return nil, err
	}
	return joined(calls, size), nil
}
