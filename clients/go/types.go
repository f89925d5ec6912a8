package treadle

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// Status is the public state of a task.
type Status string

// Statuses. A task moves QUEUED, RUNNING, terminal; a requeue leads back to QUEUED.
const (
	Queued    Status = "QUEUED"
	Running   Status = "RUNNING"
	Completed Status = "COMPLETED"
	Failed    Status = "FAILED"
	Cancelled Status = "CANCELLED"
)

// Terminal reports whether the status is final: it never changes again.
func (s Status) Terminal() bool { return s == Completed || s == Failed || s == Cancelled }

// Function is a registration. It never changes.
type Function struct {
	ID   string `json:"function_id"`
	Name string `json:"name"`
	// Runtime is "python", or "go/" followed by the name of a handler.
	Runtime string `json:"runtime"`
	Queue   string `json:"queue"`
	// Form is "pickle", "source" or "none".
	Form string `json:"form"`
	// Python is the version whose bytecode the payload holds; empty for any.
	Python string `json:"python,omitempty"`
	// PayloadSHA256 is in hexadecimal, PayloadSize in bytes.
	PayloadSHA256 string    `json:"payload_sha256,omitempty"`
	PayloadSize   int       `json:"payload_size"`
	CreatedAt     time.Time `json:"created_at,omitzero"`
	// CreatedBy is the id of the token that registered it; empty on servers that ask for none.
	CreatedBy string `json:"created_by,omitempty"`
	// Transient is as it was registered, see [Registration].
	Transient bool `json:"transient,omitempty"`
}

// Task is the record of one execution.
type Task struct {
	ID           string    `json:"task_id"`
	FunctionID   string    `json:"function_id"`
	FunctionName string    `json:"function_name"`
	Queue        string    `json:"queue"`
	Runtime      string    `json:"runtime"`
	Status       Status    `json:"status"`
	Priority     int       `json:"priority"`
	CreatedAt    time.Time `json:"created_at,omitzero"`
	// CreatedBy is the id of the token that submitted it; empty on servers that ask for none.
	CreatedBy string `json:"created_by,omitempty"`
	// ParentID is the task that submitted it; empty for a client's.
	ParentID string `json:"parent_id,omitempty"`
	// StartedAt is the start of the latest attempt.
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// NotBefore is until when a requeued task waits.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Worker is that of the latest attempt.
	Worker string `json:"worker,omitempty"`
	// AttemptCount counts the attempts started; Attempts holds the last 16 of them.
	AttemptCount int       `json:"attempt_count"`
	Attempts     []Attempt `json:"attempts,omitempty"`
	// LostWorkers and Raised are what was spent of Options.MaxRetries and
	// Options.FunctionRetries.
	LostWorkers int        `json:"lost_workers"`
	Raised      int        `json:"raised"`
	Error       *TaskError `json:"error,omitempty"`
	// ArgsSize and ResultSize are in bytes.
	ArgsSize   int `json:"args_size"`
	ResultSize int `json:"result_size"`
	// Options are those in force, defaults filled in.
	Options Options `json:"options"`
}

// Attempt is one started try of a task.
type Attempt struct {
	Number     int       `json:"number"`
	Worker     string    `json:"worker"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// End is what the attempt ended in ("succeeded", "raised", "lost", "returned",
	// "timed_out", "exhausted", "unreadable", "cancelled"), empty while it runs.
	End string `json:"end,omitempty"`
	// Reason is one line on an end other than "succeeded".
	Reason string `json:"reason,omitempty"`
}

// Options are the choices of one task. The zero value of each means the server's default.
type Options struct {
	// Priority is from 0 to 9, higher first; default 5.
	Priority *int
	// Timeout limits one attempt's run time from its start; default: the server's
	// --task-timeout.
	Timeout time.Duration
	// Deadline is absolute and counts waiting too.
	Deadline time.Time
	// MaxRetries is how many lost workers the task survives; default: the server's
	// --max-retries.
	MaxRetries *int
	// FunctionRetries is how often a raised exception is tried again; default 0.
	FunctionRetries *int
	// MemoryLimit bounds one attempt's memory in bytes; default: the worker's
	// --memory-limit.
	MemoryLimit int64
}

// MarshalJSON writes the names and forms of the REST API: a duration is text like "1.5s".
func (o Options) MarshalJSON() ([]byte, error) {
	var out struct {
		Priority        *int      `json:"priority,omitempty"`
		Timeout         string    `json:"timeout,omitempty"`
		Deadline        time.Time `json:"deadline,omitzero"`
		MaxRetries      *int      `json:"max_retries,omitempty"`
		FunctionRetries *int      `json:"function_retries,omitempty"`
		MemoryLimit     int64     `json:"memory_limit,omitempty"`
	}
	out.Priority, out.Deadline, out.MaxRetries = o.Priority, o.Deadline, o.MaxRetries
	out.FunctionRetries, out.MemoryLimit = o.FunctionRetries, o.MemoryLimit
	if o.Timeout != 0 {
		out.Timeout = fmt.Sprintf("%gs", o.Timeout.Seconds())
	}
	return json.Marshal(out)
}

// Result is a task's status and, when it is finished, what it ended in.
type Result struct {
	TaskID string `json:"task_id"`
	Status Status `json:"status"`
	// JSON is the value as JSON text, exact whatever its size; nil when there is none.
	JSON json.RawMessage `json:"result,omitempty"`
	// Pickle is the value where JSON cannot hold it, or where it was executed with
	// pickled arguments. Unpickling runs code: do it only when you trust the workers.
	Pickle []byte `json:"result_pickle,omitempty"`
	// Repr is a short text of a value that JSON cannot hold.
	Repr  string     `json:"result_repr,omitempty"`
	Error *TaskError `json:"error,omitempty"`
}

// Err returns nil for a COMPLETED task, the [*TaskError] of a FAILED or CANCELLED
// one, and an error that is [ErrUnfinished] for every other.
func (r *Result) Err() error {
	switch {
	case r.Status == Completed:
		return nil
	case r.Error != nil:
		return r.Error
	case r.Status == Cancelled:
		return &TaskError{Type: "Cancelled", Message: "the task was cancelled", TaskID: r.TaskID}
	case r.Status == Failed:
		return &TaskError{Type: "unknown", Message: "the task failed without a word", TaskID: r.TaskID}
	default:
		return fmt.Errorf("task %s is %s: %w", r.TaskID, r.Status, ErrUnfinished)
	}
}

// Decode reads the value into v like json.Unmarshal, or returns [Result.Err]. A nil
// v discards the value. A value that JSON cannot hold is [ErrNotJSON].
func (r *Result) Decode(v any) error {
	if err := r.Err(); err != nil {
		return err
	}
	if v == nil {
		return nil
	}
	if r.JSON == nil {
		return fmt.Errorf("task %s: %w: %s", r.TaskID, ErrNotJSON, r.Repr)
	}
	if err := json.Unmarshal(r.JSON, v); err != nil {
		return fmt.Errorf("task %s: result: %w", r.TaskID, err)
	}
	return nil
}

// Logs is what one attempt printed, at most its last 64 KiB.
type Logs struct {
	TaskID  string `json:"task_id"`
	Attempt int    `json:"attempt"`
	Text    string `json:"text"`
}

// Worker is an agent that is attached now.
type Worker struct {
	ID   string `json:"worker_id"`
	Name string `json:"name"`
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Mode is "push", "pull" or "local".
	Mode string `json:"mode"`
	// State is "active", "draining", "silent" or "lost".
	State    string   `json:"state"`
	Queues   []string `json:"queues"`
	Runtimes []string `json:"runtimes"`
	Version  string   `json:"version"`
	Slots    int      `json:"slots"`
	Running  int      `json:"running"`
	// Offered counts offers that wait for a slot.
	Offered     int       `json:"offered"`
	ConnectedAt time.Time `json:"connected_at,omitzero"`
	LastSeenAt  time.Time `json:"last_seen_at,omitzero"`
}

// Queue counts the unfinished tasks of one queue and runtime.
type Queue struct {
	Name    string `json:"name"`
	Runtime string `json:"runtime"`
	Queued  int    `json:"queued"`
	Running int    `json:"running"`
}

// ServerInfo says what a server is.
type ServerInfo struct {
	Version string `json:"version"`
	// Durability is "memory", "embedded", "redis-async" or "redis-replicated".
	Durability string `json:"durability"`
	// MaxPayload is the one limit on a decoded payload or result, in bytes.
	MaxPayload int           `json:"max_payload"`
	Retention  time.Duration `json:"retention_ns"`
}

func functionOf(p *treadlev1.Function) *Function {
	return &Function{
		ID: p.GetFunctionId(), Name: p.GetName(), Runtime: p.GetRuntime(), Queue: p.GetQueue(), Form: p.GetForm(),
		PayloadSHA256: p.GetPayloadSha256(), PayloadSize: int(p.GetPayloadSize()), CreatedAt: timeOf(p.GetCreatedAt()),
		Python: p.GetPython(), CreatedBy: p.GetCreatedBy(), Transient: p.GetTransient(),
	}
}

func taskOf(p *treadlev1.Task) *Task {
	t := &Task{
		ID: p.GetTaskId(), FunctionID: p.GetFunctionId(), FunctionName: p.GetFunctionName(), Queue: p.GetQueue(),
		Runtime: p.GetRuntime(), Status: statusOf(p.GetStatus()), Priority: int(p.GetPriority()),
		CreatedAt: timeOf(p.GetCreatedAt()), StartedAt: timeOf(p.GetStartedAt()), FinishedAt: timeOf(p.GetFinishedAt()),
		NotBefore: timeOf(p.GetNotBefore()), Worker: p.GetWorker(), AttemptCount: int(p.GetAttemptCount()),
		LostWorkers: int(p.GetLostWorkers()), Raised: int(p.GetRaised()), Error: taskErrorOf(p.GetError()),
		ArgsSize: int(p.GetArgsSize()), ResultSize: int(p.GetResultSize()), Options: optionsOf(p.GetOptions()),
		CreatedBy: p.GetCreatedBy(), ParentID: p.GetParentId(),
	}
	for _, a := range p.GetAttempts() {
		t.Attempts = append(t.Attempts, Attempt{
			Number: int(a.GetNumber()), Worker: a.GetWorker(), StartedAt: timeOf(a.GetStartedAt()),
			FinishedAt: timeOf(a.GetFinishedAt()), End: a.GetEnd(), Reason: a.GetReason(),
		})
	}
	return t
}

func taskErrorOf(p *treadlev1.TaskError) *TaskError {
	if p == nil {
		return nil
	}
	return &TaskError{
		Type: p.GetErrorType(), ExceptionType: p.GetExceptionType(), Message: p.GetMessage(), Traceback: p.GetTraceback(),
		TaskID: p.GetTaskId(), WorkerID: p.GetWorkerId(), ExceptionPickle: p.GetExceptionPickle(),
		ForeignPickle: p.GetForeignPickle(),
	}
}

func resultOf(p *treadlev1.TaskResult) *Result {
	r := &Result{
		TaskID: p.GetTaskId(), Status: statusOf(p.GetStatus()), Pickle: p.GetResultPickle(),
		Repr: p.GetResultRepr(), Error: taskErrorOf(p.GetError()),
	}
	if p.Result != nil {
		r.JSON = json.RawMessage(p.Result)
	}
	return r
}

func workerOf(p *treadlev1.Worker) Worker {
	return Worker{
		ID: p.GetWorkerId(), Name: p.GetName(), Host: p.GetHost(), PID: int(p.GetPid()), Mode: p.GetMode(),
		State: p.GetState(), Queues: p.GetQueues(), Runtimes: p.GetRuntimes(), Version: p.GetVersion(),
		Slots: int(p.GetSlots()), Running: int(p.GetRunning()), Offered: int(p.GetOffered()),
		ConnectedAt: timeOf(p.GetConnectedAt()), LastSeenAt: timeOf(p.GetLastSeenAt()),
	}
}

func optionsOf(p *treadlev1.ExecuteOptions) Options {
	if p == nil {
		return Options{}
	}
	return Options{
		Priority: intOf(p.Priority), Timeout: p.GetTimeout().AsDuration(), Deadline: timeOf(p.GetDeadline()),
		MaxRetries: intOf(p.MaxRetries), FunctionRetries: intOf(p.FunctionRetries), MemoryLimit: p.GetMemoryLimit(),
	}
}

// proto returns nil for the zero value, which most tasks have.
func (o Options) proto() *treadlev1.ExecuteOptions {
	if o == (Options{}) {
		return nil
	}
	p := &treadlev1.ExecuteOptions{
		Priority: int32Of(o.Priority), MaxRetries: int32Of(o.MaxRetries),
		FunctionRetries: int32Of(o.FunctionRetries), MemoryLimit: o.MemoryLimit,
	}
	if o.Timeout != 0 {
		p.Timeout = durationpb.New(o.Timeout)
	}
	if !o.Deadline.IsZero() {
		p.Deadline = timestamppb.New(o.Deadline)
	}
	return p
}

// statusOf keeps the word of a status that this build does not know.
func statusOf(s treadlev1.Task_Status) Status {
	return Status(strings.TrimPrefix(s.String(), "STATUS_"))
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func intOf(p *int32) *int {
	if p == nil {
		return nil
	}
	return new(int(*p))
}

func int32Of(p *int) *int32 {
	if p == nil {
		return nil
	}
	// Out of range stays out of range: the server refuses it and names the limit.
	return new(int32(min(max(*p, math.MinInt32), math.MaxInt32)))
}
