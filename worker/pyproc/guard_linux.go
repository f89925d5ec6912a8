package pyproc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// guardPause is the time between the unexpected end of a guard and the next one.
const guardPause = time.Second

// guard is the process that survives a killed agent for a moment, to kill what carries
// its mark (script/guard.py). One that ends too early is replaced.
type guard struct {
	e    *Executor
	done chan struct{} // closed when keep has ended

	mu sync.Mutex
	// hold is the pipe whose closing wakes the guard: it closes with the agent.
	hold    *os.File
	pid     int
	stopped bool
}

// startGuard returns nil where there is no mark to look for.
func startGuard(e *Executor) (*guard, error) {
	if e.mark == 0 {
		return nil, nil
	}
	g := &guard{e: e, done: make(chan struct{})}
	proc, err := g.spawn()
	if err != nil {
		return nil, err
	}
	go g.keep(proc)
	return g, nil
}

func (g *guard) spawn() (*os.Process, error) {
	read, hold, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		closeAll(read, hold)
		return nil, err
	}
	// Without a parent-death signal: it is the one child that must outlive the agent.
	proc, err := g.e.spawner.start(g.e.python, []string{
		g.e.python, "-I", "-S", filepath.Join(g.e.dir, "guard.py"),
		strconv.FormatUint(uint64(g.e.mark), 10), strconv.Itoa(markBits),
	}, &os.ProcAttr{
		Dir: "/", Env: g.e.env, Files: []*os.File{read, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	closeAll(read, null)
	if err != nil {
		hold.Close()
		return nil, fmt.Errorf("start the guard process: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	closeAll(g.hold)
	g.pid = proc.Pid
	if g.hold = hold; g.stopped {
		hold.Close()
	}
	return proc, nil
}

// keep waits for the guard and replaces it, until the executor is closed.
func (g *guard) keep(proc *os.Process) {
	defer close(g.done)
	for {
		if proc != nil {
			state, err := proc.Wait()
			if g.e.ctx.Err() != nil {
				return
			}
			g.e.log.Warn("the guard process ended early and is replaced", "state", state.String(), "error", err)
		}
		select {
		case <-time.After(guardPause):
		case <-g.e.ctx.Done():
			return
		}
		var err error
		if proc, err = g.spawn(); err != nil {
			g.e.log.Warn("no guard process: if this agent is killed, processes that left their group stay", "error", err)
		}
	}
}

// stop lets the guard look around once more and end.
func (g *guard) stop() {
	g.mu.Lock()
	g.stopped = true
	closeAll(g.hold)
	g.mu.Unlock()
	<-g.done
}
