package pyproc

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

const (
	// eats takes n bytes in a list and keeps them for the attempt.
	eats = "def f(n):\n    keep = []\n    while n > 0:\n        keep.append(b'x' * min(n, 1 << 20)); n -= 1 << 20\n    return len(keep)"
	mib  = 1 << 20
)

// TestMemoryLimits runs with each mechanism that this machine has.
func TestMemoryLimits(t *testing.T) {
	found := newLimiter()
	t.Logf("this machine: %+v", ProbeLimits())
	mechanisms := map[string]limiter{"RLIMIT_AS": {detail: "forced"}}
	if found.root != "" {
		mechanisms[found.name()] = found
	}
	for name, l := range mechanisms {
		t.Run(name, func(t *testing.T) {
			cfg := Config{CacheDir: sharedCache, Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), MemoryLimit: 300 * mib}
			e := startConfig(t, 1, cfg, func(e *Executor) { e.limits = l })
			if e.limits.name() != name {
				t.Fatalf("mechanism %s", e.limits.name())
			}
			attempt := func(src, args string, limit int64) task.Outcome {
				a := fromSource(src, args)
				a.MemoryLimit = limit
				return run(t, e, 0, a)
			}
			want(t, attempt(eats, `{"args":[67108864]}`, 128*mib), "64")
			wantEnd(t, attempt(eats, `{"args":[1073741824]}`, 128*mib), task.EndExhausted, "limit of 134217728 bytes ("+name+")")
			wantEnd(t, attempt(eats, `{"args":[1073741824]}`, 0), task.EndExhausted, "limit of 314572800 bytes ("+name+")")
			want(t, attempt(eats, `{"args":[209715200]}`, 256*mib), "200")
			// What the attempt before it took does not count for the next one.
			want(t, attempt(eats, `{"args":[67108864]}`, 100*mib), "64")
			// A larger limit than the default is granted, and lifted again.
			want(t, attempt(eats, `{"args":[419430400]}`, 600*mib), "400")
			wantEnd(t, attempt(eats, `{"args":[419430400]}`, 0), task.EndExhausted, "limit of 314572800 bytes")
			// A function's own MemoryError is its own.
			for _, src := range []string{
				"def f(): raise MemoryError('mine')",
				"def f():\n    try: raise MemoryError('mine')\n    except MemoryError: raise",
			} {
				out := attempt(src, "", 128*mib)
				wantEnd(t, out, task.EndRaised, "mine")
			}
			// The result counts too.
			wantEnd(t, attempt("def f(): return ['x' * 100] * 10_000_000", "", 128*mib), task.EndExhausted, "limit of 134217728 bytes")
			// A child counts where groups count; elsewhere each process has the limit.
			out := attempt("import subprocess, sys\ndef f(): return subprocess.run([sys.executable, '-c', 'x = b\"x\" * (1 << 29)'], capture_output=True).returncode", "", 128*mib)
			if out.End == task.EndSucceeded && string(out.Result) == "0" {
				t.Fatalf("a child took 512 MiB under a limit of 128 MiB: %s", describe(out))
			}
			if err := healthy(t.Context(), e, 0); err != nil {
				t.Fatal(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			if l.root != "" {
				left, _ := filepath.Glob(filepath.Join(l.root, "treadle-*"))
				if len(left) > 0 {
					t.Fatalf("control groups left: %v", left)
				}
			}
		})
	}
}

// TestFindLimiter reads membership and mounts as other machines have them.
func TestFindLimiter(t *testing.T) {
	write := func(t *testing.T, name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, membership, mounts string
		v2                       bool
		want                     string
	}{
		{"v2", "0::/user.slice/a.scope\n", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", true, "/sys/fs/cgroup/user.slice/a.scope"},
		{"v2 in a container", "0::/\n", "30 20 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n", true, "/sys/fs/cgroup"},
		{"v1", "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n", "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", false, "/sys/fs/cgroup/memory/docker/abc"},
		{"v1 seen from inside", "4:memory:/docker/abc\n", "31 20 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", false, "/sys/fs/cgroup/memory"},
		{"none", "", "", false, ""},
		{"not mounted", "0::/\n", "30 20 0:26 / / rw - ext4 /dev/sda rw\n", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ownGroup(write(t, "cgroup", c.membership), write(t, "mountinfo", c.mounts), c.v2)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Fatalf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
	l := findLimiter(write(t, "cgroup", ""), write(t, "mountinfo", ""))
	if l.name() != "RLIMIT_AS" || !strings.Contains(l.detail, "cgroup v2: ") || !strings.Contains(l.detail, "cgroup v1: ") {
		t.Fatalf("%+v", l)
	}
}

// TestGroupFilesV2 checks what is written into a group of the second version, on plain
// files: this needs no kernel, and says nothing about one.
func TestGroupFilesV2(t *testing.T) {
	root := t.TempDir()
	if err := tryGroup(root, true); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
	for name, text := range map[string]string{"cgroup.controllers": "cpu pids\n", "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := tryGroup(root, true); err == nil || !strings.Contains(err.Error(), "memory controller") {
		t.Fatalf("error %v", err)
	}
	for limit, want := range map[int64]string{128 * mib: "134217728 0 1", -1: "max max 1"} {
		dir := t.TempDir()
		for _, name := range []string{"memory.max", "memory.swap.max", "memory.oom.group"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := setLimit(dir, true, limit); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"memory.max", "memory.swap.max", "memory.oom.group"} {
			text, _ := os.ReadFile(filepath.Join(dir, name))
			got = append(got, string(text))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("limit %d wrote %q, want %q", limit, got, want)
		}
	}
	events := filepath.Join(root, "memory.events")
	if err := os.WriteFile(events, []byte("low 0\noom 3\noom_kill 2\noom_group_kill 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := oomKills(events); n != 2 {
		t.Fatalf("%d kills", n)
	}
}
