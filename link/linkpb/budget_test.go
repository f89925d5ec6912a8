package linkpb

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// slow is a stream whose peer reads when it is told to.
type slow struct {
	ctx    context.Context
	reads  chan struct{} // one for each message that may be written
	frames chan *treadlev1.WorkerFrame
	last   atomic.Pointer[treadlev1.DispatcherFrame] // being written, or written last
}

func (s *slow) Context() context.Context { return s.ctx }

func (s *slow) Send(f *treadlev1.DispatcherFrame) error {
	s.last.Store(f)
	select {
	case <-s.reads:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *slow) Recv() (*treadlev1.WorkerFrame, error) {
	select {
	case f := <-s.frames:
		return f, nil
	case <-s.ctx.Done():
		return nil, io.EOF
	}
}

// opened returns a dispatcher's end whose peer reads nothing; end ends the stream as its
// handler's return does.
func opened(t *testing.T, b *Budget, owner string) (c *conn[treadlev1.DispatcherFrame, treadlev1.WorkerFrame], s *slow, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s = &slow{ctx: ctx, reads: make(chan struct{}), frames: make(chan *treadlev1.WorkerFrame)}
	c = newConn[treadlev1.DispatcherFrame, treadlev1.WorkerFrame](s, dispatcherCodec, newAssembler(1<<20), b.For(owner), nil, nil)
	c.parts.waits = false
	end = func() {
		c.Close(errors.New("the test ends it"))
		cancel()
		<-c.written
		<-c.readDone
	}
	return c, s, end
}

// bytesFrame is a function of n bytes; calls counts how often Written was called.
func bytesFrame(n int, calls *atomic.Int64) *link.FunctionBytes {
	return &link.FunctionBytes{Bytes: make([]byte, n), Written: func() { calls.Add(1) }}
}

func mustSend(t *testing.T, c link.Conn, frames ...link.Frame) {
	t.Helper()
	for _, f := range frames {
		if err := c.Send(f); err != nil {
			t.Fatal(err)
		}
	}
}

// zero checks that nothing is left of a budget.
func zero(t *testing.T, b *Budget) {
	t.Helper()
	if n := b.Unread(); n != 0 || len(b.unread.owners) != 0 {
		t.Errorf("%d bytes unread are left, of %d owners", n, len(b.unread.owners))
	}
	if u, p := b.Unwritten(), b.Unfinished(); u != 0 || p != 0 || len(b.queues.members) != 0 || len(b.queues.owners) != 0 || len(b.parts.owners) != 0 {
		t.Errorf("%d bytes unwritten and %d unfinished are left, of %d links and %d and %d owners",
			u, p, len(b.queues.members), len(b.queues.owners), len(b.parts.owners))
	}
}

// Written is called once for each frame, however it ends, and the budget has all back.
func TestWrittenOnceAndBytesComeBack(t *testing.T) {
	for _, size := range []int{100, chunkSize, 3*chunkSize + 1} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBudget(64 << 20)
			c, s, end := opened(t, b, "w")
			var first, second, refused atomic.Int64
			mustSend(t, c, bytesFrame(size, &first), bytesFrame(size, &second))
			if want := c.held > freeQueue; want != (b.Unwritten() > 0) || b.Unwritten() > c.held+queueStep {
				t.Errorf("%d bytes wait, %d count", c.held, b.Unwritten())
			}
			for range (size-1)/chunkSize + 1 {
				s.reads <- struct{}{}
			}
			if size > chunkSize {
				if synctest.Wait(); first.Load() != 0 {
					t.Error("the first is reported as written with its last chunk: its frame waits")
				}
				s.reads <- struct{}{}
			}
			if synctest.Wait(); first.Load() != 1 || second.Load() != 0 {
				t.Errorf("the first was read: it was reported %d times, the second %d times", first.Load(), second.Load())
			}
			end()
			if first.Load() != 1 || second.Load() != 1 {
				t.Errorf("after the end: %d and %d", first.Load(), second.Load())
			}
			if err := c.Send(bytesFrame(size, &refused)); !errors.Is(err, link.ErrClosed) || refused.Load() != 1 {
				t.Errorf("after the end: %v, reported %d times", err, refused.Load())
			}
			zero(t, b)
		})
	}
	// A stream that breaks within a value, and one whose peer reads all before an orderly close.
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(64 << 20)
		c, s, end := opened(t, b, "w")
		var calls atomic.Int64
		mustSend(t, c, bytesFrame(1<<20, &calls), bytesFrame(1, &calls), &link.Bye{})
		s.reads <- struct{}{} // and then its stream breaks
		end()
		if calls.Load() != 2 {
			t.Errorf("reported %d times, want 2", calls.Load())
		}
		zero(t, b)
		c, s, end = opened(t, b, "w")
		mustSend(t, c, bytesFrame(1<<20, &calls), &link.Bye{})
		go func() {
			for {
				select {
				case s.reads <- struct{}{}:
				case <-c.written:
					return
				}
			}
		}()
		c.Close(nil)
		if calls.Load() != 3 {
			t.Errorf("reported %d times, want 3", calls.Load())
		}
		end()
		zero(t, b)
	})
}

// A link over the hard limit ends at once; at the limit it stands.
func TestHardLimitOfALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(64 << 20)
		b.soft, b.hard = 1<<20, 2<<20
		c, _, end := opened(t, b, "")
		var calls atomic.Int64
		mustSend(t, c, bytesFrame(1<<20-frameCost, &calls), bytesFrame(1<<20-frameCost, &calls))
		err := c.Send(&link.Recall{N: 1})
		if !errors.Is(err, link.ErrOverrun) || !strings.Contains(err.Error(), "the limit is 2097152") {
			t.Errorf("%v, want ErrOverrun with the limit", err)
		}
		end()
		if calls.Load() != 2 || b.Ended() != 1 {
			t.Errorf("reported %d times, %d links ended", calls.Load(), b.Ended())
		}
		zero(t, b)
	})
}

// A link over the soft limit stands while its peer reads anything, and ends when it does not.
func TestStalledLinkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(64 << 20)
		b.soft, b.hard = 1<<20, 8<<20
		c, s, end := opened(t, b, "")
		var calls atomic.Int64
		var relieved atomic.Int64
		c.Relieved(func() { relieved.Add(1) })
		mustSend(t, c, bytesFrame(1<<20-frameCost, &calls))
		time.Sleep(time.Minute)
		if synctest.Wait(); c.Behind() || c.isClosing() {
			t.Fatal("a link at the soft limit is behind, or has ended")
		}
		mustSend(t, c, bytesFrame(1<<20, &calls))
		if !c.Behind() {
			t.Error("a link over the soft limit is not behind")
		}
		for range 7 { // slow, and it reads
			time.Sleep(4 * time.Second)
			s.reads <- struct{}{}
		}
		if synctest.Wait(); c.isClosing() {
			t.Fatal("a link that reads was ended")
		}
		s.reads <- struct{}{}
		s.reads <- struct{}{}
		s.reads <- struct{}{}
		if synctest.Wait(); c.Behind() || relieved.Load() != 1 || calls.Load() != 2 {
			t.Errorf("all was read: behind %v, told %d times, reported %d times", c.Behind(), relieved.Load(), calls.Load())
		}
		mustSend(t, c, bytesFrame(2<<20, &calls))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if _, err := c.Recv(); !errors.Is(err, link.ErrOverrun) {
			t.Errorf("a link that does not read: %v, want ErrOverrun", err)
		}
		end()
		zero(t, b)
	})
}

func (c *conn[S, R]) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// When the bytes of all are used up, those end that were not read for longest; an owner pays for
// what is over his share.
func TestSlowestEndsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(64 << 20)
		b.queues.total, b.queues.share = 4<<20, 2<<20
		t.Cleanup(func() { zero(t, b) }) // after the links have ended
		var calls atomic.Int64
		open := func(owner string, n int) (*conn[treadlev1.DispatcherFrame, treadlev1.WorkerFrame], *slow) {
			c, s, end := opened(t, b, owner)
			t.Cleanup(end)
			mustSend(t, c, bytesFrame(n, &calls))
			time.Sleep(time.Second)
			return c, s
		}
		honest, _ := open("honest", 1<<20-queueStep)
		small, _ := open("evil", 1000)
		first, reads := open("evil", 1<<20-queueStep)
		second, _ := open("evil", 1<<20-queueStep)
		for range 5 {
			reads.reads <- struct{}{} // of the first: it is not the slowest
		}
		synctest.Wait()
		mustSend(t, first, bytesFrame(1<<20-queueStep, &calls))
		third, _ := open("evil", 1<<19)
		synctest.Wait()
		if honest.isClosing() || small.isClosing() || first.isClosing() || !second.isClosing() || third.isClosing() {
			t.Errorf("closing: honest %v, small %v, first %v, second %v, third %v: want the second",
				honest.isClosing(), small.isClosing(), first.isClosing(), second.isClosing(), third.isClosing())
		}
		if _, err := second.Recv(); !errors.Is(err, link.ErrOverrun) || task.CodeOf(err) != task.CodeUnavailable {
			t.Errorf("the slowest: %v, want ErrOverrun", err)
		}
		if !third.Behind() || honest.Behind() {
			t.Error("little is left of the share, and its links are not behind; or another owner's is")
		}
		// Over the total the slowest of all ends, whoever sends.
		open("other", 2<<20-queueStep)
		open("nobody else", 1<<20)
		if synctest.Wait(); !honest.isClosing() || b.Ended() < 2 {
			t.Errorf("the slowest of all stands; %d ended", b.Ended())
		}
		if b.Unwritten() > 4<<20 {
			t.Errorf("%d bytes are held", b.Unwritten())
		}
	})
}

func chunkOf(value, size uint64, n int) *treadlev1.WorkerFrame {
	return &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Chunk{Chunk: &treadlev1.Chunk{Value: value, Size: size, Data: make([]byte, n)}}}
}

// Values that are sent half share a budget: a link waits for room for a moment, and then
// ends in words.
func TestHalfSentValuesShareABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		b.parts.total, b.parts.share = 3<<20, 2<<20
		var calls atomic.Int64
		type end struct {
			c    *conn[treadlev1.DispatcherFrame, treadlev1.WorkerFrame]
			s    *slow
			stop func()
		}
		open := func(owner string) end {
			c, s, stop := opened(t, b, owner)
			return end{c, s, stop}
		}
		a1, a2, other := open("a"), open("a"), open("b")
		a1.s.frames <- chunkOf(1, 1<<20, chunkSize)
		a1.s.frames <- chunkOf(2, 1<<20, chunkSize)
		synctest.Wait()
		if b.Unfinished() != 2<<20 {
			t.Fatalf("%d bytes are held at the share", b.Unfinished())
		}
		other.s.frames <- chunkOf(1, 1<<20, chunkSize) // another owner, and all is used
		a2.s.frames <- chunkOf(1, 1, 1)
		synctest.Wait()
		time.Sleep(time.Second)
		a1.stop() // what it had comes back in time
		synctest.Wait()
		if b.Unfinished() != 1<<20+1 {
			t.Errorf("%d bytes are held, want those of the other and the one that waited", b.Unfinished())
		}
		a3 := open("a")
		a3.s.frames <- chunkOf(1, 1<<20, chunkSize)
		synctest.Wait()
		a3.s.frames <- chunkOf(2, 1<<20, chunkSize) // over the share by a byte
		time.Sleep(partWait)
		synctest.Wait()
		_, err := a3.c.Recv()
		if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "2097152") {
			t.Errorf("over the share: %v, want UNAVAILABLE with the limit", err)
		}
		if bye := a3.s.last.Load().GetBye(); bye == nil || !bye.GetRetry() || bye.GetRefused() != "" {
			t.Errorf("the peer is told %v: want to come again", bye)
		}
		if b.Ended() != 1 {
			t.Errorf("%d ended", b.Ended())
		}
		for _, e := range []end{a2, a3, other} {
			mustSendAny(e.c, bytesFrame(1, &calls))
			e.stop()
		}
		if calls.Load() != 3 {
			t.Errorf("reported %d times", calls.Load())
		}
		zero(t, b)
	})
}

func mustSendAny(c link.Conn, f link.Frame) { _ = c.Send(f) } // reported whatever becomes of it

// Values that nothing comes of are dropped with their link, however it beats.
func TestIdleHalfSentValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		c, s, end := opened(t, b, "a")
		defer func() { end(); zero(t, b) }()
		beat := &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Beat{Beat: &treadlev1.Beat{Seq: 1}}}
		s.frames <- chunkOf(1, 1<<20, chunkSize)
		for range 2 {
			time.Sleep(partIdle - time.Millisecond)
			s.frames <- proto.Clone(beat).(*treadlev1.WorkerFrame)
			if _, err := c.Recv(); err != nil {
				t.Fatal(err)
			}
			s.frames <- chunkOf(1, 0, 1)
		}
		time.Sleep(partIdle)
		s.frames <- beat
		if _, err := c.Recv(); task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), "1m0s") {
			t.Errorf("%v, want the reason", err)
		}
	})
}

// What a worker has sent and nobody looks at is bounded for all links; small frames of each pass
// nevertheless, and everything comes back, read or not.
func TestUnreadFrames(t *testing.T) {
	// A value in a frame has at most 256 KiB, but a frame has many.
	result := func(n, items int) *treadlev1.WorkerFrame {
		out := &treadlev1.Outcomes{}
		for i := range items {
			out.Items = append(out.Items, &treadlev1.Report{
				Token: tokenOut(token(byte(i))), End: string(task.EndSucceeded), Encoding: string(task.EncodingPickle),
				Result: &treadlev1.Value{Inline: make([]byte, n)},
			})
		}
		return &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: out}}
	}
	for _, reads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBudget(1 << 20)
			b.unread.total, b.unread.share = 4<<20, 2<<20
			one, first, endOne := opened(t, b, "a")
			two, second, endTwo := opened(t, b, "b")
			const most = 10
			var sent, others atomic.Int64
			flood := func(s *slow, sent *atomic.Int64) {
				for range most {
					select {
					case s.frames <- result(225<<10, 4):
						sent.Add(1)
					case <-s.ctx.Done():
						return
					}
				}
			}
			go flood(first, &sent)
			synctest.Wait()
			if got := b.Unread(); got > b.unread.share || got < b.unread.share/2 {
				t.Errorf("%d bytes of one owner wait, who may have %d", got, b.unread.share)
			}
			if sent.Load() == most {
				t.Error("all frames of the owner were taken")
			}
			second.frames <- result(100, 1) // counts for nobody
			go flood(second, &others)
			synctest.Wait()
			if got := b.Unread(); got > b.unread.total {
				t.Errorf("%d bytes wait, all may have %d", got, b.unread.total)
			}
			if f, err := two.Recv(); err != nil || len(f.(*link.Outcomes).Items[0].Outcome.Result) != 100 {
				t.Errorf("%v, %v", f, err)
			}
			for range most {
				if !reads {
					break
				}
				for _, c := range []link.Conn{one, two} {
					if f, err := c.Recv(); err != nil || len(f.(*link.Outcomes).Items) != 4 {
						t.Fatalf("%v, %v", f, err)
					}
				}
				synctest.Wait()
			}
			if reads && (sent.Load() != most || others.Load() != most) {
				t.Errorf("%d and %d of %d frames were taken", sent.Load(), others.Load(), most)
			}
			endOne()
			endTwo()
			zero(t, b)
		})
	}
}

// A frame that weighs more than an owner may have is taken when nothing else of the owner waits.
func TestUnreadFrameOverTheShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1 << 20)
		b.unread.total, b.unread.share = 64<<10, 32<<10
		c, s, end := opened(t, b, "a")
		s.frames <- &treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Output{Output: &treadlev1.Output{
			Token: tokenOut(token(1)), Data: make([]byte, 200<<10),
		}}}
		if f, err := c.Recv(); err != nil || len(f.(*link.Output).Bytes) != 200<<10 {
			t.Errorf("%v, %v", f, err)
		}
		end()
		zero(t, b)
	})
}
