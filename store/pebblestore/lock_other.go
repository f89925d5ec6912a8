//go:build !unix

package pebblestore

// isLocked says whether taking the folder's lock failed because someone has it.
// The file is opened without sharing, so every failure most likely means that.
func isLocked(error) bool { return true }
