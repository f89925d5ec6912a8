//go:build unix

package pyproc

import (
	"context"
	"crypto/sha256"
	_ "embed" // requirements.txt
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/treadle-dev/treadle/task"
)

// requirements is what is installed for an interpreter that lacks dill or cloudpickle, by version
// and hash: what a package index answers runs as the worker.
//
//go:embed requirements.txt
var requirements string

const provisionTimeout = 120 * time.Second

// inspectTimeout bounds the first question to an interpreter; tests shorten it.
var inspectTimeout = 20 * time.Second

// inspectProgram tells about an interpreter in one line of JSON.
const inspectProgram = `import sys
sys.path[:] = [entry for entry in sys.path if entry]  # the working directory may hold a json.py
import json
def version(name):
    try:
        import importlib.util, importlib.metadata, os, re
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return ""
        folder = os.path.dirname(spec.origin)
        try:
            # What is imported may be another copy than the one that was installed.
            found = importlib.metadata.distribution(name)
            if os.path.samefile(str(found.locate_file(name)), folder):
                return found.version
        except (importlib.metadata.PackageNotFoundError, OSError):
            pass
        with open(spec.origin, encoding="utf-8") as file:
            text = re.search(r"^__version__ = ['\"](.+)['\"]", file.read(4096), re.MULTILINE)
        return text.group(1) if text else "unknown"
    except Exception:
        return ""
print(json.dumps({"version": ".".join(map(str, sys.version_info[:3])), "tag": sys.implementation.cache_tag or "",
    "prefix": sys.prefix, "executable": sys.executable or "", "dill": version("dill"), "cloudpickle": version("cloudpickle")}))`

// inspection is what an interpreter says of itself.
type inspection struct {
	Version string `json:"version"`
	Tag     string `json:"tag"`
	Prefix  string `json:"prefix"`
	// Executable is the program itself where the configured path is a script that finds it.
	Executable  string `json:"executable"`
	Dill        string `json:"dill"`
	Cloudpickle string `json:"cloudpickle"`
}

// Probe looks at the interpreter that New would use, and at what is installed for it
// already; it installs nothing. For "treadle doctor".
func Probe(ctx context.Context, cfg Config) (Interpreter, error) {
	e, err := New(cfg)
	if err != nil {
		return Interpreter{}, err
	}
	defer e.cancel() // all there is to close of an executor that was not started
	found, err := inspect(ctx, e.python, e.env)
	if err != nil {
		return Interpreter{}, err
	}
	e.resolve(found)
	in := Interpreter{Path: e.python, Version: found.Version, Dill: found.Dill, Cloudpickle: found.Cloudpickle}
	if dir := e.libsDir(found); dir != "" {
		if _, err := os.Stat(dir); err == nil {
			in.Libs = dir
		}
	}
	return in, nil
}

// inspect runs the interpreter once.
func inspect(ctx context.Context, python string, env []string) (inspection, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "-c", inspectProgram)
	cmd.Env = env
	cmd.WaitDelay = time.Second
	// Whatever a script in its place starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var in inspection
	if err == nil {
		err = json.Unmarshal(out, &in)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return in, fmt.Errorf("%s does not work as a Python interpreter: it did not answer within %s; name another one with --python PATH",
			python, inspectTimeout)
	case err != nil:
		return in, fmt.Errorf("%s does not work as a Python interpreter: %w%s; name another one with --python PATH",
			python, err, lastLine(stderr.String()))
	}
	var major, minor int
	if _, err := fmt.Sscanf(in.Version, "%d.%d", &major, &minor); err != nil || major != 3 || minor < 9 {
		return in, fmt.Errorf("%s is Python %s; 3.9 or newer is needed: name another one with --python PATH", python, in.Version)
	}
	return in, nil
}

// lastLine is where an interpreter says what is wrong.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	return ": " + task.ClipText(strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:]), 300)
}

// resolve replaces the configured path by that of the program which answered: version
// managers put scripts on PATH that take longer to find the interpreter than it takes to start.
func (e *Executor) resolve(in inspection) {
	if path, err := exec.LookPath(in.Executable); err == nil && filepath.IsAbs(path) {
		e.python = path
	}
}

// libsDir is where packages for an interpreter are kept, or empty without a cache folder.
func (e *Executor) libsDir(in inspection) string {
	if e.cfg.CacheDir == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{
		e.python, in.Prefix, in.Tag, in.Version, requirements,
	}, "\x00")))
	return filepath.Join(e.cfg.CacheDir, "python", hex.EncodeToString(sum[:])[:24])
}

// Oldest versions that read what current clients write: dill 0.3.6 and cloudpickle 3
// both moved the helpers that their pickles name.
var (
	dillFloor        = [3]int{0, 3, 6}
	cloudpickleFloor = [3]int{3, 0, 0}
)

// atLeast compares a version's leading numbers; an empty version is older than any.
func atLeast(version string, floor [3]int) bool {
	if version == "" {
		return false
	}
	var v [3]int
	for i, part := range strings.SplitN(version, ".", 3) {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits >= 0 {
			part = part[:digits]
		}
		n, err := strconv.Atoi(part)
		if err != nil {
			return true // a version of another form is the user's own build
		}
		v[i] = n
	}
	return slices.Compare(v[:], floor[:]) >= 0
}

// outdated reports whether a package is there in a version that must not be found first.
func outdated(in inspection) bool {
	return in.Dill != "" && !atLeast(in.Dill, dillFloor) || in.Cloudpickle != "" && !atLeast(in.Cloudpickle, cloudpickleFloor)
}

// provision returns the folder with the packages that the interpreter lacks or has in
// too old a version, installing them the first time; empty when it needs none.
func (e *Executor) provision(ctx context.Context, in inspection) (string, error) {
	if atLeast(in.Dill, dillFloor) && atLeast(in.Cloudpickle, cloudpickleFloor) {
		return "", nil
	}
	dir := e.libsDir(in)
	if dir == "" {
		return "", errors.New("dill or cloudpickle is missing or too old, and there is no cache folder to install them in")
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if e.cfg.NoProvision {
		return "", errors.New("dill or cloudpickle is missing or too old, and installing is switched off")
	}
	ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // another agent was faster
	}
	e.log.Info("installing dill and cloudpickle for the interpreter, once", "python", e.python, "folder", dir)
	temp, err := os.MkdirTemp(filepath.Dir(dir), "installing-")
	if err != nil {
		return "", fmt.Errorf("make a folder to install in: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := pipInstall(ctx, e.python, e.env, temp); err != nil {
		return "", err
	}
	if err := os.Rename(temp, dir); err != nil {
		return "", fmt.Errorf("put the installed packages in place: %w", err)
	}
	return dir, nil
}

func pipInstall(ctx context.Context, python string, env []string, target string) error {
	if err := os.Chmod(target, 0o755); err != nil {
		return err
	}
	// Not in target, which is going to be on sys.path.
	file := target + ".txt"
	if err := os.WriteFile(file, []byte(requirements), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(file) }()
	// Wheels only: a source distribution would run its build before its files are there.
	cmd := exec.CommandContext(ctx, python, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps",
		"--require-hashes", "--only-binary", ":all:",
		"--disable-pip-version-check", "--retries", "1", "--timeout", "15", "--target", target, "--requirement", file)
	cmd.Env = env
	cmd.Dir = target // python -m looks in the working directory first
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return fmt.Errorf("pip install dill and cloudpickle, pinned by hash: %w: %s", err, pipSays(string(out)))
}

// pipSays is pip's last error, which may go on for lines, or its last line.
func pipSays(out string) string {
	text := strings.TrimSpace(out)
	if at := strings.LastIndex(text, "ERROR: "); at >= 0 {
		text = text[at:]
	} else {
		text = text[strings.LastIndexByte(text, '\n')+1:]
	}
	return task.ClipText(strings.Join(strings.Fields(text), " "), 600)
}

// lockFile takes an exclusive lock that ends with the process; unlock releases it.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	taken := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(file.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				taken <- err
				return
			}
		}
	}()
	select {
	case err := <-taken:
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { file.Close() }, nil
	case <-ctx.Done():
		// The goroutine ends when the holder lets go, and gives the lock back at once.
		go func() {
			if err := <-taken; err == nil {
				_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
			}
			file.Close()
		}()
		return nil, fmt.Errorf("wait for %s, which another agent holds: %w", path, ctx.Err())
	}
}
