package pebblestore

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// fixtureVariable names the archive that [TestStoresOfAllFormats] writes: run it so with the
// last build of a format, before the format changes, and add the archive to testdata.
const fixtureVariable = "PEBBLESTORE_FIXTURE"

// TestStoresOfAllFormats opens stores that builds of each format wrote, with tasks in every
// state, and goes on with them until all are finished and removed.
func TestStoresOfAllFormats(t *testing.T) {
	t.Parallel()
	t.Run("this build", func(t *testing.T) {
		t.Parallel()
		f := everyState(t)
		if name := os.Getenv(fixtureVariable); name != "" {
			if err := f.s.Close(); err != nil {
				t.Fatal(err)
			}
			pack(t, f.opts.FS, f.opts.Dir, name)
			f.open(t)
		} else {
			f.reopen(t)
		}
		goOn(t, f)
	})
	archives, err := filepath.Glob("testdata/*.zip")
	if err != nil || len(archives) == 0 {
		t.Fatal("there is no store of an earlier format", err)
	}
	for _, name := range archives {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			f := &fixture{clock: newClock()}
			f.opts = everyStateOptions(f.clock)
			unpack(t, name, f.opts.FS, f.opts.Dir)
			f.clock.Advance(time.Second)
			f.open(t)
			t.Cleanup(func() {
				if err := f.s.Close(); err != nil {
					t.Error(err)
				}
			})
			goOn(t, f)
		})
	}
}

func everyStateOptions(c *fakeClock) Options {
	return Options{Dir: "store", FS: vfs.NewMem(), Retention: time.Minute, Lease: 10 * time.Second, Now: c.Now, Logger: quiet, MinFree: -1}
}

// The tasks of [everyState], by the last byte of their ids.
const (
	isQueued = iota + 1
	isLarge
	isDelayed
	isReturned
	isSmallResult
	isLargeResult
	isFailed
	isCancelled
	isOffered
	isRunning
	isReclaimed
	isLocal
	isLast
)

func stateID(n int) task.ID {
	id := task.ID{1, 0x90, 0, 0, 0, 0, 0x70, 0, 0x80}
	binary.BigEndian.PutUint32(id[12:], uint32(n))
	return id
}

func stateArgs(n int) []byte {
	if n == isLarge || n == isRunning {
		return bytes.Repeat([]byte{byte(n)}, 3*maxInlineArgs)
	}
	return fmt.Append(nil, "arguments ", n)
}

func stateKey(n int) string {
	if n%2 == 0 {
		return fmt.Sprintf("a key of task %d", n)
	}
	return stateID(1000 + n).String()
}

func largeResult() []byte { return bytes.Repeat([]byte("result"), maxInlineResult) }

var stateFunction = task.Function{ID: stateID(500), Name: "double", Queue: task.DefaultQueue, Runtime: task.RuntimePython,
	Form: task.FormPickle, Hash: sha256.Sum256([]byte("def")), Size: 3, CreatedBy: "owner"}

// everyState makes a store with a task in each state, half of it before the store was opened
// again, so that records are found in tables and in the log.
func everyState(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t, func(o *Options) { o.FS = vfs.NewMem() })
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	f.opts = everyStateOptions(f.clock)
	f.open(t)
	ctx := context.Background()
	if _, err := f.s.PutFunction(ctx, stateFunction, []byte("def"), store.Key{ID: "function"}); err != nil {
		t.Fatal(err)
	}
	settle := func(n int, out task.Outcome, log string) {
		t.Helper()
		f.clock.Advance(time.Millisecond)
		got, err := f.s.Settle(ctx, f.clock.Now(), []store.Settlement{{Token: stateToken(t, f, n), Outcome: out, Jitter: 0.5, Log: []byte(log)}})
		if err != nil || got[0] != task.VerdictRecorded {
			t.Fatal(n, got, err)
		}
	}
	for n := isQueued; n <= isCancelled; n++ {
		stateSubmit(t, f, n)
	}
	for n := isDelayed; n <= isFailed; n++ {
		stateClaim(t, f, n, false)
	}
	settle(isDelayed, task.Outcome{End: task.EndRaised, Failure: &task.Failure{Type: "ValueError", Message: "once"}, RetryAfter: 5 * time.Second}, "output")
	settle(isReturned, task.Fail(task.EndReturned, "a drain"), "")
	settle(isSmallResult, task.Outcome{End: task.EndSucceeded, Result: []byte("42"), Encoding: task.EncodingJSON, RunTime: time.Millisecond}, "output")
	settle(isLargeResult, task.Outcome{End: task.EndSucceeded, Result: largeResult(), Encoding: task.EncodingPickle}, "")
	settle(isFailed, task.Outcome{End: task.EndRaised, NoRetry: true, Failure: &task.Failure{
		Type: "KeyError", Message: "no", Traceback: "line 1", Pickle: []byte{1}, ForeignPickle: []byte{2}}}, "output")
	if _, err := f.s.Cancel(ctx, f.clock.Now(), []task.ID{stateID(isCancelled)}, false); err != nil {
		t.Fatal(err)
	}
	f.reopen(t)
	for n := isOffered; n < isLast; n++ {
		stateSubmit(t, f, n)
	}
	stateClaim(t, f, isReclaimed, false)
	settle(isReclaimed, task.Fail(task.EndLost, "its worker died"), "output")
	for n := isOffered; n <= isLocal; n++ {
		stateClaim(t, f, n, n == isLocal)
	}
	now := f.clock.Now()
	if _, err := f.s.Renew(ctx, now, []store.Renewal{{Token: stateToken(t, f, isRunning), StartedAt: now, Until: now.Add(time.Minute)}}); err != nil {
		t.Fatal(err)
	}
	return f
}

func stateSubmit(t *testing.T, f *fixture, n int) {
	t.Helper()
	args := stateArgs(n)
	got, err := f.s.Submit(context.Background(), f.clock.Now(), []store.Submission{{
		Task: &task.Task{
			ID: stateID(n), Function: stateFunction.ID, FunctionName: stateFunction.Name, Queue: fmt.Sprint("queue-", n), Runtime: task.RuntimePython,
			Form: stateFunction.Form, Hash: stateFunction.Hash, CreatedBy: "owner", Parent: task.ID{7},
			Spec: task.Spec{Priority: n % 10, Timeout: time.Minute, Deadline: f.clock.Now().Add(time.Hour), MaxRetries: 3,
				FunctionRetries: 2, MemoryLimit: 1 << 30},
			Args: task.EncodingPickle, Returns: task.EncodingJSON, ArgsSize: len(args)},
		Args: args, Key: store.Key{ID: stateKey(n), Digest: [32]byte{byte(n)}}}})
	if err != nil || got[0].Err != nil || got[0].ID != stateID(n) {
		t.Fatal(n, got, err)
	}
}

// stateClaim claims a task, which is alone in its queue.
func stateClaim(t *testing.T, f *fixture, n int, local bool) store.Claimed {
	t.Helper()
	now := f.clock.Now()
	got, err := f.s.Claim(context.Background(), now, []store.ClaimRequest{{Claim: stateID(2000 + n), Session: task.ID{3}, Worker: stateID(3000).String(),
		Local: local, Queues: []string{fmt.Sprint("queue-", n)}, Runtimes: []string{task.RuntimePython}, Max: 1, Until: now.Add(10 * time.Second)}})
	if err != nil || len(got[0]) != 1 || !bytes.Equal(got[0][0].Args, stateArgs(n)) {
		t.Fatal(n, got, err)
	}
	return got[0][0]
}

// stateToken is the token of the claim in force.
func stateToken(t *testing.T, f *fixture, n int) task.Token {
	t.Helper()
	got, err := f.s.Task(context.Background(), stateID(n))
	if err != nil {
		t.Fatal(n, err)
	}
	tok, ok := got.Token()
	if !ok || tok.Claim != stateID(2000+n) {
		t.Fatalf("task %d is held by %+v", n, got.Lease)
	}
	return tok
}

// goOn checks what [everyState] left, after the store was opened again, and finishes it.
func goOn(t *testing.T, f *fixture) {
	t.Helper()
	ctx := context.Background()
	if err := f.s.CheckInvariants(ctx); err != nil {
		t.Fatal(err)
	}
	checkStates(t, f)
	if v, err := f.s.read(keyFormat); err != nil || len(v) != 1 || v[0] != formatVersion {
		t.Fatalf("the store is of format %v now, want %d; %v", v, formatVersion, err)
	}
	// A request sent again names the task of the first one.
	for n := isQueued; n < isLast; n++ {
		got, err := f.s.Submit(ctx, f.clock.Now(), []store.Submission{{Task: sampleTask(nil), Key: store.Key{ID: stateKey(n), Digest: [32]byte{byte(n)}}}})
		if err != nil || !got[0].Duplicate || got[0].ID != stateID(n) {
			t.Fatalf("the request of task %d again: %+v, %v", n, got, err)
		}
	}
	// A claim sent again is given what it holds, and its tokens still count.
	for _, n := range []int{isOffered, isRunning, isReclaimed} {
		again := stateClaim(t, f, n, false)
		if again.Token != stateToken(t, f, n) {
			t.Fatalf("the claim of task %d again: %+v", n, again.Token)
		}
		finish(t, f, n)
	}
	f.clock.Advance(6 * time.Second) // over all delays
	for _, n := range []int{isQueued, isLarge, isDelayed, isReturned, isLocal} {
		stateClaim(t, f, n, false)
		finish(t, f, n)
	}
	if err := f.s.CheckInvariants(ctx); err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(2 * f.opts.Retention)
	if _, err := f.s.Reap(ctx, f.clock.Now(), 1000); err != nil {
		t.Fatal(err)
	}
	if page, _, err := f.s.ListTasks(ctx, store.ListQuery{Limit: 100}); err != nil || len(page) != 0 {
		t.Fatalf("%d tasks are left after their retention, %v", len(page), err)
	}
	if err := f.s.CheckInvariants(ctx); err != nil {
		t.Fatal(err)
	}
	keys, err := f.s.CountKeys()
	// Format, clock, its copy, and the function with its bytes, name and key.
	if err != nil || keys != 7 {
		t.Fatalf("%d keys are left of a store without tasks, want 7; %v", keys, err)
	}
}

func finish(t *testing.T, f *fixture, n int) {
	t.Helper()
	got, err := f.s.Settle(context.Background(), f.clock.Now(), []store.Settlement{{Token: stateToken(t, f, n), Outcome: task.Outcome{
		End: task.EndSucceeded, Result: []byte("1"), Encoding: task.EncodingJSON}}})
	if err != nil || got[0] != task.VerdictRecorded {
		t.Fatal(n, got, err)
	}
}

func checkStates(t *testing.T, f *fixture) {
	t.Helper()
	ctx := context.Background()
	page, _, err := f.s.ListTasks(ctx, store.ListQuery{Limit: 100})
	if err != nil || len(page) != isLast-1 {
		t.Fatalf("%d tasks are listed, want %d; %v", len(page), isLast-1, err)
	}
	slices.Reverse(page)
	created := newClock().Now()
	for i, got := range page {
		n := i + 1
		want := map[int]task.Status{isSmallResult: task.Completed, isLargeResult: task.Completed, isFailed: task.Failed, isCancelled: task.Cancelled}[n]
		if want == "" {
			want = task.Queued
		}
		leased := n == isOffered || n == isRunning || n == isReclaimed
		attempts := map[int]int{isDelayed: 1, isSmallResult: 1, isLargeResult: 1, isFailed: 1, isReclaimed: 1, isLocal: 1}[n]
		if got.ID != stateID(n) || got.Status != want || (got.Lease != nil) != leased || got.AttemptCount != attempts || len(got.Attempts) != attempts {
			t.Errorf("task %d: %+v with lease %+v, want %s, leased %t, %d attempts", n, got, got.Lease, want, leased, attempts)
		}
		if got.Function != stateFunction.ID || got.FunctionName != "double" || got.Queue != fmt.Sprint("queue-", n) ||
			got.Runtime != task.RuntimePython || got.Form != task.FormPickle || got.Hash != stateFunction.Hash ||
			got.CreatedBy != "owner" || got.Parent != (task.ID{7}) || got.Args != task.EncodingPickle || got.Returns != task.EncodingJSON ||
			got.ArgsSize != len(stateArgs(n)) || got.CreatedAt.Sub(created) < 0 || got.CreatedAt.Sub(created) > time.Second {
			t.Errorf("task %d lost something of its submission: %+v", n, got)
		}
		spec := task.Spec{Priority: n % 10, Timeout: time.Minute, Deadline: got.Deadline, MaxRetries: 3, FunctionRetries: 2, MemoryLimit: 1 << 30}
		if got.Spec != spec || got.Deadline.Sub(got.CreatedAt) != time.Hour {
			t.Errorf("task %d lost something of its options: %+v", n, got.Spec)
		}
		if leased && (got.Lease.Worker != stateID(3000).String() || got.Lease.Session != (task.ID{3}) || got.Lease.Local) {
			t.Errorf("task %d is held by %+v", n, got.Lease)
		}
		if want.Terminal() != !got.FinishedAt.IsZero() || want.Terminal() && got.FinishedAt.Sub(got.CreatedAt) > time.Second {
			t.Errorf("task %d finished at %s", n, got.FinishedAt)
		}
		for _, a := range got.Attempts {
			if a.Number != 1 || a.Worker != stateID(3000).String() || a.StartedAt.Before(got.CreatedAt) && n != isLocal || a.FinishedAt.Before(a.StartedAt) || a.End == "" {
				t.Errorf("task %d has the attempt %+v", n, a)
			}
		}
		log, err := f.s.Log(ctx, stateID(n), 1)
		if hasLog := slices.Contains([]int{isDelayed, isSmallResult, isFailed, isReclaimed}, n); err != nil || hasLog != (string(log) == "output") {
			t.Errorf("task %d has the output %q, %v", n, log, err)
		}
	}
	if failed := page[isFailed-1].Failure; failed == nil || failed.Type != "KeyError" || failed.Message != "no" || failed.Traceback != "line 1" ||
		string(failed.Pickle) != "\x01" || string(failed.ForeignPickle) != "\x02" || failed.Worker != stateID(3000).String() {
		t.Errorf("the failure is %+v", failed)
	}
	for n, want := range map[int][]byte{isSmallResult: []byte("42"), isLargeResult: largeResult()} {
		if got, result, err := f.s.Result(ctx, stateID(n)); err != nil || !bytes.Equal(result, want) || got.LastClaim != stateID(2000+n) {
			t.Errorf("the result of task %d has %d bytes, want %d; %v", n, len(result), len(want), err)
		}
	}
	if d := page[isDelayed-1]; d.NotBefore.Sub(d.CreatedAt) < 5*time.Second || d.Failures != 1 {
		t.Errorf("the delayed task waits until %s after %d failures", d.NotBefore, d.Failures)
	}
}

// pack writes a folder into an archive.
func pack(t *testing.T, fs vfs.FS, dir, name string) {
	t.Helper()
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(out)
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, n := range names {
		if info, err := fs.Stat(path.Join(dir, n)); err != nil || info.IsDir() || n == "LOCK" {
			continue
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: n, Method: zip.Deflate})
		if err == nil {
			_, err = w.Write(fileBytes(t, fs, path.Join(dir, n)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(z.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
}

// unpack makes a folder of what an archive holds.
func unpack(t *testing.T, name string, fs vfs.FS, dir string) {
	t.Helper()
	z, err := zip.OpenReader(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range z.File {
		if strings.ContainsAny(file.Name, "/\\") {
			t.Fatalf("%s: a store has no folder such as %s", name, file.Name)
		}
		r, err := file.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fs, path.Join(dir, file.Name), b)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}
