//go:build !linux

package pebblestore

import "testing"

// smallDisk has no way to make one here.
func smallDisk(t *testing.T, _ int64) string {
	t.Helper()
	t.Skip("a disk of a given size can be made on Linux only")
	return ""
}
