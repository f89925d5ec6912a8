package restjson

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/treadle-dev/treadle/internal/jsonscan"
)

// Encode returns the document of msg. Fields that hold JSON are trusted to be valid
// JSON text.
func Encode(msg proto.Message) ([]byte, error) {
	e := encoder{text: make([]byte, 0, proto.Size(msg)*17/16+256)}
	err := e.message(msg.ProtoReflect())
	return e.text, err
}

// encoder builds a document.
type encoder struct {
	text []byte
	// holes are what is left out of text, see [Document].
	holes []hole
	// prepares says that large values are left out.
	prepares bool
	instead  map[protoreflect.FullName]Value
}

func (e *encoder) message(m protoreflect.Message) error {
	switch x := m.Interface().(type) {
	case *durationpb.Duration:
		e.text = appendDuration(e.text, x)
		return nil
	case *timestamppb.Timestamp:
		e.text = appendTimestamp(e.text, x)
		return nil
	}
	if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
		var err error
		e.text, err = protojson.MarshalOptions{UseProtoNames: true}.MarshalAppend(e.text, m.Interface())
		return err
	}
	e.text = append(e.text, '{')
	fields := m.Descriptor().Fields()
	first := true
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) && absent(f) {
			continue
		}
		if !first {
			e.text = append(e.text, ',')
		}
		first = false
		e.text = append(e.text, '"')
		e.text = append(e.text, f.Name()...)
		e.text = append(e.text, '"', ':')
		var err error
		if f.IsMap() {
			err = e.mapping(m.Get(f).Map(), f)
		} else if f.IsList() {
			err = e.list(m.Get(f).List(), f)
		} else {
			err = e.value(m.Get(f), f)
		}
		if err != nil {
			return err
		}
	}
	e.text = append(e.text, '}')
	return nil
}

// absent reports whether a field that is not set is left out.
func absent(f protoreflect.FieldDescriptor) bool {
	return f.HasPresence() || f.Kind() == protoreflect.BytesKind && !f.IsList() || quietFields[f.FullName()]
}

func (e *encoder) list(list protoreflect.List, f protoreflect.FieldDescriptor) error {
	e.text = append(e.text, '[')
	for i := range list.Len() {
		if i > 0 {
			e.text = append(e.text, ',')
		}
		if err := e.value(list.Get(i), f); err != nil {
			return err
		}
	}
	e.text = append(e.text, ']')
	return nil
}

// mapping writes a map as an object, its keys in order, so that equal messages have equal
// documents.
func (e *encoder) mapping(entries protoreflect.Map, f protoreflect.FieldDescriptor) error {
	keys := make([]protoreflect.MapKey, 0, entries.Len())
	entries.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return strings.Compare(a.String(), b.String()) })
	e.text = append(e.text, '{')
	for i, k := range keys {
		if i > 0 {
			e.text = append(e.text, ',')
		}
		e.text = append(jsonscan.AppendString(e.text, k.String()), ':')
		if err := e.value(entries.Get(k), f.MapValue()); err != nil {
			return err
		}
	}
	e.text = append(e.text, '}')
	return nil
}

func (e *encoder) value(v protoreflect.Value, f protoreflect.FieldDescriptor) error {
	switch f.Kind() {
	case protoreflect.StringKind:
		if x, ok := e.instead[f.FullName()]; ok {
			e.hole(x, true)
		} else {
			e.text = jsonscan.AppendString(e.text, v.String())
		}
	case protoreflect.BytesKind:
		e.bytes(v.Bytes(), rawFields[f.FullName()])
	case protoreflect.BoolKind:
		e.text = strconv.AppendBool(e.text, v.Bool())
	case protoreflect.EnumKind:
		if x := f.Enum().Values().ByNumber(v.Enum()); x != nil {
			e.text = jsonscan.AppendString(e.text, string(x.Name()))
		} else {
			e.text = strconv.AppendInt(e.text, int64(v.Enum()), 10)
		}
	case protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Sint32Kind, protoreflect.Sint64Kind,
		protoreflect.Sfixed32Kind, protoreflect.Sfixed64Kind:
		e.text = strconv.AppendInt(e.text, v.Int(), 10)
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		e.text = strconv.AppendUint(e.text, v.Uint(), 10)
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		if x := v.Float(); !math.IsNaN(x) && !math.IsInf(x, 0) {
			bits := 64
			if f.Kind() == protoreflect.FloatKind {
				bits = 32
			}
			e.text = strconv.AppendFloat(e.text, x, 'g', -1, bits)
		} else {
			e.text = append(e.text, "null"...)
		}
	case protoreflect.MessageKind:
		return e.message(v.Message())
	default:
		return fmt.Errorf("field %s: kind %s has no JSON form here", f.FullName(), f.Kind())
	}
	return nil
}

func (e *encoder) bytes(b []byte, raw bool) {
	large := e.prepares && len(b) >= largeFrom
	switch {
	case large && raw:
		e.hole(rawValue(b), false)
	case large:
		e.hole(base64Value(b), true)
	case raw:
		e.text = append(e.text, b...)
	default:
		e.text = append(e.text, '"')
		e.text = base64.StdEncoding.AppendEncode(e.text, b)
		e.text = append(e.text, '"')
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
