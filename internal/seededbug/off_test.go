//go:build !chaos

package seededbug

import (
	"os/exec"
	"strings"
	"testing"
)

// TestNoneIsOn checks that no bug can be turned on in a build that users get, and that
// asking costs nothing there.
func TestNoneIsOn(t *testing.T) {
	for _, b := range Bugs() {
		t.Setenv(Env, string(b))
		if On(b) {
			t.Errorf("%s is on", b)
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", "build", "-gcflags=-m=2", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if want := "func(Bug) bool { return false }"; !strings.Contains(string(out), "can inline On") || !strings.Contains(string(out), want) {
		t.Errorf("the compiler does not inline the constant:\n%s", out)
	}
}
