// Package store says what Treadle remembers and how it may change. The comments
// of its interfaces are the specification; [storetest] runs them as one suite over
// every implementation.
//
// Rules for all methods:
//   - A method that changes something returns after the change is durable in the
//     store's own durability mode, never before.
//   - Time is an argument ("now", store time). A store reads no clock for a decision;
//     it may use one to answer late readers (a backend with its own clock uses that).
//   - All methods may be called concurrently. A context ends the wait, not the
//     change: after a cancelled call the outcome is unknown.
//   - Batches are answered item by item, in order; the error is for the whole call,
//     as a [task.Error] of code Unavailable where a retry may help.
//   - Byte slices passed in are not kept and not changed after return; slices
//     handed out belong to the caller.
//
// [storetest]: https://pkg.go.dev/github.com/treadle-dev/treadle/store/storetest
package store

import (
	"context"
	"fmt"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// Store is everything a Treadle process needs to remember. Consumers declare the
// slice that they use; [Queue] is the dispatcher's.
type Store interface {
	Functions
	Tasks
	Queue
	Fleet
	Owners

	// Bell returns the store's bell, which rings for every process on the store.
	Bell() Bell
	// Info says what kind of store this is, for people and for the API.
	Info() Info
	// Close waits for running calls, refuses new ones with Unavailable and releases
	// everything. It may be called once.
	Close() error
}

// Info describes a store.
type Info struct {
	// Durability is "memory", "embedded", "redis-async" or "redis-replicated".
	Durability string
	// Location is the store's URL or folder, without secrets.
	Location string
}

// Functions keeps registrations.
type Functions interface {
	// PutFunction records f with its payload; the payload is stored once by f.Hash.
	// A non-empty key makes the call idempotent: the same key with the same digest
	// returns the function recorded first, with another digest CodeConflict. The
	// newest registration of a name becomes what the name means.
	//
	// A transient function whose [Twin] is registered answers that one, as used now; it
	// takes no key.
	PutFunction(ctx context.Context, f task.Function, payload []byte, key Key) (task.Function, error)
	// Function returns a registration by id; CodeNotFound without one.
	Function(ctx context.Context, id task.ID) (task.Function, error)
	// FunctionNamed returns the newest registration of a name; CodeNotFound without one.
	FunctionNamed(ctx context.Context, name string) (task.Function, error)
	// FunctionPayload returns the bytes with that SHA-256; CodeNotFound without them.
	FunctionPayload(ctx context.Context, hash [32]byte) ([]byte, error)
	// ListFunctions returns up to limit registrations, newest first, whose id is
	// smaller than before (the zero id starts at the newest).
	//
	// Transient ones that no task was submitted for, and that nobody registered again, for
	// a retention are deleted by [Queue.Reap], unless an unfinished task is theirs. Uses are
	// kept to the hour, or a quarter of the retention where that is less.
	ListFunctions(ctx context.Context, before task.ID, limit int) ([]task.Function, error)
	// DeleteFunction removes a registration with its key; its bytes go when no other has the
	// same. Its name means the newest one left of that name, or nothing. CodeNotFound for an
	// unknown id, [InUse] while an unfinished task is the function's; what finished keeps its
	// record. A task that is submitted while its function is deleted is refused, or recorded
	// and run from the bytes, which then stay for an hour.
	DeleteFunction(ctx context.Context, id task.ID) error
}

// InUse is why a function is not deleted: unfinished tasks are its.
type InUse struct {
	Function task.ID
	// Tasks is how many there are at least.
	Tasks int
}

// Error implements error.
func (e *InUse) Error() string {
	if e.Tasks == 1 {
		return fmt.Sprintf("function %s has an unfinished task: cancel it, or wait until it has finished", e.Function)
	}
	return fmt.Sprintf("function %s has %d unfinished tasks: cancel them, or wait until they have finished", e.Function, e.Tasks)
}

// Unwrap makes it an error of [task.CodeState].
func (*InUse) Unwrap() error { return &task.Error{Code: task.CodeState} }

// Key makes a call idempotent. The zero Key asks for nothing.
type Key struct {
	// ID is the client's request id, at most 128 bytes.
	ID string
	// Digest is the SHA-256 of what the request asks for.
	Digest [32]byte
	// Refused, when set, lets the call answer a repeat and nothing else: what was not
	// recorded before is refused with this error, and nothing is stored for it.
	Refused error
}

// Owners counts what those have in the store who made it.
type Owners interface {
	// Usage returns what is stored under an owner: [task.Task.CreatedBy] and
	// [task.Function.CreatedBy]. It includes every change that was answered before the
	// call. An owner that has nothing, or was never heard of, uses nothing.
	Usage(ctx context.Context, owner string) (Usage, error)
}

// Usage is what one owner has in the store.
type Usage struct {
	// Tasks counts unfinished tasks, Functions registrations.
	Tasks, Functions int
	// Bytes is the size of the arguments of unfinished tasks, of the results of finished
	// ones until they are removed, and of the bytes of functions: each registration counts
	// its own, though equal bytes are stored once.
	Bytes int64
	// Queues are the names of the queues of those tasks and functions.
	Queues map[string]struct{}
}

// Tasks is what clients see.
type Tasks interface {
	// Submit records new tasks as QUEUED (T1) and rings [Ready]. Each item is
	// answered by itself: the same key and digest again answer the id given first, with
	// Duplicate set. Keys live as long as their task.
	Submit(ctx context.Context, now time.Time, items []Submission) ([]Submitted, error)
	// Task returns a record without payloads; CodeNotFound without one. A record that
	// was acknowledged is found at once by every process on the store, and what Task
	// returns is durable.
	Task(ctx context.Context, id task.ID) (*task.Task, error)
	// Tasks is Task for many ids in one call; an unknown id gives a nil entry.
	Tasks(ctx context.Context, ids []task.ID) ([]*task.Task, error)
	// Result returns record and result bytes of a task in any state; the bytes are nil
	// unless it is COMPLETED.
	Result(ctx context.Context, id task.ID) (*task.Task, []byte, error)
	// ListTasks returns up to q.Limit records, newest first. It may return fewer than
	// exist after having looked at many rows that do not match: next is the id to pass
	// as q.Before for the following page, zero when the listing is complete.
	ListTasks(ctx context.Context, q ListQuery) (page []*task.Task, next task.ID, err error)
	// Cancel ends unfinished tasks (T9), rings [Done] and, where a session holds one,
	// [Revoked]. With onlyQueued it leaves RUNNING ones alone, an offer that has not started
	// is taken back. It answers with the record after the call; a nil entry is an unknown id.
	Cancel(ctx context.Context, now time.Time, ids []task.ID, onlyQueued bool) ([]*task.Task, error)
	// Log returns what is kept of an attempt's output: its last [task.MaxLog] bytes.
	// Attempt 0 means the latest one. An attempt without output has an empty log;
	// CodeNotFound for an unknown task.
	Log(ctx context.Context, id task.ID, attempt int) ([]byte, error)
	// QueueStats counts unfinished tasks by queue and runtime key, sorted by both.
	QueueStats(ctx context.Context) ([]QueueStat, error)
}

// Submission is one task to record. Task carries everything but what Submit fills
// in (status, times, sequence).
type Submission struct {
	Task *task.Task
	Args []byte
	Key  Key
	// Transient says that the function is: its use is noted.
	Transient bool
}

// Submitted answers one Submission.
type Submitted struct {
	ID        task.ID
	Duplicate bool
	// Err is CodeConflict for a key used with another digest, or [Key.Refused].
	Err error
}

// ListQuery selects tasks; zero fields select all.
type ListQuery struct {
	Status        task.Status
	Function      task.ID
	Parent        task.ID
	Worker        string
	CreatedAfter  time.Time
	CreatedBefore time.Time
	Before        task.ID
	// Limit is from 1 to 1000.
	Limit int
}

// QueueStat counts the unfinished tasks of one queue and runtime key.
type QueueStat struct {
	Queue   string
	Runtime string
	// Queued includes delayed and offered tasks.
	Queued  int
	Running int
}

// Queue is what a dispatcher uses. Every change goes by the token of the claim in
// force; an old token changes nothing and is answered [task.VerdictStale].
type Queue interface {
	// Claim offers ready tasks to sessions (T2). Requests are served in order; each
	// takes tasks of its queues and runtimes by priority (higher first), then by
	// arrival. A task past its deadline is not offered: the claim ends it (T8). It answers one slice per request, possibly empty, and never waits for
	// work. The request's claim id makes it idempotent.
	Claim(ctx context.Context, now time.Time, reqs []ClaimRequest) ([][]Claimed, error)
	// Renew extends leases, and records the start of attempts (T3). It never shortens one, nor
	// extends one beyond what the timeout of the task allows, see [task.Task.Renew].
	Renew(ctx context.Context, now time.Time, items []Renewal) ([]task.Verdict, error)
	// Resume renews what a worker says on return that it holds, moves it to the
	// session and requeues every claim of that worker that it does not list, as handed back:
	// uncounted and at once, up to [task.MaxReturns] of the attempts that were started.
	Resume(ctx context.Context, now time.Time, r Resumption) ([]task.Verdict, error)
	// Settle records outcomes (T4 to T7), rings [Done] for tasks that ended and
	// [Ready] for those that go back.
	Settle(ctx context.Context, now time.Time, items []Settlement) ([]task.Verdict, error)
	// Reap ends what is overdue, at most limit tasks: expired leases (as EndLost, or
	// EndLapsed when never started; ringing [Revoked]), passed deadlines (T8), finished
	// tasks past their retention (T10). Delayed tasks that are due ring [Ready]. It
	// answers when it wants to be called next at the latest, zero for "no idea".
	Reap(ctx context.Context, now time.Time, limit int) (next time.Time, err error)
}

// Standing is a [Queue] that holds claim requests until there is work for them: a
// session that waits gets a task in the very change that makes it ready, and nobody
// has to be told to come and claim it. A store without it is asked by Claim alone.
type Standing interface {
	// Stand holds a request for one task (Max is taken as 1, Until as lease after the
	// claim). When one is ready already it is claimed before Stand returns. deliver is
	// called once, or never; it runs on a goroutine of the store and must not block. It
	// brings the task when its claim is durable, or nothing when there is a task that
	// only Claim can hand out, as its arguments are large: the request is at an end then
	// too. Ready does not ring for tasks that were given away like this.
	Stand(ctx context.Context, now time.Time, r ClaimRequest, lease time.Duration, deliver func([]Claimed)) error
	// Withdraw forgets the request with that claim id. One that is being served is
	// delivered all the same.
	Withdraw(claim task.ID)
}

// ClaimRequest asks for work on behalf of one session.
type ClaimRequest struct {
	// Claim is the random id that all tasks of this request are claimed under.
	Claim    task.ID
	Session  task.ID
	Worker   string
	Local    bool
	Queues   []string
	Runtimes []string
	// Max bounds the number of tasks, MaxBytes the sum of their arguments; the first
	// task is given whatever its size. MaxBytes 0 means no bound.
	Max      int
	MaxBytes int
	// Until is the end of the lease.
	Until time.Time
}

// Claimed is one task offered.
type Claimed struct {
	Token task.Token
	// Task is a private copy of the record.
	Task *task.Task
	Args []byte
}

// Renewal extends one lease.
type Renewal struct {
	Token task.Token
	Until time.Time
	// StartedAt is not zero once the attempt runs.
	StartedAt time.Time
	// Log is output since the last word, appended to what is kept.
	Log []byte
}

// Resumption is a worker that is back.
type Resumption struct {
	Worker  string
	Session task.ID
	Until   time.Time
	Held    []Renewal
}

// Settlement is one outcome. Log is output since the last word.
type Settlement struct {
	Token   task.Token
	Outcome task.Outcome
	// Session, unless it is zero, must be the one that holds the claim, or the settlement
	// is stale: who speaks for a worker that it lost must not end what another session
	// of that worker has taken over.
	Session task.ID
	Log     []byte
	// Jitter in [0,1) spreads the delay of a retry.
	Jitter float64
}

// Fleet keeps the workers that dispatchers currently see, for people. It is
// presence, not truth: entries vanish when they are not announced for a while.
type Fleet interface {
	// Announce replaces what is known of the named workers until "until"; a worker
	// whose entry has Gone set is forgotten.
	Announce(ctx context.Context, until time.Time, workers []Presence) error
	// Workers returns the entries that are still valid at now, sorted by id.
	Workers(ctx context.Context, now time.Time) ([]Presence, error)
}

// Presence describes one attached worker.
type Presence struct {
	Worker   string
	Name     string
	Host     string
	PID      int
	Mode     string
	State    string
	Queues   []string
	Runtimes []string
	Version  string
	Slots    int
	Running  int
	Offered  int
	// ConnectedAt is when the session was opened.
	ConnectedAt time.Time
	LastSeen    time.Time
	Gone        bool
}

// Results is what a store has whose answers take a way: it reads many results in one.
type Results interface {
	// Results reads records and results like Result. An entry without a task is to be
	// asked for by Result: there is none, or its result is too large to be read with others.
	Results(ctx context.Context, ids []task.ID) ([]Read, error)
}

// Read is one answer of Results.
type Read struct {
	Task *task.Task
	// Result is nil unless the task is COMPLETED.
	Result []byte
}

// Bell tells processes on one store that something happened. A ring may be missed
// or doubled (a network, a full buffer): it says where to look, never what is true,
// so every listener also looks by itself now and then.
type Bell interface {
	// Listen calls fn with each batch of signals until stop is called; stop returns
	// after the last call of fn. fn must not block and must not keep the slice.
	Listen(fn func([]Signal)) (stop func())
	// Ring sends signals that the store does not send by itself ([Wanted], [Attending]).
	Ring(ctx context.Context, signals []Signal)
	// Watch asks that [Changed] rings for a task in the time to come: nobody rings it
	// without being asked. It does not wait; whoever still watches asks again before the
	// time is over.
	Watch(id task.ID, lasts time.Duration)
}

// SignalKind says what happened.
type SignalKind int

// Signals.
const (
	// Ready: tasks of Queue and Runtime may be claimed. Count is how many became ready, or more;
	// 0 where that is not known.
	Ready SignalKind = iota + 1
	// Wanted: a session of dispatcher From has an idle slot for Queue and Runtime and
	// found nothing; whoever has offers that did not start gives Count of them back.
	Wanted
	// Revoked: the claim (Task, Claim) is no longer in force though its holder did not
	// settle it: cancelled, past its deadline, or its lease ran out.
	Revoked
	// Done: Task is terminal.
	Done
	// Changed: Task was started, or went back to its queue. Rung only while somebody
	// watches the task, see [Bell].
	Changed
	// Attending: dispatcher From takes workers of the mode that Runtime names and has Count
	// of them; it leaves when Count is negative. Every dispatcher rings it now and then.
	Attending
)

// Signal is one ring of the bell.
type Signal struct {
	Kind    SignalKind
	Queue   string
	Runtime string
	Task    task.ID
	Claim   task.ID
	From    task.ID
	Count   int
}
