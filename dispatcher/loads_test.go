package dispatcher

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

// gauged is a link of an owner that takes nothing unless it is told.
type gauged struct {
	link.Conn
	owner string
	sent  uint64
}

func (g *gauged) Owner() string   { return g.owner }
func (g *gauged) Sent() uint64    { return g.sent }
func (g *gauged) Behind() bool    { return false }
func (g *gauged) Relieved(func()) {}

// library is loads over functions of given sizes; answers are kept in order.
type library struct {
	*loads
	mu      sync.Mutex
	answers []loaded
	done    sync.WaitGroup
}

func hash(n int) (h [32]byte) { h[0], h[1] = byte(n), byte(n>>8); return h }
func sid(n int) task.ID       { return task.ID{1, byte(n)} }

func newLibrary(t *testing.T, largest int, size func([32]byte) (int, error)) *library {
	t.Helper()
	l := &library{}
	l.loads = newLoads(largest, func(_ context.Context, h [32]byte) ([]byte, error) {
		n, err := size(h)
		return make([]byte, n), err
	}, func(ev event) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.answers = append(l.answers, ev.(loaded))
		return true
	})
	for range loadReaders {
		l.done.Go(func() { l.run(context.Background()) })
	}
	t.Cleanup(func() { l.close(); l.done.Wait() })
	return l
}

// take returns what was answered since the last call.
func (l *library) take() []loaded {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.answers
	l.answers = nil
	return out
}

func (l *library) empty(t *testing.T) {
	t.Helper()
	if n := l.held(); n != 0 || len(l.owners) != 0 || len(l.sessions) != 0 || len(l.turn) != 0 {
		t.Errorf("%d bytes of %d owners, %d sessions and %d turns are left", n, len(l.owners), len(l.sessions), len(l.turn))
	}
}

// A function is answered once however often it is asked for, until it was written; a
// session has one large function on its way, and what is asked for beyond the limit ends it.
func TestLoadsOfOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLibrary(t, 1<<20, func([32]byte) (int, error) { return loadAhead + 1, nil })
		conn := &gauged{owner: "a"}
		for range 200 {
			if err := l.add(sid(1), conn, hash(1)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range maxNeeds - 1 {
			if err := l.add(sid(1), conn, hash(2+i)); err != nil {
				t.Fatalf("function %d of %d: %v", i+2, maxNeeds, err)
			}
		}
		if err := l.add(sid(1), conn, hash(5000)); !errors.Is(err, errNeeds) {
			t.Errorf("one too many: %v", err)
		}
		for i := range 3 {
			got := l.take()
			if len(got) != 1 || got[0].hash != hash(1+i) || l.held() != loadAhead+1 {
				t.Fatalf("%d answers, %d bytes held: want function %d alone", len(got), l.held(), i+1)
			}
			l.written(sid(1), got[0].hash)
			l.written(sid(1), hash(4000)) // was never asked for
		}
		l.drop(sid(1))
		l.drop(sid(1))
		l.written(sid(1), hash(4))
		synctest.Wait()
		l.empty(t)
	})
}

// Sessions take turns; an owner's share is his own matter; the room of all is kept and comes
// back, whatever the store says.
func TestLoadsAreFairAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large = 100 << 20
		l := newLibrary(t, large, func(h [32]byte) (int, error) {
			switch h {
			case hash(77):
				return 0, task.Errorf(task.CodeNotFound, "", "no such function")
			case hash(78):
				return 0, errors.New("the store is away")
			}
			return large, nil
		})
		evil := &gauged{owner: "evil"}
		for s := range 20 {
			for f := range 5 {
				if err := l.add(sid(100+s), evil, hash(f)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := l.take(); len(got) != 1 || l.held() > l.share {
			t.Errorf("%d answers and %d bytes for one owner, the share is %d", len(got), l.held(), l.share)
		}
		honest := &gauged{owner: "honest"}
		for _, h := range []int{77, 78, 3} {
			if err := l.add(sid(1), honest, hash(h)); err != nil {
				t.Fatal(err)
			}
		}
		got := l.take()
		if len(got) != 3 || got[0].err == nil || got[1].err == nil || got[2].session != sid(1) || len(got[2].bytes) != large {
			t.Fatalf("the honest session got %d answers", len(got))
		}
		if err := l.add(sid(1), honest, hash(78)); err != nil {
			t.Error(err)
		}
		// Each session of the other owner has its turn before one has its second.
		turns := map[task.ID]int{}
		l.written(sid(100), hash(0))
		for range 20 {
			next := l.take()
			if len(next) != 1 {
				t.Fatalf("%d answers, want one", len(next))
			}
			turns[next[0].session]++
			l.written(next[0].session, next[0].hash)
		}
		for s, n := range turns {
			if n > 1 && len(turns) < 20 {
				t.Errorf("session %s had %d turns, and %d sessions had one", s, n, len(turns))
			}
		}
		if l.held() > l.room {
			t.Errorf("%d bytes are held", l.held())
		}
		for s := range 20 {
			l.drop(sid(100 + s))
		}
		l.drop(sid(1))
		synctest.Wait()
		l.empty(t)
	})
}

// What a session was sent it gets again while its allowance lasts.
func TestLoadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLibrary(t, 32<<20, func([32]byte) (int, error) { return 32 << 20, nil })
		conn := &gauged{}
		ask := func() bool {
			if err := l.add(sid(1), conn, hash(1)); err != nil {
				t.Fatal(err)
			}
			got := l.take()
			for _, a := range got {
				l.written(sid(1), a.hash)
			}
			return len(got) == 1
		}
		n := 0
		for range 100 {
			if ask() {
				n++
			}
		}
		if n != 1+againPayloads {
			t.Errorf("a function was sent %d times at once, want %d", n, 1+againPayloads)
		}
		time.Sleep(32 << 20 / againRate * time.Second)
		if !ask() || ask() {
			t.Error("after the allowance has filled for one it is sent once")
		}
		l.drop(sid(1))
		l.empty(t)
	})
}

// A link that holds room and takes nothing is ended when others wait; one that reads is not.
func TestStalledLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLibrary(t, 128<<20, func([32]byte) (int, error) { return 128 << 20, nil })
		reads, stuck, waits := &gauged{}, &gauged{}, &gauged{}
		for i, c := range []*gauged{reads, stuck} {
			if err := l.add(sid(i), c, hash(i)); err != nil {
				t.Fatal(err)
			}
		}
		look := func() int {
			reads.sent++
			out := l.stalled()
			if len(out) > 1 || len(out) == 1 && out[0] != link.Conn(stuck) {
				t.Fatal("another link than the one that is stuck is ended")
			}
			return len(out)
		}
		if l.take(); look()+look() != 0 {
			t.Error("a link is ended and nobody waits")
		}
		if err := l.add(sid(2), waits, hash(2)); err != nil {
			t.Fatal(err)
		}
		if got := l.take(); len(got) != 0 || look() != 0 || look() != 1 {
			t.Errorf("%d answers beyond the room, or the stuck link was not ended at the second look", len(got))
		}
		l.drop(sid(1))
		if got := l.take(); len(got) != 1 || got[0].session != sid(2) {
			t.Error("who waited got nothing")
		}
		l.drop(sid(0))
		l.drop(sid(2))
		l.empty(t)
	})
}

// A session whose peer is behind gets no work until it has read.
func TestSessionBehindGetsNoWork(t *testing.T) {
	s := newStory()
	e := s.engine
	id := s.id("s")
	e.step(s.now, opened{session: id, mode: link.Push})
	e.step(s.now, received{session: id, frame: &link.Hello{Version: link.Version, Worker: "w", Slots: 2, Queues: []string{"q"}, Runtimes: []string{"r"}}})
	e.take(s.now)
	e.step(s.now, resumed{session: id})
	e.step(s.now, reads{session: id, behind: true})
	if r := e.take(s.now); len(r.claims) != 0 {
		t.Errorf("%d claims for a session that is behind", len(r.claims))
	}
	e.step(s.now, reads{session: id})
	r := e.take(s.now)
	if len(r.claims) != 1 {
		t.Fatalf("%d claims after it has read", len(r.claims))
	}
	e.step(s.now, overdone{session: id, reason: errNeeds})
	r = e.take(s.now)
	if len(r.sends) != 1 || len(r.hangups) != 1 {
		t.Fatalf("%d frames and %d hangups", len(r.sends), len(r.hangups))
	}
	if bye, ok := r.sends[0].frame.(*link.Bye); !ok || !bye.Retry || bye.Reason != errNeeds.Error() {
		t.Errorf("%+v", r.sends[0].frame)
	}
}
