package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/treadle-dev/treadle/fabric"
	"github.com/treadle-dev/treadle/gen/openapi"
	"github.com/treadle-dev/treadle/server/auth"
	"github.com/treadle-dev/treadle/server/restjson"
	"github.com/treadle-dev/treadle/task"
)

// description is what the tests need of the OpenAPI document.
type description struct {
	OpenAPI string `json:"openapi"`
	Info    struct {
		Version string `json:"version"`
	} `json:"info"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas    map[string]schema          `json:"schemas"`
		Responses  map[string]json.RawMessage `json:"responses"`
		Parameters map[string]json.RawMessage `json:"parameters"`
		Headers    map[string]json.RawMessage `json:"headers"`
	} `json:"components"`
}

type operation struct {
	OperationID string                `json:"operationId"`
	Security    []map[string][]string `json:"security"`
	Parameters  []struct {
		Name   string `json:"name"`
		In     string `json:"in"`
		Ref    string `json:"$ref"`
		Schema schema `json:"schema"`
	} `json:"parameters"`
	RequestBody *struct {
		Content map[string]media `json:"content"`
	} `json:"requestBody"`
	Responses map[string]struct {
		Ref     string           `json:"$ref"`
		Content map[string]media `json:"content"`
	} `json:"responses"`
}

type media struct {
	Schema   schema          `json:"schema"`
	Example  json.RawMessage `json:"example"`
	Examples map[string]struct {
		Value json.RawMessage `json:"value"`
	} `json:"examples"`
}

type schema struct {
	Ref        string            `json:"$ref"`
	Required   []string          `json:"required"`
	Properties map[string]schema `json:"properties"`
	Enum       []string          `json:"enum"`
	Minimum    *int              `json:"minimum"`
	Maximum    *int              `json:"maximum"`
	MaxLength  int               `json:"maxLength"`
	MaxItems   int               `json:"maxItems"`
}

// bare is a path without the names of its parameters: paths that differ by those alone are
// one in the document.
func bare(path string) string { return regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "{}") }

// of finds the operation of a route.
func (d description) of(r openapi.Route) operation {
	for path, methods := range d.Paths {
		if bare(path) == bare(r.Path) {
			return methods[strings.ToLower(r.Method)]
		}
	}
	return operation{}
}

func described(t *testing.T, e *env) description {
	t.Helper()
	var doc description
	if err := json.Unmarshal(e.must(e.get("/openapi.json"), 200).raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestOpenAPIDescribesWhatIsServed(t *testing.T) {
	e := start(t)
	doc := described(t, e)
	if doc.OpenAPI != "3.1.0" || doc.Info.Version != "test" {
		t.Errorf("OpenAPI %s of version %s", doc.OpenAPI, doc.Info.Version)
	}
	var served []string
	for _, route := range routes() {
		served = append(served, bare(route))
	}
	for _, page := range []string{"/", "/healthz", "/readyz", "/metrics", "/openapi.json"} {
		e.must(e.get(page), 200)
		served = append(served, "GET "+page)
	}
	var all []string
	ids := make(map[string]bool)
	for path, methods := range doc.Paths {
		for method, op := range methods {
			name := strings.ToUpper(method) + " " + path
			all = append(all, bare(name))
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s: the id %q is none, or another's", name, op.OperationID)
			}
			ids[op.OperationID] = true
			rule, isPage := auth.RuleOf(name)
			if isPage && rule.Public {
				if len(op.Security) != 0 {
					t.Errorf("%s is public and asks for %v", name, op.Security)
				}
			} else if len(op.Security) != 2 || op.Security[0]["bearer"] == nil || len(op.Security[1]) != 0 {
				t.Errorf("%s asks for %v: want a token, or none", name, op.Security)
			}
		}
	}
	slices.Sort(served)
	slices.Sort(all)
	if !slices.Equal(served, all) {
		t.Errorf("served are\n%v\ndescribed are\n%v", served, all)
	}
	for _, route := range routes() {
		method, path, _ := strings.Cut(route, " ")
		a := e.do(method, strings.NewReplacer("{task_id}", "x", "{function}", "x", "{function_id}", "x").Replace(path), nil)
		if strings.Contains(string(a.raw), "NO_SUCH_ROUTE") || a.status == 405 {
			t.Errorf("%s is not served: %d %s", route, a.status, a.raw)
		}
	}
	raw := string(e.get("/openapi.json").raw)
	for _, ref := range regexp.MustCompile(`"#/components/(\w+)/([^"]+)"`).FindAllStringSubmatch(raw, -1) {
		known := map[string][]string{
			"schemas": slices.Collect(maps.Keys(doc.Components.Schemas)), "responses": slices.Collect(maps.Keys(doc.Components.Responses)),
			"parameters": slices.Collect(maps.Keys(doc.Components.Parameters)), "headers": slices.Collect(maps.Keys(doc.Components.Headers)),
		}
		if !slices.Contains(known[ref[1]], ref[2]) {
			t.Errorf("%s is not there", ref[0])
		}
	}
}

// TestOpenAPIQueries: the query parameters that are described are those that are taken.
func TestOpenAPIQueries(t *testing.T) {
	e := start(t)
	doc := described(t, e)
	for _, r := range openapi.Routes {
		if isRoot(r.Path) {
			continue
		}
		var names []string
		for _, p := range doc.of(r).Parameters {
			if p.In == "query" {
				names = append(names, p.Name)
			}
			if p.Ref == "#/components/parameters/Strict" {
				names = append(names, strictParam)
			}
		}
		to := e.srv.routes[r.Method+" "+strings.ReplaceAll(r.Path, "}", "=*}")]
		if to == nil {
			t.Errorf("%s %s is not known", r.Method, r.Path)
			continue
		}
		if want := append(slices.Clone(to.names), strictParam); !slices.Equal(names, want) {
			t.Errorf("%s %s describes %v, takes %v", r.Method, r.Path, names, want)
		}
	}
}

func message(t *testing.T, name protoreflect.FullName) proto.Message {
	t.Helper()
	m, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m.New().Interface()
}

// TestOpenAPIExamples reads every example as the server would, and finds all that answers
// always have in those of answers.
func TestOpenAPIExamples(t *testing.T) {
	doc := described(t, start(t))
	for _, r := range openapi.Routes {
		op := doc.of(r)
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(r.RPC))
		if err != nil {
			t.Fatal(err)
		}
		method := found.(protoreflect.MethodDescriptor)
		if r.Body != "" {
			input := method.Input()
			if r.Body != "*" {
				input = input.Fields().ByName(protoreflect.Name(r.Body)).Message()
			}
			m := op.RequestBody.Content["application/json"]
			examples := []json.RawMessage{m.Example}
			for _, x := range m.Examples {
				examples = append(examples, x.Value)
			}
			n := 0
			for _, example := range examples {
				if example == nil {
					continue
				}
				n++
				if strings.HasSuffix(r.Path, "_function") {
					continue // their payloads are shortened
				}
				if err := restjson.DecodeStrict(bytes.Clone(example), message(t, input.FullName())); err != nil {
					t.Errorf("%s: %s: %v", r.Path, example, err)
				}
			}
			if n == 0 {
				t.Errorf("%s %s has no example of a request", r.Method, r.Path)
			}
		}
		content := op.Responses["200"].Content
		example := content["application/json"].Example
		if lines := content["application/x-ndjson"]; lines.Example != nil {
			var text string
			if err := json.Unmarshal(lines.Example, &text); err != nil {
				t.Fatal(err)
			}
			line, _, _ := strings.Cut(text, "\n")
			example = json.RawMessage(line)
		}
		m := message(t, method.Output().FullName())
		if err := restjson.DecodeStrict(bytes.Clone(example), m); err != nil {
			t.Errorf("%s: %s: %v", r.Path, example, err)
			continue
		}
		again, err := restjson.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if json.Unmarshal(again, &want) != nil || json.Unmarshal(example, &got) != nil || fmt.Sprint(want) != fmt.Sprint(got) {
			t.Errorf("%s: the example is\n%v, the server would write\n%v", r.Path, got, want)
		}
	}
}

// TestOpenAPIRequired: what is required of an answer is what is always written.
func TestOpenAPIRequired(t *testing.T) {
	doc := described(t, start(t))
	for _, name := range []string{
		"Function", "ListFunctionsResponse", "Task", "Attempt", "TaskError", "TaskResult", "ExecuteBatchResponse", "ExecuteBatchItem", "ItemError",
		"ListTasksResponse", "TaskLogs", "Worker", "ListWorkersResponse", "Queue", "ListQueuesResponse", "ServerInfo", "RegisterRootResponse",
		"ExecuteRootResponse", "GetRootStatusResponse", "GetRootResultResponse", "RootError",
	} {
		text, err := restjson.Encode(message(t, protoreflect.FullName("treadle.v1."+name)))
		if err != nil {
			t.Fatal(err)
		}
		var keys map[string]any
		if err := json.Unmarshal(text, &keys); err != nil {
			t.Fatal(err)
		}
		if list, ok := strings.CutPrefix(name, "List"); ok {
			name = strings.TrimSuffix(list, "sResponse") + "Page"
		}
		want, got := slices.Sorted(maps.Keys(keys)), slices.Sorted(slices.Values(doc.Components.Schemas[name].Required))
		if !slices.Equal(want, got) {
			t.Errorf("%s requires %v, always written are %v", name, got, want)
		}
	}
}

// TestOpenAPILimits: the limits that are described are those of the server.
func TestOpenAPILimits(t *testing.T) {
	doc := described(t, start(t))
	for at, want := range map[string]int{
		"RegisterFunctionRequest.name maxLength":       task.MaxNameLength,
		"RegisterFunctionRequest.queue maxLength":      task.MaxQueueLength,
		"RegisterFunctionRequest.request_id maxLength": fabric.MaxRequestID,
		"ExecuteRequest.request_id maxLength":          fabric.MaxRequestID,
		"CallInput.request_id maxLength":               fabric.MaxRequestID,
		"RegisterRootRequest.name maxLength":           task.MaxNameLength,
		"ExecuteBatchRequest.requests maxItems":        maxBatch,
		"ExecuteOptions.priority minimum":              task.MinPriority,
		"ExecuteOptions.priority maximum":              task.MaxPriority,
		"ExecuteOptions.max_retries maximum":           task.MaxRetriesLimit,
		"ExecuteOptions.function_retries maximum":      task.MaxRetriesLimit,
		"Task.attempts maxItems":                       task.MaxAttemptsKept,
	} {
		place, kind, _ := strings.Cut(at, " ")
		name, field, _ := strings.Cut(place, ".")
		p := doc.Components.Schemas[name].Properties[field]
		got := map[string]int{"maxLength": p.MaxLength, "maxItems": p.MaxItems}
		for word, n := range map[string]*int{"minimum": p.Minimum, "maximum": p.Maximum} {
			if n != nil {
				got[word] = *n
			}
		}
		if n, ok := got[kind]; !ok || n != want {
			t.Errorf("%s is %d, want %d", at, n, want)
		}
	}
	for _, p := range doc.Paths["/v1/tasks"]["get"].Parameters {
		if p.Name == "filter" && p.Schema.MaxLength != fabric.MaxFilter {
			t.Errorf("filter has %d, want %d", p.Schema.MaxLength, fabric.MaxFilter)
		}
	}
}

// TestOpenAPIReasons: the reasons that are described are those of docs/errors.md, which
// another test compares with the table.
func TestOpenAPIReasons(t *testing.T) {
	doc := described(t, start(t))
	text, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		if row[1] != reasonTLS { // over gRPC alone
			want = append(want, row[1])
		}
	}
	slices.Sort(want)
	got := slices.Sorted(slices.Values(doc.Components.Schemas["ErrorObject"].Properties["reason"].Enum))
	if !slices.Equal(want, got) {
		t.Errorf("described are\n%v\ndocs/errors.md has\n%v", got, want)
	}
}
