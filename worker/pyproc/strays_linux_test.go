package pyproc

import (
	"os"
	"strconv"
	"testing"
)

// marked lists the live processes of an executor, whichever runner they belong to.
func marked(m mark) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || markOf(pid)>>markBits != m>>markBits {
			continue
		}
		if state, _ := statOf(pid); state != 'Z' && state != 'X' && state != 0 {
			found = append(found, pid)
		}
	}
	return found
}

// noStrays fails the test when the executor has more processes than runners.
func noStrays(t testing.TB, e *Executor, runners int) {
	t.Helper()
	if e.mark == 0 {
		t.Fatal("the executor has no mark")
	}
	if found := marked(e.mark); len(found) > runners {
		for _, pid := range found {
			command, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			t.Logf("%d %q", pid, command)
		}
		t.Fatalf("%d processes, at most %d runners", len(found), runners)
	}
}
