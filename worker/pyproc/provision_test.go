//go:build unix

package pyproc

import (
	"archive/zip"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// fakePython returns an interpreter without dill and cloudpickle whose pip runs a script:
// a wrapper around the real one.
func fakePython(t *testing.T, pip string) string {
	t.Helper()
	real, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	found, err := inspect(context.Background(), real.python, real.env)
	if err != nil {
		t.Fatal(err)
	}
	real.resolve(found)
	path := filepath.Join(t.TempDir(), "python")
	// -S leaves out what is installed, -I what the environment adds. The executable is
	// hidden, so that the wrapper stays in use.
	script := `#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then
` + pip + `
fi
if [ "$1" = -c ] && [ "$#" = 2 ]; then
	shift
	exec "` + real.python + `" -S -c "import sys; sys.executable = ''
$@"
fi
exec "` + real.python + `" -S "$@"
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMissingPackagesAreInstalledOnce: several agents that start at once on an empty cache
// install one time, and the next agent not at all.
func TestMissingPackagesAreInstalledOnce(t *testing.T) {
	cache, count := t.TempDir(), filepath.Join(t.TempDir(), "count")
	pip := `echo run >> ` + count + `
while [ "$1" != --target ]; do shift; done
for name in dill cloudpickle; do
	mkdir "$2/$name"
	echo "from pickle import *; __version__ = 'fake'; from pickle import loads, dumps" > "$2/$name/__init__.py"
done
exit 0`
	path := fakePython(t, pip)
	quiet := slog.New(slog.DiscardHandler)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			e, err := New(Config{Python: path, CacheDir: cache, Dir: t.TempDir(), Logger: quiet})
			if err != nil {
				t.Error(err)
				return
			}
			defer e.Close()
			if err := e.Start(context.Background(), 1); err != nil {
				t.Error(err)
				return
			}
			if got := e.slots[0].cur.info; got.Dill != "fake" {
				t.Errorf("hello %+v", got)
			}
			want := runJSON(t, e, "import sys\ndef f(): return sys.path[-1]", "")
			if !strings.Contains(string(want.Result), cache) {
				t.Errorf("the packages are not at the end of the path: %s", describe(want))
			}
		})
	}
	wg.Wait()
	runs, err := os.ReadFile(count)
	if err != nil || string(runs) != "run\n" {
		t.Fatalf("pip ran: %q, %v", runs, err)
	}
	in, err := Probe(context.Background(), Config{Python: path, CacheDir: cache, Logger: quiet})
	if err != nil || in.Libs == "" || in.Dill != "" || in.Version == "" || in.Path != path {
		t.Fatalf("%+v, %v", in, err)
	}
}

// TestWithoutPackages: when nothing can be installed there is one warning, source and plain
// pickles run, and the others say what is missing and how to get it.
func TestWithoutPackages(t *testing.T) {
	cache := t.TempDir()
	var said log
	logger := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) { said.write(b) }), &slog.HandlerOptions{Level: slog.LevelWarn}))
	path := fakePython(t, "echo 'ERROR: no network here' >&2\nexit 1")
	e := startConfig(t, 2, Config{Python: path, CacheDir: cache, Dir: t.TempDir(), Logger: logger}, func(*Executor) {})
	if n := strings.Count(said.String(), "level=WARN"); n != 1 || !strings.Contains(said.String(), "no network here") {
		t.Fatalf("%d warnings: %s", n, said.String())
	}
	want(t, runJSON(t, e, "def f(): return 1", ""), "1")
	want(t, run(t, e, 0, fromPickle([]byte("cmath\nfloor\n."), []byte("\x80\x02G@\t!\xfbTD-\x18\x85q\x00."))), "3")
	for _, pickle := range []string{"cdill._dill\n_create_function\n.", "ccloudpickle.cloudpickle\n_make_function\n."} {
		out := run(t, e, 0, fromPickle([]byte(pickle), nil))
		wantEnd(t, out, task.EndUnreadable, "needs the Python package")
		for _, way := range []string{"-m pip install", "--python PATH", "--python-path DIR"} {
			if !strings.Contains(out.Failure.Message, way) {
				t.Errorf("%q is not in %s", way, out.Failure.Message)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "python", "*-*")); len(left) > 0 {
		t.Fatalf("a failed installation left %v", left)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// TestRealInstallation: what is pinned can be installed and used by the interpreter of the
// tests, whatever it has itself.
func TestRealInstallation(t *testing.T) {
	e := start(t, 1)
	if e.libs == "" {
		t.Skip("the interpreter has dill and cloudpickle")
	}
	out, err := exec.Command(e.python, "-S", "-c", "import sys; sys.path.append("+pyString(e.libs)+"); import dill, cloudpickle; print(dill.__version__, cloudpickle.__version__)").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "0.4.1 3.1.2" {
		t.Fatalf("%s, %v", out, err)
	}
}

// TestAnotherFileOfTheSameNameIsRefused: what an index answers is compared with the committed hashes.
func TestAnotherFileOfTheSameNameIsRefused(t *testing.T) {
	index := t.TempDir()
	for _, name := range []string{"dill-0.4.1", "cloudpickle-3.1.2"} {
		file, err := os.Create(filepath.Join(index, name+"-py3-none-any.whl"))
		if err != nil {
			t.Fatal(err)
		}
		wheel := zip.NewWriter(file)
		dist, version, _ := strings.Cut(name, "-")
		for path, text := range map[string]string{
			dist + "/__init__.py":        "print('not the one')\n",
			name + ".dist-info/METADATA": "Metadata-Version: 2.1\nName: " + dist + "\nVersion: " + version + "\n",
			name + ".dist-info/WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
			name + ".dist-info/RECORD":   "",
		} {
			w, err := wheel.Create(path)
			if err == nil {
				_, err = w.Write([]byte(text))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(wheel.Close(), file.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PIP_NO_INDEX", "1")
	t.Setenv("PIP_FIND_LINKS", index)
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	target := t.TempDir()
	err = pipInstall(t.Context(), e.python, e.env, target)
	if err == nil || !strings.Contains(err.Error(), "DO NOT MATCH THE HASHES") || !strings.Contains(err.Error(), "dill") {
		t.Fatalf("error %v", err)
	}
	if left, err := os.ReadDir(target); err != nil || len(left) > 0 {
		t.Fatalf("installed %v, %v", left, err)
	}
	if _, err := os.Stat(target + ".txt"); !os.IsNotExist(err) {
		t.Fatalf("the requirements are left: %v", err)
	}
}

// TestImagesHaveWhatWorkersInstall: deploy/ installs the same versions and files.
func TestImagesHaveWhatWorkersInstall(t *testing.T) {
	images, err := os.ReadFile("../../deploy/worker-requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	pins := func(text string) string { _, after, _ := strings.Cut(text, "\n"); return after }
	if got := pins(string(images)); got != pins(requirements) || !strings.Contains(got, "--hash=sha256:") {
		t.Fatalf("deploy/worker-requirements.txt has\n%s\nand a worker installs\n%s", got, pins(requirements))
	}
}

func TestLockEndsWithItsWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Fatalf("error %v", err)
	}
	unlock()
	again, err := lockFile(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestVersionsThatAreTooOld(t *testing.T) {
	for version, want := range map[string]bool{
		"": false, "0.3.5.1": false, "0.3.6": true, "0.4.1": true, "1.0": true, "0.3": false, "0.4rc1": true, "local": true, "0.3.10": true,
	} {
		if got := atLeast(version, dillFloor); got != want {
			t.Errorf("dill %q is new enough: %t, want %t", version, got, want)
		}
	}
	for _, c := range []struct {
		in   inspection
		want bool
	}{
		{inspection{}, false},
		{inspection{Dill: "0.4.1"}, false},
		{inspection{Dill: "0.4.1", Cloudpickle: "2.1.0"}, true},
		{inspection{Dill: "0.3.1"}, true},
	} {
		if got := outdated(c.in); got != c.want {
			t.Errorf("%+v is outdated: %t, want %t", c.in, got, c.want)
		}
	}
}

// TestOldPackagesAreNotFoundFirst: a pinned package goes before the interpreter's own old one.
func TestOldPackagesAreNotFoundFirst(t *testing.T) {
	site := t.TempDir()
	for name, version := range map[string]string{"dill": "0.2.0", "cloudpickle": "2.1.0"} {
		if err := os.MkdirAll(filepath.Join(site, name), 0o755); err != nil {
			t.Fatal(err)
		}
		body := "__version__ = '" + version + "'\n"
		if err := os.WriteFile(filepath.Join(site, name, "__init__.py"), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PYTHONPATH", site)
	e := start(t, 1)
	out := runJSON(t, e, "def f():\n    import dill, cloudpickle\n    return dill.__version__ + ' ' + cloudpickle.__version__", "")
	want(t, out, `"0.4.1 3.1.2"`)
}
