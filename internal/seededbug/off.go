//go:build !chaos

package seededbug

// On is false.
func On(Bug) bool { return false }

// Every is false.
func Every(int) bool { return false }
