package dispatcher

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/treadle-dev/treadle/link"
	"github.com/treadle-dev/treadle/task"
)

func results(sizes ...int) *link.Outcomes {
	f := &link.Outcomes{}
	for _, n := range sizes {
		f.Items = append(f.Items, link.Report{Outcome: task.Outcome{End: task.EndSucceeded, Result: make([]byte, n)}})
	}
	return f
}

// TestReportsWait: results beyond the room wait until others are recorded, small ones and
// other frames never do, and an owner's share is his own matter.
func TestReportsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const payload = 1 << 20
		r := newReports(payload)
		take := func(owner string, f link.Frame) chan *reportHold {
			got := make(chan *reportHold, 1)
			go func() {
				h, err := r.take(t.Context(), owner, f)
				if err != nil {
					t.Error(err)
				}
				got <- h
			}()
			synctest.Wait()
			return got
		}
		waits := func(c chan *reportHold) bool { return len(c) == 0 }
		for _, f := range []link.Frame{&link.Beat{}, results(), results(smallReports), results(smallReports/2, smallReports/2)} {
			if c := take("a", f); waits(c) || <-c != nil {
				t.Errorf("%T of %d bytes counts", f, reportBytes(f))
			}
		}
		var held []*reportHold
		for range reportPayloads / 2 {
			held = append(held, <-take("a", results(payload)))
		}
		over := take("a", results(payload))
		if !waits(over) {
			t.Fatal("an owner has more than its share")
		}
		for range reportPayloads / 2 {
			held = append(held, <-take("b", results(payload)))
		}
		full := take("c", results(payload))
		if !waits(full) {
			t.Fatal("more than the room is held")
		}
		if c := take("c", results(10)); waits(c) {
			t.Fatal("a small result waits")
		}
		held[reportPayloads/2].release() // one of b
		synctest.Wait()
		if waits(full) || !waits(over) {
			t.Fatal("room was given back: want c to have it, and a to wait for its own share")
		}
		held[0].release()
		synctest.Wait()
		if waits(over) {
			t.Fatal("a waits though its share has room")
		}
		for i, h := range append(held, <-full, <-over) {
			if i != 0 && i != reportPayloads/2 {
				h.release()
			}
		}
		if r.held() != 0 || len(r.owners) != 0 {
			t.Fatalf("%d bytes of %v are left", r.held(), r.owners)
		}
		alone := <-take("a", results(2*reportPayloads*payload))
		if alone == nil || r.held() != 2*reportPayloads*payload {
			t.Fatal("a frame larger than the room does not pass alone")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := r.take(ctx, "b", results(payload))
			ended <- err
		}()
		synctest.Wait()
		gone := errors.New("the stream ended")
		cancel(gone)
		if err := <-ended; !errors.Is(err, gone) {
			t.Fatalf("a wait whose stream ended: %v", err)
		}
		alone.release()
	})
}
