//go:build linux

package security

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

// cluster is a fabric with tokens, an honest worker and an honest client.
type cluster struct {
	dir       string
	tokenFile string
	client    string // token of the honest client
	worker    string // token of the honest worker
	// evilClient and evilWorker are the attacker's, where it has any.
	evilClient, evilWorker string

	// server has the API, dispatcher the worker streams: one process under up.
	server, dispatcher *process
	api, http, workers string
	// metricsAt is the HTTP address of the dispatcher.
	metricsAt string

	honest *process // worker
	load   *process
	redis  *process
	calls  samples

	// broken is set when an attack did harm: others need another cluster.
	broken bool
}

// setup says how a cluster differs from `up` on an embedded store with default limits.
type setup struct {
	// split runs a server and a dispatcher on Redis.
	split bool
	// flags are further ones of the server, and of up; dispatcherFlags of the dispatcher.
	flags, dispatcherFlags []string
	// idle leaves the honest load out.
	idle bool
}

// newCluster starts one; it ends with close.
func newCluster(t *testing.T, s setup) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "treadle-security-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir: dir, tokenFile: filepath.Join(dir, "tokens.json")}
	if err := c.start(built.get(t), s); err != nil {
		c.close()
		t.Fatal(err)
	}
	return c
}

// ownCluster is a cluster for one test.
func ownCluster(t *testing.T, s setup) *cluster {
	t.Helper()
	needsLevel(t)
	c := newCluster(t, s)
	t.Cleanup(c.close)
	return c
}

func (c *cluster) start(bin string, s setup) (err error) {
	for _, token := range []struct {
		into *string
		role string
	}{{&c.client, "client"}, {&c.worker, "worker"}, {&c.evilClient, "client"}, {&c.evilWorker, "worker"}} {
		if *token.into, err = c.newToken(bin, token.role); err != nil {
			return err
		}
	}
	common := []string{"--json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--token-file", c.tokenFile, "--data-dir", filepath.Join(c.dir, "data")}
	pool := []string{"--slots", "0", "--drain-timeout", drain.String()}
	var ready struct {
		GRPC string `json:"grpc_addr"`
		HTTP string `json:"http_addr"`
	}
	if !s.split {
		args := append(append(append([]string{"up"}, common...), pool...), s.flags...)
		if c.server, err = start(c.dir, "up", nil, bin, args...); err != nil {
			return err
		}
		if err := c.server.ready(&ready); err != nil {
			return err
		}
		c.dispatcher, c.api, c.http, c.workers, c.metricsAt = c.server, ready.GRPC, ready.HTTP, ready.GRPC, ready.HTTP
	} else {
		url, err := c.startRedis()
		if err != nil {
			return err
		}
		store := []string{"--store", url}
		if c.server, err = start(c.dir, "server", nil, bin, append(append(append([]string{"server"}, common...), store...), s.flags...)...); err != nil {
			return err
		}
		if err := c.server.ready(&ready); err != nil {
			return err
		}
		c.api, c.http = ready.GRPC, ready.HTTP
		args := append(append(append(append([]string{"dispatcher"}, common...), store...), pool[2:]...), s.dispatcherFlags...)
		if c.dispatcher, err = start(c.dir, "dispatcher", nil, bin, args...); err != nil {
			return err
		}
		if err := c.dispatcher.ready(&ready); err != nil {
			return err
		}
		c.workers, c.metricsAt = ready.GRPC, ready.HTTP
	}
	return c.startHonest(s)
}

// newToken makes a token as an operator does.
func (c *cluster) newToken(bin, role string, flags ...string) (string, error) {
	out, err := exec.Command(bin, append([]string{"token", "create", "--role", role, "--file", c.tokenFile}, flags...)...).Output()
	return strings.TrimSpace(string(out)), err
}

func (c *cluster) startRedis() (url string, err error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	at := strconv.Itoa(port)
	c.redis, err = start(c.dir, "redis", nil, "redis-server", "--port", at, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", c.dir)
	if err != nil {
		return "", err
	}
	go func() {
		for range c.redis.lines { // its banner
		}
	}()
	return "redis://127.0.0.1:" + at, nil
}

func (c *cluster) startHonest(s setup) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	env := []string{envAPI + "=" + c.api, envHTTP + "=" + c.http, envDispatcher + "=" + c.workers, "GOMAXPROCS=1"}
	if c.honest, err = start(c.dir, "honest-worker", append(env, envRole+"="+roleWorker, "TREADLE_TOKEN="+c.worker), self); err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if err = c.callNow(5 * time.Second); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no call succeeds before any attack: %w\n%s", err, c.server.tail())
		}
		pause(50 * time.Millisecond)
	}
	if s.idle {
		return nil
	}
	if c.load, err = start(c.dir, "honest-load", append(env, envRole+"="+roleLoad, "TREADLE_TOKEN="+c.client), self); err != nil {
		return err
	}
	go c.calls.follow(c.load)
	return nil
}

// close ends everything.
func (c *cluster) close() {
	for _, p := range []*process{c.load, c.honest, c.server, c.dispatcher, c.redis} {
		if p != nil {
			p.kill()
		}
	}
	os.RemoveAll(c.dir)
}

// dial makes an honest client.
func (c *cluster) dial() (*treadle.Client, error) {
	return treadle.Dial(c.api, treadle.WithToken(c.client), treadle.WithRetry(0), treadle.WithFailFast())
}

// callNow makes one honest call over a connection of its own.
func (c *cluster) callNow(limit time.Duration) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return double(ctx, client)
}

// get fetches a page with the honest client's token.
func (c *cluster) get(addr, path string) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), honestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.client)
	return do(http.DefaultClient, req)
}

// metric reads one metric of a process that listens there.
func (c *cluster) metric(addr, name string) (float64, error) {
	body, err := c.get(addr, "/metrics")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(body) {
		if rest, ok := strings.CutPrefix(string(line), name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// cli runs a verb of the binary as the honest client.
func (c *cluster) cli(bin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), "TREADLE_ADDRESS="+c.api, "TREADLE_TOKEN="+c.client)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// shared is one cluster that the attacks which leave no trace share, and a control: a
// fabric that nobody attacks, on the same machine at the same time.
var (
	sharedMu sync.Mutex
	shared   = map[bool]*cluster{} // by split
	control  *cluster
)

// target returns a cluster with default limits for an attack.
func target(t *testing.T, split bool) *cluster {
	t.Helper()
	needsLevel(t)
	sharedMu.Lock()
	defer sharedMu.Unlock()
	c := shared[split]
	if c != nil && (c.broken || !c.server.alive() || !c.dispatcher.alive() || !c.honest.alive() || !c.load.alive()) {
		c.close()
		c = nil
	}
	if c == nil {
		c = newCluster(t, setup{split: split})
		shared[split] = c
	}
	return c
}

// undisturbed returns the control.
func undisturbed(t *testing.T) *cluster {
	t.Helper()
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if control == nil {
		control = newCluster(t, setup{})
	}
	return control
}

func closeShared() {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	for _, c := range shared {
		c.close()
	}
	if control != nil {
		control.close()
	}
}

// scene is one attack on a cluster, from begin to end.
type scene struct {
	t       *testing.T
	c       *cluster
	victim  *process
	at      string // HTTP address of the victim
	began   time.Time
	routine float64
	logged  int64
	// peak, rest and log are the bounds that hold here, in MiB and bytes.
	peak, rest int
	log        int64
	// slow is what the 99th percentile of honest calls may be in any case, where the attacker
	// has a right to the work that he asks for: processors are shared by whoever has work.
	slow time.Duration
}

// begin prepares the measurement of an attack on the process that has the API, or the
// worker streams. Once the test is over end judges it.
func (c *cluster) begin(t *testing.T, victim *process) *scene {
	t.Helper()
	s := &scene{t: t, c: c, victim: victim, at: c.http, peak: peakMiB, rest: restMiB, log: logBytes}
	if victim == c.dispatcher {
		s.at = c.metricsAt
	}
	undisturbed(t)
	if err := victim.resetPeak(); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.routine, err = c.metric(s.at, "go_goroutines"); err != nil {
		t.Fatal(err)
	}
	if c.load != nil {
		until(t, 30*time.Second, "the honest load runs", func() error {
			if n := len(c.calls.between(time.Now().Add(-3*time.Second), time.Now())); n < 40 {
				return fmt.Errorf("%d calls so far", n)
			}
			return nil
		})
	}
	s.logged = victim.logSize()
	s.began = time.Now()
	return s
}

// end judges an attack that is over.
func (s *scene) end() {
	t, c := s.t, s.c
	t.Helper()
	defer func() { c.broken = c.broken || t.Failed() }()
	over := time.Now()
	if !s.victim.alive() {
		t.Fatalf("the process ended: %v\n%s", s.victim.err, s.victim.tail())
	}
	begun := time.Now()
	if err := c.callNow(honestTimeout); err != nil {
		t.Errorf("right after the attack a call failed after %s: %v", time.Since(begun).Round(time.Millisecond), err)
	} else if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("right after the attack a call took %s: want at most 2s", took.Round(time.Millisecond))
	}
	s.judgeRest()
	s.judgePeak()
	if added := s.victim.logSize() - s.logged; added > s.log {
		t.Errorf("the log of %s grew by %d bytes: want at most %d; its end:\n%.600s", s.victim.name, added, s.log, s.victim.tail())
	}
	s.judgeCalls(over)
}

// judgeRest waits until what the attack took was given back.
func (s *scene) judgeRest() {
	s.t.Helper()
	var last error
	for deadline := time.Now().Add(restWithin); ; pause(100 * time.Millisecond) {
		now, _, err := s.victim.memory()
		if err != nil {
			s.t.Fatal(err)
		}
		left, err := s.c.metric(s.at, "go_goroutines")
		switch {
		case err != nil:
			last = err
		case now > s.rest:
			last = fmt.Errorf("memory is still %d MiB: want at most %d", now, s.rest)
		case left > s.routine+goroutinesLeft:
			last = fmt.Errorf("there are %.0f goroutines, %.0f before: want at most %d more", left, s.routine, goroutinesLeft)
		default:
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("%s after the attack: %v", restWithin, last)
			return
		}
	}
}

// judgePeak is about the highest that memory was, the time after the attack included.
func (s *scene) judgePeak() {
	s.t.Helper()
	_, peak, err := s.victim.memory()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%s: at most %d MiB, log %d bytes", s.victim.name, peak, s.victim.logSize()-s.logged)
	if peak > s.peak {
		s.t.Errorf("the memory of %s reached %d MiB: want at most %d", s.victim.name, peak, s.peak)
	}
}

// judgeCalls compares honest calls during the attack with those before, and with those at
// the control meanwhile: what the machine is busy with besides slows both.
func (s *scene) judgeCalls(over time.Time) {
	t, c := s.t, s.c
	t.Helper()
	if c.load == nil {
		return
	}
	// Calls that began in time end before their timeout.
	until(t, honestTimeout+5*time.Second, "the honest load goes on", func() error {
		if len(c.calls.between(over, time.Now())) == 0 {
			return errors.New("no call has ended that began after the attack")
		}
		return nil
	})
	for _, kind := range []string{kindREST, kindGRPC, kindFreshREST, kindFreshGRPC, kindHealthz, kindCheck} {
		during := ofKind(c.calls.between(s.began, over), kind)
		failed := 0
		for _, call := range during {
			if call.Err != "" {
				if failed == 0 {
					t.Errorf("honest %s failed after %s: %.300s", kind, call.Took.Round(time.Millisecond), call.Err)
				}
				failed++
			}
		}
		if failed > 1 {
			t.Errorf("honest %s: %d of %d failed", kind, failed, len(during))
		}
	}
	during, ok := p99(c.calls.between(s.began, over))
	switch lasted := over.Sub(s.began); {
	case lasted < shortAttack:
		t.Logf("the attack took %s: too short to compare", lasted.Round(time.Millisecond))
		return
	case !ok:
		t.Errorf("no honest call has ended that began during the attack (%s)", over.Sub(s.began).Round(time.Millisecond))
		return
	}
	before, _ := p99(c.calls.between(s.began.Add(-3*time.Second), s.began))
	meanwhile, _ := p99(undisturbed(t).calls.between(s.began, over))
	base := max(before, meanwhile)
	t.Logf("honest p99 %s under attack, %s before, %s at the control meanwhile", during, before, meanwhile)
	if limit := max(allowed(base), s.slow); during > limit {
		t.Errorf("the p99 of honest calls is %s under attack and %s without: want at most %s", during.Round(time.Millisecond), base.Round(time.Millisecond), limit.Round(time.Millisecond))
	}
}

func ofKind(calls []sample, kind string) []sample {
	var found []sample
	for _, c := range calls {
		if c.Kind == kind {
			found = append(found, c)
		}
	}
	return found
}

// stop tells a process to end and reports how long it took.
func stop(p *process, limit time.Duration) (took time.Duration, err error) {
	begun := time.Now()
	if err := p.signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	if !p.wait(limit) {
		return limit, fmt.Errorf("%s did not end within %s of SIGTERM", p.name, limit)
	}
	return time.Since(begun), nil
}
