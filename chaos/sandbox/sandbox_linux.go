// Package sandbox puts the suite into namespaces of its own where it may: a network whose
// packets it can drop, and a set of processes that ends with it, however it ends.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stage tells the copies of the program apart: "" outside, "init" is the first process in
// the namespaces, "inside" the suite.
const stage = "TREADLE_CHAOS_SANDBOX"

// Inside says that this process runs in namespaces of its own.
func Inside() bool { return os.Getenv(stage) == "inside" }

// Why says why the process is not inside; empty when it is.
func Why() string {
	switch {
	case Inside():
		return ""
	case os.Geteuid() != 0:
		return "namespaces need root: partitions are made by the proxies, not by dropped packets"
	default:
		return "the system refused namespaces: partitions are made by the proxies, not by dropped packets"
	}
}

// Enter runs the program again inside where that is possible and ends this process with
// its exit code. Else it returns, and the suite goes on without.
func Enter() {
	switch os.Getenv(stage) {
	case "inside":
		return
	case "init":
		os.Exit(initProcess())
	}
	if os.Geteuid() != 0 {
		subreaper()
		return
	}
	cmd := self("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
		// Nobody outside has a hand in what is frozen inside: see the spawner of package cluster.
		Setsid: true,
	}
	if err := cmd.Start(); err != nil {
		subreaper()
		return
	}
	forward(cmd)
	os.Exit(codeOf(cmd.Wait()))
}

// subreaper has the orphans of our processes become our children, so that they are found.
func subreaper() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // without it orphans are not seen, which Why says
}

func self(next string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, stage+"=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, stage+"="+next)
	return cmd
}

// forward hands the signals that end a program on.
func forward(cmd *exec.Cmd) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
}

// initProcess is process 1: it makes the namespaces usable, starts the suite and buries
// orphans. When it ends the kernel kills everything that is left.
func initProcess() int {
	if err := prepare(); err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 1
	}
	cmd := self("inside")
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 1
	}
	forward(cmd)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid:
			return 128 + int(status.Signal())
		}
	}
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	// Loopback is down in a new network.
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}

func codeOf(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	default:
		return 1
	}
}
