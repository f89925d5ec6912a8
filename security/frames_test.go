//go:build linux

package security

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// bulk is an attack by a worker: each stream sends the frames that first makes once, then
// those of again until it is stopped.
type bulk struct {
	name    string
	method  string
	streams int
	// early sends first without a Hello before it.
	early bool
	first func(c *cluster, stream int) [][]byte
	again func(c *cluster, stream, round int) []byte
	// rounds bounds again; none means that there is no bound but time.
	rounds int
	// unread leaves what the dispatcher sends unread.
	unread bool
	// peak is a bound of its own, in MiB.
	peak int
}

func (b bulk) run(t *testing.T) {
	c := target(t, false)
	if b.method == "" {
		b.method = methodPush
	}
	s := c.begin(t, c.dispatcher)
	if b.peak != 0 {
		s.peak = b.peak
	}
	ctx, cancel := context.WithTimeout(context.Background(), scale(2*time.Second, 20*time.Second))
	defer cancel()
	var wg sync.WaitGroup
	for i := range b.streams {
		p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.5")
		wg.Go(func() { b.stream(ctx, c, p, i) })
	}
	wg.Wait()
	<-ctx.Done()
	s.end()
}

func (b bulk) stream(ctx context.Context, c *cluster, p *peer, i int) {
	var frames [][]byte
	if !b.early {
		frames = append(frames, hello(fmt.Sprintf("bulk-%x", random(6)), "hostile", "hostile", 4))
	}
	if b.first != nil {
		frames = append(frames, b.first(c, i)...)
	}
	w, err := p.attach(ctx, b.method, frames...)
	if err != nil {
		return
	}
	if !b.unread {
		w.read(nil)
	}
	for round := 0; b.again != nil && (b.rounds == 0 || round < b.rounds) && ctx.Err() == nil; round++ {
		if err := w.send(b.again(c, i, round)); err != nil {
			return
		}
	}
	if b.unread {
		<-ctx.Done()
		return
	}
	select {
	case <-w.over:
	case <-ctx.Done():
	}
}

// forgedReport is one outcome of a task that there is not.
func forgedReport() []byte { return text(1, cat(text(1, forged()), text(2, "succeeded"))) }

// made keeps a frame that takes long to make.
func made(make func() []byte) func(*cluster, int, int) []byte {
	frame := sync.OnceValue(make)
	return func(*cluster, int, int) []byte { return frame() }
}

// chunk is a piece of a value that announces its size.
func chunk(value, size int, data []byte) []byte {
	return text(kindChunk, cat(num(1, uint64(value)), text(2, data), num(3, uint64(size))))
}

// TestFrames: no frame of a worker, however large, many or empty, takes the dispatcher's
// memory, time or log.
func TestFrames(t *testing.T) {
	piece := filler(256 << 10)
	for _, b := range []bulk{
		{name: "chunks that no frame names, before Hello", streams: 4, early: true, rounds: 2000,
			again: func(_ *cluster, _, round int) []byte { return chunk(1+round/256, 64<<20, piece) }},
		{name: "chunks that no frame names, after Hello", streams: 4, rounds: 2000,
			again: func(_ *cluster, _, round int) []byte { return chunk(1+round/256, 64<<20, piece) }},
		{name: "chunks of one value without end (long)", streams: 4, rounds: 2000,
			again: func(_ *cluster, _, _ int) []byte { return chunk(1, 0, piece) }},
		{name: "values that announce much and bring one byte", streams: 8, rounds: 4000,
			again: func(_ *cluster, _, round int) []byte { return chunk(1+round, 60<<20, piece[:1]) }},
		{name: "many values that are never whole (long)", streams: 8, rounds: 5000,
			again: func(_ *cluster, _, round int) []byte { return chunk(1+round, 250<<10, piece[:100]) }},
		{name: "forged reports in bulk", streams: 2, rounds: 5, again: made(func() []byte {
			return text(kindOutcomes, times(100_000, func(int) []byte { return forgedReport() }))
		})},
		{name: "forged reports one by one (long)", streams: 4, again: func(*cluster, int, int) []byte { return text(kindOutcomes, forgedReport()) }},
		{name: "forged starts in bulk", streams: 2, rounds: 5, again: made(func() []byte {
			return text(kindAccepts, times(100_000, func(int) []byte { return text(1, text(1, forged())) }))
		})},
		{name: "beats that hold a million", streams: 2, rounds: 4, again: made(func() []byte {
			return beat(1, times(500_000, func(int) []byte { return text(2, text(1, forged())) }))
		})},
		{name: "beats without pause (long)", streams: 4, again: func(_ *cluster, _, round int) []byte { return beat(1 + round) }},
		{name: "beats whose answers nobody reads", streams: 4, unread: true, again: func(_ *cluster, _, round int) []byte { return beat(1 + round) }},
		{name: "a Hello that holds a million", streams: 2, early: true, first: func(*cluster, int) [][]byte {
			return [][]byte{hello("holder", "hostile", "r", 1, times(500_000, func(int) []byte { return text(11, text(1, forged())) }))}
		}},
		{name: "output of tasks that there are not", streams: 4, again: func(*cluster, int, int) []byte {
			return text(kindOutput, cat(text(1, forged()), text(2, piece[:64<<10])))
		}},
		{name: "output in very large frames (long)", streams: 4, again: func(*cluster, int, int) []byte {
			return text(kindOutput, cat(text(1, forged()), text(2, filler(16<<20))))
		}},
		{name: "wants without pause (long)", method: methodPull, streams: 4, again: func(*cluster, int, int) []byte { return text(kindWant, num(1, 1<<30)) }},
		{name: "functions that there are not (long)", streams: 4, again: func(*cluster, int, int) []byte { return text(kindNeed, text(1, random(32))) }},
		{name: "drains without pause", streams: 4, again: func(*cluster, int, int) []byte { return text(kindDrain, text(1, "tired")) }},
		{name: "drains with long reasons (long)", streams: 4, again: func(*cluster, int, int) []byte { return text(kindDrain, text(1, filler(4<<20))) }},
		{name: "good-byes with long reasons", streams: 4, first: func(*cluster, int) [][]byte { return [][]byte{text(kindBye, text(2, filler(8<<20)))} }},
		{name: "empty frames (long)", streams: 4, again: func(*cluster, int, int) []byte { return nil }},
		{name: "unknown fields (long)", streams: 4, again: func(*cluster, int, int) []byte { return text(99, filler(16<<20)) }},
	} {
		subtest(t, b.name, b.run)
	}
}

// TestEmptyItems: two bytes on the wire make an item of some hundred in memory.
func TestEmptyItems(t *testing.T) {
	items := scale(4_000_000, 30_000_000)
	empties := func(field int) []byte {
		return times(items, func(int) []byte { return text(protoNumber(field), "") })
	}
	for _, tt := range []struct {
		name  string
		frame func() []byte
	}{
		{"reports", func() []byte { return text(kindOutcomes, empties(1)) }},
		{"starts", func() []byte { return text(kindAccepts, empties(1)) }},
		{"holdings of a beat", func() []byte { return text(kindBeat, empties(2)) }},
		{"holdings of a Hello", func() []byte { return hello("empty", "q", "r", 1, empties(11)) }},
		{"queues of a Hello (long)", func() []byte { return hello("empty", "q", "r", 1, empties(7)) }},
		{"handlers of a Hello (long)", func() []byte { return hello("empty", "q", "r", 1, empties(9)) }},
	} {
		frame := tt.frame
		subtest(t, tt.name, bulk{streams: 3, rounds: 3, again: made(frame)}.run)
		subtest(t, strings.TrimSuffix(tt.name, " (long)")+", before Hello (long)", bulk{streams: 3, rounds: 3, early: true, again: made(frame)}.run)
	}
}

// TestEmptyItemsFromClients: the same in requests.
func TestEmptyItemsFromClients(t *testing.T) {
	items := scale(4_000_000, 30_000_000)
	for _, tt := range []struct {
		method string
		field  int
	}{{"ExecuteBatch", 1}, {"AwaitResults", 1}} {
		subtest(t, tt.method, func(t *testing.T) {
			c := target(t, false)
			message := times(items, func(int) []byte { return text(protoNumber(tt.field), "") })
			s := c.begin(t, c.server)
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for i := range 6 {
				p := dialPeer(t, c.api, c.evilClient, fmt.Sprintf("127.0.0.%d", 2+i))
				wg.Go(func() {
					w, err := p.watch(ctx, "/treadle.v1.FabricService/"+tt.method, message)
					if err != nil {
						return
					}
					if st, err := w.end(5 * time.Second); err == nil && st.Code() == 0 {
						t.Errorf("%s of %d empty items succeeded", tt.method, items)
					}
				})
			}
			wg.Wait()
			s.end()
		})
	}
}
