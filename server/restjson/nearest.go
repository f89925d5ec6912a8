package restjson

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxNamed bounds how much of an unknown word an error repeats, in characters.
const maxNamed = 64

// unknown refuses a field that a message does not have.
func unknown(m protoreflect.MessageDescriptor, key string) error {
	var names []string
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		names = append(names, string(f.Name()))
	}
	// A word that is known one level deeper is likely to have lost its way.
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if f.Message() == nil || f.IsMap() || strings.HasPrefix(string(f.Message().FullName()), "google.protobuf.") {
			continue
		}
		if f.Message().Fields().ByName(protoreflect.Name(key)) != nil {
			step := string(f.Name())
			if f.IsList() {
				step += ".0"
			}
			return &Error{Path: []string{clip(key)}, Type: TypeUnknown, Offset: -1,
				Msg: fmt.Sprintf("unknown field: did you mean %s.%s?", step, key)}
		}
	}
	return &Error{Path: []string{clip(key)}, Type: TypeUnknown, Msg: "unknown field: " + Hint(key, names), Offset: -1}
}

// Hint says which of the known words was meant by another one, or names all of them where
// none is near.
func Hint(word string, known []string) string {
	best, least := "", 1+max(2, len([]rune(clip(word)))/3)
	for _, name := range known {
		if d := distance(strings.ToLower(clip(word)), name); d < least {
			best, least = name, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %s?", best)
	case len(known) == 0:
		return "none is known here"
	default:
		return "known are " + strings.Join(known, ", ")
	}
}

// clip ends a word of a client, which may be as long as a body.
func clip(word string) string {
	n := 0
	for i := range word {
		if n == maxNamed {
			return word[:i] + "..."
		}
		n++
	}
	return word
}

// distance is the number of characters to insert, remove, replace or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}
