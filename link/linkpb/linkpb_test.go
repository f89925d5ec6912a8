package linkpb

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/filltest"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// peer is a worker service that hands its end of each stream to the test.
type peer struct {
	treadlev1.UnimplementedWorkerServiceServer
	conns chan link.Conn
}

func (p *peer) Push(s grpc.BidiStreamingServer[treadlev1.WorkerFrame, treadlev1.DispatcherFrame]) error {
	c := NewDispatcherConn(s, 64<<20, NewBudget(64<<20).For(""))
	p.conns <- c
	<-c.(*conn[treadlev1.DispatcherFrame, treadlev1.WorkerFrame]).closed
	return nil
}

// pair returns both ends of a stream over a real gRPC connection.
func pair(t *testing.T) (dispatcher, worker link.Conn) {
	t.Helper()
	const maxPayload = 64 << 20
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(MessageLimit(maxPayload)), grpc.MaxSendMsgSize(MessageLimit(maxPayload)))
	p := &peer{conns: make(chan link.Conn, 1)}
	treadlev1.RegisterWorkerServiceServer(srv, p)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		<-served
	})
	dialer, err := NewDialer([]string{lis.Addr().String()}, link.Push, maxPayload, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	worker, err = dialer.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// gRPC opens the stream at the server with the first message.
	if err := worker.Send(&link.Hello{Version: 1, Worker: "w", Slots: 1}); err != nil {
		t.Fatal(err)
	}
	select {
	case dispatcher = <-p.conns:
	case <-ctx.Done():
		t.Fatal("the stream never opened")
	}
	if f, err := dispatcher.Recv(); err != nil {
		t.Fatalf("hello: %v, %v", f, err)
	}
	t.Cleanup(func() { dispatcher.Close(nil); worker.Close(nil) })
	return dispatcher, worker
}

func randomBytes(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func token(n byte) task.Token {
	return task.Token{Task: task.ID{1, n}, Epoch: uint64(n) + 1, Claim: task.ID{2, n}, Attempt: int(n) + 1}
}

// Every field of every frame survives the way to the other end.
func TestFramesRoundTrip(t *testing.T) {
	t.Parallel()
	dispatcher, worker := pair(t)
	big := randomBytes(t, 3*chunkSize+7)
	edge := randomBytes(t, chunkSize)
	var spec task.Spec
	filltest.Struct(&spec)
	down := []link.Frame{
		&link.Welcome{
			Session: task.ID{9}, Lease: 10 * time.Second, Heartbeat: time.Second, Margin: 2 * time.Second, MaxPayload: 1 << 20,
			Stale: []task.Token{token(1)}, TaskKey: bytes.Repeat([]byte{8}, 32),
		},
		&link.Offers{Items: []link.Offer{{
			Token: token(2), Function: task.ID{3}, FunctionName: "λ", Runtime: "python", Form: task.FormPickle, Hash: [32]byte{4},
			ArgsEncoding: task.EncodingPickle, Returns: task.EncodingJSON, Args: edge, Spec: spec.ForWorker(), Python: "3.12",
			RetriesLeft: 4, Parent: task.ID{5},
		}}},
		&link.Acks{Items: []link.Ack{{Token: token(3), Verdict: task.VerdictStale}, {Token: token(4), Verdict: task.VerdictRecorded}}},
		&link.BeatAck{Seq: 7, Stale: []task.Token{token(5)}},
		&link.Revoke{Tokens: []task.Token{token(6), token(7)}},
		&link.Recall{N: 3},
		&link.FunctionBytes{Hash: [32]byte{5}, Bytes: big},
		&link.FunctionBytes{Hash: [32]byte{6}, Missing: true},
		&link.Drain{Reason: "why"},
		&link.Move{Reason: "room", Elsewhere: true},
		&link.Bye{Retry: true, Reason: "later"},
	}
	up := []link.Frame{
		&link.Accepts{Items: []link.Accept{{Token: token(1), Ago: time.Millisecond}}},
		&link.Outcomes{Items: []link.Report{
			{Token: token(2), Outcome: task.Outcome{
				End: task.EndSucceeded, Result: big, Encoding: task.EncodingPickle, Repr: "r", RunTime: time.Second,
			}, Log: []byte("log")},
			{Token: token(3), Outcome: task.Outcome{End: task.EndRaised, Failure: &task.Failure{
				Class: task.ClassFunction, Type: "ValueError", Message: "m", Traceback: "t", Pickle: []byte("p"), ForeignPickle: []byte("f"),
			}, NoRetry: true, RetryAfter: 5 * time.Minute}},
		}},
		&link.Beat{Seq: 8, Held: []link.Holding{{Token: token(4)}}, Slots: 3},
		&link.Want{N: 5},
		&link.NeedFunction{Hash: [32]byte{7}},
		&link.Output{Token: token(5), Bytes: []byte("out")},
		&link.Drain{Reason: "done"},
		&link.Bye{Retry: true, Reason: "bye"},
	}
	for _, dir := range []struct {
		name     string
		from, to link.Conn
		frames   []link.Frame
	}{{"down", dispatcher, worker, down}, {"up", worker, dispatcher, up}} {
		for _, want := range dir.frames {
			if err := dir.from.Send(want); err != nil {
				t.Fatalf("%s: send %T: %v", dir.name, want, err)
			}
			got, err := dir.to.Recv()
			if err != nil {
				t.Fatalf("%s: receive %T: %v", dir.name, want, err)
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); diff != "" {
				t.Errorf("%s: %T changed on its way (-sent +received):\n%s", dir.name, want, task.ClipText(diff, 2000))
			}
		}
	}
}

// A start travels as an age, so it arrives within the transit time.
func TestHoldingStart(t *testing.T) {
	t.Parallel()
	dispatcher, worker := pair(t)
	started := time.Now().Add(-time.Hour)
	if err := worker.Send(&link.Beat{Seq: 1, Held: []link.Holding{{Token: token(1), StartedAt: started}}}); err != nil {
		t.Fatal(err)
	}
	f, err := dispatcher.Recv()
	if err != nil {
		t.Fatal(err)
	}
	got := f.(*link.Beat).Held[0].StartedAt
	if got.Before(started.Add(-time.Second)) || got.After(time.Now().Add(-time.Hour+time.Minute)) {
		t.Fatalf("a start of %s arrived as %s", started, got)
	}
}

// Frames without large values go first: a payload never delays a heartbeat by more
// than what is on the wire already.
func TestControlOvertakesBulk(t *testing.T) {
	t.Parallel()
	dispatcher, worker := pair(t)
	payload := randomBytes(t, 8<<20)
	if err := worker.Send(&link.Outcomes{Items: []link.Report{{
		Token: token(1), Outcome: task.Outcome{End: task.EndSucceeded, Result: payload, Encoding: task.EncodingPickle},
	}}}); err != nil {
		t.Fatal(err)
	}
	if err := worker.Send(&link.Beat{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	first, err := dispatcher.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := first.(*link.Beat); !ok {
		t.Fatalf("%T arrived first, want the Beat that was sent behind 8 MiB", first)
	}
	second, err := dispatcher.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got := second.(*link.Outcomes).Items[0].Outcome.Result; !bytes.Equal(got, payload) {
		t.Fatalf("a payload of %d bytes arrived as %d others", len(payload), len(got))
	}
}

// Bye never overtakes, and an orderly Close delivers what was sent before.
func TestByeIsLast(t *testing.T) {
	t.Parallel()
	dispatcher, worker := pair(t)
	payload := randomBytes(t, 4<<20)
	frames := []link.Frame{
		&link.Outcomes{Items: []link.Report{{Token: token(1), Outcome: task.Outcome{End: task.EndSucceeded, Result: payload}}}},
		&link.Bye{Reason: "end"},
	}
	for _, f := range frames {
		if err := worker.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan struct{})
	go func() { worker.Close(nil); close(closed) }()
	defer func() { dispatcher.Close(nil); <-closed }()
	for i, want := range frames {
		got, err := dispatcher.Recv()
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if gotT, wantT := typeName(got), typeName(want); gotT != wantT {
			t.Fatalf("frame %d is %s, want %s", i, gotT, wantT)
		}
	}
	if _, err := dispatcher.Recv(); err == nil {
		t.Fatal("the link goes on after Close")
	}
	dispatcher.Close(nil)
	<-closed
	if err := worker.Send(&link.Want{N: 1}); !errors.Is(err, link.ErrClosed) {
		t.Fatalf("send after Close: %v, want ErrClosed", err)
	}
}

func typeName(f link.Frame) string {
	switch f.(type) {
	case *link.Outcomes:
		return "Outcomes"
	case *link.Bye:
		return "Bye"
	default:
		return "another"
	}
}

// Many results of a moderate size leave in several messages, each within the limit.
func TestLargeBatchIsSplit(t *testing.T) {
	t.Parallel()
	var c chunker
	out := &link.Outcomes{}
	for i := range 100 {
		out.Items = append(out.Items, link.Report{
			Token: token(byte(i)), Outcome: task.Outcome{End: task.EndSucceeded, Result: make([]byte, chunkSize)},
		})
	}
	messages, err := encodeWorker(out, &c)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range messages {
		n += len(m.GetOutcomes().GetItems())
		if size := proto.Size(m); size > batchBytes+chunkSize {
			t.Errorf("a message of %d bytes", size)
		}
	}
	if n != 100 || len(c.pending) != 0 {
		t.Fatalf("%d reports in all and %d chunks, want 100 and none", n, len(c.pending))
	}
}

func TestWrongDirection(t *testing.T) {
	t.Parallel()
	var c chunker
	if _, err := encodeWorker(&link.Welcome{}, &c); err == nil {
		t.Error("a worker may send Welcome")
	}
	if _, err := encodeDispatcher(&link.Hello{}, &c); err == nil {
		t.Error("a dispatcher may send Hello")
	}
}

// FuzzDecode feeds both decoders with arbitrary messages: they answer with a frame
// or an error and keep what they hold bounded.
func FuzzDecode(f *testing.F) {
	var c chunker
	for _, frame := range []link.Frame{
		&link.Hello{Version: 1, Worker: "w", Slots: 2, Held: []link.Holding{{Token: token(1)}}},
		&link.Outcomes{Items: []link.Report{{Token: token(1), Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("r")}}}},
		&link.Beat{Seq: 1, Held: []link.Holding{{Token: token(1)}}},
	} {
		messages, err := encodeWorker(frame, &c)
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(messages[0])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a assembler
		var w treadlev1.WorkerFrame
		if proto.Unmarshal(b, &w) == nil {
			if frame, err := decodeWorker(&w, &a); err == nil && frame != nil {
				var c chunker
				if _, err := encodeWorker(frame, &c); err != nil {
					t.Fatalf("a frame that was decoded cannot be encoded: %v", err)
				}
			}
		}
		var d treadlev1.DispatcherFrame
		if proto.Unmarshal(b, &d) == nil {
			if frame, err := decodeDispatcher(&d, &a); err == nil && frame != nil {
				var c chunker
				if _, err := encodeDispatcher(frame, &c); err != nil {
					t.Fatalf("a frame that was decoded cannot be encoded: %v", err)
				}
			}
		}
		if a.size > len(b) {
			t.Fatalf("%d bytes of input, %d held", len(b), a.size)
		}
	})
}

// What ended a stream is told without gRPC's words around it, and keeps its code.
func TestErrorsOfStreamsArePlain(t *testing.T) {
	c := &conn[treadlev1.WorkerFrame, treadlev1.DispatcherFrame]{}
	err := fmt.Errorf("ended: %w", c.ended(status.Error(codes.Unauthenticated, "the token was revoked")))
	if err.Error() != "ended: the token was revoked (Unauthenticated)" || status.Code(err) != codes.Unauthenticated {
		t.Errorf("%v with the code %s", err, status.Code(err))
	}
	for code, want := range map[codes.Code]bool{codes.Unauthenticated: true, codes.PermissionDenied: true, codes.Unavailable: false} {
		if got := errors.Is(fmt.Errorf("ended: %w", c.ended(status.Error(code, "why"))), link.ErrNotAdmitted); got != want {
			t.Errorf("%s: not admitted: %v, want %v", code, got, want)
		}
	}
	if err := c.ended(context.Canceled); err != context.Canceled {
		t.Error(err)
	}
}
