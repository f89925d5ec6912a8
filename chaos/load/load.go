// Package load is the clients of a run: each is a process of its own on the Go client,
// submits, reads and cancels at a steady rate and writes down what it asked and was told.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/treadle-dev/treadle/chaos/history"
	treadle "github.com/treadle-dev/treadle/clients/go"
)

// Config is what a client process is told on its standard input, as one line of JSON.
// The client stops when that ends.
type Config struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// History and Ledger are files.
	History string `json:"history"`
	Ledger  string `json:"ledger"`
	Seed    uint64 `json:"seed"`
	// Function is the id that [Source] was registered under.
	Function string `json:"function"`
	Shape    Shape  `json:"shape"`
}

// Shape is what the clients do.
type Shape struct {
	// Rate is the operations of one client in a second, Loops how many of them may be
	// under way.
	Rate  float64 `json:"rate"`
	Loops int     `json:"loops"`
	// MinRun and MaxRun bound how long a task runs.
	MinRun time.Duration `json:"min_run"`
	MaxRun time.Duration `json:"max_run"`
	// Longs is how many of the first tasks of a client run for Long, up to a second more,
	// and return.
	Longs int           `json:"longs"`
	Long  time.Duration `json:"long"`
	// Tick has tasks write into the ledger that often while they run.
	Tick time.Duration `json:"tick"`
	// Cancel, Deadline and Pairs are shares (0 to 1) of the tasks that are cancelled, have a
	// deadline within a second, and are submitted twice at the same time under one key.
	Cancel   float64 `json:"cancel"`
	Deadline float64 `json:"deadline"`
	Pairs    float64 `json:"pairs"`
	// Raise, Overrun and Exhaust are shares of the tasks whose function raises, runs longer
	// than its timeout, or takes more memory than it may.
	Raise   float64 `json:"raise"`
	Overrun float64 `json:"overrun"`
	Exhaust float64 `json:"exhaust"`
	// MaxRetries is that of the tasks; negative for the server's default.
	MaxRetries int `json:"max_retries"`
	// Patience is how long one operation may take, with the client's own retries.
	Patience time.Duration `json:"patience"`
	// MaxTasks is how many tasks one client submits; 0 is no limit.
	MaxTasks int `json:"max_tasks"`
	// ArgBytes makes the arguments larger.
	ArgBytes int `json:"arg_bytes"`
	// Batch has a client submit that many tasks at once, wait for their results and end
	// when MaxTasks were acknowledged.
	Batch int `json:"batch"`
}

// DefaultShape suits most scenarios on a small machine.
func DefaultShape() Shape {
	return Shape{
		Rate: 40, Loops: 6, MinRun: 5 * time.Millisecond, MaxRun: 150 * time.Millisecond, Cancel: 0.05, Deadline: 0.03, Pairs: 0.03,
		Raise: 0.08, Overrun: 0.01, Exhaust: 0.01, MaxRetries: -1, Patience: 4 * time.Second,
	}
}

const (
	// overrunLimit is the timeout of a task that overruns.
	overrunLimit = 200 * time.Millisecond
	// exhaustLimit is what a task may have that takes four times as much.
	exhaustLimit = 256 << 20
)

// Source is the function that the clients execute: it writes down that it ran, and its
// result or its exception says which execution it comes from.
const Source = `
def work(key, seconds, ledger, tick=0.0, pad="", plan=""):
    import json, os, time
    run = os.urandom(8).hex()
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    def note(what):
        line = {"at": time.monotonic_ns(), "key": key, "run": run, "what": what, "pid": os.getpid(), "agent": os.getppid()}
        os.write(fd, (json.dumps(line) + "\n").encode())
    try:
        note("start")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, tick) if tick else left)
            if tick:
                note("tick")
        if plan == "raises":
            note("raise")
            raise ValueError(json.dumps({"key": key, "run": run}))
        if plan == "overruns":
            time.sleep(600)
        if plan == "exhausts":
            bytearray(1 << 30)
        note("end")
    finally:
        os.close(fd)
    return {"key": key, "run": run}
`

// Main is the client process; it returns its exit code.
func Main() int {
	var cfg Config
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&cfg); err != nil {
		fmt.Fprintf(os.Stderr, "chaos client: read the configuration: %v\n", err)
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, io.MultiReader(in.Buffered(), os.Stdin)) // until the harness is done, or gone
		cancel()
	}()
	if err := Run(ctx, cfg); err != nil {
		fmt.Fprintf(os.Stderr, "chaos client %s: %v\n", cfg.Name, err)
		return 1
	}
	return 0
}

// client is one process of the load.
type client struct {
	cfg Config
	api *treadle.Client
	log *history.Writer

	mu  sync.Mutex
	rng *rand.Rand
	seq int
	// tasks were acknowledged; doubtful are keys whose submission has an unknown outcome.
	tasks    []entry
	doubtful []request
}

// entry is a task that the client may look at.
type entry struct{ key, id string }

// request is a submission, so that it can be made again as it was.
type request struct {
	key  string
	plan history.Plan
	req  treadle.Request
}

// event is the beginning of the submission in the history.
func (r *request) event() history.Event {
	return history.Event{Op: history.Submit, Key: r.key, Plan: r.plan, Deadline: !r.req.Options.Deadline.IsZero()}
}

// Run works until ctx ends and returns when what was under way has ended.
func Run(ctx context.Context, cfg Config) error {
	w, err := history.Create(cfg.History, cfg.Name)
	if err != nil {
		return err
	}
	defer w.Close()
	api, err := treadle.Dial(cfg.Address, treadle.WithUserAgent("treadle-chaos"))
	if err != nil {
		return err
	}
	defer api.Close()
	c := &client{cfg: cfg, api: api, log: w, rng: rand.New(rand.NewPCG(cfg.Seed, 0x6368616f73))}
	slots := make(chan struct{}, cfg.Shape.Loops)
	var wg sync.WaitGroup
	errs := make(chan error, cfg.Shape.Loops)
	tick := time.NewTicker(time.Duration(float64(time.Second) / cfg.Shape.Rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			select {
			case err := <-errs:
				return err
			default:
				return nil
			}
		case err := <-errs:
			wg.Wait()
			return err
		case <-tick.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // the servers are slow: nobody piles up
		}
		if c.done() {
			wg.Wait()
			if c.done() { // else what was under way is in doubt
				return nil
			}
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := c.step(); err != nil {
				select {
				case errs <- err:
				default:
				}
			}
		})
	}
}

// step does one thing that is drawn by lot.
func (c *client) step() error {
	c.mu.Lock()
	s := c.cfg.Shape
	dice := c.rng.Float64()
	var e entry
	if n := len(c.tasks); n > 0 {
		// Mostly a recent one: that is where something happens.
		e = c.tasks[max(0, n-1-int(c.rng.ExpFloat64()*10))]
	}
	var again *request
	if n := len(c.doubtful); n > 0 && dice < 0.2 && s.Batch == 0 {
		last := c.doubtful[n-1]
		again, c.doubtful = &last, c.doubtful[:n-1]
	}
	c.mu.Unlock()
	if s.Batch > 0 {
		return c.batch()
	}
	// An operation is not cut off when the run ends: its outcome would be unknown for no
	// reason.
	ctx, cancel := context.WithTimeout(context.Background(), s.Patience)
	defer cancel()
	switch {
	case again != nil:
		return c.submit(ctx, *again)
	case (e.id == "" || dice < 0.55) && c.mayAdd():
		r := c.request()
		if c.chance(s.Pairs) {
			var wg sync.WaitGroup
			var second error
			wg.Go(func() { second = c.submit(ctx, r) })
			err := c.submit(ctx, r)
			wg.Wait()
			return errors.Join(err, second)
		}
		return c.submit(ctx, r)
	case e.id == "", dice < 0.55:
		return nil // there is nothing to look at yet, or nothing to add
	case dice < 0.55+0.45*s.Cancel:
		return c.cancel(ctx, e)
	case dice < 0.8:
		return c.get(ctx, e)
	default:
		return c.result(ctx, e)
	}
}

func (c *client) mayAdd() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Shape.MaxTasks == 0 || c.seq < c.cfg.Shape.MaxTasks
}

func (c *client) chance(share float64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.Float64() < share
}

func (c *client) request() request {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.cfg.Shape
	c.seq++
	key := fmt.Sprintf("%s-%06d", c.cfg.Name, c.seq)
	run := s.MinRun + time.Duration(c.rng.Int64N(int64(s.MaxRun-s.MinRun)+1))
	plan := c.plan()
	if c.seq <= s.Longs {
		run, plan = s.Long+time.Duration(c.rng.Int64N(int64(time.Second))), history.Returns
	}
	req := treadle.Request{
		Function: c.cfg.Function, RequestID: key, Args: []any{key, run.Seconds(), c.cfg.Ledger, s.Tick.Seconds()},
	}
	pad := make([]byte, s.ArgBytes)
	for i := range pad {
		pad[i] = 'a' + byte(c.rng.IntN(26))
	}
	req.Args = append(req.Args, string(pad), string(plan))
	switch plan {
	case history.Overruns:
		req.Options.Timeout = run + overrunLimit
	case history.Exhausts:
		req.Options.MemoryLimit = exhaustLimit
	}
	if s.MaxRetries >= 0 {
		req.Options.MaxRetries = new(s.MaxRetries)
	}
	// A task that overruns has no other reason to end by the clock.
	if c.rng.Float64() < s.Deadline && plan != history.Overruns {
		req.Options.Deadline = time.Now().Add(time.Duration(c.rng.Int64N(int64(time.Second))))
	}
	return request{key, plan, req}
}

// plan draws what the function of a task does.
func (c *client) plan() history.Plan {
	s := c.cfg.Shape
	switch dice := c.rng.Float64(); {
	case dice < s.Raise:
		return history.Raises
	case dice < s.Raise+s.Overrun:
		return history.Overruns
	case dice < s.Raise+s.Overrun+s.Exhaust:
		return history.Exhausts
	default:
		return history.Returns
	}
}

// end writes how an operation ended. Whether it may have had an effect decides between
// fail and info.
func (c *client) end(id int64, e history.Event, err error, effect bool) error {
	e.ID, e.Type = id, history.OK
	if err != nil {
		e.Err = err.Error()
		e.Type = history.Fail
		refused := errors.Is(err, treadle.ErrInvalid) || errors.Is(err, treadle.ErrConflict) || errors.Is(err, treadle.ErrNotFound) ||
			errors.Is(err, treadle.ErrExhausted) || errors.Is(err, treadle.ErrTooLarge) || errors.Is(err, treadle.ErrState)
		switch {
		case errors.Is(err, treadle.ErrNotFound):
			e.Class = "NOT_FOUND"
		case errors.Is(err, treadle.ErrConflict):
			e.Class = "CONFLICT"
		case errors.Is(err, treadle.ErrExhausted):
			e.Class = "EXHAUSTED"
		}
		if effect && !refused {
			e.Type = history.Info
		}
	}
	return c.log.Write(e)
}

func (c *client) submit(ctx context.Context, r request) error {
	e := r.event()
	id, err := c.log.Begin(e)
	if err != nil {
		return err
	}
	taskID, callErr := c.api.Execute(ctx, r.req)
	e.Task = taskID
	c.mu.Lock()
	switch {
	case callErr == nil:
		c.tasks = append(c.tasks, entry{r.key, taskID})
	// Some are left alone for ever, so that what an unknown outcome leaves is seen too.
	case errors.Is(callErr, treadle.ErrUnavailable), errors.Is(callErr, context.DeadlineExceeded):
		if c.rng.IntN(4) > 0 {
			c.doubtful = append(c.doubtful, r)
		}
	}
	c.mu.Unlock()
	return c.end(id, e, callErr, true)
}

func (c *client) get(ctx context.Context, t entry) error {
	e := history.Event{Op: history.Get, Key: t.key, Task: t.id}
	id, err := c.log.Begin(e)
	if err != nil {
		return err
	}
	got, callErr := c.api.Task(ctx, t.id)
	if callErr == nil {
		e.Status, e.Class = string(got.Status), classOf(got.Error)
	}
	return c.end(id, e, callErr, false)
}

func (c *client) result(ctx context.Context, t entry) error {
	e := history.Event{Op: history.Result, Key: t.key, Task: t.id}
	id, err := c.log.Begin(e)
	if err != nil {
		return err
	}
	got, callErr := c.api.Result(ctx, t.id, 200*time.Millisecond)
	if callErr == nil {
		e.Status, e.Class, e.Run = string(got.Status), classOf(got.Error), RunOf(got.JSON)
	}
	return c.end(id, e, callErr, false)
}

func (c *client) cancel(ctx context.Context, t entry) error {
	e := history.Event{Op: history.Cancel, Key: t.key, Task: t.id}
	id, err := c.log.Begin(e)
	if err != nil {
		return err
	}
	got, callErr := c.api.Cancel(ctx, t.id)
	if callErr == nil {
		e.Status, e.Class = string(got.Status), classOf(got.Error)
	}
	return c.end(id, e, callErr, true)
}

func classOf(err *treadle.TaskError) string {
	if err == nil {
		return ""
	}
	return err.Type
}

// RunOf reads from a result which execution it came from.
func RunOf(result json.RawMessage) string {
	run, _ := Decode(result)
	return run
}

// Decode reads a result of [Source]: the execution and the key; both are empty for what
// is no such result.
func Decode(result json.RawMessage) (run, key string) {
	var v struct{ Key, Run string }
	if json.Unmarshal(result, &v) != nil {
		return "", ""
	}
	return v.Run, v.Key
}
