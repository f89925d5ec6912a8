// Package failpoint names the moments at which a crash is hardest to survive, so that
// the chaos suite can end a process exactly there.
//
// In every build without the tag "chaos" [Hit] and [Seen] are empty functions that the
// compiler inlines away: nothing of this package is in the program. With the tag the
// variable [Env] says what happens where:
//
//	TREADLE_CHAOS_FAILPOINTS=after-claim=kill@3,worker-receive=hang@10
//
// The third time that a claim has been recorded the process kills itself, and the tenth
// frame that a worker receives is the last one that it looks at. What may happen is
// "kill" (SIGKILL to itself), "kill-soon" (the same 20 ms later), "hang" (this goroutine
// stops for ever) and "pause" (it stops for five seconds, once).
package failpoint

// Env is the variable that a build with the tag "chaos" reads.
const Env = "TREADLE_CHAOS_FAILPOINTS"

// LagEnv is the variable that makes every batch of a dispatcher's loop take so much longer,
// in a build with the tag "chaos": a duration such as 300ms.
const LagEnv = "TREADLE_CHAOS_LAG"

// Point is a moment in the life of a task or a registration.
type Point string

// Points.
const (
	// AfterSubmit: tasks are recorded, their client was not answered.
	AfterSubmit Point = "after-submit"
	// AfterClaim: a claim is recorded, its offers were not sent.
	AfterClaim Point = "after-claim"
	// AfterSend: frames, offers among them, were given to the links; with "kill-soon" they
	// have left, and no word on them has come back.
	AfterSend Point = "after-send"
	// BeforeAccept: a worker has received offers and said nothing yet.
	BeforeAccept Point = "before-accept"
	// AfterRun: an attempt has ended, its worker has not reported it.
	AfterRun Point = "after-run"
	// AfterReport: outcomes are recorded, their worker was not told.
	AfterReport Point = "after-report"
	// MidReap: it is known what is overdue, and read, nothing of it was ended.
	MidReap Point = "mid-reap"
	// MidGC: it is known which finished tasks are past their retention, none was removed.
	MidGC Point = "mid-gc"
	// MidRegister: a function is recorded, its client was not answered.
	MidRegister Point = "mid-register"
	// WorkerReceive: a worker is about to look at a frame from its dispatcher.
	WorkerReceive Point = "worker-receive"
)

// Points lists all of them.
func Points() []Point {
	return []Point{
		AfterSubmit, AfterClaim, AfterSend, BeforeAccept, AfterRun, AfterReport, MidReap, MidGC, MidRegister, WorkerReceive,
	}
}
