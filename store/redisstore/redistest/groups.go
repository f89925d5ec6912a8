package redistest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// StartReplica starts a replica of a server and returns once it is in step.
func StartReplica(t TB, primary *Server, config ...string) *Server {
	t.Helper()
	s := Start(t, append([]string{"--replicaof", "127.0.0.1 " + strconv.Itoa(primary.Port)}, config...)...)
	if err := AwaitReplica(s); err != nil {
		t.Fatalf("%v", err)
	}
	return s
}

// AwaitReplica returns once a server is a replica in step with its primary.
func AwaitReplica(s *Server) error {
	c := s.Client()
	defer c.Close()
	return Await("the replica is in step", func(ctx context.Context) bool {
		text, err := c.Info(ctx, "replication").Result()
		if err != nil || !strings.Contains(text, "master_link_status:up") {
			return false
		}
		// The primary counts it from its first acknowledgement on.
		_, port, _ := strings.Cut(text, "master_port:")
		port, _, _ = strings.Cut(port, "\r\n")
		p := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, DisableIdentity: true})
		defer p.Close()
		text, err = p.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(text, fmt.Sprintf("port=%d,state=online", s.Port))
	})
}

// Poll waits for what no event announces, such as the state of another process.
func Poll(t TB, what string, ok func(context.Context) bool) {
	t.Helper()
	if err := Await(what, ok); err != nil {
		t.Fatalf("%v", err)
	}
}

// Await is Poll for goroutines that must not end the test.
func Await(what string, ok func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not in time: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Cluster is a Redis Cluster of three primaries with a replica each.
type Cluster struct {
	Nodes []*Server
}

// URL is the store URL of the cluster with that query ("" for none).
func (c *Cluster) URL(query string) string {
	var addrs []string
	for _, n := range c.Nodes {
		addrs = append(addrs, n.Addr)
	}
	url := "redis+cluster://" + strings.Join(addrs, ",")
	if query != "" {
		url += "?" + query
	}
	return url
}

// Node returns the node that listens there, or nil.
func (c *Cluster) Node(addr string) *Server {
	for _, n := range c.Nodes {
		if n.Addr == addr {
			return n
		}
	}
	return nil
}

// StartCluster starts six nodes and joins them.
func StartCluster(t TB, config ...string) *Cluster {
	t.Helper()
	c := &Cluster{}
	var addrs []string
	for range 6 {
		n := Start(t, append([]string{
			"--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-announce-ip", "127.0.0.1",
			// The bus stands 10000 above the port unless it is named, which may be no port at all.
			"--cluster-port", strconv.Itoa(mustFreePort(t)),
		}, config...)...)
		c.Nodes = append(c.Nodes, n)
		addrs = append(addrs, n.Addr)
	}
	args := append([]string{"--cluster", "create"}, addrs...)
	args = append(args, "--cluster-replicas", "1", "--cluster-yes")
	out, err := exec.Command("redis-cli", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli --cluster create: %v\n%s", err, out)
	}
	for _, n := range c.Nodes {
		cl := n.Client()
		Poll(t, "the cluster is complete", func(ctx context.Context) bool {
			info, err := cl.ClusterInfo(ctx).Result()
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:6") {
				return false
			}
			repl, err := cl.Info(ctx, "replication").Result()
			return err == nil && (strings.Contains(repl, "master_link_status:up") || strings.Contains(repl, "state=online"))
		})
		_ = cl.Close() // Only used to look.
	}
	return c
}

// MoveSlot moves the slot of a key from the primary that owns it to another one, a few keys
// at a time.
func MoveSlot(ctx context.Context, c *Cluster, key string) error {
	var primaries []*redis.Client
	for _, n := range c.Nodes {
		cl := n.Client()
		defer cl.Close()
		if text, err := cl.Info(ctx, "replication").Result(); err == nil && strings.Contains(text, "role:master") {
			primaries = append(primaries, cl)
		}
	}
	slot, err := primaries[0].ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return err
	}
	var from, to *redis.Client
	var fromID, toID string
	for _, p := range primaries {
		id, err := p.ClusterMyID(ctx).Result()
		if err != nil {
			return err
		}
		// Only the owner says that it holds the slot's keys.
		if keys, err := p.ClusterGetKeysInSlot(ctx, int(slot), 1).Result(); err == nil && len(keys) > 0 {
			from, fromID = p, id
		} else {
			to, toID = p, id
		}
	}
	if from == nil || to == nil {
		return fmt.Errorf("nobody owns the slot %d of %q, or nobody else could", slot, key)
	}
	if err := to.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err(); err != nil {
		return err
	}
	if err := from.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err(); err != nil {
		return err
	}
	host, port, _ := strings.Cut(to.Options().Addr, ":")
	for {
		keys, err := from.ClusterGetKeysInSlot(ctx, int(slot), 3).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", host, port, "", 0, 5000, "KEYS"}
		for _, k := range keys {
			args = append(args, k)
		}
		if err := from.Do(ctx, args...).Err(); err != nil {
			return err
		}
	}
	for _, p := range []*redis.Client{to, from} {
		if err := p.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", toID).Err(); err != nil {
			return err
		}
	}
	for _, p := range primaries {
		if p != to && p != from {
			_ = p.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", toID).Err() // It hears of it anyway.
		}
	}
	return nil
}

func mustFreePort(t TB) int {
	t.Helper()
	port, err := FreePort()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return port
}

// Group is a primary with replicas that three Sentinels watch.
type Group struct {
	Master    string
	Servers   []*Server
	Sentinels []string
}

// URL is the store URL of the group with that query ("" for none).
func (g *Group) URL(query string) string {
	url := "redis+sentinel://" + strings.Join(g.Sentinels, ",") + "/" + g.Master
	if query != "" {
		url += "?" + query
	}
	return url
}

// Primary asks the Sentinels which server is the primary at present.
func (g *Group) Primary(t TB) *Server {
	t.Helper()
	c := redis.NewSentinelClient(&redis.Options{Addr: g.Sentinels[0]})
	defer c.Close()
	addr, err := c.GetMasterAddrByName(context.Background(), g.Master).Result()
	if err != nil || len(addr) != 2 {
		t.Fatalf("sentinel: %v, %v", addr, err)
	}
	for _, s := range g.Servers {
		if strconv.Itoa(s.Port) == addr[1] {
			return s
		}
	}
	t.Fatalf("sentinel names %v, which is none of ours", addr)
	return nil
}

// StartGroup starts a primary, two replicas and three Sentinels that fail over after
// downAfter.
func StartGroup(t TB, downAfter time.Duration, config ...string) *Group {
	t.Helper()
	g := &Group{Master: "treadle"}
	primary := Start(t, config...)
	g.Servers = []*Server{primary}
	for range 2 {
		g.Servers = append(g.Servers, StartReplica(t, primary, config...))
	}
	for range 3 {
		g.Sentinels = append(g.Sentinels, startSentinel(t, g.Master, primary, downAfter))
	}
	for _, addr := range g.Sentinels {
		c := redis.NewSentinelClient(&redis.Options{Addr: addr})
		Poll(t, "the Sentinels know each other", func(ctx context.Context) bool {
			m, err := c.Master(ctx, g.Master).Result()
			return err == nil && m["num-other-sentinels"] == "2" && m["num-slaves"] == "2"
		})
		_ = c.Close() // Only used to look.
	}
	return g
}

func startSentinel(t TB, master string, primary *Server, downAfter time.Duration) string {
	t.Helper()
	dir, port := t.TempDir(), mustFreePort(t)
	conf := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nlogfile %s\nsentinel monitor %s 127.0.0.1 %d 2\n"+
		"sentinel down-after-milliseconds %s %d\nsentinel failover-timeout %s 5000\nsentinel parallel-syncs %s 2\n",
		port, dir, filepath.Join(dir, "sentinel.log"), master, primary.Port, master, downAfter.Milliseconds(), master, master)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	path, err := binary()
	if err != nil {
		t.Fatalf("%v", err)
	}
	cmd := exec.Command(path, conf, "--sentinel")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatalf("start sentinel: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // However it ends, it is gone.
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL) // It may have ended by itself.
		<-done
	})
	return "127.0.0.1:" + strconv.Itoa(port)
}
