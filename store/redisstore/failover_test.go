package redisstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/store/storetest"
	"github.com/treadle-dev/treadle/task"
)

// The suite again where every change waits for a replica.
func TestConformanceReplicated(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	redistest.StartReplica(t, primary)
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		h := newFixture(t, func(o *Options) { o.URL = primary.URL("durability=replicated") }).harness()
		h.Keys = nil
		return h
	})
}

// A Cluster of six nodes: no script crosses slots, each shard is on one node, and a node
// that dies or a slot that moves costs a retry.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	t.Run("Conformance", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.URL = c.URL("") }).harness()
			h.Keys = nil
			return h
		})
	})
	for _, mode := range []string{"async", "replicated"} {
		t.Run("Shards "+mode, func(t *testing.T) {
			f := newFixture(t, func(o *Options) { o.URL = c.URL("durability=" + mode); o.Shards = 16 })
			walkShards(t, f.s, f.clock)
		})
	}
	t.Run("DeletionInShards", func(t *testing.T) {
		storetest.RunDeletion(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.URL = c.URL(""); o.Shards = 16 }).harness()
			h.Keys = nil
			return h
		})
	})
	t.Run("UsageOfShards", func(t *testing.T) {
		storetest.RunUsage(t, func(t *testing.T) storetest.Harness {
			h := newFixture(t, func(o *Options) { o.URL = c.URL(""); o.Shards = 16 }).harness()
			h.Keys = nil
			return h
		})
	})
	for _, mode := range []string{"async", "replicated"} {
		t.Run("PrimaryKilled "+mode, func(t *testing.T) { killPrimary(t, c, mode) })
		t.Run("SlotMoved "+mode, func(t *testing.T) { moveSlot(t, c, mode) })
	}
}

// moveSlot moves the slot of a store's shard to another node, key by key, while tasks are
// submitted, claimed and settled. Calls may fail meanwhile; nothing may be done by halves.
func moveSlot(t *testing.T, c *redistest.Cluster, mode string) {
	s := live(t, c.URL("durability="+mode), func(o *Options) { o.OfferLease = -1 })
	done := make(chan struct{})
	var acked, settled []task.ID
	var failed int
	// Enough that the move takes a while.
	for range 15 {
		var items []store.Submission
		for range 100 {
			items = append(items, submission([]byte("x")))
			acked = append(acked, items[len(items)-1].Task.ID)
		}
		if _, err := s.Submit(t.Context(), time.Now(), items); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			it := keyed(fmt.Sprint("k", i), []byte("x"))
			if _, err := s.Submit(t.Context(), time.Now(), []store.Submission{it}); err != nil {
				failed++
			} else {
				acked = append(acked, it.Task.ID)
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			got, err := s.Claim(t.Context(), time.Now(), []store.ClaimRequest{request(3)})
			if err != nil {
				continue
			}
			for _, c := range got[0] {
				v, err := s.Settle(t.Context(), time.Now(), []store.Settlement{
					{Token: c.Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1")}, Log: []byte("out")},
				})
				if err == nil && v[0] == task.VerdictRecorded {
					settled = append(settled, c.Token.Task)
				}
			}
		}
	})
	for range 2 {
		if err := redistest.MoveSlot(t.Context(), c, s.keys(0).named(keyMeta)); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	t.Logf("%d submissions acknowledged, %d failed, %d results", len(acked), failed, len(settled))
	if len(acked) <= 1500 || len(settled) == 0 {
		t.Error("the move and the calls did not meet")
	}
	got, err := s.Tasks(t.Context(), acked)
	if err != nil {
		t.Fatal(err)
	}
	for i, tk := range got {
		if tk == nil {
			t.Errorf("the acknowledged task %d was lost", i)
		}
	}
	got, err = s.Tasks(t.Context(), settled)
	if err != nil {
		t.Fatal(err)
	}
	for i, tk := range got {
		if tk == nil || tk.Status != task.Completed {
			t.Errorf("the recorded result %d was lost: %+v", i, tk)
		}
	}
	mustCheck(t, s)
}

// killPrimary kills the node that owns a store's shard while tasks are submitted, and
// brings it back as a replica once another one has taken its place.
func killPrimary(t *testing.T, c *redistest.Cluster, mode string) {
	s := live(t, c.URL("durability="+mode), func(o *Options) { o.OfferLease = -1 })
	key := s.keys(0).named(keyMeta)
	owner, err := s.cluster.MasterForKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	node := c.Node(owner.Options().Addr)
	var wg sync.WaitGroup
	defer wg.Wait()
	submitMany(t, s, func() {
		node.Kill()
		wg.Go(func() {
			err := redistest.Await("both pools have found the replica that took over", func(ctx context.Context) bool {
				// Of themselves: whoever asked for it here would hide that nobody else does.
				for _, pool := range []redis.UniversalClient{s.reads, s.writes} {
					now, err := pool.(*redis.ClusterClient).MasterForKey(ctx, key)
					if err != nil || now.Options().Addr == node.Addr {
						_, _ = s.Function(ctx, task.ID{}) // what servers ask all the time
						return false
					}
				}
				return true
			})
			if err == nil {
				err = node.Run()
			}
			if err == nil {
				err = redistest.AwaitReplica(node)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}, mode == "replicated")
}

// submitMany submits tasks one by one with a fault in between, each until it is
// acknowledged, and counts what was lost.
func submitMany(t *testing.T, s *Store, fault func(), strict bool) {
	t.Helper()
	var acked []task.ID
	var gap time.Duration
	for i := range 600 {
		if i == 200 {
			fault()
		}
		it := keyed(fmt.Sprint("k", i), []byte("x"))
		begin := time.Now()
		redistest.Poll(t, fmt.Sprint("submission ", i), func(ctx context.Context) bool {
			got, err := s.Submit(ctx, time.Now(), []store.Submission{it})
			if err == nil && got[0].Err != nil {
				t.Fatal(got[0].Err)
			}
			return err == nil
		})
		gap = max(gap, time.Since(begin))
		acked = append(acked, it.Task.ID)
	}
	got, err := s.Tasks(t.Context(), acked)
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, tk := range got {
		if tk == nil {
			lost++
		}
	}
	t.Logf("%d of %d acknowledged tasks were lost, the longest gap was %s", lost, len(acked), gap)
	if lost > 0 && strict {
		t.Errorf("%d acknowledged tasks were lost", lost)
	}
	mustCheck(t, s)
}

// A Sentinel failover: submissions stop for a moment, and nothing acknowledged is lost in
// the replicated mode.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	g := redistest.StartGroup(t, time.Second)
	s := live(t, g.URL("durability=replicated"), func(o *Options) { o.OfferLease = -1 })
	submitMany(t, s, func() { g.Primary(t).Kill() }, true)
}
