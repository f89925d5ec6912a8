package fabric

import (
	"time"

	"github.com/treadle-dev/treadle/task"
)

// Optional is a value, or none: nothing is not the same as zero.
type Optional[T any] struct {
	Value T
	// Given says that there is one.
	Given bool
}

// Some is a value that is there.
func Some[T any](v T) Optional[T] { return Optional[T]{Value: v, Given: true} }

// Options are what a submission asks for beside its arguments: [task.Spec], of which any part
// may be left to its default. The zero Options ask for nothing.
type Options struct {
	// Priority is from [task.MinPriority] to [task.MaxPriority], higher first. Default
	// [task.DefaultPriority].
	Priority Optional[int]
	// Timeout limits one attempt from its start and is above 0. Default Config.TaskTimeout.
	Timeout Optional[time.Duration]
	// Deadline is absolute and counts waiting too; one in the past fails the task at once.
	// Default none.
	Deadline Optional[time.Time]
	// MaxRetries is how many lost workers the task survives, up to [task.MaxRetriesLimit].
	// Default Config.MaxRetries.
	MaxRetries Optional[int]
	// FunctionRetries is how often a raised exception is tried again, up to
	// [task.MaxRetriesLimit]. Default 0.
	FunctionRetries Optional[int]
	// MemoryLimit bounds one attempt's memory in bytes, from 1 MiB. 0 is the worker's own limit.
	MemoryLimit int64
}

// minMemoryLimit is the least memory that a task may be limited to: less would stop
// any interpreter before the function runs.
const minMemoryLimit = 1 << 20

// defaults is what a task is that asks for nothing.
func (f *Fabric) defaults() task.Spec {
	return task.Spec{Priority: task.DefaultPriority, Timeout: f.cfg.TaskTimeout, MaxRetries: f.cfg.MaxRetries}
}

// apply checks the options and writes them over the defaults in s.
func (o *Options) apply(s *task.Spec) error {
	if o.Priority.Given {
		if err := within("options.priority", o.Priority.Value, task.MinPriority, task.MaxPriority); err != nil {
			return err
		}
		s.Priority = o.Priority.Value
	}
	if o.Timeout.Given {
		if o.Timeout.Value <= 0 {
			return invalid("options.timeout", "timeout %v: want more than 0, or leave it out for none", o.Timeout.Value)
		}
		s.Timeout = o.Timeout.Value
	}
	if o.Deadline.Given {
		// A deadline in the past is legal: the task fails at once, as it would have
		// failed a moment later.
		s.Deadline = o.Deadline.Value
	}
	if o.MaxRetries.Given {
		if err := within("options.max_retries", o.MaxRetries.Value, 0, task.MaxRetriesLimit); err != nil {
			return err
		}
		s.MaxRetries = o.MaxRetries.Value
	}
	if o.FunctionRetries.Given {
		if err := within("options.function_retries", o.FunctionRetries.Value, 0, task.MaxRetriesLimit); err != nil {
			return err
		}
		s.FunctionRetries = o.FunctionRetries.Value
	}
	if m := o.MemoryLimit; m < 0 || m > 0 && m < minMemoryLimit {
		return invalid("options.memory_limit", "memory_limit %d: want at least %d bytes, or 0 for the worker's own limit", m, minMemoryLimit)
	}
	s.MemoryLimit = o.MemoryLimit
	return nil
}

// digest adds the options to the digest of a submission; given says that there are some, if
// only such as ask for nothing. What is written here once stays as it
// is: digests are stored, and a request that is repeated after an upgrade must have the same.
// An option that is new adds its bytes only where it is given.
func (o *Options) digest(d digest, given bool) {
	d.number(uint64(o.Timeout.Value / time.Second)).number(uint64(o.Timeout.Value % time.Second))
	var seconds, nanos uint64
	if at := o.Deadline; at.Given {
		seconds, nanos = uint64(at.Value.Unix()), uint64(at.Value.Nanosecond())
	}
	d.number(seconds).number(nanos).number(uint64(o.MemoryLimit))
	if !given {
		return
	}
	for _, v := range [...]Optional[int]{o.Priority, o.MaxRetries, o.FunctionRetries} {
		if v.Given {
			d.number(1).number(uint64(v.Value))
		} else {
			d.number(0)
		}
	}
}

func within(field string, v, low, high int) error {
	if v < low || v > high {
		return invalid(field, "%s is %d: want %d to %d", field, v, low, high)
	}
	return nil
}
