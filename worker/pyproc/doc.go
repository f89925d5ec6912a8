// Package pyproc runs Python attempts: it supervises one child process, a runner,
// for each slot.
//
// # Processes
//
// A runner is spawned by exec, in a session and process group of its own, and speaks
// frames with the agent on inherited descriptors (protocol.go, script/treadle_runner/wire.py);
// stdin is /dev/null, stdout and stderr are one pipe that becomes the attempt's log. A
// runner that dies, is killed or is worn out is an outcome; its slot gets a new one in
// the background.
//
// # Calls ahead
//
// Where run times are short a runner has up to 16 calls at once (ahead.go), so that it goes
// from one to the next without two changes of processes for each. On Linux calls travel on
// a socket that keeps messages apart, of which the agent holds both ends: what the runner
// has not read has not started, and can be taken back when a call takes long, dies or has
// to be stopped. Replies are written one by one. After a call that printed something the
// runner waits until the agent has read it, so that output is never a neighbour's.
//
// # What functions leave
//
// What a function starts is found by a mark and not by its parents, groups or
// environment, all of which it can change: before a runner gets its first frame its limit
// on real-time CPU time (RLIMIT_RTTIME, meaningless at this size) is set to a number that
// is the runner's own. Children inherit it through fork, exec and setsid. After every
// death of a runner /proc is searched for the mark until nothing carries it.
//
// After each attempt the runner itself looks for threads and children; it is the reaper
// of its descendants (PR_SET_CHILD_SUBREAPER), so that one waitpid, a microsecond, sees
// daemonized ones too. A runner with leftovers is replaced before Run returns.
//
// When the agent dies, however it dies, three things end what is left. The kernel kills
// each runner (PR_SET_PDEATHSIG; all children are spawned from one thread that lives as
// long as the executor). The closing of a pipe that the agent holds makes the kernel send
// SIGKILL to the runner's process group, without help of the Python process (O_ASYNC with
// F_SETSIG; elsewhere a thread waits for it). And a small guard process kills whatever
// still carries the mark: a daemon that a function started has nobody else to end it.
//
// # Limits
//
// A memory limit counts what an attempt takes beyond what its runner had before, by the
// best of: cgroup v2, cgroup v1, RLIMIT_AS. [ProbeLimits] says which it is.
package pyproc
