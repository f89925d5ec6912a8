package selftest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/treadle-dev/treadle/internal/seededbug"
)

// runLimit bounds one run of a scenario, its drain included.
const runLimit = 3 * time.Minute

// hunt is the scenario that finds a bug.
type hunt struct {
	bug seededbug.Bug
	// args choose the scenario, its store and what it needs to be short.
	args []string
	// signs are texts of which one is in what the run reports: a run that failed for any
	// other reason has not found the bug.
	signs []string
}

// on is a scenario on a store; five seconds of it are enough for each bug.
func on(scenario, store string, more ...string) []string {
	return append([]string{"-faults", scenario, "-store", store, "-seed", "2", "-dur", "5s", "-slack", "3"}, more...)
}

// lies are what shows in the records of tasks that a worker reports falsely.
var lies = []string{"I7: ", "I10: ", "I14: "}

// hunts lists them by bug.
var hunts = []hunt{
	{seededbug.NoFence, on("worker-freeze", "embedded", "-lease", "4s"), []string{"I6, I8: "}},
	{seededbug.AckBeforeSync, on("power-cut", "embedded"), []string{"--- FAIL: TestPowerCut"}},
	{seededbug.DoubleReap, on("late-renewal", "redis"), []string{"I9: "}},
	{seededbug.LostCancel, on("cancel-races", "embedded"), []string{"I13", "I10: "}},
	{seededbug.OffByOneRetries, on("poison-task", "embedded"), []string{"I7: "}},
	{seededbug.ReusedEpoch, on("worker-kill", "embedded"), []string{"I5: "}},
	{seededbug.ReplyBeforeWait, on("primary-partitioned", "sentinel"), []string{"I1: "}},
	{seededbug.ClaimTwice, on("lost-replies", "embedded"), []string{"I5: "}},
	{seededbug.GCLive, on("short-retention", "embedded"), []string{"I1: "}},
	{seededbug.LocalDeadline, on("clock-steps", "redis"), []string{"I14: ", "I7: "}},
	{seededbug.ResultOverwrite, on("worker-freeze", "embedded", "-lease", "4s"), []string{"I4: ", "I11: "}},
	{seededbug.FalseAck, on("worker-freeze", "embedded", "-lease", "4s"), []string{"I6, I8: "}},
	{seededbug.NoRenewalFence, on("worker-freeze", "embedded", "-lease", "4s"), []string{"I9: "}},
	{seededbug.DrainLoses, on("rolling-restart", "embedded"), []string{"none was struck", "I7: ", "I11: "}},
	{seededbug.FalseRaise, on("kill-after-report", "embedded"), lies},
	{seededbug.FalseTimeout, on("kill-after-report", "embedded"), lies},
	{seededbug.FalseExhausted, on("kill-after-report", "embedded"), lies},
	{seededbug.FalseUnread, on("kill-after-report", "embedded"), lies},
	{seededbug.FalseLoss, on("kill-after-report", "embedded"), lies},
	{seededbug.FalseCancel, on("kill-after-report", "embedded"), lies},
}

// hunt makes the run without the bug, once for each scenario, and with it.
func (r *runner) hunt(h hunt) Outcome {
	o := Outcome{Bug: h.bug, Check: h.args[1] + " on " + h.args[3]}
	id := strings.Join(h.args, " ")
	if _, known := r.clean[id]; !known {
		failures, err := r.scenario(h, "")
		if err == nil && len(failures) > 0 {
			err = errors.New(strings.Join(failures, "; "))
		}
		r.clean[id] = err
	}
	if err := r.clean[id]; err != nil {
		o.Error = fmt.Sprintf("without the bug: %v", err)
	} else {
		o.Clean = true
	}
	began := time.Now()
	failures, err := r.scenario(h, h.bug)
	o.Seconds = time.Since(began).Seconds()
	if err != nil {
		o.Error = errors.Join(errors.New(o.Error), err).Error()
		return o
	}
	for _, f := range failures {
		for line := range strings.SplitSeq(f, "\n") {
			if slices.ContainsFunc(h.signs, func(s string) bool { return strings.Contains(line, s) }) {
				o.Caught, o.By = true, clip(strings.TrimSpace(line))
				return o
			}
		}
	}
	if len(failures) > 0 {
		o.Error = "the run failed for another reason: " + clip(strings.Join(failures, "; "))
	}
	return o
}

// clip keeps the first line of a failure, and of that what a table has room for.
func clip(text string) string {
	const room = 160
	text, _, _ = strings.Cut(text, "\n")
	return text[:min(len(text), room)]
}

// scenario makes one run and returns why it failed.
func (r *runner) scenario(h hunt, bug seededbug.Bug) (failures []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// A run removes the program that it was given.
	folder := filepath.Join(r.dir, "run")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(r.dir, 0o755); err != nil { // processes of another user run it too
		return nil, err
	}
	program, err := r.program()
	if err != nil {
		return nil, err
	}
	binary := filepath.Join(folder, "treadle")
	if err := os.Link(program, binary); err != nil {
		return nil, fmt.Errorf("hand the program to a run: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	args := append([]string{"run", "-json", "-root", r.root, "-dir", r.dir}, h.args...)
	if bug != "" {
		args = append(args, "-env", seededbug.Env+"="+string(bug))
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "TREADLE_CHAOS_BINARY="+binary)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	runErr := cmd.Run()
	lines := bufio.NewScanner(&out)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var report struct {
			Name     string   `json:"name"`
			Failures []string `json:"failures"`
		}
		if json.Unmarshal(lines.Bytes(), &report) != nil || report.Name == "" {
			continue
		}
		if runErr != nil && len(report.Failures) == 0 {
			break
		}
		return report.Failures, nil
	}
	return nil, fmt.Errorf("%s: no report: %w: %s", strings.Join(h.args, " "), errors.Join(runErr, lines.Err()), clip(errs.String()))
}

// program builds the product once for all runs.
func (r *runner) program() (string, error) {
	const name = "treadle"
	if b := r.built[name]; b != "" {
		return b, nil
	}
	b := filepath.Join(r.dir, name)
	cmd := exec.Command("go", "build", "-tags", "chaos", "-o", b, "./cmd/treadle")
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	r.built[name] = b
	return b, nil
}
