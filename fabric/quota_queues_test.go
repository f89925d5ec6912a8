package fabric

import (
	"context"
	"testing"

	"github.com/treadle-dev/treadle/store"
)

// TestQueuesUnderWay: a queue that a call under way was let in with counts, though a reading
// from the store meanwhile does not have it yet.
func TestQueuesUnderWay(t *testing.T) {
	stored := map[string]struct{}{}
	readings := 0
	q := &quotas{limits: Quotas{Queues: 2}, accounts: map[string]*account{}, usage: func(context.Context, string) (store.Usage, error) {
		readings++
		return store.Usage{Queues: stored}, nil
	}}
	admit := func(queue string) *admission {
		t.Helper()
		ad, err := q.admit(context.Background(), "owner", []demand{{functions: 1, queue: queue}})
		if err != nil {
			t.Fatal(err)
		}
		return ad
	}
	one, two := admit("one"), admit("two")
	if admit("three").refused == nil {
		t.Error("a third queue was let in beside two that are under way")
	}
	if readings < 2 {
		t.Errorf("%d readings: the refusal was to look again", readings)
	}
	if admit("two").refused != nil {
		t.Error("a queue that was let in is refused the second time")
	}
	stored = map[string]struct{}{"one": {}}
	one.done([]bool{true})
	two.done([]bool{true}) // the reading that follows may have begun before
	if admit("three").refused == nil {
		t.Error("a third queue was let in beside one that is stored and one that was just stored")
	}
}
