package redisstore

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/localbell"
	"github.com/treadle-dev/treadle/task"
)

// Limits of the bell.
const (
	// maxPending bounds the signals that wait to be sent: what comes on top is dropped, as
	// listeners also look for themselves.
	maxPending = 1 << 16
	// maxMessage bounds the signals of one message.
	maxMessage = 4096
	// sendTimeout bounds how long one message may take.
	sendTimeout = 3 * time.Second
)

// bell rings listeners of this process directly and those of others by pub/sub. What is
// rung while a message is on its way leaves together in the next one.
type bell struct {
	s     *Store
	local localbell.Bell
	// from tells our own messages from those of others.
	from task.ID
	sub  *redis.PubSub

	mu      sync.Mutex
	pending []store.Signal
	dropped bool
	news    chan struct{}
}

var _ store.Bell = (*bell)(nil)

func newBell(s *Store) *bell {
	b := &bell{s: s, news: make(chan struct{}, 1)}
	copy(b.from[:], newOperation())
	copy(b.from[8:], newOperation())
	return b
}

// Listen implements [store.Bell].
func (b *bell) Listen(fn func([]store.Signal)) (stop func()) { return b.local.Listen(fn) }

// watching is a message between processes: Task is watched for Count milliseconds. It is
// no signal for listeners.
const watching store.SignalKind = 100

// Watch implements [store.Bell]. Every process on the store hears of it, as any of them
// may be the one that records the start: so nobody who is not asked does anything.
func (b *bell) Watch(id task.ID, lasts time.Duration) {
	b.local.Watch(id, lasts)
	b.tell([]store.Signal{{Kind: watching, Task: id, Count: int(lasts.Milliseconds())}})
}

// Ring implements [store.Bell].
func (b *bell) Ring(_ context.Context, signals []store.Signal) { b.ring(signals) }

// ring rings here at once and elsewhere soon. It does not wait.
func (b *bell) ring(signals []store.Signal) {
	if len(signals) == 0 {
		return
	}
	b.tell(signals)
	b.local.Ring(context.Background(), signals)
}

// tell sends others a message soon.
func (b *bell) tell(signals []store.Signal) {
	b.mu.Lock()
	if len(b.pending)+len(signals) <= maxPending {
		b.pending = append(b.pending, signals...)
	} else if !b.dropped {
		b.dropped = true
		b.s.log.Warn("Redis accepts notifications too slowly: other processes may learn of changes late")
	}
	b.mu.Unlock()
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// send publishes what was rung, until ctx ends.
func (b *bell) send(ctx context.Context) {
	for {
		select {
		case <-b.news:
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		batch := b.pending
		b.pending, b.dropped = nil, false
		b.mu.Unlock()
		for len(batch) > 0 {
			n := min(len(batch), maxMessage)
			b.publish(ctx, batch[:n])
			batch = batch[n:]
		}
	}
}

func (b *bell) publish(ctx context.Context, signals []store.Signal) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	// A message that is lost costs others the wait until they look for themselves.
	if err := b.s.reads.Publish(ctx, b.s.any.named(keyBell), encodeSignals(b.from, signals)).Err(); err != nil {
		b.s.log.Debug("a notification was lost", "error", err)
	}
}

// subscribe opens the connection that hears others.
func (b *bell) subscribe(ctx context.Context) error {
	b.sub = b.s.reads.Subscribe(ctx, b.s.any.named(keyBell))
	_, err := b.sub.Receive(ctx)
	return err
}

// hear rings here what others rang, until ctx ends. The client library connects again
// when the connection breaks.
func (b *bell) hear(ctx context.Context) {
	defer b.sub.Close() //nolint:errcheck // Nothing is left to be done with it.
	messages := b.sub.Channel(redis.WithChannelSize(1024))
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return
			}
			from, signals, err := decodeSignals(m.Payload)
			if err != nil {
				b.s.log.Warn("a malformed notification was ignored", "error", err)
				continue
			}
			if from != b.from {
				b.local.Ring(ctx, b.noted(signals))
			}
		case <-ctx.Done():
			return
		}
	}
}

// noted notes what others watch and returns the other signals.
func (b *bell) noted(signals []store.Signal) []store.Signal {
	rung := signals[:0]
	for _, s := range signals {
		if s.Kind == watching {
			b.local.Watch(s.Task, time.Duration(s.Count)*time.Millisecond)
		} else {
			rung = append(rung, s)
		}
	}
	return rung
}

// encodeSignals makes one message.
func encodeSignals(from task.ID, signals []store.Signal) []byte {
	w := newWriter(32 + 24*len(signals))
	w.raw(from[:])
	w.uint(uint64(len(signals)))
	for i := range signals {
		s := &signals[i]
		w.uint(uint64(s.Kind))
		w.text(s.Queue)
		w.text(s.Runtime)
		w.raw(s.Task[:])
		w.raw(s.Claim[:])
		w.raw(s.From[:])
		w.int(int64(s.Count))
	}
	return w.b
}

func decodeSignals(b string) (from task.ID, signals []store.Signal, err error) {
	r := newReader(b)
	r.raw(from[:])
	n := r.uint()
	if n > maxMessage {
		return from, nil, errDamaged
	}
	for range n {
		s := store.Signal{Kind: store.SignalKind(r.uint()), Queue: r.text(), Runtime: r.text()}
		r.raw(s.Task[:])
		r.raw(s.Claim[:])
		r.raw(s.From[:])
		s.Count = int(r.int())
		signals = append(signals, s)
	}
	return from, signals, r.err
}
