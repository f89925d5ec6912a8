package linkpb

import (
	"cmp"
	"fmt"
	"strings"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/wire"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// dispatcherCodec is the dispatcher's end: it sends DispatcherFrames.
var dispatcherCodec = codec[treadlev1.DispatcherFrame, treadlev1.WorkerFrame]{
	encode: encodeDispatcher,
	refuse: refuseWorker,
	decode: decodeWorker,
	chunk: func(c *treadlev1.Chunk) *treadlev1.DispatcherFrame {
		return &treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Chunk{Chunk: c}}
	},
}

func encodeDispatcher(f link.Frame, c *chunker) ([]*treadlev1.DispatcherFrame, error) {
	switch f := f.(type) {
	case *link.Welcome:
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Welcome{Welcome: welcomeOut(f)}}), nil
	case *link.Offers:
		var out []*treadlev1.DispatcherFrame
		for _, part := range batches(f.Items, func(o link.Offer) int { return min(len(o.Args), chunkSize) }) {
			offers := &treadlev1.Offers{Items: each(part, c.offerOut)}
			out = append(out, &treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Offers{Offers: offers}})
		}
		return out, nil
	case *link.Acks:
		var out []*treadlev1.DispatcherFrame
		for _, part := range batches(f.Items, nil) {
			items := each(part, func(a link.Ack) *treadlev1.Ack {
				return &treadlev1.Ack{Token: tokenOut(a.Token), Verdict: string(a.Verdict)}
			})
			out = append(out, &treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Acks{Acks: &treadlev1.Acks{Items: items}}})
		}
		return out, nil
	case *link.BeatAck:
		ack := &treadlev1.BeatAck{Seq: f.Seq, Stale: tokensOut(f.Stale)}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_BeatAck{BeatAck: ack}}), nil
	case *link.Revoke:
		revoke := &treadlev1.Revoke{Tokens: tokensOut(f.Tokens)}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Revoke{Revoke: revoke}}), nil
	case *link.Recall:
		recall := &treadlev1.Recall{N: int32(f.N)}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Recall{Recall: recall}}), nil
	case *link.FunctionBytes:
		b := &treadlev1.FunctionBytes{Hash: f.Hash[:], Bytes: c.value(f.Bytes), Missing: f.Missing}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_FunctionBytes{FunctionBytes: b}}), nil
	case *link.Drain:
		drain := &treadlev1.Drain{Reason: reasonOut(f.Reason)}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Drain{Drain: drain}}), nil
	case *link.Move:
		move := &treadlev1.Move{Reason: reasonOut(f.Reason), Elsewhere: f.Elsewhere}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Move{Move: move}}), nil
	case *link.Bye:
		bye := &treadlev1.Bye{Retry: f.Retry, Reason: reasonOut(f.Reason), Refused: task.ClipText(f.Refused, maxRefused)}
		return one(&treadlev1.DispatcherFrame{Kind: &treadlev1.DispatcherFrame_Bye{Bye: bye}}), nil
	default:
		return nil, fmt.Errorf("%T is not a frame that a dispatcher sends", f)
	}
}

// maxRefused bounds the name of a refused field, in bytes.
const maxRefused = 256

// refuseWorker is the good-bye to a worker one of whose frames cannot be taken. A Hello
// would be the same the next time; what else it sends may not be.
func refuseWorker(err *wire.Error) link.Frame {
	hello := err.Field == "hello" || strings.HasPrefix(err.Field, "hello.")
	return &link.Bye{Retry: !hello, Reason: "a frame of this worker is refused: " + err.Error(), Refused: cmp.Or(err.Field, "frame")}
}

func one(m *treadlev1.DispatcherFrame) []*treadlev1.DispatcherFrame {
	return []*treadlev1.DispatcherFrame{m}
}

func decodeWorker(m *treadlev1.WorkerFrame, a *assembler) (link.Frame, error) {
	switch k := m.GetKind().(type) {
	case *treadlev1.WorkerFrame_Chunk:
		return nil, a.add(k.Chunk)
	case *treadlev1.WorkerFrame_Hello:
		held, err := eachErr(k.Hello.GetHeld(), holdingIn)
		a.waits = false
		return &link.Hello{
			Version: int(k.Hello.GetVersion()), Worker: k.Hello.GetWorker(), Name: k.Hello.GetName(), Host: k.Hello.GetHost(),
			PID: int(k.Hello.GetPid()), Software: k.Hello.GetSoftware(), Queues: k.Hello.GetQueues(),
			Runtimes: k.Hello.GetRuntimes(), Handlers: k.Hello.GetHandlers(), Slots: int(k.Hello.GetSlots()), Held: held,
			Moves: k.Hello.GetMoves(), MaxSlots: int(k.Hello.GetMaxSlots()), TaskTokens: k.Hello.GetTaskTokens(),
		}, err
	case *treadlev1.WorkerFrame_Accepts:
		items, err := eachErr(k.Accepts.GetItems(), func(p *treadlev1.Accept) (link.Accept, error) {
			tok, err := tokenIn(p.GetToken())
			return link.Accept{Token: tok, Ago: p.GetAgo().AsDuration()}, err
		})
		return &link.Accepts{Items: items}, err
	case *treadlev1.WorkerFrame_Outcomes:
		items, err := eachErr(k.Outcomes.GetItems(), a.reportIn)
		return &link.Outcomes{Items: items}, err
	case *treadlev1.WorkerFrame_Beat:
		held, err := eachErr(k.Beat.GetHeld(), holdingIn)
		return &link.Beat{Seq: k.Beat.GetSeq(), Held: held, Slots: int(k.Beat.GetSlots()), Unfit: k.Beat.GetUnfit()}, err
	case *treadlev1.WorkerFrame_Want:
		return &link.Want{N: int(k.Want.GetN())}, nil
	case *treadlev1.WorkerFrame_NeedFunction:
		hash, err := hashIn(k.NeedFunction.GetHash())
		return &link.NeedFunction{Hash: hash}, err
	case *treadlev1.WorkerFrame_Output:
		tok, err := tokenIn(k.Output.GetToken())
		return &link.Output{Token: tok, Bytes: k.Output.GetData()}, err
	case *treadlev1.WorkerFrame_Drain:
		return &link.Drain{Reason: k.Drain.GetReason()}, nil
	case *treadlev1.WorkerFrame_Bye:
		return &link.Bye{Retry: k.Bye.GetRetry(), Reason: k.Bye.GetReason()}, nil
	default:
		return nil, fmt.Errorf("a frame of kind %T from a worker", k)
	}
}
