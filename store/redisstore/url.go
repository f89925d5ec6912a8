package redisstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Durability modes.
const (
	// Async: acknowledged means that the primary ran the script. A failover may lose the
	// last moments.
	Async = "redis-async"
	// Replicated: acknowledged means that a replica has it too.
	Replicated = "redis-replicated"
)

// kind is how the server is found.
type kind int

const (
	single kind = iota
	sentinel
	cluster
)

// address is what a store URL says.
type address struct {
	kind       kind
	addrs      []string
	master     string
	db         int
	user       string
	password   string
	tls        *tls.Config
	namespace  string
	replicated bool
	sentinelUser,
	sentinelPassword string
	// location is the URL without secrets.
	location string
}

// schemes of store URLs.
var schemes = map[string]struct {
	kind   kind
	secure bool
}{
	"redis": {single, false}, "rediss": {single, true}, "redis+sentinel": {sentinel, false}, "redis+cluster": {cluster, false},
	"rediss+sentinel": {sentinel, true}, "rediss+cluster": {cluster, true},
}

// IsURL says whether text names a store of this package.
func IsURL(text string) bool {
	scheme, _, ok := strings.Cut(text, "://")
	_, known := schemes[scheme]
	return ok && known
}

// CheckURL says why [Open] would refuse a store URL before it dials; nil when it would not.
// The error never shows a password.
func CheckURL(text string) error {
	a, err := parseURL(text)
	if err != nil || a.namespace == "" {
		return err
	}
	return checkNamespace(a.namespace)
}

// parseURL reads a store URL:
//
//	redis://[user:password@]host[:port][/db]            rediss:// with TLS
//	redis+sentinel://[user:password@]host[:port],.../master-name[/db]
//	redis+cluster://[user:password@]host[:port],...
//
// Query: durability (async or replicated), namespace, and for Sentinel sentinel_username
// and sentinel_password. An error never shows a password.
func parseURL(text string) (a address, err error) {
	scheme, rest, ok := strings.Cut(text, "://")
	s, known := schemes[scheme]
	if !ok || !known {
		return a, errors.New("the store URL must begin with redis://, rediss://, redis+sentinel:// or redis+cluster://")
	}
	a.kind = s.kind
	if misplaced(rest) {
		return a, errNotEncoded
	}
	rest, query, _ := strings.Cut(rest, "?")
	rest, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if a.user, a.password, err = credentials(rest[:i]); err != nil {
			return a, err
		}
		rest = rest[i+1:]
	}
	port := "6379"
	if a.kind == sentinel {
		port = "26379"
	}
	if a.addrs, err = hosts(rest, port); err != nil {
		return a, err
	}
	if a.kind == single && len(a.addrs) > 1 {
		return a, errors.New("the store URL names several servers: use redis+sentinel:// or redis+cluster://")
	}
	if err = a.readPath(path); err != nil {
		return a, err
	}
	if s.secure {
		a.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		if host, _, err := net.SplitHostPort(a.addrs[0]); err == nil && a.kind == single {
			a.tls.ServerName = host
		}
	}
	a.location = scheme + "://" + strings.Join(a.addrs, ",")
	if path != "" {
		a.location += "/" + path
	}
	return a, a.readQuery(query)
}

// errNotEncoded shows nothing of what may be a password.
var errNotEncoded = errors.New("user or password in the store URL is not percent-encoded as it should be")

// misplaced says that what stands before an @ holds a character that ends the user and the
// password: what comes after it would be taken for a host, a path or a query, and shown.
func misplaced(rest string) bool {
	i := strings.IndexAny(rest, "/?#")
	if i < 0 || !strings.Contains(rest[i:], "@") {
		return false
	}
	// Values of the query alone may hold one.
	path, query, _ := strings.Cut(rest, "?")
	if strings.ContainsAny(path, "#") || strings.Contains(path[min(i, len(path)):], "@") {
		return true
	}
	for field := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(field, "="); !slices.Contains(parameters, name) {
			return true
		}
	}
	return false
}

// parameters are those of a store URL.
var parameters = []string{"durability", "namespace", "sentinel_username", "sentinel_password"}

func credentials(text string) (user, password string, err error) {
	user, password, _ = strings.Cut(text, ":")
	if user, err = url.PathUnescape(user); err == nil {
		password, err = url.PathUnescape(password)
	}
	if err != nil {
		return "", "", errNotEncoded
	}
	return user, password, nil
}

// hosts reads a list of hosts and adds the port where it is missing.
func hosts(text, port string) (list []string, err error) {
	for one := range strings.SplitSeq(text, ",") {
		host, p, err := net.SplitHostPort(one)
		if err != nil {
			host, p = strings.Trim(one, "[]"), port
		}
		if host == "" {
			host = "localhost"
		}
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			// Not shown: without an @ it may be a password.
			return nil, errors.New("a port in the store URL is not a number from 1 to 65535")
		}
		list = append(list, net.JoinHostPort(host, p))
	}
	return list, nil
}

func (a *address) readPath(path string) (err error) {
	parts := slices.DeleteFunc(strings.Split(path, "/"), func(p string) bool { return p == "" })
	if a.kind == sentinel {
		if len(parts) == 0 {
			return errors.New("the store URL names no master: redis+sentinel://host:port,host:port/master-name")
		}
		a.master, parts = parts[0], parts[1:]
	}
	if len(parts) == 0 {
		return nil
	}
	if a.db, err = strconv.Atoi(parts[0]); err != nil || a.db < 0 || len(parts) > 1 {
		return errors.New("the database in the store URL is not a number: want redis://HOST:PORT/NUMBER")
	}
	if a.kind == cluster && a.db != 0 {
		return errors.New("a Redis Cluster has database 0 only")
	}
	return nil
}

func (a *address) readQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("the query of the store URL is malformed, or not percent-encoded as it should be")
	}
	for name, v := range values {
		value := v[len(v)-1]
		switch name {
		case "durability":
			switch value {
			case "async":
			case "replicated":
				a.replicated = true
				a.location += "?durability=replicated"
			default:
				return fmt.Errorf("durability=%s in the store URL: want async or replicated", value)
			}
		case "namespace":
			a.namespace = value
		case "sentinel_username":
			a.sentinelUser = value
		case "sentinel_password":
			a.sentinelPassword = value
		default:
			return fmt.Errorf("the store URL has an unknown parameter: want %s", strings.Join(parameters, ", "))
		}
	}
	return nil
}

// options are what all connections have in common.
func (a *address) options(poolSize int) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs: a.addrs, MasterName: a.master, DB: a.db, Username: a.user, Password: a.password, TLSConfig: a.tls,
		SentinelUsername: a.sentinelUser, SentinelPassword: a.sentinelPassword, IsClusterMode: a.kind == cluster,
		PoolSize: poolSize,
	}
}
