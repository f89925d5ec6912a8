package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/treadle-dev/treadle/gen/openapi"
	"github.com/treadle-dev/treadle/server/restjson"
)

// strictParam is the query parameter that every route under /v1 takes: false makes it
// ignore what it does not know.
const strictParam = "strict"

// route is what a REST route takes beside its path.
type route struct {
	input protoreflect.MessageType
	// query are the fields that stand in the query, by name; names lists them.
	query map[string]protoreflect.FieldDescriptor
	names []string
	// body says that a body is read.
	body bool
}

// restRoutes are the routes under /v1 by method and pattern, "GET /v1/tasks/{task_id=*}".
type restRoutes map[string]*route

// newRoutes finds out what each route of the contract takes.
func newRoutes() (restRoutes, error) {
	all := make(restRoutes)
	for _, r := range openapi.Routes {
		if isRoot(r.Path) {
			continue
		}
		desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(r.RPC))
		if err != nil {
			return nil, fmt.Errorf("server: the route %s %s: %w", r.Method, r.Path, err)
		}
		method, ok := desc.(protoreflect.MethodDescriptor)
		if !ok {
			return nil, fmt.Errorf("server: the route %s %s: %s is no method", r.Method, r.Path, r.RPC)
		}
		input, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
		if err != nil {
			return nil, fmt.Errorf("server: the route %s %s: %w", r.Method, r.Path, err)
		}
		to := &route{input: input, query: make(map[string]protoreflect.FieldDescriptor), body: r.Body != ""}
		for i := range method.Input().Fields().Len() {
			f := method.Input().Fields().Get(i)
			name := string(f.Name())
			if r.Body == "*" || r.Body == name || strings.Contains(r.Path, "{"+name+"}") {
				continue
			}
			to.query[name] = f
			to.names = append(to.names, name)
		}
		all[r.Method+" "+strings.ReplaceAll(r.Path, "}", "=*}")] = to
	}
	return all, nil
}

// judge reads the query of a request under /v1 and says why it is refused, nil when it is
// not. It tells the body whether to be strict.
func (all restRoutes) judge(ex *exchange, r *http.Request, params map[string]string) *restError {
	to := all[r.Method+" "+ex.route]
	if to == nil {
		return nil // at the root nothing unknown is refused
	}
	strict := true
	if r.URL.RawQuery != "" {
		var e *restError
		if strict, e = to.judgeQuery(r.URL.RawQuery, params); e != nil {
			return e
		}
	}
	ex.body.strict = strict
	if strict && !to.body && r.ContentLength != 0 {
		return to.judgeNoBody(ex.body)
	}
	return nil
}

// judgeQuery reads a query, and says whether it asks to be strict.
func (to *route) judgeQuery(query string, params map[string]string) (strict bool, _ *restError) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return false, badQuery("", "the query cannot be read: %v", err)
	}
	strict = true
	if texts := values[strictParam]; len(texts) > 0 {
		if strict, err = strconv.ParseBool(texts[len(texts)-1]); err != nil {
			return false, badQuery(strictParam, "strict: %.40q is neither true nor false", texts[len(texts)-1])
		}
	}
	scratch := to.input.New()
	for _, key := range sortedKeys(values) {
		if e := to.judgeParam(scratch, key, values[key], strict, params); e != nil {
			return false, e
		}
	}
	return strict, nil
}

func (to *route) judgeParam(scratch protoreflect.Message, key string, texts []string, strict bool, params map[string]string) *restError {
	for _, text := range append(slices.Clone(texts), key) {
		if !utf8.ValidString(text) {
			return badQuery("", "%.40q is not UTF-8", key)
		}
	}
	f := to.query[key]
	switch {
	case key == strictParam:
	case f == nil && strict:
		e := badQuery(key, "%.64q: unknown query parameter: %s", key, to.hint(key, params))
		e.reason = reasonUnknown
		return e
	case f == nil:
	case len(texts) > 1:
		return badQuery(key, "%s is given %d times: want it once", key, len(texts))
	default:
		if err := restjson.SetText(scratch, f, texts[0]); err != nil {
			return badQuery(key, "%v", err)
		}
	}
	return nil
}

// hint says what may have been meant by an unknown query parameter.
func (to *route) hint(key string, params map[string]string) string {
	if _, ok := params[key]; ok {
		return "it is part of the path"
	}
	// Of the body, as a whole or in part.
	within := to.input.Descriptor().Fields()
	if input := within.ByName("input"); input != nil && to.body {
		within = input.Message().Fields()
	}
	if f := within.ByName(protoreflect.Name(key)); f != nil && to.body {
		return fmt.Sprintf("the field %s belongs into the body", key)
	}
	return restjson.Hint(key, append(slices.Clone(to.names), strictParam))
}

// judgeNoBody refuses fields in the body of a route that has none.
func (to *route) judgeNoBody(b *body) *restError {
	data, err := b.readAll()
	if err != nil {
		return b.err
	}
	var nothing emptypb.Empty
	if err := unmarshal(data, proto.Message(&nothing), true); err != nil {
		var shape *restjson.Error
		if !errors.As(err, &shape) || shape.Type != restjson.TypeUnknown {
			return nil // whatever it is, it names no field
		}
		field := strings.Join(shape.Path, ".")
		text := field + ": unknown field: this route takes no body"
		if to.query[field] != nil {
			text += fmt.Sprintf(", write ?%s=... in its query", field)
		}
		e := badQuery(field, "%s", text)
		e.reason = reasonUnknown
		return e
	}
	return nil
}

func sortedKeys(values url.Values) []string {
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func badQuery(field, format string, args ...any) *restError {
	return &restError{http: http.StatusBadRequest, code: codes.InvalidArgument, reason: reasonInvalid, field: field, text: fmt.Sprintf(format, args...)}
}

// timeoutForm is how gRPC writes the time that a call may take. The gateway takes more digits.
var timeoutForm = regexp.MustCompile(`^[0-9]{1,8}[HMSmun]$`)

// judgeTimeout refuses a Grpc-Timeout that gRPC would not take.
func judgeTimeout(value string) *restError {
	if value == "" || timeoutForm.MatchString(value) {
		return nil
	}
	return badQuery("", "Grpc-Timeout %.40q: want at most 8 digits and a unit (H, M, S, m, u or n), for example 500m", value)
}

// nameless refuses a path that ends where an id or a name is wanted.
func nameless(path string) *restError {
	for prefix, is := range map[string]struct{ field, what string }{
		"/v1/functions/": {"function", "the id or the name of a function"},
		"/v1/tasks/":     {"task_id", "the id of a task"},
	} {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		switch rest {
		case "":
			return badQuery(is.field, "%s is empty: the path %s ends where %s is wanted; %s, without the slash, is the list",
				is.field, path, is.what, strings.TrimSuffix(prefix, "/"))
		case ":call", ":watch", ":cancel":
			return badQuery(is.field, "%s is empty: the path %s lacks %s before %s", is.field, path, is.what, rest)
		}
	}
	return nil
}
