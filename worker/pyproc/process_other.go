//go:build unix && !linux

package pyproc

import (
	"log/slog"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	fionread = 0x4004667f // FIONREAD of the BSDs
	markBits = 0
)

func runnerAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// killGroup kills a process and its group. The process must not have been collected yet.
func killGroup(p *os.Process) {
	_ = unix.Kill(-p.Pid, unix.SIGKILL)
	_ = p.Signal(syscall.SIGKILL)
}

// awaitExit waits for the end of a process and collects it: there is no wait here that
// would leave its number taken while its group is killed.
func awaitExit(p *os.Process) (*os.ProcessState, error) { return p.Wait() }

func signalName(s syscall.Signal) string {
	return "signal " + strconv.Itoa(int(s)) + " (" + unix.SignalName(s) + ")"
}

// mark is a Linux matter; elsewhere process groups have to do.
type mark uint64

func newMark() mark { return 0 }

func (m mark) brand(int, uint64, *slog.Logger) mark { return 0 }

func (m mark) killAll(int) int { return 0 }
