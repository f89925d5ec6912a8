package pyproc

import (
	"log/slog"
	"time"
)

// Config says how Python attempts are run. The zero value works.
type Config struct {
	// Python is the interpreter, a path or a name on PATH. Default "python3".
	Python string
	// Paths are folders added to sys.path after the working directory.
	Paths []string
	// MemoryLimit, in bytes, is in force for attempts that bring none; 0 means no limit.
	MemoryLimit int64
	// CacheDir is where dill and cloudpickle are installed for interpreters that lack
	// them, shared by all agents of the user. Default os.UserCacheDir()/treadle.
	CacheDir string
	// Dir is a private folder of this agent, where the runner's program is written; Close removes
	// it, and Start those beside it whose agent has died. Default: a temporary folder.
	Dir string
	// Logger gets what happens to runners. Default slog.Default().
	Logger *slog.Logger
	// MaxPayload, in bytes, bounds results of attempts that bring no limit of their
	// own. Default task.DefaultMaxPayload.
	MaxPayload int
	// StartTimeout bounds how long a runner may take from its spawn until it is ready,
	// and how long an attempt waits for one. Default 30 s.
	StartTimeout time.Duration
	// MaxAttemptsPerRunner replaces a runner after that many attempts; 1 gives each attempt a
	// fresh process, which costs a start of an interpreter each time. Default 0: no limit.
	MaxAttemptsPerRunner int
	// NoProvision keeps the executor from installing anything.
	NoProvision bool
}

// Interpreter describes a Python installation.
type Interpreter struct {
	// Path is what is executed.
	Path string
	// Version is for example "3.11.7".
	Version string
	// Dill and Cloudpickle are the versions that the interpreter itself has, or empty.
	Dill        string
	Cloudpickle string
	// Libs is the folder of the packages installed for it, or empty.
	Libs string
}

// Limits says how memory limits are enforced on this machine.
type Limits struct {
	// Mechanism is "cgroup v2", "cgroup v1", "RLIMIT_AS" or "none".
	Mechanism string
	// Detail says where, and why nothing better is used.
	Detail string
}
