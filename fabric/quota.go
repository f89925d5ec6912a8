package fabric

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// Quotas bound what one owner may have in the store at one time; 0 is no bound.
type Quotas struct {
	// Tasks bounds the unfinished tasks, Functions the registrations, Queues the names of
	// queues that the two are in.
	Tasks, Functions, Queues int
	// Bytes bounds arguments of unfinished tasks, results of finished ones until they are
	// removed, and functions: see [store.Usage].
	Bytes int64
}

// DefaultQuotas are generous: they keep one owner from filling the store for all.
var DefaultQuotas = Quotas{Tasks: 10_000_000, Functions: 100_000, Queues: 10_000, Bytes: 64 << 30}

// quotas keep owners within their quotas. What an owner has is read from the store now and
// then, and this server adds what it let in since, so it never lets in more than the quota by
// itself. What other servers on the store let in meanwhile is seen at the next reading: a
// second later, or at once when there seems to be no room.
type quotas struct {
	limits Quotas
	usage  func(ctx context.Context, owner string) (store.Usage, error)

	mu       sync.Mutex
	accounts map[string]*account
}

// Bounds of what is remembered of owners.
const (
	// usageAge is how long a reading is good for.
	usageAge = time.Second
	// manyQueues makes an owner's reading dear, as it carries all their names from every
	// shard: 10,000 of them in 16 shards hold Redis up for tens of milliseconds. Such an owner
	// is refused by the last reading until that is usageAge old.
	manyQueues = 1000
	// maxAccounts is how many owners are remembered before idle ones are forgotten.
	maxAccounts = 4096
)

// newQuotas returns nil where nothing is bounded.
func newQuotas(cfg *Config) *quotas {
	if cfg.Quotas == (Quotas{}) {
		return nil
	}
	return &quotas{limits: cfg.Quotas, usage: cfg.Store.Usage, accounts: make(map[string]*account)}
}

// demand is what a call wants to store.
type demand struct {
	tasks, functions int
	bytes            int64
	queue            string
}

func (d *demand) add(o demand, sign int) {
	d.tasks += sign * o.tasks
	d.functions += sign * o.functions
	d.bytes += int64(sign) * o.bytes
}

// account is what is known of one owner.
type account struct {
	// reading has room for the one call that reads from the store.
	reading chan struct{}

	mu sync.Mutex
	// have is what the store said at.
	have store.Usage
	at   time.Time
	// asked is what calls under way want, since what was let in after the reading, and
	// during what was let in while the next one is under way.
	asked, since, during demand
	// queues are those that were let in and that the reading did not have.
	queues map[string]queueUse
	calls  int
}

// queueUse is what a reading cannot have seen of a queue: how many calls for it are under
// way, and when the last one was done.
type queueUse struct {
	calls int
	done  time.Time
}

func (q *quotas) account(owner string) *account {
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.accounts[owner]
	if a == nil {
		if len(q.accounts) >= maxAccounts {
			for name, other := range q.accounts {
				if other.idle() {
					delete(q.accounts, name)
				}
			}
		}
		a = &account{reading: make(chan struct{}, 1), queues: make(map[string]queueUse)}
		q.accounts[owner] = a
	}
	a.mu.Lock()
	a.calls++
	a.mu.Unlock()
	return a
}

func (a *account) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls == 0
}

// admission is what one call was let in with. Call done once, with which of it was stored.
type admission struct {
	a     *account
	wants []demand
	// refused has an error for each want that there is no room for; nil when there are none.
	refused []error
}

// admit says which of what a call wants there is room for, in order.
func (q *quotas) admit(ctx context.Context, owner string, wants []demand) (*admission, error) {
	ad := &admission{a: q.account(owner), wants: wants}
	a := ad.a
	began := time.Now()
	err := q.read(ctx, owner, a, func(age time.Duration) bool { return age < usageAge })
	tried := err != nil
	let := 0
	for i := 0; i < len(wants) && err == nil; i++ {
		over := a.take(&q.limits, owner, wants[i])
		if over != nil && !tried {
			// The reading may be old, and things may have ended since. One that began after
			// this call did says nothing else a second time.
			tried = true
			err = q.read(ctx, owner, a, func(age time.Duration) bool { return age <= time.Since(began) || age < usageAge && a.dear() })
			if err == nil {
				over = a.take(&q.limits, owner, wants[i])
			}
		}
		if over != nil {
			if ad.refused == nil {
				ad.refused = make([]error, len(wants))
			}
			ad.refused[i] = over
		}
		if err == nil {
			let++
		}
	}
	if err != nil {
		ad.wants = wants[:let]
		ad.done(make([]bool, let))
		return nil, err
	}
	return ad, nil
}

func (a *account) dear() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.have.Queues) > manyQueues
}

// read asks the store what an owner has, unless the last reading is good enough by its age.
func (q *quotas) read(ctx context.Context, owner string, a *account, good func(age time.Duration) bool) error {
	fresh := func() bool {
		a.mu.Lock()
		at := a.at
		a.mu.Unlock()
		return !at.IsZero() && good(time.Since(at))
	}
	if fresh() {
		return nil
	}
	select {
	case a.reading <- struct{}{}:
		defer func() { <-a.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if fresh() {
		return nil // somebody else has read it meanwhile
	}
	a.mu.Lock()
	a.during = demand{}
	a.mu.Unlock()
	began := time.Now()
	have, err := q.usage(ctx, owner)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.have, a.at, a.since = have, began, a.during
	for name, use := range a.queues {
		if _, had := have.Queues[name]; had || use.calls == 0 && use.done.Before(began) {
			delete(a.queues, name)
		}
	}
	return nil
}

// take lets one want in, or says which quota has no room for it.
func (a *account) take(limits *Quotas, owner string, w demand) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range [...]struct {
		name               string
		used, wants, limit int64
	}{
		{"tasks", int64(a.have.Tasks + a.since.tasks + a.asked.tasks), int64(w.tasks), int64(limits.Tasks)},
		{"bytes", a.have.Bytes + a.since.bytes + a.asked.bytes, w.bytes, limits.Bytes},
		{"functions", int64(a.have.Functions + a.since.functions + a.asked.functions), int64(w.functions), int64(limits.Functions)},
	} {
		if c.limit > 0 && c.wants > 0 && c.used+c.wants > c.limit {
			return &OverQuota{owner: owner, quota: c.name, used: c.used, wants: c.wants, limit: c.limit}
		}
	}
	if _, had := a.have.Queues[w.queue]; !had {
		use, got := a.queues[w.queue]
		if used := len(a.have.Queues) + len(a.queues); !got && limits.Queues > 0 && used >= limits.Queues {
			return &OverQuota{owner: owner, quota: "queues", used: int64(used), wants: 1, limit: int64(limits.Queues)}
		}
		use.calls++
		a.queues[w.queue] = use
	}
	a.asked.add(w, 1)
	return nil
}

// refusal is why there is no room for a want; nil when there is.
func (ad *admission) refusal(i int) error {
	if ad.refused == nil {
		return nil
	}
	return ad.refused[i]
}

// done ends a call. stored says what of its wants there is now that was not there before;
// nil means all of it, as far as anybody knows.
func (ad *admission) done(stored []bool) {
	a := ad.a
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls--
	for i, w := range ad.wants {
		if ad.refusal(i) != nil {
			continue
		}
		a.asked.add(w, -1)
		if use, ok := a.queues[w.queue]; ok {
			a.queues[w.queue] = queueUse{calls: max(use.calls-1, 0), done: time.Now()}
		}
		if stored == nil || stored[i] {
			a.since.add(w, 1)
			a.during.add(w, 1)
		}
	}
}

// recordTasks has the store record tasks of one caller, as far as the quotas allow. What is
// over a quota is answered with that as its error, unless it is a repeat.
func (f *Fabric) recordTasks(ctx context.Context, owner string, now time.Time, items []store.Submission) ([]store.Submitted, error) {
	if f.quotas == nil || owner == "" {
		return f.cfg.Store.Submit(ctx, now, items)
	}
	out := make([]store.Submitted, len(items))
	todo := make([]int, len(items))
	for i := range todo {
		todo[i] = i
	}
	for {
		refused, freed, err := f.recordSome(ctx, now, owner, items, todo, out)
		if err != nil {
			return nil, err
		}
		// Room that was kept for what turned out to be repeats is there for the others.
		if todo = refused; !freed || len(todo) == 0 {
			return out, nil
		}
	}
}

// recordSome is one round of recordTasks for the items todo. It returns those that a quota
// refused, and whether repeats among the others gave room back.
func (f *Fabric) recordSome(ctx context.Context, now time.Time, owner string, items []store.Submission, todo []int, out []store.Submitted) (
	refused []int, freed bool, err error,
) {
	wants := make([]demand, len(todo))
	for k, i := range todo {
		t := items[i].Task
		wants[k] = demand{tasks: 1, bytes: int64(t.ArgsSize), queue: t.Queue}
	}
	ad, err := f.quotas.admit(ctx, owner, wants)
	if err != nil {
		return nil, false, err
	}
	send, of := make([]store.Submission, 0, len(todo)), make([]int, 0, len(todo))
	for k, i := range todo {
		item := items[i]
		if item.Key.Refused = ad.refusal(k); item.Key.Refused != nil && item.Key.ID == "" {
			out[i] = store.Submitted{Err: item.Key.Refused}
			continue
		}
		send, of = append(send, item), append(of, k)
	}
	if len(send) > 0 {
		answers, err := f.cfg.Store.Submit(ctx, now, send)
		if err != nil {
			ad.done(nil)
			return nil, false, err
		}
		for n, k := range of {
			out[todo[k]] = answers[n]
		}
	}
	stored := make([]bool, len(todo))
	for k, i := range todo {
		stored[k] = out[i].Err == nil && !out[i].Duplicate
		switch over := ad.refusal(k); {
		case over == nil:
			freed = freed || !stored[k]
		case errors.Is(out[i].Err, over):
			refused = append(refused, i)
		}
	}
	ad.done(stored)
	return refused, freed, nil
}

// recordFunction has the store record a function, if the quotas allow it or if it is a repeat.
func (f *Fabric) recordFunction(ctx context.Context, fn task.Function, payload []byte, key store.Key) (task.Function, error) {
	if f.quotas == nil || fn.CreatedBy == "" {
		return f.cfg.Store.PutFunction(ctx, fn, payload, key)
	}
	ad, err := f.quotas.admit(ctx, fn.CreatedBy, []demand{{functions: 1, bytes: int64(fn.Size), queue: fn.Queue}})
	if err != nil {
		return fn, err
	}
	if ad.refused != nil {
		if key.ID == "" && !fn.Transient {
			ad.done(nil)
			return fn, ad.refused[0]
		}
		key.Refused = ad.refused[0]
	}
	recorded, err := f.cfg.Store.PutFunction(ctx, fn, payload, key)
	ad.done([]bool{err == nil && recorded.ID == fn.ID || task.CodeOf(err) == task.CodeUnavailable})
	return recorded, err
}

// OverQuota is a refusal: nothing was stored. It is of [task.CodeExhausted].
type OverQuota struct {
	owner, quota       string
	used, wants, limit int64
}

// Error implements error.
func (e *OverQuota) Error() string {
	t := quotaTexts[e.quota]
	return fmt.Sprintf("quota %s: token %s has %d %s, and %d more would pass its limit of %d (--quota-%s): %s",
		e.quota, e.owner, e.used, t.of, e.wants, e.limit, e.quota, t.fix)
}

// quotaTexts say of each quota what it counts, and how to have less of it.
var quotaTexts = map[string]struct{ of, fix string }{
	"tasks":     {"unfinished tasks", "let some finish, or cancel them"},
	"bytes":     {"bytes stored", "arguments go when their task ends, results after the retention"},
	"functions": {"functions", "register a function once and submit by its id, or delete some (treadle functions rm)"},
	"queues":    {"queue names in use", "a name is free again when no unfinished task and no function has it"},
	"waited":    {"tasks that its calls wait for", "wait for fewer at a time"},
}

// Unwrap makes it an error of [task.CodeExhausted].
func (e *OverQuota) Unwrap() error { return &task.Error{Code: task.CodeExhausted} }

// Metadata is the same for programs.
func (e *OverQuota) Metadata() map[string]string {
	return map[string]string{"quota": e.quota, "used": strconv.FormatInt(e.used, 10), "limit": strconv.FormatInt(e.limit, 10)}
}
