package deploy

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const (
	root       = "../.."
	deployDir  = root + "/deploy"
	dockerfile = deployDir + "/Dockerfile"
	// testVersion is what test builds say that they are.
	testVersion = "v0.0.0-deploytest"
)

// stages parses the Dockerfile as BuildKit does and returns its stages by name. What
// BuildKit's linter or parser would warn of is an error.
func stages(text []byte) (map[string]*instructions.Stage, error) {
	result, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var warnings []string
	for _, w := range result.Warnings {
		warnings = append(warnings, w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, _ []parser.Range) {
		warnings = append(warnings, rule+": "+message)
	}})
	list, _, err := instructions.Parse(result.AST, lint)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 {
		return nil, fmt.Errorf("warnings: %s", strings.Join(warnings, "; "))
	}
	byName := make(map[string]*instructions.Stage)
	for i := range list {
		byName[list[i].Name] = &list[i]
	}
	return byName, nil
}

func readStages(t *testing.T) map[string]*instructions.Stage {
	t.Helper()
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	list, err := stages(text)
	if err != nil {
		t.Fatalf("deploy/Dockerfile: %v", err)
	}
	return list
}

// image is what a stage gives the containers made of it.
type image struct {
	user       string
	entrypoint []string
	env        map[string]string
	// folders are those that the stage makes for volumes.
	folders []string
}

func imageOf(s *instructions.Stage) image {
	im := image{env: make(map[string]string)}
	for _, c := range s.Commands {
		switch c := c.(type) {
		case *instructions.UserCommand:
			im.user = c.User
		case *instructions.EntrypointCommand:
			im.entrypoint = c.CmdLine
			if c.PrependShell {
				im.entrypoint = nil // sh would be process 1 and get the signals
			}
		case *instructions.EnvCommand:
			for _, kv := range c.Env {
				im.env[kv.Key] = kv.Value
			}
		case *instructions.CopyCommand:
			if c.Chown != "" {
				im.folders = append(im.folders, c.DestPath)
			}
		}
	}
	return im
}

// TestImagesAreLocked checks what an image may be: nobody's root, no secrets, no moving
// parts fetched at build time without a hash.
func TestImagesAreLocked(t *testing.T) {
	list := readStages(t)
	for _, name := range []string{"server", "worker"} {
		s := list[name]
		if s == nil {
			t.Errorf("there is no stage %q", name)
			continue
		}
		im := imageOf(s)
		if uid, _, _ := strings.Cut(im.user, ":"); !isUID(uid) {
			t.Errorf("%s: USER %q: want a number other than 0, which Kubernetes can check", name, im.user)
		}
		if len(im.entrypoint) == 0 {
			t.Errorf("%s: want ENTRYPOINT as a list, so that signals reach the program", name)
		}
	}
	for name, s := range list {
		for _, c := range s.Commands {
			switch c := c.(type) {
			case *instructions.AddCommand:
				t.Errorf("%s: %s: ADD fetches and unpacks; use COPY", name, c)
			case *instructions.RunCommand:
				if line := c.String(); strings.Contains(line, "pip install") && !strings.Contains(line, "--require-hashes") {
					t.Errorf("%s: %s: want --require-hashes", name, line)
				}
			case *instructions.EnvCommand:
				for _, kv := range c.Env {
					if regexp.MustCompile(`(?i)token$|passw|secret|_key$`).MatchString(kv.Key) {
						t.Errorf("%s: ENV %s: an image holds no secrets", name, kv.Key)
					}
				}
			}
		}
	}
}

func isUID(text string) bool {
	n, err := strconv.Atoi(text)
	return err == nil && n > 0
}

// TestDockerfileIsRefused checks the checks.
func TestDockerfileIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"syntax":  "FROM scratch\nCOPPY a b\n",
		"warning": "FROM scratch as Build\nCOPY a b\n",
	} {
		if _, err := stages([]byte(text)); err == nil {
			t.Errorf("%s: %q is accepted", name, text)
		}
	}
}

// buildContext lists the files that a build sees, with slashes, from the top of the
// repository: those that git knows, less what the ignore file names.
func buildContext(t *testing.T) []string {
	t.Helper()
	f, err := os.Open(dockerfile + ".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "-C", root,
		"ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	var list []string
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		skip, err := ignored.MatchesOrParentMatches(name)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(filepath.Join(root, name)); !skip && err == nil && info.Mode().IsRegular() {
			list = append(list, name)
		}
	}
	return list
}

// TestBuildContext checks that builds see the sources and nothing that may be private.
func TestBuildContext(t *testing.T) {
	list := buildContext(t)
	for _, want := range []string{"go.mod", "cmd/treadle/main.go", "deploy/worker-requirements.txt"} {
		if !slices.Contains(list, want) {
			t.Errorf("%s is not in the build context", want)
		}
	}
	for _, name := range list {
		if strings.HasSuffix(name, "_test.go") || !slices.Contains([]string{
			".go", ".mod", ".sum", ".json", ".lua", ".py", ".txt",
		}, path.Ext(name)) {
			t.Errorf("%s is in the build context: what is it for? deploy/Dockerfile.dockerignore names what may be", name)
		}
	}
}

// build carries out the stage "build" of the Dockerfile below a folder and returns where
// the binary is. The machine's Go stands for the image's.
func build(t *testing.T, dir string) string {
	t.Helper()
	cache, err := exec.CommandContext(t.Context(), "go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatalf("go env GOCACHE: %v", err)
	}
	paths := strings.NewReplacer("/out/", dir+"/out/", "/var/cache/go-build", strings.TrimSpace(string(cache)))
	env := append(os.Environ(), "TARGETOS="+runtime.GOOS, "TARGETARCH="+runtime.GOARCH, "VERSION="+testVersion)
	work, files := dir, buildContext(t)
	if err := os.MkdirAll(dir+"/out", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range readStages(t)["build"].Commands {
		switch c := c.(type) {
		case *instructions.WorkdirCommand:
			work = filepath.Join(dir, c.Path)
		case *instructions.CopyCommand:
			for _, from := range c.SourcePaths {
				copyFiles(t, files, path.Clean(from), work)
			}
		case *instructions.RunCommand:
			cmd := exec.CommandContext(t.Context(), "sh", "-ec", paths.Replace(strings.Join(c.CmdLine, " ")))
			cmd.Dir, cmd.Env = work, env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", c.CmdLine, err, out)
			}
		case *instructions.ArgCommand:
		default:
			t.Fatalf("this test does not know how to carry out %s: teach it", c)
		}
	}
	return dir + "/out/treadle"
}

// copyFiles copies a file of the build context, or all below a folder of it.
func copyFiles(t *testing.T, files []string, from, to string) {
	t.Helper()
	copied := 0
	for _, name := range files {
		if from != "." && name != from && !strings.HasPrefix(name, from+"/") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, b, 0o600); err != nil {
			t.Fatal(err)
		}
		copied++
	}
	if copied == 0 {
		t.Fatalf("COPY %s: nothing of that name is in the build context", from)
	}
}

// once keeps the binary that the other tests run.
var once struct {
	sync.Once
	dir, binary string
}

// TestMain removes what tests share.
func TestMain(m *testing.M) {
	code := m.Run()
	if once.dir != "" {
		_ = os.RemoveAll(once.dir)
	}
	os.Exit(code)
}

// binary returns the program, built as the Dockerfile builds it.
func binary(t *testing.T) string {
	t.Helper()
	once.Do(func() {
		dir, err := os.MkdirTemp("", "treadle-deploy-")
		if err != nil {
			t.Fatal(err)
		}
		once.dir = dir
		once.binary = build(t, dir)
	})
	if once.binary == "" {
		t.Fatal("the binary could not be built; see the test that tried")
	}
	return once.binary
}

// TestBuildIsReproducible builds the program twice, in different folders.
func TestBuildIsReproducible(t *testing.T) {
	first := binary(t)
	second := build(t, filepath.Join(t.TempDir(), "elsewhere"))
	if a, b := hashOf(t, first), hashOf(t, second); a != b {
		t.Errorf("two builds of one source differ: %s and %s", a, b)
	}
	out, err := exec.CommandContext(t.Context(), first, "version", "--json").Output()
	var about struct{ Version, Commit string }
	if err == nil {
		err = json.Unmarshal(out, &about)
	}
	if err != nil || about.Version != testVersion || about.Commit != "" {
		t.Errorf("treadle version --json: %s, %v; want version %s and no commit", out, err, testVersion)
	}
	f, err := elf.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary needs a dynamic loader, which the server's image does not have")
		}
	}
}

func hashOf(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestCopiesFromTheBuild checks that what later stages take from the build is there.
func TestCopiesFromTheBuild(t *testing.T) {
	out := filepath.Dir(binary(t))
	copies := 0
	for name, s := range readStages(t) {
		for _, c := range s.Commands {
			c, ok := c.(*instructions.CopyCommand)
			if !ok || c.From == "" {
				continue
			}
			copies++
			for _, from := range c.SourcePaths {
				rest, ok := strings.CutPrefix(from, "/out/")
				if _, err := os.Stat(filepath.Join(out, rest)); c.From != "build" || !ok || err != nil {
					t.Errorf("%s: %s: %v", name, c, err)
				}
			}
		}
	}
	if copies == 0 {
		t.Error("no stage takes anything from the build")
	}
}

// TestWorkerPackages installs the worker image's packages with the image's own command, and
// compares them with what a worker would install by itself.
func TestWorkerPackages(t *testing.T) {
	var line string
	for _, c := range readStages(t)["worker"].Commands {
		if c, ok := c.(*instructions.RunCommand); ok {
			line = strings.Join(c.CmdLine, " ")
		}
	}
	const install, requirements = "python -m pip install ", "/tmp/requirements.txt"
	if !strings.Contains(line, install) || !strings.Contains(line, requirements) {
		t.Fatalf("RUN %q: this test looks for %q and %q", line, install, requirements)
	}
	target := t.TempDir()
	pinned, err := filepath.Abs(deployDir + "/worker-requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	line = strings.NewReplacer(install, "python3 -m pip install --quiet --target "+target+" ", requirements, pinned).Replace(line)
	if out, err := exec.CommandContext(t.Context(), "sh", "-ec", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	source, err := os.ReadFile(root + "/worker/pyproc/requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	wants := regexp.MustCompile(`(?m)^(\w+)==([\d.]+) `).FindAllStringSubmatch(string(source), -1)
	if len(wants) != 2 {
		t.Fatalf("worker/pyproc/requirements.txt pins %d packages, want dill and cloudpickle", len(wants))
	}
	for _, w := range wants {
		if _, err := os.Stat(filepath.Join(target, w[1]+"-"+w[2]+".dist-info")); err != nil {
			t.Errorf("the worker image has no %s %s, which workers use elsewhere: %v", w[1], w[2], err)
		}
	}
}
