package fabric

import (
	"testing"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// A function that another server deleted is not served from memory for long.
func TestCachedFunctionsAge(t *testing.T) {
	var c functionCache
	f := task.Function{ID: task.ID{1}}
	c.put(f, time.Now())
	if _, ok := c.get(f.ID); !ok {
		t.Error("a function that was just read is not cached")
	}
	c.put(f, time.Now().Add(-functionAge))
	if _, ok := c.get(f.ID); ok {
		t.Errorf("a function is cached for %s", functionAge)
	}
	c.put(f, time.Now())
	if c.drop(f.ID); len(c.byID) != 0 {
		t.Error("a function that is dropped is cached")
	}
}
