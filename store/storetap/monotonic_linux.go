//go:build chaos

package storetap

import (
	"syscall"
	"unsafe"
)

// monotonic is the machine's monotonic clock in nanoseconds, which all its processes
// share; time.Now's is counted from the start of each.
func monotonic() int64 {
	const clockMonotonic = 1
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		panic("clock_gettime: " + errno.Error())
	}
	return ts.Nano()
}
