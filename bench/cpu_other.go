//go:build !linux

package bench

import "time"

// Other systems have no /proc: processor time and memory are not reported there.

func ownTime() time.Duration { return 0 }

func processTime([]int) time.Duration { return 0 }

func machineTime() time.Duration { return 0 }

func residentBytes([]int) int64 { return 0 }
