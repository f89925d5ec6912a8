package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/clients/go/treadletest"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// asTreadle makes the test binary behave as the treadle binary, for tests that need
// a process.
const asTreadle = "TREADLE_TEST_AS_BINARY"

// listening is what such a process says when it catches signals.
const listening = "listening for signals\n"

func TestMain(m *testing.M) {
	if os.Getenv(asStuck) != "" {
		os.Exit(runStuck())
	}
	if os.Getenv(asTreadle) != "" {
		ctx, stop := withSignals(context.Background())
		fmt.Fprint(os.Stderr, listening)
		code := Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	// Nor must it matter that SIGHUP is ignored, as under nohup: processes inherit that, and do not
	// inherit a handler.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	// Settings of whoever runs the tests must not change them.
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, envPrefix) {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// outcome is what one command line did.
type outcome struct {
	code        int
	out, errOut string
}

// cli runs command lines in this process.
func cli(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	return cliContext(t.Context(), stdin, args...)
}

func cliContext(ctx context.Context, stdin string, args ...string) outcome {
	var out, errOut bytes.Buffer
	code := Run(ctx, args, strings.NewReader(stdin), &out, &errOut)
	return outcome{code, out.String(), errOut.String()}
}

func (o outcome) wantOK(t *testing.T) string {
	t.Helper()
	if o.code != exitOK {
		t.Fatalf("exit code %d, stderr:\n%s", o.code, o.errOut)
	}
	return strings.TrimRight(o.out, "\n")
}

func (o outcome) want(t *testing.T, code int, stderr ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d; stdout:\n%s\nstderr:\n%s", o.code, code, o.out, o.errOut)
	}
	for _, s := range stderr {
		if !strings.Contains(o.errOut, s) {
			t.Errorf("stderr has no %q:\n%s", s, o.errOut)
		}
	}
}

func decode[T any](t *testing.T, line string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Fatalf("%q is not the JSON wanted: %v", line, err)
	}
	return v
}

// fake starts a server in memory that the command lines of the test go to.
func fake(t *testing.T, opts ...grpc.ServerOption) *treadletest.Server {
	t.Helper()
	srv := treadletest.Start(t, opts...)
	t.Setenv(treadle.EnvAddress, srv.Addr())
	srv.Handle("double", func(_ context.Context, args []json.RawMessage) (any, error) {
		if len(args) != 1 {
			return nil, fmt.Errorf("double takes 1 argument, got %d", len(args))
		}
		var x json.Number
		if err := json.Unmarshal(args[0], &x); err != nil {
			return nil, err
		}
		n, err := x.Int64()
		return 2 * n, err
	})
	srv.Handle("echo", func(_ context.Context, args []json.RawMessage) (any, error) { return args, nil })
	srv.Handle("broken", func(context.Context, []json.RawMessage) (any, error) { return nil, errors.New("it broke") })
	return srv
}

// hang registers a function that runs until it is cancelled.
func hang(srv *treadletest.Server) (started <-chan struct{}) {
	c := make(chan struct{}, 100)
	srv.Handle("hang", func(ctx context.Context, _ []json.RawMessage) (any, error) {
		c <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	return c
}

// waitFor waits for something that nothing announces.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the condition never came true")
			return
		}
	}
}

// commands lists all commands, the hidden ones excepted.
func commands(root *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			out = append(out, commands(c)...)
		}
	}
	return out
}

// TestHelp compares the help of every command with a file in testdata.
func TestHelp(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", "/data")
	slots := regexp.MustCompile(`(--slots .*)\(default \d+\)`)
	for _, cmd := range commands(newRootCommand()) {
		t.Run(cmd.Name(), func(t *testing.T) {
			args := strings.Fields(cmd.CommandPath() + " --help")[1:]
			got := cli(t, "", args...).wantOK(t) + "\n"
			got = slots.ReplaceAllString(got, "$1(default one for each core, at least 4)")
			name := strings.ReplaceAll(strings.TrimPrefix(cmd.CommandPath(), "treadle "), " ", "-")
			file := filepath.Join("testdata", "help", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the help changed (go test -run TestHelp -update rewrites the file):\n%s", got)
			}
		})
	}
}

// TestCommandsAreComplete holds every command to the same form.
func TestCommandsAreComplete(t *testing.T) {
	for _, cmd := range commands(newRootCommand()) {
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s has no short text or no example", cmd.CommandPath())
		}
		if cmd.HasParent() && !cmd.Parent().HasParent() && cmd.GroupID == "" {
			t.Errorf("%s is in no group", cmd.CommandPath())
		}
		if cmd.HasParent() && !cmd.HasSubCommands() && cmd.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", cmd.CommandPath())
		}
		if cmd.Flags().Lookup("token") != nil {
			t.Errorf("%s takes a token from its arguments, which everybody can read", cmd.CommandPath())
		}
	}
}

func TestMisuse(t *testing.T) {
	fake(t)
	for _, test := range []struct {
		args string
		want string
	}{
		{"taks", `unknown command "taks": did you mean task`},
		{"--colour", "unknown flag: --colour"},
		{"status", "'treadle status' wants one TASK_ID"},
		{"status a b", `"b" is one too many`},
		{"tasks all", "takes no arguments"},
		{"tasks --limit x", `--limit "x": want a whole number`},
		{"up --lease 1", `--lease "1": want a duration, for example 500ms, 10s`},
		{"tasks --status done", `--status "done": want one of QUEUED, RUNNING`},
		{"up --mode sideways", "unknown flag: --mode"},
		{"worker --mode sideways", `--mode "sideways": want one of push, pull`},
		{"up --store x://y", `--store "x://y" is not a store URL: want embedded:, memory:, redis://`},
		{"up --store redis:/:S3CR3T@h", `--store "***@h" is not a store URL`},
		{"up --store ://S3CR3T@h", `--store "://***@h": want a URL`},
		{"up --store http://u:S3CR3T@h", `--store "http://***@h" is not a store URL`},
		{"tasks --limit -1", "--limit -1"},
		{"run", "wants a FUNCTION"},
		{"run double 1 --priority 10", "--priority 10: want 0 to 9"},
		{"run double 1 --timeout -5s", "--timeout -5s: want more than 0s"},
		{"map double 1 --deadline -1h", "--deadline -1h0m0s: want more than 0s"},
		{"run double 1 --max-retries 1001", "--max-retries 1001: want 0 to 1000"},
		{"run double 1 --function-retries -1", "--function-retries -1: want 0 to 1000"},
		{"run double 1 --kwargs [1]", "want one JSON object"},
		{"run double 1 -k nonsense", "want key=value"},
		{"run double [1,2", `'[1,2' is broken JSON: unexpected end of JSON input; for that text write it as JSON: '"[1,2"'`},
		{"run double -k a={", "is broken JSON"},
		{"map double {a:1}", "is broken JSON"},
		{"run double 1 --memory-limit lots", "want a size"},
		{"map double 1 --file x", "not both"},
		{"register functions.py", "want FILE.py:NAME"},
		{"register functions.py:a-b", "want FILE.py:NAME"},
		{"register --pickle f.pkl", "--pickle needs --name"},
		{"register f.py:f --pickled-by 3.12", "--pickled-by needs --pickle"},
		{"logs x --attempt -1", "attempts count from 1"},
		{"version --address x", "has no --address"},
		{"certs --dir x --tls-ca y", "has no --tls-ca"},
		{"functions --tls-ca /nowhere", "--tls-ca, --tls-cert, --tls-key: certificate authority"},
		{"functions --tls-cert x", "--tls-cert without --tls-ca"},
		{"token made", "takes no arguments"},
		{"token create --role root --file x", `--role "root": want client, worker or admin`},
		{"token create --role client", "--file is missing"},
		{"token create --role client --file x --expires soon", `--expires "soon": want a duration`},
		{"token create --role client --file x --expires -1h", `--expires "-1h": want more than nothing`},
		{"token create --role client --file x --expires 99999d", "want a number of days up to 36500"},
		{"token revoke --file x", "wants one token id"},
		{"token revoke tdl_0123456789abcdef_x --file x", "give its id instead"},
		{"certs", "--dir is missing"},
		{"certs --dir x --host a:1", `--host "a:1": want a name or an address alone`},
		{"certs --dir x --expires 0d", "--expires"},
		{"bench --scenario x", `--scenario "x": want batch`},
		{"bench --mode sideways", `--mode "sideways": want local`},
		{"bench --batch 0", "--batch 0"},
		{"bench --up --sessions 0", "--sessions 0: want 1 to 20000"},
		{"bench --up --sessions 1,20001", "--sessions 20001: want 1 to 20000"},
		{"bench --up --sessions 1 --session-layout pairs", `--session-layout "pairs": want shared, own`},
		{"bench --up --sessions 1 --session-slots 4097", "--session-slots 4097: want 1 to 4096"},
		{"bench --up --sessions 1 --session-streams 1001", "--session-streams 1001: want 1 to 1000"},
		{"bench --up --sessions 1 --mode local", "--mode local with --sessions"},
		{"bench --up --sessions 1 --runtime go", "--runtime has no meaning with --sessions"},
		{"bench --up --session-slots 2", "--session-slots is for --sessions"},
	} {
		t.Run(test.args, func(t *testing.T) {
			got := cli(t, "", strings.Fields(test.args)...)
			got.want(t, exitMisuse, test.want, "--help' for usage.")
			if got.out != "" {
				t.Errorf("stdout: %s", got.out)
			}
		})
	}
}

func TestTextThatIsNotUTF8(t *testing.T) {
	fake(t)
	cli(t, "", "status", "\xff").want(t, exitMisuse, `task_id "\xff" is not UTF-8`)
	cli(t, "", "tasks", "--filter", "status = \xe9").want(t, exitMisuse, `filter "status = \xe9" is not UTF-8`)
	t.Setenv("TREADLE_TOKEN", "caf\xe9")
	got := cli(t, "", "tasks")
	got.want(t, exitMisuse, "TREADLE_TOKEN", "the token has a character at byte 3")
}

func TestNoServer(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	id := "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"
	file := filepath.Join(t.TempDir(), "f.py")
	if err := os.WriteFile(file, []byte("def f(): pass\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"register " + file + ":f", "run f", "map f 1", "status " + id, "result " + id, "logs " + id, "cancel " + id,
		"watch " + id, "tasks", "functions", "workers", "queues", "bench --tasks 1",
		"bench --sessions 1",
	} {
		start := time.Now()
		got := cli(t, "", append(strings.Fields(args), "--address", addr)...)
		got.want(t, exitNoServer, "no server answers at "+addr, "treadle up", "TREADLE_ADDRESS")
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s took %s to say so", args, took)
		}
	}
	cli(t, "", "tasks", "--address", "nowhere.invalid").want(t, exitNoServer, "at nowhere.invalid:50051: there is no host of that name", "--address")
	_, port, _ := net.SplitHostPort(addr)
	cli(t, "", "tasks", "--address", "http://127.0.0.1:"+port).want(t, exitMisuse, "is a URL", "8000 is the REST port", "HOST:PORT")
	cli(t, "", "tasks", "--address", "127.0.0.1:99999").want(t, exitMisuse, `the port "99999"`)
}

func TestRun(t *testing.T) {
	srv := fake(t)
	for _, test := range []struct{ args, want string }{
		{"run double 21", "42"},
		{"run double -5", "-10"},
		{"run double --json=false -5", "-10"},
		{"run --priority 3 double -- -5", "-10"},
		{`run echo 1 true null word "text" [1,2] {"a":1} 1e400`, `[1,true,null,"word","text",[1,2],{"a":1},1e400]`},
		{"run echo -k a=1 -k b=x --kwargs {\"b\":2,\"c\":null}", `[{"a":1,"b":"x","c":null}]`},
		{"run echo 123456789012345678901234567890", "[123456789012345678901234567890]"},
		{"run echo", "[]"},
	} {
		if got := cli(t, "", strings.Fields(test.args)...).wantOK(t); got != test.want {
			t.Errorf("treadle %s printed %s, want %s", test.args, got, test.want)
		}
	}
	result := decode[treadle.Result](t, cli(t, "", "run", "double", "4", "--json").wantOK(t))
	if result.Status != treadle.Completed || string(result.JSON) != "8" || result.TaskID == "" {
		t.Errorf("%+v", result)
	}

	got := cli(t, "", "run", "broken")
	got.want(t, exitFailed, `handler "broken": it broke`, "FAILED: FunctionExecutionFailure", "it broke")
	if got.out != "" {
		t.Errorf("stdout: %s", got.out)
	}
	got = cli(t, "", "run", "broken", "--json")
	got.want(t, exitFailed)
	if r := decode[treadle.Result](t, got.out); r.Error == nil || r.Error.Message != "it broke" {
		t.Errorf("%s", got.out)
	}
	cli(t, "", "run", "nobody").want(t, exitUnknown, `no function "nobody"`)

	id := cli(t, "", "run", "--detach", "double", "5", "--priority", "9", "--timeout", "90s", "--max-retries", "0").wantOK(t)
	if got := cli(t, "", "result", id, "--wait", "10s").wantOK(t); got != "10" {
		t.Errorf("result %s", got)
	}
	task := decode[map[string]any](t, cli(t, "", "status", "--json", id).wantOK(t))
	options, _ := task["options"].(map[string]any)
	if task["priority"] != 9.0 || options["timeout"] != "90s" || options["max_retries"] != 0.0 {
		t.Errorf("%v", task)
	}
	if _, given := options["function_retries"]; given {
		t.Error("an option that nobody gave was sent")
	}
	if srv.Calls("RegisterFunction") != 0 {
		t.Error("run registered something")
	}
}

func TestRunIsInterrupted(t *testing.T) {
	srv := fake(t)
	started := hang(srv)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-started
		waitFor(t, func() bool { return srv.Calls("GetResult") > 0 }) // so that the id is known
		cancel(errInterrupted)
	}()
	got := cliContext(ctx, "", "run", "hang")
	got.want(t, exitInterrupted, "continues", "treadle result")
	id := regexp.MustCompile(`The task (\S+) continues`).FindStringSubmatch(got.errOut)
	if id == nil {
		t.Fatal(got.errOut)
	}
	if out := cli(t, "", "cancel", id[1]).wantOK(t); out != id[1]+"  CANCELLED" {
		t.Errorf("%s", out)
	}
	cli(t, "", "result", id[1]).want(t, exitFailed, "CANCELLED")
	cli(t, "", "watch", id[1]).want(t, exitFailed)
	got = cli(t, "", "cancel", "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11", id[1], "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c12")
	got.want(t, exitUnknown, "no task")
	if lines := strings.Split(strings.TrimSpace(got.errOut), "\n"); len(lines) != 2 || strings.Contains(got.errOut, "CancelTask") ||
		!strings.HasPrefix(lines[0], "treadle: no task") || !strings.HasPrefix(lines[1], "treadle: no task") {
		t.Errorf("two errors:\n%s", got.errOut)
	}
}

func TestRegister(t *testing.T) {
	fake(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "functions.py")
	if err := os.WriteFile(file, []byte("def one():\n    return 1\n\ndef two():\n    return 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := cli(t, "", "register", file+":two").wantOK(t)
	fn := decode[treadle.Function](t, cli(t, "", "functions", "--limit", "1", "--json").wantOK(t))
	if fn.ID != id || fn.Name != "two" || fn.Form != "source" || fn.PayloadSize != 48 {
		t.Errorf("%+v", fn)
	}
	fn = decode[treadle.Function](t, cli(t, "", "register", file+":two", "--name", "deux", "--queue", "q", "--json").wantOK(t))
	if fn.Name != "deux" || fn.Queue != "q" {
		t.Errorf("%+v", fn)
	}
	cli(t, "", "register", file+":three").want(t, exitFailed, `does not define "three"`)
	cli(t, "", "register", filepath.Join(dir, "none.py")+":f").want(t, exitFailed, "none.py")
	fn = decode[treadle.Function](t, cli(t, "def f(): pass", "register", "-:f", "--json").wantOK(t))
	if fn.Name != "f" || fn.PayloadSize != 13 {
		t.Errorf("%+v", fn)
	}
	fn = decode[treadle.Function](t, cli(t, "\x80\x04N.", "register", "--pickle", "-", "--name", "p", "--pickled-by", "3.12", "--json").wantOK(t))
	if fn.Form != "pickle" || fn.PayloadSize != 4 || fn.Python != "3.12" {
		t.Errorf("%+v", fn)
	}
	if out := cli(t, "", "functions").wantOK(t); !strings.Contains(out, "deux") || !strings.HasPrefix(out, "FUNCTION") {
		t.Errorf("%s", out)
	}
}

func TestFunctionsRemove(t *testing.T) {
	srv := fake(t)
	started := hang(srv)
	id := cli(t, "def f(): pass", "register", "-:f").wantOK(t)
	transient := cli(t, "def f(): pass", "register", "-:f", "--transient").wantOK(t)
	if again := cli(t, "def f(): pass", "register", "-:f", "--transient").wantOK(t); again != transient || transient == id {
		t.Errorf("transient registrations got %s and %s, one that stays %s", transient, again, id)
	}
	unknown := "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"
	got := cli(t, "", "functions", "rm", unknown, id)
	got.want(t, exitUnknown, "no function", unknown)
	if got.out != id+"\n" {
		t.Errorf("printed %q, want what is gone: %s", got.out, id)
	}
	if line := decode[map[string]string](t, cli(t, "", "functions", "rm", "--json", transient).wantOK(t)); line["function_id"] != transient {
		t.Errorf("%v", line)
	}
	cli(t, "", "functions", "rm").want(t, exitMisuse, "at least one FUNCTION_ID")
	cli(t, "", "functions", "nonsense").want(t, exitMisuse)

	task := cli(t, "", "run", "--detach", "hang").wantOK(t)
	<-started
	hanging := decode[treadle.Task](t, cli(t, "", "status", "--json", task).wantOK(t)).FunctionID
	cli(t, "", "functions", "rm", hanging).want(t, exitFailed, "1 unfinished tasks")
	cli(t, "", "cancel", task).wantOK(t)
	cli(t, "", "functions", "rm", hanging).wantOK(t)
}

func TestMap(t *testing.T) {
	srv := fake(t)
	if got := cli(t, "", "map", "double", "1", "-2", "3").wantOK(t); got != "2\n-4\n6" {
		t.Errorf("arguments: %s", got)
	}
	if got := cli(t, "[1, 2]\n\n  {\"a\": 1}\nword\n[]\n", "map", "echo").wantOK(t); got != "[1,2]\n[{\"a\":1}]\n[\"word\"]\n[]" {
		t.Errorf("lines: %s", got)
	}
	got := cli(t, "1\nx\n3\n", "map", "double")
	got.want(t, exitFailed, "value 2: task", "1 task has no result")
	if got.out != "2\nnull\n6\n" {
		t.Errorf("with a failure: %q", got.out)
	}
	// Far more than is in flight at once.
	const n = 12_000
	var in, want strings.Builder
	for i := range n {
		fmt.Fprintln(&in, i)
		fmt.Fprintln(&want, 2*i)
	}
	file := filepath.Join(t.TempDir(), "values.txt")
	if err := os.WriteFile(file, []byte(in.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	before := srv.Calls("ExecuteBatch")
	if got := cli(t, "", "map", "double", "--file", file).wantOK(t) + "\n"; got != want.String() {
		t.Errorf("%d values: %d bytes, want %d", n, len(got), want.Len())
	}
	if calls := srv.Calls("ExecuteBatch") - before; calls > n/10 {
		t.Errorf("%d values took %d requests", n, calls)
	}
	lines := strings.Split(cli(t, "1\n2\n", "map", "double", "--json").wantOK(t), "\n")
	if len(lines) != 2 || string(decode[treadle.Result](t, lines[1]).JSON) != "4" {
		t.Errorf("%v", lines)
	}
	got = cli(t, "", "map", "double", "1", "2", "--progress")
	if got.wantOK(t) != "2\n4" || !strings.Contains(got.errOut, "map") {
		t.Errorf("no progress on stderr: %q", got.errOut)
	}
	cli(t, "1\n", "map", "nobody").want(t, exitUnknown, `no function "nobody"`)
	cli(t, "", "map", "double", "--file", "none.txt").want(t, exitFailed, "none.txt")
}

// TestMapStreams feeds a line only when the result of the one before is there.
func TestMapStreams(t *testing.T) {
	fake(t)
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	code := make(chan int)
	go func() {
		var errOut bytes.Buffer
		code <- Run(t.Context(), []string{"map", "double"}, inR, outW, &errOut)
		_ = outW.Close()
	}()
	for i := range 3 {
		fmt.Fprintln(inW, i)
		var got int
		if _, err := fmt.Fscanln(outR, &got); err != nil || got != 2*i {
			t.Fatalf("result %d: %d, %v", i, got, err)
		}
	}
	_ = inW.Close()
	if c := <-code; c != exitOK {
		t.Errorf("exit code %d", c)
	}
}

func TestTaskVerbs(t *testing.T) {
	srv := fake(t)
	started := hang(srv)
	id := cli(t, "", "run", "-d", "hang").wantOK(t)
	<-started
	srv.Log(id, "line one\nline two\n")
	cli(t, "", "result", id).want(t, exitUnfinished, "is RUNNING", "--wait")
	if out := cli(t, "", "logs", id).wantOK(t); out != "line one\nline two" {
		t.Errorf("%q", out)
	}
	if logs := decode[treadle.Logs](t, cli(t, "", "logs", id, "--json", "--attempt", "1").wantOK(t)); logs.Attempt != 1 {
		t.Errorf("%+v", logs)
	}
	cli(t, "", "logs", id, "--attempt", "7").want(t, exitUnknown, "no attempt")
	out := cli(t, "", "status", id).wantOK(t)
	for _, want := range []string{"RUNNING", "hang", "attempt 1", "treadletest", "priority 5"} {
		if !strings.Contains(out, want) {
			t.Errorf("status has no %q:\n%s", want, out)
		}
	}
	if out := cli(t, "", "queues").wantOK(t); !regexp.MustCompile(`default\s+go/hang\s+0\s+1`).MatchString(out) {
		t.Errorf("%s", out)
	}
	if q := decode[treadle.Queue](t, cli(t, "", "queues", "--json").wantOK(t)); q.Running != 1 {
		t.Errorf("%+v", q)
	}
	cli(t, "", "run", "double", "1").wantOK(t)
	if out := cli(t, "", "tasks").wantOK(t); strings.Count(out, "\n") != 2 || !strings.Contains(out, "COMPLETED") {
		t.Errorf("%s", out)
	}
	if got := decode[treadle.Task](t, cli(t, "", "tasks", "--status", "running", "--json").wantOK(t)); got.ID != id {
		t.Errorf("%+v", got)
	}
	if got := decode[treadle.Task](t, cli(t, "", "tasks", "--filter", "function = hang", "--json").wantOK(t)); got.ID != id {
		t.Errorf("%+v", got)
	}
	cli(t, "", "tasks", "--filter", "colour = red").want(t, exitMisuse, "colour")
	lines := make(chan string, 1)
	go func() { lines <- cli(t, "", "watch", id).out }()
	waitFor(t, func() bool { return srv.Calls("WatchTask") > 0 })
	cli(t, "", "cancel", id, "--json").wantOK(t)
	if out := <-lines; !strings.Contains(out, "CANCELLED  Cancelled: cancelled by a client") {
		t.Errorf("%s", out)
	}
	srv.SetWorkers(&treadlev1.Worker{
		WorkerId: "w1", Name: "loom\x1b[31m", Mode: "push", State: "active", Slots: 4, Runtimes: []string{"python"},
	})
	if out := cli(t, "", "workers").wantOK(t); !strings.Contains(out, "w1") || strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
	if w := decode[treadle.Worker](t, cli(t, "", "workers", "--json").wantOK(t)); w.Slots != 4 {
		t.Errorf("%+v", w)
	}
}

func TestRefusals(t *testing.T) {
	fake(t, grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		return nil, treadletest.Error(codes.Unauthenticated, "UNAUTHENTICATED", "no token was sent")
	}))
	cli(t, "", "tasks").want(t, exitRefused, "no token was sent", "TREADLE_TOKEN")
	t.Setenv(treadle.EnvToken, "secret-canary")
	got := cli(t, "", "tasks", "--address", "192.0.2.1:50051")
	got.want(t, exitMisuse, "without TLS", "--insecure")
	if strings.Contains(got.errOut+got.out, "secret-canary") {
		t.Error("the token was printed")
	}
}

func TestDoctorOfASplitCluster(t *testing.T) {
	fake(t, grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if strings.HasSuffix(info.FullMethod, "GetServerInfo") {
			return &treadlev1.ServerInfo{Version: versionOf().Version, Durability: "redis-async"}, nil
		}
		return next(ctx, req)
	}))
	out := cli(t, "", "doctor", "--data-dir", t.TempDir(), "--http-addr", "127.0.0.1:0").out
	if !strings.Contains(out, "fix: start 'treadle dispatcher' on the same store") {
		t.Errorf("a worker cannot attach to a server that dispatches nothing:\n%s", out)
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	for role, want := range map[string]string{"up": "Treadle is up", "server": "It runs no tasks: start 'treadle dispatcher'"} {
		var out bytes.Buffer
		(&node{role: role}).announce(&out, "127.0.0.1:1", "127.0.0.1:2")
		if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "Try it") != (role == "up") {
			t.Errorf("%s says:\n%s", role, out.String())
		}
	}
}

func TestVersion(t *testing.T) {
	if out := cli(t, "", "version").wantOK(t); !strings.HasPrefix(out, "treadle ") || !strings.Contains(out, "go1.") {
		t.Errorf("%s", out)
	}
	if b := decode[buildInfo](t, cli(t, "", "version", "--json").wantOK(t)); b.Version == "" || b.Go == "" || b.Platform == "" {
		t.Errorf("%+v", b)
	}
}

func TestCompletion(t *testing.T) {
	srv := fake(t)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := cli(t, "", "completion", shell).wantOK(t); !strings.Contains(out, "treadle") {
			t.Errorf("%s: %d bytes", shell, len(out))
		}
	}
	out := cli(t, "", "__complete", "run", "do").wantOK(t)
	if !strings.HasPrefix(out, "double\n") || strings.Contains(out, "echo") {
		t.Errorf("%s", out)
	}
	if srv.Calls("ListFunctions") != 1 {
		t.Error("the names were not asked for")
	}
	if out := cli(t, "", "__complete", "worker", "--mode", "").wantOK(t); !strings.HasPrefix(out, "push\npull\n") {
		t.Errorf("%s", out)
	}
	if out := cli(t, "", "__complete", "tasks", "--status", "").wantOK(t); !strings.HasPrefix(out, "QUEUED\nRUNNING\n") {
		t.Errorf("%s", out)
	}
}

func TestDoctor(t *testing.T) {
	srv := fake(t)
	dir := t.TempDir()
	args := []string{"doctor", "--data-dir", filepath.Join(dir, "not", "there", "yet"), "--http-addr", "127.0.0.1:0", "--json"}
	find := func(o outcome) map[string]finding {
		out := map[string]finding{}
		for line := range strings.Lines(o.out) {
			f := decode[finding](t, line)
			out[f.Check] = f
			if (f.Verdict == checkOK) != (f.Fix == "") {
				t.Errorf("a check that is not ok, and only that, has a fix: %+v", f)
			}
		}
		return out
	}
	got := find(cli(t, "", args...))
	if f := got["server"]; f.Verdict != checkWarn || !strings.Contains(f.Detail, srv.Addr()) {
		t.Errorf("%+v", f)
	}
	if f := got["data folder"]; f.Verdict != checkOK || !strings.Contains(f.Detail, "made when needed") {
		t.Errorf("%+v", f)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("doctor left %v, %v", left, err)
	}
	for _, check := range []string{"http port", "disk space", "memory limit", "open files", "clock", "python", "packages"} {
		if _, ok := got[check]; !ok {
			t.Errorf("no check of %s", check)
		}
	}

	rest := httptest.NewServer(http.NotFoundHandler())
	defer rest.Close()
	f := find(cli(t, "", append(args, "--address", rest.Listener.Addr().String())...))["server"]
	if f.Verdict != checkFail || !strings.Contains(f.Detail, "8000 is the REST port") || !strings.Contains(f.Fix, "--address") {
		t.Errorf("the port of REST: %+v", f)
	}

	// A file where the folder should be, a Python that is none, a port of somebody else.
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	defer func() { _ = lis.Close() }()
	o := cli(t, "", "doctor", "--data-dir", file, "--python", "/bin/false", "--http-addr", lis.Addr().String(),
		"--address", lis.Addr().String(), "--json")
	o.want(t, exitFailed)
	got = find(o)
	for _, check := range []string{"data folder", "python", "server", "http port"} {
		if got[check].Verdict != checkFail {
			t.Errorf("%+v", got[check])
		}
	}
	if out := cli(t, "", "doctor", "--data-dir", file).out; !strings.Contains(out, "fix: name a folder by --data-dir") {
		t.Errorf("%s", out)
	}
}
