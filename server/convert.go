package server

import (
	"encoding/hex"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/internal/jsonscan"
	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// text makes what a worker wrote fit for a proto string: UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func statusProto(s task.Status) treadlev1.Task_Status {
	return treadlev1.Task_Status(treadlev1.Task_Status_value[string(s)])
}

func functionProto(f task.Function) *treadlev1.Function {
	m := &treadlev1.Function{
		FunctionId: f.ID.String(), Name: f.Name, Runtime: f.Runtime, Queue: f.Queue, Form: string(f.Form),
		PayloadSize: int32(f.Size), CreatedAt: stamp(f.CreatedAt), Python: f.Python,
		CreatedBy: f.CreatedBy, Transient: f.Transient,
	}
	if f.Form != task.FormNone {
		m.PayloadSha256 = hex.EncodeToString(f.Hash[:])
	}
	return m
}

func taskProto(t *task.Task) *treadlev1.Task {
	m := &treadlev1.Task{
		TaskId: t.ID.String(), FunctionId: t.Function.String(), FunctionName: t.FunctionName, Queue: t.Queue, Runtime: t.Runtime,
		Status: statusProto(t.Status), Priority: int32(t.Priority), CreatedAt: stamp(t.CreatedAt), FinishedAt: stamp(t.FinishedAt),
		NotBefore: stamp(t.NotBefore), AttemptCount: int32(t.AttemptCount), LostWorkers: int32(t.Losses), Raised: int32(t.Failures),
		Error: errorProto(t), ArgsSize: int32(t.ArgsSize), ResultSize: int32(t.ResultSize), Options: specProto(&t.Spec),
		CreatedBy: t.CreatedBy,
	}
	if !t.Parent.IsZero() {
		m.ParentId = t.Parent.String()
	}
	for _, a := range t.Attempts {
		m.Attempts = append(m.Attempts, &treadlev1.Attempt{
			Number: int32(a.Number), Worker: a.Worker, StartedAt: stamp(a.StartedAt), FinishedAt: stamp(a.FinishedAt),
			End: string(a.End), Reason: text(a.Reason),
		})
	}
	if n := len(t.Attempts); n > 0 {
		m.StartedAt, m.Worker = stamp(t.Attempts[n-1].StartedAt), t.Attempts[n-1].Worker
	}
	return m
}

func errorProto(t *task.Task) *treadlev1.TaskError {
	f := t.Failure
	if f == nil {
		return nil
	}
	return &treadlev1.TaskError{
		ErrorType: string(f.Class), ExceptionType: text(f.Type), Message: text(f.Message), Traceback: text(f.Traceback),
		TaskId: t.ID.String(), WorkerId: f.Worker, ExceptionPickle: f.Pickle, ForeignPickle: f.ForeignPickle,
	}
}

func resultProto(t *task.Task, result []byte) *treadlev1.TaskResult {
	m := &treadlev1.TaskResult{TaskId: t.ID.String(), Status: statusProto(t.Status), Error: errorProto(t)}
	if t.Status != task.Completed {
		return m
	}
	m.ResultRepr = text(t.ResultRepr)
	if t.ResultEncoding != task.EncodingJSON {
		m.ResultPickle = nonNil(result)
		return m
	}
	if len(result) == 0 {
		result = []byte("null")
	}
	// The text enters JSON documents as it is, and it comes from a worker.
	if _, err := jsonscan.Check(result); err != nil {
		m.ResultRepr = text(task.ClipText(string(result), 4<<10))
		return m
	}
	m.Result = result
	return m
}

// nonNil keeps an empty value apart from none.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func workerProto(p store.Presence) *treadlev1.Worker {
	return &treadlev1.Worker{
		WorkerId: p.Worker, Name: text(p.Name), Host: text(p.Host), Pid: int32(p.PID), Mode: p.Mode, State: p.State,
		Queues: p.Queues, Runtimes: p.Runtimes, Version: p.Version, Slots: int32(p.Slots), Running: int32(p.Running),
		Offered: int32(p.Offered), ConnectedAt: stamp(p.ConnectedAt), LastSeenAt: stamp(p.LastSeen),
	}
}
