package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// codeCache keeps the bytes of functions by their hash and remembers which ones to
// ask the dispatcher for.
type codeCache struct {
	limit int

	mu      sync.Mutex
	entries map[[32]byte]*code
	// order is least recently used first; it holds known entries only.
	order [][32]byte
	size  int
}

// code is one function; ready is closed once bytes or missing are set.
type code struct {
	ready   chan struct{}
	known   bool
	bytes   []byte
	missing bool
}

// errMissing: the dispatcher's store does not have the function.
var errMissing = errors.New("the store does not have the function's bytes")

func newCodeCache(limit int) *codeCache {
	return &codeCache{limit: limit, entries: map[[32]byte]*code{}}
}

// entry returns a function's entry; fresh says that nobody has asked for it yet.
func (c *codeCache) entry(hash [32]byte) (e *code, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[hash]; ok {
		if i := slices.Index(c.order, hash); i >= 0 && i < len(c.order)-1 {
			c.order = append(slices.Delete(c.order, i, i+1), hash)
		}
		return e, false
	}
	e = &code{ready: make(chan struct{})}
	c.entries[hash] = e
	return e, true
}

// unknown lists what was asked for and not answered: after a reconnect, or when an
// answer got lost, it is asked for again.
func (c *codeCache) unknown() [][32]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out [][32]byte
	for h, e := range c.entries {
		if !e.known {
			out = append(out, h)
		}
	}
	return out
}

func (c *codeCache) put(hash [32]byte, b []byte, missing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[hash]
	if e == nil || e.known {
		return
	}
	e.known, e.bytes, e.missing = true, b, missing
	close(e.ready)
	if missing {
		// Not kept: it may be there the next time.
		delete(c.entries, hash)
		return
	}
	c.order = append(c.order, hash)
	c.size += len(b)
	for c.size > c.limit && len(c.order) > 1 {
		oldest := c.order[0]
		c.order = c.order[1:]
		c.size -= len(c.entries[oldest].bytes)
		delete(c.entries, oldest)
	}
}

// get waits for a function's bytes; ask is called when nobody has asked before.
func (c *codeCache) get(ctx context.Context, hash [32]byte, ask func()) ([]byte, error) {
	e, fresh := c.entry(hash)
	if fresh {
		ask()
	}
	select {
	case <-e.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the function's bytes: %w", context.Cause(ctx))
	}
	if e.missing {
		return nil, errMissing
	}
	return e.bytes, nil
}

// forPython puts the version that the bytes are for before them, in a line of its own
// that no pickle begins with: a Python runner refuses bytecode of another version.
func forPython(version string, code []byte) []byte {
	if version == "" || code == nil {
		return code
	}
	const mark = "#python="
	marked := make([]byte, 0, len(mark)+len(version)+1+len(code))
	return append(append(append(append(marked, mark...), version...), '\n'), code...)
}
