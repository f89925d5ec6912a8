package bench_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/bench"
	treadle "github.com/treadle-dev/treadle/clients/go"
)

// startServer runs a server to which nothing is attached.
func startServer(t *testing.T) *bench.Stack {
	t.Helper()
	exe, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	log := &bench.Tail{}
	stack, err := bench.StartStack(context.Background(), bench.StackConfig{
		Binary: exe, ServerAlone: true, MaxConnections: 5000, Dir: t.TempDir(), Log: log,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			t.Errorf("stop: %v\n%s", err, log)
		}
	})
	return stack
}

// workers are those that the server counts as attached.
func workers(t *testing.T, c *treadle.Client) int {
	t.Helper()
	list, err := c.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(w treadle.Worker) bool { return w.State != "active" })
	return len(list)
}

// TestSessions measures a few sessions in both modes and layouts, and asks the server whether
// they were there.
func TestSessions(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	for _, mode := range []string{bench.ModePush, bench.ModePull} {
		for _, layout := range bench.SessionLayouts {
			t.Run(mode+"/"+layout, func(t *testing.T) {
				stack := startServer(t)
				c, err := treadle.Dial(stack.GRPCAddr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				report := bench.Report{Server: "test", Durability: "embedded", Machine: bench.ThisMachine()}
				const tasks = 200
				for _, n := range []int{1, 20} {
					seen := 0
					cfg := bench.SessionsConfig{
						Config: bench.Config{
							Address: stack.GRPCAddr, PIDs: stack.PIDs, Mode: mode, Tasks: tasks, Duration: 300 * time.Millisecond, Batch: 50, Clients: 2,
						},
						Sessions: n, Layout: layout, Streams: 8,
					}
					cfg.Progress = func(scenario string, done int64) {
						if scenario == bench.ScenarioBatch && done == tasks {
							seen = workers(t, c)
						}
					}
					m, err := bench.MeasureSessions(t.Context(), cfg)
					if err != nil {
						t.Fatal(err)
					}
					// The client and the batches hold no session.
					if seen != n {
						t.Errorf("the server had %d workers while %d sessions were measured", seen, n)
					}
					connections := map[string]int{bench.LayoutShared: (n + 7) / 8, bench.LayoutOwn: n}[layout]
					if m.Sessions != n || m.Connections != connections || m.Call.Tasks != tasks || m.Batch.Tasks != tasks ||
						m.Call.Latency.P50 <= 0 || m.Batch.TasksPerSecond <= 0 || m.AttachSeconds <= 0 {
						t.Errorf("%+v", m)
					}
					if runtime.GOOS == "linux" && (m.Idle == nil || m.Idle.RSSBytes < 1<<20 || m.Idle.CPUPercent < 0 || m.Batch.CPUMicrosPerTask <= m.Batch.ServedCPUMicrosPerTask) {
						t.Errorf("%+v, %+v", m.Idle, m.Batch)
					}
					if n > 1 {
						m.Against(&report.Sessions[0])
						if m.Ratio.CallP50 <= 0 || m.Ratio.BatchRate <= 0 {
							t.Errorf("%+v", m.Ratio)
						}
					}
					report.Sessions = append(report.Sessions, m)
				}
				var text bytes.Buffer
				if err := report.Print(&text); err != nil || strings.Count(text.String(), "\n") != 2+3 {
					t.Errorf("%v:\n%s", err, text.String())
				}
				t.Logf("\n%s", text.String())
			})
		}
	}
}

// TestSessionsEnd: what is attached leaves when the context ends, in the middle of a measurement.
func TestSessionsEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	stack := startServer(t)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("somebody pressed Ctrl-C")
	cfg := bench.SessionsConfig{
		Config:   bench.Config{Address: stack.GRPCAddr, Duration: time.Minute},
		Sessions: 20, Layout: bench.LayoutOwn,
	}
	cfg.Progress = func(scenario string, done int64) {
		if scenario == "attach" && done == 20 {
			cancel(interrupted)
		}
	}
	start := time.Now()
	if _, err := bench.MeasureSessions(ctx, cfg); !errors.Is(err, interrupted) {
		t.Errorf("an interrupted measurement = %v", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %s to end", took)
	}
	// gRPC's own goroutines end with their connections, a moment after those were closed.
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSessionsOfAServerThatLeaves: figures of fewer sessions than asked for are no figures.
func TestSessionsOfAServerThatLeaves(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	stack := startServer(t)
	proxy := newProxy(t, stack.GRPCAddr)
	cfg := bench.SessionsConfig{
		Config:   bench.Config{Address: proxy.lis.Addr().String(), Duration: time.Minute},
		Sessions: 5, Layout: bench.LayoutOwn,
	}
	cfg.Progress = func(scenario string, done int64) {
		if scenario == "attach" && done == 5 {
			proxy.close()
		}
	}
	if _, err := bench.MeasureSessions(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "a simulated worker lost its session") {
		t.Errorf("lost sessions = %v", err)
	}
}

func TestSessionLimits(t *testing.T) {
	for _, test := range []struct {
		cfg  bench.SessionsConfig
		want string // "" means fine
	}{
		{bench.SessionsConfig{Sessions: 1}, ""},
		{bench.SessionsConfig{Sessions: bench.MaxSessions}, ""},
		{bench.SessionsConfig{}, "0 sessions: want 1 to 20000"},
		{bench.SessionsConfig{Sessions: bench.MaxSessions + 1}, "20001 sessions"},
		{bench.SessionsConfig{Sessions: 1, Slots: bench.MaxSessionSlots, Streams: bench.MaxSessionStreams}, ""},
		{bench.SessionsConfig{Sessions: 1, Slots: bench.MaxSessionSlots + 1}, "4097 slots"},
		{bench.SessionsConfig{Sessions: 1, Streams: bench.MaxSessionStreams + 1}, "1001 sessions on a connection"},
		{bench.SessionsConfig{Sessions: 1, Layout: "pairs"}, `session layout "pairs": want shared or own`},
		{bench.SessionsConfig{Sessions: 1, Config: bench.Config{Mode: bench.ModeLocal}}, `mode "local"`},
	} {
		err := test.cfg.Check()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.cfg, err, test.want)
		}
	}
}

// proxy passes bytes on until it is closed.
type proxy struct {
	lis   net.Listener
	close func()
}

func newProxy(t *testing.T, to string) proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() { _, _ = io.Copy(pair[0], pair[1]) }() // ends with the connections
			}
			context.AfterFunc(ctx, func() {
				_ = in.Close()
				_ = out.Close()
			})
		}
	}()
	end := func() {
		_ = lis.Close()
		cancel()
	}
	t.Cleanup(func() {
		end()
		<-done
	})
	return proxy{lis, end}
}
