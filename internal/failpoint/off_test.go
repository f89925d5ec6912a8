//go:build !chaos

package failpoint

import (
	"os/exec"
	"strings"
	"testing"
)

// TestNothingIsLeft checks that the compiler makes nothing of a point in a build that
// users get: both functions are inlined, and an empty body inlined is no instruction.
func TestNothingIsLeft(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "build", "-gcflags=-m=2", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, f := range []string{"Hit", "Seen", "Lag"} {
		if want := "can inline " + f + " with cost 0 "; !strings.Contains(string(out), want) {
			t.Errorf("the compiler does not say %q:\n%s", want, out)
		}
	}
}

func BenchmarkHit(b *testing.B) {
	for b.Loop() {
		Hit(AfterClaim)
		Seen(AfterSend, 1)
	}
}
