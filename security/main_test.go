//go:build linux

package security

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Environment of this package's tests.
const (
	// envLevel is "short" or "long"; without it the attacks are skipped, as `go test ./...`
	// runs other packages beside this one, and they would disturb each other.
	envLevel = "TREADLE_SECURITY"
	// envBinary names a binary that is already built.
	envBinary = "TREADLE_BIN"
	// envRole makes this test binary one of the honest processes.
	envRole = "TREADLE_SECURITY_ROLE"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(envRole); role {
	case "":
		os.Exit(run(m))
	case roleWorker:
		os.Exit(honestWorker())
	case roleLoad:
		os.Exit(honestLoad())
	default:
		fmt.Fprintf(os.Stderr, "%s=%q is no role\n", envRole, role)
		os.Exit(2)
	}
}

func run(m *testing.M) int {
	defer built.remove()
	defer closeShared()
	return m.Run()
}

// needsLevel skips a test that attacks unless it was asked for.
func needsLevel(t *testing.T) {
	t.Helper()
	switch level := os.Getenv(envLevel); level {
	case "":
		t.Skipf("attacks run by `make test-security` (%s=short or long)", envLevel)
	case "short", "long":
	default:
		t.Fatalf("%s=%q: want short or long", envLevel, level)
	}
}

// long reports whether the larger variants were asked for.
func long() bool { return os.Getenv(envLevel) == "long" }

// subtest runs one case of a table. A case whose name ends in "(long)" is part of the long
// run alone.
func subtest(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	if base, isLong := strings.CutSuffix(name, " (long)"); !isLong || long() {
		t.Run(base, f)
	}
}

// scale picks a size: the first for the short run, the second for the long one.
func scale[T any](short, whole T) T {
	if long() {
		return whole
	}
	return short
}

// built is the binary under test, built once.
var built binaryUnderTest

type binaryUnderTest struct {
	once sync.Once
	path string
	dir  string
	err  error
}

func (b *binaryUnderTest) get(t *testing.T) string {
	t.Helper()
	b.once.Do(b.make)
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

func (b *binaryUnderTest) make() {
	if path := os.Getenv(envBinary); path != "" {
		b.path, b.err = filepath.Abs(path)
		return
	}
	if b.dir, b.err = os.MkdirTemp("", "treadle-security-"); b.err != nil {
		return
	}
	b.path = filepath.Join(b.dir, "treadle")
	cmd := exec.Command("go", "build", "-o", b.path, "./cmd/treadle")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		b.err = fmt.Errorf("build the binary: %w\n%s", err, out)
	}
}

func (b *binaryUnderTest) remove() {
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}
