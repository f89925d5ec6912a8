package redisstore

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/treadle-dev/treadle/task"
)

// Every key of the store is named here and nowhere else: the scripts get the names from
// [luaNames]. All keys that one script may touch share a hash tag, so that Redis Cluster
// keeps them on one node:
//
//	{NAMESPACE}:...     functions, their bytes, the fleet, the dispatchers
//	{NAMESPACE/N}:...   shard N: its tasks with everything that belongs to them
//
// Ids in keys, members and fields are their 16 raw bytes.

// Names of keys, after the tag.
const (
	// keyMeta is a hash: what the store is and its fixed counters, see the meta fields.
	keyMeta = "meta"

	// keyTask is the hash of one task, see the record fields. Followed by the task id.
	keyTask = "t:"
	// keyArgs and keyResult hold one MiB each of a large value. Followed by the task
	// id, ":", the operation or claim that wrote it, ":" and the number of the chunk.
	keyArgs   = "a:"
	keyResult = "r:"
	// keyLog is a hash from attempt number to the output kept of it. Followed by the task id.
	keyLog = "l:"
	// keyRequest is an idempotency key: task id and digest. Followed by the key.
	keyRequest = "k:"
	// keyReady is a sorted set of the ready tasks of a lane by place. Followed by the lane.
	keyReady = "q:"
	// keyDelayed, keyDeadlines, keyLeases and keyDone are sorted sets of task ids by when
	// a task is due, has its deadline, loses its lease, finished; in microseconds.
	keyDelayed   = "delayed"
	keyDeadlines = "deadlines"
	keyLeases    = "leases"
	keyDone      = "done"
	// keyHeld is a sorted set (all scores 0) of holder, claim id and task id: who holds what.
	keyHeld = "held"
	// keyIDs is a sorted set (all scores 0) of all task ids, for listings.
	keyIDs = "ids"
	// keyStats is a hash of the unfinished tasks by lane and "q" or "r".
	keyStats = "stats"
	// keyUsage is a hash of what an owner has under this tag: tasks "t", functions "f", bytes
	// "b", and "q" and a queue for those of each queue. Followed by the owner.
	keyUsage = "u:"
	// keyRecount is the same while it is counted anew. keyOwners is a set of the owners that
	// have, or had, tasks in the shard.
	keyRecount = "v:"
	keyOwners  = "owners"
	// keySync is written before WAIT, so that WAIT covers everything before it.
	keySync = "sync"

	// keyFunctions, keyNames and keyFunctionRequests are hashes: registrations by id, ids
	// by name, id and digest by idempotency key. keyFunctionIDs is a sorted set of ids.
	keyFunctions        = "functions"
	keyNames            = "names"
	keyFunctionRequests = "functionkeys"
	keyFunctionIDs      = "functionids"
	// keyFunctionIndex is a sorted set (all scores 0) that finds functions: "n", the SHA-1 of
	// their name in hexadecimal and their id, and "b", the hash of their bytes and their id.
	// Builds before functions could be deleted do not write it: it is complete while it has
	// two members for each function.
	keyFunctionIndex = "functionindex"
	// keyTransients is a sorted set of transient functions by when they were used last, in
	// microseconds, keyTwins a hash of their ids by what makes them one.
	keyTransients = "transients"
	keyTwins      = "twins"
	// keyBlob is one MiB of a function's bytes. Followed by their SHA-256, ":" and the
	// number of the chunk.
	keyBlob = "b:"
	// keyFleet is a hash of workers by id, keyDispatchers a sorted set by when the
	// presence of a dispatcher ends.
	keyFleet       = "fleet"
	keyDispatchers = "dispatchers"
	// keyBell is the name of the pub/sub channel.
	keyBell = "bell"
	// keyProbe begins the names of keys, and of a channel, that [Open] tries its permissions
	// on. They are gone when it returns.
	keyProbe = "probe:"
)

// Fields of keyMeta.
const (
	metaIdentity = "identity"
	metaFormat   = "format"
	metaShards   = "shards"
	// metaComplete says that every shard has got its identity: one that lacks it later
	// has lost its data.
	metaComplete = "complete"
	// metaSeq is the sequence number given last.
	metaSeq = "seq"
	// metaBeat is when somebody last looked for overdue work, by the server's own clock.
	metaBeat = "beat"
	// metaCalm is until when no lease is reaped, metaGeneration how often all leases were
	// granted anew.
	metaCalm       = "calm"
	metaGeneration = "generation"
	// metaRound is the letter case of tallies, see lib.lua; metaRoundNumber how often usage was
	// counted anew, metaRecounted when that was done last, by the server's own clock.
	metaRound       = "round"
	metaRoundNumber = "roundnumber"
	metaRecounted   = "recounted"
)

// Fields of keyTask.
const (
	// fieldHead is what the scripts read and write of a task, see headFormat.
	fieldHead = "h"
	// fieldSpec is what never changes of a task, fieldState what its moves change. Both
	// are encoded by this package; the scripts do not look inside.
	fieldSpec  = "p"
	fieldState = "m"
	// fieldArgs and fieldResult hold small values; the head says where large ones are.
	fieldArgs   = "a"
	fieldResult = "r"
	// fieldTally is how a task is counted in keyUsage, see tallyOf; it is missing without an
	// owner.
	fieldTally = "o"
)

// recordFields are read to know a task, in this order; see decodeRecord.
var recordFields = []string{fieldHead, fieldSpec, fieldState}

// luaNames are the names that scripts use: K.x is a key, M.x a field of meta, F.x a field
// of a task, P.x a position in its head, and P.priority how far apart priorities stand in
// a place.
var luaNames = map[string]string{
	"K.meta": keyMeta, "K.task": keyTask, "K.args": keyArgs, "K.result": keyResult, "K.log": keyLog, "K.request": keyRequest,
	"K.ready": keyReady, "K.delayed": keyDelayed, "K.deadlines": keyDeadlines, "K.leases": keyLeases, "K.done": keyDone,
	"K.held": keyHeld, "K.ids": keyIDs, "K.stats": keyStats, "K.functions": keyFunctions, "K.names": keyNames,
	"K.functionrequests": keyFunctionRequests, "K.functionids": keyFunctionIDs, "K.blob": keyBlob,
	"K.dispatchers": keyDispatchers, "K.fleet": keyFleet, "K.usage": keyUsage, "K.recount": keyRecount, "K.owners": keyOwners, "K.functionindex": keyFunctionIndex,
	"K.transients": keyTransients, "K.twins": keyTwins,
	"M.identity": metaIdentity, "M.format": metaFormat, "M.shards": metaShards, "M.complete": metaComplete, "M.seq": metaSeq,
	"M.beat": metaBeat, "M.calm": metaCalm, "M.generation": metaGeneration,
	"M.round": metaRound, "M.roundnumber": metaRoundNumber, "M.recounted": metaRecounted,
	"F.head": fieldHead, "F.spec": fieldSpec, "F.state": fieldState, "F.args": fieldArgs, "F.result": fieldResult, "F.tally": fieldTally,
}

// luaName matches a use of such a name.
var luaName = regexp.MustCompile(`\b[KMFP]\.[a-z]+\b`)

// withNames puts the values in the place of their names: a table of them would be built
// anew by every call of a script.
func withNames(source string) string {
	return luaName.ReplaceAllStringFunc(source, func(name string) string {
		if text, ok := luaNames[name]; ok {
			return strconv.Quote(text)
		}
		if name == "P.priority" {
			return strconv.Itoa(1 << placeBits)
		}
		if at, ok := headPositions[name]; ok {
			return strconv.Itoa(at + 1) // Lua counts from 1.
		}
		panic("a script uses the unknown name " + name)
	})
}

// maxNamespace bounds a namespace, in bytes.
const maxNamespace = 64

// checkNamespace refuses what would break a hash tag.
func checkNamespace(ns string) error {
	if len(ns) > maxNamespace {
		return fmt.Errorf("the namespace has %d bytes, the limit is %d", len(ns), maxNamespace)
	}
	for _, c := range ns {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return fmt.Errorf("the namespace %q contains %q: want letters, digits, '-', '_' and '.'", ns, c)
		}
	}
	return nil
}

// common is the "shard" of what belongs to no shard.
const common = -1

// keys makes the keys of one tag.
type keys struct{ base string }

func newKeys(namespace string, shard int) keys {
	if shard == common {
		return keys{"{" + namespace + "}:"}
	}
	return keys{"{" + namespace + "/" + strconv.Itoa(shard) + "}:"}
}

func (k keys) named(name string) string          { return k.base + name }
func (k keys) task(id task.ID) string            { return k.base + keyTask + string(id[:]) }
func (k keys) log(id task.ID) string             { return k.base + keyLog + string(id[:]) }
func (k keys) chunk(prefix string, n int) string { return k.base + prefix + ":" + strconv.Itoa(n) }

// laneOf names a lane: the ready tasks of one queue and runtime key.
func laneOf(queue, runtime string) string { return queue + "\x00" + runtime }

// splitLane is the reverse of laneOf.
func splitLane(lane string) (queue, runtime string) {
	queue, runtime, _ = strings.Cut(lane, "\x00")
	return queue, runtime
}

// placeBits is where the priority stands above the sequence number in a place. A place
// is a score, so it must stay below 2^53.
const placeBits = 49
