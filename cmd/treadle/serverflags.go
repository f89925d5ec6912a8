package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/internal/dialaddr"
	"github.com/treadle-dev/treadle/task"
	"github.com/treadle-dev/treadle/worker"
)

// role is what a process of this binary does; it decides which flags there are.
type role int

const (
	// roleUp is everything in one process.
	roleUp role = iota
	// roleServer is the API alone.
	roleServer
	// roleDispatcher takes worker streams, or runs a pool itself.
	roleDispatcher
	// roleWorker is a worker agent.
	roleWorker
)

// serverFlags are the settings of servers and workers. A command makes one, calls
// register when it is built, and validate, then logger, when it runs. Each role has
// those flags that mean something to it; the others keep their zero value.
type serverFlags struct {
	GRPCAddr string
	// HTTPAddr is empty for no HTTP port.
	HTTPAddr string
	Store    string
	DataDir  string
	// OpenDamaged opens an embedded store that lost a part of its log.
	OpenDamaged bool

	// Slots is the size of the pool; where MaxSlots is more, the pool grows to that while
	// work waits, and slots that were idle for IdleAfter shut.
	Slots, MaxSlots int
	IdleAfter       time.Duration
	Python          string
	PythonPath      []string
	// MaxRetries, TaskTimeout (0 for none) and MemoryLimit (in bytes, 0 for none) are
	// the defaults of tasks that do not say.
	MaxRetries  int
	TaskTimeout time.Duration
	MemoryLimit int64
	// MaxAttemptsPerRunner is 0 for runners that live as long as their pool.
	MaxAttemptsPerRunner int
	// NoProvision keeps the pool from installing dill and cloudpickle.
	NoProvision bool

	Heartbeat      time.Duration
	Lease          time.Duration
	ReconnectGrace time.Duration
	// StreamAge is 0 for streams that stand for ever.
	StreamAge    time.Duration
	DrainTimeout time.Duration
	// MaxPayload is the one limit on a payload or result, in bytes.
	MaxPayload int64
	Retention  time.Duration

	RESTCompat        string
	RESTCreatedStatus int

	// AllowedHosts are further names by which browsers may reach the HTTP port.
	AllowedHosts []string
	// TokenFile holds the hashes of the tokens that callers must have; empty asks for none.
	TokenFile string
	// TLSCert and TLSKey are the pair of a server, or what a worker shows. TLSClientCA
	// signs the certificates of workers; a server that has one asks for them. TLSCA is
	// what a worker trusts.
	TLSCert, TLSKey, TLSClientCA, TLSCA string
	MaxConnections                      int
	// RateLimit is in calls of one token a second, by cost; 0 is none.
	RateLimit float64
	// QuotaWaited is how many tasks the calls of one token wait for; 0 is no limit.
	QuotaWaited int
	// Quotas are what one token may have in the store; 0 is no limit.
	Quotas fabric.Quotas
	// Insecure lets a server listen on addresses that are not loopback without TLS and
	// tokens, and a worker's token travel without TLS.
	Insecure  bool
	Name      string
	LogLevel  string
	LogFormat string
	// JSON prints the ready line as one JSON object.
	JSON bool

	// Dispatchers and Queues are a worker's; Mode is that of a worker (push, pull) or of
	// a dispatcher (any, push, pull, local).
	Dispatchers []string
	Queues      []string
	Mode        string
}

// Limits of the settings.
const (
	minMemoryLimit = 16 << 20
	minHeartbeat   = 20 * time.Millisecond
	// missedBeats mark a worker as silent.
	missedBeats = 3
)

// register adds the flags of a role, with their twins in the environment. Flags that
// the command adds by itself come before the call.
func (f *serverFlags) register(cmd *cobra.Command, r role) {
	fl := cmd.Flags()
	if r != roleWorker {
		fl.StringVar(&f.GRPCAddr, "grpc-addr", "127.0.0.1:50051", "where gRPC listens; port 0 picks a free one")
		httpDefault := "127.0.0.1:8000"
		if r == roleDispatcher {
			httpDefault = ""
		}
		fl.StringVar(&f.HTTPAddr, "http-addr", httpDefault, "where REST, health and metrics listen; port 0 picks a free one")
		storeDefault := "embedded:"
		if r != roleUp {
			storeDefault = ""
		}
		storeHelp := "store URL: redis://, rediss://, redis+sentinel:// or redis+cluster://"
		if r == roleUp {
			storeHelp = "store URL: embedded: (under --data-dir), memory:, " + strings.TrimPrefix(storeHelp, "store URL: ")
		}
		fl.StringVar(&f.Store, "store", storeDefault, storeHelp)
	} else {
		fl.StringVar(&f.HTTPAddr, "http-addr", "", "where health and metrics listen (default nowhere)")
		fl.StringSliceVar(&f.Dispatchers, "dispatcher", []string{"127.0.0.1:50051"}, "HOST:PORT of dispatchers, over which workers spread; a DNS name may stand for several")
		fl.Var(newChoice(&f.Mode, "push", "push", "pull"), "mode", "who starts each delivery: the dispatcher (push) or the worker (pull)")
		fl.StringSliceVar(&f.Queues, "queues", []string{"default"}, "queues that the worker serves")
	}
	if r == roleDispatcher {
		fl.Var(newChoice(&f.Mode, "any", "any", "push", "pull", "local"), "mode",
			"which workers it takes; local takes none and runs a pool of --slots")
	}
	fl.StringVar(&f.DataDir, "data-dir", defaultDataDir(), "folder for state")
	if r == roleUp {
		fl.BoolVar(&f.OpenDamaged, "open-damaged", false, "open a store with a damaged log and lose what follows the damage; a copy of the logs is kept")
	}
	if r != roleServer {
		slots := "how many attempts run at once; MIN-MAX for a pool that grows while work waits"
		if r != roleWorker {
			slots += "; 0 means no local pool"
		}
		f.Slots, f.MaxSlots = defaultSlots(), defaultSlots()
		fl.Var(slotRange{f}, "slots", slots)
		fl.DurationVar(&f.IdleAfter, "idle-after", 30*time.Second, "how long a slot above MIN stays idle before it closes, with --slots MIN-MAX")
		fl.StringVar(&f.Python, "python", "python3", "Python interpreter, a path or a name on PATH")
		fl.Var((*pathList)(&f.PythonPath), "python-path", "folder added to the runners' sys.path; may be repeated")
		fl.Var((*byteSize)(&f.MemoryLimit), "memory-limit", "memory of one attempt, for example 512MiB (default off)")
		fl.IntVar(&f.MaxAttemptsPerRunner, "max-attempts-per-runner", 0,
			"replace a Python runner after that many attempts; 1 gives each a fresh process (0 for no limit)")
		fl.BoolVar(&f.NoProvision, "no-provision", false, "do not install dill and cloudpickle for an interpreter that lacks them")
		fl.DurationVar(&f.DrainTimeout, "drain-timeout", 25*time.Second, "how long running attempts may continue after SIGTERM")
	}
	if r == roleUp || r == roleDispatcher {
		fl.DurationVar(&f.Heartbeat, "heartbeat", time.Second, "interval of workers' heartbeats; a worker that misses three gets no new work")
		fl.DurationVar(&f.Lease, "lease", 10*time.Second, "how long a silent worker keeps its attempts before they run elsewhere")
		fl.DurationVar(&f.ReconnectGrace, "reconnect-grace", time.Second, "how long a disconnected worker may take to reconnect before its attempts are requeued")
		fl.DurationVar(&f.StreamAge, "stream-age", 30*time.Minute,
			"age at which a worker reconnects, give or take a tenth, so that load balancers spread workers; its attempts continue (0 for never)")
	}
	if r == roleUp || r == roleServer {
		fl.StringSliceVar(&f.AllowedHosts, "allowed-host", nil, "host name, besides loopback names, that HTTP requests may use; * allows all")
		fl.Var(newChoice(&f.RESTCompat, "course", "course", "seed"), "rest-compat", "how the REST routes at the root wrap results")
		fl.IntVar(&f.RESTCreatedStatus, "rest-created-status", 200, "HTTP status of accepted registrations and executions at the root, 200 or 201")
	}
	if r != roleWorker {
		// Dispatchers let in what running tasks submit: give them what the servers have.
		fl.IntVar(&f.MaxRetries, "max-retries", 3, "how often a task is retried after its worker was lost, unless the task sets max_retries")
		fl.DurationVar(&f.TaskTimeout, "task-timeout", 0, "limit on one attempt's run time, unless the task sets a timeout (default none)")
	}
	retention := "how long finished tasks are kept"
	switch r {
	case roleServer:
		retention += "; dispatchers remove them, so set the same there"
	case roleDispatcher:
		retention += "; servers report it, so set the same there"
	}
	if r != roleWorker {
		fl.DurationVar(&f.Retention, "retention", 24*time.Hour, retention)
	}
	f.MaxPayload = 64 << 20
	fl.Var((*byteSize)(&f.MaxPayload), "max-payload", "largest payload or result, 1KiB to 900MiB")
	f.registerSecurity(cmd, r)
	fl.StringVar(&f.Name, "name", "", "name in lists and logs (default the host's)")
	fl.StringVar(&f.LogLevel, "log-level", "info", "debug, info, warn or error")
	fl.Var(newChoice(&f.LogFormat, "text", "text", "json"), "log-format", "format of the log on standard error")
	fl.BoolVar(&f.JSON, "json", false, "print one JSON line when ready")
	bindEnv(cmd)
}

// defaultSlots is one for each core, and at least four.
func defaultSlots() int { return max(4, runtime.NumCPU()) }

// slotRange is the value of --slots: N or MIN-MAX.
type slotRange struct{ f *serverFlags }

// String implements pflag.Value.
func (s slotRange) String() string {
	switch {
	case s.f == nil:
		return ""
	case s.f.MaxSlots != s.f.Slots:
		return fmt.Sprintf("%d-%d", s.f.Slots, s.f.MaxSlots)
	}
	return strconv.Itoa(s.f.Slots)
}

// Set implements pflag.Value.
func (s slotRange) Set(text string) error {
	low, high, isRange := strings.Cut(text, "-")
	if !isRange || low == "" {
		low, high = text, text
	}
	least, err := strconv.Atoi(low)
	if err != nil {
		return fmt.Errorf("want a whole number, or MIN-MAX as in 2-8")
	}
	most, err := strconv.Atoi(high)
	if err != nil {
		return fmt.Errorf("want a whole number, or MIN-MAX as in 2-8")
	}
	s.f.Slots, s.f.MaxSlots = least, most
	return nil
}

// Type implements pflag.Value.
func (slotRange) Type() string { return "N|MIN-MAX" }

// defaultDataDir is $XDG_DATA_HOME/treadle, else ~/.local/share/treadle, and empty
// where there is no home.
func defaultDataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "treadle")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "share", "treadle")
}

// logger builds the logger that the flags ask for.
func (f *serverFlags) logger(w io.Writer) (*slog.Logger, func(), error) {
	log, flush, err := newLogger(w, f.LogLevel, f.LogFormat)
	if err != nil {
		return nil, nil, &usageError{err}
	}
	return log, flush, nil
}

// validate refuses settings that cannot work, as misuse. Each message names the value,
// the limit and the fix.
func (f *serverFlags) validate(r role) error {
	checks := []func(role) error{f.validateAddrs, f.validateSecurity, f.validateStore, f.validatePool, f.validateTimes, f.validateAPI, f.validateWorker}
	for _, check := range checks {
		if err := check(r); err != nil {
			return &usageError{err}
		}
	}
	if err := worker.CheckName(f.Name); err != nil {
		return misuse("--name: %w", err)
	}
	_, _, err := f.logger(io.Discard)
	return err
}

func (f *serverFlags) validateAddrs(r role) error {
	addrs := []struct {
		flag, value string
		required    bool
	}{{"--grpc-addr", f.GRPCAddr, r != roleWorker}, {"--http-addr", f.HTTPAddr, false}}
	for _, a := range addrs {
		if a.value == "" && !a.required {
			continue
		}
		if _, err := splitAddr(a.value); err != nil {
			return fmt.Errorf("%s %q: %w", a.flag, a.value, err)
		}
	}
	if f.GRPCAddr != "" && f.GRPCAddr == f.HTTPAddr && !strings.HasSuffix(f.GRPCAddr, ":0") {
		return fmt.Errorf("--grpc-addr and --http-addr are both %s: want two ports", f.GRPCAddr)
	}
	return nil
}

// splitAddr checks HOST:PORT and returns the host.
func splitAddr(addr string) (host string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("want HOST:PORT, for example 127.0.0.1:50051")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", fmt.Errorf("port %q: want 0 to 65535", port)
	}
	return host, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (f *serverFlags) validateStore(r role) error {
	if r == roleWorker {
		return nil
	}
	scheme, _, ok := strings.Cut(f.Store, ":")
	switch {
	case f.Store == "":
		return fmt.Errorf("--store is missing: name the store that servers and dispatchers share")
	case !ok || scheme == "":
		return fmt.Errorf("--store %q: want a URL: embedded: or memory: for one process, redis://HOST:PORT for many", redactURL(f.Store))
	case scheme == "embedded" && f.DataDir == "":
		return fmt.Errorf("--data-dir is empty and this user has no home directory: name a folder")
	}
	return checkStore(f.Store, r != roleUp)
}

func (f *serverFlags) validatePool(r role) error {
	least := 0
	if r == roleWorker {
		least = 1
	}
	switch {
	case r == roleServer:
		return nil
	case f.MaxSlots != f.Slots && f.Slots < 1:
		return fmt.Errorf("--slots %d-%d: a pool that grows needs at least one slot", f.Slots, f.MaxSlots)
	case f.Slots < least || f.MaxSlots > task.MaxSlots:
		return fmt.Errorf("--slots %s: want %d to %d", slotRange{f}, least, task.MaxSlots)
	case f.MaxSlots < f.Slots:
		return fmt.Errorf("--slots %d-%d: the minimum comes first, as in %[2]d-%[1]d", f.Slots, f.MaxSlots)
	case f.IdleAfter < time.Second:
		return fmt.Errorf("--idle-after %s: want at least 1s, or runners would start and stop all the time", f.IdleAfter)
	case f.Python == "":
		return fmt.Errorf("--python is empty: want an interpreter, for example python3")
	case f.MemoryLimit != 0 && f.MemoryLimit < minMemoryLimit:
		return fmt.Errorf("--memory-limit %s: an interpreter alone needs about that; want at least %s, or off",
			exactBytes(f.MemoryLimit), formatBytes(minMemoryLimit))
	case f.MaxAttemptsPerRunner < 0:
		return fmt.Errorf("--max-attempts-per-runner %d: want 0 (no limit) or more", f.MaxAttemptsPerRunner)
	case f.DrainTimeout < 0:
		return fmt.Errorf("--drain-timeout %s: want 0 or more", f.DrainTimeout)
	}
	return nil
}

func (f *serverFlags) validateTimes(r role) error {
	if r != roleUp && r != roleDispatcher {
		return nil
	}
	switch {
	case f.Heartbeat < minHeartbeat:
		return fmt.Errorf("--heartbeat %s: want at least %s", f.Heartbeat, minHeartbeat)
	case f.Lease <= missedBeats*f.Heartbeat:
		return fmt.Errorf("--lease %s with --heartbeat %s: the lease must outlast %d missed heartbeats; want more than %s",
			f.Lease, f.Heartbeat, missedBeats, missedBeats*f.Heartbeat)
	case f.StreamAge != 0 && f.StreamAge < f.Lease:
		return fmt.Errorf("--stream-age %s: want 0 (never), or at least --lease (%s)", f.StreamAge, f.Lease)
	case f.ReconnectGrace < 0 || f.ReconnectGrace >= f.Lease:
		return fmt.Errorf("--reconnect-grace %s: want from 0 to less than --lease (%s)", f.ReconnectGrace, f.Lease)
	}
	return nil
}

func (f *serverFlags) validateAPI(r role) error {
	if f.MaxPayload < task.MinPayloadLimit || f.MaxPayload > task.MaxPayloadLimit {
		return fmt.Errorf("--max-payload %s: want %s to %s; keep larger data in a file or an object store and pass its name",
			exactBytes(f.MaxPayload), formatBytes(task.MinPayloadLimit), formatBytes(task.MaxPayloadLimit))
	}
	if r != roleWorker && f.Retention < time.Second {
		return fmt.Errorf("--retention %s: want at least 1s, or nobody could fetch a result", f.Retention)
	}
	if r == roleWorker {
		return nil
	}
	switch {
	case f.MaxRetries < 0 || f.MaxRetries > task.MaxRetriesLimit:
		return fmt.Errorf("--max-retries %d: want 0 to %d", f.MaxRetries, task.MaxRetriesLimit)
	case f.TaskTimeout < 0:
		return fmt.Errorf("--task-timeout %s: want 0 (none) or more", f.TaskTimeout)
	case r != roleDispatcher && f.RESTCreatedStatus != 200 && f.RESTCreatedStatus != 201:
		return fmt.Errorf("--rest-created-status %d: want 200 or 201", f.RESTCreatedStatus)
	}
	return nil
}

func (f *serverFlags) validateWorker(r role) error {
	if r != roleWorker {
		return nil
	}
	if len(f.Dispatchers) == 0 {
		return fmt.Errorf("--dispatcher is empty: want HOST:PORT of at least one")
	}
	for _, d := range f.Dispatchers {
		if _, err := dialaddr.Check(d); err != nil {
			return fmt.Errorf("--dispatcher: %w", err)
		}
	}
	if len(f.Queues) == 0 {
		return fmt.Errorf("--queues is empty: want at least one")
	}
	if err := worker.CheckQueues(f.Queues); err != nil {
		return fmt.Errorf("--queues: %w", err)
	}
	return nil
}
