package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/chaos/sandbox"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/store/redisstore"
)

// CheckStore opens the store that the cluster has left and compares its indexes and
// counters with a full scan of its records.
func (c *Cluster) CheckStore(ctx context.Context) error {
	type checked interface {
		CheckInvariants(context.Context) error
		Close() error
	}
	quiet := slog.New(slog.DiscardHandler)
	retention := c.Retention
	if retention == 0 {
		retention = 24 * time.Hour
	}
	var st checked
	var err error
	if c.Spec.Store == "embedded" {
		st, err = pebblestore.Open(ctx, pebblestore.Options{
			Dir: filepath.Join(c.Dir, "data", "store"), Durability: pebblestore.Embedded, Retention: retention, Lease: time.Second, Logger: quiet,
		})
	} else {
		st, err = redisstore.Open(ctx, redisstore.Options{URL: c.StoreURL(), Retention: retention, Logger: quiet})
	}
	if err != nil {
		return fmt.Errorf("open the store again: %w", err)
	}
	return errors.Join(st.CheckInvariants(ctx), st.Close())
}

// Metric reads a number from a process's /metrics.
func (c *Cluster) Metric(ctx context.Context, process, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.HTTP(process)+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if field, value, ok := strings.Cut(line, " "); ok && field == name {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s shows no metric %s", process, name)
}

// proc is a line of the process table.
type proc struct {
	pid, parent int
	state       byte
	command     string
}

// table reads the process table; processes that end meanwhile are left out.
func table() (list []proc) {
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		panic(err) // the pattern is well formed
	}
	for _, stat := range dirs {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		fields := strings.Fields(string(b[end+1:]))
		if open < 0 || len(fields) < 2 {
			continue
		}
		pid, err1 := strconv.Atoi(strings.TrimSpace(string(b[:open])))
		parent, err2 := strconv.Atoi(fields[1])
		if err1 != nil || err2 != nil {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(stat), "cmdline"))
		list = append(list, proc{pid, parent, fields[0][0], strings.ReplaceAll(strings.TrimRight(string(command), "\x00"), "\x00", " ")})
	}
	return list
}

// Orphans lists processes whose parent has died: in a set of processes of our own they
// are children of process 1, else ours.
func Orphans() (list []string) {
	self := os.Getpid()
	for _, p := range table() {
		orphan := sandbox.Inside() && p.parent == 1 && p.pid != self
		if !sandbox.Inside() {
			// Every child that we start says so in its command.
			orphan = p.parent == self && strings.Contains(p.command, "python")
		}
		if orphan && p.state != 'Z' {
			list = append(list, fmt.Sprintf("%d %s", p.pid, p.command))
		}
	}
	return list
}

// Strays lists what is left of a run in a set of processes of our own, where everything
// but process 1 and this one should have gone; elsewhere the orphans.
func Strays() (list []string) {
	if !sandbox.Inside() {
		return Orphans()
	}
	for _, p := range table() {
		if p.pid != 1 && p.pid != os.Getpid() && p.state != 'Z' {
			list = append(list, fmt.Sprintf("%d %s", p.pid, p.command))
		}
	}
	return list
}

// Children counts the live processes below one.
func Children(pid int) int {
	all := table()
	n := 0
	below := map[int]bool{pid: true}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if below[p.parent] && !below[p.pid] && p.state != 'Z' {
				below[p.pid] = true
				grew = true
				n++
			}
		}
	}
	return n
}

// Descriptors counts the open files of a process.
func Descriptors(pid int) int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(list)
}

// Connections counts the descriptors that a process holds for its store: connections of a
// pool, or the open files of the embedded one, which are as many as there is data.
func (c *Cluster) Connections(p *Process) (n int, err error) {
	ports := map[string]bool{}
	if c.Redis != nil {
		for _, s := range c.Redis.Servers {
			ports[fmt.Sprintf("%04X", s.Port)] = true
		}
	}
	for _, link := range c.Stores {
		_, port, err := net.SplitHostPort(link.Addr)
		if err != nil {
			return 0, err
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return 0, err
		}
		ports[fmt.Sprintf("%04X", number)] = true
	}
	// Columns: number, local and remote address, state, ..., inode; ports are hexadecimal.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", p.PID()))
	if err != nil {
		return 0, err
	}
	sockets := map[string]bool{}
	for line := range strings.SplitSeq(string(b), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}
		if _, port, ok := strings.Cut(fields[2], ":"); ok && ports[port] {
			sockets["socket:["+fields[9]+"]"] = true
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", p.PID())
	list, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, fd := range list {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err == nil && (sockets[target] || strings.HasPrefix(target, filepath.Join(c.Dir, "data")+"/")) {
			n++
		}
	}
	return n, nil
}
