// Package restjson is the JSON form of the API's messages over REST. It is the
// protobuf JSON mapping with these differences, each there for people with curl:
//
//   - Names are those of the proto files (snake_case); both spellings are read.
//   - Fields of type bytes that hold JSON (see the comments in the proto files) stand
//     in the document as they are, byte for byte, in both directions.
//   - Other bytes are base64, read with or without white space, padding and line
//     breaks, in the standard or the URL alphabet.
//   - 64-bit integers are written as numbers.
//   - Durations are read in the forms "1.5s", "500ms" and 1.5, too.
//   - [Decode] ignores unknown fields, [DecodeStrict] refuses them. Of a field given twice
//     the last one counts.
//   - Maps are objects, whose keys are written in order.
//   - Text, numbers, enums and lists are always written; empty bytes and absent
//     messages never are.
//
// Data after the document, invalid UTF-8 and nesting deeper than jsonscan.MaxDepth
// are refused.
package restjson

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// snakeCaseOnly are the files whose messages know one spelling of each field: what else a
// client of the root routes sends is an unknown field.
var snakeCaseOnly = map[string]bool{"treadle/v1/root.proto": true}

// rawFields are the bytes fields that hold JSON.
var rawFields = map[protoreflect.FullName]bool{
	"treadle.v1.ExecuteRequest.args":   true,
	"treadle.v1.ExecuteRequest.kwargs": true,
	"treadle.v1.CallInput.args":        true,
	"treadle.v1.CallInput.kwargs":      true,
	"treadle.v1.TaskResult.result":     true,
}

// quietFields are texts that are left out when empty, as most answers do without.
var quietFields = map[protoreflect.FullName]bool{
	"treadle.v1.TaskResult.result_repr": true,
	"treadle.v1.Function.python":        true,
}

// Types of an [Error]. They are the words that FastAPI uses, which existing clients
// of the root routes know.
const (
	TypeSyntax   = "json_invalid"
	TypeObject   = "dict_type"
	TypeString   = "string_type"
	TypeList     = "list_type"
	TypeInt      = "int_type"
	TypeBool     = "bool_type"
	TypeEnum     = "enum"
	TypeBytes    = "bytes_type"
	TypeDuration = "timedelta_type"
	TypeTime     = "datetime_type"
	TypeNumber   = "float_type"
	TypeUnknown  = "extra_forbidden"
)

// Error says where a document is not what the message wants.
type Error struct {
	// Path leads to the value: names of fields and indexes of lists. It is empty when
	// the document as a whole is wrong.
	Path []string
	// Type is one of the Type constants.
	Type string
	// Msg is a sentence for people.
	Msg string
	// Offset is the position of a syntax error in bytes, else -1.
	Offset int
}

func (e *Error) Error() string {
	if len(e.Path) == 0 {
		return e.Msg
	}
	return strings.Join(e.Path, ".") + ": " + e.Msg
}

func wrong(kind, format string, args ...any) *Error {
	return &Error{Type: kind, Msg: fmt.Sprintf(format, args...), Offset: -1}
}

// under prefixes the path of an Error; other errors pass.
func under(err error, step string) error {
	var e *Error
	if errors.As(err, &e) && e.Type != TypeSyntax {
		e.Path = append([]string{step}, e.Path...)
	}
	return err
}

func index(i int) string { return strconv.Itoa(i) }
