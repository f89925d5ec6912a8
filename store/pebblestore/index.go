package pebblestore

import (
	"math"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// place says where in the index an entry stands.
type place uint8

const (
	whereNone place = iota
	// whereReady: in its lane, claimable.
	whereReady
	// whereDelayed: queued, but not before a later moment.
	whereDelayed
	// whereLeased: a session holds it.
	whereLeased
	// whereEnded: terminal; forgotten once the end is durable.
	whereEnded
)

// entry is an unfinished task in the index. Entries are guarded by Store.mu.
type entry struct {
	id       task.ID
	seq      uint64
	lane     *lane
	priority int8
	where    place
	// argsKept says that args holds the arguments. Small ones are always kept, as they
	// are part of the record.
	argsKept bool
	// startUnknown marks a lease found at open: whether its attempt was started is
	// not written, so its loss counts.
	startUnknown bool
	pos          [slots]int32
	// flight is the commit under way that changed this entry, or nil.
	flight *txn
	group  *claimGroup
	// t is the record, nil where it is only on disk (see Store.load).
	t    *task.Task
	key  string
	logs []int
	args []byte
	// out is the output of the attempt in force.
	out *tail
}

// claimGroup is what one claim id was given, for a claim that is asked for again.
type claimGroup struct {
	entries []*entry
	held    int
}

// index is everything that the store knows of unfinished tasks.
type index struct {
	entries map[task.ID]*entry
	lanes   map[laneKey]*lane
	// filled lists at least the lanes that have something ready.
	filled    []*lane
	claims    map[task.ID]*claimGroup
	owners    owners
	functions registered
	leases    timeHeap
	deadlines timeHeap
	delayed   timeHeap
	// resident counts entries with a record, argBytes the arguments kept.
	resident int
	argBytes int
}

func newIndex() index {
	return index{
		entries:   make(map[task.ID]*entry),
		lanes:     make(map[laneKey]*lane),
		claims:    make(map[task.ID]*claimGroup),
		owners:    make(owners),
		functions: newRegistered(),
		leases:    timeHeap{slot: slotLease},
		deadlines: timeHeap{slot: slotDeadline},
		delayed:   timeHeap{slot: slotDelay},
	}
}

// add makes an entry for a record that is in nobody else's hands. The caller places it.
func (ix *index) add(rec record) *entry {
	t := rec.task
	e := &entry{id: t.ID, seq: t.Seq, lane: ix.laneOf(t.Queue, t.Runtime), priority: int8(t.Priority),
		t: t, key: rec.key, logs: rec.logs}
	ix.entries[t.ID] = e
	ix.resident++
	ix.functions.tasks[t.Function]++
	ix.owners.add(t.CreatedBy, e.lane.key.queue, owned{tasks: 1, bytes: int64(t.ArgsSize)})
	ix.setArgs(e, rec.args)
	return e
}

// setArgs hands small arguments, or ones that there is room for, to an entry.
func (ix *index) setArgs(e *entry, args []byte) {
	if len(args) > 0 {
		e.args, e.argsKept = args, true
		ix.argBytes += len(args)
	}
}

// inlineArgs returns the arguments that belong into the record.
func (e *entry) inlineArgs() []byte {
	if e.t.ArgsSize > maxInlineArgs {
		return nil
	}
	return e.args
}

func (ix *index) laneOf(queue, runtime string) *lane {
	k := laneKey{queue, runtime}
	l := ix.lanes[k]
	if l == nil {
		l = &lane{key: k}
		ix.lanes[k] = l
	}
	return l
}

// place puts an entry where its record says that it belongs, and counts it.
func (ix *index) place(e *entry, now time.Time) {
	t := e.t
	if t.Status.Terminal() {
		e.where = whereEnded
		ix.deadlines.remove(e)
		return
	}
	switch {
	case t.Lease != nil:
		e.where = whereLeased
		ix.leases.push(e, nanos(t.Lease.Until))
		g := ix.claims[t.Lease.Claim]
		if g == nil {
			g = &claimGroup{}
			ix.claims[t.Lease.Claim] = g
		}
		g.entries = append(g.entries, e)
		g.held++
		e.group = g
	case t.NotBefore.After(now):
		e.where = whereDelayed
		ix.delayed.push(e, nanos(t.NotBefore))
	default:
		e.where = whereReady
		e.lane.push(e)
		ix.fill(e.lane)
	}
	if !t.Deadline.IsZero() && e.pos[slotDeadline] == 0 {
		ix.deadlines.push(e, nanos(t.Deadline))
	}
	e.lane.count(t.Status, 1)
}

// unplace takes an entry out of its place, for a move that changes it.
func (ix *index) unplace(e *entry) {
	was := e.where
	e.where = whereNone
	switch was {
	case whereReady:
		e.lane.drop(e)
	case whereDelayed:
		ix.delayed.remove(e)
	case whereLeased:
		ix.leases.remove(e)
		ix.leaveGroup(e)
		e.startUnknown = false
	}
	if was != whereNone {
		e.lane.count(e.t.Status, -1)
	}
}

func (ix *index) leaveGroup(e *entry) {
	g := e.group
	e.group = nil
	g.held--
	if g.held == 0 {
		delete(ix.claims, e.t.Lease.Claim)
	}
}

// forget drops an entry whose end is durable.
func (ix *index) forget(e *entry) {
	delete(ix.entries, e.id)
	ix.resident--
	ix.dropArgs(e)
}

// Bounds on what the index keeps of payloads, so that a long queue of large
// arguments waits on disk and not in memory.
const (
	maxArgsKept   = 64 << 10
	maxArgsMemory = 64 << 20
)

// keepArgs keeps a copy of arguments for the claim, where there is room.
func (ix *index) keepArgs(e *entry, args []byte) {
	if len(args) > maxInlineArgs && (len(args) > maxArgsKept || ix.argBytes+len(args) > maxArgsMemory) {
		return
	}
	ix.setArgs(e, append([]byte(nil), args...))
}

func (ix *index) dropArgs(e *entry) {
	ix.argBytes -= len(e.args)
	e.args, e.argsKept = nil, false
}

// evict leaves an entry's record to the disk.
func (ix *index) evict(e *entry) {
	e.t = nil
	ix.resident--
	ix.dropArgs(e)
}

// promote moves delayed tasks that are due into their lanes and tells each lane.
func (ix *index) promote(now time.Time, due func(*lane)) {
	limit := nanos(now)
	for len(ix.delayed.items) > 0 && ix.delayed.items[0].at <= limit {
		e := ix.delayed.items[0].e
		ix.delayed.remove(e)
		e.where = whereReady
		e.lane.push(e)
		ix.fill(e.lane)
		due(e.lane)
	}
}

// count adds n unfinished tasks of a status.
func (l *lane) count(s task.Status, n int) {
	if s == task.Running {
		l.running += n
	} else {
		l.queued += n
	}
}

// sweepLanes forgets lanes that nothing refers to, as names of queues come from clients.
func (ix *index) sweepLanes() {
	ix.pruneFilled()
	for k, l := range ix.lanes {
		if l.queued == 0 && l.running == 0 {
			delete(ix.lanes, k)
		}
	}
}

// nanos is t as an order key. Times out of range, such as a deadline in the year
// 9999, become the first or last moment.
func nanos(t time.Time) int64 {
	switch y := t.Year(); {
	case y > 2260:
		return math.MaxInt64
	case y < 1970:
		return 0
	}
	return t.UnixNano()
}

// tail keeps the last [task.MaxLog] bytes of an output.
type tail struct{ b []byte }

func (o *tail) write(p []byte) {
	if len(p) >= task.MaxLog {
		o.b = append(o.b[:0], p[len(p)-task.MaxLog:]...)
		return
	}
	o.b = append(o.b, p...)
	// Cutting at twice the limit copies each byte once on the average.
	if len(o.b) > 2*task.MaxLog {
		o.b = append(o.b[:0], o.b[len(o.b)-task.MaxLog:]...)
	}
}

func (o *tail) bytes() []byte {
	if o == nil {
		return nil
	}
	return o.b[max(0, len(o.b)-task.MaxLog):]
}
