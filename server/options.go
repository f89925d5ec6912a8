package server

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/treadle-dev/treadle/fabric"
	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/task"
)

// The options of a task on the wire, both ways. What they mean, and their bounds, are the
// fabric's.

// optionsOf reads the options of a submission.
func optionsOf(o *treadlev1.ExecuteOptions) (out fabric.Optional[fabric.Options], err error) {
	if o == nil {
		return out, nil
	}
	out.Given = true
	into := &out.Value
	into.MemoryLimit = o.GetMemoryLimit()
	into.Priority, into.MaxRetries, into.FunctionRetries = number(o.Priority), number(o.MaxRetries), number(o.FunctionRetries)
	if o.Timeout != nil {
		if err := o.GetTimeout().CheckValid(); err != nil {
			return out, invalid("options.timeout", "timeout: %w", err)
		}
		into.Timeout = fabric.Some(o.GetTimeout().AsDuration())
	}
	if o.Deadline != nil {
		if err := o.GetDeadline().CheckValid(); err != nil {
			return out, invalid("options.deadline", "deadline: %w", err)
		}
		into.Deadline = fabric.Some(o.GetDeadline().AsTime())
	}
	return out, nil
}

func number(v *int32) fabric.Optional[int] {
	if v == nil {
		return fabric.Optional[int]{}
	}
	return fabric.Some(int(*v))
}

// specProto shows what a task was asked to be.
func specProto(s *task.Spec) *treadlev1.ExecuteOptions {
	o := &treadlev1.ExecuteOptions{
		Priority: proto.Int32(int32(s.Priority)), Deadline: stamp(s.Deadline), MaxRetries: proto.Int32(int32(s.MaxRetries)),
		FunctionRetries: proto.Int32(int32(s.FunctionRetries)), MemoryLimit: s.MemoryLimit,
	}
	if s.Timeout > 0 {
		o.Timeout = durationpb.New(s.Timeout)
	}
	return o
}
