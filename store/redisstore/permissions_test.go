package redisstore

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/redisstore/redistest"
	"github.com/treadle-dev/treadle/task"
)

// least is what docs/security.md lists.
var least = strings.Fields("+evalsha +eval +info +config|get +hello +ping +subscribe +publish +exists +get +set +del +rename +incr +hget +hset +hmget " +
	"+hdel +hlen +hvals +hexists +hgetall +hincrby +pexpire +persist +unlink +time +sadd +srem +smembers +zadd +zrem +zcard +zscore +zrange " +
	"+zrangebyscore +zrangebylex +zrevrangebylex +zremrangebyscore")

// TestPermissions: the documented set is enough, and one less is refused at the start, by name.
func TestPermissions(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	admin := srv.Client()
	defer admin.Close()
	grant := func(rules []string) {
		args := []any{"ACL", "SETUSER", "app", "reset", "on", ">pw", "~{n*", "&{n*"}
		for _, r := range rules {
			args = append(args, r)
		}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	url := "redis://app:pw@" + srv.Addr
	grant(least)
	s := live(t, url, func(o *Options) { o.Namespace, o.ClientName = "n", "treadle-test" })
	submitOne(t, s, submission([]byte("x")))
	held := claimSome(t, s, request(10))
	succeed(t, s, held[0].Token, []byte("y"))
	mustCheck(t, s)
	if keys, err := admin.Keys(t.Context(), "*"+keyProbe+"*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("the probe left %q, %v", keys, err)
	}
	for _, missing := range least {
		if missing == "+config|get" || missing == "+hello" || missing == "+ping" || missing == "+eval" || missing == "+incr" {
			continue // not needed on every way: a warning less, an older protocol, a cached script, another durability
		}
		grant(slices.DeleteFunc(slices.Clone(least), func(r string) bool { return r == missing }))
		begin := time.Now()
		s, err := Open(t.Context(), Options{URL: url, Namespace: "n", Logger: quiet})
		if err == nil {
			s.Close()
			t.Errorf("opened without %s", missing)
			continue
		}
		if !strings.Contains(err.Error(), "docs/security.md") || time.Since(begin) > 5*time.Second {
			t.Errorf("without %s: %v after %s", missing, err, time.Since(begin))
		}
		if word := strings.TrimPrefix(missing, "+"); !strings.Contains(strings.ToLower(err.Error()), word) {
			t.Errorf("without %s: %v does not name it", missing, err)
		}
	}
	// Later it is an error that no waiting mends, and no outage.
	grant(slices.DeleteFunc(slices.Clone(least), func(r string) bool { return r == "+zadd" }))
	_, err := s.Submit(t.Context(), time.Now(), []store.Submission{submission([]byte("x"))})
	if task.CodeOf(err) != task.CodeUnknown || !strings.Contains(err.Error(), "docs/security.md") {
		t.Errorf("a permission that was taken: %v", err)
	}
	grant(append(slices.Clone(least), "+client|setname"))
	named := live(t, url, func(o *Options) { o.Namespace, o.ClientName = "n", "treadle-test" })
	submitOne(t, named, submission([]byte("x")))
	if list, err := admin.ClientList(t.Context()).Result(); err != nil || !strings.Contains(list, "name=treadle-test") {
		t.Errorf("CLIENT LIST does not name the connections: %s, %v", list, err)
	}
}

// TestProbeIsComplete: every command of the scripts is tried at the start.
func TestProbeIsComplete(t *testing.T) {
	t.Parallel()
	tried := readScript("permissions")
	files, err := scriptFiles.ReadDir("scripts")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range least {
		if !strings.Contains(string(docs), rule) {
			t.Errorf("docs/security.md does not list %s", rule)
		}
	}
	command := regexp.MustCompile(`call\('([A-Z]+)'`)
	for _, f := range files {
		for _, m := range command.FindAllStringSubmatch(readScript(strings.TrimSuffix(f.Name(), ".lua")), -1) {
			if !strings.Contains(tried, "try('"+m[1]+"'") {
				t.Errorf("%s runs %s, which permissions.lua does not try", f.Name(), m[1])
			}
			if !slices.Contains(least, "+"+strings.ToLower(m[1])) {
				t.Errorf("%s runs %s, which docs/security.md does not list", f.Name(), m[1])
			}
		}
	}
}
