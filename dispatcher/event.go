package dispatcher

import (
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// event is anything that happens to the engine. Every answer of the store comes
// back as an event, so a decision never waits.
type event interface{ event() }

// opened: a worker's link is there; Hello has not arrived yet.
type opened struct {
	session task.ID
	mode    link.Mode
}

// received: a frame from a session's worker.
type received struct {
	session task.ID
	frame   link.Frame
	// hold is the room that large results have; nil for other frames.
	hold *reportHold
}

// closed: a session's link ended.
type closed struct {
	session task.ID
	reason  error
}

// resumed answers a resume.
type resumed struct {
	session  task.ID
	held     []link.Holding
	verdicts []task.Verdict
	err      error
}

// claimed answers one claim request; stood says that it was a standing one, which is
// answered with nothing when there is a task that has to be claimed.
type claimed struct {
	request store.ClaimRequest
	tasks   []store.Claimed
	stood   bool
}

// renewed answers the renewals of one frame; seq is that of a beat, 0 otherwise.
type renewed struct {
	session  task.ID
	seq      uint64
	items    []store.Renewal
	verdicts []task.Verdict
	err      error
}

// settled answers one settlement that a session reported.
type settled struct {
	session task.ID
	token   task.Token
	verdict task.Verdict
}

// loaded answers a load of a function's bytes.
type loaded struct {
	session task.ID
	hash    [32]byte
	bytes   []byte
	err     error
}

// overdone: a session asks for more than it may; the reason is for its worker.
type overdone struct {
	session task.ID
	reason  error
}

// reads: what waits for a session's peer became too much, or is not any more.
type reads struct {
	session task.ID
	behind  bool
}

// rung: the store's bell rang.
type rung struct{ signals []store.Signal }

// ticked: a deadline of the engine has passed, nothing else.
type ticked struct{}

// stopping: the process ends; sessions are told to come back elsewhere or later.
type stopping struct{ reason string }

func (opened) event()   {}
func (received) event() {}
func (closed) event()   {}
func (resumed) event()  {}
func (claimed) event()  {}
func (renewed) event()  {}
func (settled) event()  {}
func (loaded) event()   {}
func (overdone) event() {}
func (reads) event()    {}
func (rung) event()     {}
func (ticked) event()   {}
func (stopping) event() {}

// ready is what the engine wants done after a batch of events, in this order. The
// loop does it, tells the outcome as events and never the other way round:
// whatever must be durable before a frame is sent has been an event before.
type ready struct {
	sends   []send
	hangups []hangup
	claims  []store.ClaimRequest
	// stands are requests to be held until there is work, withdraws those of them that
	// are no longer wanted.
	stands    []store.ClaimRequest
	withdraws []task.ID
	renews    []renew
	resumes   []resume
	settles   []settle
	loads     []load
	rings     []store.Signal
	notes     []note
	// presence is what changed of the workers, for people.
	presence []store.Presence
}

type send struct {
	session task.ID
	frame   link.Frame
}

// hangup closes a session's link after the frames sent before.
type hangup struct {
	session task.ID
	reason  string
}

type renew struct {
	session task.ID
	seq     uint64
	items   []store.Renewal
}

type resume struct {
	session  task.ID
	hello    *link.Hello
	handlers []string
	request  store.Resumption
}

// settle is one settlement; session is zero when nobody waits for the verdict.
type settle struct {
	session    task.ID
	settlement store.Settlement
	// hold is given back when this and what was reported before it is recorded.
	hold *reportHold
}

type load struct {
	session task.ID
	hash    [32]byte
}

// note is a line for the log: the engine writes none itself.
type note struct {
	at      time.Time
	session task.ID
	worker  string
	// name and host are what people know the worker by.
	name, host string
	text       string
	err        error
	count      int
	// warn: something was lost.
	warn bool
}
