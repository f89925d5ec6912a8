// Package link carries frames between a dispatcher and a worker. It knows what
// the frames are and what a connection promises; [Pipe] is the connection inside
// one process and package linkpb the one over a gRPC stream. A dispatcher and an
// agent cannot tell them apart.
package link

import (
	"errors"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// Version of the protocol that this build speaks. A dispatcher refuses a Hello of
// another version by Bye.
const Version = 1

// ErrHopeless is wrapped by the error of a dial that cannot succeed however often it is
// tried, as a certificate is refused or another kind of server answers.
var ErrHopeless = errors.New("retrying cannot help")

// ErrNotAdmitted is what the end of a connection is when the dispatcher refused who opened it: no
// token, one that was revoked or has expired, one of another role, or no certificate. Only
// other credentials help, so whoever dials again should not hurry.
var ErrNotAdmitted = errors.New("not admitted")

// Conn is one end of a link.
//
// Send may be called by one goroutine at a time, Recv by one other; Close by
// anyone, more than once. Frames arrive whole and in order, but a frame without
// large values may overtake one with them, so that a heartbeat never waits for a
// payload: a Revoke may arrive before the Offers that it is about. Bye never overtakes.
type Conn interface {
	// Send queues a frame. It does not wait for the peer: when the peer is so slow
	// that the bounded buffer is full, it closes the link and returns [ErrOverrun].
	// The frame and all it points to must not be changed afterwards.
	Send(Frame) error
	// Recv waits for the next frame. After Close, or when the peer or the network
	// ended the link, it returns an error: [ErrClosed] for an orderly end. A
	// [task.CodeInvalid] or [task.CodeTooLarge] is about a frame that one end sent and that
	// cannot be sent, or that the other end refuses: the link ended for that frame's sake.
	Recv() (Frame, error)
	// Close ends the link at once; frames queued but not yet sent may be lost. The
	// reason is for logs, it may be nil.
	Close(reason error)
}

// Gauge is a Conn that knows how its peer reads. A conn on a transport is one, a pipe is not.
// All of it may be called by anyone at any time.
type Gauge interface {
	// Owner is whom the peer belongs to; empty for nobody in particular.
	Owner() string
	// Sent counts the messages that were written. One that stands still while frames wait
	// is one of a peer that does not read.
	Sent() uint64
	// Behind reports whether so many bytes wait for the peer that it should be given less.
	Behind() bool
	// Relieved sets what is called, on a goroutine of the link, each time that the peer is
	// behind no more. It is set before the first Send.
	Relieved(func())
}

// Errors of a Conn.
var (
	ErrClosed  = errors.New("link closed")
	ErrOverrun = errors.New("link closed: the peer reads too slowly and the send buffer is full")
)

// Frame is one message. The concrete types are below; each says who sends it.
type Frame interface{ frame() }

// Mode is the RPC that a worker came by: who refills the session's credit.
type Mode string

// Modes.
const (
	Push  Mode = "push"
	Pull  Mode = "pull"
	Local Mode = "local"
)

// Hello opens a session. The worker sends it first and once.
type Hello struct {
	Version int
	// Worker is the agent's id, new for each process; at most 128 bytes.
	Worker string
	Name   string
	Host   string
	PID    int
	// Software is the agent's version, for people.
	Software string
	Queues   []string
	// Runtimes are the runtime keys that it runs.
	Runtimes []string
	// Handlers are Go handlers to be known as functions of that name.
	Handlers []string
	// Slots is how many attempts run at once at present. MaxSlots is how many slots the
	// worker opens when offers wait for one; 0 when their number is fixed.
	Slots    int
	MaxSlots int
	// Held is every claim that the worker still has, finished but unreported ones included.
	Held []Holding
	// Moves says that the worker understands [Move].
	Moves bool
	// TaskTokens says that the worker wants [Welcome.TaskKey].
	TaskTokens bool
}

// Holding is one claim that a worker has.
type Holding struct {
	Token task.Token
	// StartedAt is zero while the attempt waits for a slot.
	StartedAt time.Time
}

// Welcome answers Hello.
type Welcome struct {
	Session task.ID
	// Lease, Heartbeat and Margin are the terms: the worker beats every Heartbeat,
	// counts a lease of length Lease from when it sent the last renewal that was
	// recorded, and stops its attempts Margin before the end.
	Lease     time.Duration
	Heartbeat time.Duration
	Margin    time.Duration
	// MaxPayload bounds a result, in bytes.
	MaxPayload int
	// Stale lists the tokens of Hello.Held that are no longer in force.
	Stale []task.Token
	// TaskKey is the secret with which the worker makes tokens of running tasks, see
	// package tasktoken; nil where the dispatcher serves no such tasks.
	TaskKey []byte
}

// Offers hands claims to the worker (from the dispatcher).
type Offers struct{ Items []Offer }

// Offer is one claim with all that is needed to run it, the function's bytes
// excepted: those are asked for by NeedFunction and kept by their hash.
type Offer struct {
	Token        task.Token
	Function     task.ID
	FunctionName string
	Runtime      string
	Form         task.Form
	Python       string
	Hash         [32]byte
	ArgsEncoding task.Encoding
	Returns      task.Encoding
	Args         []byte
	// Spec is what was asked for, as far as workers see it, see [task.Spec.ForWorker]. The worker
	// enforces timeout and memory limit; the rest is for the function to know.
	task.Spec
	// RetriesLeft is what is left of function_retries, for the function to know.
	RetriesLeft int
	// Parent is the task that submitted this one, zero for a client's.
	Parent task.ID
}

// Accepts says that attempts were started (from the worker).
type Accepts struct{ Items []Accept }

// Accept is one start. Ago is how long before sending the attempt was started, as
// clocks of two machines differ.
type Accept struct {
	Token task.Token
	Ago   time.Duration
}

// Outcomes reports how attempts ended (from the worker), offers that were not
// started included: every offer ends in exactly one report on the worker's side,
// repeated after a reconnect until it is acknowledged.
type Outcomes struct{ Items []Report }

// Report is one outcome with the output since the last Output frame.
type Report struct {
	Token   task.Token
	Outcome task.Outcome
	Log     []byte
}

// Acks answers reports after they were recorded, or refused (from the dispatcher).
type Acks struct{ Items []Ack }

// Ack answers one report: the worker forgets it whatever the verdict.
type Ack struct {
	Token   task.Token
	Verdict task.Verdict
}

// Beat is the heartbeat with the in-flight set (from the worker): it renews the
// leases of everything listed.
type Beat struct {
	Seq  uint64
	Held []Holding
	// Slots is how many there are now; 0 when it is as many as Hello says. Unfit says that
	// none of them can run anything at present.
	Slots int
	Unfit bool
}

// BeatAck says that the renewals of that beat are recorded (from the dispatcher).
type BeatAck struct {
	Seq uint64
	// Stale lists tokens of the beat that are no longer in force: stop those.
	Stale []task.Token
}

// Want adds credit (from the worker, only under the pull grant).
type Want struct{ N int }

// Revoke tells the worker to stop claims that are no longer in force (from the
// dispatcher). It answers each with a report all the same.
type Revoke struct{ Tokens []task.Token }

// Recall asks for up to N offers back that were not started (from the
// dispatcher): somebody has an idle slot for them.
type Recall struct{ N int }

// NeedFunction asks for a function's bytes (from the worker).
type NeedFunction struct{ Hash [32]byte }

// FunctionBytes answers NeedFunction; Missing when the store does not have them.
type FunctionBytes struct {
	Hash    [32]byte
	Bytes   []byte
	Missing bool
	// Written, where it is set, is called exactly once for a frame that was given to Send:
	// when the frame was written to the transport (a pipe: when the receiver took it), or when
	// it will not be any more, as Send failed or the link ended. It may be called inside of
	// Send, and must not block. It does not travel.
	Written func()
}

// Output is what a running attempt has printed since the last one (from the worker).
type Output struct {
	Token task.Token
	Bytes []byte
}

// Drain announces that the sender takes (worker) or gives (dispatcher) no more work.
type Drain struct{ Reason string }

// Move asks the worker to open its next session now, and to end this one when the new
// link is there (from the dispatcher). What it holds it takes along. A worker that
// reaches no other dispatcher stays.
type Move struct {
	Reason string
	// Elsewhere: only another dispatcher will do; otherwise a new link to this one is as good.
	Elsewhere bool
}

// Bye ends the session in order; it is the last frame of its sender.
type Bye struct {
	// Retry tells a worker whether to dial again, and a dispatcher that the worker goes on
	// in another session.
	Retry  bool
	Reason string
	// Refused is the field of the worker's frame that a dispatcher refused, as in
	// "outcomes.items[3].end"; empty when the session ends for another reason. The worker
	// must not send the same again for ever.
	Refused string
}

func (*Hello) frame()         {}
func (*Welcome) frame()       {}
func (*Offers) frame()        {}
func (*Accepts) frame()       {}
func (*Outcomes) frame()      {}
func (*Acks) frame()          {}
func (*Beat) frame()          {}
func (*BeatAck) frame()       {}
func (*Want) frame()          {}
func (*Revoke) frame()        {}
func (*Recall) frame()        {}
func (*NeedFunction) frame()  {}
func (*FunctionBytes) frame() {}
func (*Output) frame()        {}
func (*Drain) frame()         {}
func (*Move) frame()          {}
func (*Bye) frame()           {}
