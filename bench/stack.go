package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Modes of a stack.
const (
	ModeLocal = "local"
	ModePush  = "push"
	ModePull  = "pull"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
)

// StackConfig says which processes to start.
type StackConfig struct {
	// Binary is the treadle binary.
	Binary string
	// Mode is ModeLocal: a server with a pool; or ModePush, ModePull: a server and a
	// worker process.
	Mode string
	// Runtime is RuntimePython or RuntimeGo. Go handlers need a worker process.
	Runtime string
	// Slots is how many tasks run at once.
	Slots int
	// Dir is an empty folder for the server's data.
	Dir string
	// Store is a store URL, default "embedded:".
	Store string
	// Python is an interpreter; default "python3".
	Python string
	// ServerAlone starts a server without a pool and no worker: something else attaches. Mode
	// and Runtime do not matter then.
	ServerAlone bool
	// MaxConnections is --max-connections of the server, 0 for its default.
	MaxConnections int
	// StopTimeout is how long each process may take to end. Default 15 s.
	StopTimeout time.Duration
	// Log takes what the processes write to standard error.
	Log io.Writer
}

// Stack is a set of Treadle processes on free loopback ports.
type Stack struct {
	GRPCAddr string
	HTTPAddr string
	// PIDs are the processes started.
	PIDs []int

	procs       []*proc
	stopTimeout time.Duration
}

type proc struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and was waited for
	err  error
}

// StartStack starts the processes. The caller stops the stack; when ctx ends first
// the processes are killed.
func StartStack(ctx context.Context, cfg StackConfig) (*Stack, error) {
	if !cfg.ServerAlone && cfg.Mode == ModeLocal && cfg.Runtime == RuntimeGo {
		return nil, errors.New("the pool of a server has no Go handlers: use push or pull")
	}
	if cfg.Store == "" {
		cfg.Store = "embedded:"
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = stopTimeout
	}
	slots := "0"
	if cfg.Mode == ModeLocal && !cfg.ServerAlone {
		slots = strconv.Itoa(cfg.Slots)
	}
	args := []string{
		"up", "--json", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--store", cfg.Store,
		"--data-dir", filepath.Join(cfg.Dir, "data"), "--slots", slots, "--log-level", "warn",
	}
	if cfg.MaxConnections > 0 {
		args = append(args, "--max-connections", strconv.Itoa(cfg.MaxConnections))
	}
	python := []string{}
	if cfg.Python != "" {
		python = []string{"--python", cfg.Python}
	}
	s := &Stack{stopTimeout: cfg.StopTimeout}
	if err := s.start(ctx, cfg, append(args, python...), s.ready); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	if cfg.Mode != ModeLocal && !cfg.ServerAlone {
		// The first task waits until the worker is there, so nothing needs to wait here.
		args = []string{
			"worker", "--dispatcher", s.GRPCAddr, "--mode", cfg.Mode, "--slots", strconv.Itoa(cfg.Slots),
			"--log-level", "warn", "--data-dir", filepath.Join(cfg.Dir, "worker"),
		}
		if cfg.Runtime == RuntimeGo {
			args = []string{"bench-worker", "--dispatcher", s.GRPCAddr, "--mode", cfg.Mode, "--slots", strconv.Itoa(cfg.Slots)}
			python = nil
		}
		if err := s.start(ctx, cfg, append(args, python...), nil); err != nil {
			return nil, errors.Join(err, s.Stop())
		}
	}
	return s, nil
}

// start starts one process, and waits for its first line when somebody reads it.
func (s *Stack) start(ctx context.Context, cfg StackConfig, args []string, first func(line string) error) error {
	p := &proc{name: "treadle " + args[0], done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, cfg.Binary, args...)
	p.cmd.Env = plainEnv(os.Environ())
	p.cmd.Stderr = cfg.Log
	p.cmd.WaitDelay = cfg.StopTimeout
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	s.procs = append(s.procs, p)
	s.PIDs = append(s.PIDs, p.cmd.Process.Pid)
	line := make(chan string, 1)
	go func() {
		defer close(p.done)
		reader := bufio.NewReader(out)
		text, _ := reader.ReadString('\n') // the end of the process shows as an empty line
		line <- text
		_, _ = io.Copy(io.Discard, reader)
		p.err = p.cmd.Wait()
	}()
	if first == nil {
		return nil
	}
	select {
	case text := <-line:
		if err := first(text); err != nil {
			return fmt.Errorf("%s printed %q where its ready line was wanted: %w", p.name, strings.TrimSpace(text), err)
		}
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("%s was not ready after %s", p.name, startTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ready reads the line of JSON that a server prints when it is ready.
func (s *Stack) ready(line string) error {
	var r struct {
		GRPCAddr string `json:"grpc_addr"`
		HTTPAddr string `json:"http_addr"`
	}
	err := json.Unmarshal([]byte(line), &r)
	s.GRPCAddr, s.HTTPAddr = r.GRPCAddr, r.HTTPAddr
	return err
}

// plainEnv takes off what would change the processes' settings.
func plainEnv(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "TREADLE_") {
			out = append(out, e)
		}
	}
	return out
}

// Stop asks the processes to end, the workers first, and waits for them; those that
// do not end in time are killed.
func (s *Stack) Stop() error {
	var problems []error
	for i := len(s.procs) - 1; i >= 0; i-- {
		p := s.procs[i]
		_ = interrupt(p.cmd.Process) // it may have ended already
		select {
		case <-p.done:
		case <-time.After(s.stopTimeout):
			_ = p.cmd.Process.Kill()
			<-p.done
			problems = append(problems, fmt.Errorf("%s did not end within %s", p.name, s.stopTimeout))
		}
		if p.err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", p.name, p.err))
		}
	}
	s.procs = nil
	return errors.Join(problems...)
}

// Tail keeps the last bytes of a log, for messages about processes that failed.
type Tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 8 << 10

func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - tailSize; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
