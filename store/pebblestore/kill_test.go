package pebblestore

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// victimVariable names the folder that the process of [TestKill] works in.
const victimVariable = "PEBBLESTORE_VICTIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimVariable); dir != "" {
		victim(dir)
	}
	os.Exit(m.Run())
}

// victim works until it is killed and prints every acknowledgement as one line.
func victim(dir string) {
	ctx := context.Background()
	s, err := Open(ctx, Options{Dir: dir, Logger: quiet})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("open")
	for {
		args := []byte("arguments")
		tk := sampleTask(args)
		if _, err := s.Submit(ctx, time.Now(), []store.Submission{{Task: tk, Args: args}}); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("submitted", tk.ID)
		now := time.Now()
		got, err := s.Claim(ctx, now, []store.ClaimRequest{{Claim: randomID(), Worker: "w", Queues: []string{"default"},
			Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(time.Minute)}})
		if err != nil || len(got[0]) != 1 {
			fmt.Println("error", err, len(got[0]))
			os.Exit(1)
		}
		tok := got[0][0].Token
		if tok.Task[15]%4 == 0 {
			continue // Left in force.
		}
		if _, err := s.Settle(ctx, time.Now(), []store.Settlement{{Token: tok,
			Outcome: task.Outcome{End: task.EndSucceeded, Result: tok.Task[:]}}}); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("settled", tok.Task)
	}
}

// TestKill kills a process that uses the store, at whatever it is doing, and opens
// the folder again.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	submitted, settled := map[task.ID]bool{}, map[task.ID]bool{}
	for round := range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), victimVariable+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The kill comes after so many lines; what is printed until it arrives counts too.
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			verb, text, _ := strings.Cut(lines.Text(), " ")
			id, _ := task.ParseID(text)
			switch verb {
			case "open":
				refused(t, dir)
			case "submitted":
				submitted[id] = true
			case "settled":
				settled[id] = true
			default:
				t.Errorf("the victim says %q", lines.Text())
			}
			if n == 40+30*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Error(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the victim ended by itself")
		}
		if ctx.Err() != nil {
			t.Fatalf("the victim did not acknowledge %d times within a minute", 40+30*round)
		}
		examine(t, dir, submitted, settled)
	}
	if len(settled) == 0 {
		t.Fatal("nothing was settled: the test shows nothing")
	}
}

// refused checks that the folder cannot be opened twice.
func refused(t *testing.T, dir string) {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: dir, Logger: quiet})
	if err == nil {
		t.Error("two processes hold one folder", s.Close())
		return
	}
	if task.CodeOf(err) != task.CodeUnavailable || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another treadle process") {
		t.Errorf("the second process is told: %v", err)
	}
}

func examine(t *testing.T, dir string, submitted, settled map[task.ID]bool) {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: dir, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.CheckInvariants(context.Background()); err != nil {
		t.Error(err)
	}
	for id := range submitted {
		got, result, err := s.Result(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if settled[id] && (got.Status != task.Completed || string(result) != string(id[:])) {
			t.Fatalf("task %s was settled and is %s with %q", id, got.Status, result)
		}
	}
}
