// Command chaos breaks Treadle on purpose and checks that nothing that was acknowledged is
// lost: real processes, real faults, recorded histories. See README.md.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/treadle-dev/treadle/chaos/load"
	"github.com/treadle-dev/treadle/chaos/sandbox"
	"github.com/treadle-dev/treadle/chaos/scenario"
	"github.com/treadle-dev/treadle/chaos/selftest"
)

const usage = `usage:
  chaos run  -faults NAME[,NAME...] [-seed N] [-runs N] [-store S|all] [-mode M] [-dur D] [-json] [-keep] [-plain]
  chaos all  [-seed N] [-runs N] [-stores one|all] [-rows 1,2,...] [-dur D] [-soak] [-json] [-keep]
  chaos mix  [-seed N] [-json]
  chaos list
  chaos selftest [-scenario] [-bug NAME] [-json]

  stores: embedded redis replicated sentinel cluster; modes: push pull mixed
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	var code int
	switch command, args := os.Args[1], os.Args[2:]; command {
	case "client":
		code = load.Main()
	case "list":
		list()
	case "selftest":
		code = testTheTests(args)
	case "help", "-h", "--help":
		fmt.Print(usage)
	case "run", "all", "mix":
		code = suite(command, args)
	default:
		fmt.Fprint(os.Stderr, usage)
		code = 2
	}
	os.Exit(code)
}

func list() {
	for _, s := range scenario.Table() {
		fmt.Printf("%3d  %-26s %-32s %s\n", s.Row, s.Name, strings.Join(s.Stores, ","), s.Fault)
	}
}

func testTheTests(args []string) int {
	root, err := (&settings{}).findRoot()
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 1
	}
	return selftest.Main(root, args)
}

// job is one run to make.
type job struct {
	s           *scenario.Scenario
	store, mode string
	dur, lease  time.Duration
}

// settings are the flags of the commands that run scenarios.
type settings struct {
	seed                                                  uint64
	store, mode, faults, stores, rows, python, root, keep string
	dur, lease                                            time.Duration
	runs, tasks                                           int
	slack                                                 float64
	json, plain, keepAll, soak                            bool
	binary                                                string
	env                                                   string
}

// variables that hand on what was built outside the sandbox.
const binaryVar = "TREADLE_CHAOS_BINARY"

func suite(command string, args []string) int {
	var f settings
	fs := flag.NewFlagSet("chaos "+command, flag.ExitOnError)
	fs.Uint64Var(&f.seed, "seed", 1, "what is drawn by lot follows from it")
	fs.StringVar(&f.mode, "mode", "mixed", "push, pull or mixed")
	fs.DurationVar(&f.dur, "dur", 10*time.Second, "how long faults are made")
	fs.DurationVar(&f.lease, "lease", 0, "how long a silent worker keeps its tasks (default the product's)")
	fs.IntVar(&f.runs, "runs", 1, "how often each run is made, with a seed more each time")
	fs.IntVar(&f.tasks, "tasks", scenario.SoakTasks/10, "how many tasks a soak has")
	fs.BoolVar(&f.soak, "soak", false, fmt.Sprintf("the whole soak: -tasks %d", scenario.SoakTasks))
	// The mix shares its machine with builds and other tests.
	slack := 1.0
	if command == "mix" {
		slack = 3
	}
	fs.Float64Var(&f.slack, "slack", slack, "stretches the bounds of recoveries by that factor")
	fs.StringVar(&f.python, "python", "", "interpreter of the workers (default python3 on PATH)")
	fs.StringVar(&f.root, "root", "", "the repository (default found from here)")
	fs.StringVar(&f.keep, "dir", "", "where runs are kept (default the system's temporary folder)")
	fs.BoolVar(&f.json, "json", false, "one JSON object for each run")
	fs.BoolVar(&f.keepAll, "keep", false, "keep the folders of runs that passed too")
	fs.BoolVar(&f.plain, "plain", false, "run the binary that users get: no kill points, no history of the store")
	fs.StringVar(&f.env, "env", "", "NAME=VALUE,... for all processes of Treadle")
	switch command {
	case "run":
		fs.StringVar(&f.store, "store", "", "embedded, redis, replicated, sentinel, cluster, or all of the scenario's (default its first)")
		fs.StringVar(&f.faults, "faults", "", "scenarios, one after another")
	case "all":
		fs.StringVar(&f.stores, "stores", "one", "one store for each scenario, or all")
		fs.StringVar(&f.rows, "rows", "", "rows of the table, all when empty")
	}
	_ = fs.Parse(args) // it exits by itself
	if f.soak {
		f.tasks = scenario.SoakTasks
	}
	jobs, err := f.jobs(command)
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 2
	}
	if f.binary = os.Getenv(binaryVar); f.binary == "" {
		if err := f.build(); err != nil {
			fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
			return 1
		}
	}
	sandbox.Enter()
	if why := sandbox.Why(); why != "" {
		fmt.Fprintf(os.Stderr, "chaos: %s\n", why)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return f.runAll(ctx, command, jobs)
}

// jobs are the runs that a command asks for.
func (f *settings) jobs(command string) (jobs []job, err error) {
	switch command {
	case "run":
		if f.faults == "" {
			return nil, errors.New("-faults is missing: chaos list names the scenarios")
		}
		for name := range strings.SplitSeq(f.faults, ",") {
			s, err := scenario.Find(name)
			if err != nil {
				return nil, err
			}
			stores := []string{cmp.Or(f.store, s.Stores[0])}
			if f.store == "all" {
				stores = s.Stores
			}
			for _, store := range stores {
				jobs = append(jobs, job{s, store, f.mode, f.dur, f.lease})
			}
		}
	case "mix":
		for _, m := range scenario.Mix() {
			s, err := scenario.Find(m.Name)
			if err != nil {
				return nil, err
			}
			jobs = append(jobs, job{s, m.Store, m.Mode, m.Dur, m.Lease})
		}
	default:
		table := scenario.Table()
		for i := range table {
			s := &table[i]
			if f.rows != "" && !slices.Contains(strings.Split(f.rows, ","), fmt.Sprint(s.Row)) {
				continue
			}
			stores := s.Stores[:1]
			if f.stores == "all" {
				stores = s.Stores
			}
			for _, store := range stores {
				jobs = append(jobs, job{s, store, f.mode, f.dur, f.lease})
			}
		}
	}
	return jobs, nil
}

// build makes the program with the kill points and the tap, or as users get it.
func (f *settings) build() error {
	root, err := f.findRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "treadle-chaos-bin-")
	if err != nil {
		return err
	}
	f.binary = filepath.Join(dir, "treadle")
	args := []string{"build", "-o", f.binary, "-tags", "chaos", "./cmd/treadle"}
	if f.plain {
		args = []string{"build", "-o", f.binary, "./cmd/treadle"}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	// Processes of another user run it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Setenv(binaryVar, f.binary)
}

// findRoot walks up from here to the repository.
func (f *settings) findRoot() (string, error) {
	if f.root != "" {
		return f.root, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "treadle", "main.go")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("run it inside the repository, or name it with -root")
		}
		dir = up
	}
}

// runAll makes the runs, one at a time, and prints what came of them.
func (f *settings) runAll(ctx context.Context, command string, jobs []job) int {
	python, err := exec.LookPath(cmp.Or(f.python, "python3"))
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: the workers need python3: %v\n", err)
		return 1
	}
	defer f.removeBinary()
	if f.root, err = f.findRoot(); err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 1
	}
	var reports []*scenario.Report
	failed := 0
	var left []string
	for _, j := range jobs {
		if j.s.NeedsRoot && !sandbox.Inside() && command != "run" {
			left = append(left, fmt.Sprintf("row %d %s", j.s.Row, j.s.Name))
			continue
		}
		for n := range f.runs {
			if ctx.Err() != nil {
				break
			}
			r := f.one(ctx, j, f.seed+uint64(n), python)
			reports = append(reports, r)
			if !r.OK() {
				failed++
			}
		}
	}
	if !f.json {
		scenario.PrintTable(os.Stdout, reports)
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "chaos: NOT RUN, as this needs root: %s\n", strings.Join(left, ", "))
	}
	if failed > 0 || ctx.Err() != nil {
		fmt.Fprintf(os.Stderr, "chaos: %d of %d runs failed\n", failed, len(reports))
		return 1
	}
	return 0
}

// removeBinary removes what build made; inside the sandbox that is the last one out.
func (f *settings) removeBinary() { os.RemoveAll(filepath.Dir(f.binary)) }

// one makes a run and prints its line.
func (f *settings) one(ctx context.Context, j job, seed uint64, python string) *scenario.Report {
	dir, err := os.MkdirTemp(f.keep, "treadle-chaos-"+j.s.Name+"-")
	if err != nil {
		return &scenario.Report{Name: j.s.Name, Failures: []string{err.Error()}}
	}
	o := scenario.Options{
		Seed: seed, Store: j.store, Mode: j.mode, Dur: j.dur, Lease: j.lease, Slack: f.slack, Tasks: f.tasks, Binary: f.binary, Python: python, Plain: f.plain, Dir: dir, Root: f.root,
	}
	if f.env != "" {
		o.Env = strings.Split(f.env, ",")
	}
	r := scenario.Run(ctx, j.s, o)
	if err := r.Keep(f.keepAll); err != nil {
		r.Failures = append(r.Failures, err.Error())
	}
	if f.json {
		_ = json.NewEncoder(os.Stdout).Encode(r) // a reader that is gone ends the program
		return r
	}
	r.Print(os.Stdout)
	return r
}
