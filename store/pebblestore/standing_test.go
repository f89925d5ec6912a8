package pebblestore

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// standBy stands a request and returns its claim id and what it is served with.
func standBy(t *testing.T, f *fixture, runtime string) (task.ID, *[]store.Claimed) {
	t.Helper()
	got := new([]store.Claimed)
	r := store.ClaimRequest{
		Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: []string{runtime}, Max: 9,
	}
	// deliver comes before the answer to the call whose commit it is part of.
	err := f.s.Stand(context.Background(), f.clock.Now(), r, 10*time.Second, func(tasks []store.Claimed) { *got = append(*got, tasks...) })
	if err != nil {
		t.Fatal(err)
	}
	return r.Claim, got
}

// TestStandingIsServed: a request that waits gets the task in the change that makes it
// ready, once and for good.
func TestStandingIsServed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	var rings []store.Signal
	defer f.s.Bell().Listen(func(batch []store.Signal) { rings = append(rings, batch...) })()
	claim, got := standBy(t, f, task.RuntimePython)
	_, other := standBy(t, f, "go/f")
	first := submitOne(t, f)
	if len(*got) != 1 || (*got)[0].Token.Task != first || (*got)[0].Token.Claim != claim || string((*got)[0].Args) != "args" {
		t.Fatalf("served %+v, want task %s", *got, first)
	}
	if len(rings) != 0 {
		t.Errorf("the bell rang %+v for a task that was given away", rings)
	}
	lease := (*got)[0].Task.Lease
	if lease == nil || !lease.Until.Equal(f.clock.Now().Add(10*time.Second)) {
		t.Errorf("the lease is %+v, want one of 10 s from now", lease)
	}
	// It is one request for one task.
	second := submitOne(t, f)
	if len(*got) != 1 || len(*other) != 0 || len(rings) != 1 || rings[0].Kind != store.Ready {
		t.Fatalf("served %d and %d tasks, rings %+v", len(*got), len(*other), rings)
	}
	if c := claimOne(t, f); c.Token.Task != second {
		t.Fatalf("claimed %s, want %s", c.Token.Task, second)
	}
	// The claim was part of the commit: it is there after a reopening, under the same token.
	f.reopen(t)
	verdicts, err := f.s.Settle(context.Background(), f.clock.Now(), []store.Settlement{
		{Token: (*got)[0].Token, Outcome: task.Outcome{End: task.EndSucceeded, Result: []byte("1"), Encoding: task.EncodingJSON}},
	})
	if err != nil || verdicts[0] != task.VerdictRecorded {
		t.Fatalf("the outcome of the standing claim: %v, %v", verdicts, err)
	}
}

func TestStandingFindsWhatIsThere(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	id := submitOne(t, f)
	_, got := standBy(t, f, task.RuntimePython)
	if len(*got) != 1 || (*got)[0].Token.Task != id {
		t.Fatalf("served %+v, want task %s before Stand returned", *got, id)
	}
	// What goes back is served again, by whoever waits longest.
	_, next := standBy(t, f, task.RuntimePython)
	_, last := standBy(t, f, task.RuntimePython)
	_, err := f.s.Settle(context.Background(), f.clock.Now(), []store.Settlement{
		{Token: (*got)[0].Token, Outcome: task.Fail(task.EndReturned, "handed back")},
	})
	if err != nil || len(*next) != 1 || (*next)[0].Token.Task != id || len(*last) != 0 {
		t.Fatalf("served %+v and %+v after the task went back, %v", *next, *last, err)
	}
}

func TestStandingIsWithdrawn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	claim, got := standBy(t, f, task.RuntimePython)
	f.s.Withdraw(claim)
	f.s.Withdraw(claim) // and once more: it does no harm
	id := submitOne(t, f)
	if c := claimOne(t, f); len(*got) != 0 || c.Token.Task != id {
		t.Fatalf("a withdrawn request was served with %+v", *got)
	}
}

// TestStandingLeavesLargeArguments: what has to be read from the disk is left to a claim,
// and who stands for it is told, as nobody else may have room.
func TestStandingLeavesLargeArguments(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	var answers [][]store.Claimed
	r := store.ClaimRequest{
		Claim: randomID(), Session: task.ID{1}, Worker: "w", Queues: []string{"default"}, Runtimes: []string{task.RuntimePython},
	}
	err := f.s.Stand(context.Background(), f.clock.Now(), r, 10*time.Second, func(tasks []store.Claimed) { answers = append(answers, tasks) })
	if err != nil {
		t.Fatal(err)
	}
	args := bytes.Repeat([]byte("a"), 8<<20)
	tk := sampleTask(args)
	if _, err := f.s.Submit(context.Background(), f.clock.Now(), []store.Submission{{Task: tk, Args: args}}); err != nil {
		t.Fatal(err)
	}
	if len(answers) != 1 || len(answers[0]) != 0 {
		t.Fatalf("answered %d times, want once and without a task: %+v", len(answers), answers)
	}
	if c := claimOne(t, f); !bytes.Equal(c.Args, args) {
		t.Fatalf("claimed with %d bytes of arguments", len(c.Args))
	}
}

// TestStandingLeavesTheExpired: a task past its deadline is not handed out, nor is a large
// one behind it without its arguments.
func TestStandingLeavesTheExpired(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	submitOne(t, f, func(tk *task.Task) { tk.Deadline = f.clock.Now().Add(time.Second) })
	f.clock.Advance(2 * time.Second)
	_, got := standBy(t, f, task.RuntimePython)
	if len(*got) != 0 {
		t.Fatalf("served %+v, whose deadline has passed", *got)
	}
	id := submitOne(t, f)
	if c := claimOne(t, f); c.Token.Task != id {
		t.Fatalf("claimed %s, want %s", c.Token.Task, id)
	}
}

// TestStandingGetsTheDelayed: the end of a delay is no change of the disk, and serves who
// stands for the task all the same, then or later.
func TestStandingGetsTheDelayed(t *testing.T) {
	t.Parallel()
	t.Run("Stands", func(t *testing.T) { t.Parallel(); delayed(t, false) })
	t.Run("StandsLater", func(t *testing.T) { t.Parallel(); delayed(t, true) })
}

func delayed(t *testing.T, withdrawn bool) {
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	id := submitOne(t, f)
	for n := 1; ; n++ {
		c := claimOne(t, f)
		_, err := f.s.Settle(context.Background(), f.clock.Now(), []store.Settlement{
			{Token: c.Token, Outcome: task.Fail(task.EndLost, "killed"), Jitter: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		if n == 2 {
			break // backoff starts with the second loss
		}
	}
	claim, got := standBy(t, f, task.RuntimePython)
	if len(*got) != 0 {
		t.Fatalf("served %+v before its delay is over", *got)
	}
	if withdrawn {
		f.s.Withdraw(claim)
	}
	f.clock.Advance(time.Minute)
	if _, err := f.s.Reap(context.Background(), f.clock.Now(), 10); err != nil {
		t.Fatal(err)
	}
	if withdrawn {
		if len(*got) != 0 {
			t.Fatalf("served %+v after it was withdrawn", *got)
		}
		_, got = standBy(t, f, task.RuntimePython)
	}
	if len(*got) != 1 || (*got)[0].Token.Task != id {
		t.Fatalf("served %+v, want task %s", *got, id)
	}
}
