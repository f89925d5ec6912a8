package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/store/redisstore/redistest"
)

// downAfter is when a Sentinel calls a primary dead.
const downAfter = time.Second

// Redis is what the state is kept in: one server, a primary with a replica, a group under
// Sentinels, or a Cluster.
type Redis struct {
	// Kind is redis, replicated, sentinel or cluster.
	Kind    string
	Servers []*redistest.Server
	// IPs are the servers' own addresses, SentinelIPs those of the Sentinels.
	IPs, SentinelIPs []string
	Sentinels        []string
	Cluster          *redistest.Cluster

	tb      *adapter
	spawner *spawner
}

const masterName = "treadle"

// adapter gives redistest what it wants of a test.
type adapter struct {
	dir string
	mu  sync.Mutex
	n   int
	fns []func()
}

// failure is how a helper of redistest ends its caller.
type failure struct{ err error }

func (*adapter) Helper()             {}
func (*adapter) Logf(string, ...any) {}
func (*adapter) Fatalf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

func (a *adapter) Cleanup(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fns = append(a.fns, f)
}

func (a *adapter) TempDir() string {
	a.mu.Lock()
	a.n++
	dir := filepath.Join(a.dir, fmt.Sprintf("node-%d", a.n))
	a.mu.Unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(failure{err})
	}
	return dir
}

// aof is how the servers keep their data: what was answered is on the disk. With a sync each
// second Redis may hold back for two seconds what it has answered, while the disk is busy.
var aof = []string{"--appendonly", "yes", "--appendfsync", "always"}

// StartRedis starts servers of that kind; Close ends them.
func StartRedis(kind, dir string, s *spawner, config ...string) (r *Redis, err error) {
	r = &Redis{Kind: kind, tb: &adapter{dir: dir}, spawner: s}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			err = p.err
		default:
			panic(p)
		}
		if err != nil {
			r.Close()
		}
	}()
	config = append(append([]string{}, aof...), config...)
	switch kind {
	case "redis":
		r.Servers = append(r.Servers, redistest.Start(r.tb, config...))
	case "replicated":
		primary := redistest.Start(r.tb, config...)
		r.Servers = append(r.Servers, primary, redistest.StartReplica(r.tb, primary, config...))
	case "sentinel":
		err = r.startGroup(config)
	case "cluster":
		r.Cluster = redistest.StartCluster(r.tb, config...)
		r.Servers = r.Cluster.Nodes
	default:
		err = fmt.Errorf("store %q: want embedded, redis, replicated, sentinel or cluster", kind)
	}
	return r, err
}

// startGroup starts a primary, two replicas and three Sentinels, each on an address of
// its own, so that what travels between them can be told apart.
func (r *Redis) startGroup(config []string) error {
	for i := range 3 {
		ip := fmt.Sprintf("127.0.4.%d", 1+i)
		own := append([]string{"--bind", "127.0.0.1 " + ip, "--bind-source-addr", ip, "--replica-announce-ip", ip,
			// An address of loopback other than 127.0.0.1 is a stranger to Redis.
			"--protected-mode", "no"}, config...)
		if i > 0 {
			own = append(own, "--replicaof", fmt.Sprintf("%s %d", r.IPs[0], r.Servers[0].Port))
		}
		s := redistest.Start(r.tb, own...)
		r.Servers, r.IPs = append(r.Servers, s), append(r.IPs, ip)
	}
	for i, s := range r.Servers[1:] {
		c := s.Client()
		err := redistest.Await(fmt.Sprintf("replica %d is in step", i+1), func(ctx context.Context) bool {
			text, err := c.Info(ctx, "replication").Result()
			return err == nil && strings.Contains(text, "master_link_status:up")
		})
		c.Close()
		if err != nil {
			return err
		}
	}
	for i := range 3 {
		if err := r.startSentinel(fmt.Sprintf("127.0.4.%d", 11+i)); err != nil {
			return err
		}
	}
	for _, addr := range r.Sentinels {
		c := redis.NewSentinelClient(&redis.Options{Addr: addr})
		err := redistest.Await("the Sentinels know each other", func(ctx context.Context) bool {
			m, err := c.Master(ctx, masterName).Result()
			return err == nil && m["num-other-sentinels"] == "2" && m["num-slaves"] == "2"
		})
		c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Redis) startSentinel(ip string) error {
	dir := r.tb.TempDir()
	port, err := freePort(ip)
	if err != nil {
		return err
	}
	conf := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("port %d\nbind %s\nprotected-mode no\nbind-source-addr %s\nsentinel announce-ip %s\nsentinel announce-port %d\ndir %s\nlogfile %s\n"+
		"sentinel monitor %s %s %d 2\nsentinel down-after-milliseconds %s %d\nsentinel failover-timeout %s 5000\nsentinel parallel-syncs %s 2\n",
		port, ip, ip, ip, port, dir, filepath.Join(dir, "sentinel.log"),
		masterName, r.IPs[0], r.Servers[0].Port, masterName, downAfter.Milliseconds(), masterName, masterName)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.Command("redis-server", conf, "--sentinel")
	cmd.Dir = dir
	if err := r.spawner.start(cmd); err != nil {
		return fmt.Errorf("start a sentinel: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // however it ends, it is gone
	}()
	r.tb.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-done
	})
	r.SentinelIPs = append(r.SentinelIPs, ip)
	r.Sentinels = append(r.Sentinels, net.JoinHostPort(ip, strconv.Itoa(port)))
	return nil
}

// freePort returns a port of that address that was free a moment ago.
func freePort(ip string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("a listener without a TCP address")
	}
	return addr.Port, nil
}

// URL is the store URL for a process; via replaces the address of a single server or
// primary, only limits the Sentinels that the process is told of.
func (r *Redis) URL(durability, via string, only ...int) string {
	query := ""
	if durability != "" {
		query = "?durability=" + durability
	}
	switch r.Kind {
	case "sentinel":
		list := r.Sentinels
		if len(only) > 0 {
			list = nil
			for _, i := range only {
				list = append(list, r.Sentinels[i])
			}
		}
		return "redis+sentinel://" + strings.Join(list, ",") + "/" + masterName + query
	case "cluster":
		return r.Cluster.URL(strings.TrimPrefix(query, "?"))
	default:
		if via == "" {
			via = r.Servers[0].Addr
		}
		return "redis://" + via + query
	}
}

// Primary returns the server that takes writes at present, as a majority of the Sentinels
// sees it; for a Cluster the first primary that answers.
func (r *Redis) Primary() (*redistest.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	switch r.Kind {
	case "sentinel":
		votes := map[string]int{}
		for _, addr := range r.Sentinels {
			c := redis.NewSentinelClient(&redis.Options{Addr: addr})
			got, err := c.GetMasterAddrByName(ctx, masterName).Result()
			c.Close()
			if err == nil && len(got) == 2 {
				votes[got[1]]++
			}
		}
		for _, s := range r.Servers {
			if votes[strconv.Itoa(s.Port)] >= 2 {
				return s, nil
			}
		}
		return nil, fmt.Errorf("the Sentinels do not agree: %v", votes)
	case "cluster":
		for _, s := range r.Servers {
			if role(ctx, s) == "master" {
				return s, nil
			}
		}
		return nil, errors.New("no primary answers")
	default:
		return r.Servers[0], nil
	}
}

func role(ctx context.Context, s *redistest.Server) string {
	c := s.Client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	text, err := c.Info(ctx, "replication").Result()
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(text, "role:")
	word, _, _ := strings.Cut(rest, "\r\n")
	return word
}

// Owner returns the Cluster's primary that holds the slot of a key.
func (r *Redis) Owner(ctx context.Context, key string) (*redistest.Server, error) {
	for _, s := range r.Servers {
		if role(ctx, s) != "master" {
			continue
		}
		c := s.Client()
		err := c.Exists(ctx, key).Err()
		c.Close()
		if err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no primary holds %q", key)
}

// AnyKey returns one of the store's keys in a Cluster.
func (r *Redis) AnyKey(ctx context.Context) (string, error) {
	for _, s := range r.Servers {
		if role(ctx, s) != "master" {
			continue
		}
		c := s.Client()
		key, err := c.RandomKey(ctx).Result()
		c.Close()
		if err == nil {
			return key, nil
		}
	}
	return "", errors.New("the cluster is empty")
}

// Keys counts the keys of all primaries.
func (r *Redis) Keys(ctx context.Context) (n int64, err error) {
	for _, s := range r.Servers {
		if role(ctx, s) != "master" {
			continue
		}
		c := s.Client()
		one, err := c.DBSize(ctx).Result()
		c.Close()
		if err != nil {
			return 0, err
		}
		n += one
	}
	return n, nil
}

// Close ends all servers.
func (r *Redis) Close() {
	r.tb.mu.Lock()
	fns := r.tb.fns
	r.tb.fns = nil
	r.tb.mu.Unlock()
	for i := len(fns) - 1; i >= 0; i-- {
		fns[i]()
	}
}
