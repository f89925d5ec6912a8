//go:build linux

package security

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	treadle "github.com/treadle-dev/treadle/clients/go"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// reportField is one field of an outcome.
type reportField struct {
	name string
	// of makes the fields of a report that follow its token.
	of func(v []byte) []byte
}

func failed(field int) func(v []byte) []byte {
	return func(v []byte) []byte { return cat(text(2, "raised"), text(6, text(protoNumber(field), v))) }
}

// textFields are the fields of a report that are text.
var textFields = []reportField{
	{"end", func(v []byte) []byte { return text(2, v) }},
	{"encoding", func(v []byte) []byte {
		return cat(text(2, "succeeded"), text(3, cat(text(1, "1"), num(3, 1))), text(4, v))
	}},
	{"repr", func(v []byte) []byte {
		return cat(text(2, "succeeded"), text(3, cat(text(1, "1"), num(3, 1))), text(4, "json"), text(5, v))
	}},
	{"exception type", failed(1)},
	{"message", failed(2)},
	{"traceback", failed(3)},
}

// byteFields are the others that hold as much as a worker likes.
var byteFields = []reportField{
	{"exception pickle", failed(4)},
	{"foreign pickle", failed(5)},
	{"log", func(v []byte) []byte { return cat(text(2, "raised"), text(6, text(2, "m")), text(8, v)) }},
	{"an unknown field", func(v []byte) []byte { return cat(text(2, "raised"), text(66, v)) }},
}

// shortly is how soon a task ends whose worker was sent away: the grace, the lease, and a
// store that looks once in a while.
const shortly = 20 * time.Second

// TestLongFieldsOfReports: what a worker reports stays readable for everybody.
func TestLongFieldsOfReports(t *testing.T) {
	for _, size := range scale([]int{24 << 20}, []int{1 << 20, 24 << 20, 100 << 20}) {
		for _, f := range append(append([]reportField(nil), textFields...), byteFields...) {
			t.Run(fmt.Sprintf("%s of %d MiB", f.name, size>>20), func(t *testing.T) {
				c := target(t, false)
				s := c.begin(t, c.server)
				s.peak = peakMiB
				queue := fmt.Sprintf("long-%x", random(4))
				var ids []string
				for range 2 {
					w := c.take(t, fmt.Sprintf("long-%x", random(4)), queue, 1)
					ids = append(ids, c.submit(t, queue, 1, treadle.Options{MaxRetries: new(int)})...)
					o := w.offer(t)
					w.started(o)
					w.report(o, f.of(filler(size)))
					c.ended(t, ids[len(ids)-1], shortly)
					w.cancel()
				}
				c.readable(t, ids)
				s.end()
			})
		}
	}
}

// readable checks that the newest tasks can be read in every way, in answers of a size that
// fits everywhere.
func (c *cluster) readable(t *testing.T, ids []string) {
	t.Helper()
	const most = 4 << 20
	p := dialPeer(t, c.api, c.client, "127.0.0.1")
	ctx, cancel := context.WithTimeout(context.Background(), honestTimeout)
	defer cancel()
	list, err := p.call(ctx, "/treadle.v1.FabricService/ListTasks", wire(t, &treadlev1.ListTasksRequest{PageSize: 100}))
	if err != nil || len(list) > most {
		t.Errorf("ListTasks: %d bytes, %v", len(list), err)
	}
	for _, id := range ids {
		record, err := p.call(ctx, "/treadle.v1.FabricService/GetTask", wire(t, &treadlev1.GetTaskRequest{TaskId: id}))
		if err != nil || len(record) > most {
			t.Errorf("GetTask: %d bytes, %v", len(record), err)
		}
	}
	body, err := c.get(c.http, "/v1/tasks?page_size=100")
	if err != nil || len(body) > 2*most {
		t.Errorf("GET /v1/tasks: %d bytes, %v", len(body), err)
	}
	if out, err := c.cli(built.get(t), "tasks"); err != nil {
		t.Errorf("treadle tasks: %v: %.300s", err, out)
	}
}

// TestReportsThatAreNotUTF8: text that is no text harms the task that it belongs to, and
// nothing else: not the other tasks of that worker, not its queue.
func TestReportsThatAreNotUTF8(t *testing.T) {
	for _, f := range textFields {
		subtest(t, f.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.server)
			queue := fmt.Sprintf("latin-%x", random(4))
			id := fmt.Sprintf("latin-%x", random(4))
			w := c.take(t, id, queue, 2)
			ids := c.submit(t, queue, 2, treadle.Options{MaxRetries: new(int)})
			bad, good := w.offer(t), w.offer(t)
			if uuidOf(bad.GetToken().GetTaskId()) != ids[0] {
				ids[0], ids[1] = ids[1], ids[0]
			}
			w.started(bad)
			w.started(good)
			w.report(bad, f.of([]byte("caf\xe9")))
			// A worker whose stream ends comes back with what it has, as agents do.
			select {
			case <-w.over:
				w = c.take(t, id, queue, 2, text(11, cat(text(1, tokenOf(good)), text(2, num(1, 1)))))
			case <-time.After(time.Second):
			}
			// What it no longer has may be offered again, and ends well then.
			go w.succeed()
			w.report(good, succeeded())
			if got := c.ended(t, ids[1], shortly); got.Status != treadle.Completed {
				t.Errorf("the other task of the worker is %s: %v", got.Status, got.Error)
			}
			got := c.ended(t, ids[0], shortly)
			if got.Error != nil && (!utf8.ValidString(got.Error.Message) || got.Error.Message == "") {
				t.Errorf("the record says %q", got.Error.Message)
			}
			w.cancel()
			s.end()
		})
	}
}

func uuidOf(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// TestHandlersThatFailInLatin1: a Go handler whose error is not UTF-8 fails its task and
// leaves its worker as it is.
func TestHandlersThatFailInLatin1(t *testing.T) {
	c := target(t, false)
	s := c.begin(t, c.server)
	client, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), shortly)
	defer cancel()
	slow := make(chan error, 1)
	go func() {
		var ms int
		slow <- client.Call(ctx, fnSleep, &ms, 1500)
	}()
	for range 5 {
		result, err := client.Run(ctx, treadle.Request{Function: fnLatin, Args: []any{1}})
		if err != nil {
			t.Errorf("a task with such a failure does not end: %v", err)
			break
		}
		if result.Status != treadle.Failed || result.Error == nil || !strings.Contains(result.Error.Message, "caf\uFFFD is missing") {
			t.Errorf("%s, %v: want FAILED and the text with U+FFFD", result.Status, result.Error)
		}
	}
	if err := <-slow; err != nil {
		t.Errorf("another task of the worker: %v", err)
	}
	s.end()
}

// TestHellosThatAreNotUTF8: such a worker is sent away, or shown by text that is valid.
func TestHellosThatAreNotUTF8(t *testing.T) {
	for name, field := range map[string]int{"id": 2, "name": 3, "host": 4, "software": 6, "queue": 7, "runtime": 8, "handler": 9} {
		t.Run(name, func(t *testing.T) {
			c := target(t, false)
			p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.6")
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			w, err := p.attach(ctx, methodPush, hello("latin", "q", "r", 1, text(protoNumber(field), "caf\xe9")))
			if err != nil {
				t.Fatal(err)
			}
			w.read(nil)
			until(t, 5*time.Second, "an answer to Hello", func() error {
				select {
				case <-w.over:
				default:
					if w.frames.Load() == 0 {
						return errors.New("neither a frame nor the end")
					}
				}
				return nil
			})
			if body, err := c.get(c.http, "/v1/workers"); err != nil || !utf8.Valid(body) {
				t.Errorf("GET /v1/workers: %v: %.300q", err, body)
			}
			if err := c.callNow(5 * time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLongHellos: a worker cannot say so much of itself that lists of workers fail.
func TestLongHellos(t *testing.T) {
	for _, tt := range []struct {
		name  string
		field int
		size  int
		times int
	}{
		{"id", 2, 32 << 20, 1}, {"name", 3, 32 << 20, 1}, {"host (long)", 4, 32 << 20, 1}, {"software (long)", 6, 32 << 20, 1},
		{"a long queue (long)", 7, 32 << 20, 1}, {"a long runtime (long)", 8, 32 << 20, 1}, {"a long handler", 9, 8 << 20, 1},
		{"many queues of a KiB", 7, 1 << 10, 1000}, {"many runtimes of a KiB (long)", 8, 1 << 10, 1000},
		{"many handlers of 4 KiB", 9, 4 << 10, 1000}, {"a name of a KiB, many workers (long)", 3, 1 << 10, 1},
		{"an unknown field", 88, 32 << 20, 1},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.dispatcher)
			p := dialPeer(t, c.workers, c.evilWorker, "127.0.0.6")
			ctx, cancel := context.WithTimeout(context.Background(), scale(2*time.Second, 10*time.Second))
			defer cancel()
			for range 4 {
				w, err := p.attach(ctx, methodPush, hello(fmt.Sprintf("long-%x", random(4)), "q", "r", 1,
					times(tt.times, func(i int) []byte {
						return text(protoNumber(tt.field), append(fmt.Appendf(nil, "%d-", i), filler(tt.size)...))
					})))
				if err != nil {
					break // it was sent away, or the time is over
				}
				w.read(nil)
			}
			pause(time.Second)
			body, err := c.get(c.http, "/v1/workers")
			if err != nil || len(body) > 5<<20 {
				t.Errorf("GET /v1/workers: %d bytes, %v", len(body), err)
			}
			if out, err := c.cli(built.get(t), "workers"); err != nil || !strings.Contains(out, "honest") {
				t.Errorf("treadle workers: %v: %.300s", err, out)
			}
			cancel()
			s.end()
		})
	}
}

// TestResultsOverTheLimit: --max-payload holds for what workers report, whatever they think.
func TestResultsOverTheLimit(t *testing.T) {
	const limit = 1 << 20
	c := ownCluster(t, setup{flags: []string{"--max-payload", "1MiB"}, idle: true})
	inline := func(w *taker, o *treadlev1.Offer, n int) {
		w.report(o, text(2, "succeeded"), text(3, cat(text(1, filler(n)), num(3, uint64(n)))), text(4, "pickle"))
	}
	chunked := func(w *taker, o *treadlev1.Offer, n int) {
		for left := n; left > 0; left -= 256 << 10 {
			_ = w.send(chunk(1, n, filler(min(left, 256<<10)))) // a session that is over says so elsewhere
		}
		w.report(o, text(2, "succeeded"), text(3, cat(num(2, 1), num(3, uint64(n)))), text(4, "pickle"))
	}
	for _, tt := range []struct {
		name string
		send func(w *taker, o *treadlev1.Offer, n int)
		size int
		want treadle.Status
	}{
		{"inline, small", inline, 1000, treadle.Completed},
		{"in chunks, at the limit", chunked, limit, treadle.Completed},
		{"in chunks, a byte over it", chunked, limit + 1, treadle.Failed},
		{"in chunks, twice the limit", chunked, 2 * limit, treadle.Failed},
		{"in chunks, fifty times the limit", chunked, 50 * limit, treadle.Failed},
		{"inline, a byte over it", inline, limit + 1, treadle.Failed},
		{"inline, twice the limit", inline, 2 * limit, treadle.Failed},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			queue := fmt.Sprintf("big-%x", random(4))
			w := c.take(t, fmt.Sprintf("big-%x", random(4)), queue, 1)
			defer w.cancel()
			id := c.submit(t, queue, 1, treadle.Options{MaxRetries: new(int)})[0]
			o := w.offer(t)
			w.started(o)
			tt.send(w, o, tt.size)
			if got := c.ended(t, id, shortly); got.Status != tt.want {
				t.Errorf("a result of %d bytes: %s, %v; want %s", tt.size, got.Status, got.Error, tt.want)
			}
		})
	}
}

// TestOffersThatAlwaysComeBack: a worker that gives back whatever it gets does not run
// tasks without end, nor the dispatcher hot.
func TestOffersThatAlwaysComeBack(t *testing.T) {
	for _, tt := range []struct {
		name    string
		started bool
		end     string
		most    int // offers of one task in the time of the attack
	}{
		{"never started", false, "returned", 40},
		{"started", true, "returned", 20},
		{"started and cancelled", true, "cancelled", 20},
	} {
		subtest(t, tt.name, func(t *testing.T) {
			c := target(t, false)
			s := c.begin(t, c.server)
			queue := fmt.Sprintf("back-%x", random(4))
			w := c.take(t, fmt.Sprintf("back-%x", random(4)), queue, 4)
			ids := c.submit(t, queue, 4, treadle.Options{})
			seen := map[string]int{}
			for over := time.After(scale(4*time.Second, 20*time.Second)); ; {
				select {
				case o := <-w.offers:
					seen[uuidOf(o.GetToken().GetTaskId())]++
					if tt.started {
						w.started(o)
					}
					w.report(o, text(2, tt.end), text(6, text(2, "no, thank you")))
					continue
				case <-w.over:
					t.Fatalf("the session ended: %v", w.err)
				case <-over:
				}
				break
			}
			for _, id := range ids {
				if seen[id] == 0 || seen[id] > tt.most {
					t.Errorf("task %s was offered %d times: want 1 to %d", id, seen[id], tt.most)
				}
			}
			w.cancel()
			s.end()
		})
	}
}
