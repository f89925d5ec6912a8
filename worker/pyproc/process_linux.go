package pyproc

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fionread = unix.TIOCINQ
	// rtTime is RLIMIT_RTTIME: how much CPU time, in microseconds, a process under a
	// real-time scheduling policy may use without a blocking system call.
	rtTime = 15
	// markBits tell the runners of one executor apart; the bits above are the executor's own.
	markBits = 20
	// killRounds and killWait bound the search for what a runner left: about 5 s.
	killRounds = 50
	killWait   = 100 * time.Millisecond
)

func runnerAttr() *syscall.SysProcAttr {
	// A session of its own: no terminal, and a Ctrl-C on the agent stays with the agent.
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// killGroup kills a process and its group. The process must not have been collected yet.
func killGroup(p *os.Process) {
	// The group first: a process that left it is killed by its own number.
	_ = unix.Kill(-p.Pid, unix.SIGKILL)
	_ = p.Signal(syscall.SIGKILL)
}

// awaitExit waits until a process has ended and leaves it uncollected, so that its
// number stays taken: the state is nil, and Wait is still to be called.
func awaitExit(p *os.Process) (*os.ProcessState, error) {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

func signalName(s syscall.Signal) string {
	return "signal " + strconv.Itoa(int(s)) + " (" + unix.SignalName(s) + ")"
}

// mark is a number that the processes of a runner carry as their limit on real-time CPU
// time; see the package comment. Zero is none.
type mark uint64

// newMark returns the mark of an executor: random high bits, in years of CPU time beyond
// any meaning and below a limit that is in force already.
func newMark() mark {
	var seed [8]byte
	rand.Read(seed[:])
	value := binary.LittleEndian.Uint64(seed[:])
	ceiling := uint64(1) << 62
	var current unix.Rlimit
	if unix.Getrlimit(rtTime, &current) == nil && current.Max < ceiling {
		ceiling = current.Max
	}
	floor := ceiling / 2
	if floor>>markBits == 0 {
		return 0 // a real limit is in force; groups have to do
	}
	return mark((floor + value%(ceiling-floor)) >> markBits << markBits)
}

// brand gives a new process its own mark and keeps it from writing core files, which for
// a large process takes longer than its replacement.
func (m mark) brand(pid int, number uint64, log *slog.Logger) mark {
	var core unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &core) == nil {
		_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Max: core.Max}, nil)
	}
	if m == 0 {
		return 0
	}
	own := m | mark(number&(1<<markBits-1))
	if err := unix.Prlimit(pid, rtTime, &unix.Rlimit{Cur: uint64(own), Max: uint64(own)}, nil); err != nil {
		log.Debug("a runner cannot be marked; what leaves its group will not be found", "error", err)
		return 0
	}
	return own
}

// killAll kills every process that carries the mark, except one, until none is left. It
// returns how many would not end.
func (m mark) killAll(except int) int {
	if m == 0 {
		return 0
	}
	left := 0
	for range killRounds {
		found := m.processes(except)
		if len(found) == 0 {
			return 0
		}
		left = len(found)
		for _, pid := range found {
			m.killOne(pid)
		}
	}
	return left
}

// killOne kills one process and waits for its end, up to killWait. A descriptor of the
// process keeps the signal from reaching another that got its number.
func (m mark) killOne(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) && markOf(pid) == m {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return
	}
	defer unix.Close(fd)
	if markOf(pid) != m {
		return
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(killWait/time.Millisecond))
	if parentOf(pid) == os.Getpid() {
		// An agent that is process 1 of a container inherits orphans.
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// processes lists the live processes that carry the mark.
func (m mark) processes(except int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	names, _ := dir.Readdirnames(-1)
	dir.Close()
	var found []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == except || markOf(pid) != m {
			continue
		}
		if state, _ := statOf(pid); state != 'Z' && state != 'X' && state != 0 {
			found = append(found, pid)
		}
	}
	return found
}

// markOf reads the mark of a process, zero when it has none or is gone.
func markOf(pid int) mark {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return 0
	}
	const label = "Max realtime timeout"
	at := bytes.Index(data, []byte(label))
	if at < 0 {
		return 0
	}
	fields := bytes.Fields(data[at+len(label):])
	if len(fields) == 0 {
		return 0
	}
	value, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil {
		return 0
	}
	return mark(value)
}

// statOf returns state and parent of a process, zero when it is gone.
func statOf(pid int) (state byte, parent int) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	// The name, in parentheses, may contain anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 2 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent
}

func parentOf(pid int) int {
	_, parent := statOf(pid)
	return parent
}
