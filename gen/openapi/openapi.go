// Package openapi holds the OpenAPI description of the REST API and the table of its
// routes, generated from the same contract and routes as the gateway.
package openapi

import _ "embed"

// JSON is the description in OpenAPI 3.1, a JSON document in which the version of the
// server is VERSION. Callers must not change it.
//
//go:embed treadle.openapi.json
var JSON []byte

// Route is one route of the contract.
type Route struct {
	// Method is GET, POST or DELETE.
	Method string
	// Path has its parameters in braces, as in /v1/tasks/{task_id}:watch.
	Path string
	// RPC is the full name of the method, with dots.
	RPC string
	// Body is the field that is the body, * for all that are not in the path, or empty.
	Body string
}
