//go:build unix && !linux

package pyproc

import "os"

// canTakeBack: nothing can be taken back out of a pipe, so no call is sent ahead.
const canTakeBack = false

func callChannel() (theirs, ours *os.File, err error) { return os.Pipe() }

func (r *runner) offer([]byte) bool { return false }

func (r *runner) takeBack() []uint32 { return nil }
