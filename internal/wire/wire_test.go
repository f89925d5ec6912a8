package wire

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/task"
)

const testPayload = 1 << 10

// messagesOfContract are all messages of the package, nested ones included.
func messagesOfContract() (out []protoreflect.MessageDescriptor) {
	var add func(ms protoreflect.MessageDescriptors)
	add = func(ms protoreflect.MessageDescriptors) {
		for i := range ms.Len() {
			out = append(out, ms.Get(i))
			add(ms.Get(i).Messages())
		}
	}
	for _, f := range []protoreflect.FileDescriptor{
		treadlev1.File_treadle_v1_fabric_proto, treadlev1.File_treadle_v1_root_proto, treadlev1.File_treadle_v1_worker_proto,
	} {
		add(f.Messages())
	}
	return out
}

// Every field of every message has a limit, or its message is one that only clients
// receive; and the table has nothing that the contract does not have.
func TestEveryFieldHasALimit(t *testing.T) {
	known := map[string]bool{"google.protobuf.Duration.seconds": true, "google.protobuf.Duration.nanos": true,
		"google.protobuf.Timestamp.seconds": true, "google.protobuf.Timestamp.nanos": true}
	fields := 0
	for _, d := range messagesOfContract() {
		limits, ok := table[string(d.FullName())]
		if slices.Contains(answers, string(d.Name())) {
			if ok {
				t.Errorf("%s is an answer and has limits", d.FullName())
			}
			continue
		}
		if !ok {
			t.Errorf("%s has no entry in the table", d.FullName())
		}
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			fields++
			known[string(f.FullName())] = true
			if _, ok := limits[string(f.Name())]; !ok {
				t.Errorf("%s has no limit", f.FullName())
			}
		}
	}
	for message, limits := range table {
		for name := range limits {
			if !known[message+"."+name] {
				t.Errorf("the table has %s.%s, the contract does not", message, name)
			}
		}
	}
	if fields < 80 {
		t.Errorf("only %d fields were seen", fields)
	}
}

// What the server or a worker receives holds no answer.
func TestAnswersAreNotReceived(t *testing.T) {
	received := []protoreflect.MessageDescriptor{
		(*treadlev1.WorkerFrame)(nil).ProtoReflect().Descriptor(), (*treadlev1.DispatcherFrame)(nil).ProtoReflect().Descriptor(),
	}
	for _, file := range []protoreflect.FileDescriptor{treadlev1.File_treadle_v1_fabric_proto, treadlev1.File_treadle_v1_root_proto} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				received = append(received, methods.Get(j).Input())
			}
		}
	}
	if len(received) < 20 {
		t.Fatalf("only %d messages are received", len(received))
	}
	limits := New(testPayload)
	for _, d := range received {
		if limits.plans[d.FullName()] == nil {
			t.Errorf("%s is received and has no plan", d.FullName())
		}
	}
}

// at is one field of a plan with the way to it: a message with the field at, or over, its
// limit is built along it.
type at struct {
	root protoreflect.MessageDescriptor
	way  []protoreflect.FieldDescriptor
}

func (a at) field() protoreflect.FieldDescriptor { return a.way[len(a.way)-1] }

func (a at) String() string {
	names := make([]string, len(a.way))
	for i, f := range a.way {
		names[i] = string(f.Name())
		if f.IsList() && i < len(a.way)-1 {
			names[i] += "[0]"
		}
	}
	return strings.Join(names, ".")
}

// build puts values into the field at the end of the way.
func (a at) build(values ...protoreflect.Value) proto.Message {
	root := dynamicpb.NewMessage(a.root)
	var m protoreflect.Message = root
	for _, f := range a.way[:len(a.way)-1] {
		if f.IsList() {
			m = m.Mutable(f).List().AppendMutable().Message()
		} else {
			m = m.Mutable(f).Message()
		}
	}
	f := a.field()
	for _, v := range values {
		switch {
		case !f.IsList():
			m.Set(f, v)
		case f.Message() != nil:
			m.Mutable(f).List().AppendMutable()
		default:
			m.Mutable(f).List().Append(v)
		}
	}
	return root
}

func walk(d protoreflect.MessageDescriptor, visit func(way []protoreflect.FieldDescriptor), way ...protoreflect.FieldDescriptor) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		next := append(slices.Clone(way), f)
		visit(next)
		if f.Message() != nil {
			walk(f.Message(), visit, next...)
		}
	}
}

// Each limit accepts a message at its edge and refuses one that is over it, from the wire
// and by reflection, with an error that names the field and the limit.
func TestEveryLimitAtItsEdge(t *testing.T) {
	limits := New(testPayload)
	tried := 0
	for name, p := range limits.plans {
		d := descriptor(t, name)
		if d == nil || strings.HasPrefix(string(name), "google.") {
			continue
		}
		walk(d, func(way []protoreflect.FieldDescriptor) {
			a := at{d, way}
			f := a.field()
			limit := table[string(f.ContainingMessage().FullName())][string(f.Name())]
			check := func(m proto.Message, word string) {
				t.Helper()
				tried++
				b, err := proto.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				for how, err := range map[string]*Error{"wire": p.scan(b, &scanner{}), "message": p.reflected(m.ProtoReflect())} {
					switch {
					case word == "" && err != nil:
						t.Errorf("%s: %s.%s at its limit is refused: %v", how, name, a, err)
					case word != "" && err == nil:
						t.Errorf("%s: %s.%s over its limit is accepted", how, name, a)
					case word != "" && (!strings.HasPrefix(err.Field, a.String()) || !strings.Contains(err.Text, word)):
						t.Errorf("%s: %s.%s is refused as %q: %q", how, name, a, err.Field, err.Text)
					}
				}
			}
			if f.IsList() && limit.count > 0 && (f.Message() != nil || limit.kind == limitText) {
				item := value(f, 1)
				check(a.build(slices.Repeat([]protoreflect.Value{item}, limit.count)...), "")
				check(a.build(slices.Repeat([]protoreflect.Value{item}, limit.count+1)...), fmt.Sprint(limit.count))
			}
			switch limit.kind {
			case limitText, limitMessage:
				n := limit.bytes
				if limit.kind == limitMessage {
					n = MessageLimit(testPayload)
				}
				check(a.build(value(f, n)), "")
				check(a.build(value(f, n+1)), fmt.Sprint(n+1))
			case limitWords:
				for _, w := range limit.words {
					check(a.build(protoreflect.ValueOfString(w)), "")
				}
				check(a.build(protoreflect.ValueOfString("nonsense")), limit.words[0])
			case limitRange:
				for _, n := range []int64{limit.low, limit.high} {
					check(a.build(number(f, n)), "")
				}
				check(a.build(number(f, limit.high+1)), fmt.Sprint(limit.high))
				check(a.build(number(f, limit.low-1)), fmt.Sprint(limit.low-1))
			case limitAny:
			}
		})
	}
	if tried < 400 {
		t.Errorf("only %d messages were tried: the walk is broken", tried)
	}
}

func descriptor(t *testing.T, name protoreflect.FullName) protoreflect.MessageDescriptor {
	t.Helper()
	for _, d := range messagesOfContract() {
		if d.FullName() == name {
			return d
		}
	}
	return nil
}

func value(f protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(strings.Repeat("x", n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(make([]byte, n))
	default:
		return protoreflect.Value{}
	}
}

func number(f protoreflect.FieldDescriptor, n int64) protoreflect.Value {
	if f.Kind() == protoreflect.Int32Kind {
		return protoreflect.ValueOfInt32(int32(n))
	}
	return protoreflect.ValueOfInt64(n)
}

// unmarshal reads through the codec, as gRPC does.
func unmarshal(t testing.TB, b []byte, m proto.Message) *Error {
	t.Helper()
	if err := Codec(testPayload).Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m); err != nil {
		t.Fatal(err)
	}
	return Refusal(m)
}

// A frame of 128 MiB of 2-byte reports is refused before anything is made of them.
func TestEmptyItemsDoNotBlowUp(t *testing.T) {
	items := make([]byte, 0, 128<<20)
	for len(items) < cap(items)-2 {
		items = append(items, 0x0a, 0)
	}
	b := protowire.AppendTag(nil, 3, protowire.BytesType)
	b = protowire.AppendBytes(b, items)
	var m treadlev1.WorkerFrame
	codec := Codec(testPayload)
	data := mem.BufferSlice{mem.SliceBuffer(b)}
	got := testing.AllocsPerRun(1, func() {
		if err := codec.Unmarshal(data, &m); err != nil {
			t.Error(err)
		}
	})
	err := Refusal(&m)
	if err == nil || err.Field != "outcomes.items" || !strings.Contains(err.Text, "4096") {
		t.Fatalf("refused as %v", err)
	}
	if got > 50 {
		t.Errorf("%v allocations for a refusal", got)
	}
	if m.GetOutcomes() != nil {
		t.Error("a refused message is not empty")
	}
}

// Parsers merge a message that is given twice: counts would not hold.
func TestGivenTwice(t *testing.T) {
	one, err := proto.Marshal(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: &treadlev1.Outcomes{
		Items: slices.Repeat([]*treadlev1.Report{{}}, MaxItems),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := unmarshal(t, one, &treadlev1.WorkerFrame{}); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	if err := unmarshal(t, append(one, one...), &treadlev1.WorkerFrame{}); err == nil || err.Field != "outcomes" {
		t.Fatalf("twice as many in two pieces: %v", err)
	}
}

// Frames are repaired, requests refused: what a function printed is not the peer's choice.
func TestTextThatIsNotUTF8(t *testing.T) {
	raw := func(message string, parts ...any) []byte {
		b := []byte(message)
		for _, p := range parts {
			b = protowire.AppendTag(nil, protowire.Number(p.(int)), protowire.BytesType)
			b = protowire.AppendBytes(b, []byte(message))
			message = string(b)
		}
		return b
	}
	// WorkerFrame.outcomes.items.failure.message
	b := raw("caf\xe9 is \xff\xfe missing", 2, 6, 1, 3)
	before := slices.Clone(b)
	var frame treadlev1.WorkerFrame
	if err := unmarshal(t, b, &frame); err != nil {
		t.Fatal(err)
	}
	if got := frame.GetOutcomes().GetItems()[0].GetFailure().GetMessage(); got != "caf? is ?? missing" {
		t.Errorf("the message reads %q", got)
	}
	if !slices.Equal(b, before) {
		t.Error("the buffer was changed, which is not the codec's")
	}
	err := unmarshal(t, raw("caf\xe9", 1), &treadlev1.RegisterFunctionRequest{})
	if err == nil || err.Field != "name" || !strings.Contains(err.Text, "UTF-8 at byte 3") {
		t.Errorf("a request's name is refused as %v", err)
	}
	err = unmarshal(t, raw("caf\xe9", 1, 1), &treadlev1.ExecuteBatchRequest{})
	if err == nil || err.Field != "requests[0].function" {
		t.Errorf("an item is refused as %v", err)
	}
}

// What is sent is made valid, in a copy.
func TestMarshalMakesTextValid(t *testing.T) {
	codec := Codec(testPayload)
	m := &treadlev1.Outcomes{Items: []*treadlev1.Report{{
		Repr: "\xff", Log: []byte("\xff"), Failure: &treadlev1.Failure{Message: "caf\xe9", ExceptionPickle: []byte{0xff}},
	}}}
	out, err := codec.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var got treadlev1.Outcomes
	if err := proto.Unmarshal(out.Materialize(), &got); err != nil {
		t.Fatal(err)
	}
	r := got.GetItems()[0]
	if r.GetRepr() != "\uFFFD" || r.GetFailure().GetMessage() != "caf\uFFFD" || string(r.GetLog()) != "\xff" || r.GetFailure().GetExceptionPickle()[0] != 0xff {
		t.Errorf("arrived as %v", r)
	}
	if m.GetItems()[0].GetRepr() != "\xff" {
		t.Error("the message itself was changed")
	}
	list := &treadlev1.Worker{Queues: []string{"ok", "\xff"}, Name: "ok"}
	if _, err := codec.Marshal(list); err != nil {
		t.Errorf("text in a list: %v", err)
	}
}

func TestMalformed(t *testing.T) {
	for name, b := range map[string][]byte{
		"cut short":     {0x0a, 5, 1},
		"bad varint":    {0x08, 0xff},
		"bad tag":       {0},
		"a mark":        protowire.AppendBytes(protowire.AppendTag(nil, markNumber, protowire.BytesType), []byte("x\x00y")),
		"end of group":  {0x0c},
		"nested is cut": {0x1a, 2, 0x0a, 9},
	} {
		if err := unmarshal(t, b, &treadlev1.WorkerFrame{}); err == nil || !strings.Contains(err.Text, malformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Unknown fields are for later releases.
	b := protowire.AppendBytes(protowire.AppendTag(nil, 30, protowire.BytesType), []byte("later"))
	if err := unmarshal(t, b, &treadlev1.GetTaskRequest{}); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
}

// FuzzScan: what the scan accepts can be unmarshalled and is within the limits by
// reflection too; what it refuses as malformed cannot be.
func FuzzScan(f *testing.F) {
	limits := New(testPayload)
	for _, m := range []proto.Message{
		&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: &treadlev1.Outcomes{Items: []*treadlev1.Report{report()}}}},
		&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Hello{Hello: &treadlev1.Hello{Worker: "w", Queues: []string{"q"}}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\xd8\xd8\xd8\xd800")) // a field's number over the highest that there is
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{&treadlev1.WorkerFrame{}, &treadlev1.DispatcherFrame{}, &treadlev1.ExecuteBatchRequest{}, &treadlev1.CallRequest{}} {
			p := limits.plan(m)
			s := scanner{repairs: p == limits.worker || p == limits.sender}
			err := p.scan(b, &s)
			plain := proto.Unmarshal(b, m)
			switch {
			case err != nil && err.Text == malformed && plain == nil:
				if num, _, _ := protowire.ConsumeTag(b); num != markNumber && !strings.Contains(fmt.Sprint(m), fmt.Sprint(markNumber)) {
					t.Fatalf("%T is refused as malformed, and is not", m)
				}
			case err == nil && s.dirty:
				fixed := slices.Clone(b)
				if err := p.scan(fixed, &scanner{repairs: true, fix: true}); err != nil {
					t.Fatalf("a %T that is to be repaired: %v", m, err)
				}
				if err := proto.Unmarshal(fixed, m); err != nil {
					t.Fatalf("a repaired %T: %v", m, err)
				}
			case err == nil && plain != nil:
				t.Fatalf("%T is accepted and cannot be read: %v", m, plain)
			case err == nil:
				if err := p.reflected(m.ProtoReflect()); err != nil {
					t.Fatalf("%T is accepted on the wire and refused after: %v", m, err)
				}
			}
		}
	})
}

func report() *treadlev1.Report {
	return &treadlev1.Report{
		Token: &treadlev1.Token{TaskId: make([]byte, 16), Epoch: 3, ClaimId: make([]byte, 16), Attempt: 1},
		End:   "succeeded", Result: &treadlev1.Value{Inline: []byte("null"), Size: 4}, Encoding: "json",
	}
}

func BenchmarkScanReport(b *testing.B) {
	raw, err := proto.Marshal(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: &treadlev1.Outcomes{
		Items: []*treadlev1.Report{report()},
	}}})
	if err != nil {
		b.Fatal(err)
	}
	p := New(64 << 20).worker
	b.ReportAllocs()
	for b.Loop() {
		if err := p.scan(raw, &scanner{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestScanAllocatesNothing(t *testing.T) {
	raw, err := proto.Marshal(&treadlev1.WorkerFrame{Kind: &treadlev1.WorkerFrame_Outcomes{Outcomes: &treadlev1.Outcomes{
		Items: slices.Repeat([]*treadlev1.Report{report()}, 100),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	p := New(testPayload).worker
	if n := testing.AllocsPerRun(10, func() {
		s := scanner{repairs: true}
		if err := p.scan(raw, &s); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if !utf8.ValidString(valid("\xff")) {
		t.Error("valid does not make text valid")
	}
}

// docs/security.md tells the limits as the table has them.
func TestDocumentedLimits(t *testing.T) {
	b, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		fmt.Sprintf("| ids, names and tokens of requests | %d KiB each", maxText>>10),
		fmt.Sprintf("| what a worker says of itself | %d bytes a text; 1,024 queues (%d bytes each)", maxWorkerText, task.MaxQueueLength),
		fmt.Sprintf("exception type %d KiB, repr %d KiB, message and traceback %d KiB each, of which %d, %d and %d KiB are kept",
			2*task.MaxTypeText>>10, 2*task.MaxRepr>>10, maxErrorText>>10, task.MaxTypeText>>10, task.MaxRepr>>10, task.MaxErrorText>>10),
		"4,096; claims listed in one frame: 16,384", "| items of a batch, ids of a wait | 10,000 |",
	} {
		if !strings.Contains(string(b), line) {
			t.Errorf("docs/security.md does not say %q", line)
		}
	}
	if maxListed != 1024 || MaxItems != 4096 || MaxHeld != 16384 || maxBatch != 10_000 {
		t.Error("the limits have changed: docs/security.md and worker.proto name them")
	}
}
