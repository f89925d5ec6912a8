package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/server"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/task"
)

// parse runs a command that has a role's flags, and returns them.
func parse(t *testing.T, r role, args ...string) (*serverFlags, error) {
	t.Helper()
	f := &serverFlags{}
	cmd := &cobra.Command{Use: "role", RunE: func(*cobra.Command, []string) error { return f.validate(r) },
		SilenceErrors: true, SilenceUsage: true}
	f.register(cmd, r)
	cmd.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	return f, cmd.Execute()
}

func TestFlagGoesBeforeEnvironmentBeforeDefault(t *testing.T) {
	f, err := parse(t, roleUp)
	if err != nil || f.Lease != 10*time.Second || f.MaxPayload != 64<<20 || f.MemoryLimit != 0 {
		t.Fatalf("%+v, %v", f, err)
	}
	t.Setenv("TREADLE_LEASE", "20s")
	t.Setenv("TREADLE_MAX_PAYLOAD", "1MiB")
	t.Setenv("TREADLE_MEMORY_LIMIT", "512M")
	t.Setenv("TREADLE_SLOTS", "2")
	t.Setenv("TREADLE_MAX_ATTEMPTS_PER_RUNNER", "5")
	t.Setenv("TREADLE_JSON", "true")
	t.Setenv("TREADLE_REST_COMPAT", "seed")
	t.Setenv("TREADLE_GRPC_ADDR", "") // an empty variable is no variable
	t.Setenv("TREADLE_PYTHON_PATH", strings.Join([]string{"a", "b,c"}, string(os.PathListSeparator)))
	f, err = parse(t, roleUp, "--slots", "7")
	if err != nil {
		t.Fatal(err)
	}
	if f.Lease != 20*time.Second || f.MaxPayload != 1<<20 || f.MemoryLimit != 512<<20 || f.Slots != 7 || !f.JSON || f.MaxAttemptsPerRunner != 5 ||
		f.RESTCompat != "seed" || f.GRPCAddr != "127.0.0.1:50051" || !slices.Equal(f.PythonPath, []string{"a", "b,c"}) {
		t.Errorf("%+v", f)
	}
	f, err = parse(t, roleUp, "--python-path", "x", "--python-path", "y")
	if err != nil || !slices.Equal(f.PythonPath, []string{"x", "y"}) {
		t.Errorf("%v, %v", f.PythonPath, err)
	}
	t.Setenv("TREADLE_DISPATCHER", "a:1,b:2")
	if f, err = parse(t, roleWorker); err != nil || !slices.Equal(f.Dispatchers, []string{"a:1", "b:2"}) || f.Mode != "push" {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestEveryServerFlagHasATwin asks the help, as people do.
func TestEveryServerFlagHasATwin(t *testing.T) {
	for _, verb := range []string{"up", "worker"} {
		for line := range strings.Lines(cli(t, "", verb, "--help").wantOK(t)) {
			line = strings.TrimSpace(line)
			name, _, _ := strings.Cut(strings.TrimPrefix(line, "--"), " ")
			if strings.HasPrefix(line, "--") && !strings.Contains(line, "(env "+envName(name)+")") {
				t.Errorf("%s: %s", verb, line)
			}
		}
	}
}

func TestBadVariables(t *testing.T) {
	for name, test := range map[string]struct{ value, want string }{
		"TREADLE_LEASE":        {"soon", `environment variable TREADLE_LEASE="soon": want a duration`},
		"TREADLE_SLOTS":        {"many", `environment variable TREADLE_SLOTS="many": want a whole number`},
		"TREADLE_MAX_PAYLOAD":  {"1 potato", `environment variable TREADLE_MAX_PAYLOAD="1 potato": want a size`},
		"TREADLE_REST_COMPAT":  {"both", `environment variable TREADLE_REST_COMPAT="both": want one of course, seed`},
		"TREADLE_INSECURE":     {"maybe", `environment variable TREADLE_INSECURE="maybe": want true or false`},
		"TREADLE_LOG_LEVEL":    {"loud", `--log-level "loud"`},
		"TREADLE_MEMORY_LIMIT": {"-1", `environment variable TREADLE_MEMORY_LIMIT="-1": want a size`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, test.value)
			cli(t, "", "up").want(t, exitMisuse, test.want)
		})
	}
}

func TestValidation(t *testing.T) {
	for _, test := range []struct {
		role role
		args string
		want string // "" means fine
	}{
		{roleUp, "--grpc-addr 127.0.0.1:0 --http-addr [::1]:0", ""},
		{roleUp, "--grpc-addr 0.0.0.0:1", "--grpc-addr 0.0.0.0:1 is not loopback"},
		{roleUp, "--grpc-addr :1", "is not loopback"},
		{roleUp, "--grpc-addr 0.0.0.0:1 --insecure", ""},
		{roleUp, "--grpc-addr 0.0.0.0:1 --token-file t", "without TLS, and anyone who reaches it can run code here; give --tls-cert and --tls-key"},
		{roleUp, "--grpc-addr 0.0.0.0:1 --tls-cert c --tls-key k", "without tokens, and anyone who reaches it can run code here; give --token-file"},
		{roleUp, "--grpc-addr 0.0.0.0:1 --tls-cert c --tls-key k --tls-client-ca a", "without tokens"},
		{roleUp, "--grpc-addr 0.0.0.0:1 --tls-cert c --tls-key k --token-file t", ""},
		{roleUp, "--http-addr 192.0.2.1:80", "--http-addr 192.0.2.1:80 is not loopback: other machines could reach it without TLS and tokens"},
		{roleUp, "--grpc-addr myhost:1", "is not loopback"},
		{roleServer, "--store redis://h --grpc-addr [::]:1", "--grpc-addr [::]:1 is not loopback"},
		{roleDispatcher, "--store redis://h --grpc-addr 0.0.0.0:1", "is not loopback"},
		{roleDispatcher, "--store redis://h --http-addr 0.0.0.0:1", "is not loopback"},
		{roleUp, "--tls-cert c", "--tls-cert and --tls-key go together"},
		{roleUp, "--tls-client-ca a", "--tls-client-ca without --tls-cert"},
		{roleUp, "--max-connections 0", "--max-connections 0: want at least 1"},
		{roleUp, "--rate-limit -1", "want a number a second"},
		{roleUp, "--rate-limit 1x", "want a number a second"},
		{roleUp, "--rate-limit 0.5", ""},
		{roleUp, "--quota-waited -1", "--quota-waited -1: want 0 (no limit) or more"},
		{roleServer, "--store redis://x --quota-waited 0", ""},
		{roleUp, "--quota-tasks -1", "--quota-tasks -1: want 0 (no limit) or more"},
		{roleUp, "--quota-functions -1", "--quota-functions -1: want 0 (no limit) or more"},
		{roleUp, "--quota-queues -1", "--quota-queues -1: want 0 (no limit) or more"},
		{roleUp, "--quota-bytes -1", "want a size"},
		{roleServer, "--store redis://x --quota-tasks 0 --quota-bytes 0 --quota-functions 0 --quota-queues 0", ""},
		{roleUp, "--quota-bytes 1GiB", ""},
		{roleWorker, "--http-addr 0.0.0.0:1", "--http-addr 0.0.0.0:1 is not loopback: health and metrics of a worker"},
		{roleWorker, "--http-addr 0.0.0.0:1 --insecure", ""},
		{roleWorker, "--tls-cert c --tls-key k", "--tls-cert without --tls-ca"},
		{roleWorker, "--tls-ca a --tls-cert c", "--tls-cert and --tls-key go together"},
		{roleWorker, "--dispatcher 192.0.2.1:1", ""},
		{roleUp, "--grpc-addr 50051", "want HOST:PORT"},
		{roleUp, "--http-addr 127.0.0.1:70000", `port "70000": want 0 to 65535`},
		{roleUp, "--http-addr 127.0.0.1:50051", "want two ports"},
		{roleUp, "--slots 0", ""},
		{roleUp, "--slots -1", "--slots -1: want 0 to 4096"},
		{roleUp, "--slots 1-8", ""},
		{roleDispatcher, "--store redis://h --mode local --slots 2-2", ""},
		{roleWorker, "--slots 2-9 --idle-after 1m", ""},
		{roleWorker, "--slots 8-2", "--slots 8-2: the minimum comes first, as in 2-8"},
		{roleUp, "--slots 0-8", "--slots 0-8: a pool that grows needs at least one slot"},
		{roleWorker, "--slots 1-5000", "--slots 1-5000: want 1 to 4096"},
		{roleWorker, "--slots 1-", "want a whole number, or MIN-MAX as in 2-8"},
		{roleWorker, "--slots 1-2-3", "want a whole number, or MIN-MAX as in 2-8"},
		{roleWorker, "--idle-after 10ms", "--idle-after 10ms: want at least 1s"},
		{roleWorker, "--slots 0", "--slots 0: want 1 to 4096"},
		{roleUp, "--lease 3s", "--lease 3s with --heartbeat 1s"},
		{roleUp, "--heartbeat 1ms", "--heartbeat 1ms: want at least 20ms"},
		{roleUp, "--reconnect-grace 10s", "--reconnect-grace 10s"},
		{roleUp, "--drain-timeout -1s", "--drain-timeout"},
		{roleWorker, "--max-attempts-per-runner -1", "--max-attempts-per-runner -1: want 0 (no limit) or more"},
		{roleUp, "--max-payload 10", "--max-payload 10B: want 1KiB"},
		{roleUp, "--max-payload 2GiB", "--max-payload 2GiB: want 1KiB to 900MiB; keep larger data in a file"},
		{roleUp, "--max-payload 943718401", "--max-payload 900MiB (943718401 bytes): want 1KiB to 900MiB"},
		{roleUp, "--max-payload 1023", "--max-payload 1023B: want 1KiB to 900MiB"},
		{roleUp, "--memory-limit 1MiB", "--memory-limit 1MiB"},
		{roleUp, "--max-retries -1", "--max-retries -1: want 0 to 1000"},
		{roleUp, "--retention 0s", "--retention"},
		{roleDispatcher, "--store redis://h --retention 0s", "--retention"},
		{roleUp, "--rest-created-status 204", "want 200 or 201"},
		{roleUp, "--task-timeout -1s", "--task-timeout"},
		{roleDispatcher, "--store redis://h --max-retries -1", "--max-retries -1: want 0 to 1000"},
		{roleUp, "--store nowhere", `--store "nowhere"`},
		{roleUp, "--python=", "--python is empty"},
		{roleServer, "", "--store is missing"},
		{roleDispatcher, "--store redis://h --mode local", ""},
		{roleWorker, "--dispatcher nowhere", ""},
		{roleWorker, "--dispatcher http://h:1", "--dispatcher: the address \"http://h:1\" is a URL"},
		{roleWorker, "--dispatcher h:0", `--dispatcher: the port "0"`},
		{roleWorker, "--dispatcher=", "--dispatcher is empty"},
		{roleWorker, "--queues a,,b", "--queues"},
		{roleWorker, "--mode local", "want one of push, pull"},
		{roleUp, "--log-format xml", "want one of text, json"},
		{roleUp, "--name " + strings.Repeat("x", 257), "has 257 bytes: want UTF-8 of at most 256"},
	} {
		_, err := parse(t, test.role, strings.Fields(test.args)...)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.args, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

// TestEdges holds each limit that a part of the process has, too, to one value: what the
// flags accept the part accepts, and what is one beyond is misuse, before anything is opened.
func TestEdges(t *testing.T) {
	queues := func(n int) string {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprint("q", i)
		}
		return strings.Join(names, ",")
	}
	long := strings.Repeat("\u00fc", task.MaxWorkerText/2)
	for _, test := range []struct {
		flag         string
		fits, beyond []string
		role         role
	}{
		{"--max-payload", []string{"1KiB", "900MiB"}, []string{"1023", "943718401", "950MiB"}, roleUp},
		{"--max-payload", []string{"1KiB", "900MiB"}, []string{"1023", "943718401"}, roleWorker},
		{"--max-retries", []string{"0", "1000"}, []string{"-1", "1001"}, roleUp},
		{"--slots", []string{"1", "4096", "1-4096"}, []string{"0", "4097", "1-4097", "2-1"}, roleWorker},
		{"--queues", []string{queues(1024), strings.Repeat("q", 128)}, []string{queues(1025), strings.Repeat("q", 129), "a,,b", "\xff"}, roleWorker},
		{"--name", []string{long}, []string{long + "x", "\xff"}, roleWorker},
		{"--max-connections", []string{"1"}, []string{"0"}, roleUp},
		{"--rest-created-status", []string{"200", "201"}, []string{"204"}, roleUp},
		{"--store", []string{"redis://h:65535/0?namespace=a"}, []string{
			"embedded:", "memory:", "redis://h:65536", "redis://h?x=1", "redis://h?namespace=%7Ba%7D", "redis+cluster://h/1", "embedded:x",
		}, roleServer},
		{"--store", []string{"embedded:", "memory:", "redis://h"}, []string{"memory:x", "mysql://u:secret@h"}, roleUp},
	} {
		for _, value := range test.fits {
			f, err := parse(t, test.role, test.flag+"="+value)
			if err != nil {
				t.Errorf("%s %.80s: %v", test.flag, value, err)
				continue
			}
			if err := buildParts(t, f, test.role); err != nil {
				t.Errorf("%s %.80s is accepted, and then: %v", test.flag, value, err)
			}
		}
		for _, value := range test.beyond {
			_, err := parse(t, test.role, test.flag+"="+value)
			var wrong *usageError
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), test.flag) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s %.80s: %v, want a usage error that names the flag", test.flag, value, err)
			}
		}
	}
	dir := t.TempDir()
	cli(t, "", "up", "--data-dir", dir, "--max-payload", "950MiB").want(t, exitMisuse, "--max-payload 950MiB: want 1KiB to 900MiB")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("a refused flag left %v, %v", left, err)
	}
}

// buildParts makes the part that has limits of its own, as a process of the role does.
func buildParts(t *testing.T, f *serverFlags, r role) error {
	t.Helper()
	n := &node{serverFlags: *f, Version: "test", Log: slog.New(slog.DiscardHandler)}
	n.DataDir = t.TempDir()
	if r == roleWorker {
		_, err := n.agent("id", link.Push, func(context.Context) (link.Conn, error) { return nil, errors.New("not dialled") }, nil, nil)
		return err
	}
	st, err := pebblestore.Open(t.Context(), pebblestore.Options{Durability: pebblestore.Memory, Logger: n.Log})
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	cfg := n.serverConfig(st, nil)
	if err := n.secure(&cfg); err != nil {
		return err
	}
	_, err = server.New(cfg)
	return err
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "off": 0, "1": 1, "10B": 10, "1k": 1 << 10, "1K": 1 << 10, "2KiB": 2 << 10, "1kB": 1000, "64MiB": 64 << 20,
		"512M": 512 << 20, "1.5GiB": 3 << 29, "1 MB": 1e6, "2T": 2 << 40,
	} {
		if got, err := parseByteSize(text); err != nil || int64(got) != want {
			t.Errorf("%s = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "1e6", "0x10", "1 MiB MiB", "NaN", "Inf", "99999999T", "1_000"} {
		if got, err := parseByteSize(text); err == nil {
			t.Errorf("%q = %d", text, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 5: "5B", 1 << 10: "1KiB", 64 << 20: "64MiB", 3 << 29: "1.5GiB", 1000: "1000B"} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d = %s, want %s", n, got, want)
		}
	}
}

// TestJSONLogValues: what text logs show in words JSON logs do, too.
func TestJSONLogValues(t *testing.T) {
	var out bytes.Buffer
	log, flush, err := newLogger(&out, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("x", "lease", 10*time.Second, "slots", slotRange{&serverFlags{Slots: 2, MaxSlots: 8}}, "error", errors.New("bad"),
		slog.Group("g", "took", 1500*time.Millisecond))
	for range 60 {
		log.Error("again")
	}
	flush()
	for _, part := range []string{`"lease":"10s"`, `"slots":"2-8"`, `"error":"bad"`, `"g":{"took":"1.5s"}`, `"msg":"again","folded":10,"window":"10s"`} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the log lacks %s: %.600s", part, out.String())
		}
	}
}

// TestJSONLogHasTheReadyLine: with --log-format json nothing but JSON is written.
func TestJSONLogHasTheReadyLine(t *testing.T) {
	var out, log bytes.Buffer
	n := &node{Log: slog.New(slog.NewJSONHandler(&log, nil))}
	n.LogFormat = "json"
	n.announce(&out, "127.0.0.1:1", "127.0.0.1:2")
	if out.Len() != 0 || !strings.Contains(log.String(), `"grpc_addr":"127.0.0.1:1","http_addr":"127.0.0.1:2"`) {
		t.Errorf("standard output %q, log %s", out.String(), log.String())
	}
	n.JSON = true
	n.announce(&out, "127.0.0.1:1", "127.0.0.1:2")
	if !json.Valid(out.Bytes()) {
		t.Errorf("with --json: %q", out.String())
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log, flush, err := newLogger(&out, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	defer flush()
	log.Info("hidden")
	log.Warn("shown", slog.Int("n", 1))
	if got := out.String(); strings.Contains(got, "hidden") || !strings.Contains(got, `"msg":"shown","n":1`) {
		t.Errorf("%s", got)
	}
}

// process starts this test binary as treadle.
func process(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("signals are not sent to processes there")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Who waits for its output or its end waits no longer than this.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), asTreadle+"=1")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// TestSecondSignalEndsTheProgram interrupts a command that reads from a pipe, which
// nothing else interrupts.
func TestSecondSignalEndsTheProgram(t *testing.T) {
	cmd := process(t, "register", "-:f")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil || line != listening {
		t.Fatalf("%q, %v", line, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	// Two signals that are sent at once may arrive as one, so keep sending.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for running := true; running; {
		select {
		case <-ended:
			running = false
		case <-deadline:
			_ = cmd.Process.Kill()
			t.Fatal("the program runs on 30 s after SIGINT, sent every 20 ms")
		case <-tick.C:
			_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended
		}
	}
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit code %d (%s), want %d", code, cmd.ProcessState, exitInterrupted)
	}
}
