package restjson

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/treadle-dev/treadle/server/jsonscan"
)

// Encode returns the document of msg. Fields that hold JSON are trusted to be valid
// JSON text.
func Encode(msg proto.Message) ([]byte, error) {
	return appendMessage(make([]byte, 0, proto.Size(msg)*17/16+256), msg.ProtoReflect())
}

func appendMessage(b []byte, m protoreflect.Message) ([]byte, error) {
	switch x := m.Interface().(type) {
	case *durationpb.Duration:
		return appendDuration(b, x), nil
	case *timestamppb.Timestamp:
		return appendTimestamp(b, x), nil
	}
	if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
		return protojson.MarshalOptions{UseProtoNames: true}.MarshalAppend(b, m.Interface())
	}
	b = append(b, '{')
	fields := m.Descriptor().Fields()
	first := true
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) && absent(f) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, f.Name()...)
		b = append(b, '"', ':')
		var err error
		if f.IsList() {
			b, err = appendList(b, m.Get(f).List(), f)
		} else {
			b, err = appendValue(b, m.Get(f), f)
		}
		if err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// absent reports whether a field that is not set is left out.
func absent(f protoreflect.FieldDescriptor) bool {
	return f.HasPresence() || f.Kind() == protoreflect.BytesKind && !f.IsList() || quietFields[f.FullName()]
}

func appendList(b []byte, list protoreflect.List, f protoreflect.FieldDescriptor) ([]byte, error) {
	b = append(b, '[')
	for i := range list.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendValue(b, list.Get(i), f); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func appendValue(b []byte, v protoreflect.Value, f protoreflect.FieldDescriptor) ([]byte, error) {
	switch f.Kind() {
	case protoreflect.StringKind:
		return jsonscan.AppendString(b, v.String()), nil
	case protoreflect.BytesKind:
		if rawFields[f.FullName()] {
			return append(b, v.Bytes()...), nil
		}
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, v.Bytes())
		return append(b, '"'), nil
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool()), nil
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return jsonscan.AppendString(b, string(e.Name())), nil
		}
		return strconv.AppendInt(b, int64(v.Enum()), 10), nil
	case protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Sint32Kind, protoreflect.Sint64Kind,
		protoreflect.Sfixed32Kind, protoreflect.Sfixed64Kind:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		if x := v.Float(); !math.IsNaN(x) && !math.IsInf(x, 0) {
			return strconv.AppendFloat(b, x, 'g', -1, 64), nil
		}
		return append(b, "null"...), nil
	case protoreflect.MessageKind:
		return appendMessage(b, v.Message())
	default:
		return nil, fmt.Errorf("field %s: kind %s has no JSON form here", f.FullName(), f.Kind())
	}
}

// appendTimestamp writes RFC 3339 in UTC with as many decimals as there are.
func appendTimestamp(b []byte, t *timestamppb.Timestamp) []byte {
	b = append(b, '"')
	b = t.AsTime().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// appendDuration writes seconds, as in "1.5s".
func appendDuration(b []byte, d *durationpb.Duration) []byte {
	b = append(b, '"')
	if d.Seconds < 0 || d.Nanos < 0 {
		b = append(b, '-')
	}
	b = strconv.AppendUint(b, abs(d.Seconds), 10)
	if n := abs(int64(d.Nanos)); n != 0 {
		b = append(b, '.')
		b = append(b, strings.TrimRight(fmt.Sprintf("%09d", n), "0")...)
	}
	return append(b, 's', '"')
}

func abs(n int64) uint64 {
	if n < 0 {
		return uint64(-n)
	}
	return uint64(n)
}
