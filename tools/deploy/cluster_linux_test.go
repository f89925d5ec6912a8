package deploy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a cluster may take to come up; it is a bound, not a wait.
const patience = 2 * time.Minute

// container is what a deployment starts: here a process with an address of its own.
type container struct {
	name string
	argv []string
	env  map[string]string
	// mounts are folders and files of the machine by their place in the container.
	mounts map[string]string
	// grace is how long it may take to end after SIGTERM.
	grace time.Duration

	addr string
	log  *os.File
	cmd  *exec.Cmd
	done chan error
}

// cluster runs containers on loopback addresses: 0.0.0.0 and 127.0.0.1 become the
// address of the container itself, names with a port the address of whom they name.
type cluster struct {
	t     *testing.T
	names map[string]string // to addresses
	next  int
}

func newCluster(t *testing.T) *cluster {
	return &cluster{t: t, names: make(map[string]string)}
}

// address gives the next container an address. Each test process has a range of its own.
func (c *cluster) address(hosts ...string) string {
	c.next++
	pid := os.Getpid()
	addr := fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&0x3f, pid&0xff, c.next)
	for _, h := range hosts {
		c.names[h] = addr
	}
	return addr
}

// place rewrites text of a container for this machine.
func (c *cluster) place(x *container, text string) string {
	var places []string
	for _, p := range slices.SortedFunc(maps.Keys(x.mounts), func(a, b string) int { return len(b) - len(a) }) {
		places = append(places, regexp.QuoteMeta(p))
	}
	if len(places) > 0 { // in one pass: what a path becomes may contain another
		mounts := regexp.MustCompile(`(?:` + strings.Join(places, "|") + `)\b`)
		text = mounts.ReplaceAllStringFunc(text, func(from string) string { return x.mounts[from] })
	}
	for host, addr := range c.names {
		text = regexp.MustCompile(`(^|[^\w.-])`+regexp.QuoteMeta(host)+`:(\d+)`).ReplaceAllString(text, "${1}"+addr+":$2")
	}
	return strings.NewReplacer("0.0.0.0:", x.addr+":", "127.0.0.1:", x.addr+":").Replace(text)
}

// command makes the process of a container.
func (c *cluster) command(ctx context.Context, x *container, argv []string) *exec.Cmd {
	c.t.Helper()
	args := make([]string, len(argv))
	for i, a := range argv {
		args[i] = c.place(x, a)
	}
	program := binary(c.t)
	if args[0] == "/usr/local/bin/treadle" {
		args[0] = program
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = c.t.TempDir()
	cmd.Env = []string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), "HOME=" + cmd.Dir}
	for k, v := range x.env {
		cmd.Env = append(cmd.Env, k+"="+c.place(x, v))
	}
	return cmd
}

// run carries a container out that ends by itself and returns what it printed.
func (c *cluster) run(x *container) string {
	c.t.Helper()
	cmd := c.command(c.t.Context(), x, x.argv)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("%s: %q: %v\n%s", x.name, cmd.Args, err, stderr.Bytes())
	}
	return string(out)
}

// start starts a container. When the test is over it gets SIGTERM, and must end well
// within its grace.
func (c *cluster) start(x *container) {
	c.t.Helper()
	log, err := os.Create(filepath.Join(c.t.TempDir(), x.name+".log"))
	if err != nil {
		c.t.Fatal(err)
	}
	x.log, x.done = log, make(chan error, 1)
	// Not the test's context, which ends before the cleanup.
	x.cmd = c.command(context.Background(), x, x.argv)
	x.cmd.Stdout, x.cmd.Stderr = log, log
	if err := x.cmd.Start(); err != nil {
		c.t.Fatalf("%s: %q: %v", x.name, x.cmd.Args, err)
	}
	go func() { x.done <- x.cmd.Wait() }()
	c.t.Cleanup(func() { c.stop(x) })
}

func (c *cluster) stop(x *container) {
	defer x.log.Close()
	if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.t.Errorf("%s: SIGTERM: %v", x.name, err)
	}
	select {
	case err := <-x.done:
		if err != nil {
			c.t.Errorf("%s ended with %v after SIGTERM, want 0", x.name, err)
		}
	case <-time.After(x.grace):
		c.t.Errorf("%s did not end within its grace of %s", x.name, x.grace)
		_ = x.cmd.Process.Kill()
		<-x.done
	}
	if c.t.Failed() {
		b, _ := os.ReadFile(x.log.Name())
		c.t.Logf("--- log of %s\n%s", x.name, b[max(0, len(b)-8000):])
	}
}

// eventually tries until a probe passes. It fails the test when the container ends or time is up.
func (c *cluster) eventually(x *container, what string, probe func(context.Context) error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
		err := probe(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case ended := <-x.done:
			x.done <- ended
			c.t.Fatalf("%s ended (%v) while %s was waited for", x.name, ended, what)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: %s did not pass within %s: %v", x.name, what, patience, err)
		}
	}
}

// exec waits until a command inside a container ends with 0.
func (c *cluster) exec(x *container, what string, argv []string) {
	c.t.Helper()
	c.eventually(x, what, func(ctx context.Context) error {
		if out, err := c.command(ctx, x, argv).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", argv, err, out)
		}
		return nil
	})
}

// client trusts the CA in a file.
func client(t *testing.T, ca string) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("%s is no certificate", ca)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// call makes one request and returns status and body.
func call(ctx context.Context, hc *http.Client, method, url, token, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// double registers a function and calls it, as somebody who has a token; it also sees
// that nobody gets in without one.
func double(t *testing.T, hc *http.Client, base, token string) {
	t.Helper()
	const function = `{"name": "double", "source": "def double(x): return 2 * x"}`
	if status, body, err := call(t.Context(), hc, http.MethodPost, base+"/v1/functions", "", function); err != nil || status != http.StatusUnauthorized {
		t.Errorf("without a token: %d %s %v, want 401", status, body, err)
	}
	if status, body, err := call(t.Context(), hc, http.MethodPost, base+"/v1/functions", token, function); err != nil || status != http.StatusOK {
		t.Fatalf("register: %d %s %v", status, body, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, body, err := call(ctx, hc, http.MethodPost, base+"/v1/functions/double:call?timeout=60s", token, `{"args": [21]}`)
	if err != nil || status != http.StatusOK || !strings.Contains(body, `"result":42`) {
		t.Fatalf("call: %d %s %v, want the result 42", status, body, err)
	}
}

// write makes a file of the test's own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
