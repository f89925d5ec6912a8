//go:build unix

package bench

import "golang.org/x/sys/unix"

// openFiles is how many files this process may have open, and so may those that it starts: the
// Go runtime has raised the soft limit to the hard one by now, in each of them. 0 is unknown.
func openFiles() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur)
}
