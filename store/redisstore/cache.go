package redisstore

import (
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
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
	// timeLimits is what is known of timeLimit, so that a renewal need not read it.
	timeLimits map[task.ID]time.Duration
}

// maxLimits bounds the tasks whose time limit is known, at about 50 bytes each.
const maxLimits = 1 << 17

// limits fills in the time limits of the tasks of items and returns the places of those
// that it does not know.
func (c *recordCache) limits(items []store.Renewal, out []time.Duration) (unknown []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range items {
		limit, known := c.timeLimits[items[i].Token.Task]
		if out[i] = limit; !known {
			unknown = append(unknown, i)
		}
	}
	return unknown
}

// limit notes the time limit of a task.
func (c *recordCache) limit(id task.ID, limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limitLocked(id, limit)
}

func (c *recordCache) limitLocked(id task.ID, limit time.Duration) {
	if c.timeLimits == nil {
		c.timeLimits = make(map[task.ID]time.Duration)
	}
	for old := range c.timeLimits {
		if len(c.timeLimits) < maxLimits {
			break
		}
		delete(c.timeLimits, old)
	}
	c.timeLimits[id] = limit
}

// add takes a record that was claimed.
func (c *recordCache) add(rec *record) {
	own := &record{Task: rec.Clone(), head: rec.head}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limitLocked(rec.ID, timeLimit(rec.Task))
	if rec.head.startedAt != 0 {
		return
	}
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
		startedAt := time.UnixMicro(since).UTC()
		rec.Renew(startedAt, tok, rec.Lease.Until, startedAt)
		rec.head.startedAt = since
	}
}

// take removes and returns the record that a token belongs to, or nil.
func (c *recordCache) take(tok task.Token) *record {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.timeLimits, tok.Task)
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
