package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/chaos/check"
	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/load"
	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/store/pebblestore"
	"github.com/treadle-dev/treadle/task"
)

// fillDisk takes the space away under the embedded store and gives it back.
func fillDisk(ctx context.Context, e *Env) error {
	filler := filepath.Join(e.Dir, "data", "filler")
	// What is not of the load is left out by its checks.
	probe, err := e.API().RegisterSource(ctx, "probe", "def probe(): pass\n")
	if err != nil {
		return err
	}
	if err := e.Mark("the disk fills up"); err != nil {
		return err
	}
	f, err := os.Create(filler)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block) // until it is full
	}
	// An open file keeps its space when it is removed.
	if err := f.Close(); err != nil {
		return err
	}
	if err := e.Pause(ctx, 6*time.Second); err != nil {
		return err
	}
	if err := e.Mark("there is space again"); err != nil {
		return err
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	at := history.Now()
	err = cluster.Await(ctx, "submissions are taken again", 15*time.Second, func(ctx context.Context) (bool, error) {
		_, err := e.API().Execute(ctx, requestOf(probe.ID))
		return err == nil, err
	})
	if err != nil {
		return err
	}
	e.Note("submissions were taken %s after there was space; the process ended %d times", time.Duration(history.Now()-at).Round(time.Millisecond), e.Front.Exits())
	return wait(ctx, 2*time.Second)
}

// trickle fills the disk by what the product itself stores, one task after another, until
// it refuses more, and gives back space that somebody else had.
func trickle(ctx context.Context, e *Env) error {
	const (
		argument = 100 << 10
		taken    = 64 << 20
	)
	filler := filepath.Join(e.Dir, "data", "filler")
	if err := os.WriteFile(filler, make([]byte, taken), 0o600); err != nil {
		return err
	}
	impatient, err := treadle.Dial(e.FrontAddr(), treadle.WithRetry(0))
	if err != nil {
		return err
	}
	defer impatient.Close()
	probe, err := e.API().RegisterSource(ctx, "keeps", "def keeps(pad): return len(pad)\n")
	if err != nil {
		return err
	}
	if err := e.Mark("tasks fill the disk"); err != nil {
		return err
	}
	pad := strings.Repeat("x", argument)
	var ids []string
	for {
		id, err := impatient.Execute(ctx, requestOf(probe.ID, pad))
		if errors.Is(err, treadle.ErrExhausted) {
			break
		}
		if err != nil {
			return fmt.Errorf("after %d tasks of %d bytes: %w", len(ids), argument, err)
		}
		ids = append(ids, id)
		if int64(len(ids))*argument > e.DataSize {
			return fmt.Errorf("%d tasks of %d bytes were taken on a disk of %d", len(ids), argument, e.DataSize)
		}
	}
	if len(ids) == 0 {
		return errors.New("this run proves nothing: the first task was refused")
	}
	// What was taken runs to its end.
	for _, id := range ids {
		res, err := e.API().Result(ctx, id, 30*time.Second)
		if err != nil || res.Status != treadle.Completed {
			return fmt.Errorf("task %s was taken before the disk was full and did not complete: %w", id, errors.Join(err, errors.New(string(res.Status))))
		}
	}
	if n := e.Front.Exits(); n > 0 {
		return fmt.Errorf("the process ended %d times on the full disk", n)
	}
	if err := e.Mark("there is space again"); err != nil {
		return err
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	err = cluster.Await(ctx, "submissions are taken again", 15*time.Second, func(ctx context.Context) (bool, error) {
		_, err := impatient.Execute(ctx, requestOf(probe.ID, "x"))
		return err == nil, err
	})
	if err != nil {
		return err
	}
	e.Note("%d tasks of %d kB were taken, then refused; the process did not end", len(ids), argument>>10)
	return nil
}

// shortRetention has tasks wait and run several times as long as a finished one is kept.
func shortRetention(ctx context.Context, e *Env) error {
	fn, err := e.API().RegisterSource(ctx, "outlasts", "import time\ndef outlasts():\n    time.sleep(3)\n    return 'here'\n")
	if err != nil {
		return err
	}
	if err := e.Mark("tasks outlast the retention"); err != nil {
		return err
	}
	var ids []string
	for range 3 * e.Spec.Workers * e.Slots {
		id, err := e.API().Execute(ctx, requestOf(fn.ID))
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	seen := map[string]string{}
	for res, err := range e.API().Await(ctx, ids) {
		if err != nil {
			return fmt.Errorf("I1: %d of %d tasks were seen to end, of the others: %w", len(seen), len(ids), err)
		}
		if res.Status != treadle.Completed {
			return fmt.Errorf("I1: task %s outlasts the retention and is %s", res.TaskID, res.Status)
		}
		seen[res.TaskID] = string(res.JSON)
	}
	if len(seen) != len(ids) {
		return fmt.Errorf("I1: %d of %d tasks that outlast the retention were seen to end", len(seen), len(ids))
	}
	return cluster.Await(ctx, "finished tasks are gone", 30*time.Second, func(ctx context.Context) (bool, error) {
		for _, err := range e.API().Tasks(ctx, "") {
			return false, err
		}
		return true, nil
	})
}

// refusedForSpace is met when clients were told that there is no room.
var refusedForSpace = Condition{"a submission was refused for want of space", func(e *Env, _ *check.Findings) bool {
	files, _ := filepath.Glob(e.HistoryFile("client-*.jsonl")) // the pattern is well formed
	for _, f := range files {
		events, err := history.Read[history.Event](f)
		if err != nil {
			return false
		}
		for _, ev := range events {
			if ev.Op == history.Submit && ev.Class == "EXHAUSTED" {
				return true
			}
		}
	}
	return false
}}

// powerCuts runs the embedded store's own test of power cuts; what fails names its seed.
func powerCuts(ctx context.Context, e *Env) error {
	const seeds = 40
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-tags", "chaos", "-run", "^TestPowerCut$", "-v", "./store/pebblestore")
	cmd.Dir = e.Root
	cmd.Env = append(append(os.Environ(), e.Extra...), fmt.Sprintf("CRASH_SEEDS=%d", seeds))
	out, err := cmd.CombinedOutput()
	for line := range strings.SplitSeq(string(out), "\n") {
		if at := strings.Index(line, ": "); err == nil && at >= 0 && strings.Contains(line, " power cuts over ") {
			e.Note("%s", line[at+2:])
			return nil
		}
	}
	return fmt.Errorf("%w\n%s", errors.Join(err, errors.New("no power was cut")), out)
}

// torn damages copies of a store's files in every way that a disk does, and opens them.
func torn(ctx context.Context, e *Env) error {
	origin := filepath.Join(e.RunDir, "origin")
	open := func(dir string) (*pebblestore.Store, error) {
		return pebblestore.Open(ctx, pebblestore.Options{
			Dir: dir, Durability: pebblestore.Embedded, Retention: time.Hour, Lease: time.Second, MinFree: -1, Logger: slog.New(slog.DiscardHandler),
		})
	}
	ids, err := fillStore(ctx, origin, open)
	if err != nil {
		return err
	}
	refused, whole := 0, 0
	end := time.Now().Add(e.Dur)
	n := 0
	for ; time.Now().Before(end); n++ {
		dir := filepath.Join(e.RunDir, "copy")
		what, err := e.damage(origin, dir)
		if err != nil {
			return err
		}
		s, err := open(dir)
		if err != nil {
			// A refusal must say what is wrong with which file.
			if len(err.Error()) < 20 {
				return fmt.Errorf("%s: refused without a reason: %w", what, err)
			}
			refused++
			os.RemoveAll(dir)
			continue
		}
		present, err := readBack(ctx, s, ids)
		if err == nil {
			err = s.CheckInvariants(ctx)
		}
		broken := s.Err() != nil
		closeErr := s.Close()
		switch {
		case err != nil && task.CodeOf(err) == task.CodeUnavailable, broken:
			refused++ // it noticed the damage when it read it
		case err != nil:
			return fmt.Errorf("I18: %s: the store opens and is wrong: %w", what, errors.Join(err, closeErr))
		case present == len(ids):
			whole++
		default:
			return fmt.Errorf("I1: %s: the store opens with %d of %d acknowledged tasks without a word", what, present, len(ids))
		}
		os.RemoveAll(dir)
	}
	e.Note("%d damaged copies: %d refused, %d opened whole", n, refused, whole)
	if refused == 0 || n < 20 {
		return errors.New("this run proves nothing: no copy was refused")
	}
	return nil
}

// fillStore makes a store with tasks in all states.
func fillStore(ctx context.Context, dir string, open func(string) (*pebblestore.Store, error)) (ids []task.ID, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s, err := open(dir)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	for i := range 300 {
		id := task.ID{0: byte(i >> 8), 1: byte(i), 6: 0x70, 8: 0x80}
		t := &task.Task{
			ID: id, FunctionName: "f", Queue: task.DefaultQueue, Runtime: task.RuntimePython, Form: task.FormSource, Spec: task.Spec{Priority: task.DefaultPriority, MaxRetries: 3},
			Args: task.EncodingJSON, Returns: task.EncodingJSON, ArgsSize: 100,
		}
		if _, err := s.Submit(ctx, now, []store.Submission{{Task: t, Args: make([]byte, 100)}}); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		ids = append(ids, id)
		if i%3 == 0 {
			claims, err := s.Claim(ctx, now, []store.ClaimRequest{{
				Claim: task.ID{15: 1, 1: byte(i), 0: byte(i >> 8)}, Worker: "w", Queues: []string{task.DefaultQueue}, Runtimes: []string{task.RuntimePython}, Max: 1,
				Until: now.Add(time.Hour),
			}})
			if err != nil || len(claims[0]) == 0 {
				return nil, errors.Join(err, errors.New("nothing to claim"), s.Close())
			}
			if i%2 == 0 {
				out := task.Outcome{End: task.EndSucceeded, Result: []byte("1"), Encoding: task.EncodingJSON}
				if _, err := s.Settle(ctx, now, []store.Settlement{{Token: claims[0][0].Token, Outcome: out}}); err != nil {
					return nil, errors.Join(err, s.Close())
				}
			}
		}
	}
	return ids, s.Close()
}

// readBack counts the tasks that are there.
func readBack(ctx context.Context, s *pebblestore.Store, ids []task.ID) (n int, err error) {
	list, err := s.Tasks(ctx, ids)
	for _, t := range list {
		if t != nil {
			n++
		}
	}
	return n, err
}

// damage copies a store and damages one of the files that hold its data.
func (e *Env) damage(from, to string) (what string, err error) {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return "", err
	}
	var data []string
	for _, entry := range entries {
		if err := copyFile(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return "", err
		}
		if ext := filepath.Ext(entry.Name()); ext == ".log" || ext == ".sst" || strings.HasPrefix(entry.Name(), "MANIFEST") {
			data = append(data, entry.Name())
		}
	}
	name := data[e.Pick(len(data))]
	path := filepath.Join(to, name)
	info, err := os.Stat(path)
	if err != nil || info.Size() == 0 {
		return name, err
	}
	size := int(info.Size())
	if e.Pick(2) == 0 {
		cut := size - 1 - e.Pick(min(size, 4096))
		return fmt.Sprintf("%s cut to %d of %d bytes", name, max(cut, 0), size), os.Truncate(path, int64(max(cut, 0)))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at := e.Pick(size)
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, int64(at)); err != nil {
		return "", err
	}
	bit := byte(1) << e.Pick(8)
	b[0] ^= bit
	_, err = f.WriteAt(b, int64(at))
	return fmt.Sprintf("%s with bit %#x of byte %d flipped", name, bit, at), err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// diskScenarios are rows 16 to 18.
func diskScenarios() []Scenario {
	return []Scenario{
		{
			Row: 16, Name: "power-cut", Fault: "power cuts on the embedded store, with 0, 50 and 100 % of what was not synced",
			Expect: "nothing acknowledged is lost", Stores: []string{"embedded"}, Solo: powerCuts,
		},
		{
			Row: 17, Name: "torn-files", Fault: "torn and bit-flipped files of the embedded store",
			Expect: "starts or refuses, never silently wrong", Stores: []string{"embedded"}, Solo: torn,
		},
		{
			Row: 18, Name: "disk-full", Fault: "the disk of the embedded store fills up", NeedsRoot: true,
			Expect: "submissions are refused, running work finishes, recovers after there is space", Stores: []string{"embedded"},
			// The store's two logs reserve 70 MiB each.
			Spec:   func(_ *Env, s *cluster.Spec) { s.DataSize = 384 << 20 },
			Inject: fillDisk, Sometimes: []Condition{refusedForSpace}, Shape: func(_ *Env, s *load.Shape) { s.ArgBytes = 4 << 10 },
		},
		{
			Row: 18, Name: "disk-fills", Fault: "the disk of the embedded store is filled by its own tasks", NeedsRoot: true,
			Expect: "submissions are refused in time, what was taken completes, the process does not end", Stores: []string{"embedded"},
			Spec:   func(_ *Env, s *cluster.Spec) { s.DataSize = 512 << 20 },
			Inject: trickle, Sometimes: []Condition{Struck}, Shape: func(_ *Env, s *load.Shape) { s.Rate = 5 },
		},
		{
			Name: "short-retention", Fault: "tasks run longer than a finished one is kept", Expect: "they are removed when they have finished, not before",
			Stores: all, Clients: -1, Inject: shortRetention, Sometimes: []Condition{Struck},
			Spec: func(_ *Env, s *cluster.Spec) { s.Retention = time.Second },
		},
	}
}
