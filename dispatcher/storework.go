package dispatcher

import (
	"context"
	"log/slog"
	"time"

	"github.com/treadle-dev/treadle/internal/failpoint"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// reapLimit bounds the tasks that one call of Reap ends.
const reapLimit = 1000

// untilDone repeats a call to the store until it succeeds or ctx ends. Every call
// made this way is idempotent: by claim id, by token, or by its nature.
func (d *Dispatcher) untilDone(ctx context.Context, what string, call func(context.Context) error) bool {
	for first := true; ; first = false {
		err := call(ctx)
		if err == nil {
			return true
		}
		switch {
		case first && task.CodeOf(err) == task.CodeExhausted:
			d.log.Warn("the store is full: finished results are kept in memory until there is room, and their tasks stay RUNNING", "call", what, "error", err)
		case first:
			d.log.Error("the store does not answer; retrying", "call", what, "error", err)
		}
		select {
		case <-time.After(storeRetry):
		case <-ctx.Done():
			return false
		}
	}
}

func (d *Dispatcher) doClaims(ctx context.Context, reqs []store.ClaimRequest) {
	var results [][]store.Claimed
	ok := d.untilDone(ctx, "claim", func(ctx context.Context) (err error) {
		results, err = d.store.Claim(ctx, time.Now(), reqs)
		return err
	})
	if !ok {
		return // the leases run out, or the workers deny them when they return
	}
	for i, req := range reqs {
		failpoint.Seen(failpoint.AfterClaim, len(results[i]))
		d.post(claimed{request: req, tasks: results[i]})
	}
}

// doStands gives the store requests to hold. One that is withdrawn before it gets there
// is served to nobody, and given back.
func (d *Dispatcher) doStands(ctx context.Context, reqs []store.ClaimRequest) {
	for _, req := range reqs {
		deliver := func(tasks []store.Claimed) {
			failpoint.Seen(failpoint.AfterClaim, len(tasks))
			ev := claimed{request: req, tasks: tasks, stood: true}
			select {
			case d.inbox <- ev:
			default:
				d.stood.add(ev)
			}
		}
		if err := d.standing.Stand(ctx, time.Now(), req, d.cfg.Lease, deliver); err != nil {
			// The bell and the poll find work all the same.
			d.log.Warn("could not leave a request for work with the store", "session", req.Session, "error", err)
		}
	}
}

// doStood hands over what did not fit into the inbox.
func (d *Dispatcher) doStood(_ context.Context, events []claimed) {
	for _, ev := range events {
		d.post(ev)
	}
}

// staleLevel is how loud a refused outcome is. An attempt that was stopped because its
// task was cancelled or went elsewhere says so, and nobody needs its word any more.
func staleLevel(end task.End) slog.Level {
	if end == task.EndCancelled || end == task.EndReturned {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func (d *Dispatcher) doSettles(ctx context.Context, items []settle) {
	defer func() {
		for i := range items {
			if items[i].hold != nil {
				items[i].hold.release()
			}
		}
	}()
	settlements := make([]store.Settlement, len(items))
	for i, it := range items {
		settlements[i] = it.settlement
	}
	var verdicts []task.Verdict
	ok := d.untilDone(ctx, "settle", func(ctx context.Context) (err error) {
		verdicts, err = d.store.Settle(ctx, time.Now(), settlements)
		return err
	})
	if !ok {
		return // not acknowledged: the workers report again
	}
	failpoint.Seen(failpoint.AfterReport, len(verdicts))
	d.logStale(ctx, items, verdicts)
	for i, it := range items {
		if !it.session.IsZero() {
			d.post(settled{session: it.session, token: it.settlement.Token, verdict: verdicts[i]})
		}
	}
}

// logStale writes one line for each session with reports that were refused, and another one
// at debug level for those that were stopped on purpose.
func (d *Dispatcher) logStale(ctx context.Context, items []settle, verdicts []task.Verdict) {
	type cause struct {
		session task.ID
		level   slog.Level
	}
	of := func(it *settle) cause { return cause{it.session, staleLevel(it.settlement.Outcome.End)} }
	var first []int
	var count map[cause]int // most often there are none
	for i := range items {
		if verdicts[i] != task.VerdictStale {
			continue
		}
		if count == nil {
			count = map[cause]int{}
		}
		if count[of(&items[i])]++; count[of(&items[i])] == 1 {
			first = append(first, i)
		}
	}
	for _, i := range first {
		it := &items[i]
		d.log.Log(ctx, of(it).level, "late result discarded: its attempt no longer holds the task", "count", count[of(it)], "task", it.settlement.Token.Task,
			"attempt", it.settlement.Token.Attempt, "epoch", it.settlement.Token.Epoch, "end", it.settlement.Outcome.End, "session", it.session)
	}
}

// doRenews is not repeated: the next beat renews everything again.
func (d *Dispatcher) doRenews(ctx context.Context, batch []renew) {
	var all []store.Renewal
	for _, r := range batch {
		all = append(all, r.items...)
	}
	verdicts, err := d.store.Renew(ctx, time.Now(), all)
	if err != nil {
		d.log.Warn("could not renew leases; retrying with the next heartbeat", "error", err)
	}
	for _, r := range batch {
		ev := renewed{session: r.session, seq: r.seq, items: r.items, err: err}
		if err == nil {
			ev.verdicts, verdicts = verdicts[:len(r.items)], verdicts[len(r.items):]
		}
		d.postUrgent(ev)
	}
}

// doResume makes the worker's Go handlers known, then asks the store what of its
// claims still stands.
func (d *Dispatcher) doResume(ctx context.Context, r resume) {
	ev := resumed{session: r.session, held: r.hello.Held}
	for _, name := range r.handlers {
		if ev.err = d.cfg.Registrar.RegisterHandler(ctx, name); ev.err != nil {
			break
		}
	}
	if ev.err == nil {
		ev.verdicts, ev.err = d.store.Resume(ctx, time.Now(), r.request)
	}
	d.post(ev)
}

// reap ends what is overdue. It does not pause after the store was away: a store that can
// be away ends no lease then that could not be renewed (see redisstore), one in this process
// cannot be away, and delays and deadlines have waited long enough.
func (d *Dispatcher) reap(ctx context.Context) {
	var away bool
	timer := time.NewTimer(d.cfg.ReapEvery)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait := d.cfg.ReapEvery
		next, err := d.store.Reap(ctx, time.Now(), reapLimit)
		switch {
		case ctx.Err() != nil:
			return // it says nothing of the store
		case err != nil && !away:
			away = true
			d.log.Error("the store does not answer; no lease expires until one lease length after it is back", "error", err)
		case err == nil:
			away = false
			if !next.IsZero() {
				wait = min(wait, max(time.Until(next), time.Millisecond))
			}
		}
		timer.Reset(wait)
	}
}

// doAnnounce shows workers to people. They are announced in order, so that a
// worker that left and came back ends as one that is there.
func (d *Dispatcher) doAnnounce(ctx context.Context, workers []store.Presence) {
	if err := d.store.Announce(ctx, time.Now().Add(3*announceEvery), workers); err != nil {
		d.log.Warn("could not publish the list of workers", "error", err)
	}
}

// attendant is a store that several dispatchers share: each says that it is there,
// so that the first one after an outage of all lets nobody lose a lease to it.
type attendant interface {
	Attend(ctx context.Context, now time.Time, dispatcher task.ID, ttl time.Duration) (first bool, err error)
	Depart(ctx context.Context, now time.Time, dispatcher task.ID) error
}

// attend tells the store of this dispatcher before anything is claimed or reaped, and
// again until ctx ends.
func (d *Dispatcher) attend(ctx context.Context) error {
	st, ok := d.store.(attendant)
	if !ok {
		return nil
	}
	ttl := d.cfg.Lease
	var first bool
	ok = d.untilDone(ctx, "attend", func(ctx context.Context) (err error) {
		first, err = st.Attend(ctx, time.Now(), d.cfg.ID, ttl)
		return err
	})
	if !ok {
		return nil // told to stop before the store answered
	}
	d.log.Info("dispatcher started", "dispatcher", d.cfg.ID, "first_after_an_outage", first)
	d.helpers.Go(func() {
		ticker := time.NewTicker(ttl / 4)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if _, err := st.Attend(ctx, time.Now(), d.cfg.ID, ttl); err != nil && ctx.Err() == nil {
					d.log.Warn("could not announce this dispatcher to the store", "error", err)
				}
			case <-ctx.Done():
				if err := st.Depart(d.work, time.Now(), d.cfg.ID); err != nil {
					d.log.Warn("could not sign this dispatcher off; the store forgets it by itself", "error", err)
				}
				return
			}
		}
	})
	return nil
}
