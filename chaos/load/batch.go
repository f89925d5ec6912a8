package load

import (
	"context"
	"errors"

	"github.com/treadle-dev/treadle/chaos/history"
	treadle "github.com/treadle-dev/treadle/clients/go"
)

// done says that a client of batches has submitted what it should and knows what became
// of all of it.
func (c *client) done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Shape.Batch > 0 && c.seq >= c.cfg.Shape.MaxTasks && len(c.doubtful) == 0
}

// next returns the requests of a batch: those in doubt first, then new ones.
func (c *client) next() (list []request) {
	c.mu.Lock()
	s := c.cfg.Shape
	n := min(s.Batch, len(c.doubtful))
	list = append(list, c.doubtful[:n]...)
	c.doubtful = c.doubtful[n:]
	fresh := min(s.Batch-n, s.MaxTasks-c.seq)
	c.mu.Unlock()
	for range fresh {
		list = append(list, c.request())
	}
	return list
}

// batch submits tasks at once and waits for their results.
func (c *client) batch() error {
	list := c.next()
	if len(list) == 0 {
		return nil
	}
	ids := make([]int64, len(list))
	reqs := make([]treadle.Request, len(list))
	for i, r := range list {
		id, err := c.log.Begin(r.event())
		if err != nil {
			return err
		}
		ids[i], reqs[i] = id, r.req
	}
	// An operation is not cut off when the run ends, as in step.
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Shape.Patience)
	defer cancel()
	got, batchErr := c.api.ExecuteBatch(ctx, reqs)
	keys := map[string]string{}
	var tasks []string
	for i, r := range list {
		e := history.Event{Op: history.Submit, Key: r.key}
		err := batchErr
		if err == nil {
			e.Task, err = got[i].TaskID, got[i].Err
		}
		if err := c.end(ids[i], e, err, true); err != nil {
			return err
		}
		if err != nil {
			c.mu.Lock()
			c.doubtful = append(c.doubtful, r)
			c.mu.Unlock()
			continue
		}
		keys[e.Task] = r.key
		tasks = append(tasks, e.Task)
	}
	return c.await(ctx, tasks, keys)
}

// await reads results as they come. What was not read in time is read at the end.
func (c *client) await(ctx context.Context, tasks []string, keys map[string]string) error {
	begun := map[string]int64{}
	for _, t := range tasks {
		id, err := c.log.Begin(history.Event{Op: history.Result, Key: keys[t], Task: t})
		if err != nil {
			return err
		}
		begun[t] = id
	}
	var failure error
	for res, err := range c.api.Await(ctx, tasks) {
		if err != nil {
			failure = err
			break
		}
		e := history.Event{
			Op: history.Result, Key: keys[res.TaskID], Task: res.TaskID, Status: string(res.Status), Class: classOf(res.Error), Run: RunOf(res.JSON),
		}
		if err := c.end(begun[res.TaskID], e, nil, false); err != nil {
			return err
		}
		delete(begun, res.TaskID)
	}
	if len(begun) > 0 && failure == nil {
		failure = errors.New("the results ended early")
	}
	for t, id := range begun {
		if err := c.end(id, history.Event{Op: history.Result, Key: keys[t], Task: t}, failure, false); err != nil {
			return err
		}
	}
	return nil
}
