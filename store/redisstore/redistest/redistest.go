// Package redistest starts Redis servers for tests: each on a free loopback port, in a
// folder of its own, ended with the test.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// TB is the part of [testing.TB] that is needed, so that programs may use this package too.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// Server is one redis-server process.
type Server struct {
	// Addr is its host and port.
	Addr string
	Port int
	// Dir holds its data and its log.
	Dir string

	args []string
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// startTimeout bounds how long a server may take until it answers.
const startTimeout = 20 * time.Second

// binary finds redis-server.
func binary() (string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", fmt.Errorf("the tests of the Redis store need redis-server on PATH (Debian and Ubuntu: apt-get install redis-server): %w", err)
	}
	return path, nil
}

// FreePort returns a loopback port that was free a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Start starts a server with more configuration, such as "--appendonly", "yes", and
// ends it with the test. The test fails where redis-server is not installed.
func Start(t TB, config ...string) *Server {
	t.Helper()
	s, err := New(t.TempDir(), config...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(s.Kill)
	return s
}

// New starts a server in that folder; [Server.Kill] ends it.
func New(dir string, config ...string) (*Server, error) {
	var err error
	// Another process may take the port first.
	for range 5 {
		var port int
		if port, err = FreePort(); err != nil {
			return nil, err
		}
		s := &Server{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Port: port, Dir: dir}
		s.args = append([]string{
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no",
			"--logfile", filepath.Join(dir, "redis.log"), "--loglevel", "notice", "--daemonize", "no",
			"--repl-diskless-sync-delay", "0",
		}, config...)
		if err = s.Run(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// Run starts the process, again after [Server.Kill], and returns when it answers.
func (s *Server) Run() error {
	path, err := binary()
	if err != nil {
		return err
	}
	cmd := exec.Command(path, s.args...)
	cmd.Dir = s.Dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start redis-server: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // However it ends, it is gone.
	}()
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	if err := s.await(done); err != nil {
		s.Kill()
		log, _ := os.ReadFile(filepath.Join(s.Dir, "redis.log"))
		return fmt.Errorf("%w\n%s%s", err, out.String(), log)
	}
	return nil
}

// await polls until the server answers: it says nothing by itself when it is ready.
func (s *Server) await(done <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c := s.Client()
	defer c.Close()
	for {
		if c.Ping(ctx).Err() == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("redis-server on port %d ended at once", s.Port)
		case <-ctx.Done():
			return fmt.Errorf("redis-server on port %d did not answer within %s", s.Port, startTimeout)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Client connects to the server, for a look behind the store's back; the caller closes it.
func (s *Server) Client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.Addr, DisableIdentity: true})
}

// Signal sends a signal to the process, for example SIGSTOP.
func (s *Server) Signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Signal(sig)
}

// Kill ends the process with SIGKILL and waits for its end. It may be called again.
func (s *Server) Kill() {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	_ = cmd.Process.Kill() // It may have ended by itself.
	<-done
}

// URL is the store URL of the server with that query ("" for none).
func (s *Server) URL(query string) string {
	url := "redis://" + s.Addr
	if query != "" {
		url += "?" + query
	}
	return url
}

// CPU is the processor time that the server has used.
func (s *Server) CPU(t TB) time.Duration {
	t.Helper()
	c := s.Client()
	defer c.Close()
	text, err := c.Info(context.Background(), "cpu").Result()
	if err != nil {
		t.Fatalf("%v", err)
	}
	var sum float64
	for line := range strings.SplitSeq(text, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		if name == "used_cpu_sys" || name == "used_cpu_user" {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			sum += v
		}
	}
	return time.Duration(sum * float64(time.Second))
}

// PID is the id of the process.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}
