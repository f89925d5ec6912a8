//go:build chaos

package storetap

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// maxDelay bounds the fault "delay".
const maxDelay = 50 * time.Millisecond

// Wrap returns a store that writes its history and has the faults that the environment
// asks for; s itself when it asks for neither.
func Wrap(s store.Store) store.Store {
	s = Mistaken(s)
	dir, faults := os.Getenv(EnvHistory), os.Getenv(EnvFaults)
	if dir == "" && faults == "" {
		return s
	}
	t := &tap{Store: s, born: time.Now()}
	for f := range strings.SplitSeq(faults, ",") {
		if f != "" {
			t.faults = append(t.faults, f)
		}
	}
	if dir != "" {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("store-%d.jsonl", os.Getpid())), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", EnvHistory, err)
			os.Exit(2)
		}
		t.file = f
	}
	// What a caller finds by asking for an interface must be found through the tap too.
	if a, ok := s.(attendant); ok {
		return struct {
			*tap
			attendant
		}{t, a}
	}
	if f, ok := s.(embedded); ok {
		t.wallOnly = true
		return struct {
			*standingTap
			failing
		}{&standingTap{t, f}, f}
	}
	return t
}

type attendant interface {
	Attend(ctx context.Context, now time.Time, dispatcher task.ID, ttl time.Duration) (first bool, err error)
	Depart(ctx context.Context, now time.Time, dispatcher task.ID) error
}

type failing interface {
	Failed() <-chan struct{}
	Err() error
}

// embedded is what the embedded store is beside a store.
type embedded interface {
	failing
	store.Standing
}

// standingTap implements store.Standing too.
type standingTap struct {
	*tap
	standing store.Standing
}

// Stand implements store.Standing. What is served was claimed at some moment since.
func (t *standingTap) Stand(ctx context.Context, now time.Time, r store.ClaimRequest, lease time.Duration, deliver func([]store.Claimed)) error {
	asked := monotonic()
	return t.standing.Stand(ctx, t.at(now, t.shift()), r, lease, func(tasks []store.Claimed) {
		e := Entry{Process: os.Getpid(), Op: "claim", Start: asked, End: monotonic(), Shift: int64(t.shift())}
		for _, c := range tasks {
			e.Items = append(e.Items, claimItem(c, r.Worker))
		}
		t.write(&e)
		deliver(tasks)
	})
}

// Withdraw implements store.Standing.
func (t *standingTap) Withdraw(claim task.ID) { t.standing.Withdraw(claim) }

// tap implements store.Store.
type tap struct {
	store.Store
	faults []string
	born   time.Time
	// wallOnly: a clock that leaps keeps its monotonic part.
	wallOnly bool
	calls    [len(methods)]atomic.Int64

	mu   sync.Mutex
	file *os.File
}

// methods are struck by the faults one after another, each for a second.
var methods = [...]string{"submit", "claim", "renew", "resume", "settle", "reap", "cancel", "function"}

// fault says what happens to this call of a method.
func (t *tap) fault(op string) string {
	const turn = time.Second
	now := time.Since(t.born)
	method := slices.Index(methods[:], op)
	kinds := slices.DeleteFunc(slices.Clone(t.faults), func(f string) bool { return f == "clock" })
	if len(kinds) == 0 || int(now/turn)%len(methods) != method {
		return ""
	}
	// Every second call gets through, so that what is repeated succeeds.
	if t.calls[method].Add(1)%2 == 0 {
		return ""
	}
	return kinds[int(now/turn)/len(methods)%len(kinds)]
}

// shift is how far the process's clock is off at present.
func (t *tap) shift() time.Duration {
	if !slices.Contains(t.faults, "clock") {
		return 0
	}
	return []time.Duration{0, time.Hour, 0, -time.Hour}[int(time.Since(t.born)/time.Second)%4]
}

// at moves a reading of the process's clock.
func (t *tap) at(reading time.Time, by time.Duration) time.Time {
	switch {
	case reading.IsZero() || by == 0:
		return reading
	case t.wallOnly:
		return wallBy(reading, by)
	default:
		return reading.Add(by)
	}
}

// wallBy moves the wall part of a reading by whole seconds, as a clock that is set does.
// A Time with a monotonic part is marked by its topmost bit and holds its wall seconds
// from bit 30 on; nothing in package time offers this.
func wallBy(reading time.Time, by time.Duration) time.Time {
	word := (*uint64)(unsafe.Pointer(&reading))
	if *word>>63 == 0 {
		return reading.Add(by)
	}
	*word += uint64(int64(by/time.Second)) << 30
	return reading
}

// lostReply is what a caller sees of a connection that broke.
func lostReply(op string) error {
	return task.Errorf(task.CodeUnavailable, op, "the connection to the store broke (a fault of the chaos suite): the outcome is unknown")
}

// through makes a call with the fault that is its turn and writes it down. items is asked
// for what happened after a call that succeeded.
func through(t *tap, op string, call func() error, items func() []Item) error {
	fault := t.fault(op)
	switch fault {
	case "refuse":
		return lostReply(op)
	case "delay":
		time.Sleep(time.Duration(rand.Int64N(int64(maxDelay))))
	}
	e := Entry{Process: os.Getpid(), Op: op, Start: monotonic(), Shift: int64(t.shift())}
	err := call()
	if err == nil && fault == "duplicate" {
		err = call()
	}
	e.End = monotonic()
	if err != nil {
		e.Err = err.Error()
	} else {
		e.Items = items()
	}
	e.Lost = fault == "lose-reply"
	t.write(&e)
	if e.Lost {
		return lostReply(op)
	}
	return err
}

// write appends one line. A line is one write, so that a kill cuts at most the last one.
func (t *tap) write(e *Entry) {
	// A reap has no items; what it did under a clock that is off is of interest.
	if t.file == nil || e.Err == "" && len(e.Items) == 0 && (e.Op != "reap" || e.Shift == 0) {
		return
	}
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // of an Entry: there is nothing in it that could fail
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	w := bufio.NewWriterSize(t.file, len(line)+1)
	_, _ = w.Write(append(line, '\n'))
	_ = w.Flush() // a full disk is one of the faults: the history ends there
}

func item(tok task.Token) Item {
	return Item{Task: tok.Task.String(), Epoch: tok.Epoch, Claim: tok.Claim.String(), Attempt: tok.Attempt}
}

func claimItem(c store.Claimed, worker string) Item {
	it := item(c.Token)
	it.Worker, it.Status = worker, string(c.Task.Status)
	it.Losses, it.Lapses, it.Retries = c.Task.Losses, c.Task.Lapses, c.Task.MaxRetries
	return it
}

// Submit implements store.Tasks.
func (t *tap) Submit(ctx context.Context, now time.Time, items []store.Submission) (out []store.Submitted, err error) {
	by := t.shift()
	err = through(t, "submit", func() error {
		out, err = t.Store.Submit(ctx, t.at(now, by), items)
		return err
	}, func() (list []Item) {
		for i, o := range out {
			if o.Err == nil {
				list = append(list, Item{Task: o.ID.String(), Key: items[i].Key.ID})
			}
		}
		return list
	})
	return out, err
}

// Cancel implements store.Tasks.
func (t *tap) Cancel(ctx context.Context, now time.Time, ids []task.ID, onlyQueued bool) (out []*task.Task, err error) {
	by := t.shift()
	err = through(t, "cancel", func() error {
		out, err = t.Store.Cancel(ctx, t.at(now, by), ids, onlyQueued)
		return err
	}, func() (list []Item) {
		for _, o := range out {
			if o != nil {
				list = append(list, Item{Task: o.ID.String(), Epoch: o.Epoch, Outcome: string(o.Status)})
			}
		}
		return list
	})
	return out, err
}

// Claim implements store.Queue.
func (t *tap) Claim(ctx context.Context, now time.Time, reqs []store.ClaimRequest) (out [][]store.Claimed, err error) {
	by := t.shift()
	shifted := slices.Clone(reqs)
	for i := range shifted {
		shifted[i].Until = t.at(shifted[i].Until, by)
	}
	err = through(t, "claim", func() error {
		out, err = t.Store.Claim(ctx, t.at(now, by), shifted)
		return err
	}, func() (list []Item) {
		for i, got := range out {
			for _, c := range got {
				list = append(list, claimItem(c, reqs[i].Worker))
			}
		}
		return list
	})
	return out, err
}

func (t *tap) shiftRenewals(items []store.Renewal, by time.Duration) []store.Renewal {
	out := slices.Clone(items)
	for i := range out {
		out[i].Until, out[i].StartedAt = t.at(out[i].Until, by), t.at(out[i].StartedAt, by)
	}
	return out
}

func renewalItems(items []store.Renewal, out []task.Verdict, worker string) (list []Item) {
	for i, v := range out {
		it := item(items[i].Token)
		it.Verdict, it.Worker = string(v), worker
		if !items[i].StartedAt.IsZero() {
			it.Outcome = "started"
		}
		list = append(list, it)
	}
	return list
}

// Renew implements store.Queue.
func (t *tap) Renew(ctx context.Context, now time.Time, items []store.Renewal) (out []task.Verdict, err error) {
	by := t.shift()
	shifted := t.shiftRenewals(items, by)
	err = through(t, "renew", func() error {
		out, err = t.Store.Renew(ctx, t.at(now, by), shifted)
		return err
	}, func() []Item { return renewalItems(items, out, "") })
	return out, err
}

// Resume implements store.Queue.
func (t *tap) Resume(ctx context.Context, now time.Time, r store.Resumption) (out []task.Verdict, err error) {
	by := t.shift()
	shifted := r
	shifted.Until, shifted.Held = t.at(r.Until, by), t.shiftRenewals(r.Held, by)
	err = through(t, "resume", func() error {
		out, err = t.Store.Resume(ctx, t.at(now, by), shifted)
		return err
	}, func() []Item { return renewalItems(r.Held, out, r.Worker) })
	return out, err
}

// Settle implements store.Queue.
func (t *tap) Settle(ctx context.Context, now time.Time, items []store.Settlement) (out []task.Verdict, err error) {
	by := t.shift()
	err = through(t, "settle", func() error {
		out, err = t.Store.Settle(ctx, t.at(now, by), items)
		return err
	}, func() (list []Item) {
		for i, v := range out {
			it := item(items[i].Token)
			it.Verdict, it.Outcome = string(v), string(items[i].Outcome.End)
			list = append(list, it)
		}
		return list
	})
	return out, err
}

// Reap implements store.Queue.
func (t *tap) Reap(ctx context.Context, now time.Time, limit int) (next time.Time, err error) {
	by := t.shift()
	err = through(t, "reap", func() error {
		next, err = t.Store.Reap(ctx, t.at(now, by), limit)
		if !next.IsZero() {
			next = next.Add(-by)
		}
		return err
	}, func() []Item { return nil })
	return next, err
}

// PutFunction implements store.Functions.
func (t *tap) PutFunction(ctx context.Context, f task.Function, payload []byte, key store.Key) (out task.Function, err error) {
	err = through(t, "function", func() error {
		out, err = t.Store.PutFunction(ctx, f, payload, key)
		return err
	}, func() []Item { return nil })
	return out, err
}

// Close implements store.Store.
func (t *tap) Close() error {
	err := t.Store.Close()
	if t.file != nil {
		t.file.Close()
	}
	return err
}
