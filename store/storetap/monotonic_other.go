//go:build chaos && !linux

package storetap

import "time"

// monotonic is the wall clock where the suite does not run anyway.
func monotonic() int64 { return time.Now().UnixNano() }
