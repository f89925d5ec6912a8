//go:build unix && !linux

package pyproc

// ProbeLimits says how memory limits of attempts are enforced here: not at all.
func ProbeLimits() Limits {
	return Limits{Mechanism: "none", Detail: "memory limits of attempts are enforced on Linux only"}
}

type limiter struct{}

type limit struct{}

func (l *limit) exceeded() bool { return false }

func newLimiter() limiter { return limiter{} }

func (l *limiter) name() string { return "none" }

func (l *limiter) impose(*runner, int64) (byAddress bool, err error) { return false, nil }

func (l *limiter) inForce(*runner, int64) bool { return true }

func (l *limiter) release(*runner) {}
