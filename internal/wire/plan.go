package wire

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Error says which field of a message is not within its limit, and which limit that is.
type Error struct {
	// Field leads to the value: names of fields and indexes of lists, as in
	// "outcomes.items[3].end". It is empty when the message as a whole is malformed.
	Field string
	// Text is a sentence for people that names the value and the limit.
	Text string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Text
	}
	return e.Field + ": " + e.Text
}

// under adds the field that the fault was found in.
func (e *Error) under(step string) *Error {
	switch {
	case e.Field == "":
		e.Field = step
	case e.Field[0] == '[':
		e.Field = step + e.Field
	default:
		e.Field = step + "." + e.Field
	}
	return e
}

func fault(format string, args ...any) *Error { return &Error{Text: fmt.Sprintf(format, args...)} }

// Bounds of the plans, which [compile] holds the contract to.
const (
	// maxRepeated is how many repeated fields one message may have.
	maxRepeated = 4
	// maxNumber is the highest number of a field.
	maxNumber = 31
	// maxDepth is how deep messages may be nested.
	maxDepth = 8
)

// plan is how one message is checked.
type plan struct {
	name   string
	fields [maxNumber + 1]field
}

type fieldKind uint8

const (
	kindUnknown fieldKind = iota
	kindNumber            // checked against low and high when ranged
	kindText
	kindBytes
	kindMessage
)

// field is how one field is checked.
type field struct {
	name     string
	kind     fieldKind
	typ      protowire.Type
	narrow   bool // 32 bits
	ranged   bool
	repeated bool
	slot     uint8
	limit    Limit
	message  *plan
}

// compile makes the plan of a message and of all that it may hold. message is the bound of
// fields that only the message limit bounds, in bytes.
func compile(d protoreflect.MessageDescriptor, message int, made map[protoreflect.FullName]*plan, depth int) (*plan, error) {
	if p := made[d.FullName()]; p != nil {
		return p, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%s is nested deeper than %d", d.FullName(), maxDepth)
	}
	limits := table[string(d.FullName())]
	p := &plan{name: string(d.FullName())}
	var slots uint8
	var errs []error
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		limit, ok := limits[string(f.Name())]
		if !ok {
			limit = standIn(f)
		}
		out, err := compileField(f, limit, message, made, depth)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if out.repeated {
			out.slot = slots
			slots++
		}
		p.fields[f.Number()] = out
	}
	if slots > maxRepeated {
		errs = append(errs, fmt.Errorf("%s has %d repeated fields: maxRepeated is %d", d.FullName(), slots, maxRepeated))
	}
	made[d.FullName()] = p
	return p, errors.Join(errs...)
}

func compileField(f protoreflect.FieldDescriptor, limit Limit, message int, made map[protoreflect.FullName]*plan, depth int) (field, error) {
	out := field{name: string(f.Name()), limit: limit, repeated: f.IsList()}
	wrong := func(what string) (field, error) { return out, fmt.Errorf("%s: %s", f.FullName(), what) }
	if f.Number() > maxNumber || f.IsMap() {
		return wrong("a map, or a number over 31")
	}
	if f.IsList() != (limit.count > 0) {
		return wrong("a limit of items goes with a repeated field, and with no other")
	}
	switch f.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind:
		out.kind, out.typ = kindText, protowire.BytesType
		if f.Kind() == protoreflect.BytesKind {
			out.kind = kindBytes
		}
		switch limit.kind {
		case limitText:
		case limitMessage:
			out.limit.bytes = message
		case limitWords:
			for _, w := range limit.words {
				out.limit.bytes = max(out.limit.bytes, len(w))
			}
		default:
			return wrong("text wants a limit in bytes or words")
		}
	case protoreflect.MessageKind:
		if limit.kind != limitAny {
			return wrong("a message has the limits of its fields")
		}
		var err error
		out.kind, out.typ = kindMessage, protowire.BytesType
		if out.message, err = compile(f.Message(), message, made, depth+1); err != nil {
			return out, err
		}
	case protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.BoolKind, protoreflect.EnumKind:
		if f.IsList() {
			return wrong("repeated numbers may be packed, which is not known here")
		}
		if limit.kind != limitAny && limit.kind != limitRange {
			return wrong("a number wants a range or none")
		}
		out.kind, out.typ, out.ranged = kindNumber, protowire.VarintType, limit.kind == limitRange
		out.narrow = f.Kind() == protoreflect.Int32Kind || f.Kind() == protoreflect.EnumKind
	default:
		return wrong("a kind that is not known here: " + f.Kind().String())
	}
	return out, nil
}

// scanner is one pass over the bytes of a message.
type scanner struct {
	// repairs says that text that is not UTF-8 is to be made valid rather than refused;
	// dirty, that there is some; fix, that it is overwritten now.
	repairs, dirty, fix bool
}

const malformed = "the message is not valid protobuf"

// scan checks the raw bytes of a message. It allocates nothing unless it finds a fault.
func (p *plan) scan(b []byte, s *scanner) *Error {
	var counts [maxRepeated]int
	var seen uint32 // messages that were given
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || num > protowire.MaxValidNumber {
			return &Error{Text: malformed}
		}
		b = b[n:]
		if num > maxNumber || p.fields[num].kind == kindUnknown || p.fields[num].typ != typ {
			n = protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 || num == markNumber {
				return &Error{Text: malformed}
			}
			b = b[n:]
			continue
		}
		f := &p.fields[num]
		if f.repeated {
			counts[f.slot]++
			if counts[f.slot] > f.limit.count {
				return tooMany(f)
			}
		}
		if f.kind == kindNumber {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return &Error{Text: malformed}
			}
			b = b[n:]
			if f.ranged {
				if err := f.number(v); err != nil {
					return err
				}
			}
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return &Error{Text: malformed}
		}
		b = b[n:]
		if f.kind == kindMessage {
			if !f.repeated {
				// Parsers merge what is given twice, so counts would not hold.
				if seen&(1<<num) != 0 {
					return fault("given twice in one message").under(f.name)
				}
				seen |= 1 << num
			}
			if err := f.message.scan(v, s); err != nil {
				return f.wrap(err, counts[f.slot])
			}
			continue
		}
		if err := f.bytes(v, s); err != nil {
			return f.wrap(err, counts[f.slot])
		}
	}
	return nil
}

func tooMany(f *field) *Error {
	return fault("more than %d items: want at most %d", f.limit.count, f.limit.count).under(f.name)
}

// wrap names the field of a fault; count is how many items there were up to it.
func (f *field) wrap(err *Error, count int) *Error {
	if f.repeated {
		return err.under(f.name + "[" + strconv.Itoa(count-1) + "]")
	}
	return err.under(f.name)
}

func (f *field) number(v uint64) *Error {
	n := int64(v)
	if f.narrow {
		n = int64(int32(v))
	}
	if n < f.limit.low || n > f.limit.high {
		return fault("%d: want %d to %d", n, f.limit.low, f.limit.high).under(f.name)
	}
	return nil
}

// bytes checks a text or bytes.
func (f *field) bytes(v []byte, s *scanner) *Error {
	if len(v) > f.limit.bytes && f.limit.words == nil {
		return fault("%d bytes: want at most %d", len(v), f.limit.bytes)
	}
	if f.kind == kindBytes {
		return nil
	}
	if f.limit.words != nil {
		if len(v) > 0 && !slices.ContainsFunc(f.limit.words, func(w string) bool { return string(v) == w }) {
			return fault("%.64q: want one of %s", v, strings.Join(f.limit.words, ", "))
		}
		return nil
	}
	if utf8.Valid(v) {
		return nil
	}
	if !s.repairs {
		return fault("the text is not UTF-8 at byte %d", invalidAt(v))
	}
	s.dirty = true
	if s.fix {
		overwrite(v)
	}
	return nil
}

func invalidAt(v []byte) int {
	at := 0
	for at < len(v) {
		r, n := utf8.DecodeRune(v[at:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		at += n
	}
	return at
}

// overwrite puts a question mark in the place of each byte that is not part of a
// character: the length of the text stays, and so does the frame around it.
func overwrite(v []byte) {
	for at := 0; at < len(v); {
		r, n := utf8.DecodeRune(v[at:])
		if r == utf8.RuneError && n == 1 {
			v[at] = '?'
		}
		at += n
	}
}

// reflected checks a message that was not read from the wire. Text need not be UTF-8 here:
// documents have been found to be, and a path's text is looked up and never stored.
func (p *plan) reflected(m protoreflect.Message) (err *Error) {
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		f := &p.fields[d.Number()]
		if !f.repeated {
			if err = f.value(v); err != nil {
				err = f.wrapValue(err)
			}
			return err == nil
		}
		list := v.List()
		if list.Len() > f.limit.count {
			err = tooMany(f)
			return false
		}
		for i := range list.Len() {
			if err = f.value(list.Get(i)); err != nil {
				err = f.wrap(err, i+1)
				return false
			}
		}
		return true
	})
	return err
}

// wrapValue names the field unless number has named it.
func (f *field) wrapValue(err *Error) *Error {
	if f.kind == kindNumber {
		return err
	}
	return err.under(f.name)
}

func (f *field) value(v protoreflect.Value) *Error {
	switch f.kind {
	case kindMessage:
		return f.message.reflected(v.Message())
	case kindText:
		s := v.String()
		if f.limit.words == nil && len(s) <= f.limit.bytes {
			return nil // no copy of a large text
		}
		return f.bytes([]byte(s), &scanner{repairs: true})
	case kindBytes:
		return f.bytes(v.Bytes(), &scanner{})
	case kindNumber:
		if f.ranged {
			return f.number(uint64(v.Int()))
		}
	case kindUnknown:
	}
	return nil
}

// markNumber is the field under which a refused message carries its refusal: the highest
// number there is, which peers may not use.
const markNumber = protowire.MaxValidNumber

// Refuse empties a message and leaves the refusal in it, for [Refusal].
//
// A codec's error would end the call inside gRPC, as INTERNAL and before anything that
// counts and answers calls has seen it. A message that carries its refusal is refused by
// the interceptor, in the words of the error table.
func Refuse(m proto.Message, err *Error) {
	proto.Reset(m)
	mark := protowire.AppendTag(nil, markNumber, protowire.BytesType)
	mark = protowire.AppendBytes(mark, []byte(err.Field+"\x00"+err.Text))
	m.ProtoReflect().SetUnknown(mark)
}

// Refusal returns why a message that a [Codec] has read is refused, or nil. Whoever receives
// messages of such a codec must ask.
func Refusal(m proto.Message) *Error {
	b := m.ProtoReflect().GetUnknown()
	if len(b) == 0 {
		return nil
	}
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != markNumber || typ != protowire.BytesType {
		return nil
	}
	v, n := protowire.ConsumeBytes(b[n:])
	if n < 0 {
		return nil
	}
	name, what, _ := strings.Cut(string(v), "\x00")
	return &Error{Field: name, Text: what}
}
