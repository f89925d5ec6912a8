package redisstore

import (
	"strconv"
	"sync"

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
}

// add takes what was claimed.
func (c *recordCache) add(claims []store.Claimed) {
	if len(claims) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records == nil {
		c.records = make(map[task.ID]*record)
	}
	for i := range claims {
		t := claims[i].Task
		if t.Lease == nil || !t.Lease.StartedAt.IsZero() || len(c.records) >= maxCached && !c.evict() {
			continue
		}
		c.records[t.ID] = &record{
			Task: t.Clone(), epoch: strconv.FormatUint(t.Epoch, 10), claim: string(t.Lease.Claim[:]), before: t.AttemptCount,
		}
	}
}

// evict drops any one record: which one hardly matters where so many tasks are held.
func (c *recordCache) evict() bool {
	for id := range c.records {
		delete(c.records, id)
		return true
	}
	return false
}

// started notes that the attempt of a token runs since then, as the store has it.
func (c *recordCache) started(tok task.Token, since string) {
	var p numbers
	at := p.time(since)
	c.mu.Lock()
	defer c.mu.Unlock()
	if rec := c.records[tok.Task]; rec != nil && rec.holds(tok) && rec.started == "" && p.err == nil {
		rec.Renew(tok, rec.Lease.Until, at)
		rec.started = since
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
