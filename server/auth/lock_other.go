//go:build !unix

package auth

import (
	"os"
	"time"
)

// lock waits up to five seconds for the lock of that name: a file that exists while it
// is held.
func lock(name string) (unlock func(), err error) {
	for range 100 {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			return func() { f.Close(); _ = os.Remove(name) }, nil
		}
		if !os.IsExist(err) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, &os.PathError{Op: "lock", Path: name, Err: os.ErrExist}
}
