package pebblestore

import (
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// standing is a claim request that waits for work.
type standing struct {
	claim, session task.ID
	worker         string
	local          bool
	lease          time.Duration
	deliver        func([]store.Claimed)
	// age is a number that grows from request to request: the smallest waits longest.
	age        uint64
	group      *standGroup
	prev, next *standing
	// same is an earlier request with the same claim id.
	same *standing
}

// standGroup holds the requests that ask for the same queues and runtimes in the same
// order. A session asks for the same after each task, and so do all workers of one build,
// so what depends on the number of pairs is done once for a group.
type standGroup struct {
	queues, runtimes []string
	// sorted are the same names in order, each once.
	sortedQueues, sortedRuntimes []string
	signature                    uint64
	// collides is another group with the same signature.
	collides *standGroup
	// first waits longest.
	first, last *standing
	// size is about the memory that the group takes, see maxStanding.
	size int
	// posts are where the group is found by lane; nil where it is one of waiting.wide,
	// at wideAt. away are those that it was taken out of while nobody waited in it.
	posts, away []*post
	wideAt      int
	// idlePrev and idleNext are its neighbours in waiting.idle.
	idle               bool
	idlePrev, idleNext *standGroup
	// dropped says that the group is forgotten.
	dropped bool
	// fresh says that it is one of waiting.fresh.
	fresh bool
	// turn is the last round that the group had a turn in. In the round of number opened
	// it may take from waiting.open[from:to].
	turn, opened uint64
	from, to     int
}

// post is the place of one lane, whether the lane exists or not, where those stand who
// would take from it.
type post struct {
	// groups may hold idle groups, and dead dropped ones.
	groups ageHeap[*standGroup]
	dead   int
	// members counts the groups that have the post in their list.
	members int
}

// stood is a group at a post.
type stood struct {
	post  *post
	group *standGroup
}

// Bounds on the memory of groups. A unit is about 150 bytes.
const (
	// maxStanding bounds the size of all groups that are found by their lanes, 40 MB: ten
	// thousand groups of 20 pairs, or 250 of 1,000. Those beyond are looked at in every
	// round.
	maxStanding = 1 << 18
	// maxIdle bounds the size of groups that are kept while nobody waits in them, 10 MB.
	maxIdle = 1 << 16
	// maxTold bounds the requests that a round answers with nothing for the sake of a task
	// that only Claim can hand out: otherwise one such task would have all idle workers claim.
	maxTold = 16
)

// waiting are the standing requests, found by what they wait for. Between two changes
// no request stands by a lane that has something ready, but for the lanes in woken and the
// groups in fresh. It is guarded by Store.mu.
type waiting struct {
	seed   maphash.Seed
	claims map[task.ID]*standing
	// count is the number of requests, age that of the newest.
	count  int
	age    uint64
	groups map[uint64]*standGroup
	posts  map[laneKey]*post
	// size is that of all groups with posts, idle those where nobody waits, who does so
	// longest first.
	size     int
	idle     idleGroups
	idleSize int
	// wide are the groups beyond maxStanding. They go when nobody waits in them.
	wide []*standGroup
	// woken are lanes that became ready without a commit, fresh are groups with a new
	// request that may find something ready: the next commit looks at them.
	woken []*lane
	fresh []*standGroup
	// round numbers the rounds of serving. The rest is scratch of a round: the lanes with
	// something ready, those that each group may take from, whose turn it is, and groups
	// that were taken from posts until the end of the round.
	round uint64
	lanes []*lane
	open  []*lane
	turns ageHeap[turn]
	aside []stood
	// steps counts groups and lanes looked at.
	steps uint64
	// maxSize, maxIdle and maxTold are maxStanding, maxIdle and maxTold, but for tests.
	maxSize, maxIdle, maxTold int
}

func newWaiting() waiting {
	return waiting{
		seed: maphash.MakeSeed(), claims: make(map[task.ID]*standing), groups: make(map[uint64]*standGroup),
		posts: make(map[laneKey]*post), maxSize: maxStanding, maxIdle: maxIdle, maxTold: maxTold,
	}
}

// add lets a request stand. It keeps nothing of r.Queues and r.Runtimes.
func (w *waiting) add(r *store.ClaimRequest, lease time.Duration, deliver func([]store.Claimed)) *standGroup {
	w.age++
	w.count++
	g := w.groupOf(r.Queues, r.Runtimes)
	st := &standing{
		claim: r.Claim, session: r.Session, worker: r.Worker, local: r.Local, lease: lease, deliver: deliver,
		age: w.age, group: g, prev: g.last, same: w.claims[r.Claim],
	}
	w.claims[r.Claim] = st
	if g.last != nil {
		g.last.next = st
		g.last = st
		return g
	}
	g.first, g.last = st, st
	if g.idle {
		w.idle.remove(g)
		w.idleSize -= g.size
	}
	for i, p := range g.away {
		p.groups.push(st.age, g)
		g.away[i] = nil
	}
	w.steps += uint64(len(g.away))
	g.away = g.away[:0]
	return g
}

// withdraw takes the requests with a claim id out.
func (w *waiting) withdraw(claim task.ID) {
	for st := w.claims[claim]; st != nil; st = w.claims[claim] {
		w.remove(st)
	}
	w.trim()
}

// remove takes a request out. The caller trims.
func (w *waiting) remove(st *standing) {
	switch head := w.claims[st.claim]; {
	case head != st:
		for head.same != st {
			head = head.same
		}
		head.same = st.same
	case st.same != nil:
		w.claims[st.claim] = st.same
	default:
		delete(w.claims, st.claim)
	}
	w.count--
	g := st.group
	if st.prev != nil {
		st.prev.next = st.next
	} else {
		g.first = st.next
	}
	if st.next != nil {
		st.next.prev = st.prev
	} else {
		g.last = st.prev
	}
	if g.first != nil {
		return
	}
	if g.posts == nil {
		w.forget(g)
		return
	}
	w.idle.add(g)
	w.idleSize += g.size
}

// trim forgets idle groups beyond the bound. It is not for the middle of a round.
func (w *waiting) trim() {
	for w.idleSize > w.maxIdle {
		w.dropIdle()
	}
}

// groupOf finds or makes a group. Its cost is the number of names, and that of pairs only
// for a new group.
func (w *waiting) groupOf(queues, runtimes []string) *standGroup {
	sign := w.sign(queues, runtimes)
	for g := w.groups[sign]; g != nil; g = g.collides {
		if slices.Equal(g.queues, queues) && slices.Equal(g.runtimes, runtimes) {
			return g
		}
	}
	// Cloned, as the names may be parts of a whole request.
	g := &standGroup{queues: cloned(queues), runtimes: cloned(runtimes), signature: sign}
	g.sortedQueues, g.sortedRuntimes = ordered(g.queues), ordered(g.runtimes)
	pairs := len(g.sortedQueues) * len(g.sortedRuntimes)
	g.size = 1 + len(queues) + len(runtimes) + pairs
	for w.size+g.size > w.maxSize && w.idleSize > 0 {
		w.dropIdle()
	}
	// Only now: what was dropped may have had the same signature.
	g.collides = w.groups[sign]
	w.groups[sign] = g
	if w.size+g.size > w.maxSize {
		g.wideAt = len(w.wide)
		w.wide = append(w.wide, g)
		return g
	}
	w.size += g.size
	w.steps += uint64(pairs)
	g.posts = make([]*post, 0, pairs)
	for _, q := range g.sortedQueues {
		for _, rt := range g.sortedRuntimes {
			k := laneKey{q, rt}
			p := w.posts[k]
			if p == nil {
				p = new(post)
				w.posts[k] = p
			}
			p.members++
			p.groups.push(w.age, g)
			g.posts = append(g.posts, p)
		}
	}
	return g
}

// sign makes a number of lists of names.
func (w *waiting) sign(queues, runtimes []string) uint64 {
	h := uint64(len(queues))
	for _, names := range [...][]string{queues, runtimes} {
		for _, name := range names {
			// An odd factor keeps the order of names in the number.
			h = bits.RotateLeft64(h*0x9e3779b97f4a7c15, 29) ^ maphash.String(w.seed, name)
		}
	}
	return h
}

func cloned(names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = strings.Clone(name)
	}
	return out
}

// ordered returns names in order, each once.
func ordered(names []string) []string {
	for i := 1; i < len(names); i++ {
		if names[i-1] >= names[i] {
			names = slices.Clone(names)
			slices.Sort(names)
			return slices.Compact(names)
		}
	}
	return names
}

// dropIdle forgets the group where nobody has waited for longest.
func (w *waiting) dropIdle() {
	g := w.idle.first
	w.idle.remove(g)
	w.idleSize -= g.size
	w.forget(g)
}

// forget drops a group where nobody waits.
func (w *waiting) forget(g *standGroup) {
	g.dropped = true
	if head := w.groups[g.signature]; head != g {
		for head.collides != g {
			head = head.collides
		}
		head.collides = g.collides
	} else if g.collides != nil {
		w.groups[g.signature] = g.collides
	} else {
		delete(w.groups, g.signature)
	}
	if g.posts == nil {
		last := len(w.wide) - 1
		w.wide[g.wideAt] = w.wide[last]
		w.wide[g.wideAt].wideAt = g.wideAt
		w.wide[last] = nil
		w.wide = w.wide[:last]
		return
	}
	w.size -= g.size
	w.steps += uint64(len(g.posts))
	// The posts that it is away from do not hold it.
	for _, p := range g.away {
		p.dead--
	}
	i := 0
	for _, q := range g.sortedQueues {
		for _, rt := range g.sortedRuntimes {
			p := g.posts[i]
			i++
			p.members--
			p.dead++
			switch {
			case p.members == 0:
				delete(w.posts, laneKey{q, rt})
			case p.dead > 16 && p.dead > len(p.groups)/2:
				p.sweep()
			}
		}
	}
	g.posts, g.away = nil, nil
}

// sweep takes dropped groups out.
func (p *post) sweep() {
	all := p.groups
	p.groups, p.dead = make(ageHeap[*standGroup], 0, len(all)-p.dead), 0
	for _, it := range all {
		if !it.of.dropped {
			p.groups.push(it.age, it.of)
		}
	}
}

// takes says whether the requests of a group take from a lane.
func (g *standGroup) takes(k laneKey) bool {
	if _, ok := slices.BinarySearch(g.sortedQueues, k.queue); !ok {
		return false
	}
	_, ok := slices.BinarySearch(g.sortedRuntimes, k.runtime)
	return ok
}

// idleGroups is a list of groups.
type idleGroups struct{ first, last *standGroup }

func (l *idleGroups) add(g *standGroup) {
	g.idle = true
	g.idlePrev = l.last
	if l.last != nil {
		l.last.idleNext = g
	} else {
		l.first = g
	}
	l.last = g
}

func (l *idleGroups) remove(g *standGroup) {
	if g.idlePrev != nil {
		g.idlePrev.idleNext = g.idleNext
	} else {
		l.first = g.idleNext
	}
	if g.idleNext != nil {
		g.idleNext.idlePrev = g.idlePrev
	} else {
		l.last = g.idlePrev
	}
	g.idle, g.idlePrev, g.idleNext = false, nil, nil
}
