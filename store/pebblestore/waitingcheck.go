package pebblestore

import "slices"

// waiting checks the standing requests: each is where it is looked for, and none stands
// by a lane that has something ready.
func (c *checker) waiting() {
	w := &c.s.waiting
	members, dead := map[*post]int{}, map[*post]int{}
	requests, size, idleSize, wide := 0, 0, 0, 0
	for _, head := range w.groups {
		for g := head; g != nil; g = g.collides {
			requests += c.standGroup(g)
			if g.posts == nil {
				wide++
				continue
			}
			size += g.size
			if g.idle {
				idleSize += g.size
			}
			for _, p := range g.posts {
				members[p]++
			}
		}
	}
	claims := 0
	for _, st := range w.claims {
		for ; st != nil; st = st.same {
			claims++
		}
	}
	if requests != w.count || claims != w.count {
		c.fail("%d requests stand in groups, %d by their claim ids, counted %d", requests, claims, w.count)
	}
	if size != w.size || idleSize != w.idleSize || wide != len(w.wide) || size > w.maxSize || idleSize > w.maxIdle {
		c.fail("groups take %d, idle ones %d, %d are wide; counted %d, %d and %d; at most %d and %d",
			size, idleSize, wide, w.size, w.idleSize, len(w.wide), w.maxSize, w.maxIdle)
	}
	for k, p := range w.posts {
		for _, it := range p.groups {
			if it.of.dropped {
				dead[p]++
			}
		}
		if p.members == 0 || p.members != members[p] || p.dead != dead[p] {
			c.fail("the post of %v counts %d groups and %d dropped ones, there are %d and %d", k, p.members, p.dead, members[p], dead[p])
		}
	}
	if len(w.posts) != len(members) {
		c.fail("%d posts, groups have %d", len(w.posts), len(members))
	}
}

// standGroup checks a group and returns how many requests stand in it.
func (c *checker) standGroup(g *standGroup) (n int) {
	w := &c.s.waiting
	var last *standing
	for st := g.first; st != nil; st = st.next {
		if st.group != g || st.prev != last || last != nil && last.age >= st.age {
			c.fail("the requests for %v and %v are out of order", g.queues, g.runtimes)
		}
		last = st
		n++
	}
	if g.last != last || g.dropped || g.idle != (n == 0) || g.fresh != slices.Contains(w.fresh, g) {
		c.fail("the group of %v and %v is wrong about itself: %d requests, %+v", g.queues, g.runtimes, n, g)
	}
	if n == 0 && g.posts == nil {
		c.fail("the wide group of %v and %v is kept without a request", g.queues, g.runtimes)
	}
	for _, p := range g.posts {
		here := 0
		for _, it := range p.groups {
			if it.of == g {
				here++
				if n > 0 && it.age > g.first.age {
					c.fail("the group of %v and %v is entered as younger than it is", g.queues, g.runtimes)
				}
			}
		}
		if away := slices.Contains(g.away, p); here > 1 || (here == 1) == away || away && n > 0 {
			c.fail("the group of %v and %v is %d times at a post, away: %t, requests: %d", g.queues, g.runtimes, here, away, n)
		}
	}
	if n == 0 || g.fresh {
		return n
	}
	for k, l := range c.s.ix.lanes {
		if l.ready > 0 && g.takes(k) && !slices.Contains(w.woken, l) {
			c.fail("%d requests stand by lane %v, which has %d tasks ready", n, k, l.ready)
		}
	}
	return n
}
