package storetest

import (
	"cmp"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// model is what a store must do, in the smallest form: a list of tasks, searched from
// end to end. It checks the invariants that concern one store on the way.
type model struct {
	retention time.Duration
	seq       uint64
	ids       []task.ID
	tasks     map[task.ID]*task.Task
	// written is each task as of its last durable change.
	written map[task.ID]*task.Task
	// ended keeps what a terminal record said first.
	ended map[task.ID]*task.Task
	// epochs is the highest epoch of each task, unheard the leases found at open and not renewed since.
	epochs  map[task.ID]uint64
	unheard map[task.ID]bool
	// freed lists tasks whose delay the store chose.
	freed []task.ID
}

func newModel(retention time.Duration) *model {
	return &model{
		retention: retention, tasks: map[task.ID]*task.Task{}, written: map[task.ID]*task.Task{}, ended: map[task.ID]*task.Task{},
		epochs: map[task.ID]uint64{}, unheard: map[task.ID]bool{},
	}
}

func (m *model) save(t *task.Task) { m.written[t.ID] = t.Clone() }

func (m *model) submit(now time.Time, t *task.Task) {
	t = t.Clone()
	m.seq++
	if err := t.Submit(now, m.seq); err != nil {
		panic(err)
	}
	m.ids = append(m.ids, t.ID)
	m.tasks[t.ID] = t
	m.save(t)
}

// all returns the tasks by id, which is the order of arrival.
func (m *model) all() []*task.Task {
	out := make([]*task.Task, 0, len(m.tasks))
	for _, t := range m.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task.Task) int { return cmp.Compare(a.Seq, b.Seq) })
	return out
}

func (m *model) held() (ids []task.ID) {
	for _, t := range m.all() {
		if t.Lease != nil {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

func (m *model) holds(tok task.Token) bool {
	t := m.tasks[tok.Task]
	if t == nil {
		return false
	}
	have, ok := t.Token()
	return ok && have.Epoch == tok.Epoch && have.Claim == tok.Claim
}

func (m *model) claim(now time.Time, r store.ClaimRequest) (out []task.Token) {
	tasks := m.all()
	for _, t := range tasks {
		if t.Lease != nil && t.Lease.Claim == r.Claim {
			tok, _ := t.Token()
			out = append(out, tok)
		}
	}
	byOrder := func(a, b task.Token) int {
		x, y := m.tasks[a.Task], m.tasks[b.Task]
		return cmp.Or(-cmp.Compare(x.Priority, y.Priority), cmp.Compare(x.Seq, y.Seq))
	}
	if len(out) > 0 {
		slices.SortFunc(out, byOrder)
		return out
	}
	slices.SortStableFunc(tasks, func(a, b *task.Task) int { return -cmp.Compare(a.Priority, b.Priority) })
	for _, t := range tasks {
		if len(out) == r.Max {
			break
		}
		if !t.ReadyAt(now) {
			continue
		}
		if t.Expire(now) {
			m.save(t)
			continue
		}
		tok, err := t.Claim(now, task.Lease{Claim: r.Claim, Session: r.Session, Worker: r.Worker, Local: r.Local, Until: r.Until})
		if err != nil {
			panic(err)
		}
		m.save(t)
		out = append(out, tok)
	}
	return out
}

func (m *model) renew(now time.Time, r store.Renewal) task.Verdict {
	t := m.tasks[r.Token.Task]
	if t == nil {
		return task.VerdictStale
	}
	v := t.Renew(now, r.Token, r.Until, r.StartedAt)
	if v == task.VerdictRecorded {
		delete(m.unheard, t.ID)
	}
	return v
}

func (m *model) settle(now time.Time, it store.Settlement) task.Verdict {
	t := m.tasks[it.Token.Task]
	if t == nil {
		return task.VerdictStale
	}
	v := t.Settle(now, it.Token, it.Outcome, it.Jitter)
	if v == task.VerdictRecorded {
		delete(m.unheard, t.ID)
		m.save(t)
	}
	return v
}

func (m *model) cancel(now time.Time, id task.ID) {
	if t := m.tasks[id]; t != nil && t.Cancel(now) {
		m.save(t)
	}
}

func (m *model) resume(now time.Time, r store.Resumption) []task.Verdict {
	listed := map[task.ID]bool{}
	out := make([]task.Verdict, len(r.Held))
	for i, h := range r.Held {
		out[i] = task.VerdictStale
		if t := m.tasks[h.Token.Task]; m.holds(h.Token) && t.Lease.Worker == r.Worker {
			out[i] = m.renew(now, h)
			t.Lease.Session = r.Session
			listed[t.ID] = true
		}
	}
	for _, t := range m.all() {
		if t.Lease != nil && t.Lease.Worker == r.Worker && !listed[t.ID] {
			m.lose(now, t, task.Outcome{End: task.EndReturned})
		}
	}
	return out
}

func mustToken(t *task.Task) task.Token {
	tok, ok := t.Token()
	if !ok {
		panic("no claim in force")
	}
	return tok
}

func (m *model) reap(now time.Time) {
	for _, t := range m.all() {
		switch {
		case t.Expire(now):
			m.save(t)
		case t.Lease != nil && !t.Lease.Until.After(now):
			m.lose(now, t, t.Overdue(m.unheard[t.ID]))
		case t.Status.Terminal() && !t.FinishedAt.Add(m.retention).After(now):
			delete(m.tasks, t.ID)
			delete(m.written, t.ID)
		}
	}
}

// lose ends a claim with a delay that the store chooses.
func (m *model) lose(now time.Time, t *task.Task, out task.Outcome) {
	m.settle(now, store.Settlement{Token: mustToken(t), Outcome: out})
	if !t.Status.Terminal() {
		m.freed = append(m.freed, t.ID)
	}
}

// next is when something is due.
func (m *model) next() (next time.Time) {
	at := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, t := range m.tasks {
		switch {
		case t.Status.Terminal():
			at(t.FinishedAt.Add(m.retention))
		case t.Lease != nil:
			at(t.Lease.Until)
			at(t.Deadline)
		default:
			at(t.Deadline)
		}
	}
	return next
}

// reopen is what a restart does to unfinished tasks.
func (m *model) reopen(now time.Time, lease time.Duration, ownerMemory bool) {
	for _, t := range m.all() {
		if t.Lease == nil {
			continue
		}
		if ownerMemory {
			*t = *m.written[t.ID].Clone()
		}
		if t.Lease.Local {
			m.lose(now, t, task.Outcome{End: task.EndLost})
			continue
		}
		t.Grant(now.Add(lease))
		m.unheard[t.ID] = true
	}
}

// adoptDelays takes over the delays that the store chose, after a look at their bounds.
func (m *model) adoptDelays(h *history) {
	for _, id := range m.freed {
		t := m.tasks[id]
		got := h.task(id)
		limit := time.Duration(0)
		if t.Losses > 1 {
			limit = task.RetryDelay(t.Losses-1, 1)
		}
		if delay := got.NotBefore.Sub(t.NotBefore); delay < 0 || delay > limit {
			h.fatal("a task lost %d times is delayed by %s, want 0 to %s", t.Losses, delay, limit)
		}
		t.NotBefore = got.NotBefore
		m.save(t)
	}
	m.freed = m.freed[:0]
}

// compare checks that the store and the model agree on every task, and the invariants.
func (h *history) compare() {
	h.Helper()
	got, err := h.Store.Tasks(h.Context(), h.m.ids)
	if err != nil {
		h.fatal("%v", err)
	}
	queued, running := 0, 0
	for i, id := range h.m.ids {
		want := h.m.tasks[id]
		if (got[i] == nil) != (want == nil) {
			h.fatal("task %s: the store has %+v, want %+v", id, got[i], want)
		}
		if want == nil {
			continue
		}
		h.same(got[i], want)
		h.invariants(got[i])
		switch want.Status {
		case task.Queued:
			queued++
		case task.Running:
			running++
		}
	}
	// Accounting: the counters equal a full scan.
	stats, err := h.Store.QueueStats(h.Context())
	if err != nil {
		h.fatal("%v", err)
	}
	for _, s := range stats {
		if s.Queue == h.queue {
			queued -= s.Queued
			running -= s.Running
		}
	}
	if queued != 0 || running != 0 {
		h.fatal("the counters say %v, off by %d queued and %d running", stats, queued, running)
	}
}

// same compares what a record says of a task's life.
func (h *history) same(got, want *task.Task) {
	h.Helper()
	type facts struct {
		Status                               task.Status
		Epoch                                uint64
		Losses, Failures, Lapses, Count, Len int
		Last                                 task.ID
		Held, Started                        bool
		Lease                                task.Token
		Worker                               string
		Session                              task.ID
	}
	of := func(t *task.Task) facts {
		f := facts{Status: t.Status, Epoch: t.Epoch, Losses: t.Losses, Failures: t.Failures, Lapses: t.Lapses, Count: t.AttemptCount,
			Len: len(t.Attempts), Last: t.LastClaim}
		if t.Lease != nil {
			f.Held, f.Started, f.Worker, f.Session = true, !t.Lease.StartedAt.IsZero(), t.Lease.Worker, t.Lease.Session
			f.Lease, _ = t.Token()
		}
		return f
	}
	if g, w := of(got), of(want); g != w {
		h.fatal("task %s\nis   %+v\nwant %+v", got.ID, g, w)
	}
}

// invariants checks what must hold of any record, whatever happened.
func (h *history) invariants(t *task.Task) {
	h.Helper()
	m := h.m
	if t.Epoch < m.epochs[t.ID] {
		h.fatal("I5: the epoch fell from %d to %d", m.epochs[t.ID], t.Epoch)
	}
	m.epochs[t.ID] = t.Epoch
	if t.Losses > t.MaxRetries+1 || t.Lapses > task.MaxLapses || t.Failures > t.FunctionRetries+1 {
		h.fatal("I7: losses %d of %d, failures %d of %d, lapses %d", t.Losses, t.MaxRetries, t.Failures, t.FunctionRetries, t.Lapses)
	}
	if most := t.MaxRetries + 1 + t.FunctionRetries + task.MaxReturns; t.AttemptCount > most {
		h.fatal("I7: %d attempts were started, want at most %d", t.AttemptCount, most)
	}
	if l := t.Lease; l != nil && !l.StartedAt.IsZero() && (l.StartedAt.Before(l.ClaimedAt) || l.StartedAt.After(h.Now())) {
		h.fatal("the attempt started at %s, it was claimed at %s and now it is %s", l.StartedAt, l.ClaimedAt, h.Now())
	}
	if t.Status == task.Failed && t.Failure.Class == task.ClassWorker && t.Losses != t.MaxRetries+1 {
		h.fatal("I7: failed for its workers after %d losses, max_retries is %d", t.Losses, t.MaxRetries)
	}
	first := m.ended[t.ID]
	if first == nil {
		if t.Status.Terminal() {
			m.ended[t.ID] = t
			if t.Lease != nil {
				h.fatal("I9: a finished task has a lease")
			}
		}
		return
	}
	if t.Status != first.Status || !t.FinishedAt.Equal(first.FinishedAt) || t.ResultSize != first.ResultSize ||
		t.LastClaim != first.LastClaim || t.Epoch != first.Epoch {
		h.fatal("I2: a terminal record changed from %+v to %+v", first, t)
	}
}
