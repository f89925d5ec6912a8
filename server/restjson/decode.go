package restjson

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unsafe"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/treadle-dev/treadle/internal/jsonscan"
)

// Decode reads a document into msg. A returned error is an *[Error]. Neither msg nor
// the error keeps data.
func Decode(data []byte, msg proto.Message) error {
	return described(decode(data, msg, false))
}

// described turns an error of the scanner into one for people.
func described(err error) error {
	var syntax *jsonscan.SyntaxError
	if errors.As(err, &syntax) {
		return &Error{Type: TypeSyntax, Msg: "the body is not one JSON document: " + syntax.Error(), Offset: syntax.Offset}
	}
	return err
}

// DecodeOwned is [Decode] for data that nobody needs any more: where that saves a copy
// of a large value, msg shares the memory of data, whose bytes are then not what they
// were.
func DecodeOwned(data []byte, msg proto.Message) error {
	return decodeOwned(data, msg, false)
}

// DecodeStrict is [DecodeOwned] for those who want to know of a field that msg does not
// have, at any depth: it is an error of [TypeUnknown], which names the nearest known word.
func DecodeStrict(data []byte, msg proto.Message) error {
	return decodeOwned(data, msg, true)
}

func decodeOwned(data []byte, msg proto.Message, strict bool) error {
	if len(data) < ownedFrom {
		return described(decode(data, msg, strict))
	}
	// The whole text is checked first, as reading it changes it.
	err := checkText(data)
	if err == nil {
		d := decoder{s: jsonscan.New(data), owned: true, strict: strict}
		if err = d.message(msg.ProtoReflect()); err == nil {
			err = d.s.End()
		}
	}
	return described(err)
}

// ownedFrom is the size from which values share the memory of their document. A small
// one would keep a large document alive.
const ownedFrom = 256 << 10

// byteOrderMark is what some editors and shells write before UTF-8.
var byteOrderMark = []byte("\xef\xbb\xbf")

// checkText says why data is no document. JSON has no byte order mark, and nobody sees one.
func checkText(data []byte) error {
	if bytes.HasPrefix(data, byteOrderMark) {
		return &jsonscan.SyntaxError{Msg: "a byte order mark (BOM): send UTF-8 without one;"}
	}
	_, err := jsonscan.Check(data)
	return err
}

func decode(data []byte, msg proto.Message, strict bool) error {
	if bytes.HasPrefix(data, byteOrderMark) {
		return checkText(data)
	}
	if err := jsonscan.CheckUTF8(data); err != nil {
		return err
	}
	d := decoder{s: jsonscan.New(data), strict: strict}
	if err := d.message(msg.ProtoReflect()); err != nil {
		// A value of the wrong type matters less than text that is not JSON at all.
		if _, syntax := jsonscan.Check(data); syntax != nil {
			return syntax
		}
		return err
	}
	return d.s.End()
}

// Target returns the message that v is or, when v points to a nil message pointer,
// the one that it allocates there; the generated gateway passes both.
func Target(v any) (proto.Message, bool) {
	if m, ok := v.(proto.Message); ok {
		return m, true
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() || rv.Elem().Kind() != reflect.Pointer {
		return nil, false
	}
	if rv.Elem().IsNil() {
		rv.Elem().Set(reflect.New(rv.Elem().Type().Elem()))
	}
	m, ok := rv.Elem().Interface().(proto.Message)
	return m, ok
}

type decoder struct {
	s *jsonscan.Scanner
	// owned says that large values may share the memory of the document.
	owned bool
	// strict says that unknown fields are refused.
	strict bool
}

// want refuses a value of another kind.
func (d decoder) want(kind jsonscan.Kind, name string) error {
	got, err := d.s.Kind()
	if err != nil {
		return err
	}
	if got != kind {
		return wrong(name, "want %s, not %s", kind, got)
	}
	return nil
}

func (d decoder) message(m protoreflect.Message) error {
	if err := d.want(jsonscan.Object, TypeObject); err != nil {
		return err
	}
	fields := m.Descriptor().Fields()
	var scratch [64]byte
	return d.s.Object(func(raw []byte) error {
		key, _ := jsonscan.Unquote(scratch[:0], raw)
		f := fields.ByName(protoreflect.Name(key))
		if f == nil && !snakeCaseOnly[m.Descriptor().ParentFile().Path()] {
			f = fields.ByJSONName(string(key))
		}
		if f == nil && d.strict {
			return unknown(m.Descriptor(), string(key))
		}
		if f == nil {
			_, err := d.s.Skip()
			return err
		}
		return under(d.field(m, f), string(f.Name()))
	})
}

func (d decoder) field(m protoreflect.Message, f protoreflect.FieldDescriptor) error {
	kind, err := d.s.Kind()
	if err != nil {
		return err
	}
	m.Clear(f)
	if kind == jsonscan.Null && !(rawFields[f.FullName()] && f.HasPresence()) {
		return d.s.Null()
	}
	switch {
	case f.IsMap():
		return d.mapping(m.Mutable(f).Map(), f)
	case f.IsList():
		return d.list(m.Mutable(f).List(), f)
	case f.Message() != nil:
		sub := m.NewField(f)
		if err := d.submessage(sub.Message()); err != nil {
			return err
		}
		m.Set(f, sub)
		return nil
	default:
		v, err := d.scalar(f)
		if err == nil {
			m.Set(f, v)
		}
		return err
	}
}

func (d decoder) list(list protoreflect.List, f protoreflect.FieldDescriptor) error {
	if err := d.want(jsonscan.Array, TypeList); err != nil {
		return err
	}
	return d.s.Array(func() error {
		at := index(list.Len())
		if f.Message() != nil {
			sub := list.NewElement()
			if err := d.submessage(sub.Message()); err != nil {
				return under(err, at)
			}
			list.Append(sub)
			return nil
		}
		v, err := d.scalar(f)
		if err == nil {
			list.Append(v)
		}
		return under(err, at)
	})
}

func (d decoder) submessage(m protoreflect.Message) error {
	switch x := m.Interface().(type) {
	case *durationpb.Duration:
		return d.duration(x)
	case *timestamppb.Timestamp:
		return d.timestamp(x)
	}
	if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
		raw, err := d.s.Skip()
		if err != nil {
			return err
		}
		if err := protojson.Unmarshal(raw, m.Interface()); err != nil {
			return wrong(TypeObject, "%v", err)
		}
		return nil
	}
	return d.message(m)
}

func (d decoder) scalar(f protoreflect.FieldDescriptor) (protoreflect.Value, error) {
	switch f.Kind() {
	case protoreflect.StringKind:
		s, err := d.string(TypeString)
		return protoreflect.ValueOfString(s), err
	case protoreflect.BytesKind:
		b, err := d.bytes(f)
		return protoreflect.ValueOfBytes(b), err
	case protoreflect.BoolKind:
		if err := d.want(jsonscan.Bool, TypeBool); err != nil {
			return protoreflect.Value{}, err
		}
		b, err := d.s.Bool()
		return protoreflect.ValueOfBool(b), err
	case protoreflect.EnumKind:
		return d.enum(f.Enum())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, err := d.integer(32)
		return protoreflect.ValueOfInt32(int32(n)), err
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, err := d.integer(64)
		return protoreflect.ValueOfInt64(n), err
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		n, err := d.unsigned(32)
		return protoreflect.ValueOfUint32(uint32(n)), err
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		n, err := d.unsigned(64)
		return protoreflect.ValueOfUint64(n), err
	case protoreflect.DoubleKind:
		x, err := d.float(64)
		return protoreflect.ValueOfFloat64(x), err
	case protoreflect.FloatKind:
		x, err := d.float(32)
		return protoreflect.ValueOfFloat32(float32(x)), err
	default:
		return protoreflect.Value{}, wrong(TypeObject, "fields of kind %s are not part of this API", f.Kind())
	}
}

// string reads a string; kind is the type named in the error when it is none.
func (d decoder) string(kind string) (string, error) {
	text, err := d.text(kind)
	// The buffer is never touched again, so the string may share it.
	return unsafe.String(unsafe.SliceData(text), len(text)), err
}

// text reads a string into memory of its own, or decodes it where it stands.
func (d decoder) text(kind string) ([]byte, error) {
	if err := d.want(jsonscan.String, kind); err != nil {
		return nil, err
	}
	raw, err := d.s.RawString()
	if err != nil {
		return nil, err
	}
	var into []byte
	if d.owned && len(raw) >= ownedFrom {
		into = raw[:0:len(raw)] // decoded text is never longer than its escapes
	} else {
		into = make([]byte, 0, len(raw))
	}
	text, lone := jsonscan.Unquote(into, raw)
	if lone {
		return nil, wrong(kind, "half of a surrogate pair is not text")
	}
	return text, nil
}

func (d decoder) bytes(f protoreflect.FieldDescriptor) ([]byte, error) {
	if rawFields[f.FullName()] {
		raw, err := d.s.Skip()
		if d.owned && len(raw) >= ownedFrom {
			return raw[:len(raw):len(raw)], err
		}
		return append([]byte(nil), raw...), err
	}
	text, err := d.text(TypeBytes)
	if err != nil {
		return nil, err
	}
	b, err := decodeBase64(text)
	if err != nil {
		return nil, wrong(TypeBytes, "not base64: %v", err)
	}
	return b, nil
}

// decodeBase64 reads either alphabet, padded or not, and ignores white space. It
// decodes in place: the output never overtakes the input.
func decodeBase64(text []byte) ([]byte, error) {
	b := text[:0]
	encoding := base64.RawStdEncoding
	for i := range len(text) {
		switch c := text[i]; c {
		case ' ', '\t', '\n', '\v', '\f', '\r':
		case '-', '_':
			encoding = base64.RawURLEncoding
			b = append(b, c)
		default:
			b = append(b, c)
		}
	}
	for pad := 0; pad < 2 && len(b) > 0 && b[len(b)-1] == '='; pad++ {
		b = b[:len(b)-1]
	}
	n, err := encoding.Decode(b, b)
	return b[:n:n], err
}

func (d decoder) enum(e protoreflect.EnumDescriptor) (protoreflect.Value, error) {
	kind, err := d.s.Kind()
	if err != nil {
		return protoreflect.Value{}, err
	}
	if kind == jsonscan.Number {
		n, err := d.integer(32)
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)), err
	}
	name, err := d.string(TypeEnum)
	if err != nil {
		return protoreflect.Value{}, err
	}
	v := e.Values().ByName(protoreflect.Name(name))
	if v == nil {
		return protoreflect.Value{}, wrong(TypeEnum, "%.40q: want %s", name, wordsOf(e))
	}
	return protoreflect.ValueOfEnum(v.Number()), nil
}

// wordsOf lists the words of an enum that mean something.
func wordsOf(e protoreflect.EnumDescriptor) string {
	var words []string
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); !strings.HasSuffix(string(v.Name()), "_UNSPECIFIED") {
			words = append(words, string(v.Name()))
		}
	}
	return strings.Join(words, " or ")
}

// number reads a number, or a string that holds one, and returns its text.
func (d decoder) number(name string) (string, error) {
	kind, err := d.s.Kind()
	if err != nil {
		return "", err
	}
	switch kind {
	case jsonscan.String:
		return d.string(name)
	case jsonscan.Number:
		raw, err := d.s.Number()
		return string(raw), err
	default:
		return "", wrong(name, "want a number, not %s", kind)
	}
}

func (d decoder) integer(bits int) (int64, error) {
	text, err := d.number(TypeInt)
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseInt(text, 10, bits); err == nil {
		return n, nil
	}
	// 5.0 and 5e3 are integers, too.
	if f, err := strconv.ParseFloat(text, 64); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 &&
		(bits == 64 || math.Abs(f) <= math.MaxInt32) {
		return int64(f), nil
	}
	return 0, wrong(TypeInt, "%.40q is not an integer of %d bits", text, bits)
}

func (d decoder) unsigned(bits int) (uint64, error) {
	text, err := d.number(TypeInt)
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseUint(text, 10, bits); err == nil {
		return n, nil
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && f == math.Trunc(f) && f >= 0 && f < 1<<53 &&
		(bits == 64 || f <= math.MaxUint32) {
		return uint64(f), nil
	}
	return 0, wrong(TypeInt, "%.40q is not an integer of %d bits that is 0 or more", text, bits)
}

// float reads a finite number: JSON has no other.
func (d decoder) float(bits int) (float64, error) {
	text, err := d.number(TypeNumber)
	if err != nil {
		return 0, err
	}
	x, err := strconv.ParseFloat(text, bits)
	if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		return 0, wrong(TypeNumber, "%.40q is not a finite number of %d bits", text, bits)
	}
	return x, nil
}

func (d decoder) duration(into *durationpb.Duration) error {
	text, err := d.number(TypeDuration)
	if err != nil {
		return err
	}
	v, err := ParseDuration(text)
	if err != nil {
		return wrong(TypeDuration, "%v", err)
	}
	into.Seconds, into.Nanos = int64(v/time.Second), int32(v%time.Second)
	return nil
}

// ParseDuration reads "1.5s", "500ms", "1m30s" and plain seconds ("1.5").
func ParseDuration(text string) (time.Duration, error) {
	if v, err := time.ParseDuration(text); err == nil {
		return v, nil
	}
	// A unit at the end of "1s2" would make 3 s of what nobody can have meant.
	if !strings.ContainsFunc(text, unicode.IsLetter) {
		if v, err := time.ParseDuration(text + "s"); err == nil {
			return v, nil
		}
	}
	return 0, errors.New(strconv.Quote(text[:min(len(text), 40)]) + ` is not a duration: write "30s", "500ms" or seconds`)
}

func (d decoder) timestamp(into *timestamppb.Timestamp) error {
	text, err := d.string(TypeTime)
	if err != nil {
		return err
	}
	v, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return wrong(TypeTime, "%.60q is not a time as in RFC 3339, for example 2026-01-02T15:04:05Z", text)
	}
	into.Seconds, into.Nanos = v.Unix(), int32(v.Nanosecond())
	return nil
}

// mapping reads an object into a map field. Of a key given twice the last one counts.
func (d decoder) mapping(into protoreflect.Map, f protoreflect.FieldDescriptor) error {
	if err := d.want(jsonscan.Object, TypeObject); err != nil {
		return err
	}
	return d.s.Object(func(raw []byte) error {
		text, lone := jsonscan.Unquote(make([]byte, 0, len(raw)), raw)
		if lone {
			return wrong(TypeString, "half of a surrogate pair is not text")
		}
		name := string(text)
		key, err := mapKey(f.MapKey(), name)
		if err != nil {
			return err
		}
		if f.MapValue().Message() != nil {
			sub := into.NewValue()
			if err := d.submessage(sub.Message()); err != nil {
				return under(err, name)
			}
			into.Set(key, sub)
			return nil
		}
		v, err := d.scalar(f.MapValue())
		if err == nil {
			into.Set(key, v)
		}
		return under(err, name)
	})
}

// mapKey reads the key of a map field from the name that it is in JSON.
func mapKey(f protoreflect.FieldDescriptor, name string) (protoreflect.MapKey, error) {
	if f.Kind() == protoreflect.StringKind {
		return protoreflect.ValueOfString(name).MapKey(), nil
	}
	if f.Kind() == protoreflect.BoolKind {
		b, err := strconv.ParseBool(name)
		if err != nil {
			return protoreflect.MapKey{}, wrong(TypeBool, "the key %.40q is neither true nor false", name)
		}
		return protoreflect.ValueOfBool(b).MapKey(), nil
	}
	// What is no number as text is none as a key.
	d := decoder{s: jsonscan.New(jsonscan.AppendString(nil, name))}
	v, err := d.scalar(f)
	if err != nil {
		return protoreflect.MapKey{}, err
	}
	return v.MapKey(), nil
}

// SetText sets a field of one value from text, as query parameters have it: numbers,
// times, durations and names of enums in the forms that documents have, true and false.
// A returned error is an *[Error] whose path is the name of the field.
func SetText(m protoreflect.Message, f protoreflect.FieldDescriptor, text string) error {
	if f.IsList() || f.IsMap() {
		return under(wrong(TypeObject, "fields of many values are not part of a query"), string(f.Name()))
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		m.Set(f, protoreflect.ValueOfString(text))
		return nil
	case protoreflect.BoolKind:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return under(wrong(TypeBool, "%.40q is neither true nor false", text), string(f.Name()))
		}
		m.Set(f, protoreflect.ValueOfBool(b))
		return nil
	case protoreflect.EnumKind:
		if n, err := strconv.ParseInt(text, 10, 32); err == nil {
			m.Set(f, protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)))
			return nil
		}
	}
	d := decoder{s: jsonscan.New(jsonscan.AppendString(nil, text))}
	return under(d.field(m, f), string(f.Name()))
}
