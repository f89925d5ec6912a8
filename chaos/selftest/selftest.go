// Package selftest tests the tests: it makes each mistake of internal/seededbug on purpose
// and checks that the cheapest fitting test finds it, and that the same test passes
// without. With -scenario the test is one of the suite's scenarios, on real processes.
package selftest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
)

// limit is how soon a bug must be found.
const limit = 60 * time.Second

// catch is the test that finds a bug.
type catch struct {
	bug seededbug.Bug
	// pkg is the package, run the pattern of -test.run; env is added to the environment.
	pkg, run string
	env      []string
}

// catches lists them by bug. The conformance suite and the simulation know nothing of the
// bugs: they say what a store and a dispatcher must do.
var catches = []catch{
	{bug: seededbug.NoFence, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^(Settle|Lease)$"},
	{bug: seededbug.AckBeforeSync, pkg: "store/pebblestore", run: "^TestPowerCut$", env: []string{"CRASH_SEEDS=20"}},
	{bug: seededbug.DoubleReap, pkg: "store/redisstore", run: "^TestRenewalBeatsReaper$"},
	{bug: seededbug.LostCancel, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^Cancel$"},
	{bug: seededbug.OffByOneRetries, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^Lease$"},
	{bug: seededbug.ReusedEpoch, pkg: "dispatcher", run: "^TestSimulation$"},
	{bug: seededbug.ReplyBeforeWait, pkg: "store/redisstore", run: "^TestReplicated$"},
	{bug: seededbug.ClaimTwice, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^Claim$"},
	{bug: seededbug.GCLive, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^Retention$"},
	{bug: seededbug.LocalDeadline, pkg: "store/redisstore", run: "^TestCallerClockIsOff$"},
	{bug: seededbug.ResultOverwrite, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^(Settle|Lease)$"},
	{bug: seededbug.FalseAck, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^(Settle|Lease)$"},
	{bug: seededbug.NoRenewalFence, pkg: "store/pebblestore", run: "^TestConformance$/^CrashableMemory$/^(Settle|Lease)$"},
	{bug: seededbug.DrainLoses, pkg: "worker", run: "^TestDrainFinishesWhatRuns$"},
	{bug: seededbug.FalseRaise, pkg: "worker", run: "^TestTruthful$"},
	{bug: seededbug.FalseTimeout, pkg: "worker", run: "^TestTruthful$"},
	{bug: seededbug.FalseExhausted, pkg: "worker", run: "^TestTruthful$"},
	{bug: seededbug.FalseUnread, pkg: "worker", run: "^TestTruthful$"},
	{bug: seededbug.FalseLoss, pkg: "worker", run: "^TestTruthful$"},
	{bug: seededbug.FalseCancel, pkg: "worker", run: "^TestTruthful$"},
}

// Outcome is what came of one bug.
type Outcome struct {
	Bug     seededbug.Bug `json:"bug"`
	Check   string        `json:"check"`
	Caught  bool          `json:"caught"`
	Seconds float64       `json:"seconds"`
	// By is the first test that failed.
	By string `json:"by,omitempty"`
	// Clean says that the same check passes without the bug.
	Clean bool   `json:"clean"`
	Error string `json:"error,omitempty"`
}

// ok says that the bug was found, in time, by a check that is sound.
func (o *Outcome) ok() bool {
	return o.Caught && o.Clean && o.Seconds < o.limit().Seconds() && o.Error == ""
}

// limit is how soon the bug must have been found.
func (o *Outcome) limit() time.Duration {
	if strings.Contains(o.Check, " on ") {
		return runLimit
	}
	return limit
}

// Main is the command; it returns its exit code.
func Main(root string, args []string) int {
	fs := flag.NewFlagSet("chaos selftest", flag.ExitOnError)
	one := fs.String("bug", "", "only this bug")
	scenarios := fs.Bool("scenario", false, "find each by a scenario of the suite, on real processes")
	asJSON := fs.Bool("json", false, "one JSON object for each bug")
	_ = fs.Parse(args) // it exits by itself
	dir, err := os.MkdirTemp("", "treadle-chaos-selftest-")
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 1
	}
	defer os.RemoveAll(dir)
	r := &runner{root: root, dir: dir, built: map[string]string{}, clean: map[string]error{}}
	var list []Outcome
	bad := 0
	for _, bug := range seededbug.Bugs() {
		if *one != "" && string(bug) != *one {
			continue
		}
		o := Outcome{Bug: bug, Error: "nothing looks for it"}
		if *scenarios {
			if i := slices.IndexFunc(hunts, func(h hunt) bool { return h.bug == bug }); i >= 0 {
				o = r.hunt(hunts[i])
			}
		} else if i := slices.IndexFunc(catches, func(c catch) bool { return c.bug == bug }); i >= 0 {
			o = r.check(catches[i])
		}
		list = append(list, o)
		if !o.ok() {
			bad++
		}
		if *asJSON {
			_ = json.NewEncoder(os.Stdout).Encode(o) // a reader that is gone ends the program
		}
	}
	if !*asJSON {
		print(list)
	}
	if bad > 0 || len(list) == 0 || *one == "" && len(list) != len(seededbug.Bugs()) {
		fmt.Fprintf(os.Stderr, "chaos: %d of %d seeded bugs were not caught as they should\n", bad, len(list))
		return 1
	}
	return 0
}

func print(list []Outcome) {
	t := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "seeded bug\tcaught\tseconds\tby\twithout it")
	for _, o := range list {
		clean := "passes"
		if !o.Clean {
			clean = "FAILS"
		}
		caught := "yes"
		if !o.Caught {
			caught = "NO"
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\t%s\n", o.Bug, caught, o.Seconds, strings.TrimPrefix(o.Check+": "+o.By, ": "), clean)
		if o.Error != "" {
			fmt.Fprintf(t, "\t%s\n", o.Error)
		}
	}
	_ = t.Flush() // to a terminal or a pipe
}

// runner builds each package's tests once.
type runner struct {
	root, dir string
	built     map[string]string
	clean     map[string]error
}

func (r *runner) check(c catch) Outcome {
	o := Outcome{Bug: c.bug, Check: c.pkg}
	binary, err := r.build(c.pkg)
	if err != nil {
		o.Error = err.Error()
		return o
	}
	id := c.pkg + " " + c.run
	if _, known := r.clean[id]; !known {
		_, r.clean[id] = r.test(binary, c, "")
	}
	if err := r.clean[id]; err != nil {
		o.Error = fmt.Sprintf("without the bug: %v", err)
	} else {
		o.Clean = true
	}
	began := time.Now()
	by, err := r.test(binary, c, c.bug)
	o.Seconds = time.Since(began).Seconds()
	var failed *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &failed) && by != "":
		o.Caught, o.By = true, by
	default:
		o.Error = err.Error()
	}
	return o
}

func (r *runner) build(pkg string) (string, error) {
	if b := r.built[pkg]; b != "" {
		return b, nil
	}
	b := filepath.Join(r.dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	cmd := exec.Command("go", "test", "-c", "-tags", "chaos", "-o", b, "./"+pkg)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
	}
	r.built[pkg] = b
	return b, nil
}

// test runs a check, with a bug or without, and returns the name of the test that failed.
func (r *runner) test(binary string, c catch, bug seededbug.Bug) (by string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.run", c.run, "-test.failfast", "-test.timeout", limit.String())
	cmd.Dir = filepath.Join(r.root, c.pkg)
	cmd.WaitDelay = time.Second
	cmd.Env = append(slices.Clone(os.Environ()), c.env...)
	cmd.Env = append(cmd.Env, seededbug.Env+"="+string(bug))
	out, err := cmd.CombinedOutput()
	if err == nil && strings.Contains(string(out), "no tests to run") {
		return "", fmt.Errorf("%s: no test matches %s", c.pkg, c.run)
	}
	// The deepest name is the most telling.
	for line := range strings.SplitSeq(string(out), "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " (")
			if len(name) > len(by) {
				by = name
			}
		}
	}
	if by == "" && strings.Contains(string(out), "panic: ") {
		_, rest, _ := strings.Cut(string(out), "panic: ")
		by, _, _ = strings.Cut(rest, "\n")
	}
	if err != nil && bug == "" {
		return by, fmt.Errorf("%s fails: %w\n%s", c.run, err, out)
	}
	return by, err
}
