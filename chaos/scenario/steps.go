package scenario

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/treadle-dev/treadle/chaos/cluster"
	"github.com/treadle-dev/treadle/chaos/history"
	"github.com/treadle-dev/treadle/chaos/load"
	treadle "github.com/treadle-dev/treadle/clients/go"
	"github.com/treadle-dev/treadle/store/storetap"
)

// noLosses checks that no task spent one of its attempts: the workers lived all the time.
func noLosses(ctx context.Context, e *Env) error {
	list, err := e.final(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		if r.Lost > 0 {
			errs = append(errs, fmt.Errorf("task %s lost %d workers, and none was struck: its attempts ended as %v", r.ID, r.Lost, r.Ends))
		}
	}
	if len(errs) > 3 {
		errs = append(errs[:3], fmt.Errorf("and %d more", len(errs)-3))
	}
	return errors.Join(errs...)
}

// registerThroughKill registers a function while the server dies of it: the client's own
// retry must find the function that was recorded.
func registerThroughKill(ctx context.Context, e *Env) error {
	front := cluster.RoleServer
	if e.Embedded() {
		front = cluster.RoleUp
	}
	const id = "chaos-register"
	source := load.Source + "\n# another one\n"
	f, err := e.API().Register(ctx, treadle.Registration{Name: "work", Source: source, RequestID: id})
	if err != nil {
		return fmt.Errorf("a registration through a kill: %w", err)
	}
	if e.exits(front) == 0 {
		return errors.New("the kill point was not reached")
	}
	if err := e.saw("kill point in " + front); err != nil {
		return err
	}
	again, err := e.API().Register(ctx, treadle.Registration{Name: "work", Source: source, RequestID: id})
	if err != nil {
		return err
	}
	if again.ID != f.ID {
		return fmt.Errorf("one key registered the functions %s and %s", f.ID, again.ID)
	}
	n := 0
	for g, err := range e.API().Functions(ctx) {
		if err != nil {
			return err
		}
		if g.PayloadSHA256 == f.PayloadSHA256 {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("one key registered %d functions", n)
	}
	return wait(ctx, time.Second)
}

// requestOf is an execution with positional arguments.
func requestOf(function string, args ...any) treadle.Request {
	return treadle.Request{Function: function, Args: args}
}

// storeHistory reads what the processes wrote about their stores; what cannot be read is
// left out, as collect complains of it.
func (e *Env) storeHistory() (list []storetap.Entry) {
	files, err := filepath.Glob(e.HistoryFile("store-*.jsonl"))
	if err != nil {
		return nil
	}
	for _, f := range files {
		entries, err := history.Read[storetap.Entry](f)
		if err == nil {
			list = append(list, entries...)
		}
	}
	return list
}
