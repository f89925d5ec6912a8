//go:build !unix

package redisstore

import "time"

func cpuTime() time.Duration { return 0 }
