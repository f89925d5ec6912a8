//go:build !chaos

package failpoint

// Hit does nothing.
func Hit(Point) {}

// Seen does nothing.
func Seen(Point, int) {}

// Lag does nothing.
func Lag() {}
