//go:build chaos

package storetap

import (
	"testing"
	"time"
)

// TestWallBy checks that a clock that leaps is one that was set: time that passed by it is
// the same, what it shows is not.
func TestWallBy(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		at := time.Now()
		got := wallBy(at, by)
		if d := got.Sub(at); d != 0 {
			t.Errorf("%s: the monotonic parts differ by %s", by, d)
		}
		if d := got.Round(0).Sub(at.Round(0)); d != by {
			t.Errorf("%s: the wall parts differ by %s", by, d)
		}
		if plain := at.Round(0); wallBy(plain, by).Sub(plain) != by {
			t.Errorf("%s: a reading without a monotonic part does not move", by)
		}
	}
}
