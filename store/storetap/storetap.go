// Package storetap stands between a process and its store in the chaos suite: it writes
// down every change with its tokens and verdicts, and breaks the connection in ways that
// a network does.
//
// In every build without the tag "chaos" [Wrap] returns the store that it is given, and
// nothing else of this package is in the program. With the tag the variables say what it
// does:
//
//   - [EnvHistory] names a folder. Each process writes a file there, one JSON [Entry] a line.
//   - [EnvFaults] lists faults: "refuse" answers calls Unavailable that were not made,
//     "lose-reply" those that were, "duplicate" makes calls twice, "delay" waits up to 50 ms;
//     all of them strike one method after another, every second call of it. "clock" has the
//     process's own clock leap by an hour, forth and back, every second: on the embedded
//     store the wall part of its readings, as time.Now has it, and on Redis, which has a
//     clock of its own, both parts.
package storetap

// Environment variables of a build with the tag "chaos".
const (
	EnvHistory = "TREADLE_CHAOS_HISTORY"
	EnvFaults  = "TREADLE_CHAOS_STORE_FAULTS"
)

// Entry is one call that changes the store. Start and End are nanoseconds of the
// machine's monotonic clock, so that the entries of many processes have one order.
type Entry struct {
	Process int    `json:"pid"`
	Start   int64  `json:"start"`
	End     int64  `json:"end"`
	Op      string `json:"op"`
	// Err is what the store answered to the whole call. Lost says that the caller did
	// not get the answer.
	Err  string `json:"err,omitempty"`
	Lost bool   `json:"lost,omitempty"`
	// Shift is how far the process's clock was off, in nanoseconds.
	Shift int64  `json:"shift,omitempty"`
	Items []Item `json:"items,omitempty"`
}

// Item is one task of a call.
type Item struct {
	Task    string `json:"task"`
	Epoch   uint64 `json:"epoch,omitempty"`
	Claim   string `json:"claim,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	Worker  string `json:"worker,omitempty"`
	// Outcome is what a settlement reports ("succeeded", "lost" ...), "started" for a
	// renewal that says so, and the status after a cancel.
	Outcome string `json:"outcome,omitempty"`
	// Verdict is the store's: "recorded", "duplicate" or "stale".
	Verdict string `json:"verdict,omitempty"`
	// Key is the request id of a submission; Status, Losses and so on are those of the
	// record that a claim was answered with.
	Key     string `json:"key,omitempty"`
	Status  string `json:"status,omitempty"`
	Losses  int    `json:"losses,omitempty"`
	Lapses  int    `json:"lapses,omitempty"`
	Retries int    `json:"retries,omitempty"`
}
