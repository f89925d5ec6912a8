//go:build unix

package pyproc

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// TestInterpreterThatNoLongerStarts, for want of the program, of descriptors or of its folder
// for scripts: the slot says so at once, hands back what it gets, and is in order again when
// the cause is mended.
func TestInterpreterThatNoLongerStarts(t *testing.T) {
	for _, c := range []struct {
		name         string
		damage, mend func(t *testing.T, e *Executor)
	}{
		{"the program is gone", func(t *testing.T, e *Executor) {
			e.python = filepath.Join(t.TempDir(), "python")
		}, func(t *testing.T, e *Executor) {
			link, err := filepath.EvalSymlinks(lookPython(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(link, e.python); err != nil {
				t.Fatal(err)
			}
		}},
		{"no descriptors", func(t *testing.T, _ *Executor) {
			t.Helper()
			open, err := os.ReadDir("/dev/fd")
			if err != nil {
				t.Fatal(err)
			}
			setFiles(t, uint64(len(open)+1))
		}, func(t *testing.T, _ *Executor) { setFiles(t, 1024) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			lowerFiles(t, 1024)
			e := start(t, 1)
			c.damage(t, e)
			r := e.slots[0].cur
			if err := r.proc.Kill(); err != nil {
				t.Fatal(err)
			}
			<-r.gone
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := e.Prepare(ctx, 0, false); err == nil || ctx.Err() != nil || e.Prepared(0) {
				t.Fatalf("the slot says that it is in order: %v", err)
			}
			a := fromSource("def f(): return 1", "")
			begun := time.Now()
			wantEnd(t, run(t, e, 0, a), task.EndReturned, "no Python runner could be started")
			if took := time.Since(begun); took > 10*time.Second {
				t.Fatalf("handed back after %s", took)
			}
			c.mend(t, e)
			if err := e.Prepare(ctx, 0, true); err != nil {
				t.Fatal(err)
			}
			want(t, run(t, e, 0, a), "1")
		})
	}
}

func setFiles(t *testing.T, limit uint64) {
	t.Helper()
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	now.Cur = limit
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
}

func lookPython(t *testing.T) string {
	t.Helper()
	found, err := Probe(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	return found.Path
}
