package redisstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// permitted refuses a user of Redis who may not run what the store needs: found at the
// start it is a setting to change, found later it would look like an outage. The commands
// themselves are tried, on keys that are removed again: that works on every version and
// needs no right to ask for rights, as ACL DRYRUN would.
func (s *Store) permitted(ctx context.Context) error {
	wait := "0"
	if s.cfg.replicated {
		wait = "1"
	}
	probe := s.any.named(keyProbe) + fmt.Sprintf("%016x:", s.probe)
	v, err := redis.NewScript(readScript("permissions")).Run(ctx, s.writes, []string{probe}, s.any.named(keyProbe), wait).StringSlice()
	if err != nil {
		return err
	}
	var refused []string
	for pair := range slices.Chunk(v, 2) {
		refused = append(refused, strings.ToLower(pair[0]))
	}
	if len(refused) > 0 {
		return refuse("the user of the store URL may not run %s on the keys and channels {%s*: give it the permissions that docs/security.md lists (%s)",
			strings.Join(refused, ", "), s.opts.Namespace, v[1])
	}
	if s.cfg.replicated {
		return s.writes.Do(ctx, "WAIT", 0, 1).Err()
	}
	return nil
}

// notPermitted says that the server knows who we are and does not allow a command: in its
// own words, which differ between versions and inside of scripts.
func notPermitted(err error) bool {
	if redis.HasErrorPrefix(err, "NOPERM") {
		return true
	}
	text := err.Error()
	for _, words := range []string{"ACL failure in script", "can't run this command", "NOPERM "} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}
