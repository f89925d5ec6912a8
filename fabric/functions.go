package fabric

import (
	"context"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/task"
)

// Function finds a function by id or name; text that parses as a UUID is an id.
func (f *Fabric) Function(ctx context.Context, text string) (task.Function, error) {
	if text == "" {
		return task.Function{}, invalid("function", "function is empty: want the id or the name of a function")
	}
	if id, err := task.ParseID(text); err == nil {
		return f.functionByID(ctx, id)
	}
	if utf8.RuneCountInString(text) > task.MaxNameLength {
		return task.Function{}, task.Errorf(task.CodeNotFound, "", "no function has a name of more than %d characters", task.MaxNameLength)
	}
	fn, err := f.cfg.Store.FunctionNamed(ctx, text)
	if task.CodeOf(err) == task.CodeNotFound {
		return fn, task.Errorf(task.CodeNotFound, "", "no function is called %q: register it first", text)
	}
	return fn, err
}

func (f *Fabric) functionByID(ctx context.Context, id task.ID) (task.Function, error) {
	if fn, ok := f.functions.get(id); ok {
		return fn, nil
	}
	asked := time.Now()
	fn, err := f.cfg.Store.Function(ctx, id)
	if task.CodeOf(err) == task.CodeNotFound {
		return fn, task.Errorf(task.CodeNotFound, "", "no function has the id %s: register it first", id)
	}
	if err == nil {
		f.functions.put(fn, asked)
	}
	return fn, err
}

// DeleteFunction deletes a registration, by its id alone. [*store.InUse] says that unfinished
// tasks are its.
func (f *Fabric) DeleteFunction(ctx context.Context, text string) error {
	id, err := task.ParseID(text)
	if err != nil {
		return task.Errorf(task.CodeNotFound, "", "no function has the id %.64q: functions are deleted by id, as a name may mean several", text)
	}
	err = f.cfg.Store.DeleteFunction(ctx, id)
	f.functions.drop(id)
	if task.CodeOf(err) == task.CodeNotFound {
		return task.Errorf(task.CodeNotFound, "", "no function has the id %s", id)
	}
	return err
}

// functionCache keeps functions by id for a moment: they never change, but other servers
// may delete them. Names change, so they are not kept.
type functionCache struct {
	mu   sync.RWMutex
	byID map[task.ID]cachedFunction
}

type cachedFunction struct {
	task.Function
	read time.Time
}

// Bounds of the cache; a record has a few hundred bytes.
const (
	maxCachedFunctions = 10_000
	// functionAge is how long a function that another server deleted may still be submitted
	// for here: one look-up in as much time costs nothing.
	functionAge = 5 * time.Second
)

func (c *functionCache) get(id task.ID) (task.Function, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	f, ok := c.byID[id]
	return f.Function, ok && time.Since(f.read) < functionAge
}

func (c *functionCache) put(f task.Function, read time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = make(map[task.ID]cachedFunction)
	}
	if _, ok := c.byID[f.ID]; !ok && len(c.byID) >= maxCachedFunctions {
		for id := range c.byID { // any one will do
			delete(c.byID, id)
			break
		}
	}
	c.byID[f.ID] = cachedFunction{f, read}
}

func (c *functionCache) drop(id task.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byID, id)
}
