//go:build unix

package pyproc

import (
	"errors"
	"os"
	"runtime"
	"sync"
)

// spawner starts processes from one operating system thread that lives as long as it
// does: the parent-death signal of Linux follows the thread that made the child and not
// the process (golang.org/issue/27505), and Go ends threads when it likes.
type spawner struct {
	requests chan spawnRequest
	quit     chan struct{}
	done     chan struct{}
	once     sync.Once
}

type spawnRequest struct {
	path  string
	argv  []string
	attr  *os.ProcAttr
	reply chan<- spawnReply
}

type spawnReply struct {
	proc *os.Process
	err  error
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan spawnRequest), quit: make(chan struct{}), done: make(chan struct{})}
	go s.loop()
	return s
}

func (s *spawner) loop() {
	defer close(s.done)
	// Never unlocked: the thread ends with this goroutine, when all children are dead.
	runtime.LockOSThread()
	for {
		select {
		case r := <-s.requests:
			proc, err := os.StartProcess(r.path, r.argv, r.attr)
			r.reply <- spawnReply{proc, err}
		case <-s.quit:
			return
		}
	}
}

// start is os.StartProcess on the spawner's thread.
func (s *spawner) start(path string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	reply := make(chan spawnReply, 1)
	select {
	case s.requests <- spawnRequest{path, argv, attr, reply}:
		got := <-reply
		return got.proc, got.err
	case <-s.quit:
		return nil, errors.New("the spawner has stopped")
	}
}

// stop ends the thread; children that are alive die with it.
func (s *spawner) stop() {
	s.once.Do(func() { close(s.quit) })
	<-s.done
}
