package dispatcher

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"reflect"
	"slices"
	"time"

	"github.com/treadle-dev/treadle/task"
)

// printer writes a value in a form that two states share exactly when nothing tells them
// apart: ids and pointers are numbered as they are met, times are counted from now. It reads
// every field there is, so a field that an engine gets tomorrow is a part of the state, too.
type printer struct {
	out  []byte
	now  time.Time
	ids  map[task.ID]uint32
	seen map[pointee]uint32
}

// pointee is what a pointer points to: a struct and its first field have one address.
type pointee struct {
	at uintptr
	of reflect.Type
}

var (
	hashSeed   = maphash.MakeSeed()
	timeType   = reflect.TypeFor[time.Time]()
	idType     = reflect.TypeFor[task.ID]()
	engineType = reflect.TypeFor[Engine]()
	configType = reflect.TypeFor[Config]()
)

// fingerprint returns the hash of what was given, which must be pointers.
func fingerprint(now time.Time, values ...any) uint64 {
	p := printer{now: now, ids: map[task.ID]uint32{}, seen: map[pointee]uint32{}, out: make([]byte, 0, 8<<10)}
	for _, v := range values {
		p.print(reflect.ValueOf(v))
	}
	return maphash.Bytes(hashSeed, p.out)
}

func (p *printer) num(n uint64) { p.out = binary.AppendUvarint(p.out, n) }

func (p *printer) text(s string) {
	p.num(uint64(len(s)))
	p.out = append(p.out, s...)
}

func (p *printer) print(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			p.num(1)
		} else {
			p.num(0)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		p.num(uint64(v.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		p.num(v.Uint())
	case reflect.Float32, reflect.Float64:
		p.num(uint64(v.Float() * 1e6))
	case reflect.String:
		p.text(v.String())
	case reflect.Pointer:
		p.pointer(v)
	case reflect.Interface:
		if v.IsNil() {
			p.num(0)
			return
		}
		p.text(v.Elem().Type().Name())
		p.print(v.Elem())
	case reflect.Slice:
		p.num(uint64(v.Len()))
		for i := range v.Len() {
			p.print(v.Index(i))
		}
	case reflect.Array:
		p.array(v)
	case reflect.Map:
		p.mapping(v)
	case reflect.Struct:
		p.structure(v)
	default: // functions: what they are bound to is printed where it is
	}
}

func (p *printer) pointer(v reflect.Value) {
	if v.IsNil() {
		p.num(0)
		return
	}
	if n, ok := p.seen[pointee{v.Pointer(), v.Type()}]; ok {
		p.num(uint64(n))
		return
	}
	n := uint32(len(p.seen) + 1)
	p.seen[pointee{v.Pointer(), v.Type()}] = n
	p.num(uint64(n))
	p.print(v.Elem())
}

func (p *printer) array(v reflect.Value) {
	if v.Type() == idType {
		var id task.ID
		for i := range id {
			id[i] = byte(v.Index(i).Uint())
		}
		if id.IsZero() {
			p.num(0)
			return
		}
		if _, ok := p.ids[id]; !ok {
			p.ids[id] = uint32(len(p.ids) + 1)
		}
		p.num(uint64(p.ids[id]))
		return
	}
	for i := range v.Len() {
		p.print(v.Index(i))
	}
}

// mapping prints a map by its keys as they are, so that the order hangs on nothing else.
func (p *printer) mapping(v reflect.Value) {
	type pair struct {
		order []byte
		key   reflect.Value
	}
	pairs := make([]pair, 0, v.Len())
	for _, k := range v.MapKeys() {
		raw := printer{now: p.now, seen: p.seen}
		raw.raw(k)
		pairs = append(pairs, pair{raw.out, k})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return bytes.Compare(a.order, b.order) })
	p.num(uint64(len(pairs)))
	for _, it := range pairs {
		p.print(it.key)
		p.print(v.MapIndex(it.key))
	}
}

// raw prints a key of a map without numbering ids. A pointer in a key was met before.
func (p *printer) raw(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			p.raw(v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			p.raw(v.Index(i))
		}
	case reflect.Pointer:
		p.num(uint64(p.seen[pointee{v.Pointer(), v.Type()}]))
	default:
		p.print(v)
	}
}

func (p *printer) structure(v reflect.Value) {
	switch v.Type() {
	case timeType:
		// Times of the explorer have no monotonic part: nanoseconds, and seconds since year 1.
		nanos, seconds := v.Field(0).Uint(), v.Field(1).Int()
		if nanos == 0 && seconds == 0 {
			p.num(0)
			return
		}
		now := reflect.ValueOf(p.now)
		p.num(uint64((seconds-now.Field(1).Int())*1e9+int64(nanos)-int64(now.Field(0).Uint())) + 1<<62)
	case configType: // never changes
	default:
		for i := range v.NumField() {
			if v.Type() != engineType || v.Type().Field(i).Name != "looked" { // a count for tests
				p.print(v.Field(i))
			}
		}
	}
}
