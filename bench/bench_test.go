package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/bench"
	treadle "github.com/treadle-dev/treadle/clients/go"
)

// binary builds the treadle binary once for all tests of the package.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "treadle-bench-test-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	name := filepath.Join(dir, "treadle")
	out, err := exec.Command("go", "build", "-o", name, "github.com/treadle-dev/treadle/cmd/treadle").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return name, nil
})

var binaryDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if binaryDir != "" {
		_ = os.RemoveAll(binaryDir)
	}
	os.Exit(code)
}

// start runs a stack for a test.
func start(tb testing.TB, mode, runtime string) *bench.Stack {
	tb.Helper()
	exe, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	log := &bench.Tail{}
	stack, err := bench.StartStack(context.Background(), bench.StackConfig{
		Binary: exe, Mode: mode, Runtime: runtime, Slots: 2, Dir: tb.TempDir(), Log: log,
	})
	if err != nil {
		tb.Fatalf("%v\n%s", err, log)
	}
	tb.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			tb.Errorf("stop: %v\n%s", err, log)
		}
	})
	return stack
}

var stacks = []struct{ mode, runtime string }{
	{bench.ModeLocal, bench.RuntimePython},
	{bench.ModePush, bench.RuntimePython},
	{bench.ModePull, bench.RuntimePython},
	{bench.ModePush, bench.RuntimeGo},
	{bench.ModePull, bench.RuntimeGo},
}

// BenchmarkBatch measures the whole path end to end: gRPC batches of 256 from eight
// clients, the embedded store with every task synced to disk, worker processes, and
// every result fetched. One iteration is one task.
//
//	go test -run '^$' -bench Batch ./bench
func BenchmarkBatch(b *testing.B) {
	for _, s := range stacks {
		b.Run(s.mode+"/"+s.runtime, func(b *testing.B) {
			stack := start(b, s.mode, s.runtime)
			runs, err := bench.Run(b.Context(), bench.Config{
				Address: stack.GRPCAddr, Mode: s.mode, Runtime: s.runtime, PIDs: stack.PIDs,
				Scenarios: []string{bench.ScenarioBatch}, Tasks: b.N, Duration: time.Second,
			})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(runs[0].Seconds*1e9/float64(runs[0].Tasks), "ns/op")
			b.ReportMetric(runs[0].TasksPerSecond, "tasks/s")
			b.ReportMetric(runs[0].CPUMicrosPerTask, "cpu-us/task")
		})
	}
}

// TestScenarios runs each scenario for a few tasks on a real stack, so that the load
// generator stays alive, and checks what it reports.
func TestScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	for _, s := range stacks[:4] {
		t.Run(s.mode+"/"+s.runtime, func(t *testing.T) {
			stack := start(t, s.mode, s.runtime)
			const tasks = 300
			runs, err := bench.Run(t.Context(), bench.Config{
				Address: stack.GRPCAddr, HTTPAddr: stack.HTTPAddr, Mode: s.mode, Runtime: s.runtime, PIDs: stack.PIDs,
				Tasks: tasks, Duration: 200 * time.Millisecond, Batch: 64, Clients: 3, Callers: 40,
			})
			if err != nil {
				t.Fatal(err)
			}
			want := len(bench.Scenarios)
			if s.runtime == bench.RuntimeGo {
				want-- // pickles are not for Go handlers
			}
			if len(runs) != want {
				t.Errorf("%d scenarios were measured, want %d", len(runs), want)
			}
			for _, m := range runs {
				if m.Tasks != tasks || m.TasksPerSecond <= 0 || m.Latency.P50 <= 0 || m.Latency.P50 > m.Latency.Max {
					t.Errorf("%+v", m)
				}
			}
			// The server agrees that they ran: what was submitted is finished.
			c, err := treadle.Dial(stack.GRPCAddr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			done := 0
			for task, err := range c.Tasks(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				if task.Status != treadle.Completed {
					t.Errorf("task %s is %s", task.ID, task.Status)
				}
				done++
			}
			if done < tasks*want {
				t.Errorf("the server has %d tasks, %d were measured", done, tasks*want)
			}
			report := bench.Report{Server: "test", Durability: "embedded", Machine: bench.ThisMachine(), Runs: runs}
			var text bytes.Buffer
			if err := report.Print(&text); err != nil || strings.Count(text.String(), "\n") != len(runs)+3 {
				t.Errorf("%v:\n%s", err, text.String())
			}
			t.Logf("\n%s", text.String())
		})
	}
}

func TestRunWithoutServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := bench.Run(ctx, bench.Config{Address: "127.0.0.1:1"}); err == nil {
		t.Error("nobody answered, and that was fine")
	}
	if _, err := bench.Run(ctx, bench.Config{Address: "127.0.0.1:1", Scenarios: []string{"sideways"}}); err == nil ||
		!strings.Contains(err.Error(), "sideways") {
		t.Errorf("an unknown scenario = %v", err)
	}
}

func TestStackWhoseServerDoesNotStart(t *testing.T) {
	log := &bench.Tail{}
	_, err := bench.StartStack(t.Context(), bench.StackConfig{
		Binary: "/bin/false", Mode: bench.ModeLocal, Slots: 1, Dir: t.TempDir(), Log: log,
	})
	if err == nil || !strings.Contains(err.Error(), "treadle up") {
		t.Errorf("%v", err)
	}
}
