//go:build !linux

package bench

import "time"

// Other systems have no /proc: processor time is not reported there.

func processTime([]int) time.Duration { return 0 }

func machineTime() time.Duration { return 0 }
