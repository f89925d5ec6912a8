package server

import (
	"encoding/json"
	"fmt"
	"strings"
)

// describe turns the generated description of the REST API into that of what is
// served: the generator knows the protobuf JSON mapping, and package restjson and
// the error handlers differ from it in three places.
func describe(generated []byte, version string) ([]byte, error) {
	var doc struct {
		Info        map[string]any                       `json:"info"`
		Paths       map[string]map[string]map[string]any `json:"paths"`
		Definitions map[string]map[string]any            `json:"definitions"`
	}
	var whole map[string]any
	for _, into := range []any{&doc, &whole} {
		if err := json.Unmarshal(generated, into); err != nil {
			return nil, fmt.Errorf("server: the OpenAPI description: %w", err)
		}
	}
	doc.Info["version"] = version
	for path, methods := range doc.Paths {
		for _, operation := range methods {
			responses, _ := operation["responses"].(map[string]any)
			unwrapStream(responses)
			shape := "error"
			if isRoot(path) {
				shape = "detail"
			}
			responses["default"] = map[string]any{
				"description": "An error; see docs/errors.md.", "schema": map[string]any{"$ref": "#/definitions/" + shape},
			}
		}
	}
	for _, d := range doc.Definitions {
		properties, _ := d["properties"].(map[string]any)
		for _, p := range properties {
			if p, _ := p.(map[string]any); p["format"] == "int64" {
				p["type"] = "integer" // the mapping writes text, we write numbers
			}
		}
	}
	delete(doc.Definitions, "googleRpcStatus")
	delete(doc.Definitions, "protobufAny")
	text := map[string]any{"type": "string"}
	doc.Definitions["detail"] = map[string]any{
		"type": "object", "description": "An error at the root. The detail of a 422 is a list of faults, else text.",
		"properties": map[string]any{"detail": map[string]any{}},
	}
	doc.Definitions["error"] = map[string]any{
		"type": "object", "description": "An error under /v1.",
		"properties": map[string]any{"detail": text, "error": map[string]any{
			"type": "object", "properties": map[string]any{
				"code": map[string]any{"type": "integer"}, "status": text, "reason": text, "message": text, "field": text,
			},
		}},
	}
	whole["info"], whole["paths"], whole["definitions"] = doc.Info, doc.Paths, doc.Definitions
	return json.Marshal(whole)
}

// unwrapStream describes a stream by its lines, as each is a plain message.
func unwrapStream(responses map[string]any) {
	ok, _ := responses["200"].(map[string]any)
	schema, _ := ok["schema"].(map[string]any)
	if title, _ := schema["title"].(string); !strings.HasPrefix(title, "Stream result of ") {
		return
	}
	if properties, _ := schema["properties"].(map[string]any); properties["result"] != nil {
		ok["schema"], ok["description"] = properties["result"], "One of these a line; a stream that breaks ends with an error."
	}
}
