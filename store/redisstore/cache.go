package redisstore

import (
	"sync"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// maxCached bounds the records in a recordCache.
const maxCached = 1 << 14

// recordCache keeps the records of tasks that this process claimed, so that most reports
// are written without reading the record first. It only saves a read: what it says is
// compared with the store by the script that writes.
type recordCache struct {
	mu      sync.Mutex
	records map[task.ID]*record
}

// add takes a record that was claimed.
func (c *recordCache) add(rec *record) {
	if rec.head.startedAt != 0 {
		return
	}
	own := &record{Task: rec.Clone(), head: rec.head}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records == nil {
		c.records = make(map[task.ID]*record)
	}
	if len(c.records) >= maxCached {
		c.evict()
	}
	c.records[rec.ID] = own
}

// evict drops any one record: which one hardly matters where so many tasks are held.
func (c *recordCache) evict() {
	for id := range c.records {
		delete(c.records, id)
		return
	}
}

// started notes that the attempt of a token runs since then, in microseconds, as the
// store has it.
func (c *recordCache) started(tok task.Token, since int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rec := c.records[tok.Task]; rec != nil && rec.holds(tok) && rec.head.startedAt == 0 {
		rec.Renew(tok, rec.Lease.Until, time.UnixMicro(since).UTC())
		rec.head.startedAt = since
	}
}

// take removes and returns the record that a token belongs to, or nil.
func (c *recordCache) take(tok task.Token) *record {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := c.records[tok.Task]
	if rec == nil {
		return nil
	}
	delete(c.records, tok.Task)
	if !rec.holds(tok) {
		return nil
	}
	return rec
}
