package pyproc

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// limiter enforces memory limits. It is made once; impose and release are called by the
// goroutine that runs or reaps the runner in question.
type limiter struct {
	// root is the agent's own memory control group, where runners get theirs below; empty
	// when control groups cannot be used.
	root   string
	v2     bool
	detail string
}

// limit is the state of one runner's memory limit.
type limit struct {
	dir    string // its control group; empty before it needed one
	bytes  int64  // in force, 0 for none
	killed bool   // set by release: the kernel killed something for exceeding the limit
}

func (l *limit) exceeded() bool { return l.killed }

// ProbeLimits says how memory limits of attempts are enforced here.
func ProbeLimits() Limits {
	l := newLimiter()
	return Limits{Mechanism: l.name(), Detail: l.detail}
}

func newLimiter() limiter {
	return findLimiter("/proc/self/cgroup", "/proc/self/mountinfo")
}

// findLimiter looks for a memory control group that this process may divide.
func findLimiter(membership, mounts string) limiter {
	var reasons []string
	for _, v2 := range []bool{true, false} {
		root, err := ownGroup(membership, mounts, v2)
		if err == nil {
			err = tryGroup(root, v2)
		}
		if err == nil {
			sweep(root)
			return limiter{root: root, v2: v2, detail: "groups below " + root}
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v", groupName(v2), err))
	}
	return limiter{detail: "address space of each process; " + strings.Join(reasons, "; ")}
}

func groupName(v2 bool) string {
	if v2 {
		return "cgroup v2"
	}
	return "cgroup v1"
}

func (l *limiter) name() string {
	if l.root == "" {
		return "RLIMIT_AS"
	}
	return groupName(l.v2)
}

// ownGroup returns the folder of this process's memory control group.
func ownGroup(membership, mounts string, v2 bool) (string, error) {
	path, err := membershipPath(membership, v2)
	if err != nil {
		return "", err
	}
	file, err := os.Open(mounts)
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// 36 35 98:0 /root /mount/point options ... - type source superoptions
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		if v2 && kind[0] != "cgroup2" || !v2 && (kind[0] != "cgroup" || !hasOption(kind[2], "memory")) {
			continue
		}
		// The mount shows the part of the hierarchy below its root.
		rel, err := filepath.Rel(fields[3], path)
		if err != nil || strings.HasPrefix(rel, "..") {
			rel = "."
		}
		return filepath.Join(fields[4], rel), nil
	}
	return "", errors.New("not mounted")
}

func membershipPath(file string, v2 bool) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if v2 && parts[0] == "0" || !v2 && hasOption(parts[1], "memory") {
			return parts[2], nil
		}
	}
	return "", errors.New("this process is in no such group")
}

func hasOption(list, option string) bool {
	for name := range strings.SplitSeq(list, ",") {
		if name == option {
			return true
		}
	}
	return false
}

// tryGroup makes sure that a group below root can be made and limited.
func tryGroup(root string, v2 bool) error {
	if v2 {
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil {
			return err
		}
		if !hasWord(string(controllers), "memory") {
			return errors.New("the memory controller is not there")
		}
		control := filepath.Join(root, "cgroup.subtree_control")
		enabled, err := os.ReadFile(control)
		if err != nil {
			return err
		}
		if !hasWord(string(enabled), "memory") {
			// Refused where the group itself holds processes: a delegated group must be empty.
			if err := os.WriteFile(control, []byte("+memory"), 0); err != nil {
				return err
			}
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("treadle-%d-probe", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	err := setLimit(dir, v2, 1<<30)
	if rm := os.Remove(dir); err == nil {
		err = rm
	}
	return err
}

func hasWord(text, word string) bool {
	for field := range strings.FieldsSeq(text) {
		if field == word {
			return true
		}
	}
	return false
}

// sweep removes the groups of agents that were killed.
func sweep(root string) {
	old, err := filepath.Glob(filepath.Join(root, "treadle-*-*"))
	if err != nil {
		return
	}
	for _, dir := range old {
		parts := strings.Split(filepath.Base(dir), "-")
		pid, err := strconv.Atoi(parts[1])
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.Remove(dir) // fails while a process is in it
		}
	}
}

// inForce says whether a runner's next attempt can go without impose.
func (l *limiter) inForce(r *runner, bytes int64) bool {
	if l.root == "" {
		return bytes == 0
	}
	return r.limit.bytes == bytes
}

// impose puts a limit in force for a runner's next attempt; 0 lifts it. byAddress asks for
// the limit to be sent to the runner, which then limits its address space. An error means
// that this runner cannot be held to the limit, as it uses more already.
func (l *limiter) impose(r *runner, bytes int64) (byAddress bool, err error) {
	if l.root == "" {
		return bytes > 0, nil
	}
	if r.limit.bytes == bytes {
		return false, nil
	}
	if r.limit.dir == "" {
		dir := filepath.Join(l.root, fmt.Sprintf("treadle-%d-%d", os.Getpid(), r.proc.Pid))
		if err := l.join(dir, r.proc.Pid); err != nil {
			r.log.Warn("no control group for a runner; its address space is limited instead", "error", err)
			return bytes > 0, nil
		}
		r.limit.dir = dir
	}
	if bytes > 0 && readNumber(filepath.Join(r.limit.dir, l.file("memory.current", "memory.usage_in_bytes"))) > bytes/2 {
		return false, fmt.Errorf("the runner holds much of its limit of %d bytes already", bytes)
	}
	value := bytes
	if bytes == 0 {
		value = -1
	}
	if err := setLimit(r.limit.dir, l.v2, value); err != nil {
		return false, err
	}
	r.limit.bytes = bytes
	return false, nil
}

func (l *limiter) file(v2, v1 string) string {
	if l.v2 {
		return v2
	}
	return v1
}

// join makes a group and moves a process into it. What the process has taken so far stays
// charged to the agent's own group.
func (l *limiter) join(dir string, pid int) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		_ = os.Remove(dir)
		return err
	}
	return nil
}

// setLimit writes a limit, or -1 for none. Swap is not a way around it where the kernel counts swap.
func setLimit(dir string, v2 bool, bytes int64) error {
	text := strconv.FormatInt(bytes, 10)
	write := func(name, value string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(value), 0)
	}
	if v2 {
		swap := "0"
		if bytes < 0 {
			text, swap = "max", "max"
		}
		_ = write("memory.swap.max", swap)
		_ = write("memory.oom.group", "1")
		return write("memory.max", text)
	}
	// Memory plus swap may never be below memory: raise it first, lower it last.
	if bytes < 0 {
		_ = write("memory.memsw.limit_in_bytes", text)
		return write("memory.limit_in_bytes", text)
	}
	if err := write("memory.limit_in_bytes", text); err != nil {
		// The old sum is below the new limit.
		_ = write("memory.memsw.limit_in_bytes", text)
		if err := write("memory.limit_in_bytes", text); err != nil {
			return err
		}
	}
	_ = write("memory.memsw.limit_in_bytes", text)
	return nil
}

// release notes whether the limit was exceeded and removes the group of a dead runner.
func (l *limiter) release(r *runner) {
	if r.limit.dir == "" {
		return
	}
	r.limit.killed = oomKills(filepath.Join(r.limit.dir, l.file("memory.events", "memory.oom_control"))) > 0
	if err := os.Remove(r.limit.dir); err != nil {
		r.log.Debug("a control group cannot be removed", "error", err)
	}
}

func oomKills(file string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

func readNumber(file string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}
