//go:build unix

package pebblestore

import (
	"errors"
	"strings"
	"syscall"
)

// isLocked says whether taking the folder's lock failed because someone has it.
func isLocked(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) && !strings.Contains(err.Error(), "open ") ||
		strings.Contains(err.Error(), "lock held by current process")
}
