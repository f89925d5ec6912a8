// Package filltest fills structs for tests that follow a struct through a conversion: a field that
// the conversion forgets comes back empty, also one that is added after the test was written.
package filltest

import (
	"fmt"
	"reflect"
	"time"
)

// Struct sets every field of the struct that p points to, those of embedded structs too, to a
// value that is not zero; fields of the same type get different ones. It panics at a type that it
// has no value for.
func Struct(p any) {
	n := 0
	fill(reflect.ValueOf(p).Elem(), &n)
}

func fill(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Date(2030, 1, 2, 3, 4, *n, 678, time.UTC)
		return
	case *time.Duration:
		*x = time.Duration(*n)*time.Minute + time.Duration(*n)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	default:
		panic(fmt.Sprintf("filltest: no value for a %s", v.Type()))
	}
}
