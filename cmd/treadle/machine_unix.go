//go:build unix

package main

import "golang.org/x/sys/unix"

// freeSpace is what this user may still write to the file system of a folder, in bytes.
func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// fileLimit is how many files a process may have open: the limit in force, and what
// the process may raise it to, as the Go runtime does at start.
func fileLimit() (soft, hard uint64, err error) {
	var l unix.Rlimit
	err = unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
	return uint64(l.Cur), uint64(l.Max), err
}
