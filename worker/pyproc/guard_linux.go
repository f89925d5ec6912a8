package pyproc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// guard is the process that survives a killed agent for a moment, to kill what carries
// its mark (script/guard.py).
type guard struct {
	proc *os.Process
	// hold is the pipe whose closing wakes the guard: it closes with the agent.
	hold *os.File
	done chan struct{}
}

func startGuard(e *Executor) (*guard, error) {
	if e.mark == 0 {
		return nil, nil
	}
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
	proc, err := e.spawner.start(e.python, []string{
		e.python, "-I", "-S", filepath.Join(e.dir, "guard.py"),
		strconv.FormatUint(uint64(e.mark), 10), strconv.Itoa(markBits),
	}, &os.ProcAttr{
		Dir: "/", Env: e.env, Files: []*os.File{read, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	closeAll(read, null)
	if err != nil {
		hold.Close()
		return nil, fmt.Errorf("start the guard process: %w", err)
	}
	g := &guard{proc: proc, hold: hold, done: make(chan struct{})}
	go func() {
		defer close(g.done)
		_, err := proc.Wait()
		if e.ctx.Err() == nil {
			e.log.Warn("the guard process ended early: if this agent is killed, processes that left their group stay", "error", err)
		}
	}()
	return g, nil
}

// stop lets the guard look around once more and end.
func (g *guard) stop() {
	g.hold.Close()
	<-g.done
}
