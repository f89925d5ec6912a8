package linkpb

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// workerCodec is the worker's end: it sends WorkerFrames.
var workerCodec = codec[treadlev1.WorkerFrame, treadlev1.DispatcherFrame]{
	encode: encodeWorker,
	decode: decodeDispatcher,
	chunk: func(c *treadlev1.Chunk) *treadlev1.WorkerFrame {
		return &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Chunk{Chunk: c}}
	},
}

func encodeWorker(f link.Frame, c *chunker) ([]*treadlev1.WorkerFrame, error) {
	switch f := f.(type) {
	case *link.Hello:
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Hello{Hello: &treadlev1.Hello{
			Version: int32(f.Version), Worker: f.Worker, Name: f.Name, Host: f.Host, Pid: int32(f.PID), Software: f.Software,
			Queues: f.Queues, Runtimes: f.Runtimes, Handlers: f.Handlers, Slots: int32(f.Slots), Held: each(f.Held, holdingOut),
			Moves: f.Moves, MaxSlots: int32(f.MaxSlots), TaskTokens: f.TaskTokens,
		}}}), nil
	case *link.Accepts:
		var out []*treadlev1.WorkerFrame
		for _, part := range batches(f.Items, nil) {
			items := each(part, func(a link.Accept) *treadlev1.Accept {
				return &treadlev1.Accept{Token: tokenOut(a.Token), Ago: durationOut(a.Ago)}
			})
			out = append(out, &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Accepts{Accepts: &treadlev1.Accepts{Items: items}}})
		}
		return out, nil
	case *link.Outcomes:
		var out []*treadlev1.WorkerFrame
		for _, part := range batches(f.Items, reportSize) {
			out = append(out, lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: &treadlev1.Outcomes{Items: each(part, c.reportOut)}}})...)
		}
		return out, nil
	case *link.Beat:
		beat := &treadlev1.Beat{Seq: f.Seq, Held: each(f.Held, holdingOut), Slots: int32(f.Slots), Unfit: f.Unfit}
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Beat{Beat: beat}}), nil
	case *link.Want:
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Want{Want: &treadlev1.Want{N: int32(f.N)}}}), nil
	case *link.NeedFunction:
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_NeedFunction{NeedFunction: &treadlev1.NeedFunction{Hash: f.Hash[:]}}}), nil
	case *link.Output:
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Output{Output: &treadlev1.Output{Token: tokenOut(f.Token), Data: f.Bytes}}}), nil
	case *link.Drain:
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Drain{Drain: &treadlev1.Drain{Reason: reasonOut(f.Reason)}}}), nil
	case *link.Bye:
		return lone(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Bye{Bye: &treadlev1.Bye{Retry: f.Retry, Reason: reasonOut(f.Reason)}}}), nil
	default:
		return nil, fmt.Errorf("%T is not a frame that a worker sends", f)
	}
}

// lone is a frame that needs one message.
func lone(m *treadlev1.WorkerFrame) []*treadlev1.WorkerFrame { return []*treadlev1.WorkerFrame{m} }

func decodeDispatcher(m *treadlev1.DispatcherFrame, a *assembler) (link.Frame, error) {
	switch k := m.GetKind().(type) {
	case *treadlev1.DispatcherFrame_Chunk:
		return nil, a.add(k.Chunk)
	case *treadlev1.DispatcherFrame_Welcome:
		return welcomeIn(k.Welcome)
	case *treadlev1.DispatcherFrame_Offers:
		items, err := eachErr(k.Offers.GetItems(), a.offerIn)
		return &link.Offers{Items: items}, err
	case *treadlev1.DispatcherFrame_Acks:
		items, err := eachErr(k.Acks.GetItems(), func(p *treadlev1.Ack) (link.Ack, error) {
			tok, err := tokenIn(p.GetToken())
			return link.Ack{Token: tok, Verdict: task.Verdict(p.GetVerdict())}, err
		})
		return &link.Acks{Items: items}, err
	case *treadlev1.DispatcherFrame_BeatAck:
		stale, err := tokensIn(k.BeatAck.GetStale())
		return &link.BeatAck{Seq: k.BeatAck.GetSeq(), Stale: stale}, err
	case *treadlev1.DispatcherFrame_Revoke:
		tokens, err := tokensIn(k.Revoke.GetTokens())
		return &link.Revoke{Tokens: tokens}, err
	case *treadlev1.DispatcherFrame_Recall:
		return &link.Recall{N: int(k.Recall.GetN())}, nil
	case *treadlev1.DispatcherFrame_FunctionBytes:
		hash, err := hashIn(k.FunctionBytes.GetHash())
		if err != nil {
			return nil, err
		}
		b, err := a.value(k.FunctionBytes.GetBytes())
		return &link.FunctionBytes{Hash: hash, Bytes: b, Missing: k.FunctionBytes.GetMissing()}, err
	case *treadlev1.DispatcherFrame_Drain:
		return &link.Drain{Reason: k.Drain.GetReason()}, nil
	case *treadlev1.DispatcherFrame_Move:
		return &link.Move{Reason: k.Move.GetReason(), Elsewhere: k.Move.GetElsewhere()}, nil
	case *treadlev1.DispatcherFrame_Bye:
		return &link.Bye{Retry: k.Bye.GetRetry(), Reason: k.Bye.GetReason(), Refused: k.Bye.GetRefused()}, nil
	default:
		return nil, fmt.Errorf("a frame of kind %T from a dispatcher", k)
	}
}

func welcomeOut(f *link.Welcome) *treadlev1.Welcome {
	return &treadlev1.Welcome{
		Session: f.Session[:], Lease: durationpb.New(f.Lease), Heartbeat: durationpb.New(f.Heartbeat),
		Margin: durationpb.New(f.Margin), MaxPayload: int32(f.MaxPayload), Stale: tokensOut(f.Stale),
		TaskKey: f.TaskKey,
	}
}

func welcomeIn(p *treadlev1.Welcome) (link.Frame, error) {
	session, err := task.IDFromBytes(p.GetSession())
	if err != nil {
		return nil, fmt.Errorf("welcome: session: %w", err)
	}
	stale, err := tokensIn(p.GetStale())
	if err != nil {
		return nil, err
	}
	w := &link.Welcome{
		Session: session, Lease: p.GetLease().AsDuration(), Heartbeat: p.GetHeartbeat().AsDuration(),
		Margin: p.GetMargin().AsDuration(), MaxPayload: int(p.GetMaxPayload()), Stale: stale,
		TaskKey: p.GetTaskKey(),
	}
	if w.Heartbeat < time.Millisecond || w.Lease < w.Heartbeat {
		return nil, fmt.Errorf("welcome: lease %s and heartbeat %s do not fit", w.Lease, w.Heartbeat)
	}
	return w, nil
}
