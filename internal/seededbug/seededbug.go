// Package seededbug names mistakes that a task system could make. The chaos suite makes
// each of them on purpose, in a build with the tag "chaos", and fails unless its checks
// find it: tests are tested this way.
//
// In every other build [On] is the constant false, so that the compiler drops the
// mistake together with the question.
package seededbug

// Env is the variable that a build with the tag "chaos" reads: the name of one bug.
const Env = "TREADLE_CHAOS_BUG"

// Bug is one mistake.
type Bug string

// Bugs.
const (
	// NoFence: a report is recorded whatever claim it belongs to.
	NoFence Bug = "no-fence"
	// AckBeforeSync: a change is acknowledged before it is on disk.
	AckBeforeSync Bug = "ack-before-sync"
	// DoubleReap: a reaper ends a lease that was renewed, or ended, since it looked.
	DoubleReap Bug = "double-reap"
	// LostCancel: a running task is called cancelled and goes on.
	LostCancel Bug = "lost-cancel"
	// OffByOneRetries: a task survives one lost worker more than it may.
	OffByOneRetries Bug = "off-by-one-retries"
	// ReusedEpoch: a claim does not raise the epoch.
	ReusedEpoch Bug = "reused-epoch"
	// ReplyBeforeWait: the replicated mode does not wait for a replica.
	ReplyBeforeWait Bug = "reply-before-wait"
	// ClaimTwice: a claim that is repeated is given more work.
	ClaimTwice Bug = "non-idempotent-claim"
	// GCLive: the retention is counted from the submission, finished or not.
	GCLive Bug = "gc-of-live-task"
	// LocalDeadline: a deadline is compared with the caller's clock.
	LocalDeadline Bug = "deadline-by-local-clock"
	// ResultOverwrite: a report about a finished task replaces its result.
	ResultOverwrite Bug = "result-overwrite"
	// FalseAck: a report that was refused is answered as recorded.
	FalseAck Bug = "false-ack"
	// NoRenewalFence: a renewal counts whatever claim it belongs to.
	NoRenewalFence Bug = "no-renewal-fence"
	// DrainLoses: a worker that drains forgets what it has accepted.
	DrainLoses Bug = "drain-loses-accepted"
	// FalseRaise and the following: a worker reports every 20th success as another end.
	FalseRaise     Bug = "false-raise"
	FalseTimeout   Bug = "false-timeout"
	FalseExhausted Bug = "false-exhausted"
	FalseUnread    Bug = "false-unreadable"
	FalseLoss      Bug = "false-loss"
	FalseCancel    Bug = "false-cancel"
)

// Bugs lists all of them.
func Bugs() []Bug {
	return []Bug{
		NoFence, AckBeforeSync, DoubleReap, LostCancel, OffByOneRetries, ReusedEpoch, ReplyBeforeWait, ClaimTwice, GCLive,
		LocalDeadline, ResultOverwrite, DrainLoses, FalseRaise, FalseTimeout, FalseExhausted, FalseUnread, FalseLoss, FalseCancel,
		FalseAck, NoRenewalFence,
	}
}
