//go:build unix

package pyproc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

const defaultStartTimeout = 30 * time.Second

// Executor runs Python attempts, one at a time in each slot. See [worker.Executor] for
// its contract.
type Executor struct {
	cfg    Config
	log    *slog.Logger
	python string
	limits limiter

	// Set by Start, constant afterwards.
	dir       string       // where the script is
	tempDir   string       // what Close removes, or empty
	release   func() error // removes the agent's own folder, or nil
	env       []string
	libs      string
	libsFirst bool
	mark      mark
	guard     *guard

	spawner *spawner
	// homeless says once that the working directory is gone.
	homeless sync.Once

	ctx    context.Context // ends when Close is called
	cancel context.CancelFunc
	// keepers counts the slots' goroutines.
	keepers sync.WaitGroup
	mu      sync.Mutex
	started bool
	closed  bool
	// slots may have gaps; slotsMu guards them, and is held for a moment only.
	slotsMu sync.RWMutex
	slots   []*slot
	// runnerSeq numbers runners, for their marks.
	runnerSeq atomic.Uint64
}

var (
	_ worker.Elastic  = (*Executor)(nil)
	_ worker.Preparer = (*Executor)(nil)
)

// New checks the configuration and finds the interpreter; it starts nothing.
func New(cfg Config) (*Executor, error) {
	if cfg.Python == "" {
		cfg.Python = "python3"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxPayload <= 0 {
		cfg.MaxPayload = task.DefaultMaxPayload
	}
	if cfg.StartTimeout <= 0 {
		cfg.StartTimeout = defaultStartTimeout
	}
	if cfg.MemoryLimit < 0 {
		return nil, fmt.Errorf("memory limit %d is negative", cfg.MemoryLimit)
	}
	if cfg.MaxAttemptsPerRunner < 0 {
		return nil, fmt.Errorf("at most %d attempts for each runner: want 0 (no limit) or more", cfg.MaxAttemptsPerRunner)
	}
	python, err := findPython(cfg.Python)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(cfg.Paths))
	for i, dir := range cfg.Paths {
		if paths[i], err = filepath.Abs(dir); err != nil {
			return nil, fmt.Errorf("--python-path %s: %w", dir, err)
		}
	}
	cfg.Paths = paths
	if cfg.CacheDir == "" {
		// Without a home there is no cache folder: nothing is installed then.
		if base, err := os.UserCacheDir(); err == nil {
			cfg.CacheDir = filepath.Join(base, "treadle")
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Executor{
		cfg: cfg, log: cfg.Logger, python: python, limits: newLimiter(),
		env: cleanEnv(os.Environ()), ctx: ctx, cancel: cancel,
	}, nil
}

// findPython resolves an interpreter to an absolute path, which a later change of PATH or
// folder does not move.
func findPython(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("no Python interpreter: %w; install Python 3.9 or newer, or name one with --python PATH", err)
	}
	return path, nil
}

// cleanEnv returns the environment without the variables that configure Treadle: they
// may hold secrets, and functions have no business with them.
func cleanEnv(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, entry := range env {
		if !strings.HasPrefix(entry, "TREADLE_") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// Runtimes returns the one runtime key of Python functions.
func (e *Executor) Runtimes() []string { return []string{task.RuntimePython} }

// Start installs what the interpreter lacks, starts one runner for each slot, all at
// once, and returns when they are ready. It fails when the interpreter cannot run a
// runner at all; Close is to be called then too.
func (e *Executor) Start(ctx context.Context, slots int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started || e.closed {
		return errors.New("a Python executor is started once")
	}
	if slots <= 0 {
		return fmt.Errorf("%d slots: at least one is needed", slots)
	}
	e.started = true
	if err := e.prepare(ctx); err != nil {
		return err
	}
	opened := make([]*slot, slots)
	for i := range opened {
		opened[i] = e.openSlot(i)
	}
	wait, cancel := context.WithTimeout(ctx, e.cfg.StartTimeout)
	defer cancel()
	for _, s := range opened {
		if _, err := s.wait(wait, false); err != nil {
			return fmt.Errorf("start Python runners with %s: %w", e.python, err)
		}
	}
	return nil
}

// openSlot starts the keeper of a slot. Its caller holds e.mu, and the executor is not closed.
func (e *Executor) openSlot(i int) *slot {
	s := newSlot(e, i)
	e.slotsMu.Lock()
	for len(e.slots) <= i {
		e.slots = append(e.slots, nil)
	}
	e.slots[i] = s
	e.slotsMu.Unlock()
	e.keepers.Go(s.keep)
	return s
}

// slotAt returns nil for a slot that is not open.
func (e *Executor) slotAt(i int) *slot {
	e.slotsMu.RLock()
	defer e.slotsMu.RUnlock()
	if i < 0 || i >= len(e.slots) {
		return nil
	}
	return e.slots[i]
}

// Open implements [worker.Elastic]: it starts one more runner.
func (e *Executor) Open(ctx context.Context, slot int) error {
	e.mu.Lock()
	if !e.started || e.closed {
		e.mu.Unlock()
		return errClosed
	}
	s := e.openSlot(slot)
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, e.cfg.StartTimeout)
	defer cancel()
	if _, err := s.wait(ctx, false); err != nil {
		e.Shut(slot)
		return fmt.Errorf("start one more Python runner with %s: %w", e.python, err)
	}
	return nil
}

// Shut implements [worker.Elastic]: it ends the runner of a slot.
func (e *Executor) Shut(slot int) {
	s := e.slotAt(slot)
	if s == nil {
		return
	}
	s.shut()
	e.slotsMu.Lock()
	e.slots[slot] = nil
	e.slotsMu.Unlock()
}

// prepare makes everything that runners share.
func (e *Executor) prepare(ctx context.Context) error {
	dir := e.cfg.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "treadle-python-"); err != nil {
			return fmt.Errorf("make a folder for the runner: %w", err)
		}
		e.tempDir = dir
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if e.cfg.Dir != "" {
		if e.release, err = claimFolder(dir, e.log); err != nil {
			return err
		}
	}
	if e.dir, err = writeScript(dir); err != nil {
		return err
	}
	found, err := inspect(ctx, e.python, e.env)
	if err != nil {
		return err
	}
	e.resolve(found)
	e.libsFirst = outdated(found)
	if e.libs, err = e.provision(ctx, found); err != nil {
		e.log.Warn("functions pickled with dill or cloudpickle will not run here",
			"python", e.python, "error", err, "fix", threeWays(e.python))
	}
	e.mark = newMark()
	e.spawner = newSpawner()
	if e.guard, err = startGuard(e); err != nil {
		return err
	}
	return nil
}

// Run runs one attempt in a slot. Its timeout counts from the moment when a runner has
// the call, not while a runner starts or the function's bytes are fetched.
func (e *Executor) Run(ctx context.Context, slot int, a *worker.Attempt) task.Outcome {
	s := e.slotAt(slot)
	if s == nil {
		return task.Fail(task.EndLost, fmt.Sprintf("there is no slot %d", slot))
	}
	start := time.Now()
	out := s.run(ctx, a)
	if out.RunTime == 0 {
		out.RunTime = time.Since(start)
	}
	return out
}

// Close kills all runners and everything that functions left, and waits until they are
// gone. Attempts that are running end as cancelled. A second Close does nothing.
func (e *Executor) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	e.cancel()
	e.slotsMu.RLock()
	open := slices.DeleteFunc(slices.Clone(e.slots), func(s *slot) bool { return s == nil })
	e.slotsMu.RUnlock()
	for _, s := range open {
		s.killCurrent()
	}
	e.keepers.Wait()
	if e.guard != nil {
		e.guard.stop()
	}
	if e.spawner != nil {
		e.spawner.stop()
	}
	if e.release != nil {
		if err := e.release(); err != nil {
			return fmt.Errorf("remove the runner's folder: %w", err)
		}
	}
	if e.tempDir != "" {
		if err := os.RemoveAll(e.tempDir); err != nil {
			return fmt.Errorf("remove the runner's folder: %w", err)
		}
	}
	return nil
}

// threeWays tells how an interpreter gets dill and cloudpickle.
func threeWays(python string) string {
	return fmt.Sprintf("run '%s -m pip install dill cloudpickle'; or start the worker with --python PATH of an interpreter "+
		"that has them; or with --python-path DIR, where DIR contains them", python)
}
