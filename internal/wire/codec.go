// Package wire holds the contract's messages to their limits, where they are received: one
// table has a limit for every field of every message, and the raw bytes of a message are
// checked against it before anything is made of them. So a frame of 2-byte items cannot
// become gigabytes of structs, and no field reaches a handler that is longer than it may be.
//
// It is also the one place where text becomes valid UTF-8, which protobuf insists on: what
// functions print and raise is whatever bytes they like.
package wire

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// MessageLimit is the gRPC message limit that goes with a payload limit, in bytes.
func MessageLimit(maxPayload int) int { return 2*maxPayload + 1<<20 }

// Limits are the plans of one payload limit. They may be used by many goroutines.
type Limits struct {
	plans  map[protoreflect.FullName]*plan
	worker *plan // of WorkerFrame
	sender *plan // of DispatcherFrame
}

// New compiles the limits for a payload limit in bytes. It panics when the contract has a
// message or a field without one, which the package's tests find first.
func New(maxPayload int) *Limits {
	l := &Limits{plans: map[protoreflect.FullName]*plan{}}
	messages := treadlev1.File_treadle_v1_fabric_proto.Messages()
	l.compile(messages, maxPayload)
	l.compile(treadlev1.File_treadle_v1_root_proto.Messages(), maxPayload)
	l.compile(treadlev1.File_treadle_v1_worker_proto.Messages(), maxPayload)
	l.worker = l.plans[(*treadlev1.WorkerFrame)(nil).ProtoReflect().Descriptor().FullName()]
	l.sender = l.plans[(*treadlev1.DispatcherFrame)(nil).ProtoReflect().Descriptor().FullName()]
	return l
}

func (l *Limits) compile(messages protoreflect.MessageDescriptors, maxPayload int) {
	for i := range messages.Len() {
		d := messages.Get(i)
		if slices.Contains(answers, string(d.Name())) {
			continue
		}
		if _, err := compile(d, MessageLimit(maxPayload), l.plans, 0); err != nil {
			panic(fmt.Sprintf("wire: %v", err))
		}
	}
}

// Check holds a message that is there already to its limits: what a JSON document was
// made into. It returns nil for messages that have no limits, and for those within them.
func (l *Limits) Check(m proto.Message) *Error {
	p := l.plan(m)
	if p == nil {
		return nil
	}
	return p.reflected(m.ProtoReflect())
}

func (l *Limits) plan(m proto.Message) *plan {
	switch m.(type) {
	case *treadlev1.WorkerFrame:
		return l.worker
	case *treadlev1.DispatcherFrame:
		return l.sender
	}
	return l.plans[m.ProtoReflect().Descriptor().FullName()]
}

// Codec is the protobuf codec of gRPC that holds received messages to their limits and
// makes sent text valid.
//
// Unmarshal checks the raw bytes and refuses a message as [Refuse] says; in frames, of
// workers and of dispatchers, text that is not UTF-8 is repaired instead, as what it came
// from is not the peer's choice. Messages that are not of the contract (health, reflection)
// pass as they are. Marshal replaces what is not UTF-8 in any text by U+FFFD.
func Codec(maxPayload int) encoding.CodecV2 {
	return codec{limits: New(maxPayload), CodecV2: encoding.GetCodecV2(grpcproto.Name)}
}

type codec struct {
	encoding.CodecV2
	limits *Limits
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	p := c.limits.plan(m)
	if p == nil {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	b := buf.ReadOnlyData()
	s := scanner{repairs: p == c.limits.worker || p == c.limits.sender}
	if err := p.scan(b, &s); err != nil {
		Refuse(m, err)
		return nil
	}
	if s.dirty {
		b = slices.Clone(b) // the buffer is not ours to change
		if err := p.scan(b, &scanner{repairs: true, fix: true}); err != nil {
			Refuse(m, err)
			return nil
		}
	}
	if err := proto.Unmarshal(b, m); err != nil {
		Refuse(m, &Error{Text: malformed})
	}
	return nil
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := c.CodecV2.Marshal(v)
	if err == nil {
		return out, nil
	}
	m, ok := v.(proto.Message)
	if !ok {
		return nil, err
	}
	// The message may be shared with other calls: a copy is repaired.
	m = proto.Clone(m)
	validate(m.ProtoReflect())
	return c.CodecV2.Marshal(m)
}

// validate makes all text of a message UTF-8.
func validate(m protoreflect.Message) {
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case d.IsMap():
		case d.Kind() == protoreflect.StringKind && d.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString(valid(v.List().Get(i).String())))
			}
		case d.Kind() == protoreflect.StringKind:
			m.Set(d, protoreflect.ValueOfString(valid(v.String())))
		case d.Message() != nil && d.IsList():
			for i := range v.List().Len() {
				validate(v.List().Get(i).Message())
			}
		case d.Message() != nil:
			validate(v.Message())
		}
		return true
	})
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
