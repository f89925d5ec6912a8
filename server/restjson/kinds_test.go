package restjson

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
)

// kinds is a message with the kinds of fields that the contract does not have yet:
// labels (map<string, string>), sizes (map<uint32, int64>), parts (map<string, Kinds>),
// flags (map<bool, double>), weight (double), small (float), seq (uint64), n (uint32).
func kinds(t *testing.T) protoreflect.MessageDescriptor {
	t.Helper()
	text := &descriptorpb.FileDescriptorProto{}
	field := func(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, of string) *descriptorpb.FieldDescriptorProto {
		f := &descriptorpb.FieldDescriptorProto{Name: proto.String(name), Number: proto.Int32(number), Type: kind.Enum(),
			Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
		if of != "" {
			f.TypeName = proto.String(of)
		}
		return f
	}
	const message = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
	m := &descriptorpb.DescriptorProto{Name: proto.String("Kinds"), Field: []*descriptorpb.FieldDescriptorProto{
		field("weight", 5, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, ""), field("small", 6, descriptorpb.FieldDescriptorProto_TYPE_FLOAT, ""),
		field("seq", 7, descriptorpb.FieldDescriptorProto_TYPE_UINT64, ""), field("n", 8, descriptorpb.FieldDescriptorProto_TYPE_UINT32, ""),
	}}
	for i, x := range []struct {
		name, entry string
		key, value  descriptorpb.FieldDescriptorProto_Type
		of          string
	}{
		{"labels", "LabelsEntry", descriptorpb.FieldDescriptorProto_TYPE_STRING, descriptorpb.FieldDescriptorProto_TYPE_STRING, ""},
		{"sizes", "SizesEntry", descriptorpb.FieldDescriptorProto_TYPE_UINT32, descriptorpb.FieldDescriptorProto_TYPE_INT64, ""},
		{"parts", "PartsEntry", descriptorpb.FieldDescriptorProto_TYPE_STRING, message, ".kinds.Kinds"},
		{"flags", "FlagsEntry", descriptorpb.FieldDescriptorProto_TYPE_BOOL, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, ""},
	} {
		f := field(x.name, int32(i+1), message, ".kinds.Kinds."+x.entry)
		f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		m.Field = append(m.Field, f)
		m.NestedType = append(m.NestedType, &descriptorpb.DescriptorProto{
			Name: proto.String(x.entry), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
			Field: []*descriptorpb.FieldDescriptorProto{field("key", 1, x.key, ""), field("value", 2, x.value, x.of)},
		})
	}
	text.Name, text.Package, text.Syntax = proto.String("kinds.proto"), proto.String("kinds"), proto.String("proto3")
	text.MessageType = []*descriptorpb.DescriptorProto{m}
	file, err := protodesc.NewFile(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return file.Messages().Get(0)
}

func TestOtherKinds(t *testing.T) {
	desc := kinds(t)
	const full = `{"weight":0.1,"small":0.1,"seq":18446744073709551615,"n":4294967295,"labels":{"a":"x","b":"y"},` +
		`"sizes":{"7":9007199254740993},"parts":{"p":{"weight":1e+300,"small":0,"seq":0,"n":0,"labels":{},"sizes":{},"parts":{},"flags":{}}},"flags":{"false":0,"true":1.5}}`
	m := dynamicpb.NewMessage(desc)
	if err := DecodeStrict([]byte(full), m); err != nil {
		t.Fatal(err)
	}
	for range 5 { // the order of keys is not that of the map
		if text, err := Encode(m); err != nil || string(text) != full {
			t.Fatalf("%v\n%s\n%s", err, text, full)
		}
	}
	for text, want := range map[string]string{
		`{"labels":[]}`: TypeObject, `{"labels":{"a":5}}`: TypeString, `{"sizes":{"x":1}}`: TypeInt, `{"sizes":{"-1":1}}`: TypeInt, `{"flags":{"perhaps":1}}`: TypeBool,
		`{"weight":"x"}`: TypeNumber, `{"weight":1e400}`: TypeNumber, `{"weight":"NaN"}`: TypeNumber, `{"small":1e300}`: TypeNumber, `{"n":-1}`: TypeInt,
		`{"n":4294967296}`: TypeInt, `{"n":1.5}`: TypeInt, `{"seq":18446744073709551616}`: TypeInt, `{"parts":{"p":{"labels":{"q":[]}}}}`: TypeString,
		`{"parts":{"p":{"lables":{}}}}`: TypeUnknown,
	} {
		var e *Error
		if err := DecodeStrict([]byte(text), dynamicpb.NewMessage(desc)); !errors.As(err, &e) || e.Type != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	err := DecodeStrict([]byte(`{"parts":{"p":{"labels":{"q":[]}}}}`), dynamicpb.NewMessage(desc))
	if err == nil || err.Error() != "parts.p.labels.q: want a string, not an array" {
		t.Errorf("%v", err)
	}
	for _, text := range []string{`{"n":"5","seq":5e3,"weight":"1.5","labels":null}`, `{"labels":{"a":"x","a":"y"}}`} {
		if err := Decode([]byte(text), dynamicpb.NewMessage(desc)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestHint(t *testing.T) {
	known := []string{"priority", "timeout", "deadline", "max_retries", "function_retries", "memory_limit"}
	for word, want := range map[string]string{
		"timeuot": "did you mean timeout?", "prioritty": "did you mean priority?", "PRIORITY": "did you mean priority?", "maxretries": "did you mean max_retries?",
		"retries": "known are priority, timeout, deadline, max_retries, function_retries, memory_limit",
	} {
		if got := Hint(word, known); got != want {
			t.Errorf("%s: %s", word, got)
		}
	}
	if got := Hint("x", nil); got != "none is known here" {
		t.Error(got)
	}
	// A key as long as a body costs and says no more than a short one.
	err := DecodeStrict([]byte(`{"`+strings.Repeat("x", 1<<20)+`":1}`), &treadlev1.ExecuteRequest{})
	if err == nil || len(err.Error()) > 400 {
		t.Errorf("%d bytes", len(err.Error()))
	}
}
