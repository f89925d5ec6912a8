package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/treadle-dev/treadle/fabric"
)

// boundedSchema is what the document says of the values of one parameter or field.
type boundedSchema struct {
	Ref        string                   `json:"$ref"`
	Type       string                   `json:"type"`
	Format     string                   `json:"format"`
	Pattern    string                   `json:"pattern"`
	Enum       []string                 `json:"enum"`
	Minimum    *int64                   `json:"minimum"`
	Maximum    *int64                   `json:"maximum"`
	MinLength  *int                     `json:"minLength"`
	MaxLength  *int                     `json:"maxLength"`
	MaxItems   *int                     `json:"maxItems"`
	Properties map[string]boundedSchema `json:"properties"`
	AllOf      []boundedSchema          `json:"allOf"`
}

type boundedDoc struct {
	Paths map[string]map[string]struct {
		Parameters []struct {
			Name   string        `json:"name"`
			In     string        `json:"in"`
			Schema boundedSchema `json:"schema"`
		} `json:"parameters"`
		RequestBody *struct {
			Content map[string]struct {
				Schema boundedSchema `json:"schema"`
			} `json:"content"`
		} `json:"requestBody"`
	} `json:"paths"`
	Components struct {
		Schemas map[string]boundedSchema `json:"schemas"`
	} `json:"components"`
}

func (d *boundedDoc) resolve(s boundedSchema) boundedSchema {
	if len(s.AllOf) == 1 && s.Ref == "" {
		s.Ref = s.AllOf[0].Ref
	}
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		return d.Components.Schemas[name]
	}
	return s
}

// edges are values just inside and just outside of what a schema allows.
func edges(s boundedSchema) (in, out []any) {
	if s.Minimum != nil {
		in, out = append(in, *s.Minimum), append(out, *s.Minimum-1)
	}
	if s.Maximum != nil {
		in, out = append(in, *s.Maximum), append(out, *s.Maximum+1)
	}
	if s.Format == "int32" {
		out = append(out, int64(1)<<31)
	}
	if s.MinLength != nil {
		in, out = append(in, strings.Repeat("a", *s.MinLength)), append(out, strings.Repeat("a", *s.MinLength-1))
	}
	if s.MaxLength != nil {
		in, out = append(in, strings.Repeat("a", *s.MaxLength)), append(out, strings.Repeat("a", *s.MaxLength+1))
	}
	if s.MaxItems != nil {
		item := map[string]any{"function": "nobody"}
		in, out = append(in, slices.Repeat([]any{item}, *s.MaxItems)), append(out, slices.Repeat([]any{item}, *s.MaxItems+1))
	}
	for _, word := range s.Enum {
		in = append(in, word)
	}
	if len(s.Enum) > 0 {
		out = append(out, "NO_SUCH_WORD", 77)
	}
	switch {
	case s.Format == "uuid":
		in, out = append(in, "00000000-0000-4000-8000-000000000000"), append(out, "no-uuid", "00000000-0000-4000-8000-00000000000")
	case s.Format == "date-time":
		in, out = append(in, "2026-01-02T15:04:05.123456789Z"), append(out, "yesterday", "2026-01-02", "2026-13-02T00:00:00Z")
	case strings.Contains(s.Pattern, "ms"):
		in, out = append(in, "1ms", "1m30s"), append(out, "-1s", "1 s", "1x", "")
	case s.Pattern != "":
		in, out = append(in, "3.12", ""), append(out, "3", "3.", "3.12.1", "x")
	}
	return in, out
}

// notJustLength are fields that take their own text alone: any other is refused at any length.
var notJustLength = []string{"page_token", "filter"}

// moreEdges are limits that the document tells in words.
var moreEdges = map[string]struct{ in, out []any }{
	"options.memory_limit": {in: []any{0, 1 << 20}, out: []any{1, 1<<20 - 1}},
	"options.timeout":      {in: []any{"1ms"}, out: []any{"0s", "-1s"}},
	"timeout":              {in: []any{"0s"}, out: []any{"5m1ms", "301s"}},
	"wait":                 {in: []any{"5m"}, out: []any{"5m1ms", "301s"}},
	"filter":               {in: []any{"status = QUEUED" + strings.Repeat(" ", fabric.MaxFilter-len("status = QUEUED"))}},
	"page_size":            {in: []any{0, 1, maxPage, maxPage + 1, 1<<31 - 1}, out: []any{"many", "1.5"}},
	"attempt":              {out: []any{"latest"}},
}

// TestOpenAPIEdges: of every parameter and every field that clients send, what the document
// allows is not refused for that field's sake, and what it does not allow is, by name.
func TestOpenAPIEdges(t *testing.T) {
	e := start(t)
	var doc boundedDoc
	if err := json.Unmarshal(e.must(e.get("/openapi.json"), 200).raw, &doc); err != nil {
		t.Fatal(err)
	}
	e.must(e.post("/v1/functions", `{"name": "f", "source": "def f(): pass"}`), 200)
	began, checked := time.Now(), 0
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for method, op := range doc.Paths[path] {
			at := site{e: e, t: t, method: strings.ToUpper(method), path: path}
			for _, p := range op.Parameters {
				in, out := edges(doc.resolve(p.Schema))
				at.check(p.In, p.Name, in, out)
				checked += len(in) + len(out)
			}
			if op.RequestBody == nil {
				continue
			}
			body := doc.resolve(op.RequestBody.Content["application/json"].Schema)
			for name, field := range body.Properties {
				field = doc.resolve(field)
				in, out := edges(field)
				at.check("body", name, in, out)
				checked += len(in) + len(out)
				for inner, f := range field.Properties {
					in, out := edges(doc.resolve(f))
					at.check("body", name+"."+inner, in, out)
					checked += len(in) + len(out)
				}
			}
		}
	}
	if checked < 150 {
		t.Errorf("only %d values were tried: the document says less than it did", checked)
	}
	t.Logf("%d values in %s", checked, time.Since(began).Round(time.Millisecond))
}

// site is an operation of the document.
type site struct {
	e            *env
	t            *testing.T
	method, path string
}

func (s site) check(place, name string, in, out []any) {
	more := moreEdges[name]
	if slices.Contains(notJustLength, name) {
		in = nil
	}
	for _, v := range slices.Concat(in, more.in) {
		if a := s.send(place, name, v); refuses(a, name) || a.status >= 500 && a.status != 504 {
			s.t.Errorf("%s %s: %s = %s is allowed, and answered %d %s", s.method, s.path, name, shown(v), a.status, a.raw)
		}
	}
	for _, v := range slices.Concat(out, more.out) {
		if place == "path" && v == "" {
			continue // another route
		}
		a := s.send(place, name, v)
		// An id that is none is that of nothing; so is the name of no function.
		if place == "path" && (a.status == http.StatusNotFound || a.status == http.StatusBadRequest) {
			continue
		}
		if !refuses(a, name) {
			s.t.Errorf("%s %s: %s = %s is not allowed, and answered %d %.300s", s.method, s.path, name, shown(v), a.status, a.raw)
		}
	}
}

func shown(v any) string {
	text := fmt.Sprintf("%#v", v)
	return fmt.Sprintf("%.60s (%d bytes)", text, len(text))
}

// refuses reports whether an answer refuses a request for the sake of one field.
func refuses(a answer, name string) bool {
	switch a.status {
	case http.StatusBadRequest:
		e, _ := a.json["error"].(map[string]any)
		field, _ := e["field"].(string)
		return field == name
	case http.StatusUnprocessableEntity: // at the root
		return strings.Contains(string(a.raw), name)
	default:
		return false
	}
}

// send makes the smallest request of the operation that is right but for one value.
func (s site) send(place, name string, v any) answer {
	path, query, body := s.path, url.Values{}, map[string]any{}
	for _, p := range []string{"function", "task_id", "function_id"} {
		value := map[string]string{"function": "f", "task_id": unknownID, "function_id": unknownID}[p]
		if place == "path" && p == name {
			value = fmt.Sprint(v)
		}
		path = strings.ReplaceAll(path, "{"+p+"}", url.PathEscape(value))
	}
	if strings.HasSuffix(path, ":call") {
		query.Set("timeout", "1ms")
	}
	if place == "query" {
		query.Set(name, fmt.Sprint(v))
	}
	switch s.path {
	case "/v1/functions":
		body["name"], body["source"] = "g", "def g(): pass"
	case "/v1/tasks":
		body["function"] = "f"
	case "/register_function":
		body["name"], body["payload"] = "g", "gARLKi4="
	case "/execute_function":
		body["function_id"], body["payload"] = unknownID, "gARLKi4="
	}
	if outer, inner, nested := strings.Cut(name, "."); place == "body" && nested {
		body[outer] = map[string]any{inner: v}
	} else if place == "body" {
		if name == "python" {
			delete(body, "source")
			body["payload"] = "gARLKi4="
		}
		body[name] = v
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if s.method != http.MethodPost {
		return s.e.do(s.method, path, nil)
	}
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.e.do(s.method, path, text, func(r *http.Request) {
		r.Header.Set("Grpc-Timeout", "1S") // nobody runs what is called: a wait that is allowed is not waited for
	})
}

const unknownID = "00000000-0000-4000-8000-0000000000ff"
