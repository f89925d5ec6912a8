package wire

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/treadle-dev/treadle/task"
)

// Limits that the table gives to more than one field, in bytes or items.
const (
	// maxText bounds ids, names and tokens of requests: it is far above what handlers
	// accept, so that the error of a value that is a little too long is the handler's.
	maxText = 4 << 10
	// maxPathID bounds an id of the root routes, which answer any text that is none as they
	// answer an unknown one: it comes from a path, and headers have 16 KiB.
	maxPathID = 16 << 10
	// maxFilter bounds a list's filter; the handler accepts 4 KiB.
	maxFilter = 64 << 10
	// maxWorkerText bounds what a worker says of itself.
	maxWorkerText = task.MaxWorkerText
	// maxWorkerID bounds a worker's id.
	maxWorkerID = task.MaxWorkerID
	// maxListed bounds the queues, runtimes and handlers of a Hello.
	maxListed = task.MaxListed
	// maxName bounds a function's or handler's name: 256 characters of UTF-8.
	maxName = 4 * task.MaxNameLength
	// maxReason bounds a reason for people.
	maxReason = 4 << 10
	// maxBatch bounds the items of one batch and the ids of one wait.
	maxBatch = 10_000
	// maxErrorText bounds a message or a traceback on its way. Half of it is kept: text
	// that was not UTF-8 may have doubled when it was made valid.
	maxErrorText = 2*task.MaxErrorText + 8<<10
	// MaxItems bounds the items of one frame of reports, starts, offers or acknowledgements.
	MaxItems = 4096
	// MaxHeld bounds the claims that one frame lists.
	MaxHeld = task.MaxHeld
	// MaxInline is the largest piece of a value in one message.
	MaxInline = 256 << 10
)

// Limit says what one field may hold.
type Limit struct {
	kind limitKind
	// bytes bounds a text or bytes, count the items of a repeated field.
	bytes, count int
	// low and high bound a number.
	low, high int64
	// words are the only values of a text beside the empty one.
	words []string
}

type limitKind uint8

const (
	limitAny     limitKind = iota + 1 // a number or bool without a limit, or one message
	limitText                         // text or bytes
	limitMessage                      // bounded by the message that holds it
	limitWords
	limitRange
)

// anything is for numbers whose limit is a handler's word, flags, and single messages.
var anything = Limit{kind: limitAny}

// whole is for payloads: the message limit bounds them, and the handler refuses what is
// over --max-payload, with a batch's other items accepted.
var whole = Limit{kind: limitMessage}

func text(bytes int) Limit         { return Limit{kind: limitText, bytes: bytes} }
func word(words ...string) Limit   { return Limit{kind: limitWords, words: words} }
func within(low, high int64) Limit { return Limit{kind: limitRange, low: low, high: high} }

// many bounds the items of a repeated field, each of which has its own limit.
func many(count int, each Limit) Limit {
	each.count = count
	return each
}

// Words of the contract.
var (
	encodings = word(string(task.EncodingPickle), string(task.EncodingJSON))
	forms     = word(string(task.FormPickle), string(task.FormSource), string(task.FormNone))
	ends      = word(string(task.EndSucceeded), string(task.EndRaised), string(task.EndLost), string(task.EndReturned),
		string(task.EndTimedOut), string(task.EndExhausted), string(task.EndUnreadable), string(task.EndCancelled))
	verdicts = word(string(task.VerdictRecorded), string(task.VerdictDuplicate), string(task.VerdictStale))
)

// standIn is the limit of a field that the table forgot: strict, as nobody has thought
// about it. A test fails for each such field.
func standIn(f protoreflect.FieldDescriptor) Limit {
	limit := anything
	if f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind {
		limit = text(maxText)
	}
	if f.IsList() {
		limit = many(maxListed, limit)
	}
	return limit
}

// table has a limit for every field of every message that the server or a worker
// receives. A field without an entry fails a test; see [standIn].
var table = map[string]map[string]Limit{
	"google.protobuf.Duration":  {"seconds": anything, "nanos": anything},
	"google.protobuf.Timestamp": {"seconds": anything, "nanos": anything},

	// What workers send.
	"treadle.v1.WorkerFrame": {
		"hello": anything, "accepts": anything, "outcomes": anything, "beat": anything, "want": anything, "need_function": anything,
		"output": anything, "drain": anything, "bye": anything, "chunk": anything,
	},
	"treadle.v1.Token": {"task_id": text(16), "epoch": anything, "claim_id": text(16), "attempt": anything},
	"treadle.v1.Value": {"inline": text(MaxInline), "chunked": anything, "size": anything},
	"treadle.v1.Chunk": {"value": anything, "data": text(MaxInline), "size": anything},
	"treadle.v1.Hello": {
		"version": anything, "worker": text(maxWorkerID), "name": text(maxWorkerText), "host": text(maxWorkerText), "pid": anything,
		"software": text(maxWorkerText), "queues": many(maxListed, text(task.MaxQueueLength)),
		"runtimes": many(maxListed, text(maxName+len("go/"))), "handlers": many(maxListed, text(maxName)),
		"slots": anything, "held": many(MaxHeld, anything), "moves": anything, "max_slots": anything, "task_tokens": anything,
	},
	"treadle.v1.Holding":  {"token": anything, "started_ago": anything},
	"treadle.v1.Accepts":  {"items": many(MaxItems, anything)},
	"treadle.v1.Accept":   {"token": anything, "ago": anything},
	"treadle.v1.Outcomes": {"items": many(MaxItems, anything)},
	"treadle.v1.Report": {
		"token": anything, "end": ends, "result": anything, "encoding": encodings, "repr": text(2 * task.MaxRepr), "failure": anything,
		"run_time": anything, "log": text(task.MaxLog),
	},
	"treadle.v1.Failure": {
		"exception_type": text(2 * task.MaxTypeText), "message": text(maxErrorText), "traceback": text(maxErrorText),
		"exception_pickle": text(task.MaxErrorText), "foreign_pickle": text(task.MaxErrorText),
		"no_retry": anything, "retry_after": anything, // the dispatcher refuses what is too long: task.Outcome.Check
	},
	"treadle.v1.Beat":         {"seq": anything, "held": many(MaxHeld, anything), "slots": anything, "unfit": anything},
	"treadle.v1.Want":         {"n": anything},
	"treadle.v1.NeedFunction": {"hash": text(32)},
	"treadle.v1.Output":       {"token": anything, "data": text(task.MaxLog)},
	"treadle.v1.Drain":        {"reason": text(maxReason)},
	"treadle.v1.Bye":          {"retry": anything, "reason": text(maxReason), "refused": text(maxWorkerText)},

	// What dispatchers send.
	"treadle.v1.DispatcherFrame": {
		"welcome": anything, "offers": anything, "acks": anything, "beat_ack": anything, "revoke": anything, "recall": anything,
		"function_bytes": anything, "drain": anything, "bye": anything, "chunk": anything, "move": anything,
	},
	"treadle.v1.Welcome": {
		"session": text(16), "lease": anything, "heartbeat": anything, "margin": anything, "max_payload": within(0, 1<<30),
		"stale": many(MaxHeld, anything), "task_key": text(32),
	},
	"treadle.v1.Offers": {"items": many(MaxItems, anything)},
	"treadle.v1.Offer": {
		"token": anything, "function_id": text(16), "function_name": text(maxName), "runtime": text(maxName + len("go/")), "form": forms,
		"hash": text(32), "args_encoding": encodings, "returns": encodings, "args": anything, "timeout": anything,
		"memory_limit": anything, "python": text(maxWorkerText), "deadline": anything, "max_retries": anything,
		"parent_id": text(16), "retries_left": anything,
	},
	"treadle.v1.Acks":          {"items": many(MaxItems, anything)},
	"treadle.v1.Ack":           {"token": anything, "verdict": verdicts},
	"treadle.v1.BeatAck":       {"seq": anything, "stale": many(MaxHeld, anything)},
	"treadle.v1.Revoke":        {"tokens": many(MaxHeld, anything)},
	"treadle.v1.Recall":        {"n": anything},
	"treadle.v1.FunctionBytes": {"hash": text(32), "bytes": anything, "missing": anything},
	"treadle.v1.Move":          {"reason": text(maxReason), "elsewhere": anything},

	// What clients send.
	"treadle.v1.RegisterFunctionRequest": {
		"name": text(maxText), "runtime": text(maxText), "payload": whole, "source": whole, "queue": text(maxText),
		"request_id": text(maxText), "python": text(maxText), "transient": anything,
	},
	"treadle.v1.DeleteFunctionRequest": {"function_id": text(maxText)},
	"treadle.v1.GetFunctionRequest":    {"function": text(maxText)},
	"treadle.v1.ListFunctionsRequest":  {"page_size": anything, "page_token": text(maxText)},
	"treadle.v1.ExecuteOptions": {
		"priority": anything, "timeout": anything, "deadline": anything, "max_retries": anything, "function_retries": anything,
		"memory_limit": anything,
	},
	"treadle.v1.ExecuteRequest": {
		"function": text(maxText), "payload": whole, "args": whole, "kwargs": whole, "options": anything, "request_id": text(maxText),
	},
	"treadle.v1.ExecuteBatchRequest":  {"requests": many(maxBatch, anything)},
	"treadle.v1.CallRequest":          {"function": text(maxText), "timeout": anything, "input": anything},
	"treadle.v1.CallInput":            {"args": whole, "kwargs": whole, "options": anything, "request_id": text(maxText)},
	"treadle.v1.GetTaskRequest":       {"task_id": text(maxText)},
	"treadle.v1.GetResultRequest":     {"task_id": text(maxText), "wait": anything},
	"treadle.v1.AwaitResultsRequest":  {"task_ids": many(maxBatch, text(maxText))},
	"treadle.v1.ListTasksRequest":     {"filter": text(maxFilter), "page_size": anything, "page_token": text(maxText), "view": anything},
	"treadle.v1.WatchTaskRequest":     {"task_id": text(maxText)},
	"treadle.v1.CancelTaskRequest":    {"task_id": text(maxText), "only_queued": anything},
	"treadle.v1.GetLogsRequest":       {"task_id": text(maxText), "attempt": anything},
	"treadle.v1.ListWorkersRequest":   {"page_size": anything, "page_token": text(maxText)},
	"treadle.v1.ListQueuesRequest":    {"page_size": anything, "page_token": text(maxText)},
	"treadle.v1.GetServerInfoRequest": {},
	"treadle.v1.RegisterRootRequest":  {"name": text(maxText), "payload": whole},
	"treadle.v1.ExecuteRootRequest":   {"function_id": text(maxText), "payload": whole},
	"treadle.v1.GetRootStatusRequest": {"task_id": text(maxPathID)},
	"treadle.v1.GetRootResultRequest": {"task_id": text(maxPathID)},
}

// answers are the messages that only clients receive. They are the server's word: their
// sizes follow from the limits of what it stores and from the message limit of the call.
var answers = []string{
	"Function", "ListFunctionsResponse", "DeleteFunctionResponse", "ExecuteBatchResponse", "ExecuteBatchItem", "ItemError", "Task", "Attempt", "TaskError",
	"TaskResult", "AwaitResultsResponse", "ListTasksResponse", "TaskLogs", "ListWorkersResponse", "Worker", "ListQueuesResponse",
	"Queue", "ServerInfo", "RegisterRootResponse", "ExecuteRootResponse", "GetRootStatusResponse", "GetRootResultResponse", "RootError",
}
