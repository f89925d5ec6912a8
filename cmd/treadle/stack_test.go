package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// up starts `treadle up` as a process with a pool of Python runners, lets the
// command lines of the test go there, and sees it end in order.
func up(t *testing.T, args ...string) (httpAddr string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	cmd := process(t, append([]string{"up", "--json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--data-dir", t.TempDir(), "--slots", "2", "--log-level", "warn"}, args...)...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which Wait tells
		if err := cmd.Wait(); err != nil {
			t.Errorf("treadle up ended with %v after SIGTERM; stderr:\n%s", err, errOut.String())
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var ready struct {
		GRPCAddr string `json:"grpc_addr"`
		HTTPAddr string `json:"http_addr"`
		PID      int    `json:"pid"`
	}
	if err != nil || json.Unmarshal(line, &ready) != nil || ready.PID != cmd.Process.Pid {
		t.Fatalf("ready line %q, %v; stderr:\n%s", line, err, errOut.String())
	}
	t.Setenv(treadle.EnvAddress, ready.GRPCAddr)
	return ready.HTTPAddr
}

// stackFunctions are the functions of the tests, each a file of its own.
var stackFunctions = map[string]string{
	"double":    "def double(x):\n    print('doubling', x)\n    return 2 * x\n",
	"broken":    "def broken(x):\n    raise ValueError('no: %r' % (x,))\n",
	"imaginary": "def imaginary():\n    return 2j\n",
	"both":      "def both(a, *, b=1):\n    return [a, b]\n",
	"slow":      "import time\n\ndef slow(seconds):\n    time.sleep(seconds)\n    return 'late'\n",
}

// TestAgainstUp walks the verbs through a real server with real Python.
func TestAgainstUp(t *testing.T) {
	httpAddr := up(t)
	dir := t.TempDir()
	for name, source := range stackFunctions {
		file := filepath.Join(dir, name+".py")
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		cli(t, "", "register", file+":"+name).wantOK(t)
	}
	cli(t, "", "register", filepath.Join(dir, "double.py:double"), "--name", "zwei mal 😀").wantOK(t)

	for _, test := range [][2]string{
		{"run double 21", "42"}, {"run double -4", "-8"}, {"run both 1 -k b=x", `[1,"x"]`}, {"run imaginary", "2j"},
		{"run slow 0", `"late"`},
	} {
		if got := cli(t, "", strings.Fields(test[0])...).wantOK(t); strings.ReplaceAll(got, ", ", ",") != test[1] {
			t.Errorf("treadle %s printed %s, want %s", test[0], got, test[1])
		}
	}
	if got := cli(t, "", "run", "zwei mal 😀", "5").wantOK(t); got != "10" {
		t.Errorf("by another name: %s", got)
	}
	cli(t, "", "run", "broken", "it").want(t, exitFailed, "Traceback (most recent call last)", "raise ValueError('no: %r' % (x,))",
		"ValueError: no: 'it'", "FunctionExecutionFailure")

	id := cli(t, "", "run", "--detach", "double", "4").wantOK(t)
	if got := cli(t, "", "result", id, "--wait", "20s").wantOK(t); got != "8" {
		t.Errorf("result %s", got)
	}
	if got := cli(t, "", "logs", id).wantOK(t); got != "doubling 4" {
		t.Errorf("logs %q", got)
	}
	if got := cli(t, "", "watch", id).wantOK(t); !strings.HasSuffix(got, "COMPLETED") {
		t.Errorf("watch %q", got)
	}

	id = cli(t, "", "run", "--detach", "slow", "60").wantOK(t)
	waitFor(t, func() bool { return strings.Contains(cli(t, "", "status", id).out, "RUNNING") })
	cli(t, "", "cancel", id).wantOK(t)
	cli(t, "", "result", id).want(t, exitFailed, "CANCELLED")
	cli(t, "", "run", "slow", "60", "--timeout", "100ms").want(t, exitFailed, "DeadlineExceededError")

	var in, want strings.Builder
	for i := range 1000 {
		in.WriteString(strconv.Itoa(i) + "\n")
		want.WriteString(strconv.Itoa(2*i) + "\n")
	}
	if got := cli(t, in.String(), "map", "double").wantOK(t) + "\n"; got != want.String() {
		t.Errorf("map printed %d bytes, want %d", len(got), want.Len())
	}
	if got := cli(t, "", "tasks", "--status", "FAILED", "--function", "broken").wantOK(t); strings.Count(got, "\n") != 1 {
		t.Errorf("tasks:\n%s", got)
	}
	if got := cli(t, "", "tasks", "--filter", `function = "zwei mal 😀"`, "--json").wantOK(t); strings.Count(got, "\n") != 0 {
		t.Errorf("tasks:\n%s", got)
	}
	if w := decode[treadle.Worker](t, cli(t, "", "workers", "--json").wantOK(t)); w.Mode != "local" || w.Slots != 2 {
		t.Errorf("%+v", w)
	}
	out := cli(t, "", "doctor", "--http-addr", httpAddr, "--data-dir", t.TempDir()).wantOK(t)
	if !regexp.MustCompile(`(?m)^ok +server`).MatchString(out) || !regexp.MustCompile(`(?m)^ok +http port`).MatchString(out) {
		t.Errorf("doctor:\n%s", out)
	}
	bench := cli(t, "", "bench", "--http-addr", httpAddr, "--tasks", "50", "--batch", "10", "--callers", "20", "--duration", "100ms", "--json")
	if got := decode[struct{ Runs []json.RawMessage }](t, bench.wantOK(t)); len(got.Runs) != 5 {
		t.Errorf("%d scenarios: %s", len(got.Runs), bench.out)
	}
	bench = cli(t, "", "bench", "--sessions", "1,3", "--session-layout", "shared,own", "--tasks", "50", "--batch", "10", "--duration", "100ms", "--json")
	type sessionRun struct {
		Sessions, Connections int
		Idle                  *json.RawMessage
		Ratio                 *json.RawMessage
	}
	sessions := decode[struct{ Sessions []sessionRun }](t, bench.wantOK(t)).Sessions
	if len(sessions) != 4 {
		t.Fatalf("%d measurements: %s", len(sessions), bench.out)
	}
	for i, want := range []sessionRun{{Sessions: 1, Connections: 1}, {Sessions: 3, Connections: 1}, {Sessions: 1, Connections: 1}, {Sessions: 3, Connections: 3}} {
		// The first of a layout has nothing to be compared with; nobody named the server's process.
		if got := sessions[i]; got.Sessions != want.Sessions || got.Connections != want.Connections || (got.Ratio != nil) != (want.Sessions == 3) || got.Idle != nil {
			t.Errorf("measurement %d: %s", i, bench.out)
		}
	}
	resp, err := http.Get("http://" + httpAddr + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !json.Valid(body) {
		t.Errorf("GET / = %s, %v: %s", resp.Status, err, body)
	}
}

// TestOneFileManyFunctions registers two functions of one file: the bytes are the
// same, the functions are not, also on a runner that has loaded the other one.
func TestOneFileManyFunctions(t *testing.T) {
	up(t, "--store", "memory:", "--slots", "1")
	file := filepath.Join(t.TempDir(), "functions.py")
	if err := os.WriteFile(file, []byte("def one():\n    return 1\n\ndef two():\n    return 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		cli(t, "", "register", file+":"+name).wantOK(t)
	}
	for range 2 {
		for name, want := range map[string]string{"one": "1", "two": "2"} {
			if got := cli(t, "", "run", name).wantOK(t); got != want {
				t.Errorf("%s() is %s, want %s", name, got, want)
			}
		}
	}
}

// TestTakenPort: never a silent other port.
func TestTakenPort(t *testing.T) {
	up(t, "--store", "memory:", "--slots", "0")
	addr := os.Getenv(treadle.EnvAddress)
	got := cli(t, "", "up", "--grpc-addr", addr, "--http-addr", "127.0.0.1:0", "--store", "memory:", "--slots", "0")
	got.want(t, exitFailed, addr, "--grpc-addr")
}

// TestUpIsReadyWhenItsPoolIs: with an interpreter that does not work it never says that it is,
// and ends with the cause.
func TestUpIsReadyWhenItsPoolIs(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "json.py"), []byte("raise RuntimeError('not this one')\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := process(t, "up", "--json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", t.TempDir(), "--log-level", "warn")
	cmd.Env = append(cmd.Environ(), "PYTHONPATH="+broken)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err == nil || out.Len() > 0 || !strings.Contains(errOut.String(), "RuntimeError: not this one") {
		t.Fatalf("ended with %v, said %q and %q", err, out.String(), errOut.String())
	}
}
