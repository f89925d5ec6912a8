package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// orphanAge is how long a child of PID 1 must have been dead before it is taken for an
// orphan. Whoever started a child waits for it, so that its own are collected within
// milliseconds; nothing else tells the two apart.
const orphanAge = 5 * time.Second

// collectOrphans collects the dead children of others until ctx ends: PID 1 of a container
// inherits every process whose parent has ended, such as those of probes and of shells that
// are started in the container, and each one would stay a zombie. pid is this process.
func collectOrphans(ctx context.Context, pid int, age time.Duration) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	seen := map[zombie]bool{}
	var again <-chan time.Time // nil waits for the next child alone
	for {
		select {
		case <-children:
			if again != nil {
				continue // they are looked at when the time comes
			}
		case <-again:
		case <-ctx.Done():
			return
		}
		next := map[zombie]bool{}
		for _, z := range zombies(pid) {
			if !seen[z] {
				next[z] = true
				continue
			}
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(z.pid, &status, syscall.WNOHANG, nil) // it was collected already, at worst
		}
		if seen, again = next, nil; len(seen) > 0 {
			again = time.After(age)
		}
	}
}

// zombie is a dead process; its start time tells it from a later one of that number.
type zombie struct {
	pid     int
	started string
}

// zombies are the dead children of a process.
func zombies(parent int) (out []zombie) {
	folders, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, f := range folders {
		pid, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + f.Name() + "/stat")
		if err != nil {
			continue // it is gone
		}
		// "pid (name) state ppid ...": the name may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 19 && fields[0][0] == 'Z' && string(fields[1]) == strconv.Itoa(parent) {
			out = append(out, zombie{pid, string(fields[19])})
		}
	}
	return out
}
