package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stageEnv tells the copies of the test program apart: see [TestMain].
const stageEnv = "CHAOS_CLUSTER_TEST_STAGE"

// TestMain lets the test program be the processes of [TestFrozenStaysFrozen] too: "leader"
// is a shell's background job, "suite" what it leaves behind.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(stageEnv) {
	case "leader":
		err = leader()
	case "suite":
		err = suite()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stageEnv+"="+stage)
	cmd.Stderr = os.Stderr
	return cmd
}

// leader starts the suite in its own process group, hands on what that says, and ends when
// its input does. The suite goes on, as after nohup.
func leader() error {
	signal.Ignore(syscall.SIGHUP)
	cmd := again("suite")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Printf("%d %s", cmd.Process.Pid, line)
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // until the test lets go
	return nil
}

// suite freezes two processes, one of the spawner's and one of its own, says which, and
// stays until it is killed.
func suite() error {
	spawned, own := exec.Command("sleep", "60"), exec.Command("sleep", "60")
	own.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := newSpawner().start(spawned); err != nil {
		return err
	}
	if err := own.Start(); err != nil {
		return err
	}
	for _, cmd := range []*exec.Cmd{spawned, own} {
		p := frozenTest(cmd)
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		err := Await(context.Background(), "it is frozen", 10*time.Second, func(context.Context) (bool, error) { return p.Frozen(), nil })
		if err != nil {
			return err
		}
	}
	fmt.Println(spawned.Process.Pid, own.Process.Pid)
	select {}
}

func frozenTest(cmd *exec.Cmd) *Process { return &Process{run: &incarnation{cmd: cmd}} }

// TestFrozenStaysFrozen has a suite run as a shell's job in the background whose leader
// ends: its process group is orphaned, and the kernel wakes what is frozen in it. What the
// spawner started stays frozen.
func TestFrozenStaysFrozen(t *testing.T) {
	cmd := again("leader")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for text := range strings.FieldsSeq(line) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 3 {
		t.Fatalf("the leader says %q, want three process ids", line)
	}
	t.Cleanup(func() { _ = syscall.Kill(pids[0], syscall.SIGKILL) }) // the others end with it
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	process := func(pid int) *Process { return frozenTest(&exec.Cmd{Process: &os.Process{Pid: pid}}) }
	// The one in the suite's own group tells that the kernel has done it.
	err = Await(t.Context(), "a process of the suite's own group is woken", 10*time.Second, func(context.Context) (bool, error) {
		return !process(pids[2]).Frozen(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !process(pids[1]).Frozen() {
		t.Error("the spawner's process was frozen and goes on")
	}
}
