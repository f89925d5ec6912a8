// Package cluster runs Treadle as users run it: the real binary, one process for each
// role, on addresses of its own, with a link of its own from each process to the next.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/chaos/netfault"
	"github.com/treadle-dev/treadle/chaos/sandbox"
	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/store/storetap"
)

// Spec is what to run.
type Spec struct {
	// Store is embedded, redis, replicated, sentinel or cluster; Durability that of a
	// Redis, empty for what fits the store.
	Store      string
	Durability string
	// Mode is push, pull or mixed.
	Mode string
	// Binary is the program, Python the workers' interpreter, Dir where everything goes.
	Binary, Python, Dir string
	Workers, Slots      int
	// Lease and Retention are the product's defaults when zero.
	Lease, Retention time.Duration
	DrainTimeout     time.Duration
	// Args are more arguments by process name; "worker", "dispatcher", "server" and "up"
	// stand for all of the role. Env and Once are variables, FDs limits by name.
	Args map[string][]string
	Env  map[string][]string
	Once map[string][]string
	FDs  map[string]int
	// UID runs a process as another user, Sentinels limits those that it is told of.
	UID       map[string]int
	Sentinels map[string][]int
	// RedisConfig is added to the servers' configuration.
	RedisConfig []string
	// DataSize puts the embedded store on a disk of that many bytes.
	DataSize int64
	// Tap has the processes write down what they do to the store.
	Tap bool
}

// Roles of processes.
const (
	RoleUp         = "up"
	RoleServer     = "server"
	RoleDispatcher = "dispatcher"
	RoleWorker     = "worker"
)

// Cluster is what runs.
type Cluster struct {
	Spec
	Redis *Redis
	// Front answers clients; Dispatchers take workers. On the embedded store both are up.
	Front       *Process
	Dispatchers []*Process
	Workers     []*Process
	// Fleet are the links from workers to dispatchers by "worker-1/dispatcher-1", Clients
	// those from clients to the server, Stores those from servers to a single Redis.
	Fleet, Clients, Stores map[string]*netfault.Proxy
	// Firewall is nil where packets cannot be dropped.
	Firewall *netfault.Firewall
	// NoFirewall says why there is none.
	NoFirewall string

	spawner *spawner
	// grpcAddr and httpAddr are fixed, so that a process is found again.
	grpcAddr, httpAddr map[string]string
	clients            []*client
	mounted            string
	api                *treadle.Client
}

// client is a client process.
type client struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}
	err  error
}

// Launch starts everything and returns when all workers are attached.
func Launch(ctx context.Context, spec Spec) (c *Cluster, err error) {
	c = &Cluster{
		Spec: spec, spawner: newSpawner(), grpcAddr: map[string]string{}, httpAddr: map[string]string{},
		Fleet: map[string]*netfault.Proxy{}, Clients: map[string]*netfault.Proxy{}, Stores: map[string]*netfault.Proxy{},
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := os.MkdirAll(c.HistoryDir(), 0o777); err != nil {
		return c, err
	}
	// A process of another user writes its history there too.
	if err := errors.Join(os.Chmod(c.Dir, 0o755), os.Chmod(c.HistoryDir(), 0o777)); err != nil {
		return c, err
	}
	if c.NoFirewall = sandbox.Why(); c.NoFirewall == "" {
		if c.Firewall, err = netfault.NewFirewall(); err != nil {
			c.NoFirewall = err.Error()
		}
	}
	if spec.Store == "embedded" {
		err = c.startUp()
	} else {
		err = c.startRoles()
	}
	if err == nil {
		err = c.startWorkers()
	}
	if err == nil {
		c.api, err = treadle.Dial(c.grpcAddr[c.Front.Name], treadle.WithUserAgent("treadle-chaos-harness"))
	}
	if err == nil {
		err = c.AwaitWorkers(ctx, spec.Workers)
	}
	return c, err
}

// HistoryDir holds the histories of all processes.
func (c *Cluster) HistoryDir() string { return filepath.Join(c.Dir, "history") }

// Ledger is the file that the functions write into.
func (c *Cluster) Ledger() string { return filepath.Join(c.HistoryDir(), "ledger.jsonl") }

// FrontAddr is where the server answers gRPC.
func (c *Cluster) FrontAddr() string { return c.grpcAddr[c.Front.Name] }

// StoreLinks are those to a single Redis.
func (c *Cluster) StoreLinks() (list []*netfault.Proxy) {
	for _, p := range c.Stores {
		list = append(list, p)
	}
	return list
}

// API is the harness's own client, which no fault strikes.
func (c *Cluster) API() *treadle.Client { return c.api }

// HTTP is the address of a process's HTTP port.
func (c *Cluster) HTTP(name string) string { return c.httpAddr[name] }

// Processes lists all but the clients.
func (c *Cluster) Processes() []*Process {
	list := append([]*Process{c.Front}, c.Workers...)
	for _, d := range c.Dispatchers {
		if d != c.Front {
			list = append(list, d)
		}
	}
	return list
}

// Process finds one by its name.
func (c *Cluster) Process(name string) *Process {
	for _, p := range c.Processes() {
		if p.Name == name {
			return p
		}
	}
	panic("no process is called " + name)
}

// process makes one with what the spec says of its name and role.
func (c *Cluster) process(role string, n int, args ...string) *Process {
	name := role
	if role != RoleUp && role != RoleServer {
		name = fmt.Sprintf("%s-%d", role, n)
	}
	p := &Process{
		Name: name, program: c.Binary, dir: c.Dir, spawner: c.spawner, Args: args,
		Env: []string{"GOTRACEBACK=all"}, UID: c.UID[name], FDs: c.FDs[name],
	}
	if c.Tap {
		p.Env = append(p.Env, storetap.EnvHistory+"="+c.HistoryDir())
	}
	for _, who := range []string{role, name} {
		p.Args = append(p.Args, c.Args[who]...)
		p.Env = append(p.Env, c.Env[who]...)
		p.Once = append(p.Once, c.Once[who]...)
		if role == name {
			break
		}
	}
	return p
}

// address gives a process its ports, on an address of its own.
func (c *Cluster) address(name, ip string) (grpcAddr, httpAddr string, err error) {
	for _, m := range []map[string]string{c.grpcAddr, c.httpAddr} {
		port, err := freePort(ip)
		if err != nil {
			return "", "", err
		}
		m[name] = ip + ":" + strconv.Itoa(port)
	}
	return c.grpcAddr[name], c.httpAddr[name], nil
}

func (c *Cluster) times(role string) (args []string) {
	if c.Lease != 0 && role != RoleServer {
		args = append(args, "--lease", c.Lease.String())
	}
	if c.Retention != 0 {
		args = append(args, "--retention", c.Retention.String())
	}
	return args
}

// startUp starts everything but the workers as one process on the embedded store.
func (c *Cluster) startUp() error {
	grpcAddr, httpAddr, err := c.address(RoleUp, "127.0.1.1")
	if err != nil {
		return err
	}
	data := filepath.Join(c.Dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	if c.DataSize > 0 {
		if err := syscall.Mount("tmpfs", data, "tmpfs", 0, fmt.Sprintf("size=%d", c.DataSize)); err != nil {
			return fmt.Errorf("a small disk needs root: mount tmpfs: %w", err)
		}
		c.mounted = data
	}
	c.Front = c.process(RoleUp, 0, append([]string{"up", "--slots", "0", "--grpc-addr", grpcAddr, "--http-addr", httpAddr,
		"--data-dir", data, "--json", "--log-format", "json"}, c.times(RoleUp)...)...)
	c.Dispatchers = []*Process{c.Front}
	return c.Front.Start()
}

// durability is what the store promises unless the spec says otherwise.
func (c *Cluster) durability() string {
	switch {
	case c.Durability != "":
		return c.Durability
	case c.Spec.Store == "redis":
		return ""
	default:
		return "replicated"
	}
}

// Promise is what the store promises, as the API calls it.
func (c *Cluster) Promise() string {
	if c.Spec.Store == "embedded" {
		return "embedded"
	}
	if d := c.durability(); d == "replicated" {
		return "redis-replicated"
	}
	return "redis-async"
}

// storeURL is how a process reaches the store: a single server through a link of its own.
func (c *Cluster) storeURL(name string, n int) (string, error) {
	via := ""
	if c.Spec.Store == "redis" || c.Spec.Store == "replicated" {
		p, err := netfault.Listen(fmt.Sprintf("127.0.5.%d", n), c.Redis.Servers[0].Addr)
		if err != nil {
			return "", err
		}
		c.Stores[name], via = p, p.Addr
	}
	return c.Redis.URL(c.durability(), via, c.Sentinels[name]...), nil
}

// StoreURL is the store as the harness reaches it.
func (c *Cluster) StoreURL() string { return c.Redis.URL(c.durability(), "") }

// startRoles starts a Redis, a server and two dispatchers.
func (c *Cluster) startRoles() (err error) {
	dir := filepath.Join(c.Dir, "redis")
	if c.Redis, err = StartRedis(c.Spec.Store, dir, c.spawner, c.RedisConfig...); err != nil {
		return err
	}
	for i := range 3 {
		role, ip := RoleDispatcher, fmt.Sprintf("127.0.1.%d", 10+i)
		name := fmt.Sprintf("%s-%d", role, i)
		if i == 0 {
			role, name, ip = RoleServer, RoleServer, "127.0.1.1"
		}
		grpcAddr, httpAddr, err := c.address(name, ip)
		if err != nil {
			return err
		}
		url, err := c.storeURL(name, i+1)
		if err != nil {
			return err
		}
		p := c.process(role, i, append([]string{role, "--store", url, "--grpc-addr", grpcAddr, "--http-addr", httpAddr,
			"--json", "--log-format", "json"}, c.times(role)...)...)
		if i == 0 {
			c.Front = p
		} else {
			c.Dispatchers = append(c.Dispatchers, p)
		}
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startWorkers() error {
	for i := 1; i <= c.Spec.Workers; i++ {
		var addrs []string
		for j := range c.Dispatchers {
			// They prefer different dispatchers, as a balancer would have it.
			d := c.Dispatchers[(i+j)%len(c.Dispatchers)]
			link, err := netfault.Listen(fmt.Sprintf("127.0.2.%d", 10*i+j), c.grpcAddr[d.Name])
			if err != nil {
				return err
			}
			c.Fleet[fmt.Sprintf("worker-%d/%s", i, d.Name)] = link
			addrs = append(addrs, link.Addr)
		}
		mode := c.Mode
		if mode == "mixed" {
			mode = []string{"push", "pull"}[i%2]
		}
		drain := c.DrainTimeout
		if drain == 0 {
			drain = 5 * time.Second
		}
		name := fmt.Sprintf("%s-%d", RoleWorker, i)
		_, httpAddr, err := c.address(name, fmt.Sprintf("127.0.1.%d", 20+i))
		if err != nil {
			return err
		}
		p := c.process(RoleWorker, i, "worker",
			"--http-addr", httpAddr, "--dispatcher", strings.Join(addrs, ","), "--mode", mode, "--slots", strconv.Itoa(c.Slots),
			"--name", name, "--data-dir", filepath.Join(c.Dir, name), "--python", c.Python,
			"--drain-timeout", drain.String(), "--json", "--log-format", "json")
		c.Workers = append(c.Workers, p)
	}
	errs := make([]error, len(c.Workers))
	var wg sync.WaitGroup
	for i, p := range c.Workers {
		wg.Go(func() { errs[i] = p.Start() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Links are those of a worker to all dispatchers, or of all workers to a dispatcher.
func (c *Cluster) Links(name string) (list []*netfault.Proxy) {
	for pair, p := range c.Fleet {
		worker, dispatcher, _ := strings.Cut(pair, "/")
		if worker == name || dispatcher == name {
			list = append(list, p)
		}
	}
	return list
}

// AllLinks are those of the fleet, of the clients and to the store.
func (c *Cluster) AllLinks() (list []*netfault.Proxy) {
	for _, m := range []map[string]*netfault.Proxy{c.Fleet, c.Clients, c.Stores} {
		for _, p := range m {
			list = append(list, p)
		}
	}
	return list
}

// Heal ends all faults of the network and thaws what is frozen.
func (c *Cluster) Heal() error {
	err := c.Firewall.Heal()
	for _, p := range c.AllLinks() {
		p.Set(netfault.Toxic{})
	}
	for _, p := range c.Processes() {
		if p.Running() {
			_ = p.Signal(syscall.SIGCONT) // it may end at this moment
		}
	}
	if c.Redis != nil {
		for _, s := range c.Redis.Servers {
			_ = s.Signal(syscall.SIGCONT) // the same
		}
	}
	return err
}

// Await asks again and again, as nothing announces what it waits for.
func Await(ctx context.Context, what string, limit time.Duration, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		done, err := ok(ctx)
		if err == nil && done {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("not within %s: %s", limit, what), last)
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// AwaitWorkers returns when that many workers are attached.
func (c *Cluster) AwaitWorkers(ctx context.Context, n int) error {
	return Await(ctx, fmt.Sprintf("%d workers are attached", n), 25*time.Second, func(ctx context.Context) (bool, error) {
		list, err := c.api.Workers(ctx)
		active := 0
		for _, w := range list {
			if w.State == "active" {
				active++
			}
		}
		return active >= n, err
	})
}

// StartClients starts client processes, each over a link of its own to the server; first
// is the number of the first one.
func (c *Cluster) StartClients(first, n int, seed uint64, function string, shape load.Shape) error {
	for i := first; i < first+n; i++ {
		name := fmt.Sprintf("client-%d", i)
		link, err := netfault.Listen(fmt.Sprintf("127.0.3.%d", i), c.grpcAddr[c.Front.Name])
		if err != nil {
			return err
		}
		c.Clients[name] = link
		cfg, err := json.Marshal(load.Config{
			Name: name, Address: link.Addr, History: filepath.Join(c.HistoryDir(), name+".jsonl"), Ledger: c.Ledger(),
			Seed: seed*100 + uint64(i), Function: function, Shape: shape,
		})
		if err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe", "client")
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		log, err := os.Create(filepath.Join(c.Dir, name+".log"))
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = log, log
		err = c.spawner.start(cmd)
		log.Close()
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		cl := &client{name: name, cmd: cmd, in: in, done: make(chan struct{})}
		go func() {
			defer close(cl.done)
			cl.err = cmd.Wait()
		}()
		c.clients = append(c.clients, cl)
		if _, err := in.Write(append(cfg, '\n')); err != nil {
			return fmt.Errorf("tell %s what to do: %w", name, err)
		}
	}
	return nil
}

// StopClients ends the load and returns when what was under way has ended.
func (c *Cluster) StopClients(limit time.Duration) error {
	var errs []error
	for _, cl := range c.clients {
		cl.in.Close()
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, cl := range c.clients {
		select {
		case <-cl.done:
		case <-timer.C:
			_ = cl.cmd.Process.Kill() // the loop waits for its end below
			<-cl.done
			errs = append(errs, fmt.Errorf("%s did not end within %s", cl.name, limit))
			continue
		}
		if cl.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w; see its log", cl.name, cl.err))
		}
	}
	c.clients = nil
	return errors.Join(errs...)
}

// AwaitClients returns when every client has done what it was told to.
func (c *Cluster) AwaitClients(ctx context.Context) error {
	for _, cl := range c.clients {
		select {
		case <-cl.done:
		case <-ctx.Done():
			return fmt.Errorf("%s has not done its work: %w", cl.name, ctx.Err())
		}
	}
	return nil
}

// StopAll ends all processes of Treadle, workers first, and says who did not end well.
func (c *Cluster) StopAll(limit time.Duration) error {
	var errs []error
	var wg sync.WaitGroup
	for _, p := range c.Workers {
		wg.Go(func() { _ = p.Stop(limit) }) // a worker that was cut off has nobody to hand back to
	}
	wg.Wait()
	for _, d := range c.Dispatchers {
		if d != c.Front {
			errs = append(errs, d.Stop(limit))
		}
	}
	if c.Front != nil {
		errs = append(errs, c.Front.Stop(limit))
	}
	return errors.Join(errs...)
}

// Close ends everything that still runs.
func (c *Cluster) Close() {
	for _, cl := range c.clients {
		_ = cl.cmd.Process.Kill() // it may have ended
		<-cl.done
	}
	c.clients = nil
	if c.api != nil {
		c.api.Close()
	}
	for _, p := range c.Workers {
		p.Kill()
	}
	for _, d := range c.Dispatchers {
		d.Kill()
	}
	if c.Front != nil {
		c.Front.Kill()
	}
	for _, p := range c.AllLinks() {
		p.Close()
	}
	if c.Redis != nil {
		c.Redis.Close()
	}
	_ = c.Firewall.Heal() // the network ends with the suite
	if c.mounted != "" {
		_ = syscall.Unmount(c.mounted, syscall.MNT_DETACH) // so do the mounts
		c.mounted = ""
	}
}
